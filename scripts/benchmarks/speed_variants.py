"""Variants of klrl's own runs in ``klrl benchmark speed``: many environments, no native code, two runs at once."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from klrl.native import available
from klrl.scripts.benchmarks.workload import Job, Workload

Name = Literal["numpy", "envpool-64", "two-processes"]
MANY = 64


@dataclass(frozen=True)
class Variant:
    """A change of a job, for rows beside the usual ones."""

    engine: str
    change: Callable[[Job], Job]
    missing: Callable[[Workload], str | None]
    """Function that says why it cannot be measured here, or ``None``."""
    alone: bool = False
    """Measure the environments alone, too."""


def _numpy(job: Job) -> Job:
    return replace(job, variant="numpy", environment={"KLRL_NATIVE": "off"})


def _no_native(work: Workload) -> str | None:
    return None if available() else "the kernel was not built"


def _many(job: Job) -> Job:
    w = job.workload
    return replace(job, variant="envpool-64", workload=replace(w, n_envs=MANY, n_steps=w.steps_per_update // MANY))


def _not_many(work: Workload) -> str | None:
    if importlib.util.find_spec("envpool") is None:
        return "envpool is not installed"
    return (
        f"n_envs * n_steps = {work.steps_per_update} is no multiple of {MANY}" if work.steps_per_update % MANY else None
    )


def _two(job: Job) -> Job:
    return replace(job, variant="two-processes", processes=2)


def _one_core(work: Workload) -> str | None:
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return None if cores >= 2 * work.threads else f"cores = {cores}, of which two runs need {2 * work.threads}"


VARIANTS: dict[Name, Variant] = {
    "numpy": Variant("sync", _numpy, _no_native),
    "envpool-64": Variant("envpool", _many, _not_many, alone=True),
    "two-processes": Variant("sync", _two, _one_core),
}
"""Variants by their names in the rows: with numpy where native code is the default, with 64 environments in EnvPool,
and two runs at once."""
