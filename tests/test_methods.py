"""The method table: every row trains through the one trainer, logs what it is watched for, and a
new row takes five lines.
"""

import json, math

import pytest, torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from prefkit.model.batches import LAYOUTS, batch_logps, collate, reference_logps
from prefkit.runs.config import read_notebook
from prefkit.core import ConfigError, PrefkitError, project_root
from prefkit.data.records import encode_records, load_records
from prefkit.model.kernels import use_rows
from prefkit.losses import dpo_loss
from prefkit.train.inputs import BinaryInputs
from prefkit.train.methods import (
    EXTRA_ANSWERS,
    METHODS,
    Method,
    add_method,
    get_method,
    loss_inputs,
    methods,
    own_metrics,
)
from prefkit.train.settings import TrainSettings
from prefkit.train.loop import train_model
from prefkit.train.saves import read_claim, write_claim

BASE = project_root() / "data/tiny/base"
OFFLINE = methods(online=False)
PREFERENCE = [name for name, row in OFFLINE.items() if row.kind != "sft" and row.output == "logps"]
OWN = {
    "xpo": {"bonus", "logratio_explore"},
    "kto": {"kl"},
    "topr": {"weight", "share_clipped"},
    "topr_per_token": {"weight", "share_clipped"},
    "orpo": {"log_odds_ratio"},
    "probability_ratio": {"log_odds_ratio"},
    "simpo": {"margin_per_token"},
}


@pytest.fixture(scope="module")
def rows(tokenizer):
    records = {
        kind: load_records("tiny-world", kind=kind, limit=16) for kind in ("pairs", "binary")
    }
    return {kind: encode_records(some, tokenizer, kind=kind)[0] for kind, some in records.items()}


def trained(folder, tokenizer, rows, method, model=None, hyperparameters=None, **changes):
    settings = TrainSettings(
        **{
            **dict(
                learning_rate=1e-3,
                batch_size=8,
                max_steps=3,
                logging_steps=1,
                show_samples=0,
                device="cpu",
            ),
            **changes,
        }
    )
    model = model or AutoModelForCausalLM.from_pretrained(BASE)
    some = rows[get_method(method).kind]
    return train_model(model, tokenizer, method, some, some[:4], folder, settings, hyperparameters)


def test_the_table_has_every_offline_method():
    assert set(METHODS) >= {
        "sft",
        "dpo",
        "ipo",
        "dpop",
        "minor_dpo",
        "xpo",
        "simpo",
        "orpo",
        "probability_ratio",
        "kto",
        "topr",
        "reward_model",
    }
    for row in OFFLINE.values():
        assert set(row.defaults) <= set(row.sources), f"{row.name}: a default without its source"


@pytest.mark.parametrize("method", PREFERENCE)
def test_every_method_trains_and_logs_what_it_is_watched_for(method, tmp_path, tokenizer, rows):
    before = AutoModelForCausalLM.from_pretrained(BASE)
    result = trained(tmp_path, tokenizer, rows, method)
    train, validation = (
        [line for line in result.metrics if line["split"] == split]
        for split in ("train", "validation")
    )
    assert len(train) == 3 and len(validation) == 2
    assert all(
        math.isfinite(value)
        for line in train
        for value in line.values()
        if isinstance(value, float)
    )
    assert set(own_metrics(train[0])) >= OWN.get(method, set()) and (method in OWN) == bool(
        own_metrics(train[0])
    )
    moved = sum(
        (a - b).abs().sum().item() for a, b in zip(before.parameters(), result.model.parameters())
    )
    assert moved > 0
    if get_method(method).reference:
        assert abs(train[0]["logratio_chosen"]) < 1e-3 < abs(train[-1]["logratio_chosen"])


@pytest.mark.parametrize(
    "method, start",
    [("dpo", math.log(2)), ("ipo", 25.0), ("dpop", math.log(2)), ("minor_dpo", math.log(2))],
)
def test_the_first_loss_is_the_one_that_the_formula_gives_at_policy_equals_reference(
    method, start, tmp_path, tokenizer, rows
):
    result = trained(tmp_path, tokenizer, rows, method, learning_rate=1e-5, max_steps=1)
    assert result.metrics[0]["loss"] == pytest.approx(start, rel=1e-4)


