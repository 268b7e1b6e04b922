"""The map of notebooks: measure them, list them in nbs/map.ipynb and in the web site's sidebar.

`make map` measures every notebook. `python tools/map.py lib/losses/21_dpo` measures those named
anew, `python tools/map.py --table` (`make readme`) none.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "data/results/notebooks.json"
PAGE = ROOT / "nbs/map.ipynb"
SIDEBAR = ROOT / "nbs/sidebar.yml"
PAGES = ("index", "syllabus", "glossary", "map", "widgets")  # at the top of nbs/
FOLDERS = {  # in the order in which they are read
    "lib/data": "Lessons: data",
    "lib/model": "Lessons: the model's numbers",
    "lib/losses": "Lessons: losses",
    "lib/train": "Lessons: training",
    "lib/stats": "Lessons: statistics",
    "lib/judging": "Lessons: judging",
    "lib/report": "Lessons: reports",
    "tutorials": "Tutorials",
    "pipelines": "Pipelines",
    "reports": "Reports",
}
# on the site, and not in the map: they are not measured by themselves
BESIDE = {"colab": "On Colab", "solutions": "Solutions"}
NOTES = {"pipelines": "The time is that of the values in their cells, a smoke run by hand."}
HEAD = ["| notebook | about | time | memory | hardware |", "|---|---|---|---|---|"]
BEGIN, END = "<!-- map: written by `make map` -->", "<!-- end of map -->"


def in_folder(folder: str) -> list[str]:  # as `lib/losses/21_dpo`
    "The notebooks of one folder, by their numbers."
    paths = sorted((ROOT / "nbs" / folder).glob("[!._]*.ipynb"))
    return [path.relative_to(ROOT / "nbs").with_suffix("").as_posix() for path in paths]


def notebooks() -> list[str]:
    "Every notebook but those at the top, folder by folder."
    return [name for folder in FOLDERS for name in in_folder(folder)]


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def command_of(name: str, folder: str) -> list[str]:  # `folder`: for what it writes
    "How `make test` runs a notebook."
    path = ROOT / "nbs" / f"{name}.ipynb"
    if not name.startswith(("pipelines", "reports")):
        nbdev_test = str(Path(sys.executable).with_name("nbdev_test"))
        return [nbdev_test, "--path", str(path), "--n_workers", "0"]
    papermill = [sys.executable, "-m", "papermill", "--no-progress-bar", "--log-level", "ERROR"]
    command = [*papermill, str(path), f"{folder}/run.ipynb"]
    if re.search(r'"output_dir: *str', path.read_text(encoding="utf-8")):
        command += ["-p", "output_dir", folder]
    return command


def measure(name: str) -> dict | None:  # None if it failed
    "Wall time and peak memory of one notebook in a process of its own, with one thread."
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as folder:
        start = time.monotonic()
        process = subprocess.Popen(
            command_of(name, folder), cwd=ROOT, env=environment, stdout=subprocess.DEVNULL
        )
        _, status, usage = os.wait4(process.pid, 0)  # its kernel counts, too
        seconds = time.monotonic() - start
    if status:
        return None
    mebibyte = 2**20 if sys.platform == "darwin" else 2**10  # in the units of ru_maxrss
    return {
        "seconds": round(seconds, 1),
        "peak_mib": round(usage.ru_maxrss / mebibyte),
        "hardware": "CPU",
    }


def title(name: str) -> str:
    "The first heading of a notebook."
    for cell in read(ROOT / "nbs" / f"{name}.ipynb")["cells"]:
        found = re.search(r"^# +(.+)", "".join(cell["source"]), flags=re.M)
        if found and cell["cell_type"] == "markdown":
            return found[1].strip()
    return Path(name).name


def row(name: str, cost: dict | None) -> str:
    "A notebook's line in the table; one that was not measured says so."
    needs = "not measured | | "
    if cost:
        memory = cost["peak_mib"] / 1024
        needs = f"{cost['seconds']:.0f} s | {memory:.1f} GiB | {cost['hardware']}"
    return f"| [{Path(name).name}]({name}.ipynb) | {title(name)} | {needs} |"


def table(measured: dict[str, dict]) -> str:
    "The map in markdown, a table for each folder."
    parts = []
    for folder, heading in FOLDERS.items():
        if names := in_folder(folder):
            note = f" {NOTES[folder]}" if folder in NOTES else ""
            rows = [row(name, measured.get(name)) for name in names]
            parts.append("\n".join([f"**{heading}.**{note}", "", *HEAD, *rows]))
    return "\n\n".join(parts)


def sidebar() -> str:
    "nbs/sidebar.yml: the pages at the top, then each folder."
    lines = ["# Written by `make readme`.", "website:", "  sidebar:", "    contents:"]
    lines += [f"      - {name}.ipynb" for name in PAGES]
    for folder, heading in (FOLDERS | BESIDE).items():
        if names := in_folder(folder):
            lines += [f'      - section: "{heading}"', "        contents:"]
            lines += [f"          - {name}.ipynb" for name in names]
    return "\n".join(lines) + "\n"


def machine() -> dict:
    "On what it was measured."
    import torch

    return {
        "cores": os.cpu_count(),
        "threads": 1,
        "architecture": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__.split("+")[0],
    }


def written(text: str, measured: dict[str, dict]) -> str:
    "The page's text with the table between its two marks."
    between = f"({re.escape(BEGIN)}).*?({re.escape(END)})"
    return re.sub(between, lambda m: f"{m[1]}\n\n{table(measured)}\n\n{m[2]}", text, flags=re.S)


def write_page(measured: dict[str, dict]):
    notebook = read(PAGE)
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        if BEGIN in text:
            cell["source"] = written(text, measured).splitlines(keepends=True)
    text = json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True)
    PAGE.write_text(text + "\n", encoding="utf-8")


def main(wanted: list[str]):  # notebooks to measure
    results: dict = {"command": "make map", "machine": {}, "notebooks": {}}
    if RESULTS.exists():
        results = read(RESULTS)
    failed = []
    for name in wanted:
        found = measure(name)
        if found:
            results["notebooks"][name], results["machine"] = found, machine()
            print(name, found, flush=True)
        else:
            failed.append(name)  # what was measured before is kept
    kept = {name: results["notebooks"].get(name) for name in notebooks()}
    results["notebooks"] = {name: cost for name, cost in kept.items() if cost}
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    SIDEBAR.write_text(sidebar(), encoding="utf-8")
    write_page(results["notebooks"])
    if failed:
        sys.exit(
            f"failed: {', '.join(failed)}. Run each by itself; a report of runs wants its "
            "experiment first."
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebook", nargs="*", help="such as lib/losses/21_dpo; none: all")
    parser.add_argument("--table", action="store_true", help="measure none, write the tables")
    given = parser.parse_args()
    if unknown := [name for name in given.notebook if name not in notebooks()]:
        parser.error(f"there is no notebook {', '.join(unknown)}")
    main([] if given.table else given.notebook or notebooks())
