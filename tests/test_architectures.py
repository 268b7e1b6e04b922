"""Architectures of other people: each trains, samples and judges rightly, or is refused by name.

What is right is said by transformers itself: one text at a time, nothing filled up, no cache.
"""

import math

import pytest
import torch
from helpers.architectures import ARCHITECTURES, TOKENIZER, build, saved
from torch.testing import assert_close

from prefkit.core import ConfigError, DataError
from prefkit.data.records import encode_records, load_records
from prefkit.judging.reward_model import scalar_head, sequence_rewards
from prefkit.judging.rewards import FunctionReward
from prefkit.model.batches import batch_logps, choose_layout, collate
from prefkit.model.limits import dropout_of
from prefkit.model.loading import load_model
from prefkit.model.sampling import beam_ids, generate, reading_way, sample_ids
from prefkit.data.records import Records, RowReport
from prefkit.runs.pipelines import prompts_that_fit
from prefkit.train.loop import train_model
from prefkit.train.rollout import sample_answers
from prefkit.train.rounds import train_online
from prefkit.train.settings import RolloutSettings, TrainSettings

ANSWERS = ("chosen", "rejected")
QUICK = ("llama", "mistral", "gpt2", "lfm2")
SHORT = {"max_steps": 2, "batch_size": 4, "logging_steps": 1, "show_samples": 0, "device": "cpu"}


@pytest.fixture(scope="module")
def pairs():
    records = load_records("tiny-world", kind="pairs", limit=12)
    return encode_records(records, TOKENIZER, kind="pairs")[0]


@pytest.fixture(scope="module")
def prompts():
    records = load_records("tiny-world", kind="prompts", limit=6)
    return encode_records(records, TOKENIZER, kind="prompts")[0]


@torch.no_grad()
def plain_logps(model, row, answer):
    "Sum of log-probs of an answer, read alone."
    ids = torch.tensor([row["prompt_ids"] + row[f"{answer}_ids"]])
    logps = model(input_ids=ids, use_cache=False).logits.log_softmax(-1)[0, :-1]
    return logps.gather(-1, ids[0, 1:, None])[len(row["prompt_ids"]) - 1 :].sum()


def plain_greedy(model, prompt, tokens):
    "Token ids of transformers' own greedy answer to one prompt, without a cache."
    ids, end = torch.tensor([prompt]), TOKENIZER.eos_token_id
    options = {"do_sample": False, "use_cache": False, "max_new_tokens": tokens}
    options |= {"eos_token_id": [end, TOKENIZER.pad_token_id], "pad_token_id": 0}
    made = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
    return made[0, len(prompt) :].tolist()


def check_reading(name, model, pairs):
    layout = choose_layout(model, pairs, ANSWERS, 0)
    assert layout == ARCHITECTURES[name].layout
    wanted = torch.stack([plain_logps(model, row, answer) for answer in ANSWERS for row in pairs])
    for each in {layout, "apart"}:
        found = batch_logps(model, collate(pairs, ANSWERS, 0, each)).detach()
        assert_close(found, wanted, rtol=1e-5, atol=1e-4)


def check_sampling(name, model, prompts):
    ids = [row["prompt_ids"] for row in prompts]
    assert len({len(each) for each in ids}) > 2  # something has to be filled up
    wanted = [plain_greedy(model, prompt, 24) for prompt in ids]
    groups = sample_answers(model, TOKENIZER, ids, k=2, temperatures=0.0, max_new_tokens=24)
    assert [[sample.ids for sample in group] for group in groups] == [[x, x] for x in wanted]
    assert reading_way(model, ids, 0) == ARCHITECTURES[name].way


def check_dpo(name, folder, pairs):
    model, tokenizer = load_model(folder)
    had = dropout_of(model)
    settings = TrainSettings(**SHORT, learning_rate=1e-3)
    given = (pairs[:8], pairs[8:], f"{folder}-dpo", settings)
    result = train_model(model, tokenizer, "dpo", *given)
    start, first = result.metrics[:2]
    for line in (start, first):  # validation, and the first step, where dropout would fall
        assert line["loss"] == pytest.approx(math.log(2), abs=1e-5)
        assert line["logratio_chosen"] == pytest.approx(0, abs=1e-3)
        assert line["logratio_rejected"] == pytest.approx(0, abs=1e-3)
    assert any("switched off" in note for note in result.notes) == bool(had)
    simpler = [note for note in result.notes if "cannot read batches" in note]
    assert len(simpler) == (ARCHITECTURES[name].layout != "packed")
    assert dropout_of(load_model(str(result.path))[0]) == had  # what is written is what came


