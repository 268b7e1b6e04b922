"""The folded solutions of the lessons are code that was run: each stands, word for word, in a cell
of its notebook.
"""

import json, re
from pathlib import Path

import pytest

LESSONS = Path(__file__).parent.parent / "nbs" / "lib"


@pytest.mark.parametrize(
    "name",
    [
        "04_countdown",
        "10_logps",
        "20_sft",
        "21_dpo",
        "22_ipo",
        "23_dpop",
        "24_minor_dpo",
        "25_xpo",
        "26_simpo",
        "27_orpo",
        "29_topr",
        "30_reward_model",
        "31_rloo",
        "32_grpo",
        "33_ppo",
        "34_length_penalty",
        "35_best_of_n",
        "45_rollout",
        "47_online",
        "50_generate",
        "51_rewards",
        "52_reward_sources",
        "53_win_rate",
        "54_length_control",
        "55_rankings",
        "56_judges",
        "57_text_metrics",
        "58_harnesses",
    ],
)
def test_every_folded_solution_is_executed_and_checked(name):
    cells = json.loads((LESSONS / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    prose = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    folded = [
        part for text in prose for part in re.findall(r"<details>(.*?)</details>", text, re.S)
    ]
    solutions = [
        block for part in folded for block in re.findall(r"```python\n(.*?)```", part, re.S)
    ]
    assert len(folded) == len(solutions) >= 3
    for solution in solutions:
        assert solution.strip() in code, f"this solution is not executed in {name}:\n{solution}"
        function = re.search(r"def (\w+)", solution).group(1)
        assert f"def check_{function}(" in code and f"check_{function}({function})" in code
