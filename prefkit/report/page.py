"""One self-contained HTML page: text, figures, tables and examples side by side, with no script and
nothing to load.

A plain module, because there is nothing to derive here. Everything that is given is escaped; only
`raw` takes markup.
"""

import base64, html, math
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from prefkit.core import DataError, write_text

__all__ = ["Link", "Page"]

STYLE = """
:root {
  color-scheme: light;
  --ink: #1a1a1a;
  --soft: #555;
  --line: #d5d5d5;
  --wash: #f5f5f2;
  --link: #005a8c;
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth; }
body {
  margin: 0;
  background: #fff;
  color: var(--ink);
  font: 1.06rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
}
main, header, footer { max-width: 52rem; margin: 0 auto; padding: 0 1.1rem; }
header { padding-top: 2.2rem; }
footer { padding-bottom: 3rem; color: var(--soft); font-size: .9rem; }
h1 {
  font-size: clamp(1.55rem, 4.5vw, 2.3rem);
  line-height: 1.2;
  margin: 0 0 .6rem;
  text-wrap: balance;
}
h2 {
  font-size: 1.4rem;
  line-height: 1.25;
  margin: 2.8rem 0 .6rem;
  padding-top: .9rem;
  border-top: 2px solid var(--ink);
}
h3 { font-size: 1.1rem; margin: 1.8rem 0 .4rem; }
p { margin: .5rem 0 .9rem; max-width: 42rem; overflow-wrap: anywhere; }
ul { max-width: 42rem; padding-left: 1.2rem; }
li { margin: .3rem 0; overflow-wrap: anywhere; }
.lead { font-size: 1.15rem; }
a { color: var(--link); }
nav { margin: 1.1rem 0 0; line-height: 2; }
nav a { display: inline-block; margin-right: .9rem; }
figure { margin: 1.6rem 0 2rem; }
figure img { width: 100%; max-width: 46rem; height: auto; display: block; }
figcaption, caption {
  color: var(--ink);
  font-size: .95rem;
  line-height: 1.45;
  text-align: left;
  max-width: 42rem;
}
figcaption { margin-top: .5rem; }
caption { padding-bottom: .4rem; caption-side: top; }
.file { color: var(--soft); font-size: .85rem; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; margin: 1.2rem 0 1.8rem; }
/* a wide table reaches into the right margin */
@media (min-width: 56rem) { .scroll { width: max-content; max-width: calc(50vw + 23rem); } }
table { border-collapse: collapse; font-size: .93rem; font-variant-numeric: tabular-nums; }
th, td {
  padding: .32rem .9rem .32rem 0;
  text-align: left;
  vertical-align: top;
  border-bottom: 1px solid var(--line);
}
th { white-space: nowrap; }
td.long { min-width: 11.5rem; }
thead th { border-bottom: 1.5px solid var(--ink); vertical-align: bottom; }
tbody tr:last-child td { border-bottom: 1.5px solid var(--ink); }
td.number, th.number { text-align: right; white-space: nowrap; }
td { max-width: 26rem; overflow-wrap: break-word; }
td.short { white-space: nowrap; }
.caption { font-size: .95rem; margin-bottom: .3rem; }
details {
  margin: .5rem 0;
  border: 1px solid var(--line);
  border-radius: .3rem;
  padding: .4rem .8rem;
}
summary { cursor: pointer; font-weight: 600; padding: .2rem 0; }
code, pre {
  font-family: ui-monospace, SFMono-Regular, Consolas, "DejaVu Sans Mono", monospace;
  font-size: .9em;
}
pre {
  background: var(--wash);
  padding: .7rem .9rem;
  overflow-x: auto;
  border-radius: .3rem;
  white-space: pre-wrap;
  overflow-wrap: anywhere;
}
.example {
  border: 1px solid var(--line);
  border-radius: .4rem;
  margin: 1.1rem 0;
  overflow: hidden;
}
.example > .prompt {
  background: var(--wash);
  padding: .6rem .9rem;
  border-bottom: 1px solid var(--line);
}
.prompt .kind { display: block; color: var(--soft); font-size: .85rem; }
.said { white-space: pre-wrap; overflow-wrap: anywhere; }
.answers {
  display: grid;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 12rem), 1fr));
}
.answers > div {
  padding: .6rem .9rem;
  border-right: 1px solid var(--line);
  border-bottom: 1px solid var(--line);
  margin: 0 -1px -1px 0;
}
.answers b { display: block; }
.marks {
  display: block;
  color: var(--soft);
  font-size: .85rem;
  margin-top: .35rem;
  font-variant-numeric: tabular-nums;
}
@media (max-width: 34rem) { body { font-size: 1rem; } th, td { padding-right: .7rem; } }
@media (min-width: 100rem) { html { font-size: 125%; } }
@media print {
  nav { display: none; }
  figure, .example, tr { break-inside: avoid; }
  body { font-size: 10pt; }
}
"""


