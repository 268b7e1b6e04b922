"""Win rates at equal length: against the published AlpacaEval figures, an independent optimiser,
exact cases and repetition with known truth.
"""

import math, os, re
from pathlib import Path

import numpy as np, pandas as pd, pytest
from hypothesis import given, settings, strategies as st
from matplotlib import pyplot as plt
from scipy.optimize import minimize
from scipy.special import expit, logit

from prefkit.core import ConfigError, DataError
from prefkit.report.answers import win_rows
from prefkit.report.figures import check_figure, draw_curves
from prefkit.stats.length_control import (
    fit_logistic,
    is_separated,
    length_controlled_win_rate,
    win_rate_by,
)
from prefkit.stats.win_rate import win_rate

REAL = os.environ.get("PREFKIT_REAL_DATA")
needs_real = pytest.mark.skipif(
    not REAL, reason="PREFKIT_REAL_DATA is not set: no published AlpacaEval files to compare with"
)
MODELS = [
    "FuseChat-Llama-3.2-1B-Instruct",
    "NullModel",
    "alpaca-7b",
    "claude-2",
    "gemma-2b-it",
    "gpt-3.5-turbo-1106",
    "gpt4_gamed",
    "vicuna-7b-v1.5",
]


def alpaca(model):
    """One leaderboard entry: rows as arguments of length_controlled_win_rate, the anchors, the
    published figures.
    """
    folder = Path(REAL) / "alpaca_eval"
    difficulty = pd.read_csv(folder / "instructions.csv").set_index("index").instruction_difficulty
    gamed = pd.read_csv(folder / "gamed_reconstructed.csv")
    anchors = gamed.assign(difficulty=difficulty[gamed["index"]].to_numpy())
    rows = pd.read_csv(folder / "models" / f"{model}.csv")
    arguments = dict(
        preference=rows.preference.replace(0, 1.5).to_numpy() - 1,
        model_length=rows.len_2.to_numpy(),
        reference_length=rows.len_1.to_numpy(),
        difficulty=difficulty[rows["row"]].to_numpy(),
    )
    return arguments, anchors, pd.read_csv(folder / "published.csv").set_index("model").loc[model]


@needs_real
@pytest.mark.parametrize("model", MODELS)
def test_published_figures(model):
    arguments, anchors, published = alpaca(model)
    found = length_controlled_win_rate(**arguments, anchors=anchors)
    assert (
        abs(100 * found.plain - published.win_rate) < 1e-6
        and abs(100 * found.plain_standard_error - published.standard_error) < 1e-6
    )
    assert abs(100 * found.rate - published.length_controlled_winrate) < 0.25
    assert (
        found.n == published.n_rows
        and not found.separated
        and found.low < found.rate < found.high
        and 0 < found.standard_error < 0.03
    )


@needs_real
def test_without_anchors_the_published_figure_is_missed_by_far():
    "So that agreement above is owed to the anchors and no accident."
    arguments, _, published = alpaca("gpt4_gamed")
    assert (
        abs(
            100 * length_controlled_win_rate(**arguments).rate - published.length_controlled_winrate
        )
        > 10
    )


@needs_real
def test_published_error_is_the_scatter_of_predictions_alone():
    for model in ("NullModel", "FuseChat-Llama-3.2-1B-Instruct"):
        arguments, anchors, published = alpaca(model)
        found = length_controlled_win_rate(**arguments, anchors=anchors)
        predicted = 100 * expit(
            found.coefficients["model"] + found.coefficients["difficulty"] * arguments["difficulty"]
        )
        assert abs(predicted.std(ddof=1) / math.sqrt(found.n) - published.lc_standard_error) < 0.005
        # ours knows about the verdicts
        assert 100 * found.standard_error > 2 * published.lc_standard_error


