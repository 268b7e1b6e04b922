"""What sets one preference method apart from the next is a function of a few log-probs.

Everything before that function (batches, log-probs, the reference, samples) and after it (averages,
logs) is the same for all of them, so a method is one row of one table: those that learn from rows
that are there, and those that learn from their own samples.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from prefkit.core import ConfigError, check_number, nearest
from prefkit.data.rows import Row, as_rows
from prefkit.losses import (
    clipped_share,
    derangement,
    distillation_advantages,
    distillation_loss,
    dpo_loss,
    dpop_loss,
    bounded_share,
    gae,
    group_advantages,
    group_weights,
    group_win_rates,
    grpo_advantages,
    grpo_loss,
    ipo_loss,
    kto_kl,
    kto_loss,
    log_odds_ratio,
    minor_dpo_loss,
    orpo_loss,
    overlong_penalty,
    policy_gradient_loss,
    ppo_clipped_share,
    ppo_loss,
    probability_ratio_loss,
    ranked_rewards,
    reward_model_loss,
    rloo_advantages,
    rloo_kl_loss,
    rloo_loss,
    sft_length_loss,
    sft_loss,
    shaped_rewards,
    simpo_loss,
    sppo_loss,
    sppo_pair_loss,
    token_rewards,
    topr_loss,
    topr_weight,
    whiten,
    xpo_loss,
)
from prefkit.model.batches import (
    ANSWERS,
    Batch,
    batch_logps,
    batch_rewards,
    collate,
    evaluating,
    length_batches,
    logps_name,
    row_length,
)
from prefkit.model.sampling import sample_ids
from prefkit.train.devices import Share
from prefkit.train.inputs import (
    FROM_REFERENCE,
    INPUTS,
    BinaryInputs,
    LossInputs,
    PairInputs,
    SampleInputs,
    SftInputs,
)
from prefkit.train.log import Averages

# ---- the table


@dataclass(frozen=True)
class Method:
    "One row of the method table: a loss, the data it learns from, and its hyper-parameters."

    name: str  # how configs call it
    loss: Callable  # from prefkit.losses: tensors in, loss of each example out, (batch,)
    # of data: "sft" (single answers), "pairs", "binary" (single answers with a label), or "prompts"
    # (the method samples the answers itself)
    kind: str
    reference: bool = (
        True  # does the loss ask for log-probs of the model that training starts from?
    )
    defaults: dict = field(default_factory=dict)  # hyper-parameters
    sources: dict = field(default_factory=dict)  # where each default comes from
    # the batch's loss: mean over "examples", or sum over them / number of response "tokens"
    reduction: str = "examples"
    optional_inputs: tuple = ()  # inputs with a default that this row fills all the same
    extra: tuple = ()  # answers that are added to each row before training: keys of EXTRA_ANSWERS
    # (`LossInputs`, hyperparameters) -> {name: (rows,) values, or (values, weights)} to be logged
    watch: Callable | None = None
    output: str = "logps"  # of the model: of answers, or "rewards" of a model with a scalar head
    # of prompts alone: (tensors of a round, hyper-parameters) -> further tensors
    prepare: Callable | None = None
    writers: tuple = ()  # who writes each answer: policy or reference; (): the policy writes all
    values: bool = False  # does it train a value head?
    demonstrations: bool = False  # do its rows need an answer to imitate?
    teacher: bool = False  # does it learn from another model, that `reference_model` names?

    @property
    def online(self) -> bool:
        "Whether it learns from its own samples."
        return self.kind == "prompts"

    def answers(self) -> tuple[str, ...]:  # names of the answers in a batch
        "The answers that the data have, and those that are added."
        return ANSWERS[self.kind] + self.extra

    def inputs(self) -> list[str]:  # names of the tensors that the loss is called with
        "Inputs without a default, and those of `optional_inputs`."
        asked, known = inspect.signature(self.loss).parameters, INPUTS[self.kind].names()
        return [name for name in asked if name in known and self._fills(asked[name])]

    def _fills(self, parameter: inspect.Parameter) -> bool:
        needed = parameter.default is inspect.Parameter.empty
        return needed or parameter.name in self.optional_inputs

    def hyperparameters(self, given: dict | None = None) -> dict:  # all of them
        """Given values over the row's defaults; raises `ConfigError` for a name or a value that is
        refused.
        """
        for name in given or {}:
            if name not in self.defaults:
                raise ConfigError(
                    f"hyper-parameter {name}: {self.name} has none of that name."
                    f"{nearest(name, self.defaults)}",
                    field=f"hyperparameters.{name}",
                    reason="unknown",
                )
        values = {**self.defaults, **(given or {})}
        try:
            try_method(self, values)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"{self.name}: {error}", field="hyperparameters", reason="refused"
            ) from error
        return values

    def split(self, hyperparameters: dict) -> tuple[dict, dict]:  # of `prepare`, of the loss
        "Which hyper-parameters go where."
        own = keywords(self.prepare) if self.prepare else []
        of_loss = keywords(self.loss)

        def part(names):
            return {name: value for name, value in hyperparameters.items() if name in names}

        return part(own), part(of_loss)


METHODS: dict[str, Method] = {}
EXTRA_ANSWERS: dict[str, Callable] = {}  # answers that are added to the data, filled below


def keywords(function: Callable) -> list[str]:
    "Keyword-only parameters of a function: its hyper-parameters."
    parameters = inspect.signature(function).parameters.items()
    return [name for name, p in parameters if p.kind is p.KEYWORD_ONLY]


def get_method(
    name: str,  # as in a config
    online: bool | None = None,  # learns from its own samples, or not; None: either
) -> Method:  # its row
    "The row of that name; raises `ConfigError` naming the methods that there are."
    fitting = [row.name for row in METHODS.values() if online in (None, row.online)]
    if name in fitting:
        return METHODS[name]
    if name in METHODS:
        way = (
            "samples: call train_online (the pipeline rollout)"
            if METHODS[name].online
            else (
                "rows that are there: call train_model (the pipelines sft, preference, "
                "reward_model)"
            )
        )
        raise ConfigError(
            f"method: {name} learns from {'its own ' if METHODS[name].online else ''}{way}.",
            field="method",
            reason="of the other kind",
        )
    raise ConfigError(
        f"method: there is no method {name!r}.{nearest(name, fitting)}",
        field="method",
        reason="unknown",
    )


def methods(online: bool) -> dict[str, Method]:
    "Those rows of the table that learn from their own samples, or the others."
    return {name: row for name, row in METHODS.items() if row.online == online}


def add_method(
    method: Method,  # the new row; a row of the same name is replaced
) -> Method:  # the row
    "Put a row into the method table; raises `ConfigError` where loss and row do not fit."

    def refuse(text: str, field: str):
        raise ConfigError(f"{method.name}: {text}", field=field, reason="does not fit")

    if method.output not in ("logps", "rewards"):
        refuse(f"output {method.output!r} is neither logps nor rewards.", "output")
    if method.kind not in INPUTS:
        refuse(f"kind {method.kind!r} is none of {', '.join(INPUTS)}.", "kind")
    if method.reduction not in ("examples", "tokens"):
        refuse(f"reduction {method.reduction!r} is neither examples nor tokens.", "reduction")
    if method.online != (method.prepare is not None):
        refuse("a method has `prepare` exactly if it learns from prompts.", "prepare")
    inputs, known = method.inputs(), ", ".join(INPUTS[method.kind].names())
    for name, p in inspect.signature(method.loss).parameters.items():
        if p.default is p.empty and name not in inputs and name not in method.defaults:
            have = "samples have" if method.online else f"{method.kind} data do not have; they have"
            refuse(f"the loss asks for {name}, which {have} {known}.", "loss")
    taken = keywords(method.loss) + (keywords(method.prepare) if method.prepare else [])
    for name in method.defaults:
        if name not in taken:
            who = (
                "neither loss nor prepare has an argument"
                if method.online
                else "the loss has no argument"
            )
            refuse(f"{who} {name}.", "defaults")
    check_extras(method, refuse)
    asks = any(name.startswith("ref_") or name in FROM_REFERENCE for name in method.inputs())
    if not method.online and method.reference != asks:
        refuse(
            f"reference={method.reference}, but the loss asks for {method.inputs()}.", "reference"
        )
    METHODS[method.name] = method
    return method


def register_loss(
    name: str,  # as in a config: method: NAME
    loss: Callable,  # tensors in, loss of each example out; hyper-parameters are its keywords
    kind: str = "pairs",  # of data: sft, pairs, binary
    **row,  # other fields of `Method`
) -> Method:  # its row
    """Add a method by its loss alone; whether it needs a reference is read from its arguments. A
    name of yours may be given again, a built-in one raises `ConfigError`.
    """
    if name in BUILT_IN_METHODS:
        raise ConfigError(
            f"method: {name} is there already. Take another name.", field="name", reason="taken"
        )
    given = inspect.signature(loss).parameters
    defaults = {key: given[key].default for key in keywords(loss)}
    if lacking := [key for key, value in defaults.items() if value is inspect.Parameter.empty]:
        raise ConfigError(
            f"method {name}: the hyper-parameter {lacking[0]} has no default in the loss.",
            field=lacking[0],
            reason="missing",
        )
    asks = any(key.startswith("ref_") or key in FROM_REFERENCE for key in given)
    made = Method(name, loss, kind, reference=asks, defaults=defaults)
    return add_method(replace(made, **row))


def check_extras(method: Method, refuse: Callable):
    "Refuse a row that asks for answers, inputs or rewards that nothing provides."
    asked = method.inputs()
    for name in method.optional_inputs:
        if name not in asked:
            refuse(f"the loss has no input {name}.{nearest(name, asked)}", "optional_inputs")
    for name in method.extra:
        if name not in EXTRA_ANSWERS:
            refuse(f"extra answers {name!r} are none of {', '.join(EXTRA_ANSWERS)}.", "extra")
    if method.online:
        return
    for name, wanted, given in (
        ("explore_logps", 'extra=("explore",)', "explore" in method.extra),
        ("kl", 'extra=("mismatched",)', "mismatched" in method.extra),
        ("chosen_rewards", 'output="rewards"', method.output == "rewards"),
    ):
        if name in asked and not given:
            refuse(f"the loss asks for {name}. Write {wanted} in its row.", "extra")


def try_method(method: Method, hyperparameters: dict):
    "Call a row's functions once on the smallest data there are; raises what they raise."
    own, of_loss = method.split(hyperparameters)
    two, tokens = torch.zeros(2, 2, dtype=torch.float64), torch.zeros(2, 2, 2)
    made = {}
    if method.prepare:
        seen = {
            "rewards": two,
            "policy_logps": two,
            "ref_logps": two,
            "token_logps": tokens,
            "ref_token_logps": tokens,
            "values": tokens,
            "mask": tokens == 0,
            "lengths": torch.ones(2, 2, dtype=torch.int64),
            "max_new_tokens": 10**6,
            "generator": torch.Generator().manual_seed(0),
        }
        made = {name: answer_major(value) for name, value in method.prepare(seen, **own).items()}
    sizes = dict(rows=4, answers=4, prompts=4, samples=2, longest=2)
    asked = INPUTS[method.kind].trial(**sizes).asked(method.inputs())
    asked |= {name: value for name, value in made.items() if name in asked}
    method.loss(**asked, **of_loss)


def answer_major(values: Tensor) -> Tensor:  # (prompts, k, ...) -> (k * prompts, ...)
    "The order in which `collate` numbers answers."
    return values.transpose(0, 1).reshape(-1, *values.shape[2:])


# ---- what is watched


def watch_averages(
    inputs: PairInputs, hyperparameters: dict
) -> dict:  # for methods that divide by the length
    """Log-prob per token of both answers, their difference, and how often it is in favour of the
    chosen one.
    """
    chosen = inputs.policy_chosen_logps / inputs.chosen_lengths
    rejected = inputs.policy_rejected_logps / inputs.rejected_lengths
    return {
        "per_token_chosen": chosen,
        "per_token_rejected": rejected,
        "margin_per_token": chosen - rejected,
        "accuracy_per_token": (chosen > rejected).float(),
    }


def watch_odds(inputs: PairInputs, hyperparameters: dict) -> dict:  # for orpo and its ablation
    "The log odds ratio of the answers' averages, beside `watch_averages`."
    names = ("policy_chosen_logps", "policy_rejected_logps", "chosen_lengths", "rejected_lengths")
    return {
        "log_odds_ratio": log_odds_ratio(*inputs.asked(names).values()),
        **watch_averages(inputs, hyperparameters),
    }


def watch_bonus(inputs: PairInputs, hyperparameters: dict) -> dict:  # for xpo
    "The bonus in the loss, and how far the reference's samples have moved."
    explore = inputs.explore_logps
    return {
        "bonus": hyperparameters["alpha"] * explore,
        "logratio_explore": explore - inputs.ref_explore_logps,
    }


def watch_kl(inputs: BinaryInputs, hyperparameters: dict) -> dict:  # for kto
    "z0, the reference point: the batch's mean log-ratio of mismatched answers, at least 0."
    return {"kl": inputs.kl.expand(len(inputs.policy_logps))}


def watch_taper(inputs: BinaryInputs, hyperparameters: dict) -> dict:  # for topr
    "The taper's weight and the share clipped, of answers with a negative reward."
    limits = {name: hyperparameters[name] for name in ("ratio_low", "ratio_high")}
    read = (inputs.policy_logps, inputs.behaviour_logps, inputs.rewards)
    weight = topr_weight(*read, **limits)
    plain = topr_weight(*read, ratio_low=0.0, ratio_high=1e30)  # a limit that no ratio reaches
    negative = (inputs.rewards < 0).float()
    clipped = (plain > limits["ratio_high"]) | (plain < limits["ratio_low"])
    return {"weight": (weight, negative), "share_clipped": (clipped.float(), negative)}


def watch_tokens(inputs: SampleInputs, hyperparameters: dict) -> dict:  # for losses of token ratios
    "Share of tokens whose ratio is cut."
    share = clipped_share if inputs.advantages.dim() == 1 else ppo_clipped_share
    return {
        "ratio_clipped": share(
            inputs.token_logps,
            inputs.old_token_logps,
            inputs.mask,
            inputs.advantages,
            clip=hyperparameters["clip"],
        )
    }


def watch_sequences(inputs: SampleInputs, hyperparameters: dict) -> dict:
    "Share of answers whose ratio is cut, for losses of sequence ratios."
    clip, advantages = hyperparameters.get("clip"), inputs.advantages
    ratio = (inputs.policy_logps - inputs.old_logps).clamp(max=60).exp()
    if clip is None:
        return {"ratio": ratio}
    cut = torch.where(advantages > 0, ratio > 1 + clip, ratio < 1 - clip) & (advantages != 0)
    return {"ratio": ratio, "ratio_clipped": cut.float()}


def watch_family(inputs: SampleInputs, hyperparameters: dict) -> dict:
    "Share of tokens that get no gradient, and of answers that count."
    bounds = {name: hyperparameters[name] for name in ("level", "clip_low", "clip_high")}
    cut = (
        bounded_share(
            inputs.token_logps, inputs.old_token_logps, inputs.mask, inputs.advantages, **bounds
        )
        if hyperparameters["clip"] == "ratio"
        else torch.zeros_like(inputs.weights)
    )
    return {"ratio_clipped": cut, "counted": (inputs.weights > 0).float()}


def watch_imitation(inputs: SampleInputs, hyperparameters: dict) -> dict:
    "Nats a token of the demonstrations, without the penalty."
    return {"nll": -inputs.policy_logps / inputs.lengths}


def watch_ppo(inputs: SampleInputs, hyperparameters: dict) -> dict:
    "Share of tokens whose ratio is cut, and how far the value head is from the returns."
    mask, error = inputs.mask, (inputs.values - inputs.returns).square()
    return {
        **watch_tokens(inputs, hyperparameters),
        "value_error": torch.where(mask, error, 0).sum(-1) / mask.sum(-1).clamp(min=1),
    }


def watch_pairs(inputs: SampleInputs, hyperparameters: dict) -> dict:
    "Log-ratios of the chosen and the rejected answer, and the bonus."
    return {
        "logratio_chosen": inputs.policy_chosen_logps - inputs.ref_chosen_logps,
        "logratio_rejected": inputs.policy_rejected_logps - inputs.ref_rejected_logps,
        "bonus": hyperparameters["alpha"] * inputs.explore_logps,
    }


# ---- answers that are added to the data


def mismatched_answers(
    model,  # not used
    rows: Sequence[Row | dict],  # encoded rows of kind binary
    *,
    seed: int,  # of the run
    **options,  # not used
) -> list[list[int]]:  # for each row the token ids of an answer to another prompt
    """Each prompt with another prompt's answer (KTO's z0), cut to the longest row's room; raises
    `ConfigError` where all prompts are one.
    """
    rows = as_rows(rows)
    # rows from pairs say which prompt they are of
    groups = [tuple(row.prompt_ids) if row.group is None else row.group for row in rows]
    try:
        partners = derangement(groups, seed=seed)
    except ValueError as error:
        raise ConfigError(f"kto: {error} Give more data, with different prompts.") from error
    room = max(row_length(row, ANSWERS["binary"]) for row in rows)
    return [
        rows[j].answers["response"][: max(1, room - len(row.prompt_ids))]
        for row, j in zip(rows, partners)
    ]


def explore_answers(
    model,  # the reference
    rows: Sequence[Row | dict],  # encoded rows of kind pairs
    *,
    seed: int,  # of the run
    stop_ids: list[int],  # tokens that end an answer
    pad_token_id: int,  # any token
    batch_size: int = 64,  # prompts at a time
    vocabulary: int | None = None,  # ids from here on are no tokens; None: all are
) -> list[list[int]]:  # for each row the token ids of one sample, its end included
    """One sample of the reference for each prompt (offline XPO), as long as the longest answer in
    the data at most, and cut to the longest row's room.
    """
    rows = as_rows(rows)
    longest = max(len(row.answers[side]) for row in rows for side in ANSWERS["pairs"])
    samples = sample_ids(
        model,
        [row.prompt_ids for row in rows],
        stop_ids=stop_ids,
        pad_token_id=pad_token_id,
        max_new_tokens=longest,
        temperature=1.0,
        seed=seed,
        batch_size=batch_size,
        vocabulary=vocabulary,
        label="samples of the reference",
    )
    room = max(row_length(row, ANSWERS["pairs"]) for row in rows)
    return [ids[: max(1, room - len(row.prompt_ids))] for row, (ids, ended) in zip(rows, samples)]


EXTRA_ANSWERS |= {"mismatched": mismatched_answers, "explore": explore_answers}


# ---- what a round's rewards become


def prepare_rloo(seen: dict, *, kl_coef: float = 0.0, ranks: bool = False) -> dict:  # (prompts, k)
    """Leave-one-out advantages of rewards, or where `ranks` of their ranks within the group, less
    `kl_coef` nats of log-ratio: KL inside the reward, before the baseline.
    """
    if not isinstance(ranks, bool):
        raise ValueError(f"ranks must be True or False, not {ranks!r}")
    rewards = ranked_rewards(seen["rewards"]) if ranks else seen["rewards"]
    flat = shaped_rewards(
        rewards.flatten(),
        seen["policy_logps"].flatten(),
        seen["ref_logps"].flatten(),
        kl_coef=kl_coef,
    )
    return {"advantages": rloo_advantages(flat.reshape(seen["rewards"].shape))}


def prepare_reinforce(
    seen: dict, *, kl_coef: float = 0.0, baseline: float = 0.0
) -> dict:  # (prompts, k)
    "Rewards less a constant: REINFORCE without any baseline from the group."
    flat = shaped_rewards(
        seen["rewards"].flatten(),
        seen["policy_logps"].flatten(),
        seen["ref_logps"].flatten(),
        kl_coef=kl_coef,
    )
    return {"advantages": flat.reshape(seen["rewards"].shape) - baseline}


def prepare_grpo(seen: dict, *, scale: bool = True, eps: float = 1e-4) -> dict:  # (prompts, k)
    "Advantages normalised within the group."
    return {"advantages": grpo_advantages(seen["rewards"], scale=scale, eps=eps)}


def prepare_family(
    seen: dict,
    *,
    baseline: str = "group",
    scale: str = "group",
    filter_groups: bool = False,
    overlong: int = 0,
    kl_coef: float = 0.0,
    eps: float = 1e-4,
) -> dict:  # (prompts, k) each
    """Advantages of rewards that may cost length and KL, which answers count, and what the sums
    over tokens are divided by.
    """
    if not isinstance(filter_groups, bool):
        raise ValueError(f"filter_groups must be True or False, not {filter_groups!r}")
    rewards, lengths, most = seen["rewards"], seen["lengths"], seen["max_new_tokens"]
    weights = group_weights(rewards) if filter_groups else torch.ones_like(rewards)
    cost = overlong_penalty(lengths, longest=most, buffer=overlong)
    shaped = shaped_rewards(
        (rewards + cost).flatten(),
        seen["policy_logps"].flatten(),
        seen["ref_logps"].flatten(),
        kl_coef=kl_coef,
    ).reshape(rewards.shape)
    mean = (weights * lengths).sum() / weights.sum()
    return {
        "advantages": group_advantages(shaped, baseline=baseline, scale=scale, eps=eps),
        "weights": weights,
        "mean_length": mean.expand(rewards.shape),
        "longest": torch.full(rewards.shape, float(most)),
    }


def prepare_topr(seen: dict, *, centre: bool = True) -> dict:  # (prompts, k)
    """Rewards as TOPR reads them: less their group's mean where `centre`, so that there are
    negative ones whatever the reward's scale.
    """
    rewards = seen["rewards"]
    return {"advantages": rewards - rewards.mean(-1, keepdim=True) if centre else rewards}


def prepare_distillation(seen: dict, *, discount: float = 0.0) -> dict:  # (prompts, k, longest)
    "What the teacher gives each token more than the policy did; rewards are not looked at."
    shape = seen["mask"].shape
    names = ("token_logps", "ref_token_logps", "mask")
    flat = [seen[name].reshape(-1, shape[-1]) for name in names]
    return {"advantages": distillation_advantages(*flat, discount=discount).reshape(shape)}


def prepare_ppo(
    seen: dict,
    *,
    kl_coef: float = 0.1,
    gamma: float = 1.0,
    gae_lambda: float = 0.95,
    whiten_advantages: bool = True,
    # (prompts, k, longest)
    adaptive_kl: bool = True,
    kl_target: float = 6.0,
    kl_horizon: float = 2000,
) -> dict:
    """Advantages and returns of every token: KL per token in the reward, generalised advantage
    estimation.
    """
    shape = seen["mask"].shape
    flat = {
        name: seen[name].reshape(-1, shape[-1])
        for name in ("token_logps", "ref_token_logps", "values", "mask")
    }
    rewards = token_rewards(
        seen["rewards"].flatten().float(),
        flat["token_logps"],
        flat["ref_token_logps"],
        flat["mask"],
        kl_coef=kl_coef,
    )
    advantages, returns = gae(rewards, flat["values"], flat["mask"], gamma=gamma, lam=gae_lambda)
    if whiten_advantages:
        advantages = whiten(advantages, flat["mask"])
    return {"advantages": advantages.reshape(shape), "returns": returns.reshape(shape)}


def prepare_pairs(seen: dict, *, label_temperature: float = 0.0) -> dict:  # (prompts, 1)
    """Which of the two answers is chosen: the one with the higher reward, or by Bradley and Terry
    where `label_temperature` is above 0; a tie is decided by a coin.
    """
    gap, coin = (
        seen["rewards"][:, 0] - seen["rewards"][:, 1],
        torch.rand(len(seen["rewards"]), generator=seen["generator"], dtype=torch.float64),
    )
    chance = (
        torch.sigmoid(gap / label_temperature)
        if label_temperature
        else (gap > 0).double() + 0.5 * (gap == 0).double()
    )
    return {"first_chosen": (coin < chance)[:, None]}


def prepare_win_rates(seen: dict, *, label_temperature: float = 0.0) -> dict:  # (prompts, k)
    "How often each answer beats the others of its group, less a half."
    rates = group_win_rates(seen["rewards"], temperature=label_temperature)
    return {"advantages": rates - 0.5}


def prepare_nothing(seen: dict) -> dict:
    return {}


def sft_length_on_samples(
    policy_logps,
    lengths,
    sampled_logps,
    sampled_lengths,
    round,
    *,
    lam: float = 1e-3,
    penalty_every: int = 1,
    per_token: bool = True,
):
    "`sft_length_loss` in every so many rounds; in the others imitation alone."
    check_number("penalty_every", penalty_every, least=1, whole=True)
    acts = (round + 1) % penalty_every == 0
    looked_at = torch.where(acts, sampled_lengths, 0)  # no tokens are never too many
    weights = {"lam": lam, "per_token": per_token}
    return sft_length_loss(policy_logps, lengths, sampled_logps, looked_at, **weights)


def sppo_on_samples(policy_logps, asked_logps, advantages, *, eta: float = 10.0):
    """`sppo_loss` of prepared win rates, from the policy itself: from what answers were drawn with,
    a temperature below 1 would sharpen it round by round.
    """
    return sppo_loss(policy_logps, asked_logps, advantages + 0.5, eta=eta)


def topr_on_samples(
    policy_logps, behaviour_logps, advantages, *, ratio_low: float = 0.0, ratio_high: float = 1.0
):
    "`topr_loss` with the prepared rewards in the place of a data set's."
    return topr_loss(
        policy_logps, behaviour_logps, advantages, ratio_low=ratio_low, ratio_high=ratio_high
    )


# ---- the rows

add_method(
    Method(
        "sft",
        sft_loss,
        "sft",
        reference=False,
        reduction="tokens",
        sources={
            "reduction": (
                "cross-entropy's mean over all tokens of the batch, as transformers does it"
            )
        },
    )
)
add_method(
    Method(
        "dpo",
        dpo_loss,
        "pairs",
        reference=True,
        defaults={"beta": 0.1, "label_smoothing": 0.0},
        sources={
            "beta": "Rafailov et al. 2023, Appendix B",
            "label_smoothing": "none in the paper",
        },
    )
)
add_method(
    Method(
        "ipo",
        ipo_loss,
        "pairs",
        reference=True,
        defaults={"tau": 0.1},
        sources={"tau": "a middle value of those that Azar et al. 2023 and TRL use"},
    )
)
add_method(
    Method(
        "ipo_per_token",
        ipo_loss,
        "pairs",
        reference=True,
        defaults={"tau": 0.1},
        optional_inputs=("chosen_lengths", "rejected_lengths"),
        sources={"tau": "as ipo", "lengths": "means over tokens, as TRL 1.16"},
    )
)
add_method(
    Method(
        "dpop",
        dpop_loss,
        "pairs",
        reference=True,
        defaults={"beta": 0.3, "lam": 50.0},
        sources={"beta": "Pal et al. 2024 (DPOP)", "lam": "Pal et al. 2024 (DPOP)"},
    )
)
add_method(
    Method(
        "minor_dpo",
        minor_dpo_loss,
        "pairs",
        reference=True,
        defaults={"beta": 0.1},
        sources={"beta": "as dpo; the MinorDPO report sweeps it"},
    )
)
add_method(
    Method(
        "sppo",
        sppo_pair_loss,
        "pairs",
        reference=True,
        defaults={"eta": 10.0},
        sources={"eta": "as a beta of .1; Wu et al. 2024 (SPPO): 1e3, for long answers"},
    )
)
add_method(
    Method(
        "reward_model",
        reward_model_loss,
        "pairs",
        reference=False,
        output="rewards",
        sources={"loss": "Bradley and Terry 1952; Ouyang et al. 2022, Eq. 1"},
    )
)
add_method(
    Method(
        "simpo",
        simpo_loss,
        "pairs",
        reference=False,
        defaults={"beta": 2.0, "gamma": 1.0},
        watch=watch_averages,
        sources={
            "beta": "Meng et al. 2024 (SimPO): 2.0 to 2.5 in its first settings",
            "gamma": "Meng et al. 2024 (SimPO): half of beta",
        },
    )
)
for name, loss in (("orpo", orpo_loss), ("probability_ratio", probability_ratio_loss)):
    add_method(
        Method(
            name,
            loss,
            "pairs",
            reference=False,
            defaults={"lam": 0.1, "nll_weight": 1.0},
            watch=watch_odds,
            sources={
                "lam": "Hong et al. 2024 (ORPO), Section 6.1: 0.1 to 0.25",
                "nll_weight": "Hong et al. 2024 (ORPO), Eq. 6",
            },
        )
    )
add_method(
    Method(
        "xpo",
        xpo_loss,
        "pairs",
        reference=True,
        defaults={"beta": 0.1, "alpha": 1e-5},
        extra=("explore",),
        watch=watch_bonus,
        sources={
            "beta": "as dpo",
            "alpha": "so small that it is DPO all but exactly; the XPO report plots 0.01 and 0.1",
        },
    )
)
add_method(
    Method(
        "kto",
        kto_loss,
        "binary",
        reference=True,
        extra=("mismatched",),
        watch=watch_kl,
        defaults={"beta": 0.1, "weight_desirable": 1.0, "weight_undesirable": 1.0},
        sources={
            "beta": "Ethayarajh et al. 2024 (KTO) and the comparison report",
            "weight_desirable": "equal numbers of both labels; else see kto_weights",
            "weight_undesirable": "as weight_desirable",
        },
    )
)
add_method(
    Method(
        "topr",
        topr_loss,
        "binary",
        reference=True,
        defaults={"ratio_low": 0.0, "ratio_high": 1.0},
        watch=watch_taper,
        sources={
            "ratio_low": "Le Roux et al. 2025, Eq. 8",
            "ratio_high": "Le Roux et al. 2025, Eq. 8",
        },
    )
)
add_method(
    Method(
        "topr_per_token",
        topr_loss,
        "binary",
        reference=True,
        defaults={"ratio_low": 0.0, "ratio_high": 1.0},
        watch=watch_taper,
        optional_inputs=("lengths",),
        sources={
            "ratio_low": "as topr",
            "ratio_high": "as topr",
            "lengths": "the loss, not the ratio, divided by the answer's length",
        },
    )
)
add_method(
    Method(
        "reinforce",
        rloo_loss,
        "prompts",
        prepare=prepare_reinforce,
        defaults={"kl_coef": 0.0, "baseline": 0.0, "clip": None},
        watch=watch_sequences,
        sources={"baseline": "Williams 1992: any constant; here none"},
    )
)
add_method(
    Method(
        "rloo",
        rloo_loss,
        "prompts",
        prepare=prepare_rloo,
        defaults={"kl_coef": 0.05, "ranks": False, "clip": None},
        watch=watch_sequences,
        sources={
            "kl_coef": "TRL 1.16's RLOO (beta 0.05); the synthetic-data report sweeps 0.01 to 0.05",
            "ranks": "rewards, as in Ahmadian et al. 2024",
            "clip": "none in Ahmadian et al. 2024",
        },
    )
)
add_method(
    Method(
        "rloo_kl",
        rloo_kl_loss,
        "prompts",
        prepare=prepare_rloo,
        defaults={"lam": 0.1, "kl_coef": 0.0, "ranks": False, "clip": None, "estimator": "k3"},
        watch=watch_sequences,
        sources={
            "lam": "the length-penalty report, section 4.4 (its Eq. 6)",
            "kl_coef": "none: the KL stands beside the reward",
            "ranks": "Eq. 6 of the length-penalty report; its section 3.4 has them",
        },
    )
)
add_method(
    Method(
        "grpo",
        grpo_loss,
        "prompts",
        prepare=prepare_grpo,
        defaults={"clip": 0.2, "beta": 0.04, "scale": True, "eps": 1e-4},
        watch=watch_tokens,
        sources={
            "clip": "Schulman et al. 2017 (PPO), Table 3",
            "beta": "Shao et al. 2024 (DeepSeekMath), section 4.2",
            "scale": "Shao et al. 2024, section 4.1.2",
        },
    )
)
# GRPO's children: name -> the choices in which it is not GRPO, and where they are from
FAMILY: dict[str, tuple[dict[str, Any], str]] = {
    "policy_gradient": ({}, "as grpo, without its penalty"),
    "dr_grpo": ({"scale": "none", "aggregation": "constant"}, "Liu et al. 2025 (Dr. GRPO)"),
    "dapo": (
        {"clip_high": 0.28, "aggregation": "tokens", "filter_groups": True},
        "Yu et al. 2025 (DAPO)",
    ),
    "gspo": (
        {"level": "answer", "clip_low": 3e-4, "clip_high": 4e-4},
        "Zheng et al. 2025 (GSPO), section 5.1",
    ),
    "cispo": (
        {"clip": "weight", "clip_low": 1.0, "clip_high": 4.0, "aggregation": "tokens"},
        "MiniMax-M1 2025 (CISPO); bound: TRL 1.16's advice (epsilon_high 5)",
    ),
    "reinforce_pp": (
        {"baseline": "batch", "scale": "batch", "kl_coef": 0.01},
        "Hu et al. 2025 (REINFORCE++)",
    ),
}
for name, (choices, source) in FAMILY.items():
    defaults: dict[str, Any] = dict(baseline="group", scale="group", level="token", clip="ratio")
    defaults |= {"clip_low": 0.2, "clip_high": 0.2, "aggregation": "answers"}
    defaults |= {"filter_groups": False, "overlong": 0, "kl_coef": 0.0, "beta": 0.0, "eps": 1e-4}
    add_method(
        Method(
            name,
            policy_gradient_loss,
            "prompts",
            prepare=prepare_family,
            defaults=defaults | choices,
            watch=watch_family,
            sources=dict.fromkeys(choices or defaults, source),
        )
    )
add_method(
    Method(
        "ppo",
        ppo_loss,
        "prompts",
        prepare=prepare_ppo,
        defaults={
            "clip": 0.2,
            "value_clip": 0.2,
            "value_weight": 0.1,
            "kl_coef": 0.1,
            "gamma": 1.0,
            "gae_lambda": 0.95,
            "whiten_advantages": True,
            "adaptive_kl": True,
            "kl_target": 6.0,
            "kl_horizon": 2000,
        },
        values=True,
        watch=watch_ppo,
        sources={
            "kl_coef": "ORPO paper, Table 5 (init_kl_coef)",
            "kl_horizon": "ORPO paper, Table 5",
            "clip": "Schulman et al. 2017, Table 3",
            "kl_target": "Ziegler et al. 2019",
            "gae_lambda": "Schulman et al. 2017, Table 3",
        },
    )
)
add_method(
    Method(
        "distill",
        distillation_loss,
        "prompts",
        prepare=prepare_distillation,
        defaults={"discount": 0.0},
        teacher=True,
        sources={"discount": "Lu and Thinking Machines 2025 (On-Policy Distillation)"},
    )
)
add_method(
    Method(
        "online_xpo",
        xpo_loss,
        "prompts",
        prepare=prepare_pairs,
        defaults={"beta": 0.1, "alpha": 1e-3, "label_temperature": 0.0},
        writers=("policy", "reference"),
        watch=watch_pairs,
        sources={
            "beta": "Rafailov et al. 2023",
            "alpha": "small beside the DPO term; the XPO report plots 0.01 and 0.1",
        },
    )
)
add_method(
    Method(
        "online_sppo",
        sppo_on_samples,
        "prompts",
        prepare=prepare_win_rates,
        defaults={"eta": 10.0, "label_temperature": 0.0},
        watch=watch_sequences,
        sources={
            "eta": "as sppo",
            "label_temperature": (
                "ours: 0, none errs; above it the chance itself is the win rate, no verdict is "
                "drawn. The paper asks a pair model"
            ),
        },
    )
)
add_method(
    Method(
        "online_topr",
        topr_on_samples,
        "prompts",
        prepare=prepare_topr,
        defaults={"ratio_low": 0.0, "ratio_high": 1.0, "centre": True},
        watch=watch_sequences,
        sources={
            "ratio_low": "Le Roux et al. 2025, Eq. 8",
            "ratio_high": "Le Roux et al. 2025, Eq. 8",
            "centre": "ours: the paper's rewards are +1 and -1, of a verifier",
        },
    )
)
add_method(
    Method(
        "sft_length",
        sft_length_on_samples,
        "prompts",
        prepare=prepare_nothing,
        defaults={"lam": 1e-3, "penalty_every": 1, "per_token": True},
        demonstrations=True,
        watch=watch_imitation,
        sources={
            "lam": "the length-penalty report, section 4.2",
            "penalty_every": "as its Eq. 4 has it; section 4.2: every 100 steps",
            "per_token": "ours: the mean over tokens; its Eq. 2 has their sum (false)",
        },
    )
)
BUILT_IN_METHODS = tuple(METHODS)


# ---- from a batch to losses and what is watched


def check_batch_size(
    method: Method,  # a row of the table
    batch_size: int,  # rows in one forward pass
    rows: int | None = None,  # of the data, where known
):
    """Raise `ConfigError` where a batch, or the last one, would be too small for a method that
    estimates something from it (KTO's z0).
    """
    if "mismatched" not in method.extra:
        return
    if batch_size < 2:
        raise ConfigError(
            f"batch_size: {method.name} estimates its z0 as a mean over the batch's mismatched "
            "answers, clamped at 0; of one row that is no estimate but noise, and never below 0. "
            "Set batch_size to 2 or more, 8 at least if memory allows."
        )
    if rows is not None and rows % batch_size == 1:
        raise ConfigError(
            f"batch_size: {rows} rows in batches of {batch_size} leave one row alone, of which "
            f"{method.name} cannot estimate its z0. Take another batch_size, or one row less."
        )


def loss_inputs(
    method: Method,  # a row of the table
    batch: Batch,
    values: Tensor,  # (answers,) from `batch_logps`, or rewards
    share: Share = Share(),  # of several processes: KTO's z0 is a mean over all of them
) -> LossInputs:  # of the kind of the method's data
    "The batch's log-probs, lengths, labels and rewards by the names that losses give them."
    answers = method.answers()
    columns = dict(zip(answers, values.chunk(len(answers))))
    lengths = dict(zip(answers, batch.lengths.chunk(len(answers))))
    known = {logps_name("policy", name): column for name, column in columns.items()}
    known |= {lengths_name(name): column for name, column in lengths.items()}
    known |= batch.reference | batch.labels
    if method.output == "rewards":
        known |= {f"{side}_rewards": columns[side] for side in ANSWERS["pairs"]}
    if "explore" in method.extra:
        known["explore_logps"] = columns["explore"]
    if "mismatched" in method.extra:
        known["kl"] = mean_kl(columns["mismatched"], known["ref_mismatched_logps"], share)
    if method.kind == "binary" and method.reference:
        known.setdefault("behaviour_logps", known["ref_logps"])
    return INPUTS[method.kind].of(known)


def lengths_name(answer: str) -> str:  # as `logps_name`
    "How losses call an answer's lengths: chosen_lengths, lengths."
    return "lengths" if answer == "response" else f"{answer}_lengths"


def mean_kl(policy_logps: Tensor, ref_logps: Tensor, share: Share) -> Tensor:  # ()
    "KTO's z0 over the batch, of which each process has its share."
    if share.of == 1:
        return kto_kl(policy_logps, ref_logps)
    ratios = (policy_logps - ref_logps).detach() * share.counts
    number = ratios.new_tensor(len(ratios) * share.counts)
    total = share.total(torch.stack([ratios.sum(), number]))
    return (total[0] / total[1]).clamp(min=0)


def watch_answers(
    method: Method,  # a row of the table
    inputs: LossInputs,  # from `loss_inputs`
) -> dict:  # name -> (rows,), or (values, weights) for what only some rows have
    """Log-probs, log-ratios to the reference and lengths of chosen and rejected answers; desirable
    and undesirable ones go by the same names.
    """
    if method.output == "rewards":
        return {}
    if isinstance(inputs, SftInputs):
        return {"logps": inputs.policy_logps, "length": inputs.lengths}
    if isinstance(inputs, PairInputs):
        x = inputs
        chosen = (x.policy_chosen_logps, x.ref_chosen_logps, x.chosen_lengths, None)
        rejected = (x.policy_rejected_logps, x.ref_rejected_logps, x.rejected_lengths, None)
    else:
        assert isinstance(inputs, BinaryInputs)  # samples are watched by `Rounds`
        wanted = inputs.desirable.float()
        answer = (inputs.policy_logps, inputs.ref_logps, inputs.lengths)
        chosen, rejected = (*answer, wanted), (*answer, 1 - wanted)
    watched = {}
    for side, (logps, ref, length, weight) in (("chosen", chosen), ("rejected", rejected)):
        values = {
            f"logps_{side}": logps,
            f"length_{side}": length,
            **({f"logratio_{side}": logps - ref} if method.reference else {}),
        }
        watched |= {
            name: value if weight is None else (value, weight) for name, value in values.items()
        }
    return watched


def watch_rewards(
    method: Method,  # a row of the table
    inputs: LossInputs,  # from `loss_inputs`
    hyperparameters: dict,  # of the loss
) -> dict:  # name -> (rows,)
    """Rewards of pairs, their margin, and the share of pairs whose chosen answer has the larger
    one, ties counted half.
    """
    if method.kind == "sft" or not (method.reference or method.output == "rewards"):
        return {}
    if isinstance(inputs, BinaryInputs):  # each answer has one side, so there is no margin
        scale, wanted = hyperparameters.get("beta"), inputs.desirable.float()
        reward = (inputs.policy_logps - inputs.ref_logps) * (scale or 0.0)
        return (
            {"reward_chosen": (reward, wanted), "reward_rejected": (reward, 1 - wanted)}
            if scale
            else {}
        )
    assert isinstance(inputs, PairInputs)
    if method.output == "rewards":
        chosen, rejected = inputs.chosen_rewards, inputs.rejected_rewards
    else:
        scale = hyperparameters.get("beta", hyperparameters.get("tau", 1.0))
        chosen = scale * (inputs.policy_chosen_logps - inputs.ref_chosen_logps)
        rejected = scale * (inputs.policy_rejected_logps - inputs.ref_rejected_logps)
    return {
        "reward_chosen": chosen,
        "reward_rejected": rejected,
        "reward_margin": chosen - rejected,
        "reward_accuracy": (chosen > rejected) + 0.5 * (chosen == rejected),
    }


def method_losses(
    method: Method,  # a row of the table
    hyperparameters: dict,  # from `method_hyperparameters`
    batch: Batch,
    # (answers,) log-probs from `batch_logps`; rewards for a method whose output they are
    values: Tensor,
    share: Share = Share(),  # of several processes
    # (rows,) losses, and what is logged about them: name -> (rows,), or (values, weights)
) -> tuple[Tensor, dict]:
    "Loss of each row and the values that are watched."
    inputs = loss_inputs(method, batch, values, share)
    losses = method.loss(**inputs.asked(method.inputs()), **hyperparameters)
    inputs = inputs.detach()
    own = method.watch(inputs, hyperparameters) if method.watch else {}
    return losses, {
        **watch_answers(method, inputs),
        **watch_rewards(method, inputs, hyperparameters),
        **own,
    }


def batch_values(
    # a language model; for a method whose output is "rewards" a sequence classifier with one label
    model,
    batch: Batch,
    method: Method,  # a row of the table
) -> Tensor:  # (answers,)
    "What the model says of every answer: its log-prob, or its reward."
    if method.output == "logps":
        return batch_logps(model, batch)
    return batch_rewards(model, batch)


def loss_items(
    method: Method,  # for its reduction
    batch: Batch,
) -> int:  # what the batch's summed loss is divided by
    "Response tokens or rows of a batch."
    return batch.response_tokens if method.reduction == "tokens" else batch.rows


def batch_sums(
    method: Method,  # for its reduction
    batch: Batch,
    losses: Tensor,  # (rows,)
    watched: dict,  # from `method_losses`
) -> dict[str, tuple[Tensor, int | Tensor]]:  # name -> sum, and how many
    "What a batch adds to averages; losses count by tokens where the method's reduction does."
    sums = {"loss": (losses.detach().sum(), loss_items(method, batch))}
    for name, values in watched.items():
        if isinstance(values, tuple):
            values, weights = values
            sums[name] = (values * weights).sum(), weights.sum()
        else:
            sums[name] = values.sum(), batch.rows
    return sums


def own_metrics(
    names: list[str],  # of a log's columns
) -> list[str]:  # those that only some methods have
    "What a method's `watch` has added to the log: all but what every run of its kind logs."
    every = (
        "step",
        "epoch",
        "split",
        "loss",
        "learning_rate",
        "grad_norm",
        "tokens_per_second",
        "seconds",
        "logps",
        "length",
    )
    sides = [
        f"{what}_{side}"
        for what in ("logps", "logratio", "length", "reward")
        for side in (*ANSWERS["pairs"], "margin", "accuracy")
    ]
    return [name for name in names if name not in (*every, *sides)]


def measure(
    model,  # to be judged; its mode and the random state are left as they are
    # encoded rows, with reference log-probs if the method needs them
    rows: Sequence[Row | dict],
    method: Method,  # a row of the table
    hyperparameters: dict,  # of the loss
    pad_token_id: int,  # any token
    *,
    batch_size: int = 32,  # rows in one forward pass
    precision: str = "float32",  # or bf16, fp16
    layout: str = "apart",  # as for `collate`
    share: Share = Share(),  # each process measures its share of the batches
) -> dict[str, float]:  # name -> mean over all rows; "loss" by tokens where the method counts so
    "Loss and watched values of a whole data set, without keeping any logits."
    averages, device, rows = Averages(), next(model.parameters()).device, as_rows(rows)
    batches = length_batches(rows, method.answers(), batch_size, layout)
    with evaluating(model, precision):
        for numbers in share.mine(batches):
            part = [rows[i] for i in numbers]
            batch = collate(part, method.answers(), pad_token_id, layout).to(device)
            values = batch_values(model, batch, method)
            losses, watched = method_losses(method, hyperparameters, batch, values)
            averages.add_all(batch_sums(method, batch, losses, watched))
    if share.of == 1:
        return averages.means()
    return Averages.of_all(share.each(averages.state())).means()
