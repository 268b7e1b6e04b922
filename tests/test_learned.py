"""Tokens that are read and not learned: every layout gives what labels of -100 give."""

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from prefkit.core import DataError
from prefkit.data.chat import pad_batch
from prefkit.losses import dpo_loss, kto_loss, orpo_loss, simpo_loss
from prefkit.model.batches import LAYOUTS, batch_logps, collate
from prefkit.model.kernels import use_rows
from prefkit.model.logps import response_lengths, sequence_logps
from prefkit.stats.text_metrics import perplexity
from prefkit.train.loop import check_encoded

PAD, YES, NO = 2, True, False
KL = torch.tensor(0.3)
ROWS = [
    {
        "prompt_ids": [5, 6, 7],
        "chosen_ids": [11, 12, 13, 14, 2],
        "chosen_learned": [NO, YES, YES, NO, YES],
        "rejected_ids": [15, 16, 2],
    },
    {
        "prompt_ids": [8, 9, 10, 21, 22],
        "chosen_ids": [31, 2],
        "chosen_learned": [YES, YES],
        "rejected_ids": [32, 33, 34, 2],
        "rejected_learned": [NO, NO, YES, NO],
    },
]
ANSWERS = ("chosen", "rejected")


@pytest.fixture
def model():
    torch.manual_seed(1)
    config = Qwen2Config(
        vocab_size=41,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return Qwen2ForCausalLM(config)


def by_labels(model, row, answer):
    "An answer's log-prob and length from labels, one forward pass by itself."
    ids, learned = row[f"{answer}_ids"], row.get(f"{answer}_learned")
    batch = pad_batch([row["prompt_ids"]], [ids], PAD, learned and [learned])
    logits = model(batch["input_ids"]).logits
    return sequence_logps(logits, batch["labels"])[0], response_lengths(batch["labels"])[0]


def gradient(model, loss):
    model.zero_grad()
    loss.backward()
    return torch.cat([weight.grad.flatten() for weight in model.parameters()])


LOSSES = {
    "sft": lambda logps, lengths: -logps[0] / lengths[0],
    "dpo": lambda logps, lengths: dpo_loss(*logps, *logps.detach()),
    "simpo": lambda logps, lengths: simpo_loss(*logps, *lengths),
    "orpo": lambda logps, lengths: orpo_loss(*logps, *lengths),
    "kto": lambda logps, lengths: kto_loss(
        logps.flatten(), logps.detach().flatten() + 0.5, torch.tensor([YES, YES, NO, NO]), KL
    ),
}


def test_labels_are_minus_100_where_a_token_is_not_learned():
    row = ROWS[0]
    batch = pad_batch([row["prompt_ids"]], [row["chosen_ids"]], PAD, [row["chosen_learned"]])
    assert batch["labels"].tolist() == [[-100, -100, -100, -100, 12, 13, -100, 2]]
    assert batch["attention_mask"].all()  # it is read


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("loss", LOSSES)
def test_what_is_not_learned_is_read_and_adds_nothing(model, layout, loss):
    found = [by_labels(model, row, answer) for answer in ANSWERS for row in ROWS]
    logps = torch.stack([value for value, _ in found]).view(2, 2)
    lengths = torch.stack([length for _, length in found]).view(2, 2)
    expected = gradient(model, LOSSES[loss](logps, lengths).sum())

    if layout == "packed":
        assert use_rows(model)
    batch = collate(ROWS, ANSWERS, PAD, layout)
    made = batch_logps(model, batch).view(2, 2)
    assert batch.lengths.view(2, 2).tolist() == [[3, 2], [3, 1]] == lengths.tolist()
    assert torch.allclose(made, logps, atol=1e-5)
    got = gradient(model, LOSSES[loss](made, batch.lengths.view(2, 2)).sum())
    assert torch.allclose(got, expected, atol=1e-5)
    assert expected.abs().max() > 1e-3


def test_perplexity_counts_the_learned_tokens_only(model):
    found = [by_labels(model, row, "chosen") for row in ROWS]
    mean = sum(value for value, _ in found) / sum(length for _, length in found)
    made = perplexity(model, ROWS, PAD, answer="chosen")
    assert made.perplexity == pytest.approx((-mean).exp().item(), rel=1e-5)


@pytest.mark.parametrize(
    ("marks", "reason"), [([NO] * 5, "nothing to learn"), ([YES] * 4, "not one mark a token")]
)
def test_a_row_with_nothing_to_learn_is_refused_before_training(marks, reason):
    with pytest.raises(DataError) as caught:
        check_encoded([ROWS[1], {**ROWS[0], "chosen_learned": marks}], "pairs", "train_rows")
    assert (caught.value.field, caught.value.reason) == ("chosen_learned", reason)
    assert "train_rows, row 1" in str(caught.value)
