"""Thoughts and answers: told apart wherever they come from, and only answers are judged, measured
and sent on.
"""

import json
import math
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from transformers import AutoTokenizer

from prefkit.core import DataError, project_root, read_jsonl, write_jsonl, write_text
from prefkit.data.thoughts import Said, opens_thought, split_thought, whole_text
from prefkit.judging.asking import (
    answer_apart,
    generate_records,
    write_alpaca_eval,
    write_leaderboard,
)
from prefkit.judging.harnesses import answer_turns, read_alpaca_annotations
from prefkit.judging.judges import make_judge, read_reward, read_verdict, register_judge
from prefkit.judging.rewards import FunctionReward, reward_source
from prefkit.judging.served import Reply, Served, ask_all
from prefkit.judging.votes import write_ballot
from prefkit.model.loading import load_model
from prefkit.model.sampling import decode_answer
from prefkit.runs.runner import open_run, run
from prefkit.train.rollout import sample_answers

TINY = str(project_root() / "data" / "tiny" / "base")
CHANNELS = (
    "<|channel|>analysis<|message|>Red or grey?<|end|><|start|>assistant"
    "<|channel|>final<|message|>Red.<|return|>"
)

APART = {
    "DeepSeek-R1, Qwen3": "<think>\nRed or grey?\n</think>\n\nRed.",
    "on one line": "<think>Red or grey?</think>Red.",
    "GRPO recipes": "<reasoning>\nRed or grey?\n</reasoning>\nRed.",
    "OpenThinker": "<|begin_of_thought|>\nRed or grey?\n<|end_of_thought|>\n\n"
    "<|begin_of_solution|>\nRed.\n<|end_of_solution|>",
    "Magistral": "[THINK]Red or grey?[/THINK]Red.",
    "Kimi": "◁think▷Red or grey?◁/think▷Red.",
    "Command A": "<|START_THINKING|>Red or grey?<|END_THINKING|><|START_RESPONSE|>Red."
    "<|END_RESPONSE|>",
    "Seed-OSS": "<seed:think>Red or grey?</seed:think>Red.",
    "Granite": "Here is my thought process: Red or grey?\nHere is my response: Red.",
    "begun by the template": "Red or grey?\n</think>\n\nRed.",
    "begun by another template": "Red or grey?[/THINK]Red.",
    "gpt-oss": CHANNELS,
    "gpt-oss without special tokens": "analysisRed or grey?assistantfinalRed.",
}


@pytest.mark.parametrize("name", APART)
def test_every_family_of_marks_is_told_apart(name):
    assert split_thought(APART[name]) == Said("Red.", "Red or grey?")


@pytest.mark.parametrize(
    "text, opened, said",
    [
        ("<think>\nRed or", False, Said("", "Red or", True)),
        ("<reasoning>Red or <|im_end|", False, Said("", "Red or <|im_end|", True)),
        ("<|channel|>analysis<|message|>Red or", False, Said("", "Red or", True)),
        ("analysisRed or", False, Said("", "Red or", True)),
        ("Red or", True, Said("", "Red or", True)),
        ("Sure.\n<think>Red or", False, Said("Sure.", "Red or", True)),
        ("<think>\n\n</think>\n\nRed.", False, Said("Red.", "")),
        ("<think>a</think>Red.\n<think>b</think>Or grey.", False, Said("Red.\nOr grey.", "a\n\nb")),
        ("<think>So </think> ends it.</think>Red.", False, Said("Red.", "So </think> ends it.")),
    ],
)
def test_thoughts_that_were_cut_off_come_twice_or_speak_of_themselves(text, opened, said):
    assert split_thought(text, opened) == said


@pytest.mark.parametrize(
    "text",
    [
        "Red.",
        "  Red. ",
        "",
        "Write it between <think> and </think>.",
        "Close the tag by `</think>`, and go on.",
        "```\n<think>\nRed?\n</think>\n```\nis how it looks.",
        "Analysis of the fox: red.",
        "<answer>1 + 2</answer>",
        "I think <b>red</b>.",
    ],
)
def test_an_answer_that_speaks_of_marks_or_has_none_stays_as_it_is(text):
    assert split_thought(text) == Said(text)


