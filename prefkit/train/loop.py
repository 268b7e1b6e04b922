"""One loop trains every method: batches, losses, gradient, clip, rate, step, log, look, save.

Where the batches of a step come from is the source's business: `Epochs` over rows that are there,
and `prefkit.train.rounds.Rounds` of the model's own samples.
"""

import json
import math
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor

from prefkit.core import (
    ConfigError,
    DataError,
    Progress,
    announce,
    derive_seed,
    iter_jsonl,
    set_seed,
)
from prefkit.data.rows import Row, as_rows
from prefkit.data.thoughts import split_thought
from prefkit.model.batches import (
    ANSWERS,
    autocast,
    batch_logps,
    batch_rewards,
    choose_layout,
    Batch,
    collate,
    row_length,
    simpler_layout,
)
from prefkit.model.kernels import halves
from prefkit.model.limits import (
    check_ids,
    check_lengths,
    dropout_of,
    embedding_rows,
    filling_of,
    set_dropout,
    vocabulary_of,
)
from prefkit.model.sampling import READING_WAYS, generate, reading_way, stop_tokens
from prefkit.train.devices import Share, choose_precision, make_accelerator
from prefkit.train.log import Clock, Log
from prefkit.train.methods import (
    EXTRA_ANSWERS,
    Method,
    batch_sums,
    batch_values,
    check_batch_size,
    get_method,
    loss_items,
    measure,
    method_losses,
)
from prefkit.train.rollout import (
    Reference,
    sample_answers,
    sample_names,
    sample_rows,
    score_tokens,
)
from prefkit.train.saves import (
    Saves,
    clear_leftovers,
    cut_lines,
    end_of,
    open_folder,
    rows_fingerprint,
    read_claim,
    save_folder,
    with_reference,
    write_claim,
)
from prefkit.model.loading import check_loaded, model_config, model_fingerprint, read_weights
from prefkit.train.schedule import epoch_batches, learning_rate_factor
from prefkit.train.settings import TrainSettings, run_line, total_steps


# ---- the loop


class Learner(torch.nn.Module):
    """A model whose call is `read(learner, batch)`. Several processes exchange gradients only of
    what went through a call of the module that they wrap, so everything that learns is in here.
    """

    def __init__(
        self,
        read: Callable,  # (learner, batch) -> what the losses are made of
        model,
        **others: torch.nn.Module,  # trained along, such as a value head
    ):
        super().__init__()
        self.read, self.model, self.names = read, model, tuple(others)
        for name, module in others.items():
            self.add_module(name, module)

    def others(self) -> dict[str, Tensor]:
        "Weights of what is trained along with the model."
        state = self.state_dict()
        return {name: x for name, x in state.items() if name.partition(".")[0] in self.names}

    def load_others(self, weights: dict[str, Tensor]):
        "Take up what `others` gave."
        for name, weight in self.others().items():
            weight.copy_(weights[name])

    def forward(self, batch):
        return self.read(self, batch)


def fit(
    source,  # `Epochs` or `Rounds`: batches, losses, validations
    settings: TrainSettings,
    folder: Path,  # of the run: metrics.jsonl, samples.jsonl, checkpoints/
    accelerator: Accelerator,
    callbacks: tuple[Callable, ...] = (),  # each gets every line of metrics.jsonl; True: stop
) -> "Fitted":
    """Train a source's learner, or go on from the last checkpoint; afterwards it has the weights
    that are to be kept. Raises `NotFinite`.
    """
    s, steps, share = settings, source.steps, Share.of_process(accelerator)
    set_seed(s.seed if share.rank == 0 else derive_seed(s.seed, "process", share.rank))
    optimizer = adamw(source.learner, s)
    learner, optimizer = spread(source.learner.train(), optimizer, accelerator)
    scaler = torch.amp.GradScaler(enabled=source.precision == "fp16")
    log, best, clock = Log(folder, s, accelerator, callbacks), Best(s), Clock()
    parts = {"log": log, "best": best, "source": source}
    saves = Saves(folder / "checkpoints", source.learner, optimizer, scaler, parts, share)
    resumed = share.from_main(saves.newest())
    share.main_does(partial(tidy, folder, resumed))
    finished = resumed is not None and saves.load(resumed)
    if resumed is None:
        look(source, 0, log, best)

    step = resumed or 0
    with Progress(steps, "training", initial=step) as progress:
        while not finished:
            clock.lap()
            loss = gradient(source, learner, step, scaler, accelerator, log)
            norm = clip(learner, optimizer, scaler, accelerator, s.max_grad_norm)
            log.step(step + 1, loss, norm, source.origin, scaler.is_enabled())
            rate = learning_rate_at(step, steps, s)
            for group in optimizer.param_groups:
                group["lr"] = rate
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            step += 1
            log.seconds += clock.lap() - source.seconds_drawing

            looks = step == steps or step % (s.eval_steps or steps) == 0
            if looks or step % s.logging_steps == 0:
                log.line(step, rate, source)
            if looks:
                look(source, step, log, best)
            finished = step == steps or best.waited_enough() or log.stop_asked
            if finished or step % (s.save_steps or steps) == 0 or best.to_keep(step):
                log.check_finite()
                saves.write(step, finished, keep={best.step})
            progress.update(1, log.note)

    if s.keep_best and best.step not in (None, step):
        saves.load_weights(best.step)
    log.close()
    return Fitted(step, best.step, best.loss, resumed)


