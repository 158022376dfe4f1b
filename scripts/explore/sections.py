"""Sections of ``klrl explore-kl``, in their order."""

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
)
from klrl.scripts.explore.report import Section

SECTIONS: tuple[Callable[[torch.Generator], Section], ...] = (
    coding.section,
    asymmetry.section,
    fits.section,
    supports.section,
    estimators.section,
    gradients.section,
    learning.section,
    inference.section,
    dimensions.section,
)
LEAD = """
    What the Kullback-Leibler divergence is, how it behaves, how it is estimated, and where it hides: every number is
    computed by klrl.kl when this command runs, and every identity is checked. The figures lie beside this text, all
    numbers in full precision in numbers.csv.
"""


def explore(seed: int) -> list[Section]:
    """Compute every section; each has random numbers of its own.

    Raises:
        BrokenIdentity: an identity does not hold.
    """
    return [section(torch.Generator().manual_seed(1000 * seed + i)) for i, section in enumerate(SECTIONS)]
