"""What the site adds to Sphinx: names of the library in prose lead to the reference, every page's
source link leads to the file it was made from, and lessons alone can be opened on Colab.
"""

import json
import os
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx

SOURCE, ISSUES, COLAB = "source-file-button", "source-issues-button", "launch-buttons"
ON_COLAB = ("lib/", "tutorials/", "colab/")


def _found() -> dict:
    return json.loads(Path(os.environ["PREFKIT_DOCS_FOUND"]).read_text(encoding="utf-8"))


def link_names(app: Sphinx, doctree: nodes.document, docname: str):
    "Make of a name of the library, as code in prose, a link to where it is described."
    names = _found()["names"]
    for literal in list(doctree.findall(nodes.literal)):
        text = literal.astext()
        name = text.removesuffix("()")
        told = "_" in name or name[:1].isupper() or text.endswith("()")
        place = names.get(name) if told else None
        if not place or isinstance(literal.parent, (nodes.reference, nodes.title)):
            continue
        page, anchor = place.split("#")
        if page == docname:
            continue
        address = f"{app.builder.get_relative_uri(docname, page)}#{anchor}"
        link = nodes.reference("", "", internal=True, refuri=address, classes=["name"])
        literal.replace_self(link)
        link.append(literal)


def _flat(buttons: list[dict]) -> list[dict]:
    return [one for each in buttons for one in (each, *_flat(each.get("buttons", [])))]


def mend_buttons(app: Sphinx, pagename: str, templatename: str, context: dict, doctree):
    "Source links as they are, and no button for Colab beside what is no lesson."
    found, buttons = _found(), context.get("header_buttons", [])
    file = found["sources"].get(pagename, "")
    for group in buttons:
        if "buttons" in group:
            group["buttons"] = [
                one for one in group["buttons"] if file or one.get("label") != SOURCE
            ]
    for one in _flat(buttons):
        if one.get("label") == SOURCE:
            one["url"] = found["blob"] + file
    if not pagename.startswith(ON_COLAB):
        context["header_buttons"] = [one for one in buttons if one.get("label") != COLAB]


def setup(app: Sphinx) -> dict:
    app.connect("doctree-resolved", link_names)
    app.connect("html-page-context", mend_buttons, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True, "version": "1"}
