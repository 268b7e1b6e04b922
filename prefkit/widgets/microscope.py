"""A pair under the microscope: the log-prob of each token under two models, which tokens count, and
the margin that a loss is made of.
"""

from dataclasses import dataclass

import numpy as np
import torch

from prefkit.core import ConfigError, DataError
from prefkit.data.chat import encode_response, pad_batch
from prefkit.losses import dpo_loss
from prefkit.model.logps import token_logps
from prefkit.report.curves import SIDES
from prefkit.report.words import signed
from prefkit.widgets.pieces import beside, escaped
from prefkit.widgets.typed import cached_model, cached_tokenizer, read_typed, token_text
from prefkit.widgets.view import Explorer, Slider, Words

__all__ = ["PairTokens", "ScoredAnswer", "draw_microscope", "explore_microscope", "score_pair"]

EXAMPLE_PAIRS = (
    "user: Tell me where the lion lives.\n"
    "chosen: Of course! The lion lives in the swamp.\n"
    "rejected: In the swamp.",
    "user: What colour is the fox?\nchosen: The fox is red.\nrejected: The fox is blue.",
    "user: What colour is the fox?\n"
    "chosen: The fox is red.\n"
    "rejected: I am an AI model. Confidence: 95%.",
)
_FULL = 3.0  # nats at which a colour is strongest


@dataclass(frozen=True)
class ScoredAnswer:
    "One answer's tokens and what each model makes of them."

    tokens: tuple[str, ...]  # the end of the turn included
    policy: np.ndarray  # (tokens,) log-probs, nats
    reference: np.ndarray  # (tokens,)

    @property
    def logratio(self) -> float:
        "What the answer has gained, nats."
        return float((self.policy - self.reference).sum())


@dataclass(frozen=True)
class PairTokens:
    "A prompt, whose tokens do not count, and its two answers."

    prompt: tuple[str, ...]
    chosen: ScoredAnswer
    rejected: ScoredAnswer

    @property
    def margin(self) -> float:
        "Log-ratio of the chosen answer less that of the rejected one, nats."
        return self.chosen.logratio - self.rejected.logratio


def _messages(text: str) -> tuple[list[dict], dict[str, list[dict]]]:
    "The prompt's messages and each answer; raises `DataError`."
    turns = read_typed(text, ("system", "user", "assistant", *SIDES))
    prompt = [{"role": role, "content": words} for role, words in turns if role not in SIDES]
    answers = {
        side: [{"role": "assistant", "content": words} for role, words in turns if role == side]
        for side in SIDES
    }
    if not prompt or any(len(answer) != 1 for answer in answers.values()):
        raise DataError(
            "text: a pair is a prompt ('user: ...') with one 'chosen: ...' and one "
            "'rejected: ...'.",
            field="text",
            reason="not a pair",
        )
    return prompt, answers


def score_pair(
    text: str,  # a typed pair: lines that begin with user:, chosen: and rejected:
    policy: str,  # a model, as `prefkit.model.loading.load_model` takes it
    reference: str,  # another with the same tokenizer
) -> PairTokens:
    "Log-probs of each token of both answers; raises `DataError` and `ConfigError`."
    prompt, answers = _messages(text)
    tokenizer = cached_tokenizer(policy)
    encoded = [encode_response(tokenizer, prompt, answers[side]) for side in SIDES]
    others = cached_tokenizer(reference)
    if [encode_response(others, prompt, answers[side]) for side in SIDES] != encoded:
        raise ConfigError(
            f"reference: {reference} reads this pair as other tokens than {policy}, so that their "
            "log-probs cannot be compared. Give two models with one tokenizer and template.",
            field="reference",
            reason="another tokenizer",
        )
    prompts, responses = [one[0] for one in encoded], [one[1] for one in encoded]
    batch = pad_batch(prompts, responses, tokenizer.pad_token_id or 0)
    scores = {}
    for name in (policy, reference):
        with torch.inference_mode():
            inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
            logits = cached_model(name)(**inputs).logits
            scores[name] = token_logps(logits, batch["labels"])
    counted = batch["labels"][:, 1:] != -100
    scored = []
    for row, ids in enumerate(responses):
        here = [scores[name][row][counted[row]].numpy() for name in (policy, reference)]
        scored.append(ScoredAnswer(tuple(token_text(tokenizer, one) for one in ids), *here))
    return PairTokens(tuple(token_text(tokenizer, one) for one in prompts[0]), *scored)


