"Widgets of losses: what is drawn is what the losses say, by hand and in closed form."

import html
import itertools
import math
import time

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from scipy.special import expit
from torch.testing import assert_close

from prefkit.core import ConfigError
from prefkit.losses import dpo_loss, ipo_loss
from prefkit.report.figures import COLOURS, check_figure
from prefkit.train.methods import BUILT_IN_METHODS, methods
from prefkit.widgets import bandit, clipping, losses, odds, taper, value
from prefkit.widgets.view import Choice, Slider

EXPLORERS = {
    "losses": losses.explore_losses,
    "bandit": bandit.explore_bandit,
    "odds": odds.explore_odds,
    "value": value.explore_value,
    "taper": taper.explore_taper,
    "clipping": clipping.explore_clipping,
}
PLACES = np.linspace(-20, 20, 9)


def line(fig, panel, colour):
    "What is drawn in a colour of a panel: x and y of its longest line."
    found = [
        one for one in fig.axes[panel].get_lines() if to_hex(one.get_color()) == colour.lower()
    ]
    return max(found, key=lambda one: len(one.get_xdata())).get_data()


def closed_form(name, x, rejected):
    "Push on both answers, by hand, at the defaults of the table."
    if name == "dpo":
        push = 0.1 * expit(-0.1 * (x - rejected))
        return push, -push
    if name == "ipo":
        push = 2 * (5 - (x - rejected))
        return push, -push
    if name == "minor_dpo":
        push = 0.1 * expit(-0.1 * (x - max(0, rejected)))
        return push, -push * (rejected > 0)
    if name == "sft":
        return np.ones_like(x), np.zeros_like(x)
    if name == "kto":
        good, bad = (0.1 * expit(0.1 * r) * expit(-0.1 * r) for r in (x, rejected))
        return good, np.full_like(x, -bad)
    if name == "topr":
        return np.ones_like(x), np.full_like(x, -min(1.0, math.exp(rejected)))
    if name == "sppo":
        return 2 * (5 - x), np.full_like(x, 2 * (-5 - rejected))
    assert name == "orpo"
    chosen, low = np.exp((x - 40) / 40), math.exp((rejected - 40) / 40)
    delta = 1 / (1 + (chosen / (1 - chosen)) / (low / (1 - low)))
    return (1 + 0.1 * delta / (1 - chosen)) / 40, -0.1 * delta / (1 - low) / 40


@pytest.mark.parametrize("rejected", [-7.0, 3.0])
@pytest.mark.parametrize("name", "dpo ipo minor_dpo sft kto topr sppo orpo".split())
def test_the_push_that_is_drawn_is_the_closed_form(name, rejected):
    fig = losses.draw_loss_and_push(name, losses.ALONE, 1.0, rejected)
    for side, wanted in zip(("chosen", "rejected"), closed_form(name, PLACES, rejected)):
        x, y = line(fig, 1, COLOURS[side])
        np.testing.assert_allclose(np.interp(PLACES, x, y), wanted, rtol=1e-5, atol=1e-9)


def test_the_loss_that_is_drawn_is_the_losss():
    x, y = line(losses.draw_loss_and_push("dpo", losses.ALONE, 2.0, -5.0), 0, COLOURS["black"])
    np.testing.assert_allclose(y, np.log1p(np.exp(-0.2 * (x + 5))), rtol=1e-6)
    assert y[np.searchsorted(x, 0.0)] == pytest.approx(math.log1p(math.exp(-1.0)))


def test_every_offline_method_of_the_table_is_drawn_and_starts_at_one_beside_another():
    for name in set(methods(online=False)) & set(BUILT_IN_METHODS):
        fig = losses.draw_loss_and_push(name, "dpo" if name != "dpo" else "ipo", 1.0, 0.0)
        x, y = line(fig, 1, COLOURS["chosen"])
        assert np.interp(0.0, x, y) == pytest.approx(1.0), name
        assert np.isfinite(y).all()
    with pytest.raises(ConfigError, match="learns from its own samples"):
        losses.pair_curve("rloo", PLACES, 0.0)


def test_a_method_beside_itself_is_drawn_once_and_not_scaled():
    alone, twice = (losses.draw_loss_and_push("dpo", one, 1.0, 0.0) for one in ("nothing", "dpo"))
    for panel, colour in ((0, "black"), (1, "chosen")):
        np.testing.assert_array_equal(
            line(alone, panel, COLOURS[colour]), line(twice, panel, COLOURS[colour])
        )


