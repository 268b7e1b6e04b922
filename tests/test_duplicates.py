"Duplicates: what is equal or nearly, held against looking at every pair."

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefkit.core import ConfigError
from prefkit.data.duplicates import Seen, jaccard, shingles, words_alone


@pytest.mark.parametrize(
    "text",
    [
        "What does  the FOX eat?",
        "what does the fox eat",
        "“What does the fox eat?!”",
        "ｗhat does the fox eat",
    ],
)
def test_case_marks_and_spacing_make_no_other_text(text):
    seen = Seen()
    seen.add("What does the fox eat?", "seed 3")
    found = seen.find(text)
    assert (found.where, found.alike) == ("seed 3", 1.0)


def test_near_ones_are_found_and_others_of_the_same_kind_are_not():
    seen = Seen(near=0.7)
    seen.add("Write a short story about a dragon who learns to cook for his friends.", "seed 1")
    seen.add("What colour is the fox?", "seed 2")
    found = seen.find("Write a short story about a dragon who learns to cook for friends")
    assert found.where == "seed 1" and 0.7 <= found.alike < 1
    assert seen.find("What colour is the robin?") is None
    assert seen.find("Write a poem about the sea.") is None and seen.find("") is None


def test_what_has_no_words_is_equal_to_its_like_alone():
    seen = Seen()
    seen.add("?!", "seed 1")
    assert seen.find("...").where == "seed 1" and seen.find("a") is None


words = st.lists(st.sampled_from("a b c d e".split()), min_size=1, max_size=9).map(" ".join)


@given(st.lists(words, max_size=12), words, st.sampled_from([0.2, 0.5, 0.7, 1.0]))
def test_it_finds_what_looking_at_every_pair_finds(texts, text, near):
    seen = Seen(near)
    for number, each in enumerate(texts):
        seen.add(each, str(number))
    best = max((jaccard(shingles(text), shingles(each)) for each in texts), default=0.0)
    best = 1.0 if words_alone(text) in texts else best
    found = seen.find(text)
    assert (found.alike if found else 0.0) == (best if best >= near else 0.0)


def test_a_threshold_out_of_range_is_refused():
    with pytest.raises(ConfigError) as error:
        Seen(0.0)
    assert error.value.field == "near"
