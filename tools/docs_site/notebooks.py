"""A notebook of nbs/ as a page of the web site, without executing it: nbdev's directives and
Quarto's callouts become what MyST reads, links become links between pages or into the source
repository, and figures get words for whoever does not see them.
"""

import ast
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

DIRECTIVE = re.compile(r"^#\s*\|\s*(.+?)\s*$", re.M)
CALLOUT = re.compile(
    r"^:::+ *\{\.callout-(\w+)(?:[^}]*?title=\"([^\"]*)\")?[^}]*\}\n(.*?)\n:::+ *$", re.S | re.M
)
LINK = re.compile(r"(\]\()([^)\s]+)(\))")
# code in prose, in a block or in a line, stays as it is
CODE = re.compile(r"(^```.*?^```|^~~~.*?^~~~|`[^`\n]+`)", re.S | re.M)
SCOPED = re.compile(r"<style scoped>.*?</style>\s*", re.S)  # of pandas; the site has its own
DRAWN, COLAB = "image/png", "google.colab"
ALERTS = {"note": "note", "tip": "tip", "warning": "warning", "important": "important"}


class Repository:
    "Where the files of this repository stand, here and on the web."

    def __init__(self, root: Path, address: str, branch: str, site: str):
        self.root, self.nbs = root, root / "nbs"
        self.blob = f"{address}/blob/{branch}/"
        self.colab = f"{self.blob.replace('github.com', 'colab.research.google.com/github')}nbs/"
        self.site = f"{site.rstrip('/')}/"


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def source_of(cell: dict) -> str:
    return "".join(cell["source"])


def directives(text: str) -> list[str]:  # such as `export`, `default_exp losses.dpo`
    "What a code cell tells nbdev."
    return DIRECTIVE.findall(text)


def exported_module(notebook: dict) -> str:  # as `losses.dpo`; empty: none
    "The module that a notebook writes."
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            for told in directives(source_of(cell)):
                if told.startswith("default_exp "):
                    return told.split()[1]
    return ""


def title_of(notebook: dict) -> str:
    "The first heading."
    return source_of(notebook["cells"][0]).splitlines()[0].lstrip("# ")


def outside_code(text: str, change) -> str:
    "A change of prose that leaves fenced code alone."
    parts = CODE.split(text)
    return "".join(part if place % 2 else change(part) for place, part in enumerate(parts))


def relocated(target: str, name: str, repository: Repository) -> str:
    """A link's target on the site: a page, or an address in the source repository. `name` is the
    notebook, as `lib/losses/21_dpo`.
    """
    here = (repository.nbs / name).parent
    if target.startswith(f"{repository.blob}nbs/") and target.split("#")[0].endswith(".ipynb"):
        inside = target.removeprefix(f"{repository.blob}nbs/")
        return os.path.relpath(repository.nbs / inside, here)
    if re.match(r"[a-z]+:|#|/", target):
        return target
    file, _, anchor = target.partition("#")
    path = Path(os.path.normpath(here / file))
    if not path.exists():
        raise SystemExit(f"nbs/{name}.ipynb: link to {target}, which is not there")
    if path.is_relative_to(repository.nbs):
        return target
    inside = path.relative_to(repository.root).as_posix()
    return repository.blob + inside + (f"#{anchor}" if anchor else "")


def callout(match: re.Match) -> str:
    "A callout of Quarto as an admonition of MyST."
    kind, title, body = match.groups()
    class_name = ALERTS.get(kind, "note")
    return f":::{{admonition}} {title or kind.title()}\n:class: {class_name}\n{body}\n:::"


def prose(text: str, name: str, repository: Repository) -> str:
    "A cell of Markdown."

    def change(part):
        part = CALLOUT.sub(callout, part)
        return LINK.sub(lambda m: m[1] + relocated(m[2], name, repository) + m[3], part)

    text = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.S)
    return outside_code(text, change)


def _words(node: ast.expr) -> str:
    "The text of a string in code; what is filled in later is left out."
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(
            _words(part) if isinstance(part, ast.Constant) else "…" for part in node.values
        )
    return ""


