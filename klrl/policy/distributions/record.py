"""Base of all distribution records."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from klrl.policy.arrays import A, Array, concatenate, is_numpy, like, stack, tensor
from klrl.shown import array

D = TypeVar("D", bound="Distribution[Any]")
P = ParamSpec("P")
Gradient = tuple[Array, ...]
"""Derivative of a number per state by the fields of its record: one tensor per field, in the field's shape."""


SHORT = {torch.float16, torch.bfloat16}
"""Types of float in which a sum over many actions is wrong in its first digits."""


class NoClosedForm(TypeError):
    """The quantity has no closed form; the message names the estimator to use."""


class Distribution(abc.ABC, Generic[A]):
    """One distribution over actions per state, as a frozen record of tensors or of numpy arrays.

    Every field has the shape ``[*B, *k]``: batch dimensions, then those of one action.
    """

    def __repr__(self) -> str:
        """The family with its arrays, as numbers where these are few."""
        arrays = ", ".join(f"{name}={array(x)}" for name, x in zip(self.__match_args__, self.parameters, strict=False))  # type: ignore[attr-defined]
        return f"{type(self).__name__}({arrays})"

    @property
    def parameters(self) -> tuple[A, ...]:
        """The record's arrays, in the order of its fields."""
        return tuple([getattr(self, name) for name in self.__match_args__])  # type: ignore[attr-defined]

    def with_parameters(self, *parameters: A) -> Self:
        """The same family with other arrays."""
        return type(self)(*parameters)

    @property
    def batch_shape(self) -> torch.Size:
        """``[*B]``."""
        shape: Any = self.parameters[0].shape
        return shape[:-1]

    @property
    def event_shape(self) -> tuple[int, ...]:
        """The shape of one action."""
        return (self.parameters[0].shape[-1],)

    def map(self, function: Callable[[A], A]) -> Self:
        """The same family with ``function`` applied to every field."""
        return self.with_parameters(*(function(x) for x in self.parameters))

    def __getitem__(self, index: Any) -> Self:
        """Index the batch dimensions."""
        return self.map(lambda x: x[index])

    def detach(self) -> Self:
        """The same numbers, cut from the graph that made them."""
        return self.map(lambda x: x.detach() if isinstance(x, Tensor) else x)

    def cpu(self) -> Self:
        """The same numbers in the CPU's memory."""
        return self.map(lambda x: x.cpu() if isinstance(x, Tensor) else x)

    @abc.abstractmethod
    def sample(self, generator: torch.Generator | None = None) -> A:
        """One action per state."""

    @abc.abstractmethod
    def mode(self) -> A:
        """The most probable action of every state."""

    @abc.abstractmethod
    def log_prob(self, action: A) -> A:
        """Log-probability (density) of one action per state, nats, ``[*B]``.

        Raises:
            ValueError: what is no action of the family, such as a number outside of a Beta's interval.
        """

    def log_prob_inside(self, action: A) -> A:
        """:meth:`log_prob` of actions of the family, as samples are: nothing looks whether they are."""
        return self.log_prob(action)

    def supports(self, action: Array) -> Array:
        """Mask of what is an action of the family, bool ``[*B]``; every vector is one unless the family says less."""
        shape = action.shape[: len(action.shape) - len(self.event_shape)]
        return np.ones(shape, bool) if is_numpy(action) else action.new_ones(shape, dtype=torch.bool)

    @abc.abstractmethod
    def entropy(self) -> A:
        """H(p) = -E_p[log p], nats, ``[*B]``; differential entropy for densities."""

    def score(self, action: A) -> Gradient:
        """Derivative of log p(action) by every field; by autograd unless a family knows it."""
        at: Distribution[Any] = self
        actions = tensor(action)
        return derivative(lambda p: p.log_prob_inside(actions), at)

    def entropy_gradient(self) -> Gradient:
        """Derivative of H(p) by every field; by autograd unless a family knows it."""
        at: Distribution[Any] = self
        return derivative(lambda p: p.entropy(), at)


