"""The drift report: how far one update moved the policy, measured on the whole batch."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from klrl.kl.estimators import kl_samples
from klrl.kl.exact import has_gaussian_parts, kl_covariance_part, kl_divergence, kl_mean_part, reverse_kl
from klrl.policy.arrays import average
from klrl.policy.distributions import Distribution


def mean_kl(old: Distribution, new: Distribution) -> float:
    """Return the mean over states of KL(old||new), nats: the number that ``target_kl`` bounds and ``drift/kl`` logs."""
    return average(kl_divergence(old, new))


@torch.no_grad()
def drift_report(
    old: Distribution, new: Distribution, log_ratio: Tensor, *, kl: Tensor | None = None, reverse: Tensor | None = None
) -> dict[str, float]:
    """Return every ``drift/`` metric of one policy change.

    Args:
        old: the policy before the update at the batch's states, batch shape ``[n]``.
        new: the policy after it at the same states.
        log_ratio: log new(a|s) - log old(a|s) of the batch's actions (drawn from old), ``[n]``.
        kl: KL(old||new), ``[n]``, if it is known already.
        reverse: KL(new||old), ``[n]``, if it is known already.

    Returns:
        Metric name to value; KL in nats, ratio and effective sample size without unit (docs/glossary.md).
    """
    kl = kl_divergence(old, new) if kl is None else kl
    reverse = reverse_kl(old, new) if reverse is None else reverse
    ratio = log_ratio.double().exp()
    report = {
        "drift/kl": average(kl),
        "drift/kl_reverse": average(reverse),
        "drift/kl_max": kl.max().item(),
        "drift/kl_p95": float(np.quantile(kl.cpu().numpy(), 0.95, method="higher")),
        "drift/kl_k1": average(kl_samples(log_ratio.double(), "k1")),
        "drift/kl_k3": average(kl_samples(log_ratio.double(), "k3")),
        "drift/ratio_max": ratio.max().item(),
        "drift/ess": (ratio.mean().square() / ratio.square().mean()).item(),
    }
    if has_gaussian_parts(old):
        report["drift/kl_mean_part"] = average(kl_mean_part(old, new))
        report["drift/kl_covariance_part"] = average(kl_covariance_part(old, new))
    return report
