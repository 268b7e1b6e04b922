"""A run once more: drag through its steps and see curves, answers and, from its checkpoints, tokens
move together.
"""

import difflib
import math
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from prefkit.core import DataError
from prefkit.data.rows import Row
from prefkit.model.loading import load_language_model, load_tokenizer
from prefkit.model.sampling import encode_prompts
from prefkit.report.curves import SIDES
from prefkit.report.stages import sampled_answers
from prefkit.report.words import plain, signed
from prefkit.train.rollout import score_tokens
from prefkit.train.saves import WEIGHTS, no_bars
from prefkit.widgets.pieces import beside, draw_lines, escaped, note, say_number
from prefkit.widgets.runs import BOTH_SPLITS, RunFolder, label_of, read_run_folder
from prefkit.widgets.view import Choice, Control, Explorer, Slider, Switch, picture

__all__ = ["CheckpointTokens", "changed_words", "draw_replay", "draw_run", "explore_replay"]

SINCE = ("the start", "the validation before")
REPLAY_FRAMES = 60  # of a page without a kernel
PROMPTS = 3  # whose answers are shown at a time


def changed_words(
    before: str,
    after: str,
) -> str:  # HTML; what went is struck through, what came is underlined
    "What became of a text, word by word."
    old, new = before.split(), after.split()
    said = []
    for kind, a, b, c, d in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        gone, come = escaped(" ".join(old[a:b])), escaped(" ".join(new[c:d]))
        if kind == "equal":
            said.append(come)
            continue
        if gone:
            said.append(f'<del style="background:rgba(213,94,0,.15)">{gone}</del>')
        if come:
            style = "background:rgba(0,158,115,.2);font-weight:600;text-underline-offset:2px"
            said.append(f'<ins style="{style}">{come}</ins>')
    return " ".join(said)


def run_lines(
    run: RunFolder,
    metric: str,  # one of `run.named`
) -> tuple[dict[str, pd.DataFrame], str]:  # curves by name; what they were measured on
    "The curves of a metric: training and validation, or the two sides of pairs."
    columns = run.named[metric]
    if len(columns) == 1:
        curves = {split: run.curve(split, columns[0], split) for split in BOTH_SPLITS}
        return {split: line for split, line in curves.items() if len(line)}, ""
    for split in BOTH_SPLITS:  # a validation is always on the same rows
        curves = {
            side: run.curve(split, name, side) for side, name in zip(SIDES, columns, strict=True)
        }
        if all(len(line) > 1 for line in curves.values()):
            break
    return curves, split


def value_at(line: pd.DataFrame, step: int) -> float | None:
    "The last value of a curve up to a step; None before its first."
    so_far = line[line["x"] <= step]
    return float(so_far["value"].iloc[-1]) if len(so_far) else None


def draw_run(
    run: RunFolder,
    metric: str,  # one of `run.named`
    step: int,  # where the reader stands
) -> Figure:
    "The curves of one metric with a mark at a step, whose title says the values there."
    lines, split = run_lines(run, metric)
    here = {name: value_at(line, step) for name, line in lines.items()}
    told = [f"{name} {say_number(value)}" for name, value in here.items() if value is not None]
    label = label_of(metric)
    where = f" ({split})" if split else ""
    return draw_lines(
        lines,
        title=f"Step {step}: {label.split(' (')[0]}{where} {', '.join(told) or 'not measured yet'}",
        xlabel="optimiser step",
        ylabel=label,
        mark=step,
    )


def validation_at(steps: list[int], step: int) -> int | None:
    "The last validation up to a step; None before the first."
    return max((one for one in steps if one <= step), default=None)


def answers_at(
    answers: pd.DataFrame,  # columns prompt, step, answer
    step: int,  # where the reader stands
    since: str,  # one of `SINCE`: what the answers are held against
    tokens: "CheckpointTokens | None" = None,  # what checkpoints say of the answers is shown too
) -> str:  # HTML
    "The answers of the last validation up to a step, and what has changed in their words."
    if answers.empty:
        return note(
            "This run answered no prompts. With sample_prompts, its validations leave answers in "
            "samples.jsonl."
        )
    steps = sorted(set(answers["step"]))
    now = validation_at(steps, step)
    if now is None:
        return note(f"No answers before step {steps[0]}.")
    place = steps.index(now)
    then = steps[0] if since == SINCE[0] else steps[max(0, place - 1)]
    said = {at: part.set_index("prompt")["answer"] for at, part in answers.groupby("step")}
    rows = []
    for prompt in dict.fromkeys(answers["prompt"]):
        if prompt not in said[now]:
            continue
        answer = str(said[now][prompt])
        before = str(said[then].get(prompt, ""))
        told = changed_words(before, answer) if then != now else escaped(answer)
        rows.append(
            f"<div><strong>{escaped(prompt, lines=True)}</strong></div>"
            f'<div style="margin:.1em 0 .7em 1em">{told or "(nothing)"}'
            f"{tokens.html(prompt, answer, then, now) if tokens else ''}</div>"
        )
    against = f", what changed since step {then}" if then != now else ""
    head = f"<p style='margin:.4em 0'>Answers at step {now}{against}:</p>"
    return head + "".join(rows)


