"""KL from samples, for the cases that have no closed form and as a check on those that do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from klrl.kl.exact import phi

Estimator = Literal["k1", "k2", "k3"]


@dataclass(frozen=True)
class KLEstimate:
    """A sample mean, its standard error (for independent samples), both in nats, and the sample size."""

    value: float
    stderr: float
    n: int


def estimate_kl(log_p: Tensor, log_q: Tensor, estimator: Estimator = "k3") -> KLEstimate:
    """Estimate KL(p||q) from log-probabilities of samples drawn from p.

    With log r = log q - log p (Schulman 2020, "Approximating KL Divergence"):
    k1 = -log r (unbiased, may be negative), k2 = (log r)^2 / 2 (biased), k3 = r - 1 - log r (unbiased, >= 0;
    its variance is infinite where q is much wider than p).

    Args:
        log_p: log p(x) of the samples, any shape.
        log_q: log q(x) of the same samples, the same shape.
        estimator: ``"k1"``, ``"k2"`` or ``"k3"``.

    Raises:
        ValueError: unknown estimator, different shapes, or no samples.
    """
    if log_p.shape != log_q.shape or log_p.numel() == 0:
        raise ValueError(
            f"log_p and log_q have shapes {list(log_p.shape)} and {list(log_q.shape)}; allowed: one shape, not empty"
        )
    values = kl_samples((log_q - log_p).double().flatten(), estimator)
    n = values.numel()
    stderr = values.std(correction=1) / n**0.5 if n > 1 else values.new_tensor(float("nan"))
    return KLEstimate(values.mean().item(), stderr.item(), n)


def kl_samples(log_ratio: Tensor, estimator: Estimator) -> Tensor:
    """The estimator's value for every sample, given log r = log q - log p with samples drawn from p."""
    if estimator not in get_args(Estimator):
        raise ValueError(f"estimator = {estimator!r}; allowed: {', '.join(get_args(Estimator))}")
    if estimator == "k1":
        return -log_ratio
    return 0.5 * log_ratio.square() if estimator == "k2" else phi(log_ratio)
