"""Drift report of an agent's update: how far its policy moved, in this update and since the first policy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from klrl.agents.update_batch import UpdateBatch
from klrl.kl.drift import drift_report, mean_kl
from klrl.policy.arrays import average
from klrl.policy.distributions import Distribution
from klrl.run.callback import Metrics
from klrl.text import warn_user
from klrl.trust_region import DEFAULT_TARGET_KL, Change, TrustRegion

_PROBES = 256
_START_KL, _START_RATIO = 1e-6, 1e-2


@dataclass(frozen=True, eq=False)
class Probe:
    """Fixed states with the first policy's distributions there, from which ``drift/kl_initial`` measures."""

    observations: Tensor
    first: Distribution

    @classmethod
    def choose(cls, observations: Tensor, policy: Distribution) -> Probe:
        """Choose up to 256 of these states, evenly over the batch."""
        n = len(observations)
        rows = torch.linspace(0, n - 1, min(_PROBES, n), dtype=torch.float32, device="cpu").long()
        return cls(observations[rows], policy[rows])


class Drift:
    """Measurements of a policy's movement over all updates of an agent."""

    def __init__(self) -> None:
        self.probe: Probe | None = None
        self.kl_sum = 0.0
        """Sum of ``drift/kl`` over all updates, nats."""

    def report(self, change: Change, region: TrustRegion) -> Metrics:
        """Measure a whole update: divergences between its policies, and the region's target."""
        metrics: Metrics = dict(drift_report(change.old, change.new, change.log_ratio))
        self.kl_sum += float(metrics["drift/kl"])
        metrics["drift/kl_sum"] = self.kl_sum
        metrics["drift/states_over_target"] = average(change.kl > (region.target_kl or DEFAULT_TARGET_KL))
        if change.reference is not None:
            metrics["drift/kl_reference"] = average(change.kl_reference)
        entropy = change.new.entropy().mean().item()
        metrics |= {"train/entropy": entropy, "train/entropy_loss": -entropy, "train/approx_kl": metrics["drift/kl_k3"]}
        asked = {"drift/kl_target": region.target_kl, "train/kl_penalty": region.beta}
        asked["train/clip_range"] = region.clip_range
        return metrics | {name: value for name, value in asked.items() if value is not None}

    def since_first(
        self, observations: Tensor, old: Distribution, policy_at: Callable[[Tensor], Distribution]
    ) -> float:
        """Measure KL(first policy||new), nats, on probe states that the first call chooses.

        Args:
            observations: the batch's, ``[n, *O]``, not normalised.
            old: distributions of the policy before the update at these observations.
            policy_at: returns the new policy's distribution at observations.
        """
        if self.probe is None:
            self.probe = Probe.choose(observations, old.cpu())
        return mean_kl(self.probe.first, policy_at(self.probe.observations).cpu())


def step_zero(behaviour: Distribution, samples: UpdateBatch, *, warn: bool = True) -> Metrics:
    """Check that the policy that acted is the one to be updated: KL(old||new) = 0 and ratio = 1 before the first step.

    A difference (changed statistics, a stale batch, dropout) gets a ``RuntimeWarning``, unless ``warn`` is false.
    """
    kl = mean_kl(behaviour, samples.old)
    ratio = (samples.log_prob - behaviour.log_prob(samples.actions)).exp()
    error = (ratio - 1.0).abs().max().item()
    if warn and not (kl <= _START_KL and error <= _START_RATIO):
        warn_user(
            f"the policy that collected the batch is not the one being updated: KL = {kl:.3g} nats, "
            f"|ratio - 1| up to {error:.3g} before the first step; allowed: {_START_KL:g} and {_START_RATIO:g}"
        )
    return {"drift/start_kl": kl, "drift/start_ratio_error": error}
