"""Distribution records: what a policy does at each state, as a frozen tuple of tensors.

A record can be indexed, detached, concatenated and stored with a batch; old records stay what they
were while the network moves on. ``[*B]`` are batch dimensions (time, environment, ...), the last
dimension of a field belongs to one action.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self, TypeVar

import torch
from torch import Tensor
from torch import distributions as td

D = TypeVar("D", bound="Distribution")


class Distribution(abc.ABC):
    """One distribution over actions per state; every field has the shape ``[*B, k]``."""

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """The record's tensors, in the order of its fields."""
        return tuple(getattr(self, f.name) for f in fields(self))  # type: ignore[arg-type]

    @property
    def batch_shape(self) -> torch.Size:
        """``[*B]``."""
        return self.parameters[0].shape[:-1]

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """The same family with ``function`` applied to every tensor."""
        return type(self)(*(function(x) for x in self.parameters))

    def __getitem__(self, index: Any) -> Self:
        """Index the batch dimensions."""
        return self.map(lambda x: x[index])

    def detach(self) -> Self:
        """The same numbers, cut from the graph that made them."""
        return self.map(Tensor.detach)

    @abc.abstractmethod
    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """One action per state."""

    @abc.abstractmethod
    def mode(self) -> Tensor:
        """The most probable action of every state."""

    @abc.abstractmethod
    def log_prob(self, action: Tensor) -> Tensor:
        """Log-probability (density) of one action per state, nats, ``[*B]``."""

    @abc.abstractmethod
    def entropy(self) -> Tensor:
        """H(p) = -E_p[log p], nats, ``[*B]``; differential entropy for densities."""


@dataclass(frozen=True, eq=False)
class Categorical(Distribution):
    """Probabilities softmax(logits) over k actions; an action is an int64 index, ``[*B]``.

    ``logits`` need no normalisation; ``-inf`` is probability zero.
    """

    logits: Tensor

    def __post_init__(self) -> None:
        _check_floating("logits", self.logits)

    @property
    def log_probs(self) -> Tensor:
        """Normalised log-probabilities, ``[*B, k]``."""
        return torch.log_softmax(self.logits, dim=-1)

    @property
    def probs(self) -> Tensor:
        """Probabilities, ``[*B, k]``."""
        return torch.softmax(self.logits, dim=-1)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Draw by the Gumbel-max trick: argmax of the logits plus Gumbel noise."""
        exponential = torch.empty_like(self.logits).exponential_(generator=generator)
        return (self.logits - exponential.log()).argmax(dim=-1)

    def mode(self) -> Tensor:
        """The index with the largest logit."""
        return self.logits.argmax(dim=-1)

    def log_prob(self, action: Tensor) -> Tensor:
        """Log-probability of ``action`` (int64, ``[*B]``)."""
        return self.log_probs.gather(-1, action.unsqueeze(-1)).squeeze(-1)

    def entropy(self) -> Tensor:
        """-sum p log p with 0 log 0 = 0."""
        p, log_p = self.probs, self.log_probs
        return -(p * log_p.masked_fill(p == 0, 0.0)).sum(-1)


@dataclass(frozen=True, eq=False)
class DiagGaussian(Distribution):
    """Independent normals N(mean_i, exp(log_std_i)^2); an action is a vector ``[*B, d]``."""

    mean: Tensor
    log_std: Tensor

    def __post_init__(self) -> None:
        _check_floating("mean", self.mean)
        _check_floating("log_std", self.log_std)
        if self.mean.shape != self.log_std.shape:
            raise ValueError(f"log_std has shape {list(self.log_std.shape)}, the mean {list(self.mean.shape)}")

    @property
    def std(self) -> Tensor:
        """Standard deviations, ``[*B, d]``."""
        return self.log_std.exp()

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Mean + std * standard normal noise."""
        noise = torch.empty_like(self.mean).normal_(generator=generator)
        return self.mean + self.std * noise

    def mode(self) -> Tensor:
        """The mean."""
        return self.mean

    def log_prob(self, action: Tensor) -> Tensor:
        """Log-density of ``action`` (``[*B, d]``), summed over the d dimensions."""
        z = (action - self.mean) / self.std
        return -(0.5 * z.square() + self.log_std + 0.5 * math.log(2 * math.pi)).sum(-1)

    def entropy(self) -> Tensor:
        """sum_i log(std_i) + d/2 log(2 pi e)."""
        return (self.log_std + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)


def stack(records: Sequence[D]) -> D:
    """Stack records of one family along a new first dimension."""
    columns = zip(*(record.parameters for record in records), strict=True)
    return type(records[0])(*(torch.stack(column) for column in columns))


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
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim < 1:
        got = f"{x.dtype} with {x.ndim} dimensions" if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"{name} must be a floating-point tensor [*B, k] with k actions or dimensions, not {got}")
