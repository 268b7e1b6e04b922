"""Small imitations of other people's rows and models that once went wrong without a word, one line
each: what has to come of it. More members of every kind are in the tests of the kind.
"""

import json
import math
import shutil

import pytest
import torch
from helpers.encoded import encoded_rows
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    FalconConfig,
    GPT2Config,
    Lfm2Config,
)

from prefkit.core import ConfigError, DataError, PrefkitError, project_root, read_jsonl
from prefkit.data.records import encode_records, load_records
from prefkit.model.limits import filling_of
from prefkit.model.loading import load_model
from prefkit.model.sampling import generate
from prefkit.train import train_model
from prefkit.train.settings import TrainSettings

INSTRUCT = project_root() / "data/tiny/instruct"
THOUGHT = "{%- set content = message['content'].split('</think>')[-1] %}"
TURN = "{{- '<|im_start|>' + message['role'] + '\n' + content + '<|im_end|>\n' }}{%- endfor %}"
GENERATION = "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
CUTS_THOUGHTS = "{%- for message in messages %}" + THOUGHT + TURN + GENERATION


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


CALL = {"type": "function", "function": {"name": "w", "arguments": {"c": "x"}}}
LONG = [user("a"), assistant("b1"), user("c")]
# name -> kind, row, and what its prompt and answers hold, or the reason for which it is refused
ROWS = {
    "history_col": (
        "sft",
        {"prompt": "And now?", "completion": "three", "history": [["one?", "1"], ["two?", "2"]]},
        (("one?", "1", "two?", "2", "And now?"), ("three",)),
    ),
    "system_column": (
        "pairs",
        {"system": "Be a pirate.", "prompt": "Where?", "chosen": "Arr.", "rejected": "There."},
        (("Be a pirate.", "Where?"), ("Arr.",), ("There.",)),
    ),
    "system_sharegpt": (
        "pairs",
        {
            "system": "Speak in verse.",
            "tools": "[]",
            "conversations": [{"from": "human", "value": "Name a fruit."}],
            "chosen": {"from": "gpt", "value": "Plum"},
            "rejected": {"from": "gpt", "value": "Rock"},
        },
        (("Speak in verse.", "Name a fruit."), ("Plum",), ("Rock",)),
    ),
    "images": (
        "pairs",
        {"prompt": "<image>What?", "chosen": "cat", "rejected": "dog", "images": ["a.png"]},
        "images",
    ),
    "json_strings": (
        "pairs",
        {
            name: json.dumps([{"role": role, "content": text}])
            for name, role, text in (
                ("prompt", "user", "Name a colour."),
                ("chosen", "assistant", "Red."),
                ("rejected", "assistant", "Dog."),
            )
        },
        (("user\nName a colour.",), ("Red.",), ("Dog.",)),
    ),
    "json_strings_messages": (
        "sft",
        {"messages": json.dumps([user("Name a colour."), assistant("Red.")])},
        (("user\nName a colour.",), ("Red.",)),
    ),
    "midturn": (
        "pairs",
        {
            "chosen": [*LONG, assistant("d0")],
            "rejected": [user("a"), assistant("b2"), user("c"), assistant("e0")],
        },
        (("a",), ("b1", "c", "d0"), ("b2", "c", "e0")),
    ),
    "prefill": (
        "pairs",
        {
            "prompt": [user("a"), assistant("Sure:")],
            "chosen": [assistant("yes")],
            "rejected": [assistant("no")],
        },
        (("a", "Sure:"), ("yes",), ("no",)),
    ),
    "tool_null": (
        "sft",
        {"messages": [{**user("q"), "tool_calls": None}, assistant("fine", tool_calls=None)]},
        (("q",), ("fine",)),
    ),
    "weight_zero": (
        "sft",
        {"messages": [user("q"), assistant("bad", weight=0)]},
        "not to be learned",
    ),
    "weight_zero_train": (
        "sft",
        {
            "conversations": [
                {"from": "human", "value": "q"},
                {"from": "gpt", "value": "bad", "train": False},
            ]
        },
        "not to be learned",
    ),
    "wrong_role": (
        "pairs",
        {"prompt": [user("a")], "chosen": [assistant("yes")], "rejected": [user("no")]},
        "the last message is the user's",
    ),
    "tool_calls": (
        "sft",
        {
            "messages": [
                user("weather?"),
                assistant("", tool_calls=[CALL]),
                {"role": "tool", "content": "sun"},
                assistant("It is sunny."),
            ]
        },
        "tool",
    ),
    "empty_struct": ("sft", {"prompt": "q", "completion": "a", "x": {}}, (("q",), ("a",))),
    "surrogate": ("sft", {"prompt": "q", "completion": "a", "x": "cut \ud83d"}, (("q",), ("a",))),
    "mixed_types": ("prompts", {"prompt": "q", "answer": 1}, (("q",),)),
    "plain": ("sft", {"prompt": "q", "completion": "It is 2."}, (("q",), ("It is 2.",))),
}


