"""`python tools/claims.py`: the ledger's verdicts in the lessons, as the committed results have
them now. A cell with the tag `ledger` calls `show_claims`; only its output is written anew, so
that a result of the ledger does not ask for every lesson to be run again. `--check` writes nothing.
"""

import json
import re
import sys
from pathlib import Path

from prefkit.runs.ledger import open_ledger, show_claims, verdicts

ROOT = Path(__file__).resolve().parents[1]
TAG = "ledger"
_CALL = re.compile(r'^show_claims\("(\w+)"\)$', re.M)


def lessons() -> list[Path]:
    "The notebooks that have such a cell."
    found = sorted((ROOT / "nbs/lib/losses").glob("*.ipynb"))
    return [path for path in found if f'"{TAG}"' in path.read_text(encoding="utf-8")]


def renewed(text: str, found: dict) -> str:
    "A notebook's text with the verdicts of now."
    notebook = json.loads(text)
    for cell in notebook["cells"]:
        if TAG not in cell["metadata"].get("tags", []):
            continue
        (lesson,) = _CALL.findall("".join(cell["source"]))
        html = show_claims(lesson, found).to_html().splitlines(keepends=True)
        data = {"text/html": html, "text/plain": ["<a styled table>"]}
        output = {"data": data, "execution_count": None, "metadata": {}}
        cell["outputs"] = [{**output, "output_type": "execute_result"}]
        cell["execution_count"] = None
    return json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=False) + "\n"


def main(check: bool) -> int:
    found, stale = verdicts(open_ledger()), []
    for path in lessons():
        old = path.read_text(encoding="utf-8")
        new = renewed(old, found)
        if json.loads(new) != json.loads(old):
            stale.append(path.relative_to(ROOT).as_posix())
            if not check:
                path.write_text(new, encoding="utf-8")
    print("\n".join(stale) or "every lesson has the ledger's verdicts of now")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv))