def test_the_search_is_linear():
    for text in (
        "```\n" + "<think>\n" * 200_000,
        "<think>a</think>" * 100_000,
        "</think>" * 200_000,
        "<|channel|>" * 100_000,
        "\n" * 1_000_000,
    ):
        split_thought(text)


@pytest.mark.parametrize(
    "prompt, mark",
    [
        ("<|im_start|>assistant\n<think>\n", "<think>\n"),
        ("<|assistant|>[THINK]", "[THINK]"),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", ""),  # thinking switched off
        ("What does <think> mean?<|im_end|>\n<|im_start|>assistant\n", ""),
    ],
)
def test_a_template_that_begins_the_thought_is_known_by_its_end(prompt, mark):
    assert opens_thought(prompt) == mark


# From tokens


def with_special(*tokens):
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    tokenizer.add_special_tokens({"additional_special_tokens": list(tokens)})
    return tokenizer


@pytest.mark.parametrize("marks", [("[THINK]", "[/THINK]"), ("<think>", "</think>")])
def test_marks_that_are_special_tokens_are_not_lost(marks):
    tokenizer = with_special(*marks)
    ids = tokenizer(f"{marks[0]}red or grey{marks[1]}red")["input_ids"]
    assert marks[0] not in tokenizer.decode(ids, skip_special_tokens=True)
    assert split_thought(whole_text(tokenizer, [], ids)) == Said("red", "red or grey")
    assert split_thought(whole_text(tokenizer, [], ids[:-2])).cut_off


def thinking_model():
    "A model whose template begins a thought, which it never ends."
    model, tokenizer = load_model(TINY)
    template = tokenizer.chat_template
    tokenizer.chat_template = template + "{% if add_generation_prompt %}<think>\n{% endif %}"
    return model, tokenizer


def test_a_thought_that_the_template_began_and_the_limit_cut_off_is_no_answer(tmp_path):
    model, tokenizer = thinking_model()
    settings = {"temperature": 0.0, "max_new_tokens": 6}
    records = generate_records(
        model, ["Who?"], settings, tokenizer=tokenizer, output=tmp_path / "a.jsonl"
    )
    assert (
        records[0]["answer"] == ""
        and records[0]["reasoning"]
        and (records[0]["tokens"], records[0]["reasoning_tokens"]) == (0, 6)
        and read_jsonl(tmp_path / "a.jsonl") == records
    )
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Who?"}], add_generation_prompt=True, return_dict=True
    )["input_ids"]
    ((sample,),) = sample_answers(model, tokenizer, [prompt], temperatures=0.0, max_new_tokens=6)
    seen = FunctionReward("long", lambda rows, answers: [len(each["text"]) for each in answers])
    (found,) = seen([{"prompt": "Who?"}], [{"text": sample.text, "tokens": 6, "ended": False}])
    assert sample.text.startswith("<think>") and found["reward"] == 0.0


def test_answers_of_an_older_file_are_told_apart_when_it_is_read(tmp_path):
    model, tokenizer = load_model(TINY)
    file, settings = tmp_path / "a.jsonl", {"temperature": 0.0, "max_new_tokens": 6}
    made = generate_records(model, ["Who?"], settings, tokenizer=tokenizer, output=file)
    assert "reasoning" not in made[0]
    write_jsonl(file, [{**made[0], "answer": APART["Magistral"]}])
    (again,) = generate_records(model, ["Who?"], settings, tokenizer=tokenizer, output=file)
    assert (again["answer"], again["reasoning"]) == ("Red.", "Red or grey?")
    assert read_jsonl(file) == [again]


# Judges and rewards


def records(*answers, model="a"):
    prompts = [f"What colour is the fox? ({number})" for number in range(len(answers))]
    return [
        {"prompt_id": str(number), "prompt": prompt, "answer": answer, "model": model}
        for number, (prompt, answer) in enumerate(zip(prompts, answers))
    ]