def oracle(preference, model_length, reference_length, difficulty=None, anchors=None):
    """The formula of the README, written out again: another parametrisation (lengths in the other
    order, s inside), BFGS in place of Newton.
    """
    longer = np.asarray(model_length, float) - np.asarray(reference_length, float)
    s = math.sqrt(((longer - longer.mean()) ** 2).sum() / (len(longer) - 1))
    d = np.zeros(len(longer)) if difficulty is None else np.asarray(difficulty, float)
    y = np.asarray(preference, float)

    def minus(theta):
        z = theta[0] - theta[1] * np.tanh(longer / s) + theta[2] * d
        value, gradient = (
            (np.logaddexp(0, z) - y * z).sum(),
            np.array(
                [
                    (expit(z) - y).sum(),
                    ((expit(z) - y) * -np.tanh(longer / s)).sum(),
                    ((expit(z) - y) * d).sum(),
                ]
            ),
        )
        if anchors is not None:
            e = anchors.difficulty.to_numpy() if difficulty is not None else np.zeros(len(anchors))
            z, t, p = (
                theta[1] * np.tanh(anchors.std_delta_len.to_numpy()) + theta[2] * e,
                np.tanh(anchors.std_delta_len.to_numpy()),
                anchors.pseudo_preference.to_numpy(),
            )
            value += (np.logaddexp(0, z) - p * z).sum() / 10
            gradient += np.array([0, ((expit(z) - p) * t).sum(), ((expit(z) - p) * e).sum()]) / 10
        return value, gradient

    best = minimize(minus, np.zeros(3), jac=True, method="BFGS", options={"gtol": 1e-7}).x
    return expit(best[0] + best[2] * d).mean(), best


def rows_of(seed, n=300, shift=0.3, level=0.4, hard=False):
    """A made-up leaderboard entry: soft verdicts near 0 and 1 with a known law; `shift` is how much
    longer the model is, `level` its strength.
    """
    rng = np.random.default_rng(seed)
    difficulty, reference = rng.normal(-0.5, 1.5, n), rng.gamma(4, 400, n).round()
    model = (reference * rng.lognormal(shift, 0.5, n)).round()
    chance = np.clip(
        expit(level + 0.9 * difficulty - 1.5 * np.tanh((reference - model) / 900)), 1e-6, 1 - 1e-6
    )
    preference = (rng.random(n) < chance).astype(float) if hard else rng.beta(chance, 1 - chance)
    return dict(
        preference=preference, model_length=model, reference_length=reference, difficulty=difficulty
    )


def anchors_of(seed=0, n=600, preference=None):
    rng = np.random.default_rng([seed, 1])
    made = pd.DataFrame(
        {"std_delta_len": rng.normal(size=n), "difficulty": rng.normal(-0.5, 1.5, n)}
    )
    return made.assign(
        pseudo_preference=expit(0.9 * made.difficulty - 1.5 * np.tanh(made.std_delta_len))
        if preference is None
        else preference
    )


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"n": 40},
        {"n": 1500},
        {"shift": 1.8},
        {"shift": -1.8},
        {"level": 4},
        {"level": -4},
        {"hard": True},
        {"hard": True, "n": 60},
    ],
)
def test_equals_an_independent_optimiser(change):
    """What could differ on the rest of the leaderboard: few rows, much longer or shorter answers,
    extreme win rates, hard verdicts, ties.
    """
    rows = rows_of(3, **change)
    rows["preference"][::7] = 0.5  # ties
    for anchors in (None, anchors_of()):
        for use in (True, False):
            arguments = {**rows, "difficulty": rows["difficulty"] if use else None}
            wanted, best = oracle(**arguments, anchors=anchors)
            found = length_controlled_win_rate(**arguments, anchors=anchors)
            assert abs(found.rate - wanted) < 2e-6
            if anchors is not None:
                assert math.isclose(found.coefficients["length"], best[1], rel_tol=1e-3)


@needs_real
@pytest.mark.parametrize("model", ["claude-2", "gpt4_gamed"])
def test_rows_missing_or_in_another_order(model):
    """Difficulty goes with its row: shuffled, the answer stays; with a tenth of the rows gone it
    moves by less than what the error allows.
    """
    arguments, anchors, _ = alpaca(model)
    whole, rng = length_controlled_win_rate(**arguments, anchors=anchors), np.random.default_rng(0)
    order = rng.permutation(whole.n)
    mixed = length_controlled_win_rate(
        **{name: values[order] for name, values in arguments.items()},
        anchors=anchors.sample(frac=1, random_state=0),
    )
    assert (
        abs(mixed.rate - whole.rate) < 1e-10
        and abs(mixed.standard_error - whole.standard_error) < 1e-10
    )
    part = length_controlled_win_rate(
        **{name: values[order[:725]] for name, values in arguments.items()}, anchors=anchors
    )
    assert 0 < abs(part.rate - whole.rate) < 1.5 * whole.standard_error


