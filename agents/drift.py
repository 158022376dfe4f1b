"""Drift report of an agent's update: how far its policy moved, in this update and since the first policy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from klrl.agents.update_batch import UpdateBatch
from klrl.kl.drift import PROBES, Drift, Probe, mean_kl, rows_evenly
from klrl.policy.arrays import average
from klrl.policy.distributions import Distribution
from klrl.run.callback import Metrics
from klrl.run.targets import asked_for, judged_by
from klrl.text import warn_user
from klrl.trust_region import DEFAULT_TARGET_KL, Change, TrustRegion

if TYPE_CHECKING:
    from klrl.agents.learner import Learner

_IMAGES = 64
"""Images that metrics with a pass of their own are measured on by default, at most."""
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


def statistics_report(change: Change, rows: Tensor | slice, after: Distribution) -> Metrics:
    """Measure a change of the observation statistics, and the policy's way through the update and that change.

    Args:
        change: the update.
        rows: its states that this is measured on.
        after: the policy there with the new statistics.
    """
    own, total = mean_kl(change.new[rows], after), mean_kl(change.old[rows], after)
    return {"drift/kl_normalizer": own, "drift/kl_total": total}


def measured_rows(agent: Learner[Any], n: int) -> Tensor | slice:
    """Return the rows of n states for metrics with a pass of their own: all, or some evenly over the batch."""
    most = _most(agent, n)
    return slice(None) if n <= most else rows_evenly(n, most)


def first_probe(agent: Learner[Any], observations: Tensor, first: Distribution) -> Probe:
    """Choose the states that ``drift/kl_initial`` is measured on, among those where the first policy is known."""
    most = min(PROBES, _most(agent, PROBES)) if agent.encoding.images else PROBES
    return Probe.choose(observations, first.cpu(), most)


def _most(agent: Learner[Any], n: int) -> int:
    return agent.config.drift_states or (_IMAGES if agent.encoding.images else n)
