"""Widgets of tokens: sums are those that train, and what is shown as learned or cut is what the
encoder makes of a row.
"""

import html
import re
import time

import pytest
import torch

from prefkit.core import ConfigError, DataError
from prefkit.data.chat import encode_response, pad_batch
from prefkit.model.loading import load_model
from prefkit.model.logps import sequence_logps
from prefkit.widgets import inspector, microscope
from prefkit.widgets.typed import cached_model, read_typed
from prefkit.widgets.view import Slider

POLICY, REFERENCE = "data/tiny/instruct", "data/tiny/base"
QUESTION = [{"role": "user", "content": "What colour is the fox?"}]
ANSWERS = {"chosen": "The fox is red.", "rejected": "The fox is blue."}
PAIR = "user: What colour is the fox?\nchosen: The fox is red.\nrejected: The fox is blue."


def sums(name):
    "The log-probs of both answers as training reads them."
    model, tokenizer = load_model(name)
    rows = [
        encode_response(tokenizer, QUESTION, [{"role": "assistant", "content": said}])
        for said in ANSWERS.values()
    ]
    batch = pad_batch(*[list(ids) for ids in zip(*rows)], tokenizer.pad_token_id)
    labels = batch.pop("labels")
    with torch.inference_mode():
        return sequence_logps(model.eval()(**batch).logits, labels).tolist()


def test_the_microscopes_sums_are_those_of_the_log_probs_that_train():
    pair = microscope.score_pair(PAIR, POLICY, REFERENCE)
    chosen, rejected = sums(POLICY)
    of_chosen, of_rejected = sums(REFERENCE)
    assert pair.chosen.policy.sum() == pytest.approx(chosen, abs=1e-4)
    assert pair.rejected.policy.sum() == pytest.approx(rejected, abs=1e-4)
    assert pair.chosen.reference.sum() == pytest.approx(of_chosen, abs=1e-4)
    assert pair.rejected.reference.sum() == pytest.approx(of_rejected, abs=1e-4)
    assert pair.margin == pytest.approx((chosen - of_chosen) - (rejected - of_rejected), abs=1e-3)


def test_tokens_stand_where_they_are_and_the_end_of_the_turn_counts():
    pair = microscope.score_pair(PAIR, POLICY, REFERENCE)
    assert "".join(pair.chosen.tokens) == "The·fox·is·red.<|im_end|>"
    assert len(pair.chosen.tokens) == len(pair.chosen.policy) == len(pair.chosen.reference)
    assert "".join(pair.prompt).endswith("What·colour·is·the·fox?<|im_end|>↵<|im_start|>assistant↵")


def test_each_number_is_written_and_the_sum_is_that_of_the_column():
    shown = microscope.draw_microscope(PAIR, POLICY, REFERENCE, 0.1).replace("−", "-")
    pair = microscope.score_pair(PAIR, POLICY, REFERENCE)
    table = re.findall(r"<table.*?</table>", shown)[0]
    changes = [float(x) for x in re.findall(r"rgba[^>]*>([+-][\d.]+)</td>", table)]
    assert changes == pytest.approx(pair.chosen.policy - pair.chosen.reference, abs=0.006)
    total = re.search(r"sum of 6</th>.*?>([+-][\d.]+)</td></tr>", table)[1]
    assert float(total) == pytest.approx(pair.chosen.logratio, abs=0.006)
    assert "-0.00" not in shown
    loss = torch.nn.functional.softplus(torch.tensor(-0.1 * pair.margin)).item()
    assert f"{loss:.3f}" in shown


def test_blue_is_more_and_orange_is_less_than_the_reference():
    more = microscope._row("a", -1.0, -3.0)
    less = microscope._row("<b>", -3.0, -1.0)
    assert "rgba(0,114,178,0.30)" in more and "+2.00" in more
    assert "rgba(213,94,0,0.30)" in less and "−2.00" in less and "&lt;b&gt;" in less


def test_a_model_is_read_once(monkeypatch):
    first = cached_model(REFERENCE)
    monkeypatch.setattr("prefkit.widgets.typed.load_language_model", None)
    assert cached_model(REFERENCE) is first and not first.training


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("What colour is the fox?", "begins with its role"),
        ("so: user: What?", "begins with its role"),
        ("user: What?\nchosen: This.", "one 'rejected: ...'"),
        ("chosen: This.\nrejected: That.", "a prompt"),
        ("user: What?\nchosen: This.\nchosen: These.\nrejected: That.", "one 'chosen: ...'"),
        ("user: What?\nchosen:\nrejected: That.", "empty"),
    ],
)
def test_what_is_no_pair_is_refused_and_said_in_the_tables_place(text, says):
    with pytest.raises(DataError, match=says):
        microscope.score_pair(text, POLICY, REFERENCE)
    assert 'role="alert"' in microscope.explore_microscope().set(text=text).html()


