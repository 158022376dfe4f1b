"""Chapters of ``klrl explore-kl``, in their order."""

from __future__ import annotations

from collections.abc import Callable

import torch

from klrl.scripts.explore import (
    asymmetry,
    coding,
    dimensions,
    estimators,
    fits,
    gradients,
    inference,
    learning,
    supports,
    updates,
)
from klrl.scripts.explore.contents import Section

SECTIONS: tuple[Callable[[torch.Generator], Section], ...] = (
    coding.section,
    asymmetry.section,
    fits.section,
    supports.section,
    estimators.section,
    learning.section,
    inference.section,
    dimensions.section,
    updates.section,
    gradients.section,
)
LEAD = """
    What the Kullback-Leibler divergence is, how it behaves, how it is estimated, where it hides, and what it does in
    the updates of PPO and TRPO. Probability and logarithms are all that is needed; chapters build on each other, and
    the last one is for experts. Move the controls: the charts follow.

    Every number was computed by `klrl.kl` when this page was written or, where you move something, by a few lines of
    script that klrl's tests compare with it. What the theory calls equal was checked; the list is at the end.
"""


def explore(seed: int) -> list[Section]:
    """Compute every chapter; each has random numbers of its own.

    Raises:
        BrokenIdentity: an identity does not hold.
    """
    return [section(torch.Generator().manual_seed(1000 * seed + i)) for i, section in enumerate(SECTIONS)]