def test_a_made_up_method_takes_five_lines(tmp_path, tokenizer, rows):
    def hinge(
        policy_chosen_logps,
        policy_rejected_logps,
        ref_chosen_logps,
        ref_rejected_logps,
        *,
        beta=0.1,
    ):
        margin = (policy_chosen_logps - ref_chosen_logps) - (
            policy_rejected_logps - ref_rejected_logps
        )
        return torch.relu(1 - beta * margin)

    add_method(
        Method(
            "hinge",
            hinge,
            "pairs",
            reference=True,
            defaults={"beta": 0.1},
            watch=lambda inputs, hyper: {"answers": inputs.chosen_lengths},
        )
    )
    try:
        result = trained(tmp_path, tokenizer, rows, "hinge", hyperparameters={"beta": 0.5})
    finally:
        del METHODS["hinge"]
    assert (
        result.metrics[0]["loss"] == pytest.approx(1, abs=1e-3)
        and result.metrics[-1]["answers"] > 0
    )
    assert (
        AutoModelForCausalLM.from_pretrained(result.path).num_parameters()
        == result.model.num_parameters()
    )


@pytest.mark.slow
def test_every_layout_trains_to_the_same_numbers(tmp_path, tokenizer, rows):
    for method in ("dpo", "kto", "xpo"):
        plain, *others = (
            trained(tmp_path / f"{method}{layout}", tokenizer, rows, method, layout=layout).metrics
            for layout in LAYOUTS
        )
        for line, *same in zip(plain, *others, strict=True):
            for name in ("loss", "logps_chosen", "logps_rejected", "kl", "bonus"):
                if name in line:
                    assert [other[name] for other in same] == pytest.approx(
                        [line[name]] * 2, rel=1e-3, abs=1e-3
                    ), (method, name)


def test_mismatched_answers_are_of_another_prompt_and_cost_one_pass(tokenizer, rows):
    partners = EXTRA_ANSWERS["mismatched"](None, rows["binary"], seed=0)
    own = {tuple(row["prompt_ids"]): [] for row in rows["binary"]}
    for row in rows["binary"]:
        own[tuple(row["prompt_ids"])].append(row["response_ids"])
    room = max(len(row["prompt_ids"]) + len(row["response_ids"]) for row in rows["binary"])
    for row, partner in zip(rows["binary"], partners):
        assert (
            partner not in own[tuple(row["prompt_ids"])]
            and len(row["prompt_ids"]) + len(partner) <= room
        )
    one = [{**row, "prompt_ids": [1, 2]} for row in rows["binary"]]
    with pytest.raises(ConfigError, match="prompt"):
        EXTRA_ANSWERS["mismatched"](None, one, seed=0)


def test_z0_is_the_mean_over_mismatched_answers_and_takes_no_gradient(tokenizer, rows):
    method, model = get_method("kto"), AutoModelForCausalLM.from_pretrained(BASE)
    use_rows(model)
    made = [
        {**row, "mismatched_ids": ids}
        for row, ids in zip(
            rows["binary"], EXTRA_ANSWERS["mismatched"](None, rows["binary"], seed=0)
        )
    ]
    refs = reference_logps(model, made, method.answers(), 0)
    batch = collate([{**row, **ref} for row, ref in zip(made, refs)], method.answers(), 0, "packed")
    # as if the policy had moved by half a nat on every answer
    values = batch_logps(model, batch) + 0.5
    inputs = loss_inputs(method, batch, values)
    assert inputs.kl.item() == pytest.approx(0.5, abs=1e-3) and not inputs.kl.requires_grad


def test_kto_refuses_a_batch_of_one(tmp_path, tokenizer, rows):
    with pytest.raises(ConfigError, match="batch_size.*z0"):
        trained(tmp_path, tokenizer, rows, "kto", batch_size=1)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_samples_of_the_reference_are_drawn_once_and_kept(tmp_path, tokenizer, rows, monkeypatch):
    result = trained(tmp_path, tokenizer, rows, "xpo", keep_checkpoints=True)
    monkeypatch.setattr(
        "prefkit.train.methods.sample_ids", lambda *args, **kwargs: pytest.fail("drawn again")
    )
    place = tmp_path / "training.json"
    write_claim(place, {**read_claim(place), "finished": False})
    again = trained(tmp_path, tokenizer, rows, "xpo", keep_checkpoints=True)
    # the run was gone through anew, from its last checkpoint
    assert again.resumed_from == result.steps


