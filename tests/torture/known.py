"""All cases of the protocol."""

from __future__ import annotations

from collections.abc import Callable

from torture import (
    clocks,
    damage,
    determinism,
    disks,
    failures,
    inputs,
    interruptions,
    interrupts,
    locks,
    logs,
    malice,
    nest,
    numbers,
    places,
    ranks,
    saving,
    soak,
    studies,
)
from torture.case import Case

MODULES: tuple[Callable[[int], list[Case]], ...] = (
    interruptions.cases,
    saving.cases,
    damage.cases,
    malice.cases,
    locks.cases,
    logs.cases,
    determinism.cases,
    nest.cases,
    numbers.cases,
    disks.cases,
    inputs.cases,
    failures.cases,
    interrupts.cases,
    soak.cases,
    clocks.cases,
    places.cases,
    studies.cases,
    ranks.cases,
)
"""Each makes the cases of some points of the protocol, from the seed of everything that is random in them."""


def known(seed: int, soak_minutes: float) -> list[Case]:
    """All cases, in the order of :data:`MODULES`; the long runs last ``soak_minutes`` each."""
    lists = [soak.cases(seed, soak_minutes) if make is soak.cases else make(seed) for make in MODULES]
    return [case for cases in lists for case in cases]
