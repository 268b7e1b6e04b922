"""`make docs`: the web site from what stands in the repository, into _docs/.

Lessons are published with their stored outputs and modules are read, so nothing of them is
executed; report pages are drawn from committed results where what they are drawn from is newer.
`--reports NAMES`: only these are drawn anew, `none` for no one; `--drawn DIR`: where drawn pages
are.
"""

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from configparser import ConfigParser
from pathlib import Path

import reports
from docs_site import api, pages, tree
from docs_site.notebooks import Repository, page, read, title_of
from docs_site.source import library

ROOT = Path(__file__).resolve().parents[1]
WIDGETS = "widgets.html"  # as `make reports` draws it
SITE = Path(__file__).with_name("docs_site")
MEASURED = {"bench": pages.bench_page, "faults": pages.faults_page}
# What MathJax needs to typeset TeX; what it can do besides (speech, other formats) is 20 MB
MATHJAX = ("tex-chtml.js", "input/tex/extensions", "output/chtml/fonts")


def settings() -> dict[str, str]:
    config = ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    return dict(config["DEFAULT"])


def newest(files: Iterable[Path]) -> float:
    return max((file.stat().st_mtime for file in files), default=0.0)


def stale(drawn: Path) -> list[str]:
    "Reports whose page is older than what it is drawn from."
    shared = newest([*(ROOT / "prefkit").rglob("*.py"), *(ROOT / "data/results").rglob("*.json")])

    def old(name):
        made = drawn / name / "report.html"
        notebook = ROOT / f"nbs/reports/{name}.ipynb"
        return not made.is_file() or made.stat().st_mtime < max(shared, newest([notebook]))

    return [name for name in reports.PAGES if old(name)]


def write(path: Path, text: str | dict):
    "Write a file, if it is not there as it should be: Sphinx goes by its time."
    path.parent.mkdir(parents=True, exist_ok=True)
    text = text if isinstance(text, str) else json.dumps(text, ensure_ascii=False)
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def put_mathjax(static: Path):
    "MathJax as its package brings it, so that no page asks another host for it."
    found = importlib.util.find_spec("sphinx-mathjax-offline")
    if not found or not found.origin:
        sys.exit('make docs needs sphinx-mathjax-offline: pip install -e ".[docs]"')
    source = Path(found.origin).parent / "static/mathjax"
    for name in MATHJAX:
        target = static / "mathjax" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (source / name).is_dir():
            shutil.copytree(source / name, target, dirs_exist_ok=True)
        else:
            shutil.copy(source / name, target)


def put_reports(build: Path, drawn: Path, repository: Repository) -> dict[str, str]:
    "Report pages; where each comes from."
    sources = {}
    for name in tree.sections(repository.nbs)["Reports"]:
        short = name.removeprefix("reports/")
        made = [drawn / short / "report.html", ROOT / f"data/runs/{short}/report/report.html"]
        there = [file for file in made if file.is_file()]
        if there:
            shown = pages.report_page(there[0], name, build / "_static", repository)
        else:
            config = f"make report CONFIG=data/configs/tiny/{short}.yaml"
            command = "make reports" if short in reports.PAGES else config
            shown = pages.undrawn_page(name, repository, command)
        write(build / f"{name}.ipynb", shown)
        sources[name] = f"nbs/{name}.ipynb"
    return sources


def put_notebooks(build: Path, repository: Repository) -> dict[str, str]:
    "Every other notebook; where each comes from."
    sources = {}
    for names in tree.sections(repository.nbs).values():
        for name in names:
            if not name.startswith("reports/"):
                write(build / f"{name}.ipynb", page(name, repository))
                sources[name] = f"nbs/{name}.ipynb"
    for docname, (heading, names) in tree.folded(repository.nbs).items():
        text = f"# {heading}\n\n{tree.toctree(names, hidden=False)}\n"
        write(build / f"{docname}.md", text)
    home = read(build / "index.ipynb")
    navigation = tree.navigation(repository.nbs, MEASURED)
    home["cells"] += pages.markdown_page(navigation)["cells"]
    write(build / "index.ipynb", home)
    shutil.copytree(repository.nbs / "images", build / "images", dirs_exist_ok=True)
    return sources


