"""Options of a training that do not affect the update (``klrl train``, ``klrl resume``)."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from klrl.run.evaluation import ENOUGH
from klrl.validation import Bounds, Finite, Positive, PositiveInt, validate

if TYPE_CHECKING:
    from klrl.experience import EnvLike
    from klrl.experience.wrapped import Named
    from klrl.run import EvalCallback, Evaluation, KLBudget, RunDirectory, StopAtReturn, VideoCallback

TrackerName = Literal["wandb", "trackio"]
OnDivergence = Literal["stop", "broadcast"]
VIDEOS = "videos"
"""Folder of a run directory with the videos of its training."""
LONGEST_VIDEO = 1_000
"""Default limit of a video, in steps: its frames are in memory until it is written, 0.7 MB each at 400 x 600."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Options that do not affect the update: evaluation, videos, checkpoints, budgets, trackers, threads."""

    eval_every: PositiveInt | None = None
    """Environment steps between evaluations during the training, rounded up to whole updates, in environments of their
    own; the best agent is kept in checkpoints/best (by default only the final evaluation)."""
    eval_episodes: Annotated[int, Bounds(0, 10**6)] | None = None
    """Number of episodes of every evaluation (by default 20 of the final one, 5 during the training)."""
    eval_stochastic: tyro.conf.FlagCreatePairsOff[bool] = False
    """Sample actions in evaluations instead of taking the most probable one."""
    eval_max_steps: PositiveInt = ENOUGH
    """Most steps of such an episode; longer ones are cut, which a warning says."""
    stop_at_return: Finite | None = None
    """End the training once an evaluation has this mean return; without --eval-every, the last 100 training
    episodes."""
    video_every: PositiveInt | None = None
    """Environment steps between videos of an episode, rounded up to whole updates, in environments of their own; they
    are in the run directory's folder videos (pip install 'klrl[video]')."""
    video_length: PositiveInt = LONGEST_VIDEO
    """Most steps of a video, whose pictures are in memory until it is written."""
    checkpoint_every: PositiveInt | None = None
    """Environment steps between checkpoints, by default a tenth of the training, at most 100,000; one more is written
    at the end."""
    keep_checkpoints: PositiveInt = 3
    """Number of newest checkpoints to keep; the best one is kept, too."""
    kl_budget: Positive | None = None
    """Largest sum of KL(old||new) over all updates, in nats (metric drift/kl_sum)."""
    kl_budget_length: Positive | None = None
    """Longest path of the policy: largest sum of sqrt(2 KL(old||new)) over all updates, in sqrt(nats) (metric
    drift/path_length)."""
    initial_kl_budget: Positive | None = None
    """Largest KL(first policy||new) on the first batch's probe states, in nats (metric drift/kl_initial)."""
    over_budget: Literal["stop", "warn"] = "stop"
    """End the training after the update that exceeds a budget (stop), or warn once and continue (warn)."""
    track: TrackerName | None = None
    """Send settings, metrics, videos, files and report to Weights & Biases (wandb) or Trackio (trackio), under the name
    of the run directory (pip install 'klrl[wandb]', 'klrl[trackio]')."""
    track_project: str | None = None
    """Project there, by default that of the variable WANDB_PROJECT or TRACKIO_PROJECT, else klrl."""
    torch_threads: Annotated[int, Bounds(1, 1024)] = 1
    """Number of torch's threads; small networks are fastest with one."""
    rank_timeout: Positive = 120.0
    """Under torchrun: seconds without a sign of life after which a rank counts as dead, and the others end."""
    on_divergence: OnDivergence = "stop"
    """Under torchrun: when ranks compute other parameters from the same batch, end the training (stop) or go on from
    those of rank 0, which train/ranks_differing counts (broadcast)."""

    def __post_init__(self) -> None:
        validate(self)
        if self.eval_every is not None and self.eval_episodes == 0:
            raise ValueError("eval_episodes = 0 with eval_every; allowed: an integer >= 1")

    @property
    def final_episodes(self) -> int:
        """Number of episodes of the final evaluation."""
        return 20 if self.eval_episodes is None else self.eval_episodes

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

    def evaluation(self, env: EnvLike) -> list[EvalCallback]:
        """Return the evaluations during the training in such environments."""
        from klrl.run import EvalCallback

        if self.eval_every is None:
            return []
        return [
            EvalCallback(
                env,
                eval_every=self.eval_every,
                n_eval_episodes=self.eval_episodes or 5,
                deterministic=not self.eval_stochastic,
                max_steps=self.eval_max_steps,
            )
        ]

    def videos(self, env: Named, run_dir: Path) -> list[VideoCallback]:
        """Return what records such environments on the way.

        Raises:
            ValueError: the package that writes videos is not installed.
        """
        from klrl.run import VideoCallback

        if self.video_every is None:
            return []
        return [
            VideoCallback(
                env,
                run_dir / VIDEOS,
                video_every=self.video_every,
                deterministic=not self.eval_stochastic,
                video_length=self.video_length,
            )
        ]

    def evaluated(self, agent: Any, env: Named) -> Evaluation:
        """Play the episodes of the final evaluation in an environment that is made for it.

        Raises:
            CannotAct: the agent's outputs are not finite.
        """
        from klrl.experience.environments import factory
        from klrl.run import evaluate

        with contextlib.closing(factory(env)()) as one:
            return evaluate(
                agent,
                one,
                self.final_episodes,
                deterministic=not self.eval_stochastic,
                seed=agent.seed,
                max_steps=self.eval_max_steps,
            )

    def goal(self) -> list[StopAtReturn]:
        """Return the goal of the training."""
        from klrl.run import StopAtReturn

        if self.stop_at_return is None:
            return []
        return [StopAtReturn(self.stop_at_return, evaluations=self.eval_every is not None)]

    def budgets(self) -> list[KLBudget]:
        """Return the limits of the whole training."""
        from klrl.run import KLBudget

        total, initial, length = self.kl_budget, self.initial_kl_budget, self.kl_budget_length
        if total is None and initial is None and length is None:
            return []
        return [KLBudget(total=total, initial=initial, length=length, on_exceed=self.over_budget)]