class OfNoise(Distribution[A]):
    """A distribution whose actions are a function of noise that no parameter changes, so that it can be drawn ahead."""

    @abc.abstractmethod
    def draw_noise(self, generator: torch.Generator | None, steps: Sequence[int] = ()) -> A:
        """Draw noise for one action per state, ``[*steps, *B, ...]``: for this policy, or for each of so many."""

    @abc.abstractmethod
    def from_noise(self, noise: A) -> A:
        """One action per state, given its noise ``[*B, ...]``."""

    def sample(self, generator: torch.Generator | None = None) -> A:
        """One action per state."""
        return self.from_noise(self.draw_noise(generator))


def widened(record: D) -> D:
    """Return a record of half-precision numbers in float32, any other one as it is."""
    if tensor(record.parameters[0]).dtype not in SHORT:
        return record
    return record.map(lambda x: x.astype(np.float32) if is_numpy(x) else x.float())


def check_supported(policy: Distribution[A], action: A, allowed: str) -> None:
    """Refuse what is no action of the family.

    Raises:
        ValueError: the message shows the first of them and what is allowed.
    """
    supported = policy.supports(action)
    if not supported.all():
        first = np.asarray(tensor(action).cpu())[~np.asarray(tensor(supported).cpu())][0]
        raise ValueError(f"action = {first.tolist()}; allowed: {allowed}")


def on_tensors(method: Callable[Concatenate[Any, P], Tensor]) -> Callable[Concatenate[Distribution[A], P], A]:
    """A record's method that is written for tensors, for numpy arrays too."""
    of_tensors: Callable[..., Tensor] = method

    @wraps(method)
    def either(self: Any, *args: Any) -> Array:
        if not is_numpy(self.parameters[0]):
            return of_tensors(self, *args)
        numbers = [tensor(x) if isinstance(x, np.ndarray) else x for x in args]
        return like(of_tensors(self.map(tensor), *numbers), self.parameters[0])

    return cast("Callable[Concatenate[Distribution[A], P], A]", either)


def derivative(function: Callable[[D], Tensor], at: D) -> Gradient:
    """Derivative of a function ``[*B]`` of one record of tensors by the fields of ``at``, by autograd."""
    leaves = at.map(lambda x: tensor(x).detach().clone().requires_grad_())
    with torch.enable_grad():
        total = function(leaves).sum()
    if not total.requires_grad:
        return at.map(lambda x: like(torch.zeros_like(tensor(x)), x)).parameters
    gradient = torch.autograd.grad(total, leaves.parameters, materialize_grads=True, allow_unused=True)
    return tuple(like(x.detach(), at.parameters[0]) for x in gradient)  # torch 2.6 makes zeros that are leaves


def noise(shape_of: Array, fill: Callable[[Tensor], Tensor], steps: Sequence[int] = ()) -> Array:
    """Return random numbers ``[*steps, ...]`` in the shape, type and device of an array.

    They are drawn on the CPU, by torch's generators.
    """
    shape = (*steps, *shape_of.shape)
    if is_numpy(shape_of):
        return fill(torch.from_numpy(np.empty(shape, shape_of.dtype))).numpy()
    return fill(torch.empty(shape, dtype=shape_of.dtype, device="cpu")).to(shape_of.device)


def stack_records(records: Sequence[D]) -> D:
    """Stack records of one family along a new first dimension, as tensors."""
    columns = zip(*(record.parameters for record in records), strict=True)
    return records[0].with_parameters(*(stack(column) for column in columns))


def concatenate_records(records: Sequence[D]) -> D:
    """Put records of one family one after the other, along the first dimension."""
    if len(records) == 1:
        return records[0]
    columns = zip(*(record.parameters for record in records), strict=True)
    return records[0].with_parameters(*(concatenate(column) for column in columns))


def check_floating(name: str, x: object, ndim: int = 1) -> None:
    """Refuse a field that is no floating-point array with the dimensions of one action.

    Raises:
        TypeError: the message names the field and the arrays allowed.
    """
    if isinstance(x, Tensor):
        good = x.is_floating_point() and x.ndim >= ndim
    else:
        good = isinstance(x, np.ndarray) and x.dtype.kind == "f" and x.ndim >= ndim
    if not good:
        got = f"{x.dtype} with {x.ndim} dimensions" if isinstance(x, (Tensor, np.ndarray)) else type(x).__name__
        shape = ["[*B, k] with k actions or dimensions", "[*B, d, d] or [*B, K, d]"][ndim - 1]
        raise TypeError(f"{name} must be a floating-point tensor {shape}, not {got}")
