"""Distribution records: what a policy does at each state, as a frozen tuple of tensors.

A record can be indexed, detached, concatenated and stored with a batch; old records stay what they
were while the network moves on. ``[*B]`` are batch dimensions (time, environment, ...), the last
dimension of a field belongs to one action. Fields are tensors, or numpy arrays: what is computed from a
record is what its fields are.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch import distributions as td

from klrl.policy.arrays import Array, exp, is_numpy, like, log, log_softmax, one_hot, pick, stack, tensor, where

D = TypeVar("D", bound="Distribution")
Gradient = tuple[Array, ...]
"""Derivative of a number per state by the fields of its record: one tensor per field, in the field's shape."""


class Distribution(abc.ABC):
    """One distribution over actions per state; every field has the shape ``[*B, k]``."""

    @property
    def parameters(self) -> tuple[Array, ...]:
        """The record's arrays, in the order of its fields."""
        return tuple(getattr(self, f.name) for f in fields(self))  # type: ignore[arg-type]

    @property
    def batch_shape(self) -> torch.Size:
        """``[*B]``."""
        return self.parameters[0].shape[:-1]

    def map(self, function: Callable[[Array], Array]) -> Self:
        """The same family with ``function`` applied to every field."""
        return type(self)(*(function(x) for x in self.parameters))

    def __getitem__(self, index: Any) -> Self:
        """Index the batch dimensions."""
        return self.map(lambda x: x[index])

    def detach(self) -> Self:
        """The same numbers, cut from the graph that made them."""
        return self.map(lambda x: x if is_numpy(x) else x.detach())

    def cpu(self) -> Self:
        """The same numbers in the CPU's memory."""
        return self.map(lambda x: x if is_numpy(x) else x.cpu())

    @abc.abstractmethod
    def sample(self, generator: torch.Generator | None = None) -> Array:
        """One action per state."""

    @abc.abstractmethod
    def mode(self) -> Array:
        """The most probable action of every state."""

    @abc.abstractmethod
    def log_prob(self, action: Array) -> Array:
        """Log-probability (density) of one action per state, nats, ``[*B]``."""

    @abc.abstractmethod
    def entropy(self) -> Array:
        """H(p) = -E_p[log p], nats, ``[*B]``; differential entropy for densities."""

    def score(self, action: Array) -> Gradient:
        """Derivative of log p(action) by every field, ``[*B, k]`` each; by autograd unless a family knows it."""
        action = tensor(action)
        return derivative(lambda p: p.log_prob(action), self)

    def entropy_gradient(self) -> Gradient:
        """Derivative of H(p) by every field, ``[*B, k]`` each; by autograd unless a family knows it."""
        return derivative(lambda p: p.entropy(), self)


@dataclass(frozen=True, eq=False)
class Categorical(Distribution):
    """Probabilities softmax(logits) over k actions; an action is an int64 index, ``[*B]``.

    ``logits`` need no normalisation; ``-inf`` is probability zero.
    """

    logits: Array

    def __post_init__(self) -> None:
        _check_floating("logits", self.logits)

    @property
    def log_probs(self) -> Array:
        """Normalised log-probabilities, ``[*B, k]``."""
        return log_softmax(self.logits)

    @property
    def probs(self) -> Array:
        """Probabilities, ``[*B, k]``."""
        return exp(self.log_probs) if is_numpy(self.logits) else torch.softmax(self.logits, dim=-1)

    def sample(self, generator: torch.Generator | None = None) -> Array:
        """Draw by the Gumbel-max trick: argmax of the logits plus Gumbel noise."""
        exponential = noise(self.logits, lambda x: x.exponential_(generator=generator))
        return (self.logits - log(exponential)).argmax(-1)

    def mode(self) -> Array:
        """The index with the largest logit."""
        return self.logits.argmax(-1)

    def log_prob(self, action: Array) -> Array:
        """Log-probability of ``action`` (int64, ``[*B]``)."""
        return pick(self.log_probs, action)

    def entropy(self) -> Array:
        """-sum p log p with 0 log 0 = 0."""
        p, log_p = self.probs, self.log_probs
        return -(p * where(p == 0, 0.0, log_p)).sum(-1)

    def score(self, action: Array) -> Gradient:
        """1[i = action] - p_i."""
        return (one_hot(action, self.logits) - self.probs,)

    def entropy_gradient(self) -> Gradient:
        """-p_i (log p_i + H)."""
        p, log_p, H = self.probs, self.log_probs, self.entropy()
        return (-p * (where(p == 0, 0.0, log_p) + H.reshape(*H.shape, 1)),)


