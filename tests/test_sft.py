"""The SFT loss: negative log-likelihood, summed or per token."""

import pytest
import torch
import torch.nn.functional as F

from prefkit.losses import sft_loss
from prefkit.model.logps import response_lengths, sequence_logps


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(4, 10, 7, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 7, (4, 10), generator=generator)
    for row, n in enumerate((2, 5, 1, 8)):
        labels[row, : 10 - n] = -100
    return logits, labels


def test_total_over_all_tokens_is_torch_cross_entropy():
    logits, labels = batch()
    ours = sft_loss(sequence_logps(logits, labels)).sum() / response_lengths(labels).sum()
    theirs = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)


def test_with_lengths_it_is_cross_entropy_of_each_row():
    logits, labels = batch(1)
    ours = sft_loss(sequence_logps(logits, labels), lengths=response_lengths(labels))
    theirs = torch.stack(
        [F.cross_entropy(row[:-1], row_labels[1:]) for row, row_labels in zip(logits, labels)]
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)


def test_equals_the_loss_of_a_transformers_model_and_its_gradient():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.Qwen2Config(
        vocab_size=7,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    model, (_, labels) = transformers.Qwen2ForCausalLM(config), batch(2)
    output = model(labels.clamp(min=0), labels=labels)
    ours = sft_loss(sequence_logps(output.logits, labels)).sum() / response_lengths(labels).sum()
    torch.testing.assert_close(ours, output.loss)
    parameters = list(model.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(ours, parameters, retain_graph=True),
        torch.autograd.grad(output.loss, parameters),
    )


def test_gradient_passes_gradcheck():
    logps = (-50 * torch.rand(5, dtype=torch.float64)).requires_grad_()
    lengths = torch.tensor([1, 2, 30, 4, 5])
    assert torch.autograd.gradcheck(sft_loss, logps)
    assert torch.autograd.gradcheck(lambda x: sft_loss(x, lengths=lengths), logps)
