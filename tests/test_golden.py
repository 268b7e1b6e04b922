"""A few steps of every method, offline and online, beside what the trainers wrote before they
became one loop: `helpers/golden.py` says how that was recorded.
"""

import json
import math

import pytest

from helpers.golden import CASES, FILE, KIND, columns, lines_of
from prefkit.train.methods import FAMILY, METHODS

RECORD = json.loads(FILE.read_text())
METHODS_THEN = set(METHODS)  # before other tests add theirs
# On the CPU of the record the numbers are the same to the last of their seven digits. Another one
# adds up in another order: with ATEN_CPU_CAPABILITY=default (no vectors) and =avx2 (shorter ones)
# the largest gap was 1.3e-4 of a column's largest number. It is measured by that number and not by
# each, since a margin at the start is a zero that was rounded; where a whole column is one (rloo's
# loss, logps_gap), the floor holds.
SHARE, FLOOR = 3e-4, 1e-5
SINCE = {"sft_length": {"nll"}}  # columns that are logged since the record


def numbers(values):
    "Values of a column; where a line has none, not a number."
    return [math.nan if value is None else value for value in values]


@pytest.mark.parametrize("case", RECORD)
def test_metrics_are_those_of_the_trainers_before(case):
    now, before = columns(lines_of(case)), RECORD[case]["columns"]
    assert now.keys() == before.keys() | SINCE.get(case, set())
    assert now.pop("split") == before.pop("split")
    for name, values in before.items():
        room = FLOOR + SHARE * max(abs(value) for value in values if value is not None)
        expected = pytest.approx(numbers(values), rel=0, abs=room, nan_ok=True)
        assert numbers(now[name]) == expected, name


def test_every_method_is_recorded_in_the_settings_that_stand_there():
    assert METHODS_THEN - set(FAMILY) == set(KIND)  # GRPO's children came after
    assert list(RECORD) == list(CASES)
