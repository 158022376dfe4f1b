"""MEASURE: exact KL divergence, sample estimators and their gradients, the drift report."""

from klrl.kl.drift import drift_report
from klrl.kl.estimator_gradients import BiasedGradientWarning, GradientVerdict, estimator_gradient, kl_loss
from klrl.kl.estimators import Estimate, estimate_kl
from klrl.kl.exact import (
    cross_entropy,
    entropy,
    fisher_product,
    kl_covariance_part,
    kl_divergence,
    kl_gradient,
    kl_mean_part,
    kl_per_dimension,
    reverse_kl,
)

__all__ = [
    "BiasedGradientWarning",
    "Estimate",
    "GradientVerdict",
    "cross_entropy",
    "drift_report",
    "entropy",
    "estimate_kl",
    "estimator_gradient",
    "fisher_product",
    "kl_covariance_part",
    "kl_divergence",
    "kl_gradient",
    "kl_loss",
    "kl_mean_part",
    "kl_per_dimension",
    "reverse_kl",
]
