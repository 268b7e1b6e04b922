"""Rankings, agreement and scores by kind: against exact cases, other algorithms, enumeration in
fractions and repetition with known truth.
"""

import itertools, math
from fractions import Fraction as F

import numpy as np, pytest
from hypothesis import given, settings, strategies as st
from scipy.optimize import minimize
from scipy.special import expit, logit
from scipy.stats import ttest_1samp, ttest_rel

from prefkit.core import ConfigError, DataError
from prefkit.stats.rankings import all_pairs, bradley_terry, cohens_kappa, scores_by_kind
from prefkit.stats.win_rate import win_rate


def tournament(rng, strengths, n, ties=0.0):
    "Games between random models: first, second, outcome."
    k = len(strengths)
    first = rng.integers(0, k, n)
    second = (first + rng.integers(1, k, n)) % k
    won = (rng.random(n) < expit(strengths[first] - strengths[second])).astype(float)
    won[rng.random(n) < ties] = 0.5
    names = np.array([f"m{i}" for i in range(k)])
    return names[first], names[second], won


def by_scipy(first, second, outcome, prior=0.0):
    """The same likelihood, game by game, by a quasi-Newton method with the first model at 0 (and a
    phantom where there is a prior).
    """
    names = sorted({*first, *second})
    i, j = (np.array([names.index(name) for name in side]) for side in (first, second))
    free = len(names) if prior else len(names) - 1

    def minus(theta):
        s = theta if prior else np.r_[0, theta]
        z = s[i] - s[j]
        return np.sum(np.logaddexp(0, z) - outcome * z) + prior * np.sum(np.logaddexp(0, s) - s / 2)

    s = minimize(minus, np.zeros(free), method="BFGS", options={"gtol": 1e-8}).x
    s = s if prior else np.r_[0, s]
    return dict(zip(names, s - s.mean()))


@pytest.mark.parametrize(
    "k, n, ties, prior",
    [(2, 30, 0, 0), (3, 60, 0.3, 0), (6, 400, 0.1, 0), (5, 120, 0, 1.0), (5, 12, 0.2, 0.5)],
)
def test_strengths_equal_an_independent_optimiser(k, n, ties, prior):
    rng = np.random.default_rng(k)
    games = tournament(rng, rng.normal(size=k), n, ties)
    found, wanted = bradley_terry(*games, prior=prior), by_scipy(*games, prior)
    for name, strength in zip(found.names, found.strengths):
        assert abs(strength - wanted[name]) < 1e-4
    assert (
        list(found.strengths) == sorted(found.strengths, reverse=True)
        and abs(found.strengths.sum()) < 1e-9
    )


def test_fixed_point_of_minorise_maximise():
    "Hunter 2004: pi_i = W_i / sum n_ij / (pi_i + pi_j)."
    found = bradley_terry(
        *tournament(np.random.default_rng(0), np.array([1.0, 0.2, -0.3, -0.9]), 300, 0.2)
    )
    power, games = np.exp(found.strengths), found.wins + found.wins.T
    np.testing.assert_allclose(
        found.wins.sum(1) / (games / (power[:, None] + power)).sum(1), power, rtol=1e-8
    )


def test_two_models_in_closed_form():
    "logit of the win rate; its standard error is 1/sqrt(n p q)."
    found = bradley_terry(["A"] * 40, ["B"] * 40, [1] * 25 + [0] * 10 + [0.5] * 5)
    p = 27.5 / 40
    value, low, high = found.difference("A", "B")
    assert math.isclose(value, logit(p), rel_tol=1e-9) and math.isclose(
        (high - low) / 2, 1.959964 / math.sqrt(40 * p * (1 - p)), rel_tol=1e-9
    )
    assert np.allclose(found.probability("A", "B"), [p, expit(low), expit(high)]) and np.allclose(
        found.difference("B", "A"), [-value, -high, -low]
    )
    table = found.table()
    assert (
        table.model.tolist() == ["A", "B"]
        and table.games.tolist() == [40, 40]
        and table.win_rate.tolist() == [p, 1 - p]
    )
    # a strength is half the difference
    assert math.isclose(table.high[0] - table.low[0], (high - low) / 2, rel_tol=1e-9)


