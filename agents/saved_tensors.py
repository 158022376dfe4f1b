"""Checks of saved tensors before they are used: types, shapes and ranges."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Tensors = dict[str, Tensor]
MOST = 2**53
"""Largest count: up to here every integer is exact as a float."""


def check_tensors(saved: Tensors, new: Tensors) -> None:
    """Refuse tensors that differ in name, type or shape from those of a new agent with the same spaces and settings.

    Raises:
        ValueError: naming the tensor.
    """
    for name, x in new.items():
        if name == "normalizer.fixed_scale":  # learned from a first batch, and not always saved
            continue
        if name not in saved:
            raise ValueError(f"no tensor {name}; allowed: every one that a new agent has")
        if name != "return_scaler.running":  # one per environment, and their number may differ
            check_tensor(name, saved[name], x.dtype, x.shape)
    check_tensor("return_scaler.running", running := saved["return_scaler.running"], torch.float64, running.shape[:1])
    check_finite("return_scaler.running", running)
    for name in (name for name in new if name.startswith("optimizer.")):
        check_finite(name, saved[name], least=None if name.endswith(".exp_avg") else 0.0)


def check_tensor(name: str, x: Tensor, dtype: torch.dtype, shape: Sequence[int]) -> None:
    """Refuse another type or shape.

    Raises:
        ValueError: naming the tensor.
    """
    if (x.dtype, tuple(x.shape)) != (dtype, tuple(shape)):
        raise ValueError(f"{name} is {x.dtype} {[*x.shape]}; allowed: {dtype} {[*shape]}")


def check_finite(name: str, x: Tensor, least: float | None = None) -> None:
    """Refuse NaN, infinity, and numbers below the least one.

    Raises:
        ValueError: naming the tensor and the number.
    """
    good = x.isfinite() if least is None else x.isfinite() & (x >= least)
    if not good.all():
        allowed = "finite numbers" if least is None else f"finite numbers >= {least:g}"
        raise ValueError(f"{name} has {x[~good].flatten()[0].item()}; allowed: {allowed}")
