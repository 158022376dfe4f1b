"""Distribution records: what a policy does at each state, as a frozen tuple of tensors.

A record can be indexed, detached, concatenated and stored with a batch; old records stay what they
were while the network moves on. ``[*B]`` are batch dimensions (time, environment, ...), the other dimensions of a
field belong to one action. Fields are tensors, or numpy arrays: what is computed from a record is what its fields are.
"""

from klrl.policy.distributions.beta import Beta
from klrl.policy.distributions.categorical import Bernoulli, Categorical, Factored, MultiCategorical
from klrl.policy.distributions.from_torch import as_record
from klrl.policy.distributions.gaussian import DiagGaussian, FullGaussian, GaussianMixture, SquashedGaussian
from klrl.policy.distributions.record import (
    SHORT,
    Distribution,
    Gradient,
    NoClosedForm,
    OfNoise,
    concatenate_records,
    derivative,
    noise,
    stack_records,
    widened,
)

__all__ = [
    "SHORT",
    "Bernoulli",
    "Beta",
    "Categorical",
    "DiagGaussian",
    "Distribution",
    "Factored",
    "FullGaussian",
    "GaussianMixture",
    "Gradient",
    "MultiCategorical",
    "NoClosedForm",
    "OfNoise",
    "SquashedGaussian",
    "as_record",
    "concatenate_records",
    "derivative",
    "noise",
    "stack_records",
    "widened",
]
