r"""Exact KL divergence between policies, accurate in float32 down to KL = 1e-8 nats.

The textbook formulas subtract nearly equal numbers when p and q are close, which is where trust regions
live: a Gaussian KL of 6e-8 comes out 50 % wrong, a categorical one negative. Everything here is written as
a sum of terms phi(x) = e^x - 1 - x >= 0 instead (a Bregman divergence), so nothing cancels and KL >= 0. The closed
forms themselves are in :mod:`klrl.kl.families`.

Numbers in half precision (float16, bfloat16) are computed with in float32, which is the type of results then.
``[*B]`` are batch dimensions; p and q may broadcast over them. Values are in nats, or in units of
``base``, the first argument after the policies all over :mod:`klrl.kl`; functions that take something else there, too,
have it by name only. What is computed from records of numpy arrays is a numpy array, from anything else a tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch import distributions as td

from klrl.kl.families import AnyDistribution, before_bijections, family_of, matched
from klrl.kl.families.gaussian import GaussianFamily
from klrl.kl.families.of_torch import entropy_of_torch, kl_of_torch
from klrl.kl.units import in_base
from klrl.policy.arrays import A, Array, is_numpy, like, tensor
from klrl.policy.distributions import Distribution, Gradient, NoClosedForm, as_record, widened

Support = Literal["inf", "raise", "smooth"]
SMOOTHING = 1e-6
"""Share of p that ``support="smooth"`` mixes into q."""

_MISSED = (
    "{0} gives probability 0 to something {1} does in {{}}, where KL({1}||{0}) is infinite; "
    "allowed: {0} > 0 wherever {1} > 0, or support='inf' or 'smooth'"
)


def kl_divergence(
    p: AnyDistribution[A], q: AnyDistribution[A], base: float | None = None, *, support: Support = "inf"
) -> A:
    r"""KL(p||q) = E_p[log p - log q] >= 0, per state ``[*B]``, summed over action dimensions.

    0 only if p = q; infinite if q gives probability zero to something p does.

    Args:
        p: a record of :mod:`klrl.policy.distributions`, or a ``torch.distributions`` object (of families without a
            record, too: Gamma, Poisson, Dirichlet, ...).
        q: the same family as p.
        base: unit of information: ``None`` for nats, 2 for bits (as in ``scipy.stats.entropy``).
        support: for states where q misses p's support (masks that differ, probabilities of zero): the value as it is
            ("inf"), an error ("raise"), or KL(p || (1 - e) q + e p) with e = 1e-6 ("smooth"), in every state: finite,
            at most log(1 / e), 0 up to rounding for p = q, and where the supports agree the KL up to a relative error
            of some e (Lee 1999, "Measures of Distributional Similarity", skew divergence). Only discrete families can
            miss it.

    Raises:
        NoClosedForm: different families, or a family without a closed form (a ``TypeError``).
        ValueError: different numbers of actions, a base that is not > 1, or with ``support="raise"`` a state
            where q misses p's support.

    >>> import math
    >>> from klrl.policy.distributions import DiagGaussian
    >>> p = DiagGaussian(torch.zeros(1), torch.zeros(1))
    >>> q = DiagGaussian(torch.ones(1), torch.full((1,), math.log(2.0)))
    >>> round(kl_divergence(p, q).item(), 4), round(kl_divergence(q, p).item(), 4)
    (0.4431, 1.3069)
    """
    return in_base(total(kl_per_dimension(p, q, support=support)), base)


def reverse_kl(
    p: AnyDistribution[A], q: AnyDistribution[A], base: float | None = None, *, support: Support = "inf"
) -> A:
    """KL(q||p), ``[*B]``: the other direction of :func:`kl_divergence`."""
    kl = kl_divergence(q, p, base, support="inf" if support == "raise" else support)
    if support == "raise":
        refuse_infinite(tensor(kl).isinf(), _MISSED.format("p", "q"))
    return kl


def entropy(p: AnyDistribution[A], base: float | None = None) -> A:
    """H(p) = -E_p[log p], ``[*B]``; differential entropy for densities."""
    of_torch = entropy_of_torch(p) if isinstance(p, td.Distribution) else None
    return in_base(widened(as_record(p)).entropy() if of_torch is None else of_torch, base)


def cross_entropy(
    p: AnyDistribution[A], q: AnyDistribution[A], base: float | None = None, *, support: Support = "inf"
) -> A:
    """H(p, q) = -E_p[log q] = H(p) + KL(p||q), ``[*B]``."""
    return entropy(p, base) + kl_divergence(p, q, base, support=support)


def kl_per_dimension(
    p: AnyDistribution[A], q: AnyDistribution[A], base: float | None = None, *, support: Support = "inf"
) -> A:
    """KL(p||q) of every independent part of an action, ``[*B, d]``; their sum is the KL.

    The parts are dimensions (DiagGaussian, SquashedGaussian, Beta, Bernoulli) or heads (MultiCategorical); a
    Categorical and a FullGaussian have none, d = 1. ``base`` and ``support`` as in :func:`kl_divergence`.
    """
    check_support(support, get_args(Support))
    p, q = before_bijections(p, q)
    if isinstance(p, td.Distribution) and isinstance(q, td.Distribution) and (kl := kl_of_torch(p, q)) is not None:
        return in_base(_without_record(kl, support), base)
    pair = matched(p, q, invariant=False)
    if is_numpy(pair.p.parameters[0]) or is_numpy(pair.q.parameters[0]):
        return as_both(kl_per_dimension(pair.p.map(tensor), pair.q.map(tensor), base, support=support), pair.p, pair.q)
    family = pair.family
    kl = family.smoothed_kl(pair.p, pair.q, SMOOTHING) if support == "smooth" else family.kl(pair.p, pair.q)
    kl = kl if kl.dtype == pair.dtype else kl.to(pair.dtype)
    if support == "raise":
        refuse_infinite(kl.isinf().any(-1), _MISSED.format("q", "p"))
    return in_base(kl, base)


def _without_record(kl: Tensor, support: Support) -> Tensor:
    """Return values of families without a record, unless infinite ones are to be refused or made finite."""
    if support == "raise":
        refuse_infinite(kl.isinf().any(-1), _MISSED.format("q", "p"))
    elif support == "smooth" and bool(kl.isinf().any()):
        raise NoClosedForm("no closed form for the KL to a mixture with p; allowed: support='inf' or 'raise'")
    return kl


def as_both(x: Tensor, p: Distribution[Any], q: Distribution[Any]) -> Array:
    """A result as a numpy array where both records are of those, else as it is."""
    both = is_numpy(p.parameters[0]) and is_numpy(q.parameters[0])
    return like(x, p.parameters[0]) if both else x


def check_support(support: str, allowed: Sequence[str]) -> None:
    """Refuse a choice that is not allowed.

    Raises:
        ValueError: the message says what is allowed.
    """
    if support not in allowed:
        raise ValueError(f"support = {support!r}; allowed: {', '.join(allowed)}")


def refuse_infinite(infinite: Tensor, message: str) -> None:
    """Raise if a divergence is infinite in some state.

    Args:
        infinite: mask of infinite values, ``[*B]``.
        message: text with ``{}`` for the number of states.

    Raises:
        ValueError: the message.
    """
    if count := int(infinite.sum()):
        raise ValueError(message.format(f"{count} of {infinite.numel()} states"))


def kl_mean_part(p: AnyDistribution[A], q: AnyDistribution[A], base: float | None = None) -> A:
    """The part of a Gaussian KL that is due to the means: 1/2 (mu_p - mu_q)' S_q^-1 (mu_p - mu_q), ``[*B]``."""
    family, *pair, dtype, made_of = _gaussians(p, q)
    return in_base(like(family.mean_part(*pair).sum(-1).to(dtype), made_of), base)