def test_exact_cases():
    """No length difference: LC is the plain rate.

    Two groups at +-d: the curve passes through both, LC lies in the middle of their log-odds.
    """
    y = [1, 0, 1, 1, 0.5, 1, 0.25]
    same = length_controlled_win_rate(y, [9] * 7, [9] * 7)
    assert math.isclose(same.rate, np.mean(y), rel_tol=1e-12) and math.isclose(
        same.plain, np.mean(y), rel_tol=1e-15
    )
    assert math.isclose(
        same.standard_error, np.std(y, ddof=1) / math.sqrt(7), rel_tol=1e-9
    ) and math.isclose(same.plain_standard_error, same.standard_error, rel_tol=1e-9)
    for up, down in ((0.75, 0.25), (0.9, 0.6), (0.2, 0.05)):
        n = 400
        y = np.r_[
            np.ones(int(up * n)),
            np.zeros(n - int(up * n)),
            np.ones(int(down * n)),
            np.zeros(n - int(down * n)),
        ]
        model = np.r_[np.full(n, 130), np.full(n, 70)]
        found = length_controlled_win_rate(y, model, np.full(2 * n, 100))
        assert math.isclose(found.rate, expit((logit(up) + logit(down)) / 2), rel_tol=1e-7)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(2, 60),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["soft", "hard", "ties", "ones", "zeros", "tiny"]),
    st.sampled_from(["free", "equal", "constant", "one differs"]),
)
def test_any_table_gives_a_rate(seed, n, with_anchors, with_difficulty, verdicts, lengths):
    """Whatever the table, a finite rate inside its interval; and the models swapped, one minus it
    (without anchors).
    """
    rng = np.random.default_rng(seed)
    y = {
        "soft": rng.random(n),
        "hard": rng.integers(0, 2, n).astype(float),
        "ties": np.full(n, 0.5),
        "ones": np.ones(n),
        "zeros": np.zeros(n),
        "tiny": rng.random(n) * 1e-8,
    }[verdicts]
    reference = rng.integers(1, 4000, n).astype(float)
    model = {
        "free": rng.integers(1, 4000, n).astype(float),
        "equal": reference,
        "constant": reference + 300,
        "one differs": reference + (np.arange(n) == 0),
    }[lengths]
    more = {"difficulty": rng.normal(size=n)} if with_difficulty else {}
    found = length_controlled_win_rate(
        y, model, reference, **more, anchors=anchors_of() if with_anchors else None
    )
    assert (
        0 <= found.low <= found.rate + 1e-12
        and found.rate - 1e-12 <= found.high <= 1
        and math.isfinite(found.rate)
    )
    assert all(math.isfinite(value) for value in found.coefficients.values()) and (
        found.standard_error >= 0 or found.separated
    )
    if verdicts in ("ones", "zeros"):
        # never certain
        assert (
            abs(found.rate - found.plain) < 1e-6
            and found.separated
            and found.standard_error < 1e-6
            and found.high - found.low > 1 / (2 * n + 8)
        )
    if not with_anchors and not found.separated:
        turned = length_controlled_win_rate(1 - y, reference, model, **more)
        assert abs(turned.rate - (1 - found.rate)) < 1e-6
        if lengths in ("equal", "constant") and not with_difficulty:
            assert abs(found.rate - y.mean()) < 1e-9


@needs_real
@pytest.mark.parametrize("model", ["claude-2", "gemma-2b-it", "vicuna-7b-v1.5"])
def test_the_interval_is_that_of_a_bootstrap_over_prompts(model):
    arguments, anchors, _ = alpaca(model)
    found, rng = length_controlled_win_rate(**arguments, anchors=anchors), np.random.default_rng(0)
    rates = []
    for _ in range(150):
        rows = rng.integers(0, found.n, found.n)
        drawn = {name: column[rows] for name, column in arguments.items()}
        rates.append(length_controlled_win_rate(**drawn, anchors=anchors).rate)
    low, high = np.quantile(rates, [0.025, 0.975])
    # of 150 draws an end of the interval is known to a quarter of its width
    assert abs(found.low - low) < 0.25 * (high - low) and abs(found.high - high) < 0.25 * (
        high - low
    )


@pytest.mark.parametrize(
    "preference, lengths, note, known",
    [
        ([1, 0] * 40, [9, 3] * 40, "separated: every win and loss of 80", False),
        ([1, 1, 0], [9, 8, 2], "separated: every win and loss of 3", False),
        ([1.0] * 50, range(50), "separated: all 50 comparisons go one way", True),
        ([0.0] * 50, range(50), "separated: all 50 comparisons go one way", True),
        ([1, 0, 0, 1, 1], [5, 9, 3, 7, 4], "few: 5 comparisons", True),
        ([1, 0, 0, 1] * 30, [5, 9, 3, 7] * 30, "", True),
    ],
)
def test_what_a_fit_cannot_know_is_said(preference, lengths, note, known):
    found = length_controlled_win_rate(preference, list(lengths), [6] * len(preference))
    assert found.note.startswith(note) and bool(found.note) == bool(note)
    assert found.separated == note.startswith("separated")
    assert known == (found.high - found.low < 0.99) and (not note or found.note in str(found))
    row = found.to_dict()
    assert row["lc_note"] == found.note and row["lc_low"] <= row["lc_rate"] <= row["lc_high"]


