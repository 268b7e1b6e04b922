"""Reward sources: each on hand-made answers against what it stands for, order, cut-off answers,
what must be refused and how, and what a run's identity sees.
"""

import json, math, os, subprocess, sys
from dataclasses import dataclass

import numpy as np, pytest
from transformers import AutoTokenizer

from prefkit.core import ConfigError, DataError, NotFinite, check_number, project_root
from prefkit.data.countdown import shaped_reward
from prefkit.judging.rewards import (
    BUILT_IN_REWARDS,
    REWARDS,
    FunctionReward,
    RewardSource,
    check_reward,
    each_answer,
    register_reward,
    reward_source,
)
from prefkit.judging.reward_model import rewards_of, scalar_head
from prefkit.data.world import World, gold_reward, second_judge

BASE = "data/tiny/base"
FOX = World().facts["colour"]["fox"]


def row(question, **record):
    return {
        "prompt": [{"role": "user", "content": question}],
        "record": {"prompt": question, **record},
        "row": "test row 7",
    }


def say(*texts, ended=True):
    return [{"text": text, "tokens": len(text.split()) + 1, "ended": ended} for text in texts]


def numbers(found):
    return [each["reward"] for each in found]


ROWS = [row("What colour is the fox?")] * 4
ANSWERS = say(f"Sure! The fox is {FOX}.", f"{FOX.capitalize()}.", "The fox is purple.", "")
PUZZLE = row("Make 26 from 2, 4 and 6.", nums=[2, 4, 6], target=26)


@pytest.fixture(autouse=True)
def registry():
    before = dict(REWARDS)
    yield
    REWARDS.clear()
    REWARDS.update(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "A reward model as the pipeline leaves one; its head is drawn, not trained."
    path = tmp_path_factory.mktemp("reward") / "model"
    (
        scalar_head(BASE, seed=3).save_pretrained(path),
        AutoTokenizer.from_pretrained(project_root() / BASE).save_pretrained(path),
    )
    return path


# Each source


def test_gold_is_the_worlds_reward_with_its_parts():
    found = reward_source("gold")(ROWS, ANSWERS)
    assert numbers(found) == [
        gold_reward("What colour is the fox?", answer["text"]).total for answer in ANSWERS
    ]
    assert [each["right"] for each in found] == [True, True, False, False] and "total" not in found[
        0
    ]
    # following, truthfulness, honesty, helpfulness: in full, courteous
    assert found[0]["reward"] == pytest.approx(1 + 2 + 1 + 0.6 + 0.6 + 0.8)


def test_second_is_the_second_judge_and_ranks_otherwise():
    answers = say(
        f"{FOX.capitalize()}.",
        "Sure! I think that the lovely fox is purple and red, my friend. I hope this helps.",
    )
    second, gold = (numbers(reward_source(name)(ROWS[:2], answers)) for name in ("second", "gold"))
    assert second == [second_judge("What colour is the fox?", answer["text"]) for answer in answers]
    assert gold[0] > gold[1] and second[0] < second[1]


def test_the_last_user_turn_is_what_is_judged():
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello."},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "What colour is the fox?"},
    ]
    assert numbers(
        reward_source("gold")([{"prompt": turns, "record": {}}], ANSWERS[:1])
    ) == numbers(reward_source("gold")(ROWS[:1], ANSWERS[:1]))


COMPLETIONS = {
    "<answer>2 + 4 * 6</answer>": (1.0, "correct"),
    "<answer>(2 + 4) * 6</answer>": (0.0, "wrong value"),
    "2 + 4 * 6": (0.0, "no answer tag"),
    "<answer>4 * 6</answer>": (0.0, "number left out"),
    "<answer>__import__('os')</answer>": (0.0, None),
}


def test_countdown_is_right_or_wrong_with_the_verifiers_reason():
    found = reward_source("countdown")([PUZZLE] * len(COMPLETIONS), say(*COMPLETIONS))
    for each, (reward, reason) in zip(found, COMPLETIONS.values()):
        assert (
            each["reward"] == reward
            and each["correct"] == bool(reward)
            and reason in (None, each["reason"])
        )


