"""Drift report of an agent's update: how far its policy moved, in this update and since the first policy."""

from __future__ import annotations

from klrl.agents.update_batch import UpdateBatch
from klrl.kl.drift import Drift, mean_kl
from klrl.policy.arrays import average
from klrl.policy.distributions import Distribution
from klrl.run.callback import Metrics
from klrl.run.targets import asked_for, judged_by
from klrl.text import warn_user
from klrl.trust_region import DEFAULT_TARGET_KL, Change, TrustRegion

_START_KL, _START_RATIO = 1e-6, 1e-2


def update_report(drift: Drift, change: Change, region: TrustRegion) -> Metrics:
    """Measure a whole update: divergences between its policies, and the region's target and bounds."""
    own = region.report(change)
    over = region.target_kl or judged_by(asked_for(own), DEFAULT_TARGET_KL)
    metrics: Metrics = {
        **drift.report(change.old, change.new, change.log_ratio, over, kl=change.kl, reverse=change.kl_reverse)
    }
    if change.reference is not None:
        metrics["drift/kl_reference"] = average(change.kl_reference)
        metrics["drift/kl_reference_forward"] = average(change.kl_reference_forward)
    entropy = change.new.entropy().mean().item()
    metrics |= {"train/entropy": entropy, "train/entropy_loss": -entropy, "train/approx_kl": metrics["drift/kl_k3"]}
    asked = {"drift/kl_target": region.target_kl, "train/kl_penalty": region.beta}
    asked |= {"train/clip_range": region.clip_range, "drift/kl_next_target": region.next_kl}
    return metrics | own | {name: value for name, value in asked.items() if value is not None}


def step_zero(behaviour: Distribution, samples: UpdateBatch, *, warn: bool = True) -> Metrics:
    """Check that the policy that acted is the one to be updated: KL(old||new) = 0 and ratio = 1 before the first step.

    A difference (changed statistics, a stale batch, dropout) gets a ``RuntimeWarning``, unless ``warn`` is false.
    """
    kl = mean_kl(behaviour, samples.old)
    ratio = (samples.log_prob - behaviour.log_prob_inside(samples.taken)).exp()
    error = (ratio - 1.0).abs().max().item()
    if warn and not (kl <= _START_KL and error <= _START_RATIO):
        warn_user(
            f"the policy that collected the batch is not the one being updated: KL = {kl:.3g} nats, "
            f"|ratio - 1| up to {error:.3g} before the first step; allowed: {_START_KL:g} and {_START_RATIO:g}"
        )
    return {"drift/start_kl": kl, "drift/start_ratio_error": error}