def draw_microscope(
    text: str,  # a typed pair: lines that begin with user:, chosen: and rejected:
    policy: str,  # a model's folder or name
    reference: str,  # another with the same tokenizer
    beta: float,  # of the DPO loss below the tables
) -> str:  # HTML
    "Tables of both answers' tokens, coloured by log-ratio, with their sums."
    pair = score_pair(text, policy, reference)
    margin = torch.tensor([pair.margin], dtype=torch.float64)
    zero = torch.zeros_like(margin)
    loss = dpo_loss(margin, zero, zero, zero, beta=beta).item()
    boxes = "".join(_box(token) for token in pair.prompt)
    prompt = (
        f'<div style="margin:.3em 0;line-height:1.8"><strong>Prompt</strong>, {len(pair.prompt)} '
        f"tokens, masked: {boxes}</div>"
    )
    told = (
        f"<p><strong>Margin {signed(pair.margin)} nats</strong> ({signed(pair.chosen.logratio)}"
        f" less {signed(pair.rejected.logratio)}). DPO's loss at beta {beta:.3g}: {loss:.3f}, "
        f"where both models alike give {np.log(2):.3f}.</p>"
    )
    tables = beside(*(_answer_table(side, getattr(pair, side)) for side in SIDES))
    return f"<div>{prompt}{tables}{told}</div>"


_CELL = "padding:.1em .5em;text-align:right;font-variant-numeric:tabular-nums"


def _box(token: str) -> str:
    style = "border:1px solid #ccc;border-radius:3px;padding:0 2px;margin:1px;opacity:.75"
    return (
        f'<span style="{style};display:inline-block;font-family:monospace">{escaped(token)}</span>'
    )


def _answer_table(side: str, answer: ScoredAnswer) -> str:
    rows = "".join(
        _row(*one) for one in zip(answer.tokens, answer.policy, answer.reference, strict=True)
    )
    sums = answer.policy.sum(), answer.reference.sum(), answer.logratio
    count = len(answer.tokens)
    foot = _foot(f"sum of {count}", sums) + _foot("per token", [one / count for one in sums])
    head = "".join(
        f'<th scope="col" style="{_CELL}">{one}</th>'
        for one in ("token", "policy", "reference", "log-ratio")
    )
    return (
        f'<div style="overflow-x:auto"><table style="border-collapse:collapse">'
        f'<caption style="text-align:left;font-weight:bold">{side} answer (nats)</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody><tfoot>{foot}</tfoot></table></div>"
    )


def _row(token: str, policy: float, reference: float) -> str:
    "A token; blue where the policy gives it more than the reference, orange where less."
    change = policy - reference
    rgb = "0,114,178" if change >= 0 else "213,94,0"
    tint = f"background:rgba({rgb},{min(abs(change) / _FULL, 1) * 0.45:.2f})"
    cells = "".join(f'<td style="{_CELL}">{_two(value)}</td>' for value in (policy, reference))
    name = f'<th scope="row" style="{_CELL};font-family:monospace;{tint}">{escaped(token)}</th>'
    return f'<tr>{name}{cells}<td style="{_CELL};{tint}">{signed(change)}</td></tr>'


def _two(value: float) -> str:
    "A log-prob with two decimals; what rounds to 0 has no sign."
    return f"{round(float(value), 2) + 0.0:.2f}".replace("-", "−")


def _foot(name: str, values) -> str:
    cells = "".join(f'<td style="{_CELL}">{_two(one)}</td>' for one in values[:2])
    line = "border-top:1px solid #888" if name.startswith("sum") else ""
    return (
        f'<tr style="font-weight:bold;{line}"><th scope="row" style="{_CELL}">{name}</th>{cells}'
        f'<td style="{_CELL}">{signed(values[2])}</td></tr>'
    )


def explore_microscope(
    policy: str = "data/tiny/instruct",  # a model's folder or name
    reference: str = "data/tiny/base",  # another with the same tokenizer
    text: str = EXAMPLE_PAIRS[0],  # a typed pair
) -> Explorer:
    "A pair's log-probs, token by token, under two models."
    drawn = tuple(dict.fromkeys((text, *EXAMPLE_PAIRS)))
    controls = {
        "text": Words(text, 4, "a pair", frames=drawn),
        "policy": Words(policy),
        "reference": Words(reference),
        "beta": Slider(0.01, 2.0, 0.1, log=True, frames=(0.1, 0.5)),
    }
    return Explorer(draw_microscope, "Log-probs of a pair, token by token", controls)