def check_rloo(name, folder, prompts):
    model, tokenizer = load_model(folder)
    source = FunctionReward("tokens", lambda rows, answers: [x["tokens"] % 5 for x in answers])
    settings = RolloutSettings(**{**SHORT, "batch_size": 3}, samples=2, max_new_tokens=8)
    given = (prompts[:3], prompts[3:], f"{folder}-rloo", source, settings)
    result = train_online(model, tokenizer, "rloo", *given)
    assert result.metrics[0]["kl_k1"] == pytest.approx(0, abs=1e-3)
    assert result.metrics[1]["logps_gap"] == pytest.approx(0, abs=1e-4)
    slower = [note for note in result.notes if "prompts are read" in note]
    assert len(slower) == (ARCHITECTURES[name].way != "padded")


def check_reward_model(name, folder, pairs):
    if not ARCHITECTURES[name].reward:
        with pytest.raises(ConfigError, match="AutoModelForSequenceClassification") as error:
            scalar_head(folder)
        assert error.value.reason == "cannot be loaded"
        return
    model = scalar_head(folder)
    sequences = [row["prompt_ids"] + row["chosen_ids"] for row in pairs]
    with torch.no_grad():
        alone = [model(torch.tensor([ids])).logits.item() for ids in sequences]
    assert sequence_rewards(model, sequences) == pytest.approx(alone, abs=1e-4)
    given = (pairs[:8], pairs[8:], f"{folder}-reward", TrainSettings(**SHORT))
    result = train_model(model, TOKENIZER, "reward_model", *given)
    assert result.steps == 2 and all(math.isfinite(line["loss"]) for line in result.metrics)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in ARCHITECTURES],
)
def test_an_architecture_is_read_sampled_and_trained_rightly(name, tmp_path, pairs, prompts):
    model = build(name)
    check_reading(name, model, pairs)
    check_sampling(name, model, prompts)
    folder = saved(tmp_path / name, model)
    check_dpo(name, folder, pairs)
    check_rloo(name, folder, prompts)
    check_reward_model(name, folder, pairs)


# ---- attention and caches


def row(prompt, chosen, rejected):
    "Lengths as an encoded row."
    texts = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    numbers = iter(range(5, 1000))
    return {f"{name}_ids": [next(numbers) for _ in range(n)] for name, n in texts.items()}


@pytest.mark.parametrize("name", ["mistral", "gemma3", "llama4"])
@pytest.mark.parametrize("part", ["validation", "probe"])
def test_a_layout_is_proven_on_the_longest_row_of_all_parts(name, part, tmp_path):
    "Rows that are trained on fit into the window; those that are looked at do not."
    short, long = [row(5, 4, 3), row(6, 3, 5)], [row(20, 9, 4), row(5, 4, 6)]
    assert choose_layout(build(name), short, ANSWERS, 0) == "packed"
    for rows, layout in ((short, "packed"), (long, "apart")):
        parts = {"validation": rows, "probe": rows}
        method = "dpo" if part == "validation" else "sft"
        train = short
        if method == "sft":
            train = [
                {"prompt_ids": x["prompt_ids"], "response_ids": x["chosen_ids"]} for x in short
            ]
        result = train_model(
            build(name),
            TOKENIZER,
            method,
            train,
            parts["validation"] if method == "dpo" else None,
            tmp_path / layout,
            TrainSettings(**{**SHORT, "batch_size": 2}),
            probe_rows=parts["probe"] if method == "sft" else None,
        )
        said = any("cannot read batches that are packed" in note for note in result.notes)
        assert said == (layout == "apart")


def test_samples_count_among_the_rows_that_will_be_read(tmp_path, prompts):
    "A window that holds every prompt, and not the prompt with its answer."
    longest = max(len(x["prompt_ids"]) for x in prompts)
    source = FunctionReward("none", lambda rows, answers: [0.0 for _ in answers])
    notes = {}
    for tokens in (4, 24):
        settings = RolloutSettings(**{**SHORT, "max_steps": 1}, samples=2, max_new_tokens=tokens)
        model = build("mistral", sliding_window=longest + 10)
        folder = tmp_path / str(tokens)
        result = train_online(model, TOKENIZER, "rloo", prompts, None, folder, source, settings)
        notes[tokens] = [note for note in result.notes if "cannot read" in note]
    # two answers behind a prompt: positions start again, so the window counts each alone
    assert notes[4] == [] and len(notes[24]) == 1


