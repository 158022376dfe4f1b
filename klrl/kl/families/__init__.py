"""Closed forms, family by family; :func:`matched` finds the family that two distributions share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch import distributions as td

from klrl.kl.families.beta import BetaFamily
from klrl.kl.families.bijections import are_bijections
from klrl.kl.families.categorical import CategoricalFamily, FactoredFamily
from klrl.kl.families.family import Family, no_closed_form
from klrl.kl.families.gaussian import DiagGaussianFamily, FullGaussianFamily, SquashedGaussianFamily
from klrl.policy.arrays import A, tensor
from klrl.policy.distributions import (
    SHORT,
    Bernoulli,
    Beta,
    Categorical,
    DiagGaussian,
    Distribution,
    FullGaussian,
    MultiCategorical,
    SquashedGaussian,
    as_record,
    widened,
)

AnyDistribution = Distribution[A] | td.Distribution

_FAMILIES: dict[type[Distribution], Family[Any]] = {
    Categorical: CategoricalFamily(),
    MultiCategorical: FactoredFamily(),
    Bernoulli: FactoredFamily(),
    DiagGaussian: DiagGaussianFamily(),
    SquashedGaussian: SquashedGaussianFamily(),
    FullGaussian: FullGaussianFamily(),
    Beta: BetaFamily(),
}


class Matched(NamedTuple):
    """Two records of one family, with its closed forms."""

    family: Family[Any]
    p: Any
    q: Any
    dtype: torch.dtype
    """Type of results: that of the distributions before ``torch.distributions`` objects were read, at least float32."""


def family_of(record: Distribution[Any]) -> Family[Any] | None:
    """Look up a record's family; ``None`` where there is none."""
    return _FAMILIES.get(type(record))


def matched(p: AnyDistribution[Any], q: AnyDistribution[Any], what: str = "KL", *, invariant: bool = True) -> Matched:
    """The family that p and q share, and both as records.

    A diagonal normal next to one with a full covariance is converted to that. The numbers of float32 objects of
    ``torch.distributions`` are read in float64: a record has logarithms of them, whose rounding would show in a KL
    of 1e-8. Where both are torch's ``TransformedDistribution`` by the same bijections, their bases stand for
    them if the quantity is ``invariant``, as every divergence is that compares probabilities alone.

    Raises:
        NoClosedForm: different families, or a family without closed forms.
        ValueError: different numbers of actions or action dimensions.
    """
    if invariant:
        p, q = before_bijections(p, q)
    (a, dtype), (b, other) = read(p), read(q)
    if {type(a), type(b)} == {DiagGaussian, FullGaussian}:
        a, b = _full(a), _full(b)
    family = family_of(a)
    if family is None or type(a) is not type(b):
        raise no_closed_form(what, a, b)
    n, m = (x.nvec if isinstance(x, MultiCategorical) else x.parameters[0].shape[-1] for x in (a, b))
    if n != m:
        raise ValueError(f"p has {n} actions or action dimensions, q has {m}; they must agree")
    if a.batch_shape != b.batch_shape:
        broadcast(a.batch_shape, b.batch_shape)
    return Matched(family, a, b, dtype if dtype is other else torch.promote_types(dtype, other))


def broadcast(p: Sequence[int], q: Sequence[int]) -> torch.Size:
    """Return the common batch shape.

    Raises:
        ValueError: they do not broadcast.
    """
    try:
        return torch.broadcast_shapes(tuple(p), tuple(q))
    except RuntimeError as error:
        shapes = f"{list(p)} and {list(q)}"
        raise ValueError(f"p and q have batch shapes {shapes}; allowed: shapes that broadcast") from error


def read(x: AnyDistribution[Any]) -> tuple[Distribution, torch.dtype]:
    """Read a distribution as a record, and the type of results: that of its numbers, float32 for shorter ones."""
    if isinstance(x, Distribution):
        first = x.parameters[0]
        dtype = first.dtype if isinstance(first, Tensor) else tensor(first).dtype
        return (x, dtype) if dtype not in SHORT else (widened(x), torch.float32)
    dtypes: list[torch.dtype] = []

    def in_float64(numbers: Tensor) -> Tensor:
        dtypes.append(numbers.dtype)
        return numbers.double()

    return as_record(x, in_float64), torch.float32 if dtypes[0] in SHORT else dtypes[0]


def before_bijections(p: AnyDistribution[Any], q: AnyDistribution[Any]) -> tuple[Any, Any]:
    """Return the bases of p and q if both are torch's and were mapped in the same way, else p and q."""
    if isinstance(p, td.Independent) and isinstance(q, td.Independent):
        first, second = before_bijections(p.base_dist, q.base_dist)
        if first is p.base_dist:
            return p, q
        return td.Independent(first, p.reinterpreted_batch_ndims), td.Independent(second, q.reinterpreted_batch_ndims)
    if not (isinstance(p, td.TransformedDistribution) and isinstance(q, td.TransformedDistribution)):
        return p, q
    try:
        same = p.transforms == q.transforms and all(are_bijections(x.transforms, x.base_dist.support) for x in (p, q))
    except RuntimeError:  # settings of shapes that do not broadcast
        same = False
    return before_bijections(p.base_dist, q.base_dist) if same else (p, q)


def _full(x: Any) -> FullGaussian:
    return x if isinstance(x, FullGaussian) else FullGaussian(tensor(x.mean), torch.diag_embed(tensor(x.std)))