class Link(NamedTuple):
    "A cell of a table that leads somewhere."

    text: str
    address: str  # "": nowhere, so that it is plain text

    def __str__(self):
        return self.text


def _text(value) -> str:
    return html.escape(str(value), quote=True)


def _cell(value, digits) -> tuple[str, bool]:
    "A cell's text and whether it is a number."
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–", False
    if isinstance(value, bool) or type(value).__name__ == "bool_":
        return ("yes" if value else "no"), False
    if isinstance(value, int) or type(value).__name__.startswith(("int", "uint")):
        return f"{int(value):,}".replace(",", "\u202f"), True
    if isinstance(value, float) or type(value).__name__.startswith("float"):
        number = float(value)
        if number and not 1e-3 <= abs(number) < 1e6:
            return f"{number:.3g}", True
        return f"{number:.{digits}f}".replace("-", "\u2212"), True
    if isinstance(value, Link) and value.address:
        return f'<a href="{_text(value.address)}">{_text(value.text)}</a>', False
    return _text(value), False


def _bytes(path: Path, what: str) -> bytes:
    if not path.is_file():
        raise DataError(f"{path}: no such {what}. Save it before it is put on the page.")
    return path.read_bytes()


def _picture(path: Path, attribute: str) -> str:
    "A PNG as attributes of a tag, with its size."
    data = _bytes(path, "picture")
    width, height = (int.from_bytes(data[place : place + 4], "big") for place in (16, 20))
    inside = base64.b64encode(data).decode()
    return f'width="{width}" height="{height}" {attribute}="data:image/png;base64,{inside}"'


def _file(what: str, path: str | Path) -> str:
    "A link to a CSV, which the page carries with it; nothing without one."
    if not str(path):
        return ""
    name, inside = Path(path).name, base64.b64encode(_bytes(Path(path), "table")).decode()
    link = f'<a download="{_text(name)}" href="data:text/csv;base64,{inside}">{_text(name)}</a>'
    return f' <span class="file">{what}: {link}</span>'