def expected_loss(method, beta, noise, logps):
    "Over all pairs of the five answers, as often as the labels prefer each."
    ref = torch.from_numpy(bandit.REFERENCE).log()
    reward = torch.from_numpy(bandit.REWARD)
    total = logps.new_zeros(())
    for i, j in itertools.permutations(range(5), 2):
        preferred = torch.sigmoid((reward[i] - reward[j]) / noise)
        pair = [one[None] for one in (logps[i], logps[j], ref[i], ref[j])]
        loss = dpo_loss(*pair, beta=beta) if method == "dpo" else ipo_loss(*pair, tau=beta)
        total = total + preferred * loss.sum()
    return total


@pytest.mark.parametrize("method", bandit.LEARNERS)
@pytest.mark.parametrize(("beta", "noise"), [(0.5, 1.0), (0.2, 2.0), (1.5, 0.4)])
def test_the_bandits_policy_is_where_the_loss_is_least(method, beta, noise):
    theta = torch.from_numpy(bandit.learned_policy(method, beta, noise)).log().requires_grad_()
    loss = expected_loss(method, beta, noise, theta.log_softmax(0))
    (gradient,) = torch.autograd.grad(loss, theta)
    assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-9)
    moved = theta.detach() + torch.tensor([0.1, 0, 0, 0, 0])
    assert expected_loss(method, beta, noise, moved.log_softmax(0)) > loss


def test_the_optimum_is_the_lessons_and_dpo_without_more_noise_finds_it():
    best = bandit.best_policy(0.5)
    weights = bandit.REFERENCE * np.exp(bandit.REWARD / 0.5)
    np.testing.assert_allclose(best, weights / weights.sum())
    np.testing.assert_allclose(bandit.learned_policy("dpo", 0.5, 1.0), best)
    assert bandit.kl_of(bandit.REFERENCE) == 0
    assert bandit.kl_of(np.array([0, 0, 0, 1.0, 0])) == pytest.approx(-math.log(0.05))
    with pytest.raises(ConfigError, match="'kto' is none of dpo, ipo"):
        bandit.learned_policy("kto", 0.5, 1.0)


def test_twice_the_noise_is_twice_the_beta_for_dpo():
    drawn = bandit.draw_bandit("dpo", 0.5, 2.0)
    bars = [one.get_height() for one in drawn.axes[0].containers[1]]
    np.testing.assert_allclose(bars, bandit.best_policy(1.0))
    assert "as if beta were 1" in " ".join(drawn.get_suptitle().split())


def test_the_odds_curve_is_the_odds():
    fig = odds.draw_odds(0.6, 0.35)
    x, y = line(fig, 0, COLOURS["blue"])
    np.testing.assert_allclose(y, x / (1 - x), rtol=1e-6)
    assert "Odds ratio 2.79, probability ratio 1.71" in " ".join(fig.get_suptitle().split())
    assert 1.5 / (0.35 / 0.65) == pytest.approx(2.79, abs=0.005)


def test_the_push_of_the_odds_is_equation_ten():
    x, y = line(odds.draw_odds(0.6, 0.35), 1, COLOURS["blue"])
    delta = 1 / (1 + 1.5 / (x / (1 - x)))
    np.testing.assert_allclose(y, delta / (1 - x), rtol=1e-6)
    x, y = line(odds.draw_odds(0.6, 0.35), 1, COLOURS["black"])
    np.testing.assert_allclose(y, x / (x + 0.6), rtol=1e-6)


def test_the_value_is_ktos_and_the_push_is_greatest_at_the_reference_point():
    fig = value.draw_value(10.0, 0.2, 1.0, 1.5)
    x, y = line(fig, 0, COLOURS["rejected"])
    np.testing.assert_allclose(y, 1.5 * expit(0.2 * (10 - x)), rtol=1e-6, atol=1e-7)
    x, y = line(fig, 1, COLOURS["chosen"])
    assert x[y.argmax()] == 10 and y.max() == pytest.approx(0.2 / 4)
    x, y = line(fig, 1, COLOURS["rejected"])
    np.testing.assert_allclose(
        y, -1.5 * 0.2 * expit(0.2 * (x - 10)) * expit(0.2 * (10 - x)), rtol=1e-6, atol=1e-9
    )


