"""Chat templates of other people's models: where an answer ends, what is learned of it, where
generation stops; what a template does to an answer; templates that are given.
"""

import json
from importlib.resources import files

import pytest
import torch
from transformers import AutoTokenizer, Qwen2ForCausalLM
from trl import get_training_chat_template

from helpers.templates import FAMILIES, FOLDER, generation_config, imitation, own_tokenizer
from prefkit.core import ConfigError, DataError, fingerprint_files, project_root, recorded_inputs
from prefkit.data.chat import (
    RESPACED,
    TRIMMED,
    check_template,
    encode_response,
    render,
    render_response,
    shipped_templates,
    turn_of,
    use_template,
)
from prefkit.data.records import encode_records
from prefkit.data.world import tiny_config
from prefkit.model.loading import check_model, load_model
from prefkit.model.sampling import encode_prompts, generate, stop_tokens
from prefkit.runs.pipelines import LABELS, label_tokens
from prefkit.train.rollout import sample_answers

torch.set_num_threads(1)
QUESTION, SAID = "What colour is the fox?", "The fox is red."


def user(text=QUESTION):
    return {"role": "user", "content": text}


def assistant(text=SAID):
    return {"role": "assistant", "content": text}


SYSTEM = {"role": "system", "content": "Be brief."}
LAYOUTS = {
    "one turn": [user()],
    "with a system turn": [SYSTEM, user()],
    "two turns": [user("Hi."), assistant("Hello!"), user()],
}

