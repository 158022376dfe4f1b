"""Distributions over finitely many actions: one choice, several choices at once, bits."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from klrl.policy.arrays import A, Array, as_mask, is_numpy, log_softmax, one_hot, pick, softmax, tensor, where
from klrl.policy.distributions.record import Gradient, OfNoise, check_floating, check_supported, noise
from klrl.shown import array


@dataclass(frozen=True, eq=False, repr=False)
class Categorical(OfNoise[A]):
    """Probabilities softmax(logits) over k actions; an action is an int64 index, ``[*B]``.

    ``logits [*B, k]`` need no normalisation; ``-inf`` is probability zero.
    """

    logits: A

    def __post_init__(self) -> None:
        check_floating("logits", self.logits)

    @classmethod
    def masked(cls, logits: A, allowed: Array) -> Self:
        """Give no probability to any but the allowed actions; every state must allow one.

        Args:
            logits: ``[*B, k]``.
            allowed: bool, or 0 and 1, ``[*B, k]``.

        Raises:
            ValueError: a mask of other numbers than 0 and 1.
        """
        mask = as_mask("allowed", allowed)
        return cls(where(mask.numpy() if is_numpy(logits) else mask.to(logits.device), logits, -np.inf))

    @property
    def event_shape(self) -> tuple[int, ...]:
        """The empty shape: an action is one number."""
        return ()

    @property
    def log_probs(self) -> A:
        """Normalised log-probabilities, ``[*B, k]``."""
        return log_softmax(self.logits)

    @property
    def probs(self) -> A:
        """Probabilities, ``[*B, k]``."""
        return softmax(self.logits)

    def draw_noise(self, generator: torch.Generator | None, steps: Sequence[int] = ()) -> A:
        """Gumbel noise, ``[*steps, *B, k]``."""
        return noise(self.logits, lambda x: x.exponential_(generator=generator).log_().neg_(), steps)

    def from_noise(self, noise: A) -> A:
        """The index of the largest sum of logit and noise: the Gumbel-max trick."""
        return (self.logits + noise).argmax(-1)

    def mode(self) -> A:
        """The index with the largest logit."""
        return self.logits.argmax(-1)

    def log_prob(self, action: A) -> A:
        """Log-probability of ``action`` (int64, ``[*B]``)."""
        check_supported(self, action, f"integers 0 to {self.logits.shape[-1] - 1}")
        return self.log_prob_inside(action)

    def log_prob_inside(self, action: A) -> A:
        """:meth:`log_prob` of an index."""
        return pick(self.log_probs, action)

    def supports(self, action: Array) -> Array:
        """True for the numbers from 0 to k - 1."""
        return (action >= 0) & (action < self.logits.shape[-1])

    def entropy(self) -> A:
        """-sum p log p with 0 log 0 = 0."""
        p, log_p = self.probs, self.log_probs
        return -(p * where(p == 0, 0.0, log_p)).sum(-1)

    def score(self, action: A) -> Gradient:
        """1[i = action] - p_i."""
        return (one_hot(action, self.logits) - self.probs,)

    def entropy_gradient(self) -> Gradient:
        """-p_i (log p_i + H)."""
        p, log_p, H = self.probs, self.log_probs, self.entropy()
        return (-p * (where(p == 0, 0.0, log_p) + H.reshape(*H.shape, 1)),)


class Factored(OfNoise[A]):
    """Independent choices, one per head; an action has one number per head, ``[*B, H]``.

    Everything is the sum over the heads of what the :class:`Categorical` of each has.
    """

    @property
    @abc.abstractmethod
    def heads(self) -> Categorical[A]:
        """The choices with batch shape ``[*B, H]``; where heads differ in size, logits of -inf fill the rows."""

    @abc.abstractmethod
    def collect(self, by_heads: Array) -> Array:
        """Convert a derivative by the heads' logits ``[*B, H, k]`` to one by this record's logits."""

    @abc.abstractmethod
    def spread(self, tangent: Array) -> Array:
        """Convert a tangent of this record's logits to one of the heads' logits ``[*B, H, k]``."""

    @abc.abstractmethod
    def from_indices(self, index: A) -> A:
        """Actions, of the heads' choices (int64, ``[*B, H]``)."""

    @abc.abstractmethod
    def to_indices(self, action: A) -> A:
        """The heads' choices in actions."""

    def draw_noise(self, generator: torch.Generator | None, steps: Sequence[int] = ()) -> A:
        """Gumbel noise of every head, ``[*steps, *B, H, k]``."""
        return self.heads.draw_noise(generator, steps)

    def from_noise(self, noise: A) -> A:
        """Each head by the Gumbel-max trick."""
        return self.from_indices(self.heads.from_noise(noise))

    def mode(self) -> A:
        """The largest probability of each head."""
        return self.from_indices(self.heads.mode())

    def log_prob(self, action: A) -> A:
        """Log-probability of ``action [*B, H]``, summed over the heads."""
        check_supported(self, action, self._actions)
        return self.log_prob_inside(action)

    def log_prob_inside(self, action: A) -> A:
        """:meth:`log_prob` of actions that each head has."""
        return self.heads.log_prob_inside(self.to_indices(action)).sum(-1)

    @property
    @abc.abstractmethod
    def _actions(self) -> str:
        """Actions of the heads, in words."""

    def entropy(self) -> A:
        """The sum of the heads' entropies."""
        return self.heads.entropy().sum(-1)

    def score(self, action: A) -> Gradient:
        """1[i = action] - p_i, head by head."""
        return (self.collect(self.heads.score(self.to_indices(action))[0]),)

    def entropy_gradient(self) -> Gradient:
        """-p_i (log p_i + H), head by head."""
        return (self.collect(self.heads.entropy_gradient()[0]),)


