"""Report pages in tests: drawn in this process, and read as a browser reads them."""

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from matplotlib import pyplot as plt

from prefkit.core import project_root
from prefkit.report import figures
from prefkit.runs.config import read_notebook, read_pipeline

REPORTS = project_root() / "nbs" / "reports"


def run_cells(notebook: Path, parameters: dict, until: str = "") -> dict:
    """The code cells of a notebook in this process, with parameters put after their cell as
    papermill puts them, up to the one that sets `until`; gives the names at the end.
    """
    names, settings = {"__name__": "cells"}, set(read_pipeline(notebook).parameters)
    for cell in read_notebook(notebook)["cells"]:
        if cell["cell_type"] != "code":
            continue
        exec(compile("".join(cell["source"]), notebook.name, "exec"), names)
        if "parameters" in cell["metadata"].get("tags", []):
            assert set(parameters) <= set(names) | settings
            names |= parameters
            # how a kernel remembers papermill's cell
            names["In"] = ["\n".join(["# Parameters", *(f"{name} = None" for name in parameters)])]
        if until and until in names:
            break
    return names


def draw_report(name: str, until: str = "", dpi: int = 50, **parameters) -> dict:
    """Draw a report in this process, which is quicker than a kernel; every figure must keep the
    rules that a machine can check. Gives the names at the end.
    """
    wrong, save = {}, figures.save_picture

    def checked(fig, path):
        wrong[f"{path.parent.name}/{path.stem}"] = figures.check_figure(fig)
        with plt.rc_context({"savefig.dpi": dpi}):
            return save(fig, path)

    with pytest.MonkeyPatch.context() as patch, plt.rc_context():
        patch.setattr(figures, "save_picture", checked)
        names = run_cells(REPORTS / f"{name}.ipynb", parameters, until)
    plt.close("all")
    assert not any(wrong.values()), wrong
    return names


class Reader(HTMLParser):
    "What a page loads, and its text; every tag must be closed in turn."

    def __init__(self, text: str):
        super().__init__()
        self.loaded, self.tags, self.words, self.open = [], [], [], []
        self.files = set()  # that the page carries: (name, content)
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append(tag)
        if tag not in ("img", "meta", "link", "br", "source"):
            self.open.append(tag)
        if "download" in attributes:
            inside = attributes["href"].removeprefix("data:text/csv;base64,")
            self.files.add((attributes["download"], base64.b64decode(inside, validate=True)))
        self.loaded += [
            value
            for name, value in attributes.items()
            if name in ("src", "srcset", "data") or (name == "href" and tag == "link")
        ]

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"<{tag}> is closed out of turn"

    def handle_data(self, data):
        self.words.append(data)


def page_of(output: Path) -> str:
    "The page of a report, as it is."
    return (output / "report.html").read_text(encoding="utf-8")


def words_of(output: Path) -> str:
    "The text of a page, every white space one space."
    return " ".join(" ".join(Reader(page_of(output)).words).split())


def sections_of(output: Path) -> list[str]:
    "The headings of a page, as markup."
    return re.findall(r"<h2 [^>]*>(.*?)</h2>", page_of(output))


def check_page(output: Path, names):
    """The page is closed HTML that loads nothing, with these figures, wide and narrow, and their
    numbers beside it.
    """
    page = Reader(page_of(output))
    assert page.open == [] and not {"script", "link"} & set(page.tags)
    assert all(source.startswith("data:image/png;base64,") for source in page.loaded)
    figures_of = lambda ending: {path.stem for path in (output / "figures").glob(f"*.{ending}")}
    assert figures_of("png") == set(names) == figures_of("csv")
    written = {(path.name, path.read_bytes()) for path in output.glob("[ft]*/*.csv")}
    assert page.files <= written and bool(page.files) == bool(written)
    narrow = {path.stem for path in (output / "figures/narrow").glob("*.png")}
    assert narrow == set(names) and len(page.loaded) == 2 * len(names)