def read(folder, kind, row, tokenizer):
    "Prompt and answers of a row, as texts."
    file = folder / "rows.jsonl"
    file.write_text(json.dumps(row) + "\n")
    records = load_records(file, kind=kind, on_bad_rows="error")
    [found], _ = encode_records(records, tokenizer, kind=kind, on_bad_rows="error")
    names = [name for name in ("response", "chosen", "rejected") if name in found.answers]
    parts = [found.prompt_ids, *(found.answers[name] for name in names)]
    return [tokenizer.decode(part) for part in parts]


@pytest.mark.parametrize("name", ROWS)
def test_a_row_is_used_or_refused_with_the_reason(tmp_path, name):
    kind, row, wanted = ROWS[name]
    tokenizer = AutoTokenizer.from_pretrained(INSTRUCT)
    if isinstance(wanted, str):
        with pytest.raises(DataError, match=f"(?i){wanted}"):
            read(tmp_path, kind, row, tokenizer)
        return
    found = read(tmp_path, kind, row, tokenizer)
    assert len(found) == len(wanted)
    for text, parts in zip(found, wanted):
        assert all(part in text for part in parts), text


def renamed(folder):
    "The same weights under other names of the turn's end, and another end of sequence."
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        text = (folder / name).read_text()
        for old, new in (("<|im_end|>", "<turn_end>"), ("<|im_start|>", "<turn_start>")):
            text = text.replace(old, new)
        (folder / name).write_text(text.replace("<|endoftext|>", "<eos>"))
    change(folder, "tokenizer_config.json", eos_token="<eos>", pad_token="<eos>")
    change(folder, "config.json", eos_token_id=0)
    change(folder, "generation_config.json", eos_token_id=[0, 2])


def change(folder, file, **values):
    told = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**told, **values}))


def prefixed(prefix):
    def write(folder):
        file = folder / "model.safetensors"
        weights = {prefix + name: weight for name, weight in load_file(file).items()}
        save_file(weights, file, metadata={"format": "pt"})

    return write


def without_padding(folder):
    change(folder, "tokenizer_config.json", pad_token=None)


def one_token_more(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    tokenizer.save_pretrained(folder)


def several_templates(folder):
    text = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    named = [{"name": name, "template": text} for name in ("tool_use", "rag")]
    change(folder, "tokenizer_config.json", chat_template=named)


# name -> what is done to the instruct model; None: it answers as before, else why it is refused
MODELS = {
    "gemma_stop": (renamed, None),
    "nopad": (without_padding, None),
    "morepad": (one_token_more, None),
    "origmod": (prefixed("_orig_mod."), "compiled model"),
    "peftprefix": (prefixed("base_model."), "wrapped by PEFT"),
    "manytemplates": (several_templates, "several chat templates"),
}


def answers(folder):
    model, tokenizer = load_model(str(folder))
    filling_of(model, tokenizer)
    chats = [[user("What colour is the fox?")], [user("How much is 7 plus 5?")]]
    found = generate(model, tokenizer, chats, temperature=0.0, max_new_tokens=24)
    return [(one["text"], one["ended"]) for one in found]


@pytest.mark.parametrize("name", MODELS)
def test_a_model_answers_as_it_did_or_is_refused_with_the_reason(tmp_path, name):
    spoil, says = MODELS[name]
    shutil.copytree(INSTRUCT, tmp_path / "model")
    spoil(tmp_path / "model")
    if says:
        with pytest.raises(ConfigError, match=says):
            answers(tmp_path / "model")
    else:
        assert answers(tmp_path / "model") == answers(INSTRUCT)


SMALL = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, vocab_size=1007)
CONFIGS = {
    "dropout": GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=1007),  # 0.1 of everything
    "falcon": FalconConfig(alibi=False, **SMALL),
    "hybrid": Lfm2Config(
        num_key_value_heads=1,
        intermediate_size=64,
        layer_types=["conv", "full_attention"],
        **SMALL,
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_dpo_begins_at_ln_2_whatever_the_architecture(tmp_path, name):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name])
    settings = TrainSettings(max_steps=1, batch_size=4, logging_steps=1, show_samples=0)
    tokenizer = AutoTokenizer.from_pretrained(INSTRUCT)
    train_model(model, tokenizer, "dpo", encoded_rows(4, "pairs"), None, tmp_path, settings)
    [line] = read_jsonl(tmp_path / "metrics.jsonl")
    assert line["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert abs(line["logratio_chosen"]) < 1e-5


@pytest.mark.parametrize("kind", ["sft", "pairs"])
def test_an_answer_that_its_template_cuts_is_a_bad_row(tmp_path, kind):
    tokenizer = AutoTokenizer.from_pretrained(INSTRUCT)
    tokenizer.chat_template = CUTS_THOUGHTS
    thought = "<think>two and two</think>4"
    said = {"sft": {"completion": thought}, "pairs": {"chosen": thought, "rejected": thought + "!"}}
    row = {"prompt": "q", **said[kind]}
    with pytest.raises(PrefkitError, match="template"):
        read(tmp_path, kind, row, tokenizer)
