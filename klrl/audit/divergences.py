"""KL between two policies on states of whole episodes, with the standard error that episodes give it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from klrl.audit.policy import AuditedPolicy
from klrl.audit.visits import Visits
from klrl.kl.estimators import Estimate, mean_estimate
from klrl.kl.exact import kl_per_dimension

QUANTILES = (0.5, 0.9, 0.95, 0.99)


@dataclass(frozen=True)
class Divergence:
    """KL(p||q) on the states of one policy, in nats."""

    p: str
    q: str
    states_of: str
    """Name of the policy that visited the states."""
    kl: Estimate
    """Mean over the states. Those of one episode are alike, so its standard error is that of a mean over episodes."""
    largest: float
    quantiles: dict[float, float]
    """Over the states: :data:`QUANTILES`."""
    per_dimension: tuple[Estimate, ...]
    """The mean's parts by the action's dimensions, heads or bits; one for a Discrete."""

    @property
    def title(self) -> str:
        """The quantity in words."""
        return f"KL({self.p}‖{self.q}) on {self.states_of}'s states"

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON; a standard error from a single episode is null."""
        return {
            "p": self.p,
            "q": self.q,
            "states_of": self.states_of,
            **_plain(self.kl),
            "largest": self.largest,
            "quantiles": {f"{share:g}": x for share, x in self.quantiles.items()},
            "per_dimension": [_plain(part) for part in self.per_dimension],
        }


def divergence(p: AuditedPolicy, q: AuditedPolicy, states_of: AuditedPolicy, visits: Visits) -> Divergence:
    """Measure KL(p||q) in every state that a policy visited, exactly.

    The standard error is that of sum_g K_g / sum_g n_g, K_g the sum of the KL over the n_g states of episode g
    (Liang and Zeger 1986; :func:`klrl.kl.estimators.mean_estimate`).
    """
    parts = kl_per_dimension(p.distribution(visits.observations), q.distribution(visits.observations))
    kl = parts.sum(-1)
    quantiles = np.quantile(kl.numpy(), QUANTILES).tolist()
    by_dimension = tuple(_mean(column, visits.episodes) for column in parts.unbind(-1))
    return Divergence(
        p.name,
        q.name,
        states_of.name,
        _mean(kl, visits.episodes),
        float(kl.max()),
        dict(zip(QUANTILES, quantiles, strict=True)),
        by_dimension,
    )


def table(found: Sequence[Divergence]) -> list[str]:
    """Write one line per divergence, and one more for the dimensions of an action that has several."""
    width = max(len(x.title) for x in found)
    lines = []
    for x in found:
        middle, tail = _digits(x.quantiles[0.5]), _digits(x.quantiles[0.95])
        numbers = f"{_figure(x.kl)}   median {middle}   95 % {tail}   largest {_digits(x.largest)}"
        lines.append(f"{x.title:<{width}}  {numbers}")
        if len(x.per_dimension) > 1:
            lines.append(f"{'by dimension':>{width}}  {'   '.join(map(_figure, x.per_dimension))}")
    return lines


def _mean(values: Tensor, episodes: Tensor) -> Estimate:
    return mean_estimate(values, clusters=episodes)


def _plain(x: Estimate) -> dict[str, Any]:
    return {"mean": x.value, "stderr": None if math.isnan(x.stderr) else x.stderr}


def _figure(x: Estimate) -> str:
    return _digits(x.value) if math.isnan(x.stderr) else f"{_digits(x.value)} ± {_digits(x.stderr)}"


def _digits(x: float) -> str:
    return f"{x:.4f}" if x >= 0.001 or x == 0.0 else f"{x:.1e}"