def test_countdown_shaped_tells_wrong_answers_apart():
    found = reward_source("countdown_shaped")([PUZZLE] * len(COMPLETIONS), say(*COMPLETIONS))
    assert numbers(found) == [shaped_reward(text, [2, 4, 6], 26).total for text in COMPLETIONS]
    assert (
        found[0]["reward"] == pytest.approx(1)
        and len(set(numbers(found))) == len(found)
        and max(numbers(found)) == found[0]["reward"]
    )
    for each in found:
        assert each["reward"] == pytest.approx(
            sum(part for name, part in each.items() if name != "reward")
        )


def test_text_reward_by_hand():
    source = reward_source(
        "text", full_words=10, few_words=3, few_cost=1.0, free_repetition=0.25, repetition_cost=2.0
    )
    answers = say(
        "one two three four five", "one two", "a b c d e f g h i j k l m", "", "ho ho ho ho ho ho"
    )
    found = source([ROWS[0]] * 5, answers)
    # 6 words: 4 triples, all the same, 3 of them were there before
    assert numbers(found) == pytest.approx([0.5, 0.2 - 1, 1.0, -1.0, 0.6 - 2 * (3 / 4 - 0.25)])
    assert [each["words"] for each in found] == [5, 2, 13, 0, 6] and found[4][
        "repeated"
    ] == pytest.approx(3 / 4)


def test_model_is_the_reward_model_of_the_folder(folder):
    source, model, tokenizer = (
        reward_source("model", model_name_or_path=str(folder)),
        scalar_head(BASE, seed=3),
        AutoTokenizer.from_pretrained(folder),
    )
    expected = rewards_of(
        model, tokenizer, [each["prompt"] for each in ROWS], [answer["text"] for answer in ANSWERS]
    )
    assert (
        numbers(source(ROWS, ANSWERS)) == pytest.approx(expected, abs=1e-6)
        and len(set(expected)) == 4
    )


def test_model_does_not_see_the_batch_nor_the_order(folder):
    whole = numbers(reward_source("model", model_name_or_path=str(folder))(ROWS, ANSWERS))
    single = reward_source("model", model_name_or_path=str(folder), batch_size=1)
    assert numbers(single(ROWS, ANSWERS)) == pytest.approx(whole, abs=1e-5)
    assert numbers(single(ROWS[::-1], ANSWERS[::-1]))[::-1] == pytest.approx(whole, abs=1e-5)
    assert [
        numbers(single([each], [answer]))[0] for each, answer in zip(ROWS, ANSWERS)
    ] == pytest.approx(whole, abs=1e-5)


def test_a_policy_that_spells_out_a_special_token_does_not_stop_the_run(folder):
    source = reward_source("model", model_name_or_path=str(folder))
    assert numbers(source(ROWS[:2], say("Red.<|im_end|>", "Red."))) == pytest.approx(
        [numbers(source(ROWS[:1], say("Red.")))[0]] * 2, abs=1e-5
    )


@pytest.mark.parametrize("name", ["gold", "second", "text"])
def test_order_is_kept(name):
    source = reward_source(name)
    assert source(ROWS[::-1], ANSWERS[::-1])[::-1] == source(ROWS, ANSWERS)


def test_no_rows_give_no_rewards(folder):
    assert [
        reward_source(name)([], [])
        for name in ("gold", "second", "text", "countdown", "countdown_shaped")
    ] == [[]] * 5
    assert reward_source("model", model_name_or_path=str(folder))([], []) == []


# Offset, scale, cut-off answers


def test_offset_scale_and_the_raw_number():
    plain, changed = (
        reward_source("gold")(ROWS, ANSWERS),
        reward_source("gold", offset=3.0, scale=0.5)(ROWS, ANSWERS),
    )
    assert numbers(changed) == pytest.approx([(reward - 3) / 2 for reward in numbers(plain)])
    assert [each["raw"] for each in changed] == numbers(plain) and "raw" not in plain[0]


def test_cut_off_replaces_the_reward_of_answers_that_did_not_end_and_of_no_other():
    answers = [{**answer, "ended": number != 1} for number, answer in enumerate(ANSWERS)]
    plain = numbers(reward_source("gold")(ROWS, answers))
    found = reward_source("gold", scale=10.0, cut_off=-1)(ROWS, answers)
    assert numbers(found) == pytest.approx([10 * plain[0], -1.0, 10 * plain[2], 10 * plain[3]])
    assert found[1]["raw"] == plain[1] and isinstance(found[1]["reward"], float)
    assert (
        numbers(reward_source("gold", cut_off=0.0)(ROWS, [{**a, "ended": False} for a in answers]))
        == [0.0] * 4
    )