def test_a_tapered_answer_falls_as_the_logarithm():
    path = taper.fall(0.02, ratio_low=0.0, ratio_high=1.0)
    np.testing.assert_allclose(path, -np.log1p(0.02 * np.arange(len(path))), atol=0.01)
    np.testing.assert_allclose(taper.fall(0.5, ratio_low=1, ratio_high=1), -0.5 * np.arange(101))
    ratios = np.array([-9.0, -1.0, 0.5, 5.0])
    weights = taper.taper_weights(ratios, ratio_low=0.2, ratio_high=2.0)
    np.testing.assert_allclose(weights, [0.2, math.exp(-1), math.exp(0.5), 2.0])


def test_crossed_bounds_are_refused_by_name_and_said_in_the_pictures_place():
    with pytest.raises(ConfigError) as error:
        taper.taper_weights(PLACES, ratio_low=0.9, ratio_high=0.5)
    assert (error.value.field, error.value.reason) == ("ratio_low", "above ratio_high")
    assert 'role="alert"' in taper.explore_taper().set(ratio_low=1.0, ratio_high=0.5).html()


@pytest.mark.parametrize(
    ("method", "low", "high"),
    [("ppo", 0.8, 1.2), ("grpo", 0.8, 1.2), ("dapo", 0.8, 1.28), ("gspo", 1 - 3e-4, 1 + 4e-4)],
)
def test_a_token_is_not_pushed_beyond_the_bounds_of_its_method(method, low, high):
    bounds = clipping.bounds_of(method)
    assert (bounds.low, bounds.high) == pytest.approx((low, high))
    ratios = np.array([low - 1e-4, low + 1e-4, 1.0, high - 1e-4, high + 1e-4])
    good, bad = (clipping.clipped_push(ratios, bounds, sign) for sign in (1.0, -1.0))
    np.testing.assert_allclose(good, [*ratios[:4], 0], rtol=1e-6)
    np.testing.assert_allclose(bad, [0, *-ratios[1:]], rtol=1e-6)


def test_cispo_pushes_on_and_gspo_silences_a_whole_answer_for_one_token():
    ratios = np.array([0.1, 1.0, 4.0, 5.0, 9.0])
    bounds = clipping.bounds_of("cispo")
    np.testing.assert_allclose(clipping.clipped_push(ratios, bounds, 1.0), [0.1, 1, 4, 5, 5])
    gspo = clipping.bounds_of("gspo")
    assert gspo.of_token(8) == pytest.approx((1 - 8 * 3e-4, 1 + 8 * 4e-4), abs=1e-5)
    assert clipping.clipped_push(np.array([1.0035]), gspo, 1.0, tokens=8)[0] == 0
    shared = clipping.clipped_push(np.array([1.003]), gspo, 1.0, tokens=8)[0]
    assert shared == pytest.approx(1.003 ** (1 / 8))


def ends(control):
    "Values over the whole range of a control."
    if isinstance(control, Slider):
        if control.log:
            inside = np.geomspace(control.low, control.high, 5)[1:-1]
        else:
            inside = np.linspace(control.low, control.high, 5)[1:-1]
        return [control.low, *(type(control.value)(x) for x in inside), control.high]
    assert isinstance(control, Choice)
    return list(control.options)


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPLORERS)
def test_every_control_moves_over_its_range_and_every_picture_keeps_the_rules(name):
    explorer = EXPLORERS[name]()
    start = dict(explorer.state)
    for control, one in explorer.controls.items():
        for at in ends(one):
            fig = explorer.set(**start | {control: at}).draw(**explorer.state)
            assert not check_figure(fig), (control, at)


@pytest.mark.parametrize("name", EXPLORERS)
def test_an_update_is_quick_and_the_picture_is_told_in_words(name):
    explorer = EXPLORERS[name]()
    begun = time.process_time()
    shown = explorer.html()
    assert time.process_time() - begun < 1.0  # a tenth of a second on an idle core
    assert shown.startswith(f'<img alt="{html.escape(explorer.title)} (') and len(shown) < 60_000
    at_the_ends = {
        name: one.high if isinstance(one, Slider) else one.options[-1]
        for name, one in explorer.controls.items()
    }
    assert not check_figure(explorer.draw(**at_the_ends))


@pytest.mark.parametrize("name", EXPLORERS)
def test_a_page_without_a_kernel_has_at_most_sixty_pictures(name):
    controls = EXPLORERS[name]().controls.values()
    assert 6 <= math.prod(len(one.beforehand()) for one in controls) <= 60
    for one in controls:
        assert all(one.accepts(at) for at in one.beforehand())
        assert one.value in one.beforehand()