# Written down by hand: the prompt of one turn, what is learned, where generation stops.
QWEN = "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant."
SMOL = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
CHATML = f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
GEMMA = f"<bos><start_of_turn>user\n{QUESTION}<end_of_turn>\n<start_of_turn>model\n"
LLAMA = (
    f"<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n{QUESTION}<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)
EXPECTED = {
    "qwen2.5": (
        f"{QWEN}<|im_end|>\n{CHATML}",
        f"{SAID}<|im_end|>",
        {"<|im_end|>", "<|endoftext|>"},
    ),
    "qwen3": (
        CHATML,
        f"<think>\n\n</think>\n\n{SAID}<|im_end|>",
        {"<|im_end|>", "<|endoftext|>"},
    ),
    "llama3": (LLAMA, f"{SAID}<|eot_id|>", {"<|eot_id|>", "<|eom_id|>", "<|end_of_text|>"}),
    "gemma2": (GEMMA, f"{SAID}<end_of_turn>", {"<end_of_turn>", "<eos>"}),
    "gemma3": (GEMMA, f"{SAID}<end_of_turn>", {"<end_of_turn>", "<eos>"}),
    "mistral": (f"<s>[INST] {QUESTION}[/INST]", f" {SAID}</s>", {"</s>"}),
    "phi3": (
        f"<|user|>\n{QUESTION}<|end|>\n<|assistant|>\n",
        f"{SAID}<|end|>",
        {"<|end|>", "<|assistant|>", "<|endoftext|>"},
    ),
    "olmo2": (
        f"<|endoftext|><|user|>\n{QUESTION}\n<|assistant|>\n",
        f"{SAID}<|endoftext|>",
        {"<|endoftext|>"},
    ),
    "deepseek": (
        f"<｜begin▁of▁sentence｜>User: {QUESTION}\n\nAssistant:",
        f" {SAID}<｜end▁of▁sentence｜>",
        {"<｜end▁of▁sentence｜>"},
    ),
    "smollm2": (f"{SMOL}<|im_end|>\n{CHATML}", f"{SAID}<|im_end|>", {"<|im_end|>"}),
    "zephyr": (f"<|user|>\n{QUESTION}</s>\n<|assistant|>\n", f"{SAID}</s>", {"</s>"}),
    # it has no end of its own: the tokenizer's end of sequence is put there
    "alpaca": (f"### Instruction:\n{QUESTION}\n\n### Response:\n", f"{SAID}</s>", {"</s>"}),
}
REFUSED = {
    ("gemma2", "with a system turn"): "refused by the chat template",
    # it says the system message in front of the last turn only if that is a question
    ("mistral", "with a system turn"): "prompt is not a prefix",
    **{("deepseek-r1", layout): "prompt is not a prefix" for layout in LAYOUTS},
}


def test_every_family_that_is_written_down_is_looked_at():
    assert (
        {*EXPECTED, "deepseek-r1"} == {*FAMILIES} == {file.stem for file in FOLDER.glob("*.jinja")}
    )


@pytest.mark.parametrize("family", EXPECTED)
def test_target_and_stops_of_a_family(family):
    tokenizer, (prompt, response, stops) = imitation(family), EXPECTED[family]
    prompt_ids, response_ids = encode_response(tokenizer, [user()], [assistant()])
    assert tokenizer.decode(prompt_ids) == prompt
    assert tokenizer.decode(response_ids) == response
    model = generation_config(tokenizer, family)
    assert {*tokenizer.convert_ids_to_tokens(stop_tokens(tokenizer, model))} == stops
    turn = turn_of(tokenizer)
    assert turn.end == response_ids[-1] and turn.appended == (family == "alpaca")
    assert prompt.endswith(turn.opening)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_target_is_the_same_in_every_layout_or_the_row_is_refused(family, layout):
    tokenizer, prompt = imitation(family), LAYOUTS[layout]
    if reason := REFUSED.get((family, layout)):
        with pytest.raises(DataError) as caught:
            encode_response(tokenizer, prompt, [assistant()])
        assert caught.value.reason == reason and "chat template" in str(caught.value)
        return
    prompt_ids, response_ids = encode_response(tokenizer, prompt, [assistant()])
    assert tokenizer.decode(response_ids) == EXPECTED[family][1]
    assert prompt_ids == encode_prompts(tokenizer, [prompt])[0]
    assert all(turn["content"] in tokenizer.decode(prompt_ids) for turn in prompt)


def parrot(tokenizer, prompt_ids, script):
    "A model that goes on with a script where the prompt ends, whatever its weights are."
    torch.manual_seed(0)
    small = tiny_config(tokenizer, hidden_size=16, intermediate_size=16, num_hidden_layers=1)
    model = Qwen2ForCausalLM(small).eval()
    model.generation_config.eos_token_id = None

    def say(module, arguments, named, output):
        width = output.logits.shape[1]
        positions = named.get("position_ids", torch.arange(width)[None])[:, -width:]
        at = (positions + 1 - len(prompt_ids)).clamp(0, len(script) - 1)
        output.logits[:] = -1e4
        output.logits.scatter_(2, torch.tensor(script)[at][..., None], 1e4)

    model.register_forward_hook(say, with_kwargs=True)
    return model


@pytest.mark.parametrize("family", EXPECTED)
def test_what_was_encoded_is_generated_again_and_encoded_the_same(family):
    tokenizer = imitation(family)
    prompt_ids, response_ids = encode_response(tokenizer, [user()], [assistant()])
    further = tokenizer(" and more", add_special_tokens=False)["input_ids"] * 9
    model = parrot(tokenizer, prompt_ids, response_ids + further)
    [made] = generate(model, tokenizer, [[user()]], max_new_tokens=len(response_ids) + 5)
    assert made["ended"] and made["tokens"] == len(response_ids)
    again = encode_response(tokenizer, [user()], [assistant(made["text"])])
    assert again == (prompt_ids, response_ids)
    [[sample]] = sample_answers(
        model, tokenizer, [prompt_ids], max_new_tokens=len(response_ids) + 5
    )
    assert sample.ended and sample.ids == response_ids


def test_generation_stops_where_the_generation_config_says_and_not_at_padding():
    tokenizer = imitation("llama3")
    tokenizer.pad_token = "<|im_start|>"
    [pad, eom, word] = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|eom_id|>", "a"])
    [prompt_ids] = encode_prompts(tokenizer, [[user()]])
    model = parrot(tokenizer, prompt_ids, [word, pad, word, eom, word, word, word])
    [made] = generate(model, tokenizer, [[user()]], max_new_tokens=6)
    assert (made["ended"], made["tokens"]) == (False, 6)
    for given in (eom, [eom]):
        model.generation_config.eos_token_id = given
        [made] = generate(model, tokenizer, [[user()]], max_new_tokens=6)
        assert (made["ended"], made["tokens"]) == (True, 4)


def test_without_a_template_an_answer_ends_with_the_sequence():
    tokenizer = imitation("llama3")
    eos, model = tokenizer.eos_token_id, generation_config(tokenizer, "llama3")
    tokenizer.chat_template = None
    assert stop_tokens(tokenizer, model) == sorted({eos, *model.generation_config.eos_token_id})
    model.generation_config.eos_token_id = None
    assert stop_tokens(tokenizer, model) == [eos]
    tokenizer.eos_token = None
    with pytest.raises(ConfigError, match="no answer would end") as caught:
        stop_tokens(tokenizer, model)
    assert (caught.value.field, caught.value.reason) == ("eos_token", "no end")


# ---- others as oracles

IN_TRL = {
    "qwen2.5": "qwen2_5",
    "qwen3": "qwen3",
    "llama3": "llama3",
    "gemma2": "gemma",
    "gemma3": "gemma3",
    "phi3": "phi3",
    "deepseek-r1": "deepseek_r1_distill",
}


def in_trl(family):
    "The real template as TRL ships it."
    name = f"{IN_TRL[family]}.jinja"
    return (files("trl") / "chat_templates" / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("family", IN_TRL)
def test_what_is_written_down_does_what_the_real_template_does(family):
    ours, real = imitation(family), imitation(family)
    real.chat_template = in_trl(family)
    answers = (SAID, "<think>two and two</think>4", "<think>\nhm\n</think>\n\n4", " a \n")
    for prompt in LAYOUTS.values():
        for answer in answers:
            for messages, asked in (([*prompt, assistant(answer)], False), (prompt, True)):
                try:
                    expected = render(real, messages, generation_prompt=asked)
                except DataError:
                    with pytest.raises(DataError):
                        render(ours, messages, generation_prompt=asked)
                    continue
                assert render(ours, messages, generation_prompt=asked) == expected


@pytest.mark.parametrize("family", IN_TRL)
def test_what_is_learned_lies_in_trl_s_assistant_mask(family):
    "TRL learns what follows the end too, such as a line break; never less than we do."
    tokenizer = imitation(family)
    tokenizer.chat_template = in_trl(family)
    theirs = imitation(family)
    theirs.chat_template = get_training_chat_template(tokenizer) or in_trl(family)
    marked = theirs.apply_chat_template(
        [user(), assistant()], return_dict=True, return_assistant_tokens_mask=True
    )
    pairs = zip(marked["input_ids"], marked["assistant_masks"])
    learned = theirs.decode([token for token, mask in pairs if mask])
    if family == "deepseek-r1":  # its own opens a thought that the row does not have
        use_template(tokenizer, "deepseek-r1")
    ours = tokenizer.decode(encode_response(tokenizer, [user()], [assistant()])[1])
    before, found, behind = learned.partition(ours)
    assert found == ours and behind.strip() in ("", tokenizer.eos_token)
    assert before.strip() in ("", "<｜Assistant｜>")


# alpaca's last full stop and the line breaks behind it are one token there
@pytest.mark.parametrize("family", sorted({*EXPECTED} - {"alpaca"}))
def test_prompt_and_completion_are_those_of_trl(family):
    "TRL's rule for prompt and completion: two calls of the template, the second without the first."
    tokenizer = imitation(family)
    prompt = tokenizer.apply_chat_template([user()], add_generation_prompt=True, return_dict=True)
    whole = tokenizer.apply_chat_template([user(), assistant()], return_dict=True)
    prompt_ids, response_ids = encode_response(tokenizer, [user()], [assistant()])
    completion = whole["input_ids"][len(prompt["input_ids"]) :]
    assert prompt["input_ids"] == prompt_ids
    assert completion[: len(response_ids)] == response_ids
    assert tokenizer.decode(completion[len(response_ids) :]).strip() in ("", "<|endoftext|>")


# ---- templates for training

SHIPPED = {
    "chatml": "qwen3",
    "qwen2.5": "qwen2.5",
    "smollm2": "smollm2",
    "llama3": "llama3",
    "gemma": "gemma3",
    "mistral": "mistral",
    "phi3": "phi3",
    "zephyr": "zephyr",
    "olmo": "olmo2",
    "deepseek-r1": "deepseek-r1",
}
THOUGHT = " <think>two and two</think>\n4 "


def test_every_shipped_template_is_looked_at():
    assert sorted(SHIPPED) == shipped_templates()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_template_keeps_the_answer_whole_and_marks_what_is_learned(name, layout):
    tokenizer = imitation(SHIPPED[name])
    own = tokenizer.chat_template
    use_template(tokenizer, name)
    prompt, answer = LAYOUTS[layout], [assistant(THOUGHT)]
    rendered = render_response(tokenizer, prompt, answer)
    assert THOUGHT in rendered.text and not rendered.changes
    prompt_ids, response_ids = encode_response(tokenizer, prompt, answer)
    learned = prompt_ids + response_ids
    marked = tokenizer.apply_chat_template(
        prompt + answer, return_dict=True, return_assistant_tokens_mask=True
    )
    assert marked["input_ids"][: len(learned)] == learned
    mask = marked["assistant_masks"][: len(learned)]
    assert mask[len(prompt_ids) :] == [1] * len(response_ids)
    assert sum(marked["assistant_masks"][len(learned) :]) == 0
    earlier = sum(turn["role"] == "assistant" for turn in prompt)
    assert sum(mask[: len(prompt_ids)]) > 0 if earlier else not any(mask[: len(prompt_ids)])
    # where the model's own template says the same, so do the prompts
    if (SHIPPED[name], layout) not in REFUSED and name != "deepseek-r1":
        theirs = imitation(SHIPPED[name])
        theirs.chat_template = own
        assert encode_prompts(theirs, [prompt]) == encode_prompts(tokenizer, [prompt])


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_template_refuses_tools_rather_than_leave_them_out(name):
    tokenizer = imitation(SHIPPED[name])
    use_template(tokenizer, name)
    calls = {**assistant(), "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    for messages in ([user(), calls], [user(), {"role": "tool", "content": "12"}]):
        with pytest.raises(DataError, match="chat template refuses"):
            render(tokenizer, messages)


# ---- what a template does to an answer

TURNS = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\n' + CONTENT + "
    "'<|im_end|>\n' }}{%- endfor %}{%- if add_generation_prompt %}{{- OPENING }}{%- endif %}"
)


def turns(content="message.content", opening="'<|im_start|>assistant\n'"):
    return TURNS.replace("CONTENT", content).replace("OPENING", opening)


LAST_IS_OPEN = "('' if loop.last and message.role == 'assistant' else '<|endoftext|>\n')"
CUT = "message.content.split('</think>')[-1]"
LONG = "word " * 60
CHANGED = "answer changed by the chat template"
KINDS = {  # template, answer, reason of the refusal or what is learned
    "cuts thoughts away": (turns(CUT), "<think>hm</think>2", CHANGED),
    "leaves an answer without thoughts alone": (turns(CUT), "2", "2<|im_end|>"),
    "replaces letters": (turns("message.content | replace('red', 'blue')"), SAID, CHANGED),
    "cuts what is long": (turns("message.content[:100]"), LONG, CHANGED),
    "joins lines": (turns("message.content | replace('\n', ' ')"), "one\ntwo", CHANGED),
    "escapes markup": (turns("message.content | replace('<', '&lt;')"), "a < b", CHANGED),
    "writes no answer": (
        turns("(message.content if message.role == 'user' else '...')"),
        SAID,
        CHANGED,
    ),
    "trims": (turns("message.content | trim"), " two \n", "two<|im_end|>"),
    "begins a thought": (
        turns(opening="'<|im_start|>assistant\n<think>\n'"),
        SAID,
        "prompt is not a prefix",
    ),
    "begins a thought that the answer has": (
        turns(opening="'<|im_start|>assistant\n<think>\n'"),
        "<think>\nhm</think>2",
        "hm</think>2<|im_end|>",
    ),
    "begins the answer": (
        turns(opening="'<|im_start|>assistant\nSure'"),
        SAID,
        "prompt is not a prefix",
    ),
    "ends in a space": (
        turns().replace("role + '\n'", "role + ': '").replace("assistant\n", "assistant: "),
        SAID,
        "generation prompt ends in a space",
    ),
    "ends in a tab": (
        turns().replace("role + '\n'", "role + '\t'").replace("assistant\n", "assistant\t"),
        SAID,
        SAID + "<|im_end|>",  # this vocabulary does not join it
    ),
    "asks for a key": (
        turns("(message.content if 'tool_calls' not in message else message.tool_calls[0])"),
        SAID,
        SAID + "<|im_end|>",
    ),
    "adds up what is not there": (turns("message.content + message.name"), SAID, "refused"),
    "has no end": (turns().replace("<|im_end|>", ""), SAID, SAID + "<|im_end|>"),
    "ends with words": (turns().replace("<|im_end|>", "</turn>"), SAID, "end of turn is no token"),
    "ends inner turns only": (
        turns().replace("'<|im_end|>\n'", LAST_IS_OPEN),
        SAID,
        SAID + "<|endoftext|>",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_template_does_to_an_answer_is_found_out(kind):
    template, answer, expected = KINDS[kind]
    tokenizer = own_tokenizer(template)
    try:
        learned = tokenizer.decode(encode_response(tokenizer, [user()], [assistant(answer)])[1])
    except (DataError, ConfigError) as error:
        assert error.reason.startswith(expected)
        assert "chat_template" in str(error) and "chat template" in str(error)
    else:
        assert learned == expected


def test_a_row_that_loses_words_is_bad_and_named_and_a_trimmed_one_is_counted():
    tokenizer = own_tokenizer(turns(f"({CUT}) | trim"))
    rows = [{"prompt": [user()], "response": [assistant(f"{n}.")]} for n in range(18)]
    rows += [
        {"prompt": [user()], "response": [assistant("two \n")]},
        {"prompt": [user()], "response": [assistant("<think>one and one</think>2")]},
    ]
    encoded, report = encode_records(rows, tokenizer, kind="sft")
    assert len(encoded) == report.kept == 19 and report.changed == {TRIMMED: 1}
    [(reason, dropped)] = report.dropped.items()
    assert (reason, dropped["rows"]) == (CHANGED, 1)
    [example] = dropped["examples"]
    assert "row 20 of the records: response: " in example
    assert "'<think>one and one</think>' is missing" in example and "chatml" in example


def test_an_earlier_answer_that_is_cut_makes_a_bad_row_too():
    tokenizer = own_tokenizer(turns(CUT))
    prompt = [user("Hi."), assistant("<think>greet</think>Hello!"), user()]
    with pytest.raises(DataError, match=r"message 2 \(assistant\).*<think>greet") as caught:
        encode_response(tokenizer, prompt, [assistant()])
    assert caught.value.reason == CHANGED
    with pytest.raises(DataError, match=r"prompt 2: .*message 2 \(assistant\)"):
        encode_prompts(tokenizer, [[user()], prompt])


def test_a_system_message_that_the_template_leaves_out_makes_a_bad_row():
    tokenizer = own_tokenizer(turns("('' if message.role == 'system' else message.content)"))
    with pytest.raises(DataError, match=r"message 1 \(system\)") as caught:
        encode_response(tokenizer, [SYSTEM, user()], [assistant()])
    assert caught.value.reason == "message changed by the chat template"


def test_what_a_template_writes_before_and_behind_an_answer_is_in_the_account():
    rows = [{"prompt": [user()], "response": [assistant()]}]
    thoughtful = encode_records(rows, imitation("qwen3"), kind="sft")[1]
    assert thoughtful.changed == {
        "'<think>\\n\\n</think>' put before an answer by the chat template": 1
    }
    open_ended = encode_records(rows, imitation("alpaca"), kind="sft")[1]
    assert open_ended.changed == {
        "</s> put behind an answer, which the chat template leaves open": 1
    }
    rows = [{"prompt": [user()], "response": [assistant("<think>a</think>b")]}]
    assert encode_records(rows, imitation("qwen3"), kind="sft")[1].changed == {RESPACED: 1}


def test_a_template_without_an_end_is_refused_where_the_tokenizer_has_none_either():
    tokenizer = own_tokenizer(KINDS["has no end"][0])
    tokenizer.eos_token = None
    with pytest.raises(ConfigError, match="eos_token") as caught:
        turn_of(tokenizer)
    assert caught.value.reason == "no end-of-turn token"


def test_special_tokens_are_those_of_the_tokenizer():
    tokenizer = imitation("llama3")
    with pytest.raises(DataError, match=r"<\|eom_id\|>") as caught:
        encode_response(tokenizer, [user("a <|eom_id|> b")], [assistant()])
    assert caught.value.reason == "special token in the text"
    with pytest.raises(DataError, match=r"prompt 1: message 1 \(user\) contains <\|eom_id\|>"):
        encode_prompts(tokenizer, [[user("a <|eom_id|> b")]])
    # thoughts are tokens of some vocabularies, and text all the same
    encode_response(imitation("qwen3"), [user()], [assistant("<think>a</think>b")])


@pytest.mark.parametrize("labels", LABELS)
def test_what_sft_learns_ends_where_the_template_ends_it(labels):
    tokenizer = imitation("gemma3")
    prompt_ids, response_ids = encode_response(tokenizer, [user()], [assistant()])
    row = {"prompt_ids": prompt_ids, "response_ids": response_ids}
    [found] = label_tokens([row], labels, turn_of(tokenizer).end)
    learned = {"response": f"{SAID}<end_of_turn>", "response_without_end": SAID}
    learned["conversation"] = EXPECTED["gemma3"][0].removeprefix("<bos>") + learned["response"]
    assert tokenizer.decode(found["response_ids"]) == learned[labels]


# ---- the same weights under other names


@pytest.fixture(scope="module")
def renamed(tmp_path_factory):
    "The instruct model with Gemma's names for its tokens; eos is not what ends a turn."
    folder = tmp_path_factory.mktemp("renamed")
    names = {
        "<|im_end|>": "<end_of_turn>",
        "<|im_start|>": "<start_of_turn>",
        "<|endoftext|>": "<eos>",
    }
    for file in (project_root() / "data/tiny/instruct").iterdir():
        content = file.read_bytes()
        if file.name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            for old, new in names.items():
                content = content.replace(old.encode(), new.encode())
        (folder / file.name).write_bytes(content)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config |= {"eos_token": "<eos>", "extra_special_tokens": ["<start_of_turn>", "<end_of_turn>"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_the_same_weights_under_other_names_answer_the_same(renamed):
    own, other = load_model("data/tiny/instruct"), load_model(str(renamed))
    chats = [[user(f"What colour is the {each}?")] for each in ("fox", "owl", "bear", "hare")]
    answers = generate(*own, chats, max_new_tokens=48)
    assert generate(*other, chats, max_new_tokens=48) == answers
    assert all(answer["ended"] for answer in answers)
    prompts = encode_prompts(own[1], chats)
    assert prompts == encode_prompts(other[1], chats)
    draws = {"k": 2, "max_new_tokens": 48, "seed": 3}
    assert sample_answers(*other, prompts, **draws) == sample_answers(*own, prompts, **draws)
    row = [user()], [assistant()]
    assert encode_response(own[1], *row) == encode_response(other[1], *row)


# ---- a template that is given


def test_a_template_is_given_by_name_file_or_text(tmp_path):
    file = tmp_path / "mine.jinja"
    file.write_text(turns(), encoding="utf-8")
    for given in ("chatml", str(file), turns()):
        tokenizer = own_tokenizer(turns(CUT))
        with recorded_inputs() as inputs:
            check_template(given)
        assert (str(file) in inputs) == (given == str(file))
        assert ("prefkit/data/templates/chatml.jinja" in inputs) == (given == "chatml")
        use_template(tokenizer, given)
        learned = encode_response(tokenizer, [user()], [assistant("<think>a</think>b")])[1]
        assert tokenizer.decode(learned) == "<think>a</think>b<|im_end|>"
        tokenizer.save_pretrained(tmp_path / "saved")
        saved = AutoTokenizer.from_pretrained(tmp_path / "saved")
        assert saved.chat_template == tokenizer.chat_template


def test_a_changed_template_file_is_another_input(tmp_path):
    file = tmp_path / "mine.jinja"
    prints = []
    for text in (turns(), turns(CUT)):
        file.write_text(text, encoding="utf-8")
        with recorded_inputs() as inputs:
            check_template(str(file))
        prints.append(fingerprint_files(inputs[str(file)]))
    assert prints[0] != prints[1]


@pytest.mark.parametrize("given", ["chatmll", "mine.jinja", "some/where"])
def test_a_template_that_is_not_there_is_refused_before_anything_runs(given):
    with pytest.raises(ConfigError, match=given) as caught:
        check_model("data/tiny/base", chat_template=given)
    assert (caught.value.field, caught.value.reason) == ("chat_template", "not found")


def named_templates(folder, templates):
    "The base model's folder with several named templates."
    source = project_root() / "data/tiny/base"
    for name in ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json"):
        (folder / name).symlink_to(source / name)
    config = json.loads((source / "tokenizer_config.json").read_text(encoding="utf-8"))
    listed = [{"name": name, "template": text} for name, text in templates.items()]
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": listed}))
    return str(folder)


def test_of_several_templates_one_is_chosen_by_name(tmp_path):
    name = named_templates(tmp_path, {"tool_use": turns(), "rag": turns(CUT)})
    for asked in (turn_of, lambda each: encode_prompts(each, [[user()]])):
        with pytest.raises(ConfigError, match="tool_use, rag") as caught:
            asked(load_model(name)[1])
        assert caught.value.reason == "several chat templates"
    check_model(name, chat_template="tool_use")
    with pytest.raises(ConfigError, match="Known: tool_use, rag, chatml"):
        check_model(name, chat_template="other")
    tokenizer = load_model(name)[1]
    use_template(tokenizer, "tool_use")
    assert tokenizer.chat_template == turns()


def test_of_several_templates_the_default_is_taken_where_there_is_one(tmp_path):
    name = named_templates(tmp_path, {"default": turns(), "rag": turns(CUT)})
    tokenizer = load_model(name)[1]
    assert tokenizer.convert_ids_to_tokens(turn_of(tokenizer).end) == "<|im_end|>"


def test_a_model_that_is_trained_with_another_template_is_saved_with_its_end():
    model, tokenizer = load_model("data/tiny/base")
    tokenizer.add_tokens(["<end_of_turn>"], special_tokens=True)
    use_template(tokenizer, turns().replace("<|im_end|>", "<end_of_turn>"), model)
    end = tokenizer.convert_tokens_to_ids("<end_of_turn>")
    assert model.generation_config.eos_token_id == [0, 2, end]


def test_a_template_that_cannot_be_read_is_refused():
    with pytest.raises(DataError, match="chat template refuses") as caught:
        use_template(own_tokenizer(), "{% for message in messages %}")
    assert caught.value.reason == "refused by the chat template"