def test_a_page_gives_the_interval_and_no_number_where_the_fit_separates():
    numbers = ["lc_rate", "lc_low", "lc_high", "lc_standard_error"]
    ends = {"rate": 0.6, "low": 0.5, "high": 0.7, "n": 40, "judge": "gold", "evaluation": "e"}
    rows = [
        length_controlled_win_rate([1, 0] * 40, [9, 3] * 40, [6] * 80).to_dict(),
        length_controlled_win_rate([1, 0, 0, 1] * 30, [5, 9, 3, 7] * 30, [6] * 120).to_dict(),
        dict.fromkeys(numbers) | {"lc_note": "a single prompt"},
    ]
    table = pd.DataFrame([{"model": "a", "reference": "b", **ends, **row} for row in rows])
    said = win_rows(table)
    separated, good, single = said["at equal length"]
    assert separated.startswith("not known; separated") and single == "none: a single prompt"
    assert re.fullmatch(r"[\d.]+ ?% .*[\d.]+.*[\d.]+.*", good) and not set(numbers) & set(said)


def test_lengths_that_hardly_vary_are_not_split_between_length_and_model():
    """300 characters more, give or take one: no anchors, no way to tell the two apart, so LC is the
    plain rate; with anchors the whole limit is taken away.
    """
    rows = rows_of(1)
    rows["model_length"] = rows["reference_length"] + 300 + np.arange(300) % 2
    assert (
        abs(
            length_controlled_win_rate(
                rows["preference"], rows["model_length"], rows["reference_length"]
            ).rate
            - rows["preference"].mean()
        )
        < 1e-9
    )
    anchored = length_controlled_win_rate(**rows, anchors=anchors_of())
    exact = length_controlled_win_rate(
        rows["preference"],
        rows["reference_length"] + 300,
        rows["reference_length"],
        difficulty=rows["difficulty"],
        anchors=anchors_of(),
    )
    assert (
        abs(anchored.rate - exact.rate) < 1e-6 and anchored.rate < rows["preference"].mean() - 0.1
    )


def test_separation_is_seen_by_the_linear_programme():
    one = np.ones(8)
    x = np.arange(8.0)
    for y, wanted in (
        ([0] * 4 + [1] * 4, True),
        ([0, 0, 0, 1, 0, 1, 1, 1], False),
        ([1] * 8, True),
        ([0.5] * 8, False),
        ([0, 0, 0, 0.5, 1, 1, 1, 1], True),
        ([0, 0, 0, 0.5, 0.4, 1, 1, 1], False),
    ):
        assert is_separated(np.column_stack([one, x]), y) is wanted, y
    assert not is_separated(np.column_stack([one, one]), [0, 1] * 4)  # collinear is something else
    assert is_separated(np.column_stack([one, 1e9 * x]), [0] * 4 + [1] * 4)


def test_separated_by_length_says_that_nothing_can_be_said():
    rows = rows_of(2)
    found = length_controlled_win_rate(
        (rows["model_length"] > rows["reference_length"]).astype(float),
        rows["model_length"],
        rows["reference_length"],
    )
    assert (
        found.separated and math.isnan(found.standard_error) and (found.low, found.high) == (0, 1)
    )
    held = length_controlled_win_rate(
        (rows["model_length"] > rows["reference_length"]).astype(float),
        rows["model_length"],
        rows["reference_length"],
        anchors=anchors_of(),
    )
    assert not held.separated and held.high - held.low < 0.5  # anchors hold the slope


def test_fit_at_the_edges():
    rng = np.random.default_rng(0)
    x, y = np.column_stack([np.ones(50), rng.normal(size=50)]), rng.random(50)
    once = fit_logistic(x, y)
    np.testing.assert_allclose(fit_logistic(x * [1, 1e6], y) * [1, 1e6], once, rtol=1e-6)
    twice = fit_logistic(np.column_stack([x, x[:, 1]]), y)  # a column twice: shared evenly
    np.testing.assert_allclose(twice, [once[0], once[1] / 2, once[1] / 2], rtol=1e-9)
    np.testing.assert_allclose(
        fit_logistic(np.repeat(x, 3, 0), np.repeat(y, 3)),
        fit_logistic(x, y, np.full(50, 3.0)),
        rtol=1e-9,
    )


