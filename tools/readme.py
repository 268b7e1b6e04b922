"""README.md from nbs/index.ipynb, without Quarto.

`--check`: fail if README.md is not what would be written.
"""

import json
import re
import sys
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ALERTS = {
    "note": "NOTE",
    "tip": "TIP",
    "warning": "WARNING",
    "important": "IMPORTANT",
    "caution": "CAUTION",
}


def repository():
    "The address behind which the files of this repository stand on the web."
    config = ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    return f"{config['DEFAULT']['git_url']}/blob/{config['DEFAULT']['branch']}/"


def callout(match):
    "A Quarto callout as an alert of GitHub."
    kind, title, body = match.groups()
    lines = body.strip().splitlines()
    if title:
        lines = [f"**{title}**", "", *lines]
    return "\n".join([f"> [!{ALERTS[kind]}]", *(f"> {line}".rstrip() for line in lines)])


def relocate(text):
    """Links as they hold from the top folder: nbs/ before relative ones; those into this
    repository's web pages become relative.
    """

    def link(match):
        start, target, end = match.groups()
        if target.startswith(repository()):
            target = target.removeprefix(repository())
        elif target.startswith("../"):
            target = target[3:]
        elif not re.match(r"[a-z]+:|#|/", target):
            target = f"nbs/{target}"
        return start + target + end

    text = re.sub(r"(\]\()([^)\s]+)(\)|\s)", link, text)
    return re.sub(r"""((?:src|href)=["'])([^"']+)(["'])""", link, text)


def prose(text):
    "A markdown cell for GitHub."
    text = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.S)  # front matter is the web site's
    text = re.sub(
        r"^:::+ *\{\.callout-(\w+)(?:[^}]*?title=\"([^\"]*)\")?[^}]*\}\n(.*?)\n:::+ *$",
        callout,
        text,
        flags=re.S | re.M,
    )
    text = re.sub(r"^:::.*\n?", "", text, flags=re.M)
    return relocate(text).strip()


def code(cell):
    "A code cell: its source without directives, then its stored text."
    source = "".join(cell["source"])
    flags = {line.replace(" ", "") for line in source.splitlines() if re.match(r"#\s*\|", line)}
    if flags & {"#|hide", "#|include:false"}:
        return ""
    lines = [line for line in source.splitlines() if not re.match(r"#\s*\|", line)]
    body = "\n".join(lines).strip()
    parts = [] if "#|echo:false" in flags else [f"```python\n{body}\n```"]
    for output in cell["outputs"]:
        data = output.get("data", {})
        if "text/markdown" in data:
            parts.append(prose("".join(data["text/markdown"])))
        elif text := "".join(output.get("text", data.get("text/plain", ""))).strip():
            parts.append(f"```\n{text}\n```")
    return "\n\n".join(parts)


def readme(notebook):
    "The whole text for a notebook as a dict."
    parts = ["<!-- Written by `make readme` from nbs/index.ipynb: edit that. -->"]
    for cell in notebook["cells"]:
        parts.append(code(cell) if cell["cell_type"] == "code" else prose("".join(cell["source"])))
    return "\n\n".join(part for part in parts if part) + "\n"


if __name__ == "__main__":
    text = readme(json.loads((ROOT / "nbs/index.ipynb").read_text(encoding="utf-8")))
    target = ROOT / "README.md"
    if "--check" in sys.argv:
        if target.read_text(encoding="utf-8") != text:
            sys.exit("README.md is not what nbs/index.ipynb says: run `make readme`")
    else:
        target.write_text(text, encoding="utf-8", newline="\n")