def test_topr_reads_rewards_from_rows_and_one_over_the_labels(tokenizer, rows):
    labelled = collate(rows["binary"], ("response",), 0)
    assert labelled.labels["rewards"].tolist() == [
        1.0 if row["label"] else -1.0 for row in rows["binary"]
    ]
    scored = collate([{**row, "reward": -0.25} for row in rows["binary"]], ("response",), 0)
    assert set(scored.labels["rewards"].tolist()) == {-0.25}


@pytest.mark.parametrize(
    "place, match",
    [
        ("policy", "log-prob of the chosen answer in row"),
        ("loss", "finite, but the loss broken of row"),
    ],
)
def test_a_nan_is_traced_to_where_it_arose(place, match, tmp_path, tokenizer, rows):
    def broken(policy_chosen_logps, policy_rejected_logps, *, scale=1.0):
        return (policy_chosen_logps - policy_rejected_logps) * (
            math.nan if place == "loss" else scale
        )

    add_method(Method("broken", broken, "pairs", reference=False, defaults={"scale": 1.0}))
    model = AutoModelForCausalLM.from_pretrained(BASE)
    if place == "policy":
        model.lm_head.weight.data[5] = math.nan
    try:
        with pytest.raises(PrefkitError, match=match):
            trained(tmp_path, tokenizer, rows, "broken", model=model)
    finally:
        del METHODS["broken"]


@pytest.mark.parametrize(
    "method, given, name",
    [
        ("dpo", {"beta": -1}, "beta"),
        ("simpo", {"gama": 1}, "gamma"),
        ("topr", {"ratio_low": 2.0}, "ratio"),
        ("kto", {"weight_desirable": -1.0}, "weight_desirable"),
        ("ipo", {"tau": 0}, "tau"),
    ],
)
def test_hyperparameters_are_checked_before_training(method, given, name):
    with pytest.raises(ConfigError, match=name):
        get_method(method).hyperparameters(given)


def test_dpo_by_way_of_the_table_is_the_loss_itself(tokenizer, rows):
    model = AutoModelForCausalLM.from_pretrained(BASE)
    batch = collate(
        [{**row, "ref_chosen_logps": -20.0, "ref_rejected_logps": -25.0} for row in rows["pairs"]],
        ("chosen", "rejected"),
        0,
    )
    values = batch_logps(model, batch)
    inputs = loss_inputs(get_method("dpo"), batch, values)
    torch.testing.assert_close(
        dpo_loss(*inputs.asked(get_method("dpo").inputs()).values()),
        dpo_loss(
            *values.chunk(2),
            batch.reference["ref_chosen_logps"],
            batch.reference["ref_rejected_logps"],
        ),
    )


