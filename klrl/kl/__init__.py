"""MEASURE: divergences in closed form and from samples, estimators and their gradients, the drift report."""

from klrl.kl import divergences
from klrl.kl.divergences import *
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
from klrl.kl.executed import kl_executed
from klrl.kl.from_samples import donsker_varadhan, knn_kl
from klrl.kl.geometric import geometric_mixture, tempered
from klrl.kl.information import estimate_mutual_information, mutual_information
from klrl.kl.mixtures import kl_upper_bound, kl_variational
from klrl.kl.reliability import DoubtfulEstimateWarning
from klrl.kl.sampled import StateEstimate, estimate_divergence, estimate_entropy
from klrl.kl.sequences import SequenceEstimate, estimate_sequence_kl, sequence_kl, sequence_kl_loss
from klrl.kl.tokens import token_kl, token_log_probs
from klrl.kl.transport import wasserstein

__all__ = [
    "BiasedGradientWarning",
    "DoubtfulEstimateWarning",
    "Estimate",
    "GradientVerdict",
    "SequenceEstimate",
    "StateEstimate",
    "cross_entropy",
    "donsker_varadhan",
    "drift_report",
    "entropy",
    "estimate_divergence",
    "estimate_entropy",
    "estimate_kl",
    "estimate_mutual_information",
    "estimate_sequence_kl",
    "estimator_gradient",
    "fisher_product",
    "geometric_mixture",
    "kl_covariance_part",
    "kl_divergence",
    "kl_executed",
    "kl_gradient",
    "kl_loss",
    "kl_mean_part",
    "kl_per_dimension",
    "kl_upper_bound",
    "kl_variational",
    "knn_kl",
    "mutual_information",
    "reverse_kl",
    "sequence_kl",
    "sequence_kl_loss",
    "tempered",
    "token_kl",
    "token_log_probs",
    "wasserstein",
]
__all__ += divergences.__all__