def test_information_by_finite_differences():
    games = tournament(np.random.default_rng(3), np.array([0.8, 0.1, -0.2, -0.7]), 200)
    found = bradley_terry(*games)
    place = {name: i for i, name in enumerate(found.names)}
    i, j = (np.array([place[name] for name in side]) for side in games[:2])
    loss = lambda s: np.sum(np.logaddexp(0, s[i] - s[j]) - games[2] * (s[i] - s[j]))
    e, s, k = 1e-3, found.strengths, len(found.names)
    hessian = np.array(
        [
            [
                (
                    loss(s + e * (a + b))
                    - loss(s + e * (a - b))
                    - loss(s - e * (a - b))
                    + loss(s - e * (a + b))
                )
                / (4 * e * e)
                for b in np.eye(k)
            ]
            for a in np.eye(k)
        ]
    )
    reduced = np.linalg.inv(hessian[1:, 1:])  # the best model at 0
    contrast = (
        found.covariance[1:, 1:]
        + found.covariance[0, 0]
        - found.covariance[[0], 1:]
        - found.covariance[1:, [0]]
    )
    np.testing.assert_allclose(contrast, reduced, rtol=1e-4)


def test_order_names_and_sides_do_not_matter():
    first, second, outcome = tournament(np.random.default_rng(4), np.array([0.5, 0, -0.5]), 90, 0.2)
    whole, order = (
        bradley_terry(first, second, outcome, prompts=np.arange(90) // 3),
        np.random.default_rng(5).permutation(90),
    )
    turned = bradley_terry(
        second[order], first[order], 1 - outcome[order], prompts=[f"p{i // 3}" for i in order]
    )
    assert (
        whole.names == turned.names
        and np.allclose(whole.strengths, turned.strengths)
        and np.allclose(whole.covariance, turned.covariance)
    )


@pytest.mark.parametrize("ties, low, high", [(0.0, 0.93, 0.97), (0.4, 0.96, 1.0)])
def test_coverage_over_comparisons(ties, low, high):
    "Without ties 95 %; with ties the Fisher information is on the safe side, as the lesson says."
    true, rng, inside = np.array([1.0, 0.3, 0.0, -1.3]), np.random.default_rng(6), []
    limit = (
        bradley_terry(*tournament(np.random.default_rng(7), true, 400_000, ties)) if ties else None
    )
    for _ in range(400):
        found = bradley_terry(*tournament(rng, true, 150, ties), prior=1e-3)
        for a, b in itertools.combinations(range(4), 2):
            wanted = limit.difference(f"m{a}", f"m{b}")[0] if ties else true[a] - true[b]
            _, below, above = found.difference(f"m{a}", f"m{b}")
            inside.append(below <= wanted <= above)
    assert low <= np.mean(inside) <= high


# strength plus Gumbel noise: every pair follows Bradley-Terry, all pairs of a prompt hang together
def same_prompts(rng, true, n):
    return all_pairs({f"m{i}": strength + rng.gumbel(size=n) for i, strength in enumerate(true)})


def test_coverage_over_prompts_where_fisher_fails():
    true, rng = np.array([0.9, 0.2, 0.0, -0.3, -0.8]), np.random.default_rng(8)
    inside = {"prompts": [], "comparisons": []}
    for _ in range(160):
        rows = same_prompts(rng, true, 120)
        for over, prompts in (("prompts", rows.prompt), ("comparisons", None)):
            _, low, high = bradley_terry(
                rows["first"], rows["second"], rows.outcome, prompts=prompts, prior=1e-6
            ).difference("m0", "m4")
            inside[over].append(low <= true[0] - true[4] <= high)
    assert 0.91 <= np.mean(inside["prompts"]) <= 0.985 and np.mean(inside["comparisons"]) < 0.9


def test_sandwich_equals_a_bootstrap_over_prompts():
    rows = same_prompts(np.random.default_rng(9), [0.8, 0.0, -0.8], 200)
    found, rng = (
        bradley_terry(rows["first"], rows["second"], rows.outcome, prompts=rows.prompt),
        np.random.default_rng(10),
    )
    first, second, outcome = (
        rows[column].to_numpy().reshape(3, 200) for column in ("first", "second", "outcome")
    )
    drawn = []
    for _ in range(200):
        chosen = rng.integers(0, 200, 200)
        drawn.append(
            bradley_terry(
                first[:, chosen].ravel(), second[:, chosen].ravel(), outcome[:, chosen].ravel()
            ).difference("m0", "m2")[0]
        )
    _, low, high = found.difference("m0", "m2")
    assert (
        found.over == "prompts"
        and abs((high - low) / 2 / 1.959964 / np.std(drawn, ddof=1) - 1) < 0.15
    )


def test_clusters_of_one_game_are_the_robust_variance():
    "Two models: sum of (y - p)^2 in place of n p q, so that ties make it narrower."
    y = np.r_[np.ones(20), np.zeros(10), np.full(30, 0.5)]
    found = bradley_terry(["A"] * 60, ["B"] * 60, y, prompts=range(60))
    p = y.mean()
    wanted = math.sqrt(60 / 59 * ((y - p) ** 2).sum()) / (60 * p * (1 - p))
    _, low, high = found.difference("A", "B")
    assert math.isclose((high - low) / 2 / 1.959964, wanted, rel_tol=1e-9)


def test_what_has_no_ranking_is_refused_with_names():
    with pytest.raises(DataError, match="A, B and C, D have never met"):
        bradley_terry(list("ABCD"), list("BADC"), [1, 1, 1, 1])
    with pytest.raises(DataError, match="A, B and C, D have never met"):
        bradley_terry(list("ABCD"), list("BADC"), [1, 1, 1, 1], prior=5)
    with pytest.raises(DataError, match="A never lost to the others"):
        bradley_terry(list("AABC"), list("BCCB"), [1, 1, 1, 1])
    with pytest.raises(DataError, match="prior=1"):
        bradley_terry(["A"] * 3, ["B"] * 3, [1, 1, 1])
    # half a loss is a road back
    assert bradley_terry(["A"] * 3, ["B"] * 3, [1, 1, 0.5]).names == ("A", "B")
    # strongly connected though nobody met anybody twice
    circle = bradley_terry(list("ABC"), list("BCA"), [1, 1, 1])
    assert np.allclose(circle.strengths, 0, atol=1e-9)


def test_prior_is_games_against_a_phantom():
    """An unbeaten model gets the place that the phantom's games give it, the more prior the nearer;
    intervals stay finite and wide.
    """
    leads = []
    for prior in (0.1, 1, 10):
        found = bradley_terry(["A"] * 5, ["B"] * 5, [1] * 5, prior=prior, prompts=range(5))
        lead, low, high = found.difference("A", "B")
        # by symmetry both are half the lead from the phantom: 5 (1 - P(win)) = prior (p - 1/2)
        p = expit(lead / 2)
        assert math.isclose(5 * (1 - expit(lead)), prior * (p - 0.5), rel_tol=1e-6)
        assert (
            found.over == "comparisons" and high - low > 2 * 1.959964 * 0.3 and math.isfinite(high)
        )
        leads.append(lead)
    assert leads[0] > leads[1] > leads[2] > 0


def test_ranks_are_open_where_differences_are():
    rng = np.random.default_rng(11)
    found = bradley_terry(*tournament(rng, np.array([3.0, 0.05, 0.0, -3.0]), 400))
    table = found.table().set_index("model")
    assert table.loc["m0", ["rank_low", "rank_high"]].tolist() == [1, 1] and table.loc[
        "m3", ["rank_low", "rank_high"]
    ].tolist() == [4, 4]
    assert table.loc[["m1", "m2"], "rank_low"].tolist() == [2, 2] and table.loc[
        ["m1", "m2"], "rank_high"
    ].tolist() == [3, 3]


def test_pairs_show_a_circle():
    games = [
        (a, b, y)
        for a, b, share in (("A", "B", 0.7), ("B", "C", 0.7), ("C", "A", 0.7))
        for y in [1.0] * int(100 * share) + [0.0] * (100 - int(100 * share))
    ]
    pairs = bradley_terry(*zip(*games)).pairs()
    assert pairs.n.tolist() == [100] * 3 and np.allclose(pairs.predicted, 0.5)
    assert ((pairs.low > 0.5) | (pairs.high < 0.5)).all() and np.allclose(
        (pairs.observed - 0.5).abs(), 0.2
    )
    line = bradley_terry(
        *tournament(np.random.default_rng(12), np.array([0.7, 0, -0.7]), 600)
    ).pairs()
    assert ((line.low < line.predicted) & (line.predicted < line.high)).all()


def test_all_pairs_of_scores():
    rows = all_pairs({"x": [1, 2, 3], "y": [1, 1, 5], "z": [0, 2, 4]})
    assert rows.to_numpy().tolist() == [
        ["x", "y", 0.5, 0],
        ["x", "y", 1, 1],
        ["x", "y", 0, 2],
        ["x", "z", 1, 0],
        ["x", "z", 0.5, 1],
        ["x", "z", 0, 2],
        ["y", "z", 1, 0],
        ["y", "z", 0, 1],
        ["y", "z", 1, 2],
    ]
    for scores in ({"x": [1]}, {"x": [1, 2], "y": [1]}, {"x": [1, math.nan], "y": [1, 2]}):
        with pytest.raises(DataError):
            all_pairs(scores)


def test_ranking_errors():
    for arguments, words in [
        ((["A"], ["B"], [1, 0]), "2 outcomes"),
        ((["A"], ["A"], [1]), "A with itself"),
        (([], [], []), "no comparisons"),
        ((["A"], ["B"], [math.nan]), "row 0 is nan"),
        ((["A"], ["B"], [2]), "not in"),
    ]:
        with pytest.raises(DataError, match=words):
            bradley_terry(*arguments)
    good = (list("ABAB"), list("BABA"), [1, 1, 1, 0])
    for prior in (-1, math.nan, math.inf):
        with pytest.raises(ConfigError, match="prior"):
            bradley_terry(*good, prior=prior)
    with pytest.raises(DataError, match="2 values for 4"):
        bradley_terry(*good, prompts=[1, 2])
    with pytest.raises(DataError, match="one prompt"):
        bradley_terry(*good, prompts=[1] * 4)
    with pytest.raises(ConfigError, match="'C' is not in this ranking"):
        bradley_terry(*good).difference("A", "C")


# Agreement of two judges.


def kappa_in_fractions(first, second, labels, v):
    n, pairs = len(first), list(zip(first, second))
    observed = sum(v(labels.index(a), labels.index(b)) for a, b in pairs) / F(n)
    expected = sum(v(labels.index(a), labels.index(b)) for a in first for b in second) / F(n * n)
    return 1 - observed / expected


WEIGHTS = {
    None: lambda a, b: F(a != b),
    "linear": lambda a, b: F(abs(a - b)),
    "quadratic": lambda a, b: F((a - b) ** 2),
}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=30),
    st.sampled_from(list(WEIGHTS)),
)
def test_kappa_equals_enumeration_in_fractions(pairs, weights):
    first, second = zip(*pairs)
    if len({*first, *second}) == 1:
        with pytest.raises(DataError, match="0/0"):
            cohens_kappa(first, second, weights=weights, categories=range(4))
        return
    found = cohens_kappa(first, second, weights=weights, categories=range(4))
    assert math.isclose(
        found.kappa,
        kappa_in_fractions(first, second, [0, 1, 2, 3], WEIGHTS[weights]),
        rel_tol=1e-9,
        abs_tol=1e-12,
    )
    assert -1 <= found.low <= found.kappa <= found.high <= 1 or found.kappa < -1
    turned = cohens_kappa(second, first, weights=weights, categories=range(4))
    assert math.isclose(turned.kappa, found.kappa, abs_tol=1e-12) and math.isclose(
        turned.standard_error, found.standard_error, abs_tol=1e-12
    )


