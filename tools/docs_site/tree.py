"""The order of the site's pages: lessons as nbs/syllabus.yml reads them, everything else as
nbs/sidebar.yml lists it.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import yaml

FOLDED = ("pipelines", "solutions")  # folders with many pages, behind a page of their own


def _plan(nbs: Path) -> dict:
    return yaml.safe_load((nbs / "syllabus.yml").read_text(encoding="utf-8"))


def sections(nbs: Path) -> dict[str, list[str]]:  # heading -> pages as `lib/losses/21_dpo`
    "The groups of nbs/sidebar.yml; those that stand alone come first, under an empty heading."
    told = yaml.safe_load((nbs / "sidebar.yml").read_text(encoding="utf-8"))
    found: dict[str, list[str]] = {"": []}
    for entry in told["website"]["sidebar"]["contents"]:
        if isinstance(entry, str):
            found[""].append(entry.removesuffix(".ipynb"))
        else:
            pages = [page.removesuffix(".ipynb") for page in entry["contents"]]
            found[entry["section"]] = pages
    return found


def lessons(nbs: Path) -> Iterator[tuple[str, list[str]]]:  # heading, pages
    "Lessons and tutorials once each, evening by evening, then those to look up."
    told, seen = _plan(nbs), set()
    groups = [(f"{n}. {part['about']}", part) for n, part in enumerate(told["evenings"], 1)]
    groups += [(f"To look up: {part['about']}", part) for part in told["reference"]]
    for heading, part in groups:
        pages = [page for page in part["lessons"] if page not in seen]
        seen.update(pages)
        if pages:
            yield heading, pages


def toctree(pages: Iterable[str], caption: str = "", hidden: bool = True) -> str:  # MyST
    "A list of pages, for the navigation alone or to be seen, too."
    options = [":hidden:"] if hidden else [":maxdepth: 1"]
    options += [f":caption: {caption!r}"] if caption else []
    return "\n".join(["```{toctree}", *options, "", *(f"/{page}" for page in pages), "```"])


def navigation(nbs: Path, measured: Iterable[str], drop: Iterable[str] = ()) -> str:  # MyST
    """Every page but the home page: the two that lead, lessons, reports with what else was
    `measured`, and the pages of folded groups.
    """
    groups, left_out = sections(nbs), set(drop)
    taken = {page for _, pages in lessons(nbs) for page in pages}
    parts = [toctree([page for page in groups[""] if page != "index"], "Where to begin")]
    parts += [toctree(pages, heading) for heading, pages in lessons(nbs)]
    behind = []
    for heading, pages in groups.items():
        rest = [page for page in pages if page not in taken and page not in left_out]
        folder = rest[0].split("/")[0] if heading and rest else ""
        if folder in FOLDED:
            behind.append(f"{folder}/index")
        elif rest and heading:
            more = list(measured) if folder == "reports" else []
            parts.append(toctree([*rest, *more], heading))
    return "\n\n".join([*parts, toctree([*behind, "api/index"], "Reference")])


def folded(nbs: Path) -> dict[str, tuple[str, list[str]]]:  # docname -> heading, pages
    "The pages that stand before a folder of many."
    found = {}
    for heading, pages in sections(nbs).items():
        folder = pages[0].split("/")[0] if heading and pages else ""
        if folder in FOLDED:
            found[f"{folder}/index"] = heading, pages
    return found
