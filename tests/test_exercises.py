"""The solution of an exercise that a reader unfolds is the code that was run: each stands, word for
word, in a cell of its notebook.
"""

import json
import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "nbs" / "lib"
# their solutions are a few lines to try, not functions that a check takes
TRIED = (
    "01_chat 02_records 03_world 05_gold_reward 06_tiny_model 11_batches 12_kernels 41_schedule "
    "60_figures"
).split()
LESSONS = sorted(path for path in FOLDER.rglob("*.ipynb") if path.stem not in TRIED)


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_every_folded_solution_is_executed_and_checked(lesson):
    cells = json.loads(lesson.read_text(encoding="utf-8"))["cells"]
    prose = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    folded = re.findall(r"<details>(.*?)</details>", "\n".join(prose), re.S)
    solutions = re.findall(r"```python\n(.*?)```", "\n".join(folded), re.S)
    assert len(folded) == len(solutions) >= 3
    for solution in solutions:
        assert solution.strip() in code, f"this solution is not executed:\n{solution}"
        function = re.search(r"def (\w+)", solution).group(1)
        assert f"def check_{function}(" in code and f"check_{function}({function})" in code