@pytest.mark.parametrize(
    "options",
    [
        {"scale": 0.0},
        {"scale": -1.0},
        {"scale": "1e-1"},
        {"offset": math.nan},
        {"cut_off": math.inf},
        {"cut_off": True},
        {"offset": None},
    ],
)
def test_common_options_out_of_range_are_refused(options):
    for function in (reward_source, check_reward):
        with pytest.raises(ConfigError, match="reward gold: ") as error:
            function("gold", **options)
        assert (error.value.field, error.value.reason) == (next(iter(options)), "out of range")


# What is refused, and how


@pytest.mark.parametrize("call", [reward_source, check_reward])
def test_unknown_names_and_options_name_the_nearest(call):
    with pytest.raises(
        ConfigError, match="no reward `glod`. Did you mean `gold`.*countdown_shaped"
    ):
        call("glod")
    with pytest.raises(
        ConfigError, match="no option `ful_words`. Did you mean `full_words`.*cut_off"
    ):
        call("text", ful_words=3)
    for name, options, field, reason in (
        ("model", {}, "model_name_or_path", "missing"),
        ("text", {"full_words": 0}, "full_words", "out of range"),
        ("text", {"few_words": 1.5}, "few_words", "out of range"),
        ("text", {"repetition_cost": -1.0}, "repetition_cost", "out of range"),
        ("text", {"few_cost": math.nan}, "few_cost", "out of range"),
    ):
        with pytest.raises(ConfigError) as error:
            call(name, **options)
        assert (error.value.field, error.value.reason) == (field, reason)


def test_a_prompt_from_elsewhere_names_row_and_answer():
    with pytest.raises(
        DataError,
        match=(
            r"reward gold: answer 1 \('Hello.'\) to 'Who are you\?' \(row test row 7\).*world.TASKS"
        ),
    ):
        reward_source("gold")([ROWS[0], row("Who are you?")], say("Red.", "Hello."))
    with pytest.raises(DataError, match="answer 0.*no column target"):
        reward_source("countdown")([row("Make 3.", nums=[3])], say("3"))
    with pytest.raises(DataError, match="answer 0.*no column nums and no target"):
        reward_source("countdown_shaped")([{"prompt": []}], say("3"))


def test_unequal_lengths_are_refused():
    with pytest.raises(DataError, match="4 rows and 3 answers"):
        reward_source("gold")(ROWS, ANSWERS[:3])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_reward_that_is_no_finite_number_names_row_and_answer(value):
    register_reward("broken", lambda: lambda rows, answers: [0.0, value])
    with pytest.raises(
        NotFinite,
        match=(
            r"reward broken: -?(nan|inf) for answer 1 \('.*'\) to 'What colour is the fox\?' \(row "
            r"test row 7\)"
        ),
    ):
        reward_source("broken")(ROWS[:2], ANSWERS[:2])
    # not hidden by cut_off
    with pytest.raises(NotFinite):
        reward_source("broken", cut_off=0.0)(ROWS[:2], say("a", "b", ended=False))
    register_reward("huge", lambda: lambda rows, answers: [1e300])
    with pytest.raises(NotFinite):
        reward_source("huge", scale=1e300)(ROWS[:1], ANSWERS[:1])


@pytest.mark.parametrize("value", [None, "good", {"score": 1.0}, {"reward": None}, [1.0, 2.0]])
def test_what_is_no_reward_is_refused(value):
    register_reward("odd", lambda: each_answer(lambda row, answer: value))
    with pytest.raises(ConfigError, match="reward odd: .* is neither a number nor a dict"):
        reward_source("odd")(ROWS[:1], ANSWERS[:1])


def test_too_few_rewards_are_refused():
    register_reward("lazy", lambda: lambda rows, answers: [1.0])
    with pytest.raises(ConfigError, match="1 rewards for 4 answers"):
        reward_source("lazy")(ROWS, ANSWERS)


# Before training


