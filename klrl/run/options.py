"""Options of a training that do not affect the update (``klrl train``, ``klrl resume``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from klrl.run.evaluation import ENOUGH
from klrl.validation import Bounds, Positive, PositiveInt, validate

if TYPE_CHECKING:
    from klrl.run import KLBudget, RunDirectory


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Options that do not affect the update: evaluation, checkpoints, budgets, threads."""

    eval_episodes: Annotated[int, Bounds(0, 10**6)] = 20
    """Number of deterministic episodes of the final evaluation."""
    eval_max_steps: PositiveInt = ENOUGH
    """Most steps of such an episode; longer ones are cut, which the last line says."""
    checkpoint_every: PositiveInt | None = None
    """Environment steps between checkpoints, by default a tenth of the training, at most 100,000; one more is written
    at the end."""
    keep_checkpoints: PositiveInt = 3
    """Number of newest checkpoints to keep; the best one is kept, too."""
    kl_budget: Positive | None = None
    """Largest sum of KL(old||new) over all updates, in nats (metric drift/kl_sum)."""
    initial_kl_budget: Positive | None = None
    """Largest KL(first policy||new) on the first batch's probe states, in nats (metric drift/kl_initial)."""
    over_budget: Literal["stop", "warn"] = "stop"
    """End the training after the update that exceeds a budget (stop), or warn once and continue (warn)."""
    torch_threads: Annotated[int, Bounds(1, 1024)] = 1
    """Number of torch's threads; small networks are fastest with one."""

    def __post_init__(self) -> None:
        validate(self)

    @classmethod
    def noted(cls, notes: dict[str, Any]) -> RunOptions:
        """Read the options from ``config.json``.

        Raises:
            ValueError: a value is out of range.
        """
        return cls(**{f.name: notes[f.name] for f in fields(cls) if f.name in notes})

    def directory(self, path: Path, notes: Mapping[str, Any] | None = None, *, resume: bool = False) -> RunDirectory:
        """Return the writer of the run's files."""
        from klrl.run import RunDirectory

        return RunDirectory(
            path,
            checkpoint_every=self.checkpoint_every,
            keep=self.keep_checkpoints,
            notes=asdict(self) | dict(notes or {}),
            resume=resume,
        )

    def budgets(self) -> list[KLBudget]:
        """Return the limits of the whole training."""
        from klrl.run import KLBudget

        total, initial = self.kl_budget, self.initial_kl_budget
        if total is None and initial is None:
            return []
        return [KLBudget(total=total, initial=initial, on_exceed=self.over_budget)]
