"""Measure notebooks; write the home page's table of them and the web site's sidebar: `make map`.
With names (lib/losses/21_dpo) only those are measured anew; with --table none (`make readme` does
that).
"""

import json, os, re, subprocess, sys, tempfile, time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS, INDEX = ROOT / "data/results/notebooks.json", ROOT / "nbs/index.ipynb"
FOLDERS = {
    "lib": "Lessons",
    "tutorials": "Tutorials",
    "pipelines": "Pipelines (the time is that of the defaults, a smoke run)",
    "reports": "Reports",
}
BEGIN, END = "<!-- map: written by `make map` -->", "<!-- end of map -->"


def notebooks():
    "Every notebook but the home page, as `lib/00_core`, in the order of the rooms."
    found = [
        path.relative_to(ROOT / "nbs").with_suffix("").as_posix()
        for folder in FOLDERS
        for path in sorted((ROOT / "nbs" / folder).glob("*.ipynb"))
    ]
    return [name for name in found if not Path(name).name.startswith(("_", "."))]


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def measure(name):
    """Wall time and peak memory of one notebook in a process of its own, as `make test` runs it:
    one thread.
    """
    path = ROOT / "nbs" / f"{name}.ipynb"
    with tempfile.TemporaryDirectory() as folder:
        if name.startswith(("pipelines", "reports")):
            command = [
                sys.executable,
                "-m",
                "papermill",
                "--no-progress-bar",
                "--log-level",
                "ERROR",
                str(path),
                f"{folder}/run.ipynb",
            ]
            if re.search(r'"output_dir: *str', path.read_text(encoding="utf-8")):
                command += ["-p", "output_dir", folder]
        else:
            command = [
                str(Path(sys.executable).parent / "nbdev_test"),
                "--path",
                str(path),
                "--n_workers",
                "0",
            ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        start = time.monotonic()
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)  # its kernel counts, too
    if status:
        return None
    scale = 2**20 if sys.platform == "darwin" else 2**10
    return {
        "seconds": round(time.monotonic() - start, 1),
        "peak_mib": round(usage.ru_maxrss / scale),
        "hardware": "CPU",
    }


def title(name):
    "The first heading of a notebook."
    for cell in read(ROOT / "nbs" / f"{name}.ipynb")["cells"]:
        found = re.search(r"^# +(.+)", "".join(cell["source"]), flags=re.M)
        if found and cell["cell_type"] == "markdown":
            return found.group(1).strip()
    return Path(name).name


def table(measured):
    "The map of notebooks in markdown; what was not measured says so."
    parts = []
    for folder, heading in FOLDERS.items():
        rows = []
        for name in (name for name in notebooks() if name.startswith(f"{folder}/")):
            cost = measured.get(name)
            needs = (
                f"{cost['seconds']:.0f} s | {cost['peak_mib'] / 1024:.1f} GiB | {cost['hardware']}"
                if cost
                else "not measured | | "
            )
            rows.append(f"| [{Path(name).name}]({name}.ipynb) | {title(name)} | {needs} |")
        if rows:
            parts.append(
                "\n".join(
                    [
                        f"**{heading}**",
                        "",
                        "| notebook | about | time | memory | hardware |",
                        "|---|---|---|---|---|",
                        *rows,
                    ]
                )
            )
    return "\n\n".join(parts)


def sidebar():
    "nbs/sidebar.yml: the home page, then each room."
    lines = [
        "# Written by `make readme`.",
        "website:",
        "  sidebar:",
        "    contents:",
        "      - index.ipynb",
    ]
    for folder, heading in FOLDERS.items():
        names = [name for name in notebooks() if name.startswith(f"{folder}/")]
        if names:
            lines += [
                f"      - section: {heading.split(' (')[0]}",
                "        contents:",
                *(f"          - {name}.ipynb" for name in names),
            ]
    return "\n".join(lines) + "\n"


def machine():
    "On what it was measured."
    import platform, torch

    return {
        "cores": os.cpu_count(),
        "threads": 1,
        "architecture": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__.split("+")[0],
    }


def written(text, measured):
    "The home page's text with the table between its two marks."
    return re.sub(
        f"({re.escape(BEGIN)}).*?({re.escape(END)})",
        lambda match: f"{match[1]}\n\n{table(measured)}\n\n{match[2]}",
        text,
        flags=re.S,
    )


if __name__ == "__main__":
    results, failed = (
        read(RESULTS)
        if RESULTS.exists()
        else {"command": "make map", "machine": {}, "notebooks": {}},
        [],
    )
    for name in [] if "--table" in sys.argv else sys.argv[1:] or notebooks():
        if not (found := measure(name)):
            failed.append(name)
            continue  # what was measured is kept
        results["notebooks"][name], results["machine"] = found, machine()
        print(name, found, flush=True)
    results["notebooks"] = {
        name: results["notebooks"][name] for name in notebooks() if name in results["notebooks"]
    }
    if results["notebooks"]:
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    notebook = read(INDEX)
    for cell in notebook["cells"]:
        if BEGIN in (text := "".join(cell["source"])):
            cell["source"] = written(text, results["notebooks"]).splitlines(keepends=True)
    (ROOT / "nbs/sidebar.yml").write_text(sidebar(), encoding="utf-8")
    INDEX.write_text(
        json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8"
    )
    if failed:
        raise SystemExit(
            f"failed: {', '.join(failed)}. Run each by itself; a report of runs wants its "
            "experiment first."
        )
