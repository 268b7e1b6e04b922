"""Weights: all of them, from the file, in the shape that is meant; for every loader of the kit."""

import json
import pickle
import shutil

import pytest
import torch
from helpers.architectures import TOKENIZER, build, saved
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from prefkit.core import ConfigError, DataError, project_root
from prefkit.judging.reward_model import filling_token, scalar_head, sequence_rewards
from prefkit.judging.rewards import reward_source
from prefkit.model.limits import filling_id, filling_of, vocabulary_of
from prefkit.model.loading import (
    describe_model,
    load_language_model,
    load_model,
    load_reward_model,
    model_fingerprint,
    said_of_weights,
)
from prefkit.model.sampling import generate, sample_ids
from prefkit.train.loop import train_model
from prefkit.train.rollout import sample_answers
from prefkit.train.settings import TrainSettings

CHATS = [[{"role": "user", "content": text}] for text in ("Where does the owl live?", "Count!")]
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    "A folder with a small model, its head a weight of its own."
    return saved(tmp_path_factory.mktemp("whole"), build("llama"))


@pytest.fixture(scope="module")
def reward_folder(tmp_path_factory, whole):
    folder = tmp_path_factory.mktemp("reward")
    return saved(folder, scalar_head(whole, seed=1))


def copy(folder, to):
    shutil.copytree(folder, to, dirs_exist_ok=True)
    return to


def rewrite(folder, change):
    "Other weights in a folder: `change` gets them by name and gives others."
    weights = change(load_file(folder / WEIGHTS))
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def prefixed(prefix):
    return lambda folder: rewrite(
        folder, lambda weights: {prefix + key: value for key, value in weights.items()}
    )


def without(*ends):
    def drop(weights):
        return {key: value for key, value in weights.items() if not key.endswith(ends)}

    return lambda folder: rewrite(folder, drop)


def with_more(name, make):
    return lambda folder: rewrite(folder, lambda weights: {**weights, name: make(weights)})


def edited(name, change):
    def write(folder):
        data = json.loads((folder / name).read_text())
        change(data)
        (folder / name).write_text(json.dumps(data))

    return write


def cut(folder):
    file = folder / WEIGHTS
    file.write_bytes(file.read_bytes()[:5000])


def in_shards(folder, lose=True):
    "Two shards and an index; one shard gone."
    weights = load_file(folder / WEIGHTS)
    names, files = sorted(weights), ("model-00001-of-00002.safetensors", "model-2.safetensors")
    parts = {files[0]: names[::2], files[1]: names[1::2]}
    for file, keys in parts.items():
        save_file({key: weights[key] for key in keys}, folder / file, metadata={"format": "pt"})
    places = {key: file for file, keys in parts.items() for key in keys}
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    (folder / WEIGHTS).unlink()
    if lose:
        (folder / files[1]).unlink()


def shard_without_a_weight(folder):
    "The index names it, the shard does not hold it."
    in_shards(folder, lose=False)
    file = folder / "model-2.safetensors"
    weights = load_file(file)
    weights.pop(sorted(weights)[0])
    save_file(weights, file, metadata={"format": "pt"})


def broken_pickle(folder):
    (folder / WEIGHTS).unlink()
    (folder / "pytorch_model.bin").write_bytes(b"PK\x03\x04 not a model")


def pickle_that_runs(folder):
    "A pickle of something else than tensors is not run."
    (folder / WEIGHTS).unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"run": print}))


def not_a_number(weights):
    weights["model.norm.weight"][3] = float("nan")
    return weights


def compressed(folder):
    "As DeepSeek-like folders come: small numbers, and scales beside them."
    change = {"model.norm.weight_scale_inv": torch.ones(1)}
    rewrite(folder, lambda weights: {**weights, **change})


