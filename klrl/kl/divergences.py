"""Divergences beside KL between policies, in closed form or by enumeration.

All take records or ``torch.distributions`` objects of one family, give one number per state ``[*B]`` in the
distributions' type (computed in float64), never NaN or negative, and 0 for equal arguments; gradients are finite where
the value is (a distance has the gradient 0 at 0, where it has no derivative). A pair without a closed form raises
:class:`~klrl.policy.distributions.NoClosedForm` (a ``TypeError``) that names the estimator to use:
:func:`klrl.kl.estimate_divergence`. A product of independent choices is enumerated up to 4096 joint outcomes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from klrl.kl.exact import (
    Support,
    as_both,
    check_support,
    kl_divergence,
    refuse_infinite,
    reverse_kl,
)
from klrl.kl.families import AnyDistribution, matched
from klrl.kl.families.family import Family
from klrl.kl.families.roots import root
from klrl.kl.units import base_by_keyword, in_base
from klrl.policy.arrays import A, Array, tensor

__all__ = [
    "effective_sample_size",
    "fisher_rao",
    "hellinger",
    "jeffreys",
    "jensen_shannon",
    "renyi",
    "skew_divergence",
    "total_variation",
]

Infinite = Literal["inf", "raise"]
"""Treatment of infinite divergences: the value as it is, or an error."""


def jeffreys(p: AnyDistribution[A], q: AnyDistribution[A], base: float | None = None, *, support: Support = "inf") -> A:
    """KL(p||q) + KL(q||p), symmetric, ``[*B]`` (Jeffreys 1946, "An Invariant Form for the Prior Probability").

    ``base`` and ``support`` as in :func:`klrl.kl.kl_divergence`: infinite where p or q misses the other's support.
    """
    return kl_divergence(p, q, base, support=support) + reverse_kl(p, q, base, support=support)


def jensen_shannon(p: AnyDistribution[A], q: AnyDistribution[A], base: float | None = None) -> A:
    """1/2 KL(p||m) + 1/2 KL(q||m) with m = (p + q) / 2, in [0, log 2] whatever the supports, ``[*B]``.

    Its square root is a metric (Endres & Schindelin 2003, "A New Metric for Probability Distributions"). For
    Categorical, MultiCategorical and Bernoulli (over several heads or bits that of the joint distribution), and for
    Beta of one dimension, by quadrature.
    """
    return in_base(measured("the Jensen-Shannon divergence", p, q, lambda f, a, b: f.jensen_shannon(a, b)), base)


@base_by_keyword(3)
def renyi(
    p: AnyDistribution[A], q: AnyDistribution[A], alpha: float, *, base: float | None = None, support: Infinite = "inf"
) -> A:
    r"""Rényi's D_a(p||q) = 1 / (a - 1) log E_q[(p/q)^a], ``[*B]``, summed over action dimensions.

    It grows with the order a: KL(p||q) for a = 1, the logarithm of the largest p/q for a = inf; D_2 is
    log(1 + chi^2(p||q)) (van Erven & Harremoës 2014, "Rényi Divergence and Kullback-Leibler Divergence"). Infinite
    where the integral diverges: q misses p's support and a >= 1; the supports are disjoint; between normals
    a sigma_q^2 + (1 - a) sigma_p^2 <= 0; a p + (1 - a) q <= 0 for a parameter of beta distributions.

    Args:
        p: a categorical family, a Gaussian (not a mixture) or a Beta.
        q: the same family as p.
        alpha: the order, > 0; infinity for all of these but FullGaussian.
        base: unit of information, as in :func:`klrl.kl.kl_divergence`.
        support: "inf" gives infinite values as they are, "raise" a ``ValueError``.

    Raises:
        NoClosedForm: the pair has no closed form.
        ValueError: alpha not > 0, an unknown ``support``, or with "raise" an infinite value.
    """
    if not alpha > 0.0:
        raise ValueError(f"alpha = {alpha}; allowed: > 0, infinity included")
    check_support(support, get_args(Infinite))

    def divergence(family: Family[Any], a: Any, b: Any) -> Tensor:
        return (family.kl(a, b) if alpha == 1.0 else family.renyi(a, b, alpha)).sum(-1)

    value = measured(f"the Rényi divergence of order {alpha:g}", p, q, divergence)
    if support == "raise":
        message = (
            f"the Rényi divergence of order {alpha:g} is infinite in {{}}; allowed: a smaller alpha, support='inf'"
        )
        refuse_infinite(tensor(value).isinf(), message)
    return in_base(value, base)


def hellinger(p: AnyDistribution[A], q: AnyDistribution[A], *, squared: bool = False) -> A:
    """Hellinger's distance H = sqrt(1 - BC) in [0, 1], or H^2, ``[*B]``; a metric.

    BC = E_q[(p/q)^1/2] = e^{-D_1/2(p||q) / 2} is Bhattacharyya's coefficient. H^2 <= total variation <= sqrt(2) H.
    """

    def square(family: Family[Any], a: Any, b: Any) -> Tensor:
        return -torch.expm1(-0.5 * family.renyi(a, b, 0.5).sum(-1))

    return measured("Hellinger's distance", p, q, square if squared else lambda *x: root(square(*x)))


def total_variation(p: AnyDistribution[A], q: AnyDistribution[A]) -> A:
    """1/2 int |p - q| = max_A p(A) - q(A) in [0, 1], ``[*B]``; a metric.

    For categorical families (of several heads or bits jointly), and for Gaussians, squashed or not, of one dimension
    or with equal covariances in every state; for Beta of one dimension, by quadrature.
    """
    return measured("the total variation", p, q, lambda f, a, b: f.total_variation(a, b))


def fisher_rao(p: AnyDistribution[A], q: AnyDistribution[A]) -> A:
    """Fisher and Rao's distance: the length of the shortest path from p to q, ``[*B]``; a metric, whatever the units.

    A step of a path is sqrt(2 KL) long, so that d^2 / 2 is near the KL of p and q that are close (Rao 1945,
    "Information and the Accuracy Attainable in the Estimation of Statistical Parameters"). For Categorical,
    MultiCategorical, Bernoulli, DiagGaussian and SquashedGaussian, within the family.
    """
    return measured("the Fisher-Rao distance", p, q, lambda f, a, b: f.fisher_rao(a, b))


def skew_divergence(
    p: AnyDistribution[A], q: AnyDistribution[A], share: float = 0.01, *, base: float | None = None
) -> A:
    """KL(p || (1 - share) q + share p), in [0, log(1 / share)] whatever the supports, ``[*B]``.

    (Lee 1999, "Measures of Distributional Similarity".) For Categorical, MultiCategorical and Bernoulli; over several
    heads or bits it is that of the joint distribution.

    Raises:
        ValueError: a share outside of (0, 1).
    """
    if not 0.0 < share < 1.0:
        raise ValueError(f"share = {share}; allowed: in (0, 1)")
    return in_base(measured("the skew divergence", p, q, lambda f, a, b: f.skew(a, b, share)), base)


def effective_sample_size(p: AnyDistribution[A], q: AnyDistribution[A]) -> A:
    r"""ESS / n = 1 / E_q[(p/q)^2] = e^{-D_2(p||q)} in [0, 1], ``[*B]``: p is the target, q was sampled.

    The value of n actions from q, weighted by w = p/q, as actions from p: the limit of (sum w)^2 / (n sum w^2) for
    large n (Kong 1992, "A Note on Importance Sampling Using Standardized Weights"). In policy optimisation q is the old
    policy, p the new one. 0 where the weights have no finite variance, as between normals with
    sigma_p >= sqrt(2) sigma_q.
    """
    return measured("the effective sample size", p, q, lambda f, a, b: (-f.renyi(a, b, 2.0).sum(-1)).exp())


def measured(
    what: str,
    p: AnyDistribution[A],
    q: AnyDistribution[A],
    formula: Callable[[Family[Any], Any, Any], Tensor],
    *,
    invariant: bool = True,
) -> A:
    """A formula's values at records in float64, as what the distributions are made of."""
    pair = matched(p, q, what, invariant=invariant)
    a, b = (record.map(lambda x: tensor(x).double()) for record in (pair.p, pair.q))
    return as_both(formula(pair.family, a, b).to(pair.dtype), pair.p, pair.q)


def numbers(x: Array) -> Tensor:
    """Convert a number, a sequence of numbers or an array to a tensor in float64, without a graph."""
    return x.detach().double() if isinstance(x, Tensor) else tensor(np.asarray(x, np.float64))