def gradient(
    source, learner, step: int, scaler, accelerator: Accelerator, log: Log
) -> Tensor:  # ()
    """Loss of a step, its gradient left in the weights: sums over all batches by the number of
    items.
    """
    batches, share = source.batches(step), Share.of_process(accelerator)
    items = sum(share.each(sum(batch.items for batch in batches)))
    whole = torch.zeros((), device=accelerator.device)
    for number, batch in enumerate(batches, 1):
        between = number < len(batches)  # processes exchange gradients once a step
        with accelerator.no_sync(learner) if between else nullcontext():
            losses, watched = source.losses(learner, batch)
            loss = losses.sum() / items
            # processes take the mean of their gradients, and each has only its part of the sum
            accelerator.backward(scaler.scale(loss * share.of))
        whole += loss.detach()
        log.add(watched, batch.tokens)
    return share.total(whole)


def clip(learner, optimizer, scaler, accelerator: Accelerator, longest: float) -> Tensor:  # ()
    "Norm of the gradient, which is cut to `longest` afterwards; 0: it is not."
    scaler.unscale_(optimizer)
    return accelerator.clip_grad_norm_(learner.parameters(), longest or math.inf)


def look(source, step: int, log: Log, best: "Best"):
    "A validation: its line, its answers, and whether it is the best so far."
    start = perf_counter()
    found = source.evaluate(step)
    line = {"step": step, "epoch": source.passes(step), "split": "validation", **found.numbers}
    log.validation(line, perf_counter() - start, found.samples, source.show)
    if step and found.loss is not None:
        best.see(found.loss, step)


@dataclass
class Validation:
    "What a validation found."

    numbers: dict[str, float]  # of its line
    samples: list[dict]  # answers
    loss: float | None = None  # by which the best is told; None: there is none


class Best:
    "The best validation so far, and how many have passed since."

    def __init__(self, settings: TrainSettings):
        self.patience, self.keep = settings.early_stopping_patience, settings.keep_best
        self.loss, self.step, self.without_gain = None, None, 0

    def see(self, loss: float, step: int):
        "A validation's loss."
        if self.loss is None or loss < self.loss:
            self.loss, self.step, self.without_gain = loss, step, 0
        else:
            self.without_gain += 1

    def waited_enough(self) -> bool:
        return bool(self.patience) and self.without_gain >= self.patience

    def to_keep(self, step: int) -> bool:
        "Whether the weights of this step are to be kept as the best."
        return self.keep and self.step == step

    def state(self) -> dict:
        return {"loss": self.loss, "step": self.step, "without_gain": self.without_gain}

    def load(self, state: dict):
        self.loss, self.step = state["loss"], state["step"]
        self.without_gain = state["without_gain"]


@dataclass(frozen=True)
class Fitted:
    "How a run ended."

    steps: int  # optimiser steps taken
    best_step: int | None  # of the best validation
    best_loss: float | None  # the loss there
    resumed_from: int | None  # the checkpoint's step, if it went on from one


def learning_rate_at(step: int, steps: int, settings: TrainSettings) -> float:
    "The rate of a step, from 0, of so many."
    s = settings
    factor = learning_rate_factor(
        step,
        steps,
        schedule=s.schedule,
        warmup=s.warmup_steps or math.ceil(s.warmup_ratio * steps),
        decay_factor=s.decay_factor,
        decay_every=s.decay_every,
    )
    return s.learning_rate * factor