FAULTS = {  # what is wrong -> how, reason of the error, what its text holds
    "compiled": (prefixed("_orig_mod."), "other weights", "save model._orig_mod"),
    "wrapped by peft": (prefixed("base_model.model."), "other weights", "merge_and_unload()"),
    "several processes": (prefixed("module."), "other weights", "save model.module"),
    "sharded": (prefixed("_fsdp_wrapped_module."), "other weights", "save the model inside it"),
    "an unknown wrapper": (
        prefixed("student."),
        "other weights",
        "begins with 'student.': save the model inside",
    ),
    "one tensor missing": (
        without("layers.1.mlp.up_proj.weight"),
        "other weights",
        "1 missing: model.layers.1.mlp.up_proj.weight",
    ),
    "head missing": (without("lm_head.weight"), "other weights", "1 missing: lm_head.weight"),
    "norm missing": (without("model.norm.weight"), "other weights", "model.norm.weight"),
    "one too many": (
        with_more("model.layers.0.self_attn.q_proj.bias", lambda weights: torch.zeros(32)),
        "other weights",
        "1 left over: model.layers.0.self_attn.q_proj.bias",
    ),
    "adapters inside": (
        with_more("model.layers.0.mlp.up_proj.lora_A.weight", lambda weights: torch.zeros(4, 32)),
        "other weights",
        "saved with adapters in it",
    ),
    "scales of small numbers": (compressed, "other weights", "weight_scale_inv"),
    "another shape": (
        edited("config.json", lambda config: config.update(intermediate_size=48)),
        "other weights",
        "6 of another shape: model.layers.0.mlp.down_proj.weight (32, 64) for (32, 48)",
    ),
    "another vocabulary": (
        edited("config.json", lambda config: config.update(vocab_size=900)),
        "other weights",
        "for (900, 32)",
    ),
    "more layers in the config": (
        edited("config.json", lambda config: config.update(num_hidden_layers=3)),
        "other weights",
        "model.layers.2.",
    ),
    "fewer layers in the config": (
        edited("config.json", lambda config: config.update(num_hidden_layers=1)),
        "other weights",
        "left over: model.layers.1.",
    ),
    "cut": (cut, "cannot be loaded", "cannot be loaded"),
    "a shard is gone": (in_shards, "cannot be loaded", "model-2.safetensors"),
    "a shard lacks a weight": (shard_without_a_weight, "other weights", "1 missing"),
    "a broken pickle": (broken_pickle, "cannot be loaded", "cannot be loaded"),
    "a pickle that runs something": (pickle_that_runs, "cannot be loaded", "cannot be loaded"),
    "not a number": (
        lambda folder: rewrite(folder, not_a_number),
        "not finite",
        "model.norm.weight",
    ),
    "an architecture that nobody knows": (
        edited("config.json", lambda config: config.update(model_type="nobody")),
        "cannot be loaded",
        "nobody",
    ),
}
LOADERS = {"language model": load_model, "start of a reward model": scalar_head}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("loader", LOADERS)
def test_weights_that_are_not_whole_are_refused_with_their_names(fault, loader, whole, tmp_path):
    break_it, reason, says = FAULTS[fault]
    folder = copy(whole, tmp_path / "model")
    break_it(folder)
    if loader != "language model" and fault == "head missing":
        assert scalar_head(str(folder)).score.weight.shape == (1, 32)  # its head is not asked for
        return
    with pytest.raises(ConfigError) as error:
        LOADERS[loader](str(folder))
    assert (error.value.field, error.value.reason) == ("model", reason)
    assert says.lower() in str(error.value).lower() and str(folder) in str(error.value)


REWARD_FAULTS = {
    "head missing": (without("score.weight"), "other weights", "1 missing: score.weight"),
    "compiled": (prefixed("_orig_mod."), "other weights", "save model._orig_mod"),
    "two numbers": (
        lambda folder: rewrite(folder, lambda w: {**w, "score.weight": torch.zeros(2, 32)}),
        "other weights",
        "score.weight (2, 32) for (1, 32)",
    ),
    "a weight missing": (without("model.norm.weight"), "other weights", "model.norm.weight"),
}


@pytest.mark.parametrize("fault", REWARD_FAULTS)
def test_a_reward_model_that_is_not_whole_is_never_given_a_new_head(fault, reward_folder, tmp_path):
    "By name as a reward, as a start, and as it is read back by the pipeline."
    break_it, reason, says = REWARD_FAULTS[fault]
    folder = str(copy(reward_folder, tmp_path / "model"))
    break_it(tmp_path / "model")
    for load in (
        load_reward_model,
        scalar_head,
        lambda name: reward_source("model", model_name_or_path=name),
    ):
        with pytest.raises(ConfigError) as error:
            load(folder)
        assert error.value.reason == reason and says in str(error.value)


