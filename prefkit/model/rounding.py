"""Copies of a model with rounded weights, as servers that only draw answers hold them."""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from prefkit.core import ConfigError

# the largest whole number that a weight is held as
LARGEST = {"int8": 127, "int4": 7}


def round_rows(
    weight: Tensor,  # (outputs, inputs)
    largest: int,  # whole number that a row's largest weight becomes
) -> Tensor:  # the same shape and type
    "Each row as whole multiples of a step of its own; a row of zeros stays one."
    exact = weight.float()  # steps of a bf16 weight are finer than bf16
    step = exact.abs().amax(1, keepdim=True) / largest
    return torch.where(step > 0, (exact / step).round() * step, exact).to(weight.dtype)


def _layers(model) -> Iterator[nn.Linear | Conv1D]:
    "The linear layers of a model without adapters, but for the one that predicts tokens."
    output = model.get_output_embeddings()
    for layer in model.modules():
        if isinstance(layer, (nn.Linear, Conv1D)) and layer is not output:
            yield layer


def check_rounding(
    model,  # a causal language model
    kind: str,  # int8 or int4
):
    """Raise `ConfigError` for a model that keeps weights where they would not be rounded, such as
    experts in one tensor.
    """
    if kind not in LARGEST:
        raise ConfigError(f"sampler: {kind!r} is none of {', '.join(LARGEST)}.", field="sampler")
    stacked = [name for name, weight in model.named_parameters() if weight.dim() > 2]
    if stacked or not any(_layers(model)):
        kept = f" ({stacked[0]})" if stacked else ""
        raise ConfigError(
            f"sampler: {kind} rounds linear layers; this model keeps weights elsewhere{kept}. "
            "Take bf16.",
            field="sampler",
            reason="not all would be rounded",
        )


def rounded_copy(
    model,  # a causal language model, which stays as it is
    kind: str,  # int8 or int4
):
    """The model, adapters merged, with the weights of its linear layers rounded, but for the layer
    that predicts tokens: what a server draws with that holds them in 8 or 4 bits. Raises
    `ConfigError`.
    """
    check_rounding(model, kind)
    drawing = copy.deepcopy(model).eval().requires_grad_(False)
    if hasattr(drawing, "merge_and_unload"):  # a server holds the merged weights
        drawing = drawing.merge_and_unload()
    with torch.no_grad():
        for layer in _layers(drawing):
            if isinstance(layer, Conv1D):  # (inputs, outputs)
                layer.weight.copy_(round_rows(layer.weight.T, LARGEST[kind]).T)
            else:
                layer.weight.copy_(round_rows(layer.weight, LARGEST[kind]))
    return drawing