def test_kappa_by_hand():
    found = cohens_kappa(
        ["yes"] * 25 + ["no"] * 25, ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
    )
    assert (
        math.isclose(found.kappa, 0.4)
        and math.isclose(found.agreement, 0.7)
        and math.isclose(found.chance, 0.5)
        and found.n == 50
    )
    assert found.categories == ("no", "yes") and found.table.tolist() == [[15, 10], [5, 20]]
    assert math.isclose(cohens_kappa([1, 0] * 10, [0, 1] * 10).kappa, -1) and math.isclose(
        cohens_kappa([1, 0] * 10, [1, 0] * 10).kappa, 1
    )
    # a hundred agreements are no proof
    assert cohens_kappa(["a", "b"] * 50, ["a", "b"] * 50).low < 0.99


def test_error_is_that_of_fleiss_cohen_everitt():
    """Their formula for unweighted kappa, written out; ours spreads one item more over the table,
    which matters less and less.
    """
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(9)).reshape(3, 3) * 0.5 + np.eye(3) / 6
    cells, n = rng.multinomial(200_000, p.ravel()).reshape(3, 3), 200_000
    pairs = [(a, b) for a in range(3) for b in range(3) for _ in range(cells[a, b])]
    found, p = cohens_kappa(*zip(*pairs)), cells / n
    rows, columns, agreed = p.sum(1), p.sum(0), np.trace(p)
    chance = rows @ columns
    a = sum(p[i, i] * ((1 - chance) - (rows[i] + columns[i]) * (1 - agreed)) ** 2 for i in range(3))
    b = (1 - agreed) ** 2 * sum(
        p[i, j] * (columns[i] + rows[j]) ** 2 for i in range(3) for j in range(3) if i != j
    )
    c = (agreed * chance - 2 * chance + agreed) ** 2
    assert math.isclose(
        found.standard_error, math.sqrt((a + b - c) / n) / (1 - chance) ** 2, rel_tol=1e-4
    )