def test_a_new_head_is_made_where_it_is_meant_and_only_there(whole, reward_folder):
    assert load_reward_model(whole, new_head=True)[1] == ["score.weight"]
    assert load_reward_model(reward_folder, new_head=True)[1] == []
    assert load_reward_model(reward_folder)[1] == []
    with pytest.raises(ConfigError, match="missing: score.weight"):
        load_reward_model(whole)
    with pytest.raises(ConfigError, match="left over: score.weight"):
        load_model(reward_folder)
    assert scalar_head(whole, layers=1).config.num_hidden_layers == 1


def test_a_checkpoint_of_a_finished_run_is_read_back_whole_or_made_again(tmp_path, whole, capsys):
    rows = [{"prompt_ids": [5, 6], "response_ids": [7, 8, 2]}] * 2
    settings = TrainSettings(max_steps=1, batch_size=2, device="cpu", show_samples=0)

    def train():
        return train_model(build("llama"), TOKENIZER, "sft", rows, None, tmp_path / "r", settings)

    wanted = model_fingerprint(train().model)
    assert model_fingerprint(train().model) == wanted and "damaged" not in capsys.readouterr().out
    without("model.norm.weight")(tmp_path / "r" / "checkpoint")
    assert model_fingerprint(train().model) == wanted
    assert "checkpoint/model.safetensors is damaged" in capsys.readouterr().out


def test_whole_models_are_loaded_as_they_are_tied_or_in_shards_or_as_pickles(whole, tmp_path):
    wanted = model_fingerprint(AutoModelForCausalLM.from_pretrained(whole))
    assert model_fingerprint(load_model(whole)[0]) == wanted
    shards = copy(whole, tmp_path / "shards")
    in_shards(shards, lose=False)
    old = copy(whole, tmp_path / "old")
    torch.save(load_file(old / WEIGHTS), old / "pytorch_model.bin")
    (old / WEIGHTS).unlink()
    for folder in (shards, old):
        assert model_fingerprint(load_model(str(folder))[0]) == wanted
    tied = saved(tmp_path / "tied", build("llama", tie_word_embeddings=True))
    assert "lm_head.weight" not in load_file(tmp_path / "tied" / WEIGHTS)
    model = load_model(tied)[0]
    assert model.lm_head.weight is model.model.embed_tokens.weight
    half = saved(tmp_path / "half", build("llama").bfloat16())
    loaded = load_model(half)[0]
    assert {weight.dtype for weight in loaded.parameters()} == {torch.float32}


def test_weights_that_float32_cannot_hold_are_said_to_be_rounded(tmp_path, capsys):
    folder = str(saved(tmp_path / "double", build("llama").double()))
    model = load_language_model(folder)
    said = "weights were rounded from float64 to float32"
    assert model.dtype == torch.float32 and capsys.readouterr().out == f"{folder}: its {said}\n"
    assert said_of_weights(folder) == describe_model(model, folder)["weights"] == said
    half = str(saved(tmp_path / "half", build("llama").half()))  # float32 holds them exactly
    assert load_language_model(half).dtype == torch.float32
    assert capsys.readouterr().out == said_of_weights(half) == ""


def test_a_head_that_is_tied_by_the_config_and_another_in_the_file_is_said(whole, tmp_path, capsys):
    folder = copy(whole, tmp_path / "model")
    edited("config.json", lambda config: config.update(tie_word_embeddings=True))(folder)
    model = load_model(str(folder))[0]
    assert "file holds two different weights" in capsys.readouterr().out
    assert_close(model.lm_head.weight.data, load_file(folder / WEIGHTS)["lm_head.weight"])


