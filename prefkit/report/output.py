"""The folder of a report: its page, and beside it every figure as PNG and every table as CSV."""

from pathlib import Path

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from prefkit.core import resolve_path, write_text
from prefkit.report import figures
from prefkit.report.narrow import narrowed
from prefkit.report.page import Page

__all__ = ["Output"]


class Output:
    "What a report leaves in its folder, gathered before the page is written."

    def __init__(
        self,
        folder: str | Path,  # where to, as a user writes it; made if missing
    ):
        self.folder = resolve_path(folder)
        self.drawn = {}  # name of a figure -> (picture, the same narrow, numbers, caption)
        self.saved = {}  # name of a table -> its CSV

    def keep(
        self,
        name: str,  # of its two files, and on the page
        fig: Figure,  # a finished figure
        caption: str,  # a sentence or more
    ) -> Figure:  # the same, closed
        "Save a figure with its numbers and remember it for the page."
        picture, numbers = figures.save_figure(fig, self.folder / "figures", name)
        small = narrowed(fig)
        narrow = figures.save_picture(small, picture.parent / "narrow" / picture.name)
        plt.close(fig)
        plt.close(small)
        self.drawn[name] = (picture, narrow, numbers, figures.sentence(caption))
        return fig

    def put(
        self,
        page: Page,
        *names: str,  # in the order of the page; those that were not drawn are left out
    ):
        "Put figures on a page."
        for name in names:
            if name in self.drawn:
                picture, narrow, numbers, caption = self.drawn[name]
                page.figure(picture, caption, numbers=numbers, narrow=narrow)

    def save(
        self,
        **tables: pd.DataFrame,  # name -> table; those without a row are left out
    ):
        "Save tables as CSV."
        for name, table in tables.items():
            if len(table):
                path = self.folder / "tables" / f"{name}.csv"
                self.saved[name] = write_text(path, table.to_csv(index=False))

    def write(
        self,
        page: Page,  # with everything on it
    ) -> str:  # what was written, in words
        "Write the page as report.html."
        path = page.write(self.folder / "report.html")
        size = path.stat().st_size / 1e6
        return f"{path.name}: {size:.1f} MB, {len(self.drawn)} figures, {len(self.saved)} tables"
