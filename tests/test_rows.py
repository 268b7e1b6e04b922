"""A row of token ids: typed for the library, a mapping for those who hold plain rows."""

import pytest
import torch

from helpers.processes import encoded_rows
from prefkit.core import DataError
from prefkit.data.rows import Row, as_rows
from prefkit.model.batches import collate
from prefkit.train.saves import rows_fingerprint

PLAIN = {
    "prompt_ids": [5, 6],
    "chosen_learned": [True, False],
    "prompt": [{"role": "user", "content": "?"}],
    "record": {"target": 3},
    "chosen_ids": [7, 2],
    "rejected_ids": [8, 2],
    "label": False,
    "group": 0,
    "reward": -1,
    "ref_chosen_logps": -2.5,
    "source": "mine",
}


def test_a_row_is_the_plain_row_that_it_was_made_of():
    row = Row.of(PLAIN)
    assert row.answers == {"chosen": [7, 2], "rejected": [8, 2]}
    assert row.learned_of("chosen") == [True, False] and row.learned_of("rejected") == [True] * 2
    assert (row.label, row.reward, row.group, row.record["target"]) == (False, -1, 0, 3)
    assert row.logps == {"ref_chosen_logps": -2.5} and row.others == {"source": "mine"}
    assert row == PLAIN and {**row} == PLAIN and list(row) == list(PLAIN) and len(row) == 11
    assert row["chosen_ids"] == [7, 2] and row.get("kl") is None and "kl" not in row
    assert Row.of(row) is row and as_rows(None) == []


def test_more_columns_make_another_row_and_leave_the_first_alone():
    row = Row.of(PLAIN)
    more = row | {"mismatched_ids": [9], "chosen_ids": [4, 2], "ref_logps": -1.0, "label": None}
    assert more.answers == {"chosen": [4, 2], "rejected": [8, 2], "mismatched": [9]}
    assert more.logps == {"ref_chosen_logps": -2.5, "ref_logps": -1.0}
    assert more.label is False  # None is how a table says that there is nothing
    assert row == PLAIN


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("prompt_ids", "5 6"),
        ("chosen_ids", [1.5]),
        ("chosen_ids", 3),
        ("chosen_learned", [1, 2]),
        ("chosen_learned", True),
        ("reward", "high"),
        ("ref_logps", [1.0]),
    ],
)
def test_a_column_that_is_not_what_its_name_says_is_refused_with_its_row(column, value):
    with pytest.raises(DataError) as caught:
        as_rows([PLAIN, {**PLAIN, column: value}], "train_rows")
    assert (caught.value.field, caught.value.reason) == (column, "of a wrong type")
    assert "train_rows, row 1" in str(caught.value)


def test_what_is_no_row_is_refused():
    with pytest.raises(DataError) as caught:
        collate([[1, 2]], ("response",), 0)
    assert caught.value.reason == "of a wrong type" and "list" in str(caught.value)


def test_ids_may_come_as_any_whole_numbers():
    row = Row.of({"prompt_ids": torch.tensor([1, 2]), "response_ids": (3, 2)})
    assert row == {"prompt_ids": [1, 2], "response_ids": [3, 2]}


def test_fingerprints_are_those_of_plain_rows():  # as they were before there were any others
    expected = {
        "sft": "62a29d07c76912fc",
        "pairs": "0d15f241ae42c8de",
        "binary": "467579a10a8f7aa9",
    }
    for kind, name in expected.items():
        rows = encoded_rows(9, kind)
        assert rows_fingerprint(rows) == rows_fingerprint(as_rows(rows)) == name