@dataclass(frozen=True, eq=False)
class DiagGaussian(Distribution):
    """Independent normals N(mean_i, exp(log_std_i)^2); an action is a vector ``[*B, d]``."""

    mean: Array
    log_std: Array

    def __post_init__(self) -> None:
        _check_floating("mean", self.mean)
        _check_floating("log_std", self.log_std)
        if self.mean.shape != self.log_std.shape:
            raise ValueError(f"log_std has shape {list(self.log_std.shape)}, the mean {list(self.mean.shape)}")

    @property
    def std(self) -> Array:
        """Standard deviations, ``[*B, d]``."""
        return exp(self.log_std)

    def sample(self, generator: torch.Generator | None = None) -> Array:
        """Mean + std * standard normal noise."""
        return self.mean + self.std * noise(self.mean, lambda x: x.normal_(generator=generator))

    def mode(self) -> Array:
        """The mean."""
        return self.mean

    def log_prob(self, action: Array) -> Array:
        """Log-density of ``action`` (``[*B, d]``), summed over the d dimensions."""
        z = (action - self.mean) / self.std
        return -(0.5 * z * z + self.log_std + 0.5 * math.log(2 * math.pi)).sum(-1)

    def entropy(self) -> Array:
        """sum_i log(std_i) + d/2 log(2 pi e)."""
        return (self.log_std + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)

    def score(self, action: Array) -> Gradient:
        """By the mean z / std, by log_std z^2 - 1, with z = (action - mean) / std."""
        std = self.std
        z = (action - self.mean) / std
        return z / std, z * z - 1.0

    def entropy_gradient(self) -> Gradient:
        """0 by the mean, 1 by log_std."""
        return 0.0 * self.mean, 0.0 * self.log_std + 1.0


def derivative(function: Callable[[D], Tensor], at: D) -> Gradient:
    """Derivative of a function ``[*B]`` of one record of tensors by the fields of ``at``, by autograd."""
    leaves = at.map(lambda x: tensor(x).detach().clone().requires_grad_())
    with torch.enable_grad():
        total = function(leaves).sum()
    if not total.requires_grad:
        return at.map(lambda x: like(torch.zeros_like(tensor(x)), x)).parameters
    gradient = torch.autograd.grad(total, leaves.parameters, materialize_grads=True, allow_unused=True)
    return tuple(like(x, at.parameters[0]) for x in gradient)


def noise(shape_of: Array, fill: Callable[[Tensor], Tensor]) -> Array:
    """Random numbers in the shape, type and place of an array; drawn on the CPU, by torch's generators."""
    if is_numpy(shape_of):
        return fill(torch.from_numpy(np.empty(shape_of.shape, shape_of.dtype))).numpy()
    return fill(torch.empty(shape_of.shape, dtype=shape_of.dtype)).to(shape_of.device)


def stack_records(records: Sequence[D]) -> D:
    """Stack records of one family along a new first dimension, as tensors."""
    columns = zip(*(record.parameters for record in records), strict=True)
    return type(records[0])(*(stack(column) for column in columns))


def as_record(distribution: Distribution | td.Distribution) -> Distribution:
    """Turn a ``torch.distributions`` object into a record; a record passes through.

    Batch and event dimensions keep their meaning: a ``Normal`` has one action dimension per batch
    element, ``Independent(Normal, n)`` makes one action of its last n dimensions (records keep log_std, so a
    float32 scale is rounded once more). A torch ``Categorical`` is read by what it was built from: its logits
    are clamped when it was built from probabilities, and a zero would no longer be a zero.

    Raises:
        TypeError: the family has no record.
    """
    match distribution:
        case Distribution():
            return distribution
        case td.Categorical():
            return _categorical(distribution)
        case td.Normal():
            return DiagGaussian(distribution.loc.unsqueeze(-1), distribution.scale.log().unsqueeze(-1))
        case td.Independent(base_dist=td.Normal() as base, reinterpreted_batch_ndims=n) if n > 0:
            return DiagGaussian(base.loc.flatten(-n), base.scale.log().flatten(-n))
    raise TypeError(
        f"{type(distribution).__name__} has no record; known are Categorical and DiagGaussian, "
        "torch's Categorical, Normal and Independent(Normal, n >= 1)"
    )


def _categorical(distribution: td.Categorical) -> Categorical:
    """By its probabilities if it was made of them; an expanded copy shows that only by its clamped zeros."""
    if distribution._param is not distribution.__dict__.get("probs"):
        tiny = torch.finfo(distribution.logits.dtype).tiny
        clamped = (distribution.probs == 0) & (distribution.logits > math.log(tiny))
        if not clamped.any():
            return Categorical(distribution.logits)
    possible = distribution.probs > 0
    return Categorical(torch.where(possible, distribution.probs, 1.0).log().masked_fill(~possible, -math.inf))


def _check_floating(name: str, x: object) -> None:
    if isinstance(x, Tensor):
        good = x.is_floating_point() and x.ndim >= 1
    else:
        good = isinstance(x, np.ndarray) and x.dtype.kind == "f" and x.ndim >= 1
    if not good:
        got = f"{x.dtype} with {x.ndim} dimensions" if isinstance(x, (Tensor, np.ndarray)) else type(x).__name__
        raise TypeError(f"{name} must be a floating-point tensor [*B, k] with k actions or dimensions, not {got}")