def jackknife(rows, anchors):
    "Leave one prompt out: the standard error by Tukey's formula, no derivative taken."
    n = len(rows["preference"])
    left = np.array(
        [
            length_controlled_win_rate(
                **{name: np.delete(values, i) for name, values in rows.items()}, anchors=anchors
            ).rate
            for i in range(n)
        ]
    )
    return math.sqrt((n - 1) / n * ((left - left.mean()) ** 2).sum())


@pytest.mark.parametrize("change", [{}, {"hard": True}, {"shift": 1.2}, {"level": -3}])
def test_standard_error_equals_the_jackknife(change):
    rows = rows_of(8, n=150, **change)
    for anchors in (None, anchors_of()):
        for use in (rows, {name: values for name, values in rows.items() if name != "difficulty"}):
            assert (
                abs(
                    length_controlled_win_rate(**use, anchors=anchors).standard_error
                    / jackknife(use, anchors)
                    - 1
                )
                < 0.06
            )


def test_the_scale_of_the_lengths_is_part_of_the_error():
    """Always longer, lengths skewed, a slope that anchors fix: most of the uncertainty is in s.

    A formula that took s for known would be a fifth too small.
    """
    rng = np.random.default_rng(2)
    longer, t = (100 + 300 * rng.lognormal(0, 0.7, 120)).round(), rng.normal(size=4000)
    rows = dict(
        preference=(rng.random(120) < 0.5).astype(float),
        model_length=1000 + longer,
        reference_length=np.full(120, 1000.0),
    )
    anchors = pd.DataFrame({"std_delta_len": t, "pseudo_preference": expit(-3 * np.tanh(t))})
    assert (
        abs(
            length_controlled_win_rate(**rows, anchors=anchors).standard_error
            / jackknife(rows, anchors)
            - 1
        )
        < 0.05
    )


@pytest.mark.parametrize(
    "change, anchored", [({}, True), ({"hard": True}, False), ({"level": -3.5}, True)]
)
def test_standard_error_and_coverage_by_repetition(change, anchored):
    """400 draws of everything: the errors fit the scatter, and 95 % intervals hold the value that
    the fit comes to with very many prompts.
    """
    anchors = anchors_of() if anchored else None
    n = 300
    many = rows_of(999, n=60_000, **change)
    # anchors weigh against n prompts, so with 200 times the prompts they must count 200 times
    limit = length_controlled_win_rate(
        **many, anchors=pd.concat([anchors] * 200) if anchored else None
    ).rate
    repeated = [
        length_controlled_win_rate(**rows_of([7, i], n=n, **change), anchors=anchors)
        for i in range(400)
    ]
    scatter = np.std([one.rate for one in repeated], ddof=1)
    assert abs(np.mean([one.standard_error for one in repeated]) / scatter - 1) < 0.12
    assert 0.92 <= np.mean([one.low <= limit <= one.high for one in repeated]) <= 0.98


def test_a_biased_judge_is_repaired_and_an_honest_one_harmed():
    """Known truth: with a bonus for length LC finds the rate without it; where quality itself comes
    with length it takes quality away.
    """
    rng = np.random.default_rng(5)
    n, quality = 20_000, np.random.default_rng(6).normal(size=20_000)
    more = rng.normal(0.5, 1, n)
    true = expit(0.5 * quality).mean()
    biased = length_controlled_win_rate(
        rng.random(n) < expit(0.5 * quality + 1.2 * np.tanh(more)),
        1000 + 100 * more,
        np.full(n, 1000),
    )
    assert abs(biased.plain - true) > 0.06 and abs(biased.rate - true) < 3 * biased.standard_error
    # better answers are longer; the judge sees quality only
    longer = quality + 0.5 + rng.normal(0, 0.5, n)
    honest = length_controlled_win_rate(
        rng.random(n) < expit(0.5 + quality), 1000 + 100 * longer, np.full(n, 1000)
    )
    assert (
        abs(honest.plain - expit(0.5 + quality).mean()) < 0.01 < 0.05 < honest.plain - honest.rate
    )


