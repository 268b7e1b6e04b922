"""The reference of the library: a page for each public module, in MyST, with what the comments
beside its parameters say.
"""

import json
import os
import re
from collections.abc import Iterable

from docs_site.source import Module, Named

SPECIAL = re.compile(r"([\\*_\[\]<>$#{}|~^])")
ADDRESS = re.compile(r"(https?://[^\s)>,;]+[^\s)>,;.])")


def inline(text: str) -> str:
    "A docstring's sentence as MyST: what stands in backticks is code, an address is a link."
    parts = re.split(r"(`[^`]+`)", text)
    for place, part in enumerate(parts):
        if not part.startswith("`"):
            pieces = ADDRESS.split(part)
            pieces[::2] = [SPECIAL.sub(r"\\\1", piece) for piece in pieces[::2]]
            pieces[1::2] = [f"<{address}>" for address in pieces[1::2]]
            parts[place] = "".join(pieces)
    return "".join(parts)


def paragraphs(text: str) -> str:
    "A docstring as MyST; what is indented stays as it is."
    shown = []
    for part in re.split(r"\n\s*\n", text.strip("\n")):
        lines = part.splitlines()
        if lines and all(line.startswith("    ") for line in lines):
            shown.append("\n".join(["```text", *(line[4:] for line in lines), "```"]))
        elif lines:
            shown.append("\n".join(inline(line.strip()) for line in lines))
    return "\n\n".join(shown)


def first_sentence(text: str) -> str:
    "The beginning of a docstring, for a table."
    flat = " ".join(text.split("\n\n")[0].split())
    ended = re.match(r"(.+?[^.][.!?])(\s+[A-Z`]|$)", flat)
    return inline(ended[1] if ended else flat)


def signature(one: Named) -> str:
    "A name as it is called."
    if one.kind in ("data", "attribute", "property"):
        return one.name
    shown = f"{one.name}({one.arguments})" if one.arguments or one.kind != "class" else one.name
    return f"{shown} -> {one.returns}" if one.returns else shown


def described(one: Named, fence: str = "::::") -> str:
    "A name as a directive of Sphinx's Python domain, with its members inside."
    options = [f":value: {json.dumps(one.value)}"] if one.value else []
    options += (
        [f":type: {json.dumps(one.returns)}"] if one.kind == "property" and one.returns else []
    )
    lines = [f"{fence}{{py:{one.kind}}} {signature(one)}", *options, "", paragraphs(one.text), ""]
    lines += [f":param {name}: {inline(words)}" for name, words in one.words.items()]
    lines += [f":returns: {inline(one.returned)}"] if one.returned else []
    for member in one.members:
        if member.text or member.words:  # the rest are another class's methods, made anew
            lines += ["", described(member, fence[1:])]
    return "\n".join([*lines, "", fence])


def children(module: Module, modules: Iterable[Module]) -> list[Module]:
    "The modules of a package, one level down."
    inside = module.name.count(".") + 1
    return [
        one
        for one in modules
        if one.name.startswith(f"{module.name}.") and one.name.count(".") == inside
    ]


def listed(modules: list[Module], titles: dict[str, str]) -> str:
    "A table of modules, and their place in the navigation."
    rows = ["| module | what | lesson |", "|---|---|---|"]
    for one in modules:
        lesson = f"[{titles[one.lesson]}](../{one.lesson}.ipynb)" if one.lesson else ""
        about = first_sentence(one.text).replace("|", "\\|")
        rows.append(f"| [`{one.name}`]({one.name}.md) | {about} | {lesson} |")
    tree = ["```{toctree}", ":hidden:", "", *(one.name for one in modules), "```"]
    return "\n".join([*rows, "", *tree])


def page(module: Module, modules: list[Module], titles: dict[str, str], blob: str) -> str:
    "The page of a module."
    where = [f"[{os.path.basename(module.file)}]({blob}{module.file})"]
    if module.lesson:
        where.insert(0, f"Lesson: [{titles[module.lesson]}](../{module.lesson}.ipynb)")
    parts = [
        f"# {module.name}",
        paragraphs(module.text),
        " · ".join(where),
        f"```{{py:module}} {module.name}\n```",
    ]
    below = children(module, modules)
    if below:
        parts += ["## Modules", listed(below, titles)]
    if module.elsewhere:
        known = {one.name for one in modules}
        shown = [
            f"- `{name}`" + (f" from [`{home}`]({home}.md)" if home in known else f" from `{home}`")
            for name, home in module.elsewhere.items()
        ]
        parts += ["## Names from other modules", "\n".join(shown)]
    kinds = {"class": "Classes", "function": "Functions", "data": "Constants"}
    for kind, heading in kinds.items():
        if found := [one for one in module.names if one.kind == kind]:
            parts += [f"## {heading}", *(described(one) for one in found)]
    return "\n\n".join(part for part in parts if part) + "\n"


def index(modules: list[Module], titles: dict[str, str], rooms: list[str]) -> str:
    "The page before all modules: packages in the order of the lessons' folders, then the rest."
    top = [one for one in modules if one.name.count(".") == 1]

    def place(one):
        room = one.name.split(".")[1]
        return (not one.package, rooms.index(room) if room in rooms else len(rooms), one.name)

    lead = (
        "Every public module, read from its source: signatures, and what the comments beside "
        "parameters say. A module that a lesson writes links to it."
    )
    return f"# Reference of the library\n\n{lead}\n\n{listed(sorted(top, key=place), titles)}\n"


def anchors(modules: list[Module]) -> dict[str, str]:  # name -> docname#anchor
    "Where functions and classes stand, those whose name has one home."
    found: dict[str, list[str]] = {}
    for module in modules:
        for one in module.names:
            if one.kind in ("function", "class"):
                anchor = f"api/{module.name}#{module.name}.{one.name}"
                found.setdefault(one.name, []).append(anchor)
    return {name: places[0] for name, places in found.items() if len(places) == 1}


def lines(modules: list[Module]) -> dict[str, tuple[str, int]]:  # dotted name -> file, line
    "Where each name stands in the source."
    found = {}
    for module in modules:
        for one in module.names:
            found[f"{module.name}.{one.name}"] = module.file, one.line
            for member in one.members:
                found[f"{module.name}.{one.name}.{member.name}"] = module.file, member.line
    return found
