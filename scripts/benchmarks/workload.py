"""Job of one measurement of speed; imports nothing heavy, so that memory is the library's own."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, Self

from klrl.validation import Fraction, NonNegative, NonNegativeInt, Positive, PositiveInt, validate


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The settings every library is given, under klrl's names; advantages are normalised."""

    updates: PositiveInt = 10
    """Number of updates to time in each measurement."""
    warm_up: PositiveInt = 1
    """Number of updates before them, not timed."""
    threads: PositiveInt = 1
    """Threads for torch, BLAS and EnvPool."""
    n_envs: PositiveInt = 8
    """Parallel environments."""
    n_steps: PositiveInt = 256
    """Steps per environment and update."""
    batch_size: PositiveInt = 64
    """Minibatch size of PPO; divides n_envs * n_steps."""
    critic_batch_size: PositiveInt = 128
    """Minibatch size of TRPO's critic; divides n_envs * n_steps."""
    n_epochs: PositiveInt = 10
    """Passes of PPO over the batch."""
    n_critic_updates: PositiveInt = 10
    """Passes of TRPO's critic over the batch."""
    cg_max_steps: PositiveInt = 15
    """Most conjugate gradient steps of TRPO per update."""
    hidden_sizes: tuple[PositiveInt, ...] = (64, 64)
    """Widths of the hidden layers, tanh, of the policy and of the critic, which share nothing."""
    learning_rate: Positive = 3e-4
    """Adam's step size, constant."""
    gamma: Fraction = 0.99
    """Discount factor."""
    gae_lambda: Fraction = 0.95
    """Decay lambda of generalised advantage estimation."""
    clip_range: Positive = 0.2
    """PPO's clip of the ratio."""
    vf_coef: NonNegative = 0.5
    """Weight of PPO's value loss."""
    max_grad_norm: Positive = 0.5
    """PPO's gradients longer than this are scaled down to it."""
    target_kl: Positive = 0.01
    """TRPO's bound."""
    normalize: bool = False
    """Normalise observations and rewards, each library in its own way."""

    def __post_init__(self) -> None:
        validate(self)
        for name in ("batch_size", "critic_batch_size"):
            if self.steps_per_update % (size := getattr(self, name)):
                raise ValueError(f"{name} = {size}; allowed: divisors of n_envs * n_steps = {self.steps_per_update}")

    @property
    def steps_per_update(self) -> int:
        """Environment steps in one batch."""
        return self.n_envs * self.n_steps

    @property
    def total_timesteps(self) -> int:
        """Environment steps of a whole measurement, warm-up included."""
        return self.steps_per_update * (self.warm_up + self.updates)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One measurement in one process."""

    library: str
    engine: str
    """Engine of the environments: sync or envpool."""
    algorithm: str
    env: str
    seed: int
    workload: Workload
    files: tuple[str, ...] = ()
    """CleanRL's scripts."""
    settings: dict[str, Any] = field(default_factory=dict)
    """More fields of klrl's own configuration, over those of the workload."""
    profile: bool = False
    """Measure where klrl's time goes, instead of steps/s."""
    variant: str = ""
    """Name of what differs from the usual run, if something does."""
    environment: dict[str, str] = field(default_factory=dict)
    """Environment variables of the process."""
    processes: PositiveInt = 1
    """Number of such runs side by side, each on cores of its own."""
    place: NonNegativeInt = 0
    """Place among these."""

    @property
    def key(self) -> tuple[str, str, str, str, str]:
        """Names that identify the measurement; its repeats share them."""
        return self.library, self.engine, self.algorithm, self.env, self.variant

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Restore a job from ``dataclasses.asdict`` and JSON."""
        workload: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data["workload"].items()}
        read: dict[str, Any] = {"workload": Workload(**workload), "files": tuple(data["files"])}
        return cls(**(data | read))


@dataclass
class Clock:
    """Times updates: it is called at the end of each, and knows the time of those after the warm-up."""

    workload: Workload
    marks: list[float] = field(default_factory=list)
    """Wall time at the end of every update."""
    cpu_marks: list[float] = field(default_factory=list)
    """CPU time of the process, all its threads, at the same moments."""
    taken: list[int] = field(default_factory=list)
    """Environment steps of every update."""

    def __call__(self, steps: int | None = None) -> None:
        """Record the end of an update after ``steps`` environment steps, by default a full batch."""
        self.marks.append(time.perf_counter())
        self.cpu_marks.append(time.process_time())
        self.taken.append(self.workload.steps_per_update if steps is None else steps)

    @property
    def done(self) -> bool:
        """True once all updates have ended."""
        return len(self.marks) == self.workload.warm_up + self.workload.updates

    @property
    def warm(self) -> bool:
        """True when the warm-up has just ended."""
        return len(self.marks) == self.workload.warm_up

    @property
    def seconds(self) -> float:
        """Wall time of the timed updates.

        Raises:
            RuntimeError: the library made fewer updates than asked for.
        """
        return self._timed(self.marks)

    @property
    def cpu_seconds(self) -> float:
        """CPU time of the timed updates, which other programs on the machine change little.

        Raises:
            RuntimeError: the library made fewer updates than asked for.
        """
        return self._timed(self.cpu_marks)

    def _timed(self, marks: list[float]) -> float:
        if not self.done:
            expected = self.workload.warm_up + self.workload.updates
            raise RuntimeError(f"the library made {len(self.marks)} updates; expected: {expected}")
        return marks[-1] - marks[self.workload.warm_up - 1]

    @property
    def steps(self) -> int:
        """Environment steps of the timed updates, over all environments."""
        return sum(self.taken[self.workload.warm_up :])