def test_two_models_that_read_other_tokens_are_not_compared(tmp_path):
    tokenizer = load_model(REFERENCE)[1]
    tokenizer.chat_template = tokenizer.chat_template.replace("helpful", "useful")
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ConfigError) as error:
        microscope.score_pair(PAIR, POLICY, str(tmp_path))
    assert (error.value.field, error.value.reason) == ("reference", "another tokenizer")


def test_messages_are_read_over_several_lines():
    text = "  System: Be brief.\nAnd kind.\n\nuser: a: b\nassistant:\nYes"
    wanted = [("system", "Be brief.\nAnd kind."), ("user", "a: b"), ("assistant", "Yes")]
    assert read_typed(text, ("system", "user", "assistant")) == wanted


TALK = "user: What colour is the fox?\nassistant: The fox is red."


def cut(**limits):
    limits = {"max_length": 512, "max_prompt_length": 512, "min_response_tokens": 1} | limits
    return inspector.cut_row(TALK, REFERENCE, "", **limits)


def test_the_answer_and_its_end_are_learned_and_nothing_of_the_prompt():
    row = cut()
    learned = [one for one, kind in zip(row.tokens, row.kinds) if kind == "learned"]
    assert "".join(learned) == "The·fox·is·red.<|im_end|>" and not any(row.cut)
    assert row.count("prompt", False) == 34 and "kept 1" in row.account and not row.refused


def test_a_prompt_is_cut_from_the_left_and_an_answer_from_the_right():
    row = cut(max_length=25, max_prompt_length=20)
    assert row.count("prompt", True) == 14 and row.cut[:14] == (True,) * 14
    assert row.count("learned", True) == 1 and row.cut[-1] and not row.cut[-2]
    assert "Shortened 1 row" in row.account


def test_a_refused_row_is_told_in_the_words_of_the_account():
    row = cut(max_length=34, min_response_tokens=4)
    assert row.refused and all(row.cut)
    assert "this conversation: the answer keeps 0 of its 6 tokens" in row.account
    assert "Raise max_length" in row.account
    shown = inspector.draw_inspector(TALK, REFERENCE, "", 34, 34, 4)
    assert 'role="alert"' in shown and html.escape("the answer keeps 0 of its 6") in shown


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"text": "user: What?"}, "last message is the user"),
        ({"text": "user: <|im_end|>\nassistant: Yes."}, "would be read as a boundary"),
        ({"template": "lama3"}, "Did you mean `llama3`"),
        ({"model": "data/tiny/nothing"}, "data/tiny/nothing"),
        ({"min_response_tokens": 64, "max_length": 8}, "more than max_length"),
    ],
)
def test_what_the_encoder_refuses_is_said(change, says):
    shown = html.unescape(inspector.explore_inspector().set(**change).html())
    assert 'role="alert"' in shown and says in shown


def test_another_template_leaves_the_models_own_alone():
    row = inspector.cut_row(TALK, REFERENCE, "chatml", max_length=512)
    assert (
        "".join(row.tokens[:9]).startswith("<|im_start|>user↵") and row.count("learned", False) == 6
    )
    assert cut().count("prompt", False) == 34


@pytest.mark.parametrize(
    "make", [microscope.explore_microscope, inspector.explore_inspector], ids=["pair", "talk"]
)
def test_every_control_moves_over_its_range_without_an_error_and_quickly(make):
    explorer = make()
    start = dict(explorer.state)
    for name, one in explorer.controls.items():
        ends = (one.low, one.high) if isinstance(one, Slider) else one.beforehand()
        for at in ends:
            assert explorer.set(**start | {name: at}).html()
    explorer.set(**start).html()
    begun = time.process_time()
    for _ in range(5):
        assert "alert" not in explorer.html()
    assert (time.process_time() - begun) / 5 < 0.5  # a fiftieth of a second on an idle core
    assert explorer.page().count("<select") >= 1


def test_shown_texts_are_escaped():
    text = "user: <i>?\nchosen: <b>\nrejected: &"
    assert "<b>" not in microscope.draw_microscope(text, POLICY, REFERENCE, 0.1)
    talk = "user: <i>?\nassistant: <b>"
    assert "<i>" not in inspector.draw_inspector(talk, REFERENCE, "", 64, 64, 1)