def drawn_words(source: str) -> Iterator[tuple[str, str]]:  # ("title", its words)
    "What code writes on a figure: titles and names of axes."
    places = {"set_title": "title", "suptitle": "title", "set_xlabel": "x", "set_ylabel": "y"}
    keywords = {"title": "title", "xlabel": "x", "ylabel": "y"}
    try:
        tree = ast.parse(re.sub(r"^[%!].*$", "pass", source, flags=re.M))
    except SyntaxError:
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            if called in places and node.args:
                yield places[called], _words(node.args[0])
            for keyword in node.keywords:
                if keyword.arg in keywords:
                    yield keywords[keyword.arg], _words(keyword.value)


def figure_words(source: str, section: str) -> str:
    "What a figure shows, from the code that draws it and the section in which it stands."
    told: dict[str, list[str]] = {"title": [], "x": [], "y": []}
    for kind, words in drawn_words(source):
        words = " ".join(words.split())
        if words and words not in told[kind]:
            told[kind].append(words)
    parts = [f"Figure: {'; '.join(told['title']) or section}."]
    parts += [f"{axis} axis: {', '.join(told[axis])}." for axis in "xy" if told[axis]]
    return " ".join(parts).replace("$", "").replace("\\", "")


def shown_output(output: dict) -> dict:
    "An output without styles that the site has itself."
    data = output.get("data", {})
    if "text/html" not in data:
        return output
    page = SCOPED.sub("", "".join(data["text/html"])).replace(' border="1"', "")
    page = re.sub(r"<table(?![^>]*class=)", '<table class="dataframe"', page)
    return output | {"data": data | {"text/html": page}}


def code(cell: dict, section: str) -> dict | None:  # None: not on the site
    "A cell of code without directives; folded where it says so."
    source = source_of(cell)
    told = {line.split(":")[0].strip(): line for line in directives(source)}
    kept = DIRECTIVE.sub("", source).strip("\n")
    if "hide" in told or told.get("include", "").endswith("false"):
        return None
    if any(line.startswith("default_exp") for line in told.values()) and not kept:
        return None
    folded = told.get("code-fold", "").endswith("true") or is_colab(cell)
    tags = ["hide-input"] if folded else []
    if told.get("echo", "").endswith("false"):
        tags = ["remove-input"]
    metadata: dict = {"tags": tags} if tags else {}
    outputs = [shown_output(output) for output in cell["outputs"]]
    if any(DRAWN in output.get("data", {}) for output in outputs):
        metadata["mystnb"] = {"image": {"alt": figure_words(kept, section)}}
    return cell | {"source": kept, "metadata": metadata, "outputs": outputs}


def is_colab(cell: dict) -> bool:
    "Whether a cell of code installs the kit on Colab."
    return cell["cell_type"] == "code" and COLAB in source_of(cell)


def head(name: str, module: str, repository: Repository) -> str:
    "What stands below a lesson's first cell: its module, and how it is opened on Colab."
    link = f"[Open in Colab]({repository.colab}{name}.ipynb)"
    up = os.path.relpath("api", Path(name).parent)
    exported = f"Module: [`prefkit.{module}`]({up}/prefkit.{module}.md)" if module else ""
    return " · ".join(part for part in (exported, link) if part)


def page(name: str, repository: Repository) -> dict:
    "A notebook as the site shows it; `name` as `lib/losses/21_dpo`."
    notebook = read(repository.nbs / f"{name}.ipynb")
    module, section, cells = exported_module(notebook), "", []
    for place, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] == "code":
            shown = code(cell, section)
        else:
            text = source_of(cell)
            heading = re.findall(r"^#+ +(.+)$", CODE.sub("", text), re.M)
            section = heading[-1] if heading else section
            text = prose(text, name, repository)
            if not place and name.startswith(("lib/", "tutorials/")):
                text = f"{text}\n\n{head(name, module, repository)}"
            shown = cell | {"source": text}
        if shown:
            cells.append(shown)
    lexer = {"language_info": {"name": "python", "pygments_lexer": "ipython3"}}
    return notebook | {"cells": cells, "metadata": notebook["metadata"] | lexer}