@pytest.mark.parametrize("weights", [None, "linear", "quadratic"])
@pytest.mark.parametrize("n, agree", [(60, 0.5), (200, 0.7), (200, 0.9)])
def test_kappa_coverage(weights, n, agree):
    p = agree * np.diag([0.5, 0.2, 0.3]) + (1 - agree) * np.outer([0.4, 0.2, 0.4], [0.5, 0.2, 0.3])
    v = np.array([[float(WEIGHTS[weights](a, b)) for b in range(3)] for a in range(3)])
    true = 1 - (v * p).sum() / (p.sum(1) @ v @ p.sum(0))
    rng, inside = np.random.default_rng(1), 0
    for _ in range(600):
        cells = rng.choice(9, n, p=p.ravel())
        found = cohens_kappa(cells // 3, cells % 3, weights=weights, categories=range(3))
        inside += found.low <= true <= found.high
    assert 0.93 <= inside / 600 <= 0.98


def test_kappa_errors():
    for arguments, words in [
        (([1], [1]), "at least two"),
        (([1, 2], [1]), "2 verdicts against 1"),
        (([1, None], [1, 2]), "item 1 has no verdict"),
        (([1, math.nan], [1, 2]), "item 1"),
        (([1, 1], [1, 1]), "0/0"),
    ]:
        with pytest.raises(DataError, match=words):
            cohens_kappa(*arguments)
    with pytest.raises(ConfigError, match="weights"):
        cohens_kappa([1, 2], [1, 2], weights="cubic")
    with pytest.raises(ConfigError, match="no order"):
        cohens_kappa(["lost", "won"], ["won", "won"], weights="linear")
    with pytest.raises(ConfigError, match="twice"):
        cohens_kappa([1, 2], [1, 2], categories=[1, 1, 2])
    with pytest.raises(DataError, match="'3' is not among"):
        cohens_kappa([1, 3], [1, 2], categories=[1, 2])
    assert (
        cohens_kappa(
            ["lost", "won", "tied"],
            ["lost", "won", "won"],
            weights="linear",
            categories=["lost", "tied", "won"],
        ).kappa
        > cohens_kappa(["lost", "won", "tied"], ["lost", "won", "won"]).kappa
    )


# Scores by kind.


def test_means_and_differences_by_kind_equal_scipy():
    rng = np.random.default_rng(0)
    kinds, ours, theirs = (
        rng.choice(["sum", "story", "fact"], 90),
        rng.normal(1, 1, 90),
        rng.normal(0, 2, 90),
    )
    means, changes = scores_by_kind(kinds, ours), scores_by_kind(kinds, ours, theirs)
    for table, test in (
        (means, lambda part: ttest_1samp(ours[part], 0)),
        (changes, lambda part: ttest_rel(ours[part], theirs[part])),
    ):
        assert table.kind.tolist() == list(dict.fromkeys(kinds)) and table.n.sum() == 90
        for row in table.itertuples():
            wanted, wide = (
                test(kinds == row.kind).confidence_interval(level) for level in (0.95, 1 - 0.05 / 3)
            )
            assert np.allclose([row.low, row.high, row.low_all, row.high_all], [*wanted, *wide])
            assert math.isclose(row.value, (wanted.low + wanted.high) / 2)


def test_win_rates_and_shares_by_kind_equal_win_rate():
    rng = np.random.default_rng(1)
    kinds, ours, theirs = (
        rng.choice(["sum", "story"], 80),
        rng.integers(0, 4, 80),
        rng.integers(0, 4, 80),
    )
    for row in scores_by_kind(kinds, ours, theirs, measure="win_rate").itertuples():
        wanted = win_rate(ours[kinds == row.kind], theirs[kinds == row.kind])
        assert (
            np.allclose(
                [row.value, row.low, row.high], [wanted.rate, wanted.low, wanted.high], atol=1e-9
            )
            and row.low_all < row.low
            and row.high_all > row.high
        )
    shares = scores_by_kind(kinds, ours > 1, measure="share")
    assert (
        shares.value.tolist() == [np.mean(ours[kinds == kind] > 1) for kind in shares.kind]
        and shares.low.min() >= 0
    )
    sure = scores_by_kind(["a"] * 20, [1] * 20, measure="share")
    assert sure.value[0] == 1 and sure.low[0] < 0.95  # all right is not certainly always right


def test_all_kinds_together_hold_with_95_percent():
    """Eight kinds, no difference anywhere: alone, some kind excludes 0 in about a third of the
    cases; together in at most 5 %.
    """
    rng, alone, together = np.random.default_rng(2), 0, 0
    kinds = np.repeat(list("abcdefgh"), 12)
    for _ in range(300):
        table = scores_by_kind(kinds, rng.normal(size=96))
        alone += ((table.low > 0) | (table.high < 0)).any()
        together += ((table.low_all > 0) | (table.high_all < 0)).any()
    assert 0.25 < alone / 300 < 0.45 and together / 300 < 0.085


def test_by_kind_edges_and_errors():
    single = scores_by_kind(["a", "b", "b"], [1, 2, 3])
    # one value has no interval
    assert math.isnan(single.low[0]) and single.value.tolist() == [1, 2.5]
    for arguments, options, error, words in [
        ((["a"], [1, 2]), {}, DataError, "1 kinds, 2 scores"),
        (([], []), {}, DataError, "at least one"),
        ((["a"], [math.nan]), {}, DataError, "row 0 is NaN"),
        ((["a"], [1], [1, 2]), {}, DataError, "2 of the reference"),
        ((["a"], [1]), {"measure": "median"}, ConfigError, "measure"),
        ((["a"], [1]), {"measure": "win_rate"}, ConfigError, "needs reference"),
        ((["a"], [1], [1]), {"measure": "share"}, ConfigError, "takes no reference"),
        ((["a"], [3]), {"measure": "share"}, DataError, "not in"),
    ]:
        with pytest.raises(error, match=words):
            scores_by_kind(*arguments, **options)


def test_the_study_of_lambda_is_complete():
    """Three seeds of each lambda, all answers kept: what the lesson needs to judge them kind by
    kind.
    """
    from prefkit.runs.studies import load_study

    study = load_study("data/configs/lessons/orpo_kinds.yaml")
    assert sorted(
        (one.hyperparameters["lam"], one.settings["seed"]) for one in study.runs
    ) == sorted(itertools.product((0.1, 1.0, 5.0), range(3)))
    assert study.evaluate["examples"] == study.evaluate["prompts"] >= 400 and {
        one.method for one in study.runs
    } == {"orpo"}