@pytest.mark.parametrize("name", APART)
@pytest.mark.parametrize("judge", ["gold", "second"])
def test_thoughts_change_no_score(judge, name):
    def asked(*answers):
        return [{**each, "prompt": "What colour is the fox?"} for each in records(*answers)]

    thought, plain = make_judge(judge).score(asked(APART[name], "Red."))
    assert thought.value == plain.value and thought.parts == plain.parts


def test_no_judge_sees_a_thought():
    seen = []

    def ask(body):
        seen.append(json.dumps(body, ensure_ascii=False))
        return "Verdict: A" if "Verdict" in seen[-1] else "reward: 1.0"

    register_judge(
        "shows", lambda: lambda records, store: [len(each["answer"]) for each in records]
    )
    texts = list(APART.values())
    others = records(*["Grey."] * len(texts), model="b")
    make_judge("pairwise", model="m", ask=ask).compare(records(*texts), others)
    make_judge("reward_api", ask=ask).score(records(*texts))
    assert len(seen) == 3 * len(texts) and not any("or grey" in text for text in seen)
    assert make_judge("shows").score(records(*texts)).values == [4.0] * len(texts)
    same = make_judge("pairwise", model="m", ask=ask).compare(records(texts[0]), records("Red."))
    assert same[0].reason == "the two answers are the same" and len(seen) == 3 * len(texts)


def test_online_rewards_see_answers_and_countdown_finds_its_own():
    said = FunctionReward("own", lambda rows, answers: [len(each["text"]) for each in answers])
    answers = [{"text": text, "tokens": 9, "ended": True} for text in APART.values()]
    assert {one["reward"] for one in said([{"prompt": "?"}] * len(answers), answers)} == {4.0}
    row = {"prompt": "?", "record": {"nums": [1, 2], "target": 3}}
    texts = ["<think>Add.</think>\n<answer>1 + 2</answer>", "<think>Add.\n<answer>1 + 2</answer>"]
    (first, second) = reward_source("countdown")(
        [row] * 2, [{"text": text, "tokens": 9, "ended": True} for text in texts]
    )
    assert first["reward"] == second["reward"] == 1.0


@pytest.mark.parametrize(
    "reply, verdict",
    [
        ("<think>Verdict: A</think>\nVerdict: B", "B"),
        ("Verdict: A\n</think>\nVerdict: tie", "tie"),
        ("[THINK][[A]][/THINK][[B]]", "B"),
        (CHANNELS.replace("Red.", "Verdict: B").replace("Red or grey?", "Verdict: A"), "B"),
    ],
)
def test_a_verdict_is_read_after_the_thought(reply, verdict):
    assert read_verdict(reply) == verdict


@pytest.mark.parametrize(
    "reply, reason",
    [
        ("<think>I lean to\nVerdict: A", "thought cut off"),
        ("[THINK][[A]]", "thought cut off"),
        ("<think>Verdict: A</think>\nBoth", "no verdict"),
        (
            Reply.of({"message": {"content": "Verdict: A\nBut"}, "finish_reason": "length"}),
            "cut off",
        ),
        (
            Reply.of(
                {
                    "message": {"content": None, "reasoning_content": "Verdict: A"},
                    "finish_reason": "length",
                }
            ),
            "thought cut off",
        ),
    ],
)
def test_none_is_read_from_what_was_cut_off(reply, reason):
    with pytest.raises(DataError) as error:
        read_verdict(reply)
    assert (error.value.field, error.value.reason) == ("reply", reason)


def test_a_reward_is_read_after_the_thought():
    assert read_reward("<think>reward: 9</think>reward: -1.5") == -1.5
    with pytest.raises(DataError, match="within its thought"):
        read_reward("<think>reward: 9")


def test_verdicts_that_are_missing_are_counted_and_named():
    judge = make_judge("pairwise", model="m", ask=lambda body: "<think>Verdict: A")
    found = judge.compare(records("Red.", "Blue."), records("Grey.", "Pink.", model="b"))
    assert found.results == (None, None) and all(map(math.isnan, found.values))
    assert "0 of 2 judged" in repr(found) and "within its thought" in repr(found)


