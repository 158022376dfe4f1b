"""The audit of saved policies: each against the next, and against the first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np

from klrl.audit.divergences import Divergence, divergence, table
from klrl.audit.policy import AuditedPolicy, check_comparable
from klrl.audit.visits import Visits, visit
from klrl.run.evaluation import ENOUGH

FORMAT = 1
"""Number of the JSON's format; it counts up when a name there changes its meaning."""


@dataclass(frozen=True, eq=False)
class Audit:
    """Policies, the states that each visited, and the KL between them there."""

    policies: tuple[AuditedPolicy, ...]
    visits: tuple[Visits, ...]
    divergences: tuple[Divergence, ...]

    def to_json(self) -> dict[str, Any]:
        """Return everything but the states as plain JSON."""
        played = []
        for policy, visits in zip(self.policies, self.visits, strict=True):
            result = visits.evaluation
            played.append(
                {"name": policy.name, **policy.origin}
                | {"states": len(visits.episodes), "episodes": len(result.returns), "mean_return": result.mean}
                | {"returns": result.returns, "lengths": result.lengths, "cut": result.cut}
            )
        return {"format": FORMAT, "policies": played, "divergences": [x.to_json() for x in self.divergences]}

    def __str__(self) -> str:
        lines = []
        for policy, visits in zip(self.policies, self.visits, strict=True):
            result = visits.evaluation
            known = [str(policy.origin[key]) for key in ("path", "algorithm") if policy.origin.get(key)]
            what = f" ({', '.join(known)})" if known else ""
            lines.append(
                f"{policy.name}{what}: mean return {result.mean:.1f} over {len(result.returns)} episodes, "
                f"{len(visits.episodes):,} states"
            )
        return "\n".join([*lines, "", *table(self.divergences)])


def audit(
    policies: Sequence[AuditedPolicy],
    make_env: Callable[[], gym.Env],
    n_episodes: int = 20,
    *,
    seed: int = 0,
    max_steps: int = ENOUGH,
) -> Audit:
    """Compare policies in order, in both directions, on the states of both.

    Args:
        policies: at least two; each is compared with the next, and with the first.
        make_env: makes one environment; each policy plays in one of its own, in the same episodes.
        n_episodes: number of episodes that each plays, with sampled actions.
        seed: seed of the episodes and actions.
        max_steps: most steps of an episode.

    Raises:
        ValueError: fewer than two, or two without a KL between them.
        CannotAct: a policy cannot act on what the environment says.
    """
    if len(policies) < 2:
        raise ValueError(f"{len(policies)} policies; allowed: at least two to compare")
    for other in policies[1:]:
        check_comparable(policies[0], other)
    visits = []
    for policy in policies:
        with make_env() as env:
            visits.append(visit(policy, env, n_episodes, seed=seed, max_steps=max_steps))
    pairs = [(i, i + 1) for i in range(len(policies) - 1)] + [(0, i) for i in range(2, len(policies))]
    found = [
        divergence(policies[p], policies[q], policies[where], visits[where])
        for i, j in pairs
        for where in (i, j)
        for p, q in ((i, j), (j, i))
    ]
    for x in found:
        if not np.isfinite(x.kl.value):
            raise ValueError(
                f"{x.title} is infinite: {x.q} never does what {x.p} may; allowed: policies with a finite KL"
            )
    return Audit(tuple(policies), tuple(visits), tuple(found))
