"""``torch.distributions`` objects as records."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch import distributions as td
from torch.distributions.utils import probs_to_logits

from klrl.policy.arrays import A
from klrl.policy.distributions.beta import Beta
from klrl.policy.distributions.categorical import Bernoulli, Categorical, MultiCategorical
from klrl.policy.distributions.gaussian import DiagGaussian, FullGaussian, GaussianMixture, SquashedGaussian
from klrl.policy.distributions.record import Distribution, NoClosedForm

Read = Callable[[Tensor], Tensor]
"""Precision in which numbers are read."""
MASKED = math.log(math.ulp(0.0)) - math.log(2.0)
"""Log-probability below which a probability is 0 in float64, too: about -745."""


def as_record(distribution: Distribution[A] | td.Distribution, read: Read = lambda x: x) -> Distribution[A]:
    """Turn a ``torch.distributions`` object into a record; a record passes through.

    Batch and event dimensions keep their meaning: a ``Normal`` has one action dimension per batch element,
    ``Independent(Normal, n)`` makes one action of its last n dimensions (records keep log_std, so a float32 scale is
    rounded once more). A torch ``Categorical`` or ``Bernoulli`` is read by what it was built from: its logits are
    clamped when it was built from probabilities, and a zero would no longer be a zero. Logits that stand for a mask
    (sb3-contrib's -1e8) become -inf: those below about -745, whose probability is 0 in float64, too. The object's
    numbers pass through ``read`` (say, to another
    precision) before any logarithm is taken of them.

    Raises:
        NoClosedForm: the family has no record (a ``TypeError``).
    """
    match distribution:
        case Distribution():
            return distribution
        case x if not isinstance(x, td.Distribution):
            raise TypeError(
                f"{type(x).__name__} is not a distribution; allowed: a record or an object of torch.distributions, "
                "such as Categorical(probs)"
            )
        case td.Independent(base_dist=base, reinterpreted_batch_ndims=n):
            record: Any = _one_action(base, n, read) if n > 0 else as_record(base, read)
        case _:
            record = _elementary(distribution, read)
    if record is None:
        raise NoClosedForm(
            f"{_name(distribution)} has no record; allowed: torch's Categorical, OneHotCategorical, Bernoulli, Normal, "
            "Beta, Independent of these, MultivariateNormal, TransformedDistribution(Normal, TanhTransform()), "
            "MixtureSameFamily of Normals; klrl.kl.estimate_divergence and estimate_entropy take anything that has "
            "sample and log_prob"
        )
    return record


def _elementary(x: td.Distribution, read: Read) -> Distribution | None:
    """Read an object whose batch elements are one action each, with one dimension unless it has an event shape."""
    match x:
        case td.Categorical():
            return Categorical(logits_of(x, read))
        case td.OneHotCategorical():
            return Categorical(logits_of(x._categorical, read))
        case td.Bernoulli():
            return Bernoulli(log_odds(x, read).unsqueeze(-1))
        case td.Normal():
            return DiagGaussian(read(x.loc).unsqueeze(-1), read(x.scale).log().unsqueeze(-1))
        case td.Beta():
            return Beta(read(x.concentration1).unsqueeze(-1), read(x.concentration0).unsqueeze(-1))
        case td.MultivariateNormal():
            return FullGaussian(read(x.loc), read(x.scale_tril))
        case td.LowRankMultivariateNormal():
            return FullGaussian(read(x.loc), torch.linalg.cholesky(read(x.covariance_matrix)))
        case td.TransformedDistribution(base_dist=base, transforms=[td.TanhTransform()]):
            normal = _normal(base, read)
            return SquashedGaussian(*normal.parameters) if normal is not None else None
        case td.MixtureSameFamily(mixture_distribution=weights, component_distribution=parts):
            normal = _normal(parts, read)
            if normal is not None:
                return GaussianMixture(logits_of(weights, read).expand(normal.batch_shape), *normal.parameters)
    return None


def _one_action(base: td.Distribution, n: int, read: Read) -> Distribution | None:
    """Read the last ``n`` batch dimensions as one action."""
    match base:
        case td.Independent(base_dist=inner, reinterpreted_batch_ndims=m):
            return _one_action(inner, m + n, read)
        case td.Categorical():
            heads = logits_of(base, read).flatten(-1 - n, -2)
            return MultiCategorical(heads.flatten(-2), (heads.shape[-1],) * heads.shape[-2])
        case td.Bernoulli():
            return Bernoulli(log_odds(base, read).flatten(-n))
        case td.Normal():
            return DiagGaussian(read(base.loc).flatten(-n), read(base.scale).log().flatten(-n))
        case td.Beta():
            return Beta(read(base.concentration1).flatten(-n), read(base.concentration0).flatten(-n))
        case td.TransformedDistribution(base_dist=td.Normal() as normal, transforms=[td.TanhTransform()]):
            return SquashedGaussian(read(normal.loc).flatten(-n), read(normal.scale).log().flatten(-n))
    return None


def _normal(x: td.Distribution, read: Read) -> DiagGaussian | None:
    base = x.base_dist if isinstance(x, td.Independent) else x
    record = as_record(x, read) if isinstance(base, td.Normal) else None
    return record if isinstance(record, DiagGaussian) else None


def _from_probs(x: Any) -> bool:
    """Return True if it was made from probabilities, so that its logits are clamped; an expanded copy has both."""
    known = x.__dict__
    if "probs" not in known or "logits" not in known:
        return "probs" in known
    return torch.equal(probs_to_logits(x.probs, is_binary=not isinstance(x, td.Categorical)), x.logits)


def logits_of(x: td.Categorical, read: Read) -> Tensor:
    """log p up to a constant, -inf where p is 0 or its logits stand for a mask."""
    if not _from_probs(x):
        return read(x.logits).masked_fill(x.logits < MASKED, -math.inf)
    possible = x.probs > 0
    return torch.where(possible, read(x.probs), 1.0).log().masked_fill(~possible, -math.inf)


def log_odds(x: Any, read: Read) -> Tensor:
    """log p / (1 - p) of a Bernoulli or of what has such ``probs`` and ``logits``, infinite where p is 0 or 1."""
    if not _from_probs(x):
        return read(x.logits).masked_fill(x.logits < MASKED, -math.inf).masked_fill(x.logits > -MASKED, math.inf)
    inside = (x.probs > 0) & (x.probs < 1)
    p = torch.where(inside, read(x.probs), 0.5)
    border = torch.where(x.probs > 0.5, math.inf, -math.inf).to(p.dtype)
    return torch.where(inside, p.log() - (-p).log1p(), border)


def _name(x: object) -> str:
    inner = getattr(x, "base_dist", None)
    return f"{type(x).__name__}({type(inner).__name__})" if inner is not None else type(x).__name__
