"""Members of an exponential family by their natural parameters: between two others, and at other temperatures."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from klrl.kl.families import AnyDistribution, matched
from klrl.policy.arrays import tensor
from klrl.policy.distributions import Distribution


def geometric_mixture(p: AnyDistribution[Any], q: AnyDistribution[Any], share: Tensor | float) -> Distribution:
    """The distribution proportional to p^share q^(1 - share): from q at 0 to p at 1, as a record ``[*B]``.

    In an exponential family it is the member whose natural parameters are the weighted means. Of all distributions
    with its KL from q it is the one nearest to p: it minimises KL(.||p) subject to a bound on KL(.||q).

    Args:
        p: a record or a ``torch.distributions`` object.
        q: the same family.
        share: weight of p in [0, 1], one number or one per state, ``[*B]``.

    Raises:
        NoClosedForm: different families, or one whose geometric mixtures are not in it.
        ValueError: a share outside of [0, 1].
    """
    pair = matched(p, q, "the geometric mixture", invariant=False)
    a, b = pair.p.map(tensor), pair.q.map(tensor)
    weight = tensor(share).to(a.parameters[0]) if isinstance(share, Tensor) else a.parameters[0].new_tensor(share)
    wrong = ~((weight >= 0.0) & (weight <= 1.0))
    if bool(wrong.any()):
        raise ValueError(f"share = {weight[wrong][0].item():g}; allowed: numbers in [0, 1]")
    return pair.family.geometric_mixture(a, b, weight.unsqueeze(-1))


def tempered(p: AnyDistribution[Any], temperature: float) -> Distribution:
    """The distribution proportional to p^(1 / temperature), as a record ``[*B]``: more decided below 1, less beyond.

    Choices have their logits divided, normals their variances multiplied. A squashed normal is tempered before its
    tanh, where its KL is measured, too.

    Args:
        p: a record or a ``torch.distributions`` object.
        temperature: a number > 0; 1 changes nothing.

    Raises:
        NoClosedForm: a family that has no such members.
        ValueError: another temperature, or a Beta whose power has no integral.
    """
    if not 0.0 < temperature < math.inf:
        raise ValueError(f"temperature = {temperature}; allowed: a finite number > 0")
    pair = matched(p, p, "the tempered distribution", invariant=False)
    return pair.family.tempered(pair.p.map(tensor), temperature)