class CheckpointTokens:
    """What a run's checkpoints say of answers, token by token: each is loaded once, and each answer
    scored once by each.
    """

    def __init__(
        self,
        run: RunFolder,
    ):
        self.run = run
        self._models: dict[int, Any] = {}
        self._scores: dict[tuple[int, str, str], list[float]] = {}
        self._tokenizer: Any = None
        self.prompts = {plain(one["prompt"]): one["prompt"] for one in run.samples}

    @property
    def steps(self) -> list[int]:
        "Of the checkpoints whose weights are whole; those of adapters are not."
        kept = self.run.checkpoints.items()
        return [step for step, path in kept if (path / WEIGHTS).is_file()]

    def score(
        self,
        step: int,  # of a checkpoint
        prompt: str,  # as text
        answer: str,
    ) -> list[tuple[str, float]]:  # token and its log-prob (nats)
        "An answer's tokens under a checkpoint; raises `ConfigError` where it cannot be loaded."
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(str(self.run.folder / "checkpoint"))
        ids = self._tokenizer(answer, add_special_tokens=False)["input_ids"]
        if not ids:
            return []
        key = step, prompt, answer
        if key not in self._scores:
            if step not in self._models:
                path = str(self.run.checkpoints[step])
                with redirect_stdout(StringIO()), no_bars():
                    self._models[step] = load_language_model(path)
            asked = self.prompts[prompt]
            chat = [{"role": "user", "content": asked}] if isinstance(asked, str) else asked
            row = Row(encode_prompts(self._tokenizer, [chat])[0], {"answer": ids})
            pad = self._tokenizer.pad_token_id
            [[found]] = score_tokens(self._models[step], [row], ("answer",), pad or 0)
            self._scores[key] = found
        texts = [self._tokenizer.decode([one]) for one in ids]
        return list(zip(texts, self._scores[key], strict=True))

    def html(
        self,
        prompt: str,  # as text
        answer: str,
        then: int,  # step of the answer that this one is held against
        now: int,  # step of this one
    ) -> str:  # HTML
        "How the log-prob of each token changed between the checkpoints of two steps."
        before, after = (
            max((one for one in self.steps if one <= at), default=self.steps[0])
            for at in (then, now)
        )
        if before == after:
            kept = ", ".join(map(str, self.steps))
            return note(f"No two checkpoints between these steps; there are those of {kept}.")
        old, new = (self.score(at, prompt, answer) for at in (before, after))
        change = [(token, one - other) for (token, one), (_, other) in zip(new, old, strict=True)]
        total = signed(sum(value for _, value in change), 1)
        said = f"log-probs from step {before} to {after} (nats): {total} in all"
        return f"<div>{''.join(_token(*one) for one in change)}</div>{note(said)}"


def _token(text: str, change: float) -> str:
    "A token over the change of its log-prob; blue where it rose, orange where it fell."
    rgb = "0,114,178" if change >= 0 else "213,94,0"
    strength = min(abs(change) / 4, 1) * 0.45
    style = (
        "display:inline-block;vertical-align:top;text-align:center;min-width:1.9em;"
        "padding:0 .15em;margin:0 1px 3px 0;"
        f"background:rgba({rgb},{strength:.2f})"
    )
    shown = escaped(text.strip()) or "␣"
    told = signed(round(change, 1), 1)
    return f'<span style="{style}">{shown}<br><small>{told}</small></span>'


def draw_replay(
    run: RunFolder,
    answers: pd.DataFrame,  # columns prompt, step, answer; those that are shown
    step: int,
    metric: str,  # one of `run.named`
    since: str,  # one of `SINCE`
    tokens: CheckpointTokens | None = None,  # also shows what its checkpoints say of the answers
) -> str:  # HTML
    "Curves and answers of one step."
    curves = picture(draw_run(run, metric, step), f"{run.name}, step {step}")
    return beside(curves, answers_at(answers, step, since, tokens))


def explore_replay(
    run: str | Path | RunFolder,  # the folder of a training stage, or of `train_model`
    prompts: int = PROMPTS,  # how many of the sampled prompts are shown
) -> Explorer:
    "Drag through the steps of a run; raises `DataError` for a folder that holds none."
    found = run if isinstance(run, RunFolder) else read_run_folder(run)
    if not found.named:
        raise DataError(
            f"{found.folder / 'metrics.jsonl'}: no number but steps and times in it. Name the "
            "folder of a run that has logged a loss.",
            field="metrics.jsonl",
            reason="nothing logged",
        )
    answers = sampled_answers(found, prompts)
    steps = sorted(set(found.metrics["step"].astype(int)))
    metrics = tuple(found.named)
    first = "loss" if "loss" in metrics else metrics[0]

    scores = CheckpointTokens(found)

    def draw(step: int, metric: str, since: str = SINCE[0], tokens: bool = False) -> str:
        return draw_replay(found, answers, step, metric, since, scores if tokens else None)

    shown = _beforehand(metrics, first)
    apart = math.gcd(*steps) or 1
    frames = _spread(steps, REPLAY_FRAMES // len(shown))
    controls: dict[str, Control] = {
        "step": Slider(steps[0], steps[-1], steps[-1], apart, frames=frames),
        "metric": Choice(metrics, first, frames=shown),
    }
    if not answers.empty:
        controls["since"] = Choice(SINCE, SINCE[0], "compare answers with", SINCE[:1])
        if len(scores.steps) > 1 and (found.folder / "checkpoint").is_dir():
            label = "log-probs of tokens, from the checkpoints"
            controls["tokens"] = Switch(False, label, (False,))
    return Explorer(draw, f"The run {found.name}, step by step", controls)


def _beforehand(metrics: tuple[str, ...], first: str) -> tuple[str, ...]:
    "Metrics that a page without a kernel shows."
    wanted = ("logratio, chosen and rejected", "logps, chosen and rejected", "reward", "kl_k1")
    return tuple(dict.fromkeys([first, *(one for one in wanted if one in metrics)]))[:3]


def _spread(steps: list[int], most: int) -> tuple[int, ...]:
    "At most so many of the steps, evenly spread, both ends among them."
    if len(steps) <= most:
        return tuple(steps)
    return tuple(steps[round(i * (len(steps) - 1) / (most - 1))] for i in range(most))