def kl_covariance_part(p: AnyDistribution[A], q: AnyDistribution[A], base: float | None = None) -> A:
    """The part of a Gaussian KL that is due to the covariances (the KL at equal means), ``[*B]``."""
    family, *pair, dtype, made_of = _gaussians(p, q)
    return in_base(like(family.covariance_part(*pair).sum(-1).to(dtype), made_of), base)


def has_gaussian_parts(p: Distribution[Any]) -> bool:
    """Tell whether the KL of this family has a mean part and a covariance part."""
    return isinstance(family_of(p), GaussianFamily)


def kl_gradient(p: AnyDistribution[Any], q: AnyDistribution[Any]) -> Gradient:
    """Derivative of KL(p||q) by the fields of q's record, in their shapes: where q is broadcast, the sum."""
    pair = matched(p, q)
    gradient = pair.family.kl_gradient(pair.p, pair.q)
    return tuple([_summed_to(x, y.shape) for x, y in zip(gradient, pair.q.parameters, strict=True)])


def fisher_product(p: Distribution, tangent: Gradient) -> Gradient:
    """Return the Fisher matrix of p, the Hessian of KL(p||q) by q's fields at q = p, times a tangent, per state."""
    family = family_of(p)
    if family is None:
        raise NoClosedForm(f"no Fisher matrix for {type(p).__name__}; allowed: families with a closed form of the KL")
    return family.fisher_product(widened(p), tangent)


def _summed_to(x: Array, shape: torch.Size) -> Array:
    return x if x.shape == shape else like(tensor(x).sum_to_size(shape), x)


def _gaussians(
    p: AnyDistribution[Any], q: AnyDistribution[Any]
) -> tuple[GaussianFamily[Any], Any, Any, torch.dtype, Any]:
    family, a, b, dtype = matched(p, q)
    if not isinstance(family, GaussianFamily):
        names = f"{type(a).__name__} and {type(b).__name__}"
        raise NoClosedForm(f"mean and covariance parts need two Gaussians, not {names}")
    return family, a.map(tensor), b.map(tensor), dtype, a.parameters[0]


def total(terms: Array) -> Array:
    """Return the sum over the last dimension."""
    if terms.shape[-1] == 1:
        return terms.squeeze(-1)
    if is_numpy(terms):
        return like(total(tensor(terms)), terms)
    if torch.is_autocast_enabled(terms.device.type):  # autocast would multiply in half precision
        return terms.sum(-1)
    return terms @ terms.new_ones(terms.shape[-1])  # the faster way to the sum
