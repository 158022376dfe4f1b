"""The drift report: how far an update moved the policy, measured on the whole batch, and all updates together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from klrl.kl.estimators import kl_samples
from klrl.kl.exact import has_gaussian_parts, kl_covariance_part, kl_divergence, kl_mean_part, reverse_kl
from klrl.policy.arrays import average, quantile
from klrl.policy.distributions import Distribution


def mean_kl(old: Distribution, new: Distribution) -> float:
    """Return the mean over states of KL(old||new), nats: the number that ``target_kl`` bounds and ``drift/kl`` logs."""
    return average(kl_divergence(old, new))


def mean_length(kl: Tensor) -> float:
    """Return the mean over states of sqrt(2 KL), sqrt(nats): how far a small step goes, in Fisher-Rao's metric.

    KL is half a squared length to second order (Amari 2016, "Information Geometry and Its Applications", section 3.5),
    so KLs of consecutive steps do not add up to anything that their number would not change, and these lengths do.
    """
    return average((2.0 * kl).sqrt())


@torch.no_grad()
def drift_report(
    old: Distribution,
    new: Distribution,
    log_ratio: Tensor | None = None,
    *,
    kl: Tensor | None = None,
    reverse: Tensor | None = None,
) -> dict[str, float]:
    """Return every ``drift/`` metric of one policy change.

    Args:
        old: the policy before the update at the batch's states, batch shape ``[n]``.
        new: the policy after it at the same states.
        log_ratio: log new(a|s) - log old(a|s) of the batch's actions (drawn from old), ``[n]``; without it there are
            no estimates from samples, no ratio and no effective sample size.
        kl: KL(old||new), ``[n]``, if it is known already.
        reverse: KL(new||old), ``[n]``, if it is known already.

    Returns:
        Metric name to value; KL in nats, ratio and effective sample size without unit (docs/glossary.md).
    """
    kl = kl_divergence(old, new) if kl is None else kl
    reverse = reverse_kl(old, new) if reverse is None else reverse
    report = {
        "drift/kl": average(kl),
        "drift/kl_reverse": average(reverse),
        "drift/kl_max": kl.max().item(),
        "drift/kl_p95": quantile(kl, 0.95),
    }
    if log_ratio is not None:
        ratio = log_ratio.double().exp()
        report["drift/kl_k1"] = average(kl_samples(log_ratio.double(), "k1"))
        report["drift/kl_k3"] = average(kl_samples(log_ratio.double(), "k3"))
        report["drift/ratio_max"] = ratio.max().item()
        report["drift/ess"] = (ratio.mean().square() / ratio.square().mean()).item()
    if has_gaussian_parts(old):
        report["drift/kl_mean_part"] = average(kl_mean_part(old, new))
        report["drift/kl_covariance_part"] = average(kl_covariance_part(old, new))
    return report


PROBES = 256


@dataclass(frozen=True, eq=False)
class Probe:
    """Fixed states with the first policy's distributions there, from which ``drift/kl_initial`` measures."""

    observations: Any
    """Observations of the states, in whatever form the policy takes them."""
    first: Distribution

    @classmethod
    def choose(cls, observations: Tensor, policy: Distribution, most: int = PROBES) -> Probe:
        """Choose up to so many of these states, evenly over them."""
        rows = rows_evenly(len(observations), most)
        return cls(observations[rows], policy[rows])


def probe_rows(n: int) -> Tensor:
    """Return the rows of up to 256 of n states, evenly over the batch."""
    return rows_evenly(n, PROBES)


def rows_evenly(n: int, most: int) -> Tensor:
    """Return up to so many of n rows, evenly over them."""
    return torch.linspace(0, n - 1, min(most, n), dtype=torch.float32, device="cpu").long()


class Drift:
    """Measurements of a policy's movement over all of its updates."""

    def __init__(self) -> None:
        self.probe: Probe | None = None
        self.kl_sum = 0.0
        """Sum of ``drift/kl`` over all updates, nats."""
        self.path_length = 0.0
        """Sum of :func:`mean_length` over all updates, sqrt(nats)."""

    @torch.no_grad()
    def report(
        self,
        old: Distribution,
        new: Distribution,
        log_ratio: Tensor | None,
        over: float,
        *,
        kl: Tensor | None = None,
        reverse: Tensor | None = None,
    ) -> dict[str, float]:
        """Return the :func:`drift_report` of an update, and what adds up over updates.

        Args:
            old: the policy before the update, batch shape ``[n]``.
            new: the policy after it at the same states.
            log_ratio: as for :func:`drift_report`.
            over: KL from which on a state counts in ``drift/states_over_target``, nats.
            kl: as for :func:`drift_report`.
            reverse: as for :func:`drift_report`.
        """
        kl = kl_divergence(old, new) if kl is None else kl
        report = drift_report(old, new, log_ratio, kl=kl, reverse=reverse)
        self.kl_sum += report["drift/kl"]
        self.path_length += mean_length(kl)
        way = {"drift/kl_sum": self.kl_sum, "drift/path_length": self.path_length}
        return report | way | {"drift/states_over_target": average(kl > over)}

    @torch.no_grad()
    def since_first(self, policy_at: Callable[[Any], Distribution]) -> dict[str, float]:
        """Measure the way from the first policy to the new one at the probe's states: its KL, and how straight it was.

        Args:
            policy_at: returns the new policy's distribution at observations.
        """
        assert self.probe is not None
        kl = kl_divergence(self.probe.first, policy_at(self.probe.observations).cpu())
        straightness = 1.0 if self.path_length == 0.0 else mean_length(kl) / self.path_length
        return {"drift/kl_initial": average(kl), "drift/straightness": straightness}