def test_a_model_that_reads_rows_together_is_refused_by_name(pairs):
    "What it says of one answer depends on the others: no layout is right."
    model = build("llama")
    original = model.model.forward

    def mixed(*args, **kwargs):
        out = original(*args, **kwargs)
        states = out.last_hidden_state
        out.last_hidden_state = states + states.mean((0, 1), keepdim=True)
        return out

    model.model.forward = mixed
    with pytest.raises(ConfigError, match="LlamaForCausalLM") as error:
        choose_layout(model, pairs, ANSWERS, 0)
    assert (error.value.field, error.value.reason) == ("model", "depends on its neighbours")


@pytest.mark.parametrize("name", ["lfm2", "mamba"])
def test_beams_go_where_a_cache_can_be_shared_out(name, prompts):
    model, ids = build(name), [row["prompt_ids"] for row in prompts]
    options = {"stop_ids": [2], "pad_token_id": 0, "max_new_tokens": 8, "beams": 2}
    together = beam_ids(model, ids, **options)
    assert together == [beam_ids(model, [each], **options)[0] for each in ids]


def test_beams_are_refused_where_there_is_no_cache(prompts):
    with pytest.raises(ConfigError) as error:
        beam_ids(build("recurrent_gemma"), [[5, 6, 7]], stop_ids=[2], pad_token_id=0, beams=2)
    assert (error.value.field, error.value.reason) == ("beams", "no cache")


def test_a_slower_way_of_reading_is_said_once(capsys, prompts):
    model, ids = build("mamba"), [row["prompt_ids"] for row in prompts]
    for _ in range(2):
        sample_ids(model, ids, stop_ids=[2], pad_token_id=0, max_new_tokens=2)
    said = capsys.readouterr().out
    assert said.count("MambaForCausalLM reads prompts so: only prompts of one length") == 1


# ---- positions


def test_prompts_beyond_the_positions_are_named_before_anything_is_generated():
    learned, rotary = build("gpt2", n_positions=32), build("llama", max_position_embeddings=32)
    ask = {"stop_ids": [2], "pad_token_id": 0, "max_new_tokens": 8}
    long, near = [5] * 40, [5] * 28
    for model in (learned, rotary):
        with pytest.raises(DataError, match="prompt q2: it has 40 tokens") as error:
            sample_ids(model, [near[:9], long], streams=["q1", "q2"], **ask)
        assert (error.value.field, error.value.reason) == ("prompts", "beyond the positions")
    with pytest.raises(DataError, match="max_new_tokens: 4"):  # the answer has no place
        sample_ids(learned, [near], **ask)
    assert len(sample_ids(learned, [near], **{**ask, "max_new_tokens": 4})) == 1
    assert len(sample_ids(rotary, [near], **ask)) == 1  # rotary positions go on


def test_an_evaluation_names_the_prompt_before_any_model_answers(tmp_path):
    "The model with too few positions is the second; the first has not been loaded."
    folders = {
        name: saved(tmp_path / name, build(name, **{positions: n}))
        for name, positions, n in (
            ("llama", "max_position_embeddings", 512),
            ("gpt2", "n_positions", 64),
        )
    }
    texts = {"p0": "Where does the owl live? " * 9} | {f"p{n}": f"Count {n}!" for n in range(1, 21)}
    rows = [{"prompt_id": name, "prompt": text} for name, text in texts.items()]
    asked = Records(rows, RowReport("asked.jsonl", read=len(rows), kept=len(rows)))
    short = [{"max_new_tokens": 8}, {"max_new_tokens": 2}]
    alone = prompts_that_fit(asked, {"llama": folders["llama"]}, short)
    assert len(alone) == 21 and not alone.report.dropped

    fitting = prompts_that_fit(asked, folders, short)
    assert [row["prompt_id"] for row in fitting] == [*texts][1:]
    [(reason, entry)] = fitting.report.dropped.items()
    assert reason == "beyond the positions" and not entry["asked"]
    assert "prompt p0: models, gpt2: prompt p0: it has" in entry["examples"][0]
    assert asked.report.kept == 21  # the account of what was read stays as it was

    with pytest.raises(DataError, match="prompt p0: models, gpt2: .* Or let bad rows go"):
        prompts_that_fit(asked, folders, short, on_bad_rows="error")
    with pytest.raises(DataError, match="no row is left") as error:  # they fit, with no answer
        prompts_that_fit(asked, folders, [{"max_new_tokens": 60}])
    assert error.value.reason == "no row is left"