# Files and lengths


def test_files_for_others_hold_answers_only(tmp_path):
    texts = list(APART.values())
    board = read_jsonl(write_leaderboard(tmp_path / "b.jsonl", records(*texts)))
    alpaca = json.loads(write_alpaca_eval(tmp_path / "a.json", records(*texts)).read_text())
    assert {row["response"] for row in board} == {row["output"] for row in alpaca} == {"Red."}
    others = records(*["Grey."] * len(texts), model="b")
    write_ballot(tmp_path / "ballot.jsonl", records(*texts), others)
    shown = (tmp_path / "ballot.jsonl").read_text(encoding="utf-8")
    assert "Red." in shown and "or grey" not in shown


def test_lengths_of_an_alpaca_eval_run_are_those_of_answers(tmp_path):
    rows = [
        {
            "instruction": "?",
            "generator_1": "them",
            "generator_2": "us",
            "output_1": "Grey.",
            "output_2": text,
            "preference": 2.0,
        }
        for text in APART.values()
    ]
    file = write_text(tmp_path / "annotations.json", json.dumps(rows))
    table, _ = read_alpaca_annotations(file)
    assert set(table["model_length"]) == {4} and set(table["reference_length"]) == {5}


def test_a_second_turn_is_asked_without_the_first_thought():
    asked = []

    def ask(chats, temperature):
        asked.extend(chats)
        return [APART["on one line"]] * len(chats)

    answers = answer_turns(ask, [{"question_id": 81, "turns": ["Colour?", "Why?"]}])
    assert answers == {81: ["Red.", "Red."]}
    assert [turn["content"] for turn in asked[-1]] == ["Colour?", "Red.", "Why?"]


# Servers


class Thinker(BaseHTTPRequestHandler):
    "Answers every question with the choice that stands in it as JSON."

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        choice = self.server.choices[body["messages"][-1]["content"]]
        data = json.dumps({"choices": [choice], "usage": self.server.usage}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def thinker():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Thinker)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.usage = {"completion_tokens": 7}
    server.at = f"http://127.0.0.1:{server.server_port}/v1"
    yield server
    server.shutdown()
    server.server_close()


def choice(content, finish="stop", **message):
    return {"message": {"content": content, **message}, "finish_reason": finish}


def test_a_server_gives_the_thought_apart_or_in_the_text(thinker, tmp_path):
    thinker.choices = {
        "field": choice("Red.", reasoning_content="Red or grey?"),
        "other field": choice("Red.", reasoning="Red or grey?"),
        "text": choice(APART["DeepSeek-R1, Qwen3"]),
        "begun": choice(APART["begun by the template"]),
        "begun, cut off": choice("Red or", "length"),
        "cut off": choice("<think>Red or", "length"),
        "cut off in the field": choice(None, "length", reasoning_content="Red or"),
        "none": choice("Red."),
    }
    asked = [{"prompt_id": name, "prompt": name} for name in thinker.choices]
    made = generate_records(
        Served("m", thinker.at), asked, {"max_new_tokens": 9}, output=tmp_path / "a.jsonl"
    )
    found = {row["prompt_id"]: (row["answer"], row.get("reasoning")) for row in made}
    whole, cut = ("Red.", "Red or grey?"), ("", "Red or")
    assert found == {
        "field": whole,
        "other field": whole,
        "text": whole,
        "begun": whole,
        "begun, cut off": cut,
        "cut off": cut,
        "cut off in the field": cut,
        "none": ("Red.", None),
    }


