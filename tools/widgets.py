"""All widgets on one page that needs no kernel and no other file: `tools/widgets.py PAGE`."""

import sys
from pathlib import Path

from prefkit.core import PrefkitError
from prefkit.widgets.gallery import gallery_page

ROOT = Path(__file__).resolve().parents[1]


def main(arguments: list[str]) -> int:  # exit status
    "Write the page, `data/runs/reports/widgets.html` where none is named."
    page = Path(arguments[0]) if arguments else ROOT / "data/runs/reports/widgets.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    try:
        gallery_page(page)
    except PrefkitError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