def test_rows_beyond_learned_positions_are_refused_and_beyond_rotary_ones_noted(tmp_path):
    rows, settings = [row(5, 4, 3), row(30, 9, 4)], TrainSettings(**{**SHORT, "batch_size": 2})
    with pytest.raises(DataError, match="train_rows, row 1: it has 39 tokens") as error:
        train_model(
            build("gpt2", n_positions=32), TOKENIZER, "dpo", rows, None, tmp_path / "1", settings
        )
    assert (error.value.field, error.value.reason) == ("max_length", "beyond the positions")
    assert not (tmp_path / "1" / "training.json").exists()
    model = build("llama", max_position_embeddings=32)
    result = train_model(model, TOKENIZER, "dpo", rows, None, tmp_path / "2", settings)
    assert [note for note in result.notes if "1 of 2 rows are longer than the 32" in note]


def test_rewards_beyond_learned_positions_name_the_sequence(tmp_path):
    folder = saved(tmp_path / "gpt2", build("gpt2", n_positions=32))
    with pytest.raises(DataError, match="sequences, row 1: it has 40 tokens"):
        sequence_rewards(scalar_head(folder), [[5] * 9, [5] * 40])


# ---- dropout


@pytest.mark.parametrize(
    "wanted, first_is_exact", [(False, True), (0.0, True), (True, False), (0.5, False)]
)
def test_dropout_of_the_start_model_falls_only_where_it_is_asked_for(
    wanted, first_is_exact, tmp_path, pairs
):
    settings = TrainSettings(**SHORT, dropout=wanted, learning_rate=1e-9)
    model = build("gpt2")
    assert dropout_of(model)["resid_pdrop"] == 0.1
    result = train_model(model, TOKENIZER, "dpo", pairs[:8], None, tmp_path / "run", settings)
    exact = abs(result.metrics[0]["loss"] - math.log(2)) < 1e-6
    assert exact == first_is_exact
    said = {False: "switched off", True: None, 0.5: "set to 0.5"}[wanted]
    assert [said in note for note in result.notes if "dropout" in note] == [True] * bool(said)


@pytest.mark.parametrize("name", ["opt", "phi3", "neox"])
def test_dropout_that_is_a_number_in_a_module_is_switched_off_too(name, tmp_path, pairs):
    "Attention often keeps its probability as a number, OPT keeps all of them so."
    drops = {"opt": {"dropout": 0.3, "attention_dropout": 0.3}, "phi3": {"resid_pdrop": 0.3}}
    model = build(name, **drops.get(name, {"attention_dropout": 0.3}))
    result = train_model(model, TOKENIZER, "dpo", pairs[:8], None, tmp_path, TrainSettings(**SHORT))
    assert result.metrics[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)


def test_adapters_keep_their_own_dropout(tmp_path, pairs):
    settings = TrainSettings(**SHORT, lora=True, lora_dropout=0.4, learning_rate=1e-3)
    first, *_ = (
        train_model(build("gpt2"), TOKENIZER, "dpo", pairs, None, tmp_path / "one", settings),
    )
    without = TrainSettings(**{**SHORT, "lora": True, "learning_rate": 1e-3})
    other = train_model(build("gpt2"), TOKENIZER, "dpo", pairs, None, tmp_path / "two", without)
    assert first.metrics[-1]["loss"] != other.metrics[-1]["loss"]


def test_answers_of_a_chat_are_those_of_plain_reading():
    "`generate`, which validations and judges use, on a model with convolutions."
    model = build("lfm2")
    chats = [[{"role": "user", "content": "Where " * n + "?"}] for n in (1, 9, 4)]
    for answer, chat in zip(generate(model, TOKENIZER, chats, max_new_tokens=12), chats):
        ids = TOKENIZER.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)
        wanted = plain_greedy(model, ids["input_ids"], 12)
        assert answer["tokens"] == len(wanted)
