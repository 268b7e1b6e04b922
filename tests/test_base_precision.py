"LoRA over weights that are held in bf16: half the memory, adapters and their training in float32."

import pytest
import torch
from transformers import AutoModelForCausalLM

from helpers.processes import encoded_rows
from prefkit.core import ConfigError, project_root
from prefkit.model.loading import load_model
from prefkit.train.loop import train_model
from prefkit.train.settings import TrainSettings

TINY = str(project_root() / "data" / "tiny" / "base")


def trained(folder, model, tokenizer, **changes):
    options = dict(batch_size=4, max_steps=3, learning_rate=1e-2, device="cpu", show_samples=0)
    settings = TrainSettings(**{**options, "lora": True, "lora_rank": 4, **changes})
    seen = {}

    def look(line):  # before the adapters are merged
        for name, weight in kept.named_parameters():
            seen[name] = (weight.dtype, weight.requires_grad)

    kept = model
    rows = encoded_rows(8, "pairs")
    result = train_model(
        model, tokenizer, "dpo", rows, rows[:4], folder, settings, callbacks=(look,)
    )
    return result, seen


@pytest.mark.parametrize("base", ["float32", "bf16"])
def test_the_base_is_held_as_asked_and_adapters_in_float32(tmp_path, base):
    model, tokenizer = load_model(TINY)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    result, seen = trained(tmp_path / base, model, tokenizer, base_precision=base)
    held = torch.bfloat16 if base == "bf16" else torch.float32
    assert {dtype for dtype, learns in seen.values() if not learns} == {held}
    assert {dtype for dtype, learns in seen.values() if learns} == {torch.float32}
    # what came in float32 is saved in float32, and has learned
    saved = AutoModelForCausalLM.from_pretrained(result.path, dtype="auto")
    assert {weight.dtype for weight in saved.parameters()} == {torch.float32}
    moved = [name for name, weight in saved.state_dict().items() if not weight.equal(before[name])]
    assert any("q_proj" in name for name in moved)


def test_files_in_bf16_give_a_checkpoint_in_bf16(tmp_path):
    model, tokenizer = load_model(TINY)
    model.bfloat16().save_pretrained(tmp_path / "half")
    tokenizer.save_pretrained(tmp_path / "half")
    model, tokenizer = load_model(str(tmp_path / "half"))  # read as float32
    result, _ = trained(tmp_path / "run", model, tokenizer, base_precision="bf16")
    saved = AutoModelForCausalLM.from_pretrained(result.path, dtype="auto")
    assert {weight.dtype for weight in saved.parameters()} == {torch.bfloat16}


def test_both_learn_nearly_the_same(tmp_path):
    losses = []
    for base in ("float32", "bf16"):
        model, tokenizer = load_model(TINY)
        result, _ = trained(tmp_path / base, model, tokenizer, base_precision=base)
        losses.append([line["loss"] for line in result.metrics])
    exact, rough = (torch.tensor(each) for each in losses)
    assert not exact.equal(rough) and torch.allclose(exact, rough, atol=0.05)
    assert abs(losses[1][0] - 0.6931) < 1e-3  # the reference is held as the policy is


def test_bf16_weights_that_would_have_to_move_are_refused():
    with pytest.raises(ConfigError) as error:
        TrainSettings(base_precision="bf16")
    assert (error.value.field, error.value.reason) == ("base_precision", "without lora")