# ---- adapters


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, whole):
    "A folder of adapters that change something, and the weights that they lead to."
    folder = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(1)
    config = LoraConfig(r=4, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(load_language_model(whole), config)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.normal_()
    saved(folder, model)
    return folder, model_fingerprint(model.merge_and_unload())


def test_adapters_are_merged_into_their_base(adapter, whole):
    folder, wanted = adapter
    model = load_model(str(folder))[0]
    assert model_fingerprint(model) == wanted != model_fingerprint(load_model(whole)[0])
    assert not hasattr(model, "peft_config")  # so that it can be trained


def adapter_weights(change):
    def write(folder):
        file = folder / "adapter_model.safetensors"
        save_file(change(load_file(file)), file, metadata={"format": "pt"})

    return write


def configured(**values):
    return edited("adapter_config.json", lambda config: config.update(values))


ADAPTER_FAULTS = {
    "a layer that is not there": (
        configured(target_modules=["nowhere_proj"]),
        "cannot be loaded",
        "nowhere_proj",
    ),
    "one weight missing": (
        adapter_weights(lambda weights: dict(sorted(weights.items())[1:])),
        "other weights",
        "1 missing: base_model.model.model.layers.0",
    ),
    "of other layers": (configured(target_modules=["q_proj"]), "other weights", "left over"),
    "another rank": (configured(r=8), "other weights", "of another shape"),
    "no base": (configured(base_model_name_or_path=None), "no base", "names no base model"),
    "a base that is not there": (
        configured(base_model_name_or_path="nowhere/at/all"),
        "cannot be loaded",
        "nowhere/at/all",
    ),
    "cut": (
        lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"cut"),
        "cannot be loaded",
        "cannot be loaded",
    ),
}


@pytest.mark.parametrize("fault", ADAPTER_FAULTS)
def test_adapters_that_do_not_fit_their_base_are_refused(fault, adapter, tmp_path):
    break_it, reason, says = ADAPTER_FAULTS[fault]
    folder = copy(adapter[0], tmp_path / "adapter")
    break_it(folder)
    with pytest.raises(ConfigError) as error:
        load_model(str(folder))
    assert error.value.reason == reason and says in str(error.value)


def test_a_base_that_is_not_whole_is_named_with_the_adapters(adapter, whole, tmp_path):
    base = copy(whole, tmp_path / "base")
    without("model.norm.weight")(base)
    folder = copy(adapter[0], tmp_path / "adapter")
    configured(base_model_name_or_path=str(base))(folder)
    with pytest.raises(ConfigError, match="the base of the adapters .*1 missing: model.norm"):
        load_model(str(folder))


def test_adapters_are_no_reward_model(adapter):
    with pytest.raises(ConfigError, match="merge them into their base") as error:
        scalar_head(str(adapter[0]))
    assert error.value.reason == "adapters"


# ---- tokens


def other_tokenizer(folder, change):
    tokenizer = type(TOKENIZER).from_pretrained(project_root() / "data/tiny/base")
    change(tokenizer)
    tokenizer.save_pretrained(folder)
    return type(TOKENIZER).from_pretrained(folder)


def no_pad(tokenizer):
    tokenizer.pad_token = None


def new_pad(tokenizer):  # behind the model's last row
    tokenizer.add_special_tokens({"pad_token": "<|pad|>"})


def pad_ends(tokenizer):
    tokenizer.pad_token = tokenizer.eos_token


PADS = {"none": no_pad, "beyond the model": new_pad, "the end": pad_ends}


@pytest.mark.parametrize("pad", PADS)
def test_a_padding_token_that_cannot_be_had_is_replaced_everywhere(pad, whole, tmp_path):
    tokenizer = other_tokenizer(tmp_path / "t", PADS[pad])
    model = load_model(whole)[0]
    rows, end = len(TOKENIZER), TOKENIZER.eos_token_id
    assert filling_of(model, tokenizer) < rows
    assert filling_token(tokenizer, rows) not in (end, None)
    wanted = generate(model, TOKENIZER, CHATS, max_new_tokens=8)
    assert generate(model, tokenizer, CHATS, max_new_tokens=8) == wanted
    ids = [[5, 6, 7], [8]]
    plain = sample_answers(model, TOKENIZER, ids, max_new_tokens=8)
    made = sample_answers(model, tokenizer, ids, max_new_tokens=8)
    assert [[x.ids for x in group] for group in made] == [[x.ids for x in g] for g in plain]
    data = [{"prompt_ids": [5, 6], "chosen_ids": [7, 8, end], "rejected_ids": [9, end]}] * 2
    settings = TrainSettings(max_steps=1, batch_size=2, device="cpu", show_samples=0)
    losses = [
        train_model(build("llama"), one, "dpo", data, None, tmp_path / name, settings).metrics
        for name, one in (("own", TOKENIZER), ("other", tokenizer))
    ]
    assert losses[0][0]["loss"] == losses[1][0]["loss"]