def test_errors_name_what_is_wrong():
    good = dict(preference=[1, 0, 1.0], model_length=[3, 4, 5], reference_length=[4, 4, 4])
    anchors = anchors_of(n=5)
    for change, words in [
        ({"preference": [1.2, 0, 1]}, "row 0 is 1.2"),
        ({"preference": [1, -0.1, 1]}, "row 1"),
        ({"preference": [1, 0, math.nan]}, "row 2 is nan"),
        ({"preference": [1, 2, 1]}, "preference - 1"),
        ({"preference": [[1, 0, 1]]}, "shape"),
        ({"preference": ["a", "b", "c"]}, "number 0: 'a' is no number"),
        ({"preference": [1.0]}, "at least 2"),
        ({"preference": []}, "at least 2"),
        ({"model_length": [3, 4]}, "model_length has 2 values for 3"),
        ({"reference_length": [3, 4, math.inf]}, "reference_length of row 2"),
        ({"difficulty": [1, 2]}, "difficulty has 2"),
        ({"difficulty": [1, 2, None]}, "difficulty of row 2"),
        ({"anchors": anchors.drop(columns="std_delta_len")}, "anchors: no column std_delta_len"),
        ({"anchors": anchors.assign(pseudo_preference=1.5)}, "anchors, pseudo_preference of row 0"),
        ({"anchors": anchors.assign(std_delta_len=math.nan)}, "anchors, std_delta_len of row 0"),
        (
            {"anchors": anchors.drop(columns="difficulty"), "difficulty": [1, 2, 3]},
            "anchors: no column difficulty",
        ),
    ]:
        with pytest.raises(DataError, match=words):
            length_controlled_win_rate(**{**good, **change})
    # not needed where prompts have none
    length_controlled_win_rate(**good, anchors=anchors.drop(columns="difficulty"))


def test_bins_are_of_equal_count_with_the_intervals_of_win_rate():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=1000), rng.choice([0.0, 0.5, 1.0], 1000)
    table = win_rate_by(y, x, bins=4)
    assert (
        table.n.tolist() == [250] * 4
        and (table["from"].iloc[1:].to_numpy() > table["to"].iloc[:-1].to_numpy()).all()
    )
    order = np.argsort(x)
    for i, row in table.iterrows():
        part = y[order[250 * i : 250 * (i + 1)]]
        whole = win_rate(part, 1 - part)
        assert (
            math.isclose(row.value, part.mean())
            and math.isclose(row.low, whole.low, abs_tol=1e-9)
            and math.isclose(row.high, whole.high, abs_tol=1e-9)
        )
        assert math.isclose(row.x, x[order[250 * i : 250 * (i + 1)]].mean())


def test_bins_by_edges_by_value_and_degenerate():
    # the last edge belongs to the last bin
    assert win_rate_by([1, 0, 1, 1], [0, 1, 2, 3], bins=[0, 2, 3])[
        ["n", "value"]
    ].to_numpy().tolist() == [[2, 0.5], [2, 1.0]]
    per_value = win_rate_by([1, 0, 1, 1], [5, 5, 7, 7], bins=None)
    assert per_value.x.tolist() == [5, 7] and per_value.value.tolist() == [0.5, 1]
    constant = win_rate_by([1, 0, 1, 1], [2, 2, 2, 2], bins=3)
    assert constant.n.tolist() == [4] and constant.value.tolist() == [0.75]
    assert (
        win_rate_by([1, 1], [1, 2], bins=1).high.iloc[0] <= 1
        and win_rate_by([1, 1], [1, 2], bins=1).low.iloc[0] < 0.9
    )
    for bins in (0, True, [1], [2, 1], [0, 0], "five", [1, 3]):
        with pytest.raises((ConfigError, DataError)):
            win_rate_by([1, 0], [0, 1], bins=bins)
    with pytest.raises(DataError, match="empty"):
        win_rate_by([], [])
    with pytest.raises(DataError, match="covariate of row 1"):
        win_rate_by([1, 0], [0, math.nan])


def test_the_table_can_be_drawn_by_the_rules_of_the_house():
    rng = np.random.default_rng(0)
    x = rng.normal(size=400)
    tables = [
        win_rate_by(rng.random(400) < expit(slope * x), x, series=name)
        for slope, name in ((1, "one"), (-1, "other"))
    ]
    words = {"xlabel": "characters", "ylabel": "win rate"}
    figure = draw_curves(pd.concat(tables), title="One rises and the other falls", **words)
    assert not check_figure(figure) and len(figure.data) == 10
    plt.close(figure)
    with pytest.raises(DataError):
        draw_curves(tables[0][:0], title="Nothing at all here", **words)