def run_pipeline(folder, **parameters):
    "The cells of the pipeline `preference`, in this process, with these parameters."
    path, names = project_root() / "nbs/pipelines/preference.ipynb", {"__name__": "pipeline"}
    for cell in read_notebook(path)["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), "preference.ipynb", "exec"), names)
        if "parameters" in cell["metadata"].get("tags", ()):
            names.update(parameters, output_dir=str(folder))
    return json.loads((folder / "result.json").read_text())


@pytest.mark.parametrize("method", PREFERENCE)
def test_every_method_runs_through_the_one_pipeline_by_its_name(method, tmp_path):
    result = run_pipeline(
        tmp_path,
        method=method,
        limit=16,
        validation_limit=8,
        max_steps=2,
        batch_size=8,
        from_pairs=True if get_method(method).kind == "binary" else None,
    )
    assert (
        result["metrics"]["steps"] == 2
        and result["model"]["hyperparameters"] == get_method(method).defaults
    )
    assert {"loss.png", "chosen_rejected.png"} | {
        f"{name}.png" for name in OWN.get(method, ())
    } <= {path.name for path in tmp_path.iterdir()}


def test_the_pipeline_draws_what_is_measured_at_validations_alone(tmp_path):
    few = dict(limit=16, validation_limit=8, max_steps=2, batch_size=8, eval_steps=1)
    run_pipeline(tmp_path, kl_samples=4, sample_tokens=8, **few)
    _, *rows = (tmp_path / "kl_k1.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["0", "1", "2"]
    assert (tmp_path / "kl_k1.png").exists()


def test_log_probs_of_the_reference_are_shared_among_runs_and_never_confused(
    tmp_path, tokenizer, rows, monkeypatch
):
    import prefkit.train.saves

    calls, original = [], prefkit.model.batches.reference_logps
    monkeypatch.setattr(
        prefkit.train.saves, "reference_logps", lambda *a, **k: calls.append(1) or original(*a, **k)
    )

    def run(name, model=None, some=rows["pairs"], **changes):
        settings = TrainSettings(
            **{**dict(batch_size=8, max_steps=1, show_samples=0, device="cpu"), **changes}
        )
        train_model(
            model or AutoModelForCausalLM.from_pretrained(BASE),
            tokenizer,
            "dpo",
            some,
            None,
            tmp_path / name,
            settings,
            cache=tmp_path / "cache",
        )
        return len(calls)

    assert run("first") == 2  # rows to train on, and none to validate
    assert run("second", learning_rate=1e-3) == 2  # found
    other = AutoModelForCausalLM.from_pretrained(BASE)
    other.lm_head.weight.data[7] += 1
    assert (
        run("other model", model=other) == 4
        and run("other rows", some=rows["pairs"][:8]) == 6
        and run("other layout", layout="apart") == 8
    )


@pytest.mark.parametrize(
    "high, low, share", [(1.0, 0.0, 0.5), (0.0, 0.0, 1.0), (2.0, 0.5, 1.0), (10.0, 0.0, 0.0)]
)
def test_share_clipped_counts_negative_answers_whose_ratio_was_changed(high, low, share):
    ratio = torch.tensor([4.0, 0.1, 9.0])
    inputs = BinaryInputs(
        policy_logps=ratio.log() - 5,
        behaviour_logps=torch.full((3,), -5.0),
        rewards=torch.tensor([-1.0, -1.0, 1.0]),
    )
    values, weights = get_method("topr").watch(inputs, {"ratio_low": low, "ratio_high": high})[
        "share_clipped"
    ]
    assert (values * weights).sum() / weights.sum() == share


@pytest.mark.parametrize(
    "fault, says",
    [
        ("language model", "scalar head"),
        ("padding", "pad_token_id is 1"),
        ("end", "end with its padding token"),
    ],
)
def test_a_reward_model_that_would_read_its_score_off_padding_is_refused(
    fault, says, tmp_path, tokenizer, rows
):
    from prefkit.judging.reward_model import scalar_head

    model, some = scalar_head(BASE, seed=0), rows["pairs"]
    if fault == "language model":
        model = AutoModelForCausalLM.from_pretrained(BASE)
    if fault == "padding":
        model.config.pad_token_id = 1
    if fault == "end":
        some = [
            {**row, "rejected_ids": [*row["rejected_ids"], tokenizer.pad_token_id]} for row in some
        ]
    with pytest.raises(ConfigError, match=says):
        trained(tmp_path, tokenizer, {"pairs": some}, "reward_model", model=model)
    assert not (tmp_path / "training.json").exists()


def test_a_reward_model_with_adapters_trains_head_and_adapters_and_is_saved_merged(
    tmp_path, tokenizer, rows
):
    from prefkit.judging.reward_model import scalar_head

    start = scalar_head(BASE, seed=0)
    result = trained(
        tmp_path,
        tokenizer,
        rows,
        "reward_model",
        model=scalar_head(BASE, seed=0),
        lora=True,
        lora_rank=4,
    )
    loaded = AutoModelForSequenceClassification.from_pretrained(result.path)
    assert loaded.num_labels == 1 and not torch.equal(loaded.score.weight, start.score.weight)
    assert not torch.equal(
        loaded.model.layers[0].self_attn.q_proj.weight,
        start.model.layers[0].self_attn.q_proj.weight,
    )


def test_what_else_than_weights_changes_log_probs_makes_other_references(tmp_path, tokenizer, rows):
    from prefkit.train.saves import with_reference

    def found(cache, **changes):
        model = AutoModelForCausalLM.from_pretrained(BASE)
        for name, value in changes.items():
            setattr(model.config, name, value)
        with_reference(
            model,
            {"train": rows["pairs"][:2]},
            ("chosen", "rejected"),
            0,
            tmp_path / str(changes),
            cache=cache,
            batch_size=2,
        )
        return len(list(cache.iterdir()))

    assert [
        found(tmp_path / "cache"),
        found(tmp_path / "cache"),
        found(tmp_path / "cache", rope_parameters={"rope_type": "default", "rope_theta": 300.0}),
    ] == [1, 1, 2]
    next((tmp_path / "cache").iterdir()).write_text("{")  # a broken file is none
    assert found(tmp_path / "cache", rms_norm_eps=1e-5) == 3


def test_a_model_without_finite_log_probs_is_named_before_training(tmp_path, tokenizer, rows):
    model = AutoModelForCausalLM.from_pretrained(BASE)
    model.lm_head.weight.data[5] = math.nan
    with pytest.raises(PrefkitError, match="ref_chosen_logps of row .* is nan"):
        trained(tmp_path, tokenizer, rows, "dpo", model=model, layout="apart")


def test_a_model_with_adapters_is_refused_as_a_start(tmp_path, tokenizer, rows):
    from prefkit.train.loop import add_lora

    model = add_lora(AutoModelForCausalLM.from_pretrained(BASE), TrainSettings(lora=True))
    with pytest.raises(ConfigError, match="merge_and_unload"):
        trained(tmp_path, tokenizer, rows, "dpo", model=model)


def test_kto_refuses_a_last_batch_of_one_row(tmp_path, tokenizer, rows):
    with pytest.raises(ConfigError, match="leave one row alone"):
        trained(tmp_path, tokenizer, {"binary": rows["binary"][:9]}, "kto", batch_size=4)


def test_labels_and_rewards_may_each_be_missing():
    rows = [
        {"prompt_ids": [1], "response_ids": [2], "label": None, "reward": 0.5},
        {"prompt_ids": [1], "response_ids": [2], "label": False, "reward": None},
    ]
    batch = collate(rows, ("response",), 0)
    assert batch.labels["desirable"].tolist() == [True, False] and batch.labels[
        "rewards"
    ].tolist() == [0.5, -1.0]


@pytest.mark.parametrize(
    "row, match",
    [
        (dict(optional_inputs=("chosen_length",)), "chosen_length"),
        (dict(extra=("exlpore",)), "exlpore"),
    ],
)
def test_slips_in_a_row_of_the_table_are_refused(row, match):
    with pytest.raises(ConfigError, match=match):
        add_method(Method("slip", dpo_loss, "pairs", reference=True, **row))

    def asks(policy_chosen_logps, explore_logps):
        return policy_chosen_logps + explore_logps

    with pytest.raises(ConfigError, match="explore"):
        add_method(Method("slip", asks, "pairs", reference=False))
    assert "slip" not in METHODS


@pytest.mark.parametrize("method", ["kto", "xpo"])
def test_added_answers_survive_a_crash_and_the_run_ends_in_the_same_weights(
    method, tmp_path, tokenizer, rows, monkeypatch
):
    import prefkit.train.loop as train

    options = dict(max_steps=4, save_steps=2, keep_checkpoints=True)
    whole = trained(tmp_path / "whole", tokenizer, rows, method, **options)
    original = train.learning_rate_at

    def stop(step, *args):
        if step == 3:
            raise KeyboardInterrupt
        return original(step, *args)

    monkeypatch.setattr(train, "learning_rate_at", stop)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "killed", tokenizer, rows, method, **options)
    monkeypatch.setattr(train, "learning_rate_at", original)
    again = trained(tmp_path / "killed", tokenizer, rows, method, **options)
    assert again.resumed_from == 2
    for a, b in zip(whole.model.parameters(), again.model.parameters()):
        assert torch.equal(a, b)