def test_check_reward_passes_what_fits(folder):
    (
        check_reward("gold", ROWS[0]),
        check_reward("second", {"prompt": "What colour is the fox?"}),
        check_reward("gold", ["prompt"]),
        check_reward("gold"),
    )
    (
        check_reward("gold", {"prompt": ROWS[0]["prompt"]}),
        check_reward("text", {"prompt": "Anything at all"}, full_words=200),
    )
    (
        check_reward("countdown", PUZZLE),
        check_reward("countdown_shaped", {"nums": [1, 2], "target": 3}),
        check_reward("countdown", ["nums", "target", "prompt"]),
    )
    check_reward("model", ROWS[0], model_name_or_path=str(folder), scale=2.0)
    # not there yet, and not looked up
    (
        check_reward("model", model_name_or_path="stage:reward"),
        check_reward("model", model_name_or_path="owner/name"),
    )


@pytest.mark.parametrize(
    "name, record, says",
    [
        ("gold", {"prompt": "Who are you?"}, "reward gold: .*tiny world only.*`model` or `text`"),
        ("second", row("Who are you?"), "reward second"),
        ("countdown", {"prompt": "x"}, "reward countdown: .*no column nums and no target"),
        ("countdown_shaped", ["nums"], "no column target"),
        ("countdown", {"nums": ["1"], "target": 3}, "whole numbers"),
        ("countdown", {"nums": [1], "target": 3.5}, "whole numbers"),
        ("countdown", {"nums": [], "target": 3}, "whole numbers"),
        ("countdown", {"nums": "12", "target": 3}, "whole numbers"),
    ],
)
def test_check_reward_refuses_data_that_do_not_fit(name, record, says):
    with pytest.raises((ConfigError, DataError), match=says):
        check_reward(name, record)


def test_numbers_as_a_data_frame_gives_them_are_read():
    record = {"nums": np.array([2, 4, 6]), "target": np.int64(26)}
    check_reward("countdown", record)
    assert numbers(
        reward_source("countdown")(
            [{"prompt": [], "record": record}], say("<answer>2 + 4 * 6</answer>")
        )
    ) == [1.0]


def test_check_reward_looks_into_the_models_folder(folder, tmp_path):
    def copy(name):
        for file in folder.iterdir():
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / file.name).write_bytes(file.read_bytes())
        return tmp_path / name

    refuses("nowhere/at/all", "model_name_or_path", "not found")
    broken = copy("broken")
    (broken / "model.safetensors").unlink()
    refuses(broken, "model_name_or_path", "incomplete")
    three = copy("three")
    config = json.loads((three / "config.json").read_text())
    (three / "config.json").write_text(
        json.dumps(
            {
                **config,
                "id2label": {"0": "a", "1": "b", "2": "c"},
                "label2id": {"a": 0, "b": 1, "c": 2},
            }
        )
    )
    refuses(three, "model_name_or_path", "several numbers")
    refuses(folder, "batch_size", "out of range", batch_size=0)
    with pytest.raises(ConfigError, match="max_length"):
        check_reward("model", model_name_or_path=str(folder), max_length=0)


def refuses(path, field, reason, **options):
    with pytest.raises(ConfigError, match="reward model: ") as error:
        check_reward("model", model_name_or_path=str(path), **options)
    assert (error.value.field, error.value.reason) == (field, reason)


@pytest.mark.parametrize("call", [check_reward, reward_source])
def test_a_language_model_is_not_taken_for_a_reward_model(call):
    "Transformers would draw a random head and say so in a warning only."
    with pytest.raises(ConfigError, match="Qwen2ForCausalLM, without a head.*stage:NAME"):
        call("model", model_name_or_path=BASE)


# A reward of one's own


def test_a_reward_of_ones_own():
    register_reward(
        "calm",
        lambda most=1: each_answer(lambda row, answer: -max(0, answer["text"].count("!") - most)),
    )
    assert numbers(reward_source("calm")(ROWS[:2], say("Oh!", "Oh!!!"))) == [0.0, -2.0]
    assert numbers(reward_source("calm", most=0, scale=2.0)(ROWS[:2], say("Oh!", "Oh!!!"))) == [
        -2.0,
        -6.0,
    ]
    check_reward("calm", None, most=3)
    with pytest.raises(ConfigError, match="no option `mots`. Did you mean `most`"):
        reward_source("calm", mots=1)
    # once more, while one works on it
    register_reward("calm", lambda: each_answer(lambda row, answer: 1.0))
    assert numbers(reward_source("calm")(ROWS[:1], ANSWERS[:1])) == [1.0]


