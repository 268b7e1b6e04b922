"""Methods that learn from their own samples: prompts, samples, rewards, advantages, loss.

Drawing answers, the reference, the buffer, steps, logs and checkpoints are the same for all of
them: `Rounds` is the source of the loop's batches, and `train_online` what is called.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
import inspect
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from prefkit.core import ConfigError, DataError, PrefkitError, derive_seed
from prefkit.losses import (
    adapt_kl,
    effective_share,
    sampler_ratios,
    sampler_weights,
    weighted_gradient,
)
from prefkit.losses.sampler_mismatch import BEYOND
from prefkit.data.rows import Row, as_rows
from prefkit.data.thoughts import split_thought
from prefkit.model.batches import (
    Batch,
    autocast,
    choose_layout,
    collate,
    on_device,
    scored_logps,
)
from prefkit.model.limits import check_lengths, filling_of
from prefkit.model.loading import load_model
from prefkit.model.rounding import LARGEST, check_rounding, rounded_copy
from prefkit.model.sampling import check_readable
from prefkit.train.devices import Share
from prefkit.train.inputs import SampleInputs
from prefkit.train.loop import (
    Learner,
    TrainingRun,
    TrainResult,
    Validation,
    check_output,
    check_readable_rows,
    fit,
)
from prefkit.train.methods import (
    Method,
    answer_major,
    get_method,
    prepare_family,
    prepare_grpo,
    prepare_rloo,
    prepare_topr,
    prepare_win_rates,
)
from prefkit.train.rollout import (
    Reference,
    Rollouts,
    Sample,
    padded,
    reward_samples,
    sample_answers,
    sample_names,
    sample_rows,
    score_tokens,
)
from prefkit.train.saves import rows_fingerprint
from prefkit.train.settings import RolloutSettings


# ---- what a forward pass reads


@dataclass
class RoundBatch:
    "Some prompts of a round with their k samples; answers are numbered sample * prompts + prompt."

    batch: Batch  # the samples, then the demonstrations where there are some
    samples: int  # k
    mask: Tensor  # (answers, longest) where a sample has a token
    rewards: Tensor  # (answers,)
    old_token_logps: Tensor  # (answers, longest) with which the samples were drawn
    model_token_logps: Tensor  # (answers, longest) what the model itself said of them then
    ref_token_logps: Tensor  # (answers, longest) of the reference
    made: dict[str, Tensor]  # what `prepare` made: advantages, returns, first_chosen ..., by answer
    round: int = 0  # its number
    # (answers, longest) of gradients, where another sampler drew and is corrected for
    weights: Tensor | None = None
    first: bool = False  # the round's first step: nothing has been learned from it yet
    counts: bool = True  # False: a process without prompts takes part
    items: int = 0  # that its loss has

    @property
    def lengths(self) -> Tensor:  # (answers,) of the samples
        return self.batch.lengths[: len(self.rewards)]

    @property
    def tokens(self) -> int:
        return self.batch.tokens

    def to(self, device: torch.device) -> "RoundBatch":
        "The same on a device."
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "batch"}
        values = {name: on_device(value, device) for name, value in values.items()}
        return RoundBatch(self.batch.to(device), **values)


def fill(
    lists: list[list[list[float]]], longest: int = 0
) -> Tensor:  # (prompts, k, longest) float32
    "Lists of numbers for each token, zeros behind them, as long as the longest at least."
    longest = max(longest, max(len(values) for group in lists for values in group))
    return torch.tensor(
        [[values + [0.0] * (longest - len(values)) for values in group] for group in lists]
    )


def round_inputs(
    batch: RoundBatch,
    logps: Tensor,  # (answers and demonstrations, longest) of the policy's tokens, with gradient
    values: Tensor | None = None,  # (answers, longest) of the value head
) -> SampleInputs:
    "What a loss may ask for of samples, pairs of them, or demonstrations beside them."
    answers, mask = len(batch.rewards), batch.mask
    token_logps, demonstrations = logps[:answers], logps[answers:]
    if batch.weights is not None:
        token_logps = weighted_gradient(token_logps, batch.weights)

    def sums(tokens: Tensor) -> Tensor:  # (answers,)
        return torch.where(mask, tokens, 0).sum(-1)

    old_logps = sums(batch.old_token_logps)
    known = {
        "token_logps": token_logps,
        "policy_logps": sums(token_logps),
        "mask": mask,
        "lengths": batch.lengths,
        "rewards": batch.rewards,
        "values": values,
        "old_token_logps": batch.old_token_logps,
        "ref_token_logps": batch.ref_token_logps,
        "old_logps": old_logps,
        "behaviour_logps": old_logps,
        "asked_logps": sums(batch.model_token_logps),
        "ref_logps": sums(batch.ref_token_logps),
        "round": torch.tensor(batch.round, device=logps.device),
        **batch.made,
    }
    if "first_chosen" in batch.made:
        known |= pair_inputs(known, batch.made["first_chosen"])
    if len(demonstrations):
        known["sampled_logps"] = known["policy_logps"].reshape(batch.samples, -1).T
        known["sampled_lengths"] = batch.lengths.reshape(batch.samples, -1).T
        known["policy_logps"] = demonstrations.sum(-1)
        known["lengths"] = batch.batch.lengths[answers:]
    return SampleInputs.of(known)


def pair_inputs(known: dict, first_chosen: Tensor) -> dict[str, Tensor]:  # (prompts,) each
    """Chosen and rejected of two answers; the second one, which the reference wrote, is what XPO's
    bonus pushes away.
    """
    found = {"explore_logps": known["policy_logps"].chunk(2)[1]}
    for who in ("policy", "ref"):
        first, second = known[f"{who}_logps"].chunk(2)
        found[f"{who}_chosen_logps"] = torch.where(first_chosen, first, second)
        found[f"{who}_rejected_logps"] = torch.where(first_chosen, second, first)
    return found


def largest_gap(token_logps: Tensor, batch: RoundBatch) -> Tensor:  # ()
    """Largest difference between two forward passes over the policy's samples, relative where a
    log-prob is larger than 1.
    """
    told = batch.model_token_logps
    counted = batch.mask
    if "first_chosen" in batch.made:  # of a pair the first is the policy's
        number = torch.arange(len(told), device=told.device)[:, None]
        counted = counted & (number < batch.batch.rows)
    gaps = (token_logps - told).abs() / told.abs().clamp(min=1)
    return torch.where(counted, gaps, 0).max()


# ---- the source


@dataclass
class Rounds:
    "The model's own samples, drawn round by round: the source of the online methods."

    model: Any  # the policy, to be trained
    tokenizer: Any  # for padding, sampling and decoding
    method: Method
    hyperparameters: dict  # all of the method's
    settings: RolloutSettings
    rows: list[Row]  # prompts with their record; response_ids where it imitates as well
    rewards: Callable  # rows and answers -> scores
    reference: Reference
    validation: list[Row] = field(default_factory=list)
    judges: list = field(default_factory=list)  # further rewards, asked at validation only
    sample_table: int = 8  # validation answers that are kept
    layout: str = "apart"
    precision: str = "float32"
    device: torch.device = torch.device("cpu")
    share: Share = Share()

    def __post_init__(self):
        self.rows, self.validation = as_rows(self.rows), as_rows(self.validation)
        head = {"value_head": value_head(self.model)} if self.method.values else {}
        self.learner = Learner(self._read, self.model, **head)
        self.pad, self.steps = (
            filling_of(self.model, self.tokenizer),
            online_steps(len(self.rows), self.settings),
        )
        self.of_prepare, self.of_loss = self.method.split(self.hyperparameters)
        self.rollouts: Rollouts | None = None  # the buffer of the round
        self.adapted = {}  # hyper-parameters that change on the way: PPO's kl_coef
        self.order = (None, [])  # epoch, and its order of the prompts
        self.seconds_drawing = self.seconds_sampling = 0.0  # of the last step, since the last line
        self.round_metrics, self.seen, self.in_round = {}, [], False
        modules = self.model.modules()
        self.differs = self.settings.sampler != "same"
        self.copied: tuple[int, Any] | None = None  # round, and the model that draws its answers
        self.dropout = any(isinstance(part, torch.nn.Dropout) and part.p > 0 for part in modules)

    # -- a step's batches

    def batches(self, step: int) -> list[RoundBatch]:
        "The batches of a step, out of the buffer, which is filled where a round begins."
        s, self.seconds_drawing, self.seen = self.settings, 0.0, []
        number, place = divmod(step, s.steps_per_round())
        if self.rollouts is None or self.rollouts.round != number:
            start = perf_counter()
            self.rollouts = self.draw_round(number)
            self.round_metrics = self._note_round(self.rollouts)
            self.seconds_drawing = perf_counter() - start
            self.seconds_sampling += self.seconds_drawing
        self.in_round = place + 1 < s.steps_per_round()  # when this step is taken
        in_pass, mini = divmod(place, s.minibatches)
        order = permutation(s.prompts_per_round(), s.seed, "minibatches", number, in_pass)
        size = s.batch_size * s.gradient_accumulation
        part = order[mini * size : (mini + 1) * size]
        cuts = [part[i : i + s.batch_size] for i in range(0, size, s.batch_size)]
        return [self._share_of_batch(self.rollouts, each, first=place == 0) for each in cuts]

    def _share_of_batch(self, rollouts: Rollouts, numbers: list[int], first: bool) -> RoundBatch:
        mine = self.share.mine(numbers)
        batch = self.round_batch(rollouts, mine or numbers[:1])
        one_each = self.method.writers or self.method.demonstrations  # a loss is a prompt's
        batch.items = len(mine) * (1 if one_each else batch.samples)
        batch.first, batch.counts = first, bool(mine)
        return batch.to(self.device)

    def round_batch(self, rollouts: Rollouts, numbers: list[int]) -> RoundBatch:
        "Some prompts of a buffer, by number, with their samples."
        groups, rows = [rollouts.samples[i] for i in numbers], [rollouts.rows[i] for i in numbers]
        names = sample_names(len(groups[0]))
        if self.method.demonstrations:
            names += ("response",)
        batch = collate(sample_rows(rows, groups), names, self.pad, self.layout)

        def tokens(of: Callable) -> Tensor:  # (answers, longest)
            return answer_major(fill([[of(s) for s in group] for group in groups], batch.longest))

        samples = len(groups[0])
        lengths = batch.lengths[: samples * len(rows)]
        mask = torch.arange(batch.longest) < lengths[:, None]
        drawn, policy = tokens(self._drawn), tokens(lambda s: s.model_logps)
        ignored = self.differs and self.settings.sampler_correction != "ratio"
        made = {name: answer_major(value[numbers]) for name, value in rollouts.tensors.items()}
        return RoundBatch(
            batch=batch,
            samples=samples,
            mask=mask,
            rewards=answer_major(rollouts.rewards()[numbers]).float(),
            old_token_logps=policy if ignored else drawn,
            model_token_logps=policy,
            ref_token_logps=tokens(lambda s: s.ref_logps),
            made={name: as_long(value, batch.longest) for name, value in made.items()},
            round=rollouts.round,
            weights=self._weights(policy, drawn, mask),
        )

    def _drawn(self, sample: Sample) -> list[float]:
        "Log-probs that an answer's tokens were drawn with, as far as the settings have it."
        if self.settings.correct_temperature:
            return sample.logps
        return sample.sampler_logps or sample.model_logps

    def _weights(self, policy: Tensor, drawn: Tensor, mask: Tensor) -> Tensor | None:
        "Of the tokens' gradients; None where the samples are the policy's own, or count as such."
        s = self.settings
        if not self.differs or s.sampler_correction not in BEYOND:
            return None
        bounds: dict[str, Any] = dict(level=s.sampler_level)
        bounds |= dict(low=s.sampler_low, high=s.sampler_high)
        return sampler_weights(policy, drawn, mask, beyond=s.sampler_correction, **bounds)

    # -- a round

    def draw_round(self, number: int) -> Rollouts:
        """Prompts -> samples -> rewards -> what the method makes of them.

        Each process draws its share.
        """
        rollouts, part = self._ask([self.rows[i] for i in self.prompt_order(number)], number)
        for attempt in range(1, self.settings.redraw + 1):
            self._redraw(rollouts, attempt)
        self.copied = None  # its memory is the steps'
        if self.method.values:
            forecasts = self.share.gather(self._forecast(part))
            rollouts.tensors["old_values"] = fill(forecasts)
        assert self.method.prepare is not None  # every online method has it
        hyperparameters = {**self.of_prepare}
        hyperparameters |= {k: v for k, v in self.adapted.items() if k in hyperparameters}
        rollouts.tensors |= self.method.prepare(self._seen(rollouts), **hyperparameters)
        return rollouts

    def _ask(self, rows: list[Row], *number: int) -> tuple[Rollouts, Rollouts]:
        "Answers with rewards to some prompts: all of them, and this process's share."
        mine = self.share.mine(list(range(len(rows))))
        part = Rollouts(
            number[0], [rows[i] for i in mine], self._write_answers(rows, mine, *number)
        )
        if self.differs:
            self._ask_policy(part)
        self._complete(part)
        return Rollouts(number[0], rows, self.share.gather(part.samples)), part

    def _redraw(self, rollouts: Rollouts, attempt: int):
        "Other prompts in the place of those whose answers all have one reward (DAPO)."
        rewards = rollouts.rewards()
        flat = (rewards == rewards[:, :1]).all(-1).nonzero().flatten().tolist()
        if not flat:
            return
        number, seed = rollouts.round, self.settings.seed
        order = permutation(len(self.rows), seed, "redraw", number, attempt)
        again, _ = self._ask([self.rows[i] for i in order[: len(flat)]], number, attempt)
        for place, row, group in zip(flat, again.rows, again.samples):
            rollouts.rows[place], rollouts.samples[place] = row, group

    def prompt_order(self, number: int) -> list[int]:  # prompts_per_round row numbers
        "The prompts of a round: one seeded permutation of the rows after another, cut into rounds."
        n, size, found = len(self.rows), self.settings.prompts_per_round(), []
        for place in range(number * size, (number + 1) * size):
            epoch, i = divmod(place, n)
            if epoch != self.order[0]:
                self.order = epoch, permutation(n, self.settings.seed, "prompt order", epoch)
            found.append(self.order[1][i])
        return found

    def _write_answers(self, rows: list[Row], numbers: list[int], *number: int) -> list[list]:
        """Samples of the policy, or of whoever the method names for each place; `number` is the
        round's, and which time prompts are drawn for it.
        """
        s, writers = self.settings, self.method.writers
        prompts = [rows[i].prompt_ids for i in numbers]
        sampler, precision = self._sampler(number[0])
        options: dict[str, Any] = dict(
            top_p=s.top_p, max_new_tokens=s.max_new_tokens, precision=precision
        )
        options |= dict(min_new_tokens=s.min_new_tokens)
        options |= dict(batch_size=max(1, 256 // s.samples), numbers=numbers)
        if not writers:
            seed = derive_seed(s.seed, "round", *number)
            options |= dict(k=s.samples, temperatures=s.temperatures(), seed=seed)
            return sample_answers(sampler, self.tokenizer, prompts, **options)
        by_writer = []
        for place, writer in enumerate(writers):
            options |= dict(temperatures=s.temperatures()[place], by=writer)
            options |= dict(seed=derive_seed(s.seed, "round", *number, place))
            policy = writer == "policy"
            with nullcontext(self.model) if policy else self.reference.of(self.model) as model:
                by_writer.append(sample_answers(model, self.tokenizer, prompts, **options))
        return [[group[0] for group in groups] for groups in zip(*by_writer)]

    def _sampler(self, number: int) -> tuple[Any, str]:
        "The model that draws a round's answers, with the weights of then, and its precision."
        kind = self.settings.sampler
        if kind in LARGEST:
            if self.copied is None or self.copied[0] != number:
                self.copied = number, rounded_copy(self.model, kind)
            return self.copied[1], self.precision
        return self.model, self.precision if kind == "same" else kind

    def _ask_policy(self, rollouts: Rollouts):
        "What the policy itself says of answers that another sampler has drawn."
        if not rollouts.rows:
            return
        found = self._score(self.model, rollouts, batch_size=max(1, 256 // self.settings.samples))
        for group, scored in zip(rollouts.samples, found):
            for sample, logps in zip(group, scored):
                sample.sampler_logps, sample.model_logps = sample.model_logps, logps

    def _complete(self, rollouts: Rollouts):
        "Log-probs of the reference, and rewards."
        if not rollouts.rows:
            return
        names = sample_names(len(rollouts.samples[0]))
        with self.reference.of(self.model) as model:
            found = self._score(model, rollouts, batch_size=max(1, 256 // len(names)))
        for group, scored in zip(rollouts.samples, found):
            for sample, logps in zip(group, scored):
                sample.ref_logps = logps
        reward_samples(rollouts, self.rewards)

    def _score(self, model, rollouts: Rollouts, **options) -> list[list]:
        "Log-probs of the samples' tokens by a fresh forward pass."
        options |= dict(precision=self.precision, layout=self.layout)
        rows, names = (
            sample_rows(rollouts.rows, rollouts.samples),
            sample_names(len(rollouts.samples[0])),
        )
        return score_tokens(model, rows, names, self.pad, **options)

    def _forecast(self, rollouts: Rollouts) -> list[list[list[float]]]:  # prompts, k, tokens
        "What the value head says at every token, as it was when the samples were drawn."
        if not rollouts.rows:
            return []
        size, head = max(1, 256 // self.settings.samples), self.learner.value_head
        found = self._score(self.model, rollouts, batch_size=size, head=head)
        return [[values for _, values in answers] for answers in found]

    def _seen(self, rollouts: Rollouts) -> dict:  # (prompts, k) and (prompts, k, longest)
        "Everything that `prepare` may read."
        groups = rollouts.samples
        token_logps = fill([[s.model_logps for s in group] for group in groups])
        ref_token_logps = fill([[s.ref_logps for s in group] for group in groups])
        lengths = torch.tensor([[len(s.ids) for s in group] for group in groups])
        seed = derive_seed(self.settings.seed, "prepare", rollouts.round)
        return {
            "rewards": rollouts.rewards(),
            "policy_logps": token_logps.double().sum(-1),
            "ref_logps": ref_token_logps.double().sum(-1),
            "lengths": lengths,
            "mask": torch.arange(token_logps.shape[-1]) < lengths[..., None],
            "values": rollouts.tensors.get("old_values"),
            "max_new_tokens": self.settings.max_new_tokens,
            "generator": torch.Generator().manual_seed(seed),
            "token_logps": token_logps,
            "ref_token_logps": ref_token_logps,
        }

    def _note_round(self, rollouts: Rollouts) -> dict[str, float]:
        "What a round is watched for; adapts PPO's KL coefficient."
        found = rollouts.metrics()
        if self.differs:
            found |= self._sampler_metrics(rollouts)
        if self.dropout:
            found["logps_gap"] = self._gap_without_dropout(rollouts)
        if self.method.values:
            found["kl_coef"] = self.adapted.get("kl_coef", self.hyperparameters["kl_coef"])
            if self.hyperparameters["adaptive_kl"]:
                self.adapted["kl_coef"] = adapt_kl(
                    found["kl_coef"],
                    found["kl_k1"],
                    target=self.hyperparameters["kl_target"],
                    horizon=self.hyperparameters["kl_horizon"],
                    steps=len(rollouts.rows) * len(rollouts.samples[0]),
                )
        return found

    def _sampler_metrics(self, rollouts: Rollouts) -> dict[str, float]:
        "How far the sampler was from the policy, and how many tokens the bounds hold."
        samples = [sample for group in rollouts.samples for sample in group]
        lengths = torch.tensor([len(sample.ids) for sample in samples])
        policy = fill([[sample.model_logps for sample in samples]])[0]
        drawn = fill([[self._drawn(sample) for sample in samples]])[0]
        mask = torch.arange(policy.shape[1]) < lengths[:, None]
        tokens, log_ratios = lengths.sum().item(), torch.where(mask, policy - drawn, 0)
        found = {
            "sampler_gap": log_ratios.abs().sum().item() / tokens,
            "sampler_kl": -log_ratios.sum().item() / len(samples),
            "sampler_effective": effective_share(policy, drawn, mask).item(),
        }
        weights = self._weights(policy, drawn, mask)
        if weights is not None:
            free = sampler_ratios(policy, drawn, mask, level=self.settings.sampler_level)
            found["sampler_bounded"] = (weights != free).sum().item() / tokens
        return found

    def _gap_without_dropout(self, rollouts: Rollouts) -> float:
        "The sampler against a forward pass without dropout, on a few prompts."
        few = list(range(min(4, len(rollouts.rows))))
        batch = self.round_batch(rollouts, few).to(self.device)
        training = self.model.training
        self.model.eval()
        with torch.no_grad(), autocast(self.model, self.precision):
            logps, _ = scored_logps(self.model, batch.batch)
        self.model.train(training)
        return largest_gap(padded(logps, batch.batch)[: len(batch.rewards)], batch).item()

    # -- losses

    def _read(self, learner: Any, batch: RoundBatch) -> tuple[Tensor, Tensor | None]:
        """(answers and demonstrations, longest) log-probs of tokens; (answers, longest) of the
        value head.
        """
        with autocast(learner.model, self.precision):
            logps, hidden = scored_logps(learner.model, batch.batch, hidden=self.method.values)
        logps = padded(logps, batch.batch)
        if hidden is None:
            return logps, None
        values = padded(learner.value_head(hidden.float()).squeeze(-1), batch.batch)
        return logps, values[: len(batch.rewards)]

    def losses(self, learner, batch: RoundBatch) -> tuple[Tensor, dict]:
        "Loss of each answer, or of each prompt where it is one of a pair or a demonstration."
        inputs = round_inputs(batch, *learner(batch))
        losses = self.method.loss(**inputs.asked(self.method.inputs()), **self.of_loss)
        if not batch.counts:
            return losses * 0, {}
        inputs = inputs.detach()
        self.seen.append((inputs.token_logps, losses.detach()))
        watch, hyperparameters = self.method.watch, {**self.hyperparameters, **self.adapted}
        watched = {"loss": losses.detach(), **(watch(inputs, hyperparameters) if watch else {})}
        sums = {name: (values.sum(), len(values)) for name, values in watched.items()}
        if batch.first and not self.dropout:
            sums["logps_gap"] = largest_gap(inputs.token_logps, batch), 1
        sums |= {
            name: (torch.tensor(x, dtype=torch.float64), 1)
            for name, x in self.round_metrics.items()
        }
        self.round_metrics = {}  # they count once a round
        return losses, sums

    def origin(self) -> str:
        "Where in the step the first number that is not finite arose."
        for logps, losses in self.seen:
            if not logps.isfinite().all():
                return ": the model's log-prob of a sampled token is none"
            if not losses.isfinite().all():
                return (
                    f": the model's log-probs are finite, but a loss of {self.method.name} is not"
                )
        return ": every loss is finite, so it arose in the backward pass" if self.seen else ""

    # -- lines and validations

    def passes(self, step: int) -> float:
        "Passes over the prompts after so many steps."
        s = self.settings
        return step / s.steps_per_round() * s.prompts_per_round() / len(self.rows)

    def times(self, seconds: float) -> dict[str, float]:
        "Seconds of a line by what they went into; those of sampling begin anew."
        sampling, self.seconds_sampling = self.seconds_sampling, 0.0
        return {"seconds_sampling": sampling, "seconds_learning": seconds}

    def check(self, means: dict[str, float], step: int):
        "Raise `PrefkitError` where sampler and learner do not say the same of the samples."
        gap = means.get("logps_gap", 0.0)
        if self.precision == "float32" and gap > 0.01:
            raise PrefkitError(
                (
                    f"step {step}: log-probs of the samples differ by {gap:.3g} between the "
                    "sampler and the forward pass that learns. Mask, positions or template differ "
                    "between the two; set layout: apart to see whether it is the layout of "
                    "batches."
                ),
                field="layout",
                reason="sampler and learner differ",
            )

    def evaluate(self, step: int) -> Validation:
        "Answers to the validation prompts with reward, KL and what the other judges say."
        if not self.validation:
            return Validation({}, [])
        rollouts = self._validation_round()
        numbers = rollouts.metrics()
        for name in ("reward_spread", "groups_flat"):  # of one answer there is neither
            numbers.pop(name)
        numbers |= judged_parts(rollouts)
        for judge in self.judges:
            numbers[f"reward_{judge.name}"] = mean_of(judge, rollouts)
        if self.method.demonstrations:
            numbers |= self._imitation()
        few = list(zip(rollouts.rows, rollouts.samples))[: self.sample_table]
        return Validation(numbers, [sample_record(row, s) for row, (s,) in few], -numbers["reward"])

    def _imitation(self) -> dict[str, float]:
        "The demonstrations' nats a token where validation prompts have some, mean over them."
        rows = [row for row in as_rows(self.validation) if row.answers.get("response")]
        mine = [rows[i] for i in self.share.mine(list(range(len(rows))))]
        options: dict[str, Any] = dict(precision=self.precision, layout=self.layout)
        found = score_tokens(self.model, mine, ("response",), self.pad, **options)
        told = self.share.gather([-sum(logps) / len(logps) for (logps,) in found])
        return {"nll": sum(told) / len(told)} if told else {}

    def _validation_round(self) -> Rollouts:
        "One answer to each validation prompt, with reference log-probs and rewards."
        s, mine = self.settings, self.share.mine(list(range(len(self.validation))))
        validation = as_rows(self.validation)  # plain ones are taken as well
        rows = [validation[i] for i in mine]
        samples = sample_answers(
            self.model,
            self.tokenizer,
            [row.prompt_ids for row in rows],
            temperatures=s.eval_temperature,
            max_new_tokens=s.max_new_tokens,
            seed=derive_seed(s.seed, "validation"),
            batch_size=256,
            precision=self.precision,
            numbers=mine,
        )
        part = Rollouts(-1, rows, samples)
        self._complete(part)
        return Rollouts(-1, self.validation, self.share.gather(part.samples))

    @staticmethod
    def show(line: dict, samples: list[dict]) -> str:
        "What is shown after a validation."
        kl = line.get("kl_k1", 0.0)
        lines = [f"step {line['step']}, reward {line['reward']:.3f}, KL {kl:.2f} nats"]
        for sample in samples:
            asked, said = sample["prompt"][-1]["content"][:60], sample["answer"][:90]
            lines.append(f"  {sample['reward']:7.2f}  {asked!r} -> {said!r}")
        return "\n".join(lines)

    # -- a kill

    def state(self) -> dict:
        "The buffer in the middle of a round, and what has been adapted."
        return {
            "adapted": self.adapted,
            "seconds_sampling": self.seconds_sampling,
            "rollouts": self.rollouts.state() if self.rollouts and self.in_round else None,
        }

    def load(self, state: dict):
        "Take up what `state` gave."
        self.adapted, self.seconds_sampling = state["adapted"], state["seconds_sampling"]
        self.rollouts = Rollouts.load(state["rollouts"]) if state["rollouts"] else None


def permutation(n: int, *names) -> list[int]:
    "The numbers below n in an order that depends on the names alone."
    generator = torch.Generator().manual_seed(derive_seed(*names))
    return torch.randperm(n, generator=generator).tolist()


def as_long(values: Tensor, longest: int) -> Tensor:
    "Numbers of tokens, (answers, any), cut or filled up to (answers, longest); others as they are."
    if values.dim() == 2:
        values = F.pad(values, (0, max(0, longest - values.shape[1])))[:, :longest]
    return values.float() if values.is_floating_point() else values


def value_head(model) -> torch.nn.Linear:  # hidden states -> one number
    "A new value head that forecasts 0 everywhere, on the device of the model."
    head = torch.nn.Linear(model.config.get_text_config().hidden_size, 1)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    return head.to(next(model.parameters()).device)


def sample_record(row: Row, sample) -> dict:
    "A validation answer for samples.jsonl."
    return {
        "prompt": row.prompt,
        **split_thought(sample.text).to_dict(),
        "tokens": len(sample.ids),
        "ended": sample.ended,
        "reward": sample.reward,
        **sample.parts,
    }


def mean_of(judge: Callable, rollouts: Rollouts) -> float:
    "Mean reward that another judge gives the samples."
    scores = judge(*rollouts.asked())
    return sum(score["reward"] for score in scores) / len(scores)


def judged_parts(rollouts: Rollouts) -> dict[str, float]:
    """Means of the numbers and truth values among the parts of rewards, such as `right` or
    `correct`.
    """
    parts = [sample.parts for group in rollouts.samples for sample in group]
    names = [name for name, value in parts[0].items() if isinstance(value, (int, float))]
    return {f"part_{name}": sum(float(part[name]) for part in parts) / len(parts) for name in names}


# ---- the run


def online_steps(rows: int, settings: RolloutSettings) -> int:
    """Optimiser steps of a run: `max_steps`, or whole rounds until every prompt was seen `epochs`
    times.
    """
    if settings.max_steps is not None:
        return settings.max_steps
    rounds = round(settings.epochs * rows / settings.prompts_per_round())
    return max(1, rounds) * settings.steps_per_round()


def check_prompts(method: Method, rows: list[Row], validation: list[Row]):
    """Raise `DataError` unless there are encoded prompts, with answers to imitate where the method
    does.
    """
    if not rows:
        raise DataError("there are no prompts to train on.")
    for name, part in (("rows", rows), ("validation", validation)):
        for number, row in enumerate(part):
            if not row.prompt_ids:
                raise DataError(
                    f"{name}, row {number}: prompt_ids missing or empty; there is "
                    f"{', '.join([*row][1:])}. Encode them with "
                    'prefkit.data.records.encode_records(kind="prompts").'
                )
            if name == "rows" and method.demonstrations and not row.answers.get("response"):
                raise DataError(
                    f"{name}, row {number}: {method.name} needs an answer to imitate "
                    "(response_ids). Take a data set of kind sft."
                )


def check_sampler(method: Method, settings: RolloutSettings, model=None):
    """Raise `ConfigError` for a sampler that does not go with a method, other settings or, where it
    is given, the model.
    """
    if settings.sampler == "same":
        return
    if method.writers:
        raise ConfigError(
            f"sampler: {method.name} compares answers of {' and '.join(method.writers)}, whoever "
            "drew them, and weighs none. Leave it out.",
            field="sampler",
            reason="not used",
        )
    if settings.sampler in LARGEST and settings.sharding == "fsdp":
        raise ConfigError(
            f"sampler: {settings.sampler} rounds a copy of the whole model, of which each process "
            "has a part only (sharding: fsdp). Take sharding: ddp.",
            field="sampler",
            reason="not with fsdp",
        )
    tempered = {*settings.temperatures()} != {1.0} or settings.top_p < 1
    if settings.sampler_correction == "none" and tempered and settings.correct_temperature:
        raise ConfigError(
            "sampler_correction: none takes answers for the policy's own, which at another "
            "temperature than 1, or with top_p below 1, they are not. Take truncate, or say so "
            "with correct_temperature: false.",
            field="sampler_correction",
            reason="another temperature",
        )
    if model is not None and settings.sampler in LARGEST:
        check_rounding(model, settings.sampler)


def check_reference(method: Method, settings: RolloutSettings):
    "Raise `ConfigError` where a method needs another model as its reference, or must have none."
    if method.teacher and not settings.reference_model:
        raise ConfigError(
            f"reference_model: {method.name} learns from another model's log-probs; from its own "
            "it learns nothing. Name a teacher that has the same tokenizer.",
            field="reference_model",
            reason="missing",
        )
    if settings.reference_model and "reference" in method.writers:
        raise ConfigError(
            f"reference_model: half of the answers of {method.name} are the reference's, which has "
            "to be the model as it is before training. Leave it out.",
            field="reference_model",
            reason="not used",
        )


def check_online(
    method: Method,
    settings: RolloutSettings,
    validation: bool = True,
    hyperparameters: dict | None = None,  # all of the method's, where they are known
):
    "Raise `ConfigError` for settings that do not go with a method."
    if method.writers and settings.samples != len(method.writers):
        raise ConfigError(
            f"samples: {method.name} draws {len(method.writers)} answers to a prompt "
            f"({' and '.join(method.writers)}), not {settings.samples}. Write samples: "
            f"{len(method.writers)}."
        )
    check_reference(method, settings)
    compares = method.prepare in (prepare_rloo, prepare_grpo, prepare_family, prepare_win_rates)
    if method.prepare is prepare_topr and hyperparameters:
        compares = hyperparameters["centre"]
    if (
        "advantages" in inspect.signature(method.loss).parameters
        and compares
        and settings.samples < 2
    ):
        raise ConfigError(
            f"samples: {method.name} compares the answers to a prompt with one another, and needs "
            "at least 2."
        )
    if settings.redraw and (method.values or method.writers or method.demonstrations):
        raise ConfigError(
            f"redraw: {method.name} does not compare the answers to a prompt by their rewards "
            "alone. Leave it out.",
            field="redraw",
            reason="not used",
        )
    check_sampler(method, settings)
    if settings.group_by_length:
        raise ConfigError(
            "group_by_length: the order of prompts in rounds is random; answers have no length "
            "before they are drawn. Leave it out."
        )
    if settings.compile:
        raise ConfigError(
            "compile: answers are drawn token by token, and would be compiled anew again and "
            "again. Leave it out."
        )
    if (settings.keep_best or settings.early_stopping_patience) and not validation:
        raise ConfigError(
            "keep_best and early_stopping_patience go by the validation reward. Give a validation "
            "split."
        )


def prompt_layout(
    model, rows: list[Row], validation: list[Row], tokenizer, settings: RolloutSettings
) -> str:
    """Which layout of batches can this model read? Tried on the longest and the shortest prompt,
    with answers, made of their tokens, as long as any can be.
    """
    few = []
    for row in [*rows, *validation]:
        ids, most = row.prompt_ids, settings.max_new_tokens
        answer = (ids * (most // len(ids) + 1))[:most]
        more = max(answer, row.answers.get("response", []), key=len)
        few.append(Row(ids, {"response": more, "other": answer}))
    pad = filling_of(model, tokenizer)
    return choose_layout(model, few, ("response", "other"), pad, settings.layout)


def check_online_lengths(
    model, tokenizer, rows: list[Row], validation: list[Row], settings: RolloutSettings
) -> list[str]:  # notes for the account
    "Raise `DataError` for prompts that the model, with its answers, has no positions or rows for."
    notes = []
    for name, part in (("rows", rows), ("validation", validation)):
        prompts = {f"{i} of {name}": row.prompt_ids for i, row in enumerate(part)}
        check_readable(model, prompts, settings.max_new_tokens, tokenizer)
        lengths = [len(ids) + settings.max_new_tokens for ids in prompts.values()]
        notes += check_lengths(model.config, {f"{name} with their answers": lengths})
        shown = {name: (part, ("response",))} if part and "response" in part[0].answers else {}
        notes += check_readable_rows(model, tokenizer, shown)
    return notes


def prompts_fingerprint(rows: list[Row]) -> str:
    "What a run's prompts are known by: their tokens, and what rewards read of them."
    known = ("prompt_ids", "response_ids", "response_learned", "record")
    return rows_fingerprint([{name: row[name] for name in known if name in row} for row in rows])


def reference_of(
    settings: RolloutSettings,
    model,  # the policy, before adapters are added to it
    tokenizer,
    device: torch.device,
) -> Reference:
    """The model as it is before training, or the one that `reference_model` names; raises
    `ConfigError` for a model whose token ids mean something else.
    """
    name = settings.reference_model
    if not name:
        return Reference(None if settings.lora else model)
    other, own = load_model(name)
    if own.get_vocab() != tokenizer.get_vocab():
        raise ConfigError(
            f"reference_model: {name} has a vocabulary of {len(own):,} tokens that is not the "
            f"model's ({len(tokenizer):,}): what it says of the model's token ids means nothing. "
            "Take a model with the same tokenizer.",
            field="reference_model",
            reason="another vocabulary",
        )
    return Reference(other.to(device))


def layout_and_reference(
    model,  # the policy, before adapters are added to it
    tokenizer,
    rows: list[Row],
    validation: list[Row],
    settings: RolloutSettings,
    device: torch.device,
) -> tuple[str, Reference]:
    "The layout of batches that policy and reference read, and the reference."
    layout = prompt_layout(model, rows, validation, tokenizer, settings)
    reference = reference_of(settings, model, tokenizer, device)  # a copy reads as the model does
    if settings.reference_model:
        settings = replace(settings, layout=layout)
        try:
            check_online_lengths(reference.copy, tokenizer, rows, validation, settings)
        except DataError as error:
            raise error.at("reference_model") from error
        layout = prompt_layout(reference.copy, rows, validation, tokenizer, settings)
    return layout, reference


def train_online(
    model,  # where training starts, and the reference: changed in place
    tokenizer,  # for padding, sampling and decoding; stored with the model
    method: str,  # a name in the method table
    # prompts: prompt_ids, prompt, record; response_ids where it imitates as well
    rows: Sequence[Row | dict],
    validation: Sequence[Row | dict] | None,  # prompts on which it is judged on the way, or None
    output_dir: str | Path,  # metrics.jsonl, samples.jsonl, checkpoints/, checkpoint/
    source,  # of rewards, from `prefkit.judging.rewards.reward_source`
    settings: RolloutSettings | None = None,  # defaults if None
    hyperparameters: dict | None = None,  # over the method's defaults
    judges=(),  # further sources that are asked at validation only
    sample_table: int = 8,  # validation answers kept in samples.jsonl
    callbacks: tuple[Callable, ...] = (),  # each gets every line of metrics.jsonl; True: stop
) -> TrainResult:
    """Train on the model's own samples, or go on where a killed run stopped; raises `ConfigError`
    and `DataError` before the first step.
    """
    row, settings = get_method(method, online=True), settings or RolloutSettings()
    hyperparameters = row.hyperparameters(hyperparameters)
    check_online(row, settings, bool(validation), hyperparameters)
    check_sampler(row, settings, model)
    prompts, asked = as_rows(rows, "rows"), as_rows(validation, "validation")
    check_prompts(row, prompts, asked)
    check_output(model, row, filling_of(model, tokenizer), {})
    run = TrainingRun(Path(output_dir), settings)
    run.note(*check_online_lengths(model, tokenizer, prompts, asked, settings))
    told = {"method": method, "hyperparameters": hyperparameters}
    told["steps"] = online_steps(len(prompts), settings)
    told["reward"] = source.fingerprint()
    told["judges"] = [judge.fingerprint() for judge in judges]
    parts = {"train": prompts, "validation": asked}
    told["data"] = {name: prompts_fingerprint(part) for name, part in parts.items()}
    if run.is_done(model, told):
        return run.result(type(model))
    run.begin(method, len(prompts), told["steps"])
    run.place(model)
    layout, reference = layout_and_reference(model, tokenizer, prompts, asked, settings, run.device)
    run.note_layout(layout)
    run.note_way(model, [row.prompt_ids for row in [*prompts, *asked]], tokenizer)
    rounds = Rounds(
        run.with_adapters(model),
        tokenizer,
        row,
        hyperparameters,
        settings,
        prompts,
        source,
        reference,
        asked,
        list(judges),
        sample_table,
        layout,
        run.precision,
        run.device,
        run.share,
    )
    fitted = fit(rounds, settings, run.folder, run.accelerator, callbacks)
    return run.finish(rounds.model, tokenizer, fitted)
