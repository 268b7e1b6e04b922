"""Does prefkit/ say what the notebooks say, and are the notebooks clean?

Works on a copy, so nothing here changes; needs no git.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from export import generated

ROOT = Path(__file__).resolve().parents[1]
SKIPPED = {"__pycache__", ".ipynb_checkpoints", ".last_checked"}


def contents(root: Path) -> dict[str, str | bytes]:  # relative path -> its bytes, or its link's aim
    "Every file under nbs/ and prefkit/, and the Quarto configuration."
    files = [root / "_quarto.yml"]
    for folder in ("nbs", "prefkit"):
        files += [
            path for path in (root / folder).rglob("*") if path.is_symlink() or path.is_file()
        ]
    found = {}
    for file in files:
        if not SKIPPED & set(file.parts):
            name = file.relative_to(root).as_posix()
            found[name] = str(file.readlink()) if file.is_symlink() else file.read_bytes()
    return found


def copy_project(root: Path, to: Path):
    """What export reads and writes; its name has no dot or underscore at the front: nbdev would
    skip it.
    """
    to.mkdir()
    for file in ("settings.ini", "_quarto.yml", "ruff.toml"):
        shutil.copy(root / file, to)
    ignore = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
    for folder in ("nbs", "prefkit"):
        shutil.copytree(root / folder, to / folder, symlinks=True, ignore=ignore)


def differences(root: Path = ROOT) -> list[str]:
    "What `make export` would change, in sentences."
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name) / "prefkit"
        copy_project(root, copy)
        before = contents(copy)
        for file in generated(copy):  # they have to come back: one without its notebook does not
            file.unlink()
        command = [sys.executable, Path(__file__).with_name("export.py")]
        done = subprocess.run(command, cwd=copy, capture_output=True, text=True)
        if done.returncode:
            return [f"export fails:\n{done.stderr}"]
        after = contents(copy)
    gone, new = before.keys() - after.keys(), after.keys() - before.keys()
    found = [f"{file}: no notebook exports it" for file in sorted(gone)]
    found += [f"{file}: exported by a notebook, but not there" for file in sorted(new)]
    changed = [file for file in before.keys() & after.keys() if before[file] != after[file]]
    return found + [f"{file}: export and clean change it" for file in sorted(changed)]


if __name__ == "__main__":
    found = differences()
    if found:
        sys.exit("\n".join([*found, "Run `make export` and look at what it changed."]))
    print("export and clean leave no difference")
