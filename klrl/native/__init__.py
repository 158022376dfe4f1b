"""The optional kernel in C: epochs of minibatch steps, outputs and products with their Jacobian.

Without it numpy or torch do the same.

:mod:`klrl.policy.paths` says when it is used. It knows numbers and arrays only, and nothing of the rest of the library.
"""

from klrl.native.library import (
    LEVELS,
    SURROGATES,
    VARIABLE,
    Jacobian,
    Kernel,
    Loss,
    Network,
    Samples,
    absence,
    at_level,
    available,
    find,
)

__all__ = [
    "LEVELS",
    "SURROGATES",
    "VARIABLE",
    "Jacobian",
    "Kernel",
    "Loss",
    "Network",
    "Samples",
    "absence",
    "at_level",
    "available",
    "find",
]
