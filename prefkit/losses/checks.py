"""What every loss asks of its tensors before it computes.

A loss takes several tensors of one shape. Broadcasting makes a (batch, 1) among them
dangerous, as the lesson on DPO shows. Only shapes are looked at, never the values: reading one
would make the processor wait for the GPU at every step.
"""

import torch
from torch import Tensor

__all__ = ["check_batch", "check_tokens"]


def check_batch(
    **tensors: Tensor | None,  # by name; `None` is passed over
) -> torch.dtype:  # the float type to compute in: the widest among the tensors, at least float32
    "Raise `ValueError` unless all tensors have one shape (batch,)."
    given = {name: x for name, x in tensors.items() if x is not None}
    apart = "{} has {x[0]} examples but {} has {first[0]}"
    return _one_shape(given, 1, "(batch,), one number per example", apart)


def check_tokens(
    **tensors: Tensor,  # by name
) -> torch.dtype:  # the float type to compute in: the widest among the tensors, at least float32
    "Raise `ValueError` unless all tensors have one shape (batch, length). Reads shapes only."
    apart = "{} has shape {x} but {} has {first}"
    return _one_shape(tensors, 2, "(batch, length), one number per token", apart)


def _one_shape(tensors: dict[str, Tensor], dims: int, wanted: str, apart: str) -> torch.dtype:
    first, shape = next((name, tuple(x.shape)) for name, x in tensors.items())
    dtype = torch.float32
    for name, x in tensors.items():
        if x.dim() != dims:
            raise ValueError(f"{name} must have shape {wanted}, not {tuple(x.shape)}")
        if x.shape != shape:
            raise ValueError(apart.format(name, first, x=tuple(x.shape), first=shape))
        if x.is_floating_point():
            dtype = torch.promote_types(dtype, x.dtype)
    return dtype
