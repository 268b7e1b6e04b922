"""`python tools/syllabus.py`: the syllabus, and below the title of each lesson the line of ways and
the picture of the whole way, from nbs/syllabus.yml; the glossary from nbs/glossary.yml. `--check`:
fail where something would change.
"""

import json
import os
import re
import sys
from pathlib import Path

import yaml

from way import draw, file_name, words

ROOT = Path(__file__).resolve().parents[1]
NBS = ROOT / "nbs"
WORDS, LINES = 180, 20  # read in a minute: of prose, of code
IMAGE = re.compile(r"!\[[^\]]*\]\([^)]*\)")
WAY = re.compile(r"\n\n\[Syllabus\]\([^)]*\).*$", re.S)  # at the end of a first cell


def plan() -> dict:
    return yaml.safe_load((NBS / "syllabus.yml").read_text(encoding="utf-8"))


def in_order() -> list[str]:  # as `lib/losses/21_dpo`
    "All lessons once, as they are read."
    told = plan()
    parts = [*told["evenings"], *told["reference"]]
    return list(dict.fromkeys(name for part in parts for name in part["lessons"]))


def cells_of(name: str) -> list[dict]:
    return json.loads((NBS / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]


def title_of(name: str) -> str:
    return "".join(cells_of(name)[0]["source"]).splitlines()[0].lstrip("# ")


def minutes(name: str) -> int:  # to read it, to the next five
    "From its words and its lines of code; exercises come on top."
    words = lines = 0
    for cell in cells_of(name):
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            words += len(IMAGE.sub("", source).split())
        else:
            lines += len([line for line in source.splitlines() if line.strip()])
    return max(5, 5 * round((words / WORDS + lines / LINES) / 5))


def way(name: str) -> str:  # a line of Markdown
    "Syllabus, glossary, the lessons before and after."
    order, here = in_order(), Path(name).parent
    place = order.index(name)

    def link(label, target):
        return f"[{label}]({os.path.relpath(f'{target}.ipynb', here)})"

    parts = [link("Syllabus", "syllabus"), link("Glossary", "glossary")]
    if place:
        parts.append("before: " + link(title_of(order[place - 1]), order[place - 1]))
    if place + 1 < len(order):
        parts.append("next: " + link(title_of(order[place + 1]), order[place + 1]))
    return " · ".join(parts)


def picture(name: str) -> str:  # a line of Markdown
    "Where on the whole way a lesson stands."
    here = tuple(plan()["stations"][name])
    target = os.path.relpath(f"images/{file_name(here)}", Path(name).parent)
    return f"![{words(here)}]({target})"


def first_cell(name: str) -> str:
    "A lesson's title and summary with the line of ways and the picture."
    text = WAY.sub("", "".join(cells_of(name)[0]["source"])).rstrip()
    return f"{text}\n\n{way(name)}\n\n{picture(name)}"


def rows(names: list[str]) -> list[str]:
    "A line of a list for each lesson."
    return [f"- [{title_of(name)}]({name}.ipynb), {minutes(name)} min" for name in names]


def page() -> list[str]:  # the texts of its cells
    "The syllabus."
    told = plan()
    total = sum(minutes(name) for part in told["evenings"] for name in part["lessons"])
    short = sum(minutes(name) for name in told["afternoon"]["lessons"])
    texts = [
        "# Syllabus\n\n> Three ways through the lessons: an afternoon, ten evenings, and what to "
        "look up.\n\nMinutes are for silent reading and running; before a class reckon twice as "
        "long, and leave code to the screen. Exercises take as long again as reading. You need "
        f"{told['afternoon']['know']}; nothing of reinforcement learning is assumed. Terms stand "
        "in the [glossary](glossary.ipynb); solutions are linked above each lesson's exercises. "
        "Teachers: `prefkit course make --out DIR` writes a class's notebooks, with points and "
        "without solutions, and a copy with them.",
        "\n".join(
            [
                f"## An afternoon ({short} min, {2 * short} with exercises)\n",
                f"{told['afternoon']['about']}\n",
                *rows(told["afternoon"]["lessons"]),
            ]
        ),
        f"## Ten evenings ({total / 60:.0f} hours of reading)\n\nThe exercises are homework.",
    ]
    for number, part in enumerate(told["evenings"], 1):
        head = f"**{number}. {part['about']}.** Afterwards you can {part['can']}.\n"
        texts.append("\n".join([head, *rows(part["lessons"])]))
    texts.append("## To look up")
    texts += ["\n".join([f"**{p['about']}**\n", *rows(p["lessons"])]) for p in told["reference"]]
    return texts


def glossary() -> list[str]:  # the texts of its cells
    "The terms by their first letter."
    told = yaml.safe_load((NBS / "glossary.yml").read_text(encoding="utf-8"))
    texts = ["# Glossary\n\n> The terms of the lessons, with the lesson that brings each in."]
    groups: dict[str, list[str]] = {}
    for term in sorted(told, key=str.lower):
        one = told[term]
        link = f"[{title_of(one['lesson'])}]({one['lesson']}.ipynb)"
        groups.setdefault(term[0].upper(), []).append(f"**{term}**: {one['says']} {link}")
    return texts + [f"## {letter}\n\n" + "\n\n".join(rows) for letter, rows in groups.items()]


def notebook(texts: list[str], old: Path) -> str:
    "A notebook of Markdown cells with the metadata of another."
    kept = json.loads((NBS / "index.ipynb").read_text(encoding="utf-8"))
    cells = [
        {
            "cell_type": "markdown",
            "id": f"{old.stem}-{number}",
            "metadata": {},
            "source": text.splitlines(keepends=True),
        }
        for number, text in enumerate(texts)
    ]
    return json.dumps(kept | {"cells": cells}, ensure_ascii=False, indent=1) + "\n"


def wanted() -> dict[Path, str]:  # file -> what it should hold
    "The syllabus, every lesson with its line, and the pictures."
    pages = {NBS / "syllabus.ipynb": page, NBS / "glossary.ipynb": glossary}
    made = {path: notebook(texts(), path) for path, texts in pages.items()}
    for here in {tuple(stations) for stations in plan()["stations"].values()}:
        made[NBS / "images" / file_name(here)] = draw(here)
    for name in in_order():
        path = NBS / f"{name}.ipynb"
        told = json.loads(path.read_text(encoding="utf-8"))
        told["cells"][0]["source"] = first_cell(name).splitlines(keepends=True)
        made[path] = json.dumps(told, ensure_ascii=False, indent=1) + "\n"
    return made


def main(check: bool) -> int:  # exit status
    changed = [
        path
        for path, text in wanted().items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    for path in changed:
        if check:
            print(f"{path.relative_to(ROOT)}: run `python tools/syllabus.py`")
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_text(wanted()[path], encoding="utf-8")
    return int(check and bool(changed))


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv))
