"""What losses may ask for: a class for each kind of data, whose fields are the names of arguments.

A loss gets those that it names; what a method watches reads all of them.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self

import torch
from torch import Tensor


def of_shape(
    *shape: str,  # rows, answers, prompts, samples (k, to a prompt), longest (tokens of an answer)
    dtype: torch.dtype = torch.float32,
    asked: bool = True,  # False: a loss may not ask for it, it is watched only
) -> Any:
    "A field with a tensor of this shape, None where method or data have none."
    return field(default=None, metadata={"shape": shape, "dtype": dtype, "asked": asked})


@dataclass
class LossInputs:
    "Tensors by the names that losses give them."

    # what further answers and a method of one's own bring along, by name: to be watched
    others: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def names(cls) -> tuple[str, ...]:
        "What a loss may ask for."
        return tuple(f.name for f in fields(cls) if f.metadata.get("asked"))

    @classmethod
    def of(cls, known: Mapping[str, Tensor | None]) -> Self:
        "From tensors by name."
        own = {f.name for f in fields(cls) if f.metadata}
        others = {name: x for name, x in known.items() if name not in own and x is not None}
        return cls(others, **{name: x for name, x in known.items() if name in own})

    @classmethod
    def trial(cls, **sizes: int) -> Self:
        "Ones of the right shapes, to call a loss with before there are any data."
        made = {}
        for f in fields(cls):
            if f.metadata:
                shape = [sizes[name] for name in f.metadata["shape"]]
                made[f.name] = torch.ones(shape, dtype=f.metadata["dtype"])
        return cls({}, **made)

    def asked(self, names: Iterable[str]) -> dict[str, Tensor]:
        "What a loss is called with."
        return {name: getattr(self, name) for name in names}

    def detach(self) -> Self:
        "The same without a gradient."
        held = {f.name: getattr(self, f.name) for f in fields(self) if f.metadata}
        known = {name: x.detach() for name, x in held.items() if x is not None}
        return type(self)({name: x.detach() for name, x in self.others.items()}, **known)


# log-probs are sums over an answer's learned tokens, lengths their number


@dataclass
class SftInputs(LossInputs):
    "Of single answers that are imitated."

    policy_logps: Tensor = of_shape("rows")
    ref_logps: Tensor = of_shape("rows")
    lengths: Tensor = of_shape("rows", dtype=torch.int64)


@dataclass
class PairInputs(LossInputs):
    "Of pairs."

    policy_chosen_logps: Tensor = of_shape("rows")
    policy_rejected_logps: Tensor = of_shape("rows")
    ref_chosen_logps: Tensor = of_shape("rows")
    ref_rejected_logps: Tensor = of_shape("rows")
    chosen_lengths: Tensor = of_shape("rows", dtype=torch.int64)
    rejected_lengths: Tensor = of_shape("rows", dtype=torch.int64)
    explore_logps: Tensor = of_shape("rows")  # of the policy, of a sample of the reference
    ref_explore_logps: Tensor = of_shape("rows", asked=False)
    chosen_rewards: Tensor = of_shape("rows")  # of a model with a scalar head
    rejected_rewards: Tensor = of_shape("rows")


@dataclass
class BinaryInputs(LossInputs):
    "Of single answers with a label or a reward."

    policy_logps: Tensor = of_shape("rows")
    ref_logps: Tensor = of_shape("rows")
    behaviour_logps: Tensor = of_shape("rows")  # of whoever wrote the answers; else the reference
    desirable: Tensor = of_shape("rows", dtype=torch.bool)
    rewards: Tensor = of_shape("rows")
    kl: Tensor = of_shape()  # KTO's z0, nats, at least 0, without gradient
    lengths: Tensor = of_shape("rows", dtype=torch.int64)


@dataclass
class SampleInputs(LossInputs):
    "Of prompts with k sampled answers each; answers are numbered sample * prompts + prompt."

    # (prompts,) of the demonstrations where there are some
    policy_logps: Tensor = of_shape("answers")
    old_logps: Tensor = of_shape("answers")  # as they were drawn, as are old_token_logps
    behaviour_logps: Tensor = of_shape("answers")  # the same
    asked_logps: Tensor = of_shape("answers")  # of the policy itself then, at temperature 1
    ref_logps: Tensor = of_shape("answers")
    rewards: Tensor = of_shape("answers")
    # (prompts,) of the demonstrations where there are some
    lengths: Tensor = of_shape("answers", dtype=torch.int64)
    advantages: Tensor = of_shape("answers")  # PPO's: (answers, longest)
    token_logps: Tensor = of_shape("answers", "longest")
    old_token_logps: Tensor = of_shape("answers", "longest")
    ref_token_logps: Tensor = of_shape("answers", "longest")
    mask: Tensor = of_shape("answers", "longest", dtype=torch.bool)  # where there is a token
    values: Tensor = of_shape("answers", "longest")  # of the value head
    old_values: Tensor = of_shape("answers", "longest")
    returns: Tensor = of_shape("answers", "longest")
    policy_chosen_logps: Tensor = of_shape("prompts")
    policy_rejected_logps: Tensor = of_shape("prompts")
    ref_chosen_logps: Tensor = of_shape("prompts")
    ref_rejected_logps: Tensor = of_shape("prompts")
    explore_logps: Tensor = of_shape("prompts")  # of the answer that the reference wrote
    # of the samples, beside demonstrations
    sampled_logps: Tensor = of_shape("prompts", "samples")
    sampled_lengths: Tensor = of_shape("prompts", "samples", dtype=torch.int64)
    round: Tensor = of_shape(dtype=torch.int64)  # its number, from 0
    weights: Tensor = of_shape("answers")  # of each answer in the mean, made by the method
    mean_length: Tensor = of_shape("answers")  # of the round's answers that count, tokens
    longest: Tensor = of_shape("answers")  # most tokens that an answer may have


INPUTS: dict[str, type[LossInputs]] = {  # by the kind of data
    "sft": SftInputs,
    "pairs": PairInputs,
    "binary": BinaryInputs,
    "prompts": SampleInputs,
}
FROM_REFERENCE = ("behaviour_logps", "kl")  # that need it, besides ref_...