@pytest.mark.parametrize("pad", PADS)
def test_a_reward_model_gives_the_same_scores_whatever_the_padding_token(pad, whole, tmp_path):
    folder = copy(whole, tmp_path / "model")
    tokenizer = other_tokenizer(folder, PADS[pad])
    sequences, end = [[5, 6, 2], [5, 6, 7, 8, 2], [9, 2]], TOKENIZER.eos_token_id
    model = scalar_head(str(folder), seed=3)
    assert model.config.pad_token_id < len(TOKENIZER) and model.config.pad_token_id != end
    wanted = sequence_rewards(scalar_head(whole, seed=3), sequences)
    assert sequence_rewards(model, sequences) == pytest.approx(wanted, abs=1e-6)
    assert filling_id(tokenizer, len(TOKENIZER), never=(end,)) == model.config.pad_token_id
    if pad != "the end":  # that one is refused: it is there, and ends answers
        data = [{"prompt_ids": [5, 6], "chosen_ids": [7, 8, end], "rejected_ids": [9, end]}] * 2
        settings = TrainSettings(max_steps=1, batch_size=2, device="cpu", show_samples=0)
        given = (data, None, tmp_path / "run", settings)
        assert train_model(model, tokenizer, "reward_model", *given).steps == 1


def test_a_token_without_a_row_is_named_where_it_would_be_read(whole, tmp_path):
    tokenizer = other_tokenizer(
        tmp_path, lambda t: t.add_special_tokens({"additional_special_tokens": ["<|far|>"]})
    )
    model, far = load_model(whole)[0], len(TOKENIZER)
    chat = [[{"role": "user", "content": "hello"}]]
    tokenizer.chat_template = (
        "{% for turn in messages %}<|far|>{{ turn['content'] }}<|im_end|>{% endfor %}"
    )
    for ask in (
        lambda: generate(model, tokenizer, chat, max_new_tokens=2),
        lambda: sample_answers(model, tokenizer, [[5, far]], max_new_tokens=2),
        lambda: train_model(
            model,
            tokenizer,
            "sft",
            [{"prompt_ids": [5], "response_ids": [far, 2]}],
            None,
            tmp_path / "run",
            TrainSettings(max_steps=1, batch_size=1, device="cpu"),
        ),
    ):
        with pytest.raises(DataError, match=r"<\|far\|>") as error:
            ask()
        assert (error.value.field, error.value.reason) == ("tokenizer", "token without a row")
    with pytest.raises(DataError, match=f"sequence 0: token {far} has no row"):
        sequence_rewards(scalar_head(whole), [[5, far]])


def test_rows_beyond_the_tokenizer_are_never_sampled(whole):
    "Padded vocabularies: the rows are there, and here they are the likeliest of all."
    model, tokens = load_model(whole)[0], len(TOKENIZER)
    model.resize_token_embeddings(tokens + 49, mean_resizing=False)
    with torch.no_grad():
        model.lm_head.weight[:tokens] *= 0.1
        model.lm_head.weight[tokens:] *= 10
    assert vocabulary_of(TOKENIZER, tokens + 49) == tokens
    assert vocabulary_of(TOKENIZER, tokens) is None
    ids = [[5, 6, 7], [8]]
    ask = {"stop_ids": [2], "pad_token_id": 0, "max_new_tokens": 12, "temperature": 1.0}
    free = [token for answer, _ in sample_ids(model, ids, **ask) for token in answer]
    assert max(free) >= tokens  # it can happen
    held = [t for answer, _ in sample_ids(model, ids, vocabulary=tokens, **ask) for t in answer]
    assert max(held) < tokens
    for heat in (0.0, 1.0):
        samples = sample_answers(model, TOKENIZER, ids, temperatures=heat, max_new_tokens=12)
        drawn = [sample for group in samples for sample in group]
        assert max(token for sample in drawn for token in sample.ids) < tokens
        if heat:  # what was drawn from is no longer the whole of the model
            assert all(a > b for s in drawn for a, b in zip(s.logps, s.model_logps))
    # with all rows named as tokens nothing changes
    every = sample_ids(model, ids, vocabulary=tokens + 49, **ask)
    assert every == sample_ids(model, ids, **ask)


def test_anybody_can_read_what_is_written(reward_folder):
    found = AutoModelForSequenceClassification.from_pretrained(
        reward_folder, output_loading_info=True
    )[1]
    assert not any(found.values())