def adamw(module: torch.nn.Module, settings: TrainSettings) -> torch.optim.AdamW:
    "AdamW (Loshchilov and Hutter 2019); weight decay on matrices alone, not on biases and norms."
    weights = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in weights if p.dim() > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in weights if p.dim() <= 1], "weight_decay": 0.0},
    ]
    betas = (settings.adam_beta1, settings.adam_beta2)
    fused = all(p.device.type in ("cpu", "cuda") for p in weights)
    rate = settings.learning_rate
    return torch.optim.AdamW(groups, lr=rate, betas=betas, eps=settings.adam_epsilon, fused=fused)


def spread(learner: Learner, optimizer, accelerator: Accelerator) -> tuple:
    "Learner and optimiser as several processes need them; in one process they stay what they are."
    if accelerator.distributed_type == DistributedType.FSDP:
        return accelerator.prepare(learner, optimizer)
    return accelerator.prepare(learner), optimizer


def tidy(folder: Path, step: int | None):
    "Clear away what a kill has left of a run's folder: it goes on from `step`, or anew."
    clear_leftovers(folder)
    for name in ("metrics.jsonl", "samples.jsonl"):
        cut_lines(folder / name, -1 if step is None else step)


# ---- rows that are there


@dataclass(frozen=True)
class RowBatch:
    "One process's share of a batch of rows."

    batch: Batch
    items: int  # rows or tokens that its loss is a sum of
    counts: bool  # False: a process without rows takes part with one that counts nothing

    @property
    def tokens(self) -> int:
        return self.batch.tokens if self.counts else 0