def test_tokens_are_those_of_answers():
    tokenizer = with_special("[THINK]", "[/THINK]")
    end = tokenizer.eos_token_id
    ids = tokenizer("[THINK]red or grey[/THINK]red")["input_ids"] + [end]
    made = answer_apart(tokenizer, [], ids, True)
    answer = len(tokenizer("red", add_special_tokens=False)["input_ids"]) + 1
    assert (made["tokens"], made["reasoning_tokens"]) == (answer, len(ids) - answer)
    whole = decode_answer(tokenizer, ids, True)["text"]  # what `generate` gives keeps the marks
    assert split_thought(whole) == Said("red", "red or grey")
    asked = tokenizer("red[THINK]")["input_ids"]  # a template that begins the thought
    begun = tokenizer("red or[/THINK]grey")["input_ids"] + [end]
    assert split_thought(decode_answer(tokenizer, begun, True, asked)["text"]).answer == "grey"
    plain = answer_apart(tokenizer, [], ids[-answer:], True)
    assert plain == {"text": "red", "tokens": answer, "ended": True}


def test_a_server_may_say_how_many_tokens_were_the_thoughts(thinker, tmp_path):
    thinker.choices = {"a": choice("Red.", reasoning="Red or grey?")}
    asked = [{"prompt_id": "a", "prompt": "a"}]
    for details, tokens in (({"reasoning_tokens": 5}, 2), ({}, None)):
        thinker.usage = {"completion_tokens": 7, "completion_tokens_details": details}
        (made,) = generate_records(
            Served("m", thinker.at),
            asked,
            {"max_new_tokens": 9},
            output=tmp_path / f"{tokens}.jsonl",
        )
        assert made["tokens"] == tokens


def test_a_reply_without_text_and_without_thought_stays_a_failure(thinker, tmp_path):
    thinker.choices = {"none": choice(None, "content_filter")}
    requests = {"none": {"messages": [{"role": "user", "content": "none"}]}}
    _, failed = ask_all(Served("m", thinker.at), requests, tmp_path / "r.jsonl", quiet=True)
    assert "no text" in failed["none"]


def votes(folder):
    rows = [
        {"prompt_id": f"p{i}", "model_a": "here", "model_b": "thinks", "winner": winner}
        for i, winner in enumerate(("here", "thinks", "tie", "here"))
    ]
    return write_jsonl(folder / "votes.jsonl", rows)


def test_an_evaluation_measures_judges_and_writes_answers_alone(thinker, tmp_path):
    questions = [f"What is {number}?" for number in range(4)]
    texts = [*list(APART.values())[:2], "Grey, I am told.", "<think>" + "long " * 90]
    thinker.choices = {
        question: choice(text, "length" if text.endswith("long ") else "stop")
        for question, text in zip(questions, texts)
    }
    register = [{"prompt": question, "prompt_id": f"p{i}"} for i, question in enumerate(questions)]
    file = write_jsonl(tmp_path / "asked.jsonl", register)
    parameters = {
        "models": {"here": "data/tiny/base", "thinks": {"model": "m", "base_url": thinker.at}},
        "judges": {"people": {"kind": "person", "votes": str(votes(tmp_path))}},
        "dataset": str(file),
        "split": "train",
        "prompts": 4,
        "max_new_tokens": 12,
    }
    config = {"experiment": "e", "stages": {"evaluate": {"pipeline": "evaluate"}}}
    config["stages"]["evaluate"]["parameters"] = parameters
    path = write_text(tmp_path / "e.yaml", json.dumps(config))
    done = open_run(run(path, (), tmp_path / "runs", "quiet")["evaluate"])
    rows = {
        row["prompt_id"]: row
        for row in read_jsonl(done.path / "generations.jsonl")
        if row["model"] == "thinks"
    }
    assert [rows[f"p{i}"]["answer"] for i in range(4)] == ["Red.", "Red.", "Grey, I am told.", ""]
    assert rows["p3"]["reasoning"].startswith("long") and "reasoning" not in rows["p2"]
    scores = {row["model"]: row for row in done.info["metrics"]["scores"]}["thinks"]
    assert (scores["thought"], scores["thought_cut_off"]) == (0.75, 0.25)
    assert not [
        path
        for folder in ("leaderboard", "alpaca_eval")
        for path in (done.path / folder).iterdir()
        if "grey?" in path.read_text(encoding="utf-8")
    ]
    (rate,) = done.info["metrics"]["win_rates"]
    assert rate["lc_low"] <= rate["lc_rate"] <= rate["lc_high"] and rate["lc_note"]
