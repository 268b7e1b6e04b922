"""What every loss must do: be finite wherever log-probs may lie, lift low precision, give one
number per example, refuse by name, and never make a GPU wait.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from helpers.losses import (
    averages,
    finite_loss_and_gradients,
    input_dtypes,
    random_lengths,
    random_logps,
    refuses_wrong_shapes,
    runs_without_reading_values,
    token_counts,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from prefkit import losses
from prefkit.core import ConfigError, check_number
from prefkit.losses.checks import check_batch

POLICY = ("policy_chosen_logps", "policy_rejected_logps")
PAIRS = (*POLICY, "ref_chosen_logps", "ref_rejected_logps")
LENGTHS = ("chosen_lengths", "rejected_lengths")
ANSWERS = ("chosen", "rejected", "explore")
NOT_POSITIVE = (0.0, -0.1, math.inf, math.nan, "0.1", True, None)
NEGATIVE = (-0.1, math.inf, math.nan, "0.1", True, None)


@dataclass(frozen=True)
class Loss:
    "A loss, the names of its inputs, one number per example each, and what it makes of extremes."

    function: Callable
    inputs: tuple[str, ...]
    by_name: tuple[str, ...] = ()  # inputs that are given by name
    edges: dict[str, tuple] = field(default_factory=dict)  # hyper-parameter -> values to try
    refused: dict[str, tuple] = field(default_factory=dict)  # hyper-parameter -> out of range
    never_negative: bool = True

    @property
    def names(self):
        return (*self.inputs, *self.by_name)

    @property
    def label(self):
        return self.function.__name__ + "_with_lengths" * bool(self.by_name)

    def __call__(self, *columns, **hyperparameters):
        positional = columns[: len(self.inputs)]
        named = dict(zip(self.by_name, columns[len(self.inputs) :]))
        return self.function(*positional, **named, **hyperparameters)

    def random_inputs(self, n, dtype, seed):
        "Columns as training sees them; token counts are whole numbers."
        generator = torch.Generator().manual_seed(seed)
        columns = []
        for number, name in enumerate(self.names):
            if name.endswith("lengths"):
                columns.append(random_lengths(n, seed + number)[0].long())
            elif name.endswith("logps"):
                columns.append(random_logps(n, dtype, seed + number)[0])
            else:
                columns.append(torch.randn(n, generator=generator).to(dtype))
        return columns

    def edge_inputs(self, rows, dtype):
        "Columns from rows of (log-prob per token by input, number of tokens by answer)."
        columns = []
        for name in self.names:
            answer = next((each for each in ANSWERS if each in name), "chosen")
            if name.endswith("lengths"):
                columns.append(torch.tensor([counts[answer] for _, counts in rows]))
            else:
                sums = [means[name] * counts[answer] for means, counts in rows]
                columns.append(torch.tensor(sums, dtype=dtype, requires_grad=True))
        return columns


BETAS = (0.01, 0.1, 1.0, 10.0)
RATIO = {"lam": (0.0, 0.1, 1.0, 10.0), "nll_weight": (0.0, 1.0)}
RATIO_REFUSED = {"lam": NEGATIVE, "nll_weight": NEGATIVE}
TAPER_REFUSED = {
    "ratio_low": (-0.1, 1.1, math.nan, "0", None),
    "ratio_high": (-1.0, math.inf, math.nan, True),
}
ON_LOG_PROBS = [
    Loss(losses.sft_loss, ("policy_logps",)),
    Loss(losses.sft_loss, ("policy_logps",), by_name=("lengths",)),
    Loss(
        losses.dpo_loss,
        PAIRS,
        edges={"beta": BETAS, "label_smoothing": (0.0, 0.1)},
        refused={"beta": NOT_POSITIVE, "label_smoothing": (-0.1, 0.5, math.nan)},
    ),
    Loss(
        losses.dpop_loss,
        PAIRS,
        edges={"beta": (0.01, 0.3, 10.0), "lam": (0.0, 50.0, 500.0)},
        refused={"beta": NOT_POSITIVE, "lam": NEGATIVE},
    ),
    Loss(
        losses.ipo_loss,
        PAIRS,
        edges={"tau": (0.001, *BETAS)},
        refused={"tau": NOT_POSITIVE},
    ),
    Loss(
        losses.ipo_loss,
        PAIRS,
        by_name=LENGTHS,
        edges={"tau": (0.001, *BETAS)},
        refused={"tau": NOT_POSITIVE},
    ),
    Loss(losses.minor_dpo_loss, PAIRS, edges={"beta": BETAS}, refused={"beta": NOT_POSITIVE}),
    Loss(
        losses.simpo_loss,
        (*POLICY, *LENGTHS),
        edges={"beta": (0.1, 2.0, 10.0, 100.0), "gamma": (0.0, 1.0, 20.0)},
        refused={"beta": NOT_POSITIVE, "gamma": NEGATIVE},
    ),
    Loss(
        losses.xpo_loss,
        (*PAIRS, "explore_logps"),
        edges={"beta": BETAS, "alpha": (0.0, 1e-5, 0.1, 10.0)},
        refused={"beta": NOT_POSITIVE, "alpha": NEGATIVE},
        never_negative=False,
    ),
    Loss(losses.orpo_loss, (*POLICY, *LENGTHS), edges=RATIO, refused=RATIO_REFUSED),
    Loss(losses.probability_ratio_loss, (*POLICY, *LENGTHS), edges=RATIO, refused=RATIO_REFUSED),
    Loss(losses.log_odds_ratio, (*POLICY, *LENGTHS), never_negative=False),
]
WEIGHTED = ("policy_logps", "behaviour_logps", "rewards")
ON_REWARDS = [
    Loss(losses.reward_model_loss, ("chosen_rewards", "rejected_rewards")),
    Loss(losses.reward_model_loss, ("chosen_rewards", "rejected_rewards"), by_name=("margin",)),
    Loss(losses.topr_loss, WEIGHTED, refused=TAPER_REFUSED),
    Loss(losses.topr_loss, WEIGHTED, by_name=("lengths",), refused=TAPER_REFUSED),
    Loss(losses.topr_weight, WEIGHTED, refused=TAPER_REFUSED),
]
LOSSES = ON_LOG_PROBS + ON_REWARDS


def each(losses):
    return pytest.mark.parametrize("loss", losses, ids=lambda loss: loss.label)


def is_finite(loss, rows, dtype, hyperparameters):
    value = finite_loss_and_gradients(loss, loss.edge_inputs(rows, dtype), **hyperparameters)
    assert not loss.never_negative or (value >= 0).all()


@each(ON_LOG_PROBS)
@settings(max_examples=200)
@given(st.data())
def test_loss_and_gradient_are_finite_wherever_log_probs_may_lie(loss, data):
    means = data.draw(st.fixed_dictionaries(dict.fromkeys(loss.names, averages)))
    counts = data.draw(st.fixed_dictionaries(dict.fromkeys(ANSWERS, token_counts)))
    choices = {name: st.sampled_from(values) for name, values in loss.edges.items()}
    hyperparameters = data.draw(st.fixed_dictionaries(choices))
    is_finite(loss, [(means, counts)], data.draw(input_dtypes), hyperparameters)


@each(ON_LOG_PROBS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loss_and_gradient_are_finite_in_every_corner(loss, dtype):
    corners = itertools.product((0.0, -1e-8, -50.0), repeat=len(loss.names))
    means = [dict(zip(loss.names, values)) for values in corners]
    corners = itertools.product((1, 8192), repeat=len(ANSWERS))
    counts = [dict(zip(ANSWERS, values)) for values in corners]
    rows = list(itertools.product(means, counts))
    for values in itertools.product(*loss.edges.values()):
        is_finite(loss, rows, dtype, dict(zip(loss.edges, values)))


@each(LOSSES)
def test_low_precision_is_computed_in_float32(loss):
    columns = loss.random_inputs(50, torch.bfloat16, 5)
    result = loss(*columns)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, loss(*(x.float() for x in columns)), rtol=0, atol=0)


@each(LOSSES)
def test_loss_is_one_number_per_example_and_not_reduced(loss):
    columns = loss.random_inputs(6, torch.float32, 6)
    whole = loss(*columns)
    assert whole.shape == (6,)
    torch.testing.assert_close(whole[2:3], loss(*(x[2:3] for x in columns)))


@each(LOSSES)
def test_wrong_shape_is_refused_by_name(loss):
    refuses_wrong_shapes(loss, loss.names)


@pytest.mark.parametrize(
    "loss, name, value",
    [
        pytest.param(loss, name, value, id=f"{loss.label}-{name}-{value}")
        for loss in LOSSES
        for name, values in loss.refused.items()
        for value in values
    ],
)
def test_hyperparameter_out_of_range_is_refused_by_name(loss, name, value):
    with pytest.raises(ConfigError) as error:
        loss(*[torch.ones(2) for _ in loss.names], **{name: value})
    assert (error.value.field, error.value.reason) == (name, "out of range")


@each(LOSSES)
def test_what_is_not_an_input_is_keyword_only(loss):
    with pytest.raises(TypeError):
        loss.function(*[torch.ones(2) for _ in loss.inputs], 0.1)


@each(LOSSES)
def test_values_are_never_looked_at(loss):
    runs_without_reading_values(loss, loss.names)
    # not hidden either: the trainer watches for it
    columns = [torch.full((1,), 1.0 if name.endswith("lengths") else -1.0) for name in loss.names]
    columns[0] *= math.nan
    assert loss(*columns).isnan().all()


def test_check_batch_finds_the_widest_type_and_skips_none():
    half, single, double = (
        torch.zeros(2, dtype=t) for t in (torch.bfloat16, torch.float32, torch.float64)
    )
    whole = torch.zeros(2, dtype=torch.long)
    assert check_batch(a=half, b=None, c=whole) == torch.float32
    assert check_batch(a=half, b=single, c=double) == torch.float64


@pytest.mark.parametrize(
    "value", [-0.5, 1.0, math.inf, math.nan, "0.1", None, True, torch.tensor(0.1)]
)
def test_a_hyperparameter_is_a_finite_number_within_its_bounds(value):
    with pytest.raises(ConfigError, match="^beta is .*, but must be a finite number") as error:
        check_number("beta", value, least=0, below=1)
    assert str(error.value).endswith("of at least 0 and below 1.")
    assert error.value.field == "beta"


def test_bounds_are_kept_to_the_end():
    check_number("x", 0, least=0, most=0)
    check_number("x", 1e308, above=0)
    for value, bounds in [(0, {"above": 0}), (1, {"below": 1}), (0.5, {"whole": True})]:
        with pytest.raises(ConfigError):
            check_number("x", value, **bounds)