@dataclass
class Epochs:
    "Rows that are there, in a new order every epoch: the source of the offline methods."

    model: object  # to be trained
    tokenizer: object  # for sampled answers
    method: Method
    hyperparameters: dict  # all of the loss's
    settings: TrainSettings
    rows: list[Row]  # encoded, with reference log-probs where the method needs them
    validation: list[Row] = field(default_factory=list)
    probe: list[Row] = field(default_factory=list)  # pairs whose log-probs are watched
    sample_prompts: list = field(default_factory=list)  # answered at every validation
    layout: str = "apart"
    precision: str = "float32"
    device: torch.device = torch.device("cpu")
    share: Share = Share()
    seconds_drawing: float = 0.0  # nothing is drawn here
    start: Reference | None = None  # the distance to it is measured at every validation

    def __post_init__(self):
        self.learner = Learner(self._read, self.model)
        self.pad = filling_of(self.model, self.tokenizer)
        self.steps = total_steps(len(self.rows), self.settings)
        self.answers = self.method.answers()
        self.lengths = [row_length(row, self.answers, self.layout) for row in self.rows]
        self.epoch, self.order = None, []  # the order of the epoch at hand
        self.seen = []  # of the step so far, to say where a NaN came from

    def _read(self, learner: Learner, batch: Batch) -> Tensor:  # (answers,)
        with autocast(learner.model, self.precision):
            return batch_values(learner.model, batch, self.method)

    def batches(self, step: int) -> list["RowBatch"]:
        "The batches of a step; of each this process has its share."
        s = self.settings
        per_epoch = -(-self._batches_per_epoch() // s.gradient_accumulation)
        epoch, place = divmod(step, per_epoch)
        if epoch != self.epoch:
            self.epoch, self.order = epoch, self._shuffled(epoch)
        first = place * s.gradient_accumulation
        self.seen = []
        return [self._batch(part) for part in self.order[first : first + s.gradient_accumulation]]

    def _batches_per_epoch(self) -> int:
        return -(-len(self.rows) // self.settings.batch_size)

    def _shuffled(self, epoch: int) -> list[list[int]]:
        s = self.settings
        return epoch_batches(
            self.lengths,
            s.batch_size,
            seed=s.seed,
            epoch=epoch,
            group_by_length=s.group_by_length,
            group=s.gradient_accumulation,
        )

    def _batch(self, numbers: list[int]) -> "RowBatch":
        mine = self.share.mine(numbers)
        rows = [self.rows[i] for i in mine or numbers[:1]]
        batch = collate(rows, self.answers, self.pad, self.layout)
        items = loss_items(self.method, batch) if mine else 0
        return RowBatch(batch.to(self.device), items, counts=bool(mine))

    def losses(self, learner, part: "RowBatch") -> tuple[Tensor, dict]:
        "Loss of each row, (rows,), and sums of what is watched."
        values = learner(part.batch)
        share = replace(self.share, counts=part.counts)
        losses, watched = method_losses(
            self.method, self.hyperparameters, part.batch, values, share
        )
        if not part.counts:
            return losses * 0, {}
        self.seen.append((values.detach(), losses.detach()))
        return losses, batch_sums(self.method, part.batch, losses, watched)

    def origin(self) -> str:
        "Where in the step the first number that is not finite arose; empty where none is kept."
        for values, losses in self.seen:
            bad = (~torch.isfinite(values)).nonzero().flatten().tolist()
            if bad:
                answer, row = divmod(bad[0], len(losses))
                what = "reward" if self.method.output == "rewards" else "log-prob"
                return (
                    f": the model's {what} of the {self.answers[answer]} answer in row {row} of "
                    f"the batch is {values[bad[0]].item():g}"
                )
            bad = (~torch.isfinite(losses)).nonzero().flatten().tolist()
            if bad:
                return (
                    f": the model's log-probs are finite, but the loss {self.method.name} of row "
                    f"{bad[0]} of the batch is {losses[bad[0]].item():g}"
                )
        return ": every row's loss is finite, so it arose in the backward pass" if self.seen else ""

    def passes(self, step: int) -> float:
        "Passes over the rows after so many steps."
        batches = self._batches_per_epoch()
        per_epoch = -(-batches // self.settings.gradient_accumulation)
        epoch, place = divmod(step, per_epoch)
        done = place * self.settings.gradient_accumulation
        return epoch + done / batches

    def times(self, seconds: float) -> dict[str, float]:
        "Further times of a line: none."
        return {}

    def check(self, means: dict[str, float], step: int):
        "What a line's means must not say: nothing."

    def evaluate(self, step: int) -> Validation:
        "Validation loss, the probe's log-probs, sampled answers."
        numbers = {}
        if self.validation:
            numbers |= self._measure(self.validation, self.method, self.hyperparameters)
        if (
            self.probe
        ):  # pairs under the log-probs alone: sft's loss asks for none of the pair's inputs
            found = self._measure(self.probe, PROBE, {})
            numbers |= {name: x for name, x in found.items() if name.startswith("logps_")}
        if self.start:
            numbers["kl_k1"] = self._distance(self.start)
        asked = step % (self.settings.sample_steps or 1) == 0
        return Validation(numbers, self._sample() if asked else [], numbers.get("loss"))

    def _distance(self, start: Reference) -> float:
        "KL(model || start) in nats an answer, by plain samples of the model."
        s = self.settings
        prompts = [row.prompt_ids for row in self.validation[: s.kl_samples]]
        samples = sample_answers(
            self.model,
            self.tokenizer,
            prompts,
            max_new_tokens=s.sample_tokens,
            seed=derive_seed(s.seed, "kl"),
            batch_size=s.batch_size,
            precision=self.precision,
        )
        rows = sample_rows([Row(ids) for ids in prompts], samples)
        with start.of(self.model) as reference:
            scored = score_tokens(
                reference,
                rows,
                sample_names(1),
                self.pad,
                batch_size=s.batch_size,
                precision=self.precision,
            )
        own = [sum(one.model_logps) for [one] in samples]
        return sum(mine - sum(logps) for mine, [logps] in zip(own, scored)) / len(own)

    def _measure(self, rows: list[Row], method: Method, hyperparameters: dict) -> dict:
        return measure(
            self.model,
            rows,
            method,
            hyperparameters,
            self.pad,
            batch_size=self.settings.batch_size,
            precision=self.precision,
            layout=self.layout,
            share=self.share,
        )

    def _sample(self) -> list[dict]:
        "Greedy answers to the sample prompts."
        if not self.sample_prompts or self.method.output == "rewards":
            return []
        most = self.settings.sample_tokens
        made = generate(self.model, self.tokenizer, self.sample_prompts, max_new_tokens=most)
        return [
            {
                "prompt": prompt,
                **split_thought(x["text"]).to_dict(),
                "tokens": x["tokens"],
                "ended": x["ended"],
            }
            for prompt, x in zip(self.sample_prompts, made)
        ]

    @staticmethod
    def show(line: dict, samples: list[dict]) -> str:
        "What is shown after a validation: its loss and some answers."
        loss = f", validation loss {line['loss']:.4f}" if "loss" in line else ""
        lines = [f"step {line['step']}{loss}"]
        for sample in samples:
            asked, said = sample["prompt"][-1]["content"][:60], sample["answer"][:90]
            lines.append(f"  {asked!r} -> {said!r}")
        return "\n".join(lines)

    def state(self) -> dict:
        "Nothing: the step says where in which epoch a run is."
        return {}

    def load(self, state: dict):
        "Nothing."


PROBE = Method("probe", lambda policy_chosen_logps: -policy_chosen_logps, "pairs", reference=False)


def add_lora(
    model,  # a causal language model
    settings: TrainSettings,  # lora_rank, lora_alpha, lora_dropout, lora_targets, seed
):  # the same model, frozen, with trainable adapters; at the start they change nothing
    """Put low-rank adapters (LoRA, Hu et al. 2021, https://arxiv.org/abs/2106.09685) onto a model,
    drawn from the run's seed.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=settings.lora_targets,
        task_type="SEQ_CLS" if hasattr(model, "score") else "CAUSAL_LM",
    )
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(settings.seed, "lora"))
        try:
            return get_peft_model(model, config)
        except ValueError as error:
            raise ConfigError(f"lora_targets: {error}") from error


@dataclass
class TrainResult:
    "What `train_model` gives back."

    model: object  # trained; adapters merged into the weights
    path: Path  # <output_dir>/checkpoint: model and tokenizer, for from_pretrained
    metrics: list[dict]  # the lines of metrics.jsonl
    samples: list[dict]  # the lines of samples.jsonl
    steps: int  # optimiser steps taken
    best_step: int | None  # of the best validation loss
    best_loss: float | None  # the loss there
    resumed_from: int | None  # the checkpoint's step, if this call went on from one
    # what was done otherwise than asked, or changed: layout, dropout, rows beyond the positions
    notes: list[str] = field(default_factory=list)


def check_encoded(
    rows: Iterable[Row | dict] | None,  # encoded rows
    kind: str,  # of data that is needed
    name: str,  # what to call them
):
    "Raise `DataError` unless the rows are encoded and of the right kind."
    for number, row in enumerate(as_rows(rows, name)):
        missing = [] if row.prompt_ids else ["prompt_ids"]
        missing += [f"{answer}_ids" for answer in ANSWERS[kind] if not row.answers.get(answer)]
        if kind == "binary" and row.label is None and row.reward is None:
            missing.append("label")
        if missing:
            given = ", ".join(key for key, value in row.items() if value != [])
            raise DataError(
                f"{name}, row {number}: {', '.join(missing)} missing or empty; there is "
                f"{given}. Data of kind {kind} are needed, as "
                "prefkit.data.records.encode_records makes them."
            )
        check_learned(row, ANSWERS[kind], f"{name}, row {number}")


def check_learned(row: Row, answers: tuple[str, ...], place: str):
    "Raise `DataError` unless `<answer>_learned` fits the answer and leaves something to learn."
    for answer in answers:
        marks, tokens = row.learned_of(answer), len(row.answers[answer])
        if len(marks) != tokens:
            raise DataError(
                f"{place}: {answer}_learned has {len(marks)} marks for {tokens} tokens. Give one "
                "true or false a token, or leave it out.",
                field=f"{answer}_learned",
                reason="not one mark a token",
            )
        if not any(marks):
            raise DataError(
                f"{place}: no token of {answer} is learned. Leave the row out.",
                field=f"{answer}_learned",
                reason="nothing to learn",
            )


def check_run(
    method: Method,  # of the table
    settings: TrainSettings,  # of the run
    train_rows,
    validation_rows,
    probe_rows,  # encoded rows or None
):
    """Everything about data and settings that can be known before training; raises `DataError` and
    `ConfigError`.
    """
    if not train_rows:
        raise DataError("there are no rows to train on.")
    check_encoded(train_rows, method.kind, "train_rows")
    check_encoded(validation_rows, method.kind, "validation_rows")
    check_encoded(probe_rows, "pairs", "probe_rows")
    if (settings.keep_best or settings.early_stopping_patience) and not validation_rows:
        raise ConfigError(
            "keep_best and early_stopping_patience go by the validation loss. Give validation_rows."
        )
    there = 0 if method.output == "rewards" else len(validation_rows or ())
    if settings.kl_samples > there:
        raise ConfigError(
            f"kl_samples: {settings.kl_samples} prompts of the validation are to be answered by a "
            f"language model, and there are {there}. Give more validation_rows, or ask for fewer.",
            field="kl_samples",
            reason="nothing to answer",
        )
    check_batch_size(method, settings.batch_size, len(train_rows))


def check_output(
    model,  # that training starts from
    method: Method,  # of the table
    pad_token_id: int,  # that batches are filled with
    sets: dict[str, list[Row]],  # encoded rows
):
    """Raise `ConfigError` where model and method do not fit, or where a classifier would take an
    answer's last token for padding.
    """
    if hasattr(model, "peft_config"):
        raise ConfigError(
            "model: it carries adapters already, so that what training starts from is not clear. "
            "Call merge_and_unload() first; settings.lora adds new ones."
        )
    scalar = hasattr(model, "score") and getattr(model, "num_labels", None) == 1
    if scalar != (method.output == "rewards"):
        wanted = "a language model"
        if method.output == "rewards":
            wanted = "a model with a scalar head, see prefkit.judging.reward_model.scalar_head"
        raise ConfigError(
            f"method: {method.name} trains {wanted}, not a {type(model).__name__}.",
            field="method",
            reason="of another model",
        )
    if not scalar:
        return
    if model.config.pad_token_id != pad_token_id:
        raise ConfigError(
            f"model: its pad_token_id is {model.config.pad_token_id}, but batches are filled with "
            f"{pad_token_id}. Make them equal: the score is read at the last token that is no "
            "padding."
        )
    if any(
        row.answers[answer][-1] == pad_token_id
        for rows in sets.values()
        for row in rows
        for answer in ANSWERS[method.kind]
    ):
        raise ConfigError(
            f"tokenizer: answers end with its padding token {pad_token_id}, so that their last "
            "token would be taken for padding. Give the tokenizer another pad_token."
        )


def sequence_lengths(rows: list[Row] | None, answers: tuple[str, ...]) -> list[int]:
    "Tokens of each row's longest sequence."
    return [row_length(row, answers) for row in rows or []]


def check_readable_rows(
    model,  # that training starts from
    tokenizer,  # to name tokens
    sets: Mapping[str, tuple[list[Row] | None, tuple[str, ...]]],  # rows, names of their answers
) -> list[str]:  # notes for the account
    "Raise `DataError` for rows with tokens or a length that the model cannot read."
    rows = embedding_rows(model)
    for name, (some, answers) in sets.items():
        for i, row in enumerate(some or []):
            parts = [row.prompt_ids, *(row.answers[answer] for answer in answers)]
            check_ids([(f"{name}, row {i}", ids) for ids in parts], rows, tokenizer)
    lengths = {name: sequence_lengths(*part) for name, part in sets.items()}
    return check_lengths(model.config, lengths, "Set max_length: {most}.")


def all_rows(sets: dict[str, list[Row]], probe: list[Row], method: Method) -> list[Row]:
    """Prompt and answers of every row that is going to be read, its longest answer in the place of
    those that are still to be drawn, which are no longer than the longest row.
    """
    parts = [(rows, ANSWERS[method.kind]) for rows in sets.values()]
    found = []
    for rows, answers in [*parts, (probe, ANSWERS["pairs"])]:
        for row in rows:
            longest = max((row.answers[answer] for answer in answers), key=len)
            ids = {name: row.answers.get(name, longest) for name in method.answers()}
            found.append(Row(row.prompt_ids, ids))
    return found


def prepare_rows(
    model,  # before training
    tokenizer,  # for the ids of padding and stop tokens
    method: Method,  # of the table
    sets: dict[str, list[Row]],  # name -> encoded rows
    run: "TrainingRun",  # folder, settings, precision
    probe: list[Row],  # encoded pairs that are read along
    cache: Path | None = None,  # where other runs find the reference's log-probs
    # the rows with what the method needs beside them; the layout of their batches
) -> tuple[dict[str, list[Row]], str]:
    """Log-probs of the reference, answers that the data do not have, and a look which layout of
    batches this model can read.
    """
    pad, s = filling_of(model, tokenizer), run.settings
    read = batch_logps if method.output == "logps" else batch_rewards
    rows = all_rows(sets, probe, method)
    layout = choose_layout(model, rows, method.answers(), pad, s.layout, read)
    run.note_layout(layout)
    if not method.reference and not method.extra:
        return sets, layout
    options: dict[str, Any] = dict(seed=s.seed, pad_token_id=pad, batch_size=max(64, s.batch_size))
    if method.extra:  # some are sampled
        options["stop_ids"] = stop_tokens(tokenizer, model)
        options["vocabulary"] = vocabulary_of(tokenizer, embedding_rows(model))
    sets = with_reference(
        model,
        sets,
        method.answers(),
        pad,
        run.folder,
        extra={name: partial(EXTRA_ANSWERS[name], **options) for name in method.extra},
        cache=cache,
        batch_size=s.batch_size,
        precision=run.precision,
        layout=layout,
    )
    return sets, layout


def train_model(
    # where training starts, changed in place; weights are made float32, or with adapters what
    # base_precision says
    model,
    tokenizer,  # stored with the model; its pad token and end of turn are used
    method: str,  # a name in the method table
    train_rows: Sequence[Row | dict],  # encoded rows of the method's kind
    validation_rows: Sequence[Row | dict] | None,  # encoded rows, or None for no validation
    output_dir: str | Path,  # metrics.jsonl, samples.jsonl, checkpoints/, checkpoint/ and adapter/
    settings: TrainSettings | None = None,  # defaults if None
    hyperparameters: dict | None = None,  # of the loss, over the method's defaults
    sample_prompts: list | None = None,  # prompts (message lists) answered at every validation
    # encoded pairs whose log-probs are watched, whatever the method
    probe_rows: Sequence[Row | dict] | None = None,
    # a folder in which runs with the same model and data share the reference's log-probs
    cache: Path | None = None,
    callbacks: tuple[Callable, ...] = (),  # each gets every line of metrics.jsonl; True: stop
) -> TrainResult:  # the trained model and what was logged
    """Train, or go on where a killed run stopped; raises `ConfigError` and `DataError` before the
    first step.
    """
    row, settings = get_method(method, online=False), settings or TrainSettings()
    hyperparameters = row.hyperparameters(hyperparameters)
    sets = {"train": as_rows(train_rows, "train_rows")}
    sets["validation"] = as_rows(validation_rows, "validation_rows")
    probe = as_rows(probe_rows, "probe_rows")
    check_run(row, settings, *sets.values(), probe)
    check_output(model, row, filling_of(model, tokenizer), sets)
    given = {f"{name}_rows": (rows, ANSWERS[row.kind]) for name, rows in sets.items()}
    given |= {"probe_rows": (probe, ANSWERS["pairs"])}
    run = TrainingRun(Path(output_dir), settings)
    run.note(*check_readable_rows(model, tokenizer, given))
    told = {"method": method, "hyperparameters": hyperparameters}
    told["steps"] = total_steps(len(sets["train"]), settings)
    told["data"] = {name: rows_fingerprint(rows) for name, rows in sets.items()}
    if run.is_done(model, told):
        return run.result(type(model))
    run.begin(method, len(sets["train"]), told["steps"])
    run.place(model)
    with run.accelerator.main_process_first():  # the others find what it has left in the folder
        sets, layout = prepare_rows(model, tokenizer, row, sets, run, probe, cache)
    start = Reference(None if settings.lora else model) if settings.kl_samples else None
    source = Epochs(
        run.with_adapters(model),
        tokenizer,
        row,
        hyperparameters,
        settings,
        sets["train"],
        sets["validation"],
        probe,
        sample_prompts or [],
        layout,
        run.precision,
        run.device,
        run.share,
        start=start,
    )
    fitted = fit(source, settings, run.folder, run.accelerator, callbacks)
    return run.finish(source.model, tokenizer, fitted)


class TrainingRun:
    "A run's folder and devices: what `train_model` and `train_online` do alike."

    def __init__(self, folder: Path, settings: TrainSettings):
        self.settings = settings
        self.accelerator = make_accelerator(settings, folder)
        self.device = self.accelerator.device
        self.share = Share.of_process(self.accelerator)
        self.precision = choose_precision(settings, self.device)
        self.folder = Path(self.share.from_main(str(folder)))  # one folder for all processes
        self.notes: list[str] = []  # for the account
        self.dropout: dict[str, float] = {}  # of the model's config as it came

    def note(self, *texts: str):
        "Say what was changed or done otherwise, and keep it for the account."
        for text in filter(None, texts):
            self.notes.append(text)
            if self.share.rank == 0:
                print(text)

    def note_layout(self, layout: str):
        "What `choose_layout` has already said."
        if layout != self.settings.layout:
            self.notes.append(simpler_layout(layout, self.settings.layout))

    def note_way(self, model, prompts: list[list[int]], tokenizer):
        "How the model reads prompts, if slower than others; `reading_way` has already said it."
        way = reading_way(model, prompts, filling_of(model, tokenizer))
        if way != "padded":
            self.notes.append(f"prompts are read so: {READING_WAYS[way]}")

    def is_done(self, model, told: dict) -> bool:
        "Claim the folder; raises `OtherRun` where it holds another run. Is the run in it finished?"
        identity = {**told, "settings": asdict(self.settings), "model": model_fingerprint(model)}
        return self.share.main_does(partial(open_folder, self.folder, identity))

    def begin(self, method: str, rows: int, steps: int):
        "Say what this run is going to do."
        if self.share.rank == 0:
            announce(run_line(method, rows, steps, self.settings, self.folder))

    def place(self, model):
        """Weights in float32 (as bf16 they would not move; those that need not move may be bf16)
        and on the device; dropout as it is asked for; options of memory.
        """
        s = self.settings
        self.dropout = dropout_of(model)
        self.note(set_dropout(model, s.dropout))
        self.came_as = stored_dtype(model) if s.base_precision == "bf16" else model.dtype
        model.to(torch.bfloat16 if s.base_precision == "bf16" else torch.float32)
        model.to(self.device)
        if s.compile:  # lengths differ from batch to batch
            (halves(model) or [model])[0].compile(dynamic=True)
        if s.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})

    def with_adapters(self, model):
        "The model, with LoRA's adapters where they are trained."
        return add_lora(model, self.settings) if self.settings.lora else model

    def finish(self, model, tokenizer, fitted: Fitted) -> TrainResult:
        """Write the final model and tokenizer, adapters merged and beside it; clear checkpoints
        away.
        """
        model = model.eval()
        if self.settings.lora:
            self.share.main_does(
                partial(save_folder, self.folder / "adapter", model.save_pretrained)
            )
            # the sum of base and adapters is not rounded before it is stored
            model = model.float().merge_and_unload()
            if self.settings.base_precision == "bf16":
                model.to(self.came_as)
        self.share.main_does(partial(self._write, model, tokenizer, fitted))
        return read_result(self.folder, model, fitted.resumed_from)

    def _write(self, model, tokenizer, fitted: Fitted):
        for name, value in self.dropout.items():  # what is written is the model that came
            setattr(model.config.get_text_config(), name, value)
        savers = (model.save_pretrained, tokenizer.save_pretrained)
        save_folder(self.folder / "checkpoint", *savers)
        path = self.folder / "training.json"
        training = read_claim(path) or {}
        training |= {"finished": True, "steps_taken": fitted.steps}
        training |= {"best_step": fitted.best_step, "best_loss": fitted.best_loss}
        training |= {"notes": self.notes, **end_of(self.folder)}
        write_claim(path, training)
        if not self.settings.keep_checkpoints:
            shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)

    def result(self, kind: type[Any]) -> TrainResult:
        "Of a run that is done."
        place = str(self.folder / "checkpoint")
        model, info = read_weights(kind, place)
        check_loaded(place, info)
        return read_result(self.folder, model)


def stored_dtype(model) -> torch.dtype:
    "The precision of the files that a model was read from; of a model of no files, its own."
    name = model.config.name_or_path
    try:
        stated = model_config(name).dtype if name else None
    except ConfigError:
        stated = None  # the name is of no files, or they are gone
    return stated or model.dtype


def read_result(folder: Path, model, resumed: int | None = None) -> TrainResult:
    "The result of a finished run, from its folder."
    training = json.loads((folder / "training.json").read_text())
    lines = [
        [record for _, record, _ in iter_jsonl(folder / name)]
        for name in ("metrics.jsonl", "samples.jsonl")
    ]
    return TrainResult(
        model,
        folder / "checkpoint",
        *lines,
        training["steps_taken"],
        training["best_step"],
        training["best_loss"],
        resumed,
        training.get("notes", []),
    )