@dataclass(frozen=True, eq=False, repr=False)
class MultiCategorical(Factored[A]):
    """One choice per head, as a ``MultiDiscrete`` space has them; an action is int64, ``[*B, H]``.

    ``logits [*B, sum(nvec)]`` has the logits of one head after the other; ``nvec`` says how many each has.
    """

    logits: A
    nvec: tuple[int, ...]

    def __post_init__(self) -> None:
        check_floating("logits", self.logits)
        object.__setattr__(self, "nvec", tuple(int(n) for n in self.nvec))
        if not self.nvec or min(self.nvec) < 1 or sum(self.nvec) != self.logits.shape[-1]:
            raise ValueError(f"nvec = {self.nvec} and {self.logits.shape[-1]} logits; allowed: sizes >= 1 that add up")

    def __repr__(self) -> str:
        return f"MultiCategorical(logits={array(self.logits)}, nvec={self.nvec})"

    @property
    def parameters(self) -> tuple[A, ...]:
        """The logits."""
        return (self.logits,)

    def with_parameters(self, *parameters: A) -> Self:
        """The same heads with other logits."""
        return type(self)(parameters[0], self.nvec)

    @property
    def event_shape(self) -> tuple[int, ...]:
        """One number per head."""
        return (len(self.nvec),)

    @property
    def heads(self) -> Categorical[A]:
        """The logits in one row per head."""
        return Categorical(self._rows(self.logits, -np.inf))

    def collect(self, by_heads: Array) -> Array:
        """Join the rows, without the padding."""
        flat = by_heads.reshape(*by_heads.shape[:-2], by_heads.shape[-2] * by_heads.shape[-1])
        place = _places(self.nvec)
        return flat if place is None else flat[..., like_index(place[1], flat)]

    def spread(self, tangent: Array) -> Array:
        """Split into one row per head."""
        return self._rows(tangent, 0.0)

    def _rows(self, x: Array, fill: float) -> Array:
        place = _places(self.nvec)
        if place is None:
            return x.reshape(*x.shape[:-1], len(self.nvec), -1)
        columns, inside = like_index(place[0], x), like_index(place[2], x)
        return where(inside, x[..., columns], fill)

    def supports(self, action: Array) -> Array:
        """True where every head has the number as an index."""
        sizes = like_index(np.array(self.nvec), action)
        return ((action >= 0) & (action < sizes)).all(-1)

    @property
    def _actions(self) -> str:
        return f"integers from 0 on, smaller than {list(self.nvec)}"

    def from_indices(self, index: A) -> A:
        """The same numbers."""
        return index

    def to_indices(self, action: A) -> A:
        """The same numbers."""
        return action


@lru_cache(maxsize=64)
def _places(nvec: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Return, for heads of different sizes, each element's column, each column's place, and the mask of no padding.

    ``None`` where the rows are the columns in their order.
    """
    k, starts = max(nvec), np.cumsum([0, *nvec[:-1]])
    if min(nvec) == k:
        return None
    inside = np.arange(k) < np.array(nvec)[:, None]
    columns = np.where(inside, starts[:, None] + np.arange(k), 0)
    return columns, np.flatnonzero(inside), inside


def like_index(x: np.ndarray, other: Array) -> Array:
    """Move an index or mask to the device of another array."""
    return x if is_numpy(other) else tensor(x).to(other.device)


@dataclass(frozen=True, eq=False, repr=False)
class Bernoulli(Factored[A]):
    """Independent bits, each 1 with probability sigmoid(logits); an action is floats of 0 and 1, ``[*B, k]``.

    ``logits [*B, k]`` may be infinite: a bit that is never, or always, 1.
    """

    logits: A

    def __post_init__(self) -> None:
        check_floating("logits", self.logits)

    @property
    def probs(self) -> A:
        """Probabilities of a 1, ``[*B, k]``."""
        return self.heads.probs[..., 1]

    @property
    def heads(self) -> Categorical[A]:
        """Choices between 0 and 1 with logits (0, l), or (-l, 0) where l > 0, so that an infinite l is one, too."""
        likely = self.logits > 0.0
        return Categorical(_pair(where(likely, -self.logits, 0.0), where(likely, 0.0, self.logits)))

    def collect(self, by_heads: Array) -> Array:
        """Return the difference of the two logits' derivatives, which add up to 0."""
        return by_heads[..., 1]

    def spread(self, tangent: Array) -> Array:
        """Treat the logits as (0, l)."""
        return _pair(0.0 * tangent, tangent)

    def supports(self, action: Array) -> Array:
        """True where every number is 0 or 1."""
        return ((action == 0) | (action == 1)).all(-1)

    @property
    def _actions(self) -> str:
        return "0 and 1"

    def from_indices(self, index: A) -> A:
        """The actions as floats."""
        dtype: Any = self.logits.dtype
        return index.to(dtype) if isinstance(index, Tensor) else index.astype(dtype)

    def to_indices(self, action: A) -> A:
        """The actions as integers."""
        return action.long() if isinstance(action, Tensor) else action.astype(np.int64)


def _pair(x: Array, y: Array) -> Array:
    return np.stack([x, y], -1) if is_numpy(x) else torch.stack([x, y], -1)
