"""`make reports`: draw every report page that needs no run folder, from the committed results.

A page whose results are not there is left out, and the command that makes them is said. Beside
them stands widgets.html, all widgets on one page, whose controls need no kernel.
"""

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# report -> parameter that names its results, and the command that makes them; "": it has its own
PAGES = {
    "ledger": ("", "prefkit ledger --run"),
    "offline": ("results", "prefkit seeds data/configs/tiny/offline.yaml --seeds 0,1,2"),
    "online": ("results", "prefkit seeds data/configs/tiny/online.yaml --seeds 0,1,2"),
    "countdown": ("results", "prefkit seeds data/configs/tiny/countdown.yaml --seeds 0,1,2"),
    "real_model": ("pairs", "the commands in data/configs/real"),
    "minor_dpo": ("results", "prefkit ledger --run"),
    "orpo": ("results", "prefkit ledger --run"),
    "length_penalty": ("results", "prefkit ledger --run"),
    "xpo_ipo": ("results", "prefkit ledger --run"),
}


def parameters_of(notebook: Path) -> str:
    "The cell of parameters of a notebook."
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    (cell,) = [one for one in cells if "parameters" in one["metadata"].get("tags", [])]
    return "".join(cell["source"])


def results_of(name: str) -> Path | None:  # None: the page goes without
    "The file that a page is drawn from."
    parameter, _ = PAGES[name]
    if not parameter:
        return None
    names: dict = {}
    exec(parameters_of(ROOT / f"nbs/reports/{name}.ipynb"), names)
    return ROOT / names[parameter]


def draw(name: str, folder: Path) -> tuple[int, str]:  # exit status, what to say
    "One page by papermill."
    begun, page = time.monotonic(), folder / name
    page.mkdir(parents=True, exist_ok=True)
    words = [sys.executable, "-m", "papermill", f"nbs/reports/{name}.ipynb"]
    words += [str(page / "report.ipynb"), "-p", "output_dir", str(page), "--no-progress-bar"]
    made = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    said = made.stderr.strip().splitlines()[-1:] if made.returncode else [str(page / "report.html")]
    return made.returncode, f"{name:<12} {time.monotonic() - begun:4.0f} s  {' '.join(said)}"


def draw_all(folder: Path, names=tuple(PAGES)) -> int:  # exit status
    "All pages whose results are there, two at a time."
    there = {name: results_of(name) for name in names}
    ready = [name for name, file in there.items() if file is None or file.is_file()]
    for name, file in there.items():
        if name not in ready:
            missing = file.relative_to(ROOT) if file.is_relative_to(ROOT) else file
            print(f"{name:<12} left out: {missing} is missing. Make it: {PAGES[name][1]}")
    with ThreadPoolExecutor(2) as pool:
        drawn = list(pool.map(lambda name: draw(name, folder), ready))
    for _, said in drawn:
        print(said, flush=True)
    return int(any(status for status, _ in drawn))


def draw_widgets(folder: Path) -> int:  # exit status
    "The page of widgets, in a process of its own: half a minute, and once another for its runs."
    begun, page = time.monotonic(), folder / "widgets.html"
    made = subprocess.run([sys.executable, str(ROOT / "tools/widgets.py"), str(page)], cwd=ROOT)
    if not made.returncode:
        print(f"{'widgets':<12} {time.monotonic() - begun:4.0f} s  {page}", flush=True)
    return made.returncode


if __name__ == "__main__":
    home = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "data/runs/reports")
    sys.exit(draw_all(home) | draw_widgets(home))