def put_widgets(build: Path, drawn: Path):
    "The page whose controls need no kernel, and the way to it from the one with still pictures."
    if not (drawn / WIDGETS).is_file():
        return
    shutil.copy(drawn / WIDGETS, build / "_static")
    shown = read(build / "widgets.ipynb")
    link = (
        f'<a href="_static/{WIDGETS}">a page of their own</a>'  # MyST would make a download of it
    )
    words = f"On {link} their controls move without a kernel."
    shown["cells"][1:1] = pages.markdown_page(words)["cells"]
    write(build / "widgets.ipynb", shown)


def put_api(build: Path, repository: Repository) -> tuple[dict[str, str], dict]:
    "The reference; where each page comes from, and what the pages hold."
    modules = library(ROOT)
    titles = {}
    for module in modules:
        if module.lesson:
            titles[module.lesson] = title_of(read(repository.nbs / f"{module.lesson}.ipynb"))
    sources = {}
    for module in modules:
        text = api.page(module, modules, titles, repository.blob)
        write(build / f"api/{module.name}.md", text)
        sources[f"api/{module.name}"] = module.file
    groups = [names[0] for names in tree.sections(repository.nbs).values()]
    rooms = [name.split("/")[1] for name in groups if name.startswith("lib/")]
    write(build / "api/index.md", api.index(modules, titles, rooms))
    return sources, {"names": api.anchors(modules), "lines": api.lines(modules)}


def assemble(build: Path, drawn: Path) -> Path:  # the file with what Sphinx is told
    "Lay out the source of the site."
    told = settings()
    site = told["doc_host"] + told["doc_baseurl"]
    repository = Repository(ROOT, told["git_url"], told["branch"], site)
    (build / "_static").mkdir(parents=True, exist_ok=True)
    put_mathjax(build / "_static")
    sources = put_notebooks(build, repository) | put_reports(build, drawn, repository)
    put_widgets(build, drawn)
    for name, make in MEASURED.items():
        write(build / f"{name}.md", make(repository))
    more, names = put_api(build, repository)
    known = {*sources, *more, *MEASURED, *tree.folded(repository.nbs), "api/index"}
    for file in [*build.rglob("*.ipynb"), *build.rglob("*.md")]:
        if file.relative_to(build).with_suffix("").as_posix() not in known:
            file.unlink()
    found = names | {
        "sources": sources | more,
        "title": told["title"],
        "author": told["author"],
        "copyright": told["copyright"],
        "version": told["version"],
        "repository": told["git_url"],
        "branch": told["branch"],
        "blob": repository.blob,
        "site": repository.site,
        "static": str(build / "_static"),
        "logo": str(repository.nbs / "images/logo.svg"),
    }
    file = build.with_name(f"{build.name}.json")
    write(file, found)
    return file


def render(build: Path, found: Path, out: Path) -> int:  # exit status
    "Let Sphinx make the pages; a warning fails it."
    words = [sys.executable, "-m", "sphinx", "-b", "html", "-W", "--keep-going", "-q"]
    words += ["-j", "auto", "-d", f"{build}.doctrees", "-c", str(SITE), str(build), str(out)]
    return subprocess.run(words, env=os.environ | {"PREFKIT_DOCS_FOUND": str(found)}).returncode


def main() -> int:  # exit status
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "_docs")
    parser.add_argument("--build", type=Path, default=ROOT / "_proc/site")
    parser.add_argument("--drawn", type=Path, default=ROOT / "data/runs/reports")
    parser.add_argument("--reports", default="stale", help="names to draw, `stale` or `none`")
    parser.add_argument("--keep", action="store_true", help="make changed pages only")
    given = parser.parse_args()
    wanted = [] if given.reports == "none" else given.reports.split(",")
    wanted = stale(given.drawn) if wanted == ["stale"] else wanted
    if wanted and reports.draw_all(given.drawn, tuple(wanted)):
        return 1
    page, code = given.drawn / WIDGETS, (ROOT / "prefkit/widgets").glob("*.py")
    old = not page.is_file() or page.stat().st_mtime < newest(code)
    if old and given.reports == "stale" and reports.draw_widgets(given.drawn):
        return 1
    if not given.keep:
        for folder in (given.out, given.build, Path(f"{given.build}.doctrees")):
            shutil.rmtree(folder, ignore_errors=True)
    status = render(given.build, assemble(given.build, given.drawn), given.out)
    print(f"{given.out}/index.html" if not status else "the site has faults: see above")
    return status


if __name__ == "__main__":
    sys.exit(main())
