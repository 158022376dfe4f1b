"""Evaluation during training, in environments of its own, and the end of a training that is good enough."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from klrl.experience.environments import EnvLike
from klrl.run.beside import Beside, described, newest, unchanged_generators
from klrl.run.callback import Callback, Metrics
from klrl.run.evaluation import (
    CUT,
    ENOUGH,
    FAILURES,
    MEAN_LENGTH,
    MEAN_REWARD,
    SUCCESS_RATE,
    Evaluation,
    best_of,
    evaluate,
)
from klrl.text import warn_user

if TYPE_CHECKING:
    from klrl.experience import Batch

ENOUGH_EPISODES = 100
"""Training episodes whose mean return counts: all that an agent remembers."""


class EvalCallback(Beside):
    """Plays evaluation episodes after every so many steps, and after the last one.

    Adds ``eval/mean_reward``, ``eval/mean_ep_length`` and, where infos have ``is_success``, ``eval/success_rate`` to
    the metrics of the update; a run directory keeps the best agent by ``eval/mean_reward`` in ``checkpoints/best``.
    Every evaluation begins at the same seed, which is never the training's, with statistics as they are then. No bit
    of the training depends on it: the agent's random generators and the global ones are left as they were found.

    An evaluation that raises costs the training nothing: a warning names the error, ``eval/mean_reward`` is NaN, and
    ``eval/failures`` counts it. Where training has worker processes (``vectorization_mode="async"``), the environment
    is in one too, so that it may also hang (``worker_timeout``) or crash. An instance of ``Env`` is never moved.

    Args:
        env: a Gymnasium id, an ``EnvSpec`` or a function, of which one is made for each evaluation, or an ``Env``.
        eval_every: environment steps between evaluations, over all environments, rounded up to whole updates.
        n_eval_episodes: episodes of an evaluation.
        deterministic: take the most probable actions instead of sampling them.
        max_steps: most steps of an episode; longer ones are cut, which ``eval/cut`` counts.
        best_model_save_path: where the agent is saved whenever an evaluation is its best so far.

    Raises:
        ValueError: an environment that cannot be one, or a number below 1.
    """

    def __init__(
        self,
        env: EnvLike,
        *,
        eval_every: int = 10_000,
        n_eval_episodes: int = 5,
        deterministic: bool = True,
        max_steps: int = ENOUGH,
        best_model_save_path: str | Path | None = None,
    ) -> None:
        numbers = {"eval_every": eval_every, "n_eval_episodes": n_eval_episodes, "max_steps": max_steps}
        for name, value in numbers.items():
            if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} = {value!r}; allowed: an integer >= 1")
        super().__init__(env, eval_every)
        self.eval_every, self.n_eval_episodes, self.max_steps = eval_every, n_eval_episodes, max_steps
        self.deterministic, self.best_model_save_path = deterministic, best_model_save_path
        self.best_mean_reward = -math.inf
        """Best evaluation in the agent's history."""
        self.last_evaluation: Evaluation | None = None
        """Returns and lengths of the last evaluation, unless it failed."""
        self._failures = 0
        self._told: set[str] = set()

    def on_training_start(self, agent: Any, total_timesteps: int) -> None:
        """Check the spaces, and make up for an evaluation in which the training was interrupted.

        Raises:
            ValueError: other spaces than the agent's.
        """
        self.best_mean_reward = best_of(agent.history)
        self._failures = max((int(row[FAILURES]) for row in agent.history if FAILURES in row), default=0)
        super().on_training_start(agent, total_timesteps)

    def is_done(self, agent: Any) -> bool:
        """Tell whether the agent's last update has its evaluation."""
        return MEAN_REWARD in agent.history[-1]

    def play(self, agent: Any, metrics: Metrics) -> None:
        """Evaluate, and add the result to the metrics of the agent's last update."""
        found: Metrics = {MEAN_REWARD: math.nan, MEAN_LENGTH: math.nan}
        try:
            with unchanged_generators(agent), self._environment(agent, self.make) as env:
                result = evaluate(
                    agent,
                    env,
                    self.n_eval_episodes,
                    deterministic=self.deterministic,
                    seed=agent.seed,
                    max_steps=self.max_steps,
                )
        except (Exception, SystemExit) as error:
            self.last_evaluation = None
            self._failures += 1
            self._tell(described(error), agent.num_timesteps)
        else:
            self.last_evaluation = result
            found = {MEAN_REWARD: result.mean, MEAN_LENGTH: result.mean_length, CUT: float(len(result.cut))}
            found |= {} if result.success_rate is None else {SUCCESS_RATE: result.success_rate}
        metrics |= {**found, FAILURES: float(self._failures)}
        self._keep_best(agent, float(found[MEAN_REWARD]))

    def _tell(self, what: str, steps: int) -> None:
        """Warn about a failure, once for each kind: the metric counts them."""
        if what not in self._told:
            self._told.add(what)
            warn_user(f"evaluation after {steps:,} steps failed: {what}; training goes on, and {FAILURES} counts")

    def _keep_best(self, agent: Any, mean: float) -> None:
        if mean > self.best_mean_reward:
            self.best_mean_reward = mean
            if self.best_model_save_path is not None:
                agent.save(self.best_model_save_path)


class StopAtReturn(Callback):
    """Ends training after the update whose policy has reached a return.

    Args:
        threshold: the mean return to reach.
        evaluations: read the evaluations of an :class:`EvalCallback`, which comes before this one among the callbacks;
            otherwise the mean return of the last 100 training episodes, once there are as many.
    """

    def __init__(self, threshold: float, *, evaluations: bool = False) -> None:
        self.threshold, self.evaluations = threshold, evaluations
        self.reason: str | None = None
        """The return that was reached, and when; ``None`` while none was."""

    def reached(self, agent: Any, metrics: Metrics) -> str | None:
        """Return which of an update's metrics reaches the threshold, or ``None``."""
        name = MEAN_REWARD if self.evaluations else "rollout/ep_rew_mean"
        if not self.evaluations and len(agent.episodes) < ENOUGH_EPISODES:
            return None
        value = float(metrics.get(name, math.nan))
        return f"{name} = {value:.6g}, at least {self.threshold:g}" if value >= self.threshold else None

    def on_training_start(self, agent: Any, total_timesteps: int) -> bool | None:
        """End a training that is resumed where its last evaluation had been interrupted."""
        self.reason = None
        return self.on_update_end(agent, None, agent.history[-1]) if newest(agent) else None

    def on_update_end(self, agent: Any, batch: Batch | None, metrics: Metrics) -> bool | None:
        """Compare the update's return with the threshold."""
        if (reached := self.reached(agent, metrics)) is None:
            return None
        self.reason = f"{reached}, after {agent.num_timesteps:,} steps"
        return False