def test_a_check_of_ones_own():
    def needs(record, **options):
        if record is not None and "solution" not in record:
            raise DataError("the data have no column solution. Take another data set.")

    register_reward(
        "exact",
        lambda: each_answer(lambda row, answer: answer["text"] == row["record"]["solution"]),
        needs,
    )
    check_reward("exact", row("?", solution="4"))
    with pytest.raises(DataError, match="reward exact: the data have no column solution"):
        check_reward("exact", ROWS[0])
    assert numbers(reward_source("exact")([row("?", solution="4")] * 2, say("4", "5"))) == [
        1.0,
        0.0,
    ]


def test_a_class_of_ones_own():
    @dataclass(kw_only=True)
    class Calm(RewardSource):
        most: int = 1

        def __post_init__(self):
            super().__post_init__()
            check_number("most", self.most, whole=True, least=0)

        def rate(self, row, answer):
            return -max(0, answer["text"].count("!") - self.most)

    register_reward("calm", Calm)
    source = reward_source("calm", most=0, scale=2.0)
    assert numbers(source(ROWS[:2], say("Oh!", "Oh!!!"))) == [-2.0, -6.0]
    assert source.fingerprint() != reward_source("calm", scale=2.0).fingerprint()
    assert numbers(Calm(most=0)(ROWS[:1], say("Oh!"))) == [-1.0]
    with pytest.raises(ConfigError, match="reward calm: most is -1"):
        check_reward("calm", most=-1)


def test_a_function_is_a_source():
    source = FunctionReward("short", lambda rows, answers: [-3.0] * len(rows), offset=-4.0)
    assert source(ROWS[:2], ANSWERS[:2]) == [{"reward": 1.0, "raw": -3.0}] * 2
    with pytest.raises(DataError, match="reward short: 4 rows"):
        source(ROWS, ANSWERS[:1])


@pytest.mark.parametrize("name", [kind.name for kind in BUILT_IN_REWARDS])
def test_built_in_names_are_not_taken_over(name):
    with pytest.raises(ConfigError, match=name):
        register_reward(name, lambda: None)


# A run's identity


def test_fingerprints_tell_names_and_options_apart_and_nothing_else():
    sources = [
        reward_source("gold"),
        reward_source("second"),
        reward_source("gold", scale=2.0),
        reward_source("gold", cut_off=0.0),
        reward_source("text"),
        reward_source("text", full_words=10),
    ]
    assert len({source.fingerprint() for source in sources}) == len(sources)
    assert reward_source("gold", scale=1.0).fingerprint() == sources[0].fingerprint()
    assert reward_source("text", full_words=64).fingerprint() == sources[4].fingerprint()
    # runs of earlier versions are resumed by these
    assert sources[0].fingerprint() == "09712768b57fc6c4"
    assert sources[5].fingerprint() == "37ddbd6460a9fc0f"


def test_fingerprint_of_a_model_goes_by_its_files(folder, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    make = lambda path, **options: reward_source("model", model_name_or_path=str(path), **options)
    before = make(folder)
    mark = before.fingerprint()
    # the same model elsewhere, scored in other batches
    assert mark == make(copy, batch_size=2).fingerprint()
    assert mark != make(copy, max_length=100).fingerprint()
    assert mark != make(copy, offset=1.0).fingerprint()
    scalar_head(BASE, seed=4).save_pretrained(copy)
    assert make(copy).fingerprint() != mark == before.fingerprint()


def test_importing_is_cheap():
    heavy = ("torch", "transformers", "pandas", "scipy", "datasets", "matplotlib", "fastcore")
    code = (
        f"import sys, prefkit.judging.rewards as r; r.check_reward('gold', {{'prompt': 'What "
        f"colour is the fox?'}}); r.reward_source('text'); r.reward_source('gold'); "
        f"r.reward_source('countdown'); print([m for m in {heavy!r} if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=project_root(),
    )
    assert done.stdout.strip() == "[]", done.stdout
