"""The cell that a notebook begins with on Colab: it fetches the kit and what is pinned in
constraints.txt. Anywhere else it does nothing.

`python tools/colab.py` puts it into every lesson, tutorial, pipeline and notebook for Colab, below
the title; `--check` fails where it is missing or another.
"""

import json
import re
import sys
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("lib/*", "tutorials", "pipelines", "colab")
# what Colab has in other versions, or not at all; torch stays as it is there, fitted to its GPU
PINNED = ("transformers", "accelerate", "datasets", "peft", "papermill")
MARK = '"google.colab" in sys.modules and not os.path.exists('


def notebooks() -> list[Path]:
    "Those that somebody opens by themselves; solutions run their lessons."
    found = [path for folder in FOLDERS for path in (ROOT / "nbs").glob(f"{folder}/[!._]*.ipynb")]
    return [ROOT / "nbs/index.ipynb", *sorted(found)]


def cell_source() -> str:
    pins = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if re.match(r"[\w-]+==", line)
    )
    config = ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    url, name = config["DEFAULT"]["git_url"], config["DEFAULT"]["repo"]
    pinned = " ".join(f"{one}=={pins[one]}" for one in PINNED)
    return "\n".join(
        [
            "#| eval: false",
            "# on Colab: the kit, and what it needs in the versions it is tested with",
            "import os, subprocess, sys",
            "",
            f'if {MARK}"settings.ini"):',
            f'    if not os.path.exists("{name}"):',
            f'        url = "{url}"',
            '        subprocess.run(["git", "clone", "--quiet", "--depth", "1", url], check=True)',
            f'    os.chdir("{name}")  # from above it, the clone hides the package',
            f'    pins = "{pinned}"',
            '    pip = [sys.executable, "-m", "pip", "install", "--quiet", "-e", "."]',
            "    subprocess.run([*pip, *pins.split()], check=True)",
        ]
    )


def with_cell(notebook: dict, source: str) -> dict:
    "The notebook with the cell, in the place of an older one or below its title."
    cells, lines = notebook["cells"], source.splitlines(keepends=True)
    for cell in cells:
        if cell["cell_type"] == "code" and MARK in "".join(cell["source"]):
            cell["source"] = lines
            return notebook
    new = {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": []}
    return {**notebook, "cells": [cells[0], {**new, "source": lines}, *cells[1:]]}


def renewed(text: str) -> str:
    notebook = with_cell(json.loads(text), cell_source())
    return json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def main(check: bool = False) -> int:
    "1 where `check` finds a notebook that is not as it should be."
    stale = [path for path in notebooks() if renewed(read(path)) != read(path)]
    for path in stale:
        if not check:
            path.write_text(renewed(read(path)), encoding="utf-8", newline="\n")
    if check and stale:
        names = ", ".join(path.stem for path in stale)
        print(f"run `python tools/colab.py`: no install cell, or an old one, in {names}")
    return int(check and bool(stale))


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv))
