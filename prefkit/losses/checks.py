"""What every loss asks of its tensors before it computes.

A loss takes several tensors of shape (batch,). Broadcasting makes a (batch, 1) among them
dangerous, as the lesson on DPO shows. Only shapes are looked at, never the values: reading one
would make the processor wait for the GPU at every step.
"""

import torch
from torch import Tensor

__all__ = ["check_batch"]


def check_batch(
    **tensors: Tensor | None,  # by name; `None` is passed over
) -> torch.dtype:  # the float type to compute in: the widest among the tensors, at least float32
    "Raise `ValueError` unless all tensors have one shape (batch,)."
    given = {name: x for name, x in tensors.items() if x is not None}
    first, shape = next((name, x.shape) for name, x in given.items())
    dtype = torch.float32
    for name, x in given.items():
        if x.dim() != 1:
            raise ValueError(
                f"{name} must have shape (batch,), one number per example, not {tuple(x.shape)}"
            )
        if x.shape != shape:
            raise ValueError(f"{name} has {len(x)} examples but {first} has {shape[0]}")
        if x.is_floating_point():
            dtype = torch.promote_types(dtype, x.dtype)
    return dtype
