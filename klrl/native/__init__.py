"""The optional kernel in C: epochs of minibatch steps, and outputs in rollouts; without it, numpy does the same.

:mod:`klrl.policy.paths` says when it is used. It knows numbers and arrays only, and nothing of the rest of the library.
"""

from klrl.native.library import (
    LEVELS,
    SURROGATES,
    VARIABLE,
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
    "Kernel",
    "Loss",
    "Network",
    "Samples",
    "absence",
    "at_level",
    "available",
    "find",
]