class Page:
    "A page that is put together from top to bottom and written as one file."

    def __init__(
        self,
        title: str,  # heading and window title
        lead: str = "",  # what the page says, in a sentence or two
    ):
        self.title, self.lead, self.parts, self.sections = title, lead, [], []

    def raw(
        self,
        markup: str,  # HTML, taken as it is
    ):
        "Add ready markup."
        self.parts.append(markup)

    def section(
        self,
        title: str,  # stands in the list of contents too
        *paragraphs: str,  # plain text
    ):
        "Begin a section."
        anchor = f"section-{len(self.sections) + 1}"
        self.sections.append((anchor, title))
        self.raw(f'<h2 id="{anchor}">{_text(title)}</h2>')
        for paragraph in paragraphs:
            self.text(paragraph)

    def heading(self, title: str):
        "A heading inside a section."
        self.raw(f"<h3>{_text(title)}</h3>")

    def text(self, paragraph: str):
        "A paragraph of plain text; nothing if it is empty."
        if paragraph:
            self.raw(f"<p>{_text(paragraph)}</p>")

    def bullets(
        self,
        items,  # sentences; empty ones are left out
    ):
        "A list of sentences."
        items = [item for item in items if item]
        if items:
            self.raw("<ul>" + "".join(f"<li>{_text(item)}</li>" for item in items) + "</ul>")

    def code(self, text: str):
        "Something to be typed, as it is."
        self.raw(f"<pre>{_text(text)}</pre>")

    def figure(
        self,
        picture: str | Path,  # a PNG file; it is put inside the page
        caption: str,  # plain text under the figure
        alt: str = "",  # for whoever does not see it; the caption if empty
        numbers: str | Path = "",  # file with the numbers, to be had under the caption
        narrow: str | Path = "",  # the same for a narrow screen
    ):
        "A figure with its caption; raises `DataError` if there is no such picture."
        shown = f'<img alt="{_text(alt or caption)}" {_picture(Path(picture), "src")}>'
        if str(narrow):
            small = f'<source media="(max-width: 34rem)" {_picture(Path(narrow), "srcset")}>'
            shown = f"<picture>{small}{shown}</picture>"
        self.raw(
            f"<figure>{shown}<figcaption>{_text(caption)}{_file('Numbers', numbers)}</figcaption>"
            "</figure>"
        )

    def table(
        self,
        frame: pd.DataFrame,  # column names are the headings; the index is not shown
        caption: str = "",  # plain text above the table
        digits: int = 2,  # decimals of numbers
        numbers: str | Path = "",  # file with the same table, to be had under it
    ):
        "A table that scrolls sideways where the screen is narrow."
        rows = [
            [_cell(value, digits) for value in row]
            for row in frame.itertuples(index=False, name=None)
        ]
        right = [
            bool(rows)
            and any(row[place][1] for row in rows)
            and all(row[place][1] or row[place][0] == "–" for row in rows)
            for place in range(len(frame.columns))
        ]
        side = ['class="number"' if number else "" for number in right]

        def kind(place, cell):
            "How a cell is laid out."
            return side[place] or ('class="short"' if len(cell) <= 28 else 'class="long"')

        head = "".join(
            f'<th scope="col" {side[place]}>{_text(column)}</th>'
            for place, column in enumerate(frame.columns)
        )
        body = "".join(
            "<tr>"
            + "".join(f"<td {kind(place, cell)}>{cell}</td>" for place, (cell, _) in enumerate(row))
            + "</tr>"
            for row in rows
        )
        if caption:
            self.raw(f'<p class="caption">{_text(caption)}</p>')
        self.raw(
            f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{body}</'
            f"tbody></table>{_file('Same table', numbers)}</div>"
        )

    def folded(
        self,
        summary: str,  # what is inside
        frame: pd.DataFrame,  # a table
        digits: int = 4,  # decimals of numbers
    ):
        "A table that opens when it is asked for."
        with self.fold(summary):
            self.table(frame, digits=digits)

    @contextmanager
    def fold(
        self,
        summary: str,  # what is inside
    ):
        "What is added while the block runs opens when it is asked for."
        self.raw(f"<details><summary>{_text(summary)}</summary>")
        yield
        self.raw("</details>")

    def example(
        self,
        prompt: str,  # what was asked
        answers: list[tuple[str, str, str]],  # (model, answer, marks such as "gold 1.2")
        kind: str = "",  # a word or two above the prompt
    ):
        """One prompt with the answers of several models side by side, one below the other where the
        screen is narrow.
        """
        boxes = "".join(
            (
                f"<div><b>{_text(model)}</b><span "
                f'class="said">{_text(answer) or "<i>(empty)</i>"}</span><span '
                f'class="marks">{_text(marks)}</span></div>'
            )
            for model, answer, marks in answers
        )
        above = f'<span class="kind">{_text(kind)}</span>' if kind else ""
        self.raw(
            f'<div class="example"><div class="prompt">{above}<span '
            f'class="said">{_text(prompt)}</span></div><div class="answers">{boxes}</div></div>'
        )

    def html(self) -> str:
        "The whole page."
        links = " ".join(
            f'<a href="#{anchor}">{_text(title)}</a>' for anchor, title in self.sections
        )
        lead = f'<p class="lead">{_text(self.lead)}</p>' if self.lead else ""
        body = "\n".join(self.parts)
        return (
            f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n<meta name="viewport" '
            f'content="width=device-width, initial-scale=1">\n'
            f"<title>{_text(self.title)}</title>\n<style>{STYLE}</style></head>\n"
            f"<body><header><h1>{_text(self.title)}</h1>{lead}"
            f'<nav aria-label="Contents">{links}</nav></header>\n<main>\n{body}\n'
            "</main></body></html>\n"
        )

    def write(
        self,
        path: str | Path,  # where to
    ) -> Path:  # the path
        "Write the page as one file, whole or not at all."
        return write_text(path, self.html())
