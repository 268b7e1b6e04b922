"""Are the outputs that a notebook stores those that its cells give? Words have to be the same,
numbers within a tolerance, since processors round differently.
"""

import ast
import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from types import CodeType
from typing import Any

from IPython.core.formatters import DisplayFormatter
from IPython.core.getipython import get_ipython
from IPython.utils.capture import capture_output

__all__ = ["LEDGER", "SAYS", "VARIES", "run_cell", "stale_places", "stored_texts"]

VARIES = "varies"  # tag of a cell that measures time, memory or rounding: its numbers may be others
# tag of a cell that shows what a model trained in the lesson says: a word may tip with rounding,
# so that its outputs are counted and not compared; what the lesson says of them it asserts
SAYS = "answers"
LEDGER = "ledger"  # of one that shows the ledger's verdicts, which tools/claims.py keeps
RELATIVE = 0.03  # by which a number may differ; one unit of its last decimal always may
ABSOLUTE = 1e-5  # what rounding in float32 leaves of a zero

_NUMBER = re.compile(
    r"(?<![A-Za-z_\d.])[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:e[-+]?\d+)?", re.I
)
_MASKED = (  # what differs from run to run by design
    (re.compile(r"\s+at 0x[0-9a-f]+"), ""),
    (re.compile(r"\bT_[0-9a-f]{5}"), "T_"),  # pandas draws the name of a styled table
    (re.compile(r"Known: [^.]*"), "Known:"),  # names that another lesson registered may be there
    (re.compile(r"data:[\w/.+-]+(?:;[\w=-]+)*,[^\s\"')]+"), "data:"),
    (re.compile(r"^.*/tmp\w{8}.*$", re.M), ""),  # a line that names a temporary folder
    (re.compile(r"\x1b\[[0-9;]*m"), ""),
    (re.compile(r"[−–]"), "-"),
)
_TEXTS = ("text/markdown", "text/html", "text/plain")  # the first that an output has is compared
_PICTURES = ("image/", "application/vnd.jupyter.widget")  # these are not: fonts and widgets differ
_VIEW = "application/vnd.jupyter.widget-view+json"  # controls, which are not stored


def run_cell(
    source: str,
    place: str,  # the file name in its tracebacks
    names: dict,  # what the cells above have defined; the cell's are added
) -> list[str]:  # what it prints and shows, as text
    "Run a cell as a notebook does, and return its outputs. Raises whatever the cell raises."
    body, last = _split(source, place)
    with capture_output() as captured:
        exec(body, names)
        value = None if last is None else eval(last, names)
    shown = [output.data for output in captured.outputs or ()]
    if value is not None:
        shell = get_ipython()
        formatter = shell.display_formatter if shell else DisplayFormatter()
        assert formatter is not None
        shown.append(formatter.format(value)[0])
    return [text for text in (captured.stdout, *map(_text, shown)) if text]


def stored_texts(outputs: Sequence[Mapping[str, Any]]) -> list[str]:
    "The outputs of a cell as nbformat stores them, as `run_cell` gives them."
    printed = [
        "".join(one["text"])
        for one in outputs
        if one["output_type"] == "stream" and one["name"] == "stdout"
    ]
    shown = [
        {kind: value if isinstance(value, dict) else "".join(value) for kind, value in data.items()}
        for data in (one["data"] for one in outputs if "data" in one)
    ]
    return [text for text in ("".join(printed), *map(_text, shown)) if text]


def stale_places(
    stored: Sequence[str],
    fresh: Sequence[str],
    *,
    numbers: bool = True,  # compared as well; False for a cell tagged `varies`
) -> list[str]:  # one line for each place that differs; none where all is well
    "What differs between the outputs of a cell as they are stored and as they are now."
    old, new = (list(_tokens("\n".join(texts))) for texts in (stored, fresh))
    if not numbers:
        old, new = ([_NUMBER.sub("#", word) for word in words] for words in (old, new))
    matcher = difflib.SequenceMatcher(None, _shape(old), _shape(new), autojunk=False)
    found: list[str] = []
    for kind, a, b, c, d in matcher.get_opcodes():
        if kind != "equal":
            found.append(f"{_shown(old[a:b])} is {_shown(new[c:d])} now")
            continue
        pairs = zip(old[a:b], new[c:d], strict=True)
        found += [f"{one} is {other} now" for one, other in pairs if not _close(one, other)]
    return found


def _split(source: str, place: str) -> tuple[CodeType, CodeType | None]:
    "A cell's statements, and its last expression where a notebook would show its value."
    tree = ast.parse(source, place)
    last = tree.body[-1] if tree.body else None
    if not isinstance(last, ast.Expr) or source.rstrip().endswith(";"):
        return compile(source, place, "exec"), None
    before = ast.Module(tree.body[:-1], type_ignores=[])
    return compile(before, place, "exec"), compile(ast.Expression(last.value), place, "eval")


def _text(data: Mapping[str, Any]) -> str:
    if _VIEW in data and "text/html" in data:  # what they show without a kernel is told in words
        return str(data["text/html"])
    if any(kind.startswith(_PICTURES) for kind in data):
        return ""
    return next((str(data[kind]) for kind in _TEXTS if kind in data), "")


def _tokens(text: str) -> Iterator[str]:
    "Numbers and the words between them, so that each number is compared by itself."
    for pattern, put in _MASKED:
        text = pattern.sub(put, text)
    for word in text.split():
        end = 0
        for number in _NUMBER.finditer(word):
            if word[end : number.start()]:
                yield word[end : number.start()]
            yield number.group()
            end = number.end()
        if word[end:]:
            yield word[end:]


def _shape(words: Sequence[str]) -> list[str]:
    return ["#" if _NUMBER.fullmatch(word) else word for word in words]


def _close(one: str, other: str) -> bool:
    if one == other or not _NUMBER.fullmatch(one):
        return True
    a, b = (float(text.replace(",", "")) for text in (one, other))
    digits = one.lower().split("e")[0].partition(".")[2]
    unit = 10.0 ** -len(digits) if digits else 0.0
    if "e" in one.lower():
        unit *= 10.0 ** int(one.lower().split("e")[1])
    return abs(a - b) <= max(RELATIVE * abs(a), unit, ABSOLUTE) * (1 + 1e-9)


def _shown(words: Sequence[str], most: int = 12) -> str:
    text = " ".join(words[:most]) + (" ..." if len(words) > most else "")
    return repr(text) if words else "nothing"
