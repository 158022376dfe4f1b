"""Hooks into training, down to the minibatch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

if TYPE_CHECKING:
    from gymnasium.vector import VectorEnv

    from klrl.experience import Batch, Episode
    from klrl.policy.distributions import Distribution

Metrics = dict[str, float | str]
"""One update's metrics by name, ``group/name``: numbers, and text such as ``train/stop_reason``."""
STEP = "time/total_timesteps"
"""Metric that places an update in its training."""
NEXT_KL = "drift/kl_next"
"""Metric of an update that is known once the next rollout is in."""
EVAL = "eval/"
"""Begins the names of metrics of evaluations during the training."""
SUCCESS, INFO = "rollout/success_rate", "rollout/info/"
"""Metrics of what infos hold under is_success, and (followed by the key) under other keys."""


def is_complete(row: Metrics) -> bool:
    """Tell whether a row has what the rollout after its update told of it."""
    return not math.isnan(float(row.get(NEXT_KL, math.nan)))


def info_metric(key: str) -> str:
    """Return the name of the metric that averages, over episodes, the value of a key in their last infos."""
    return SUCCESS if key == "is_success" else f"{INFO}{key}"


class LearningAgent(Protocol):
    """An agent as callbacks can rely on it, whichever it is; klrl's own have more (:class:`klrl.agents.Agent`)."""

    @property
    def num_timesteps(self) -> int:
        """Environment steps taken, over all environments."""

    @property
    def n_updates(self) -> int:
        """Updates done."""

    @property
    def progress_remaining(self) -> float:
        """Share of the training that is left, from 1 to 0."""

    @property
    def seed(self) -> int:
        """Seed of the run."""

    @property
    def config(self) -> Any:
        """The settings."""

    @property
    def region(self) -> Any:
        """The trust region, as it is now."""

    @property
    def history(self) -> Sequence[Metrics]:
        """Every update's metrics."""

    @property
    def episodes(self) -> Sequence[Episode]:
        """The last finished ones, at most 100."""

    @property
    def envs(self) -> VectorEnv:
        """The environments that are learned from."""

    def distribution(self, observations: Any, action_masks: Any = None) -> Distribution:
        """The policy at observations ``[*B]``."""

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: np.ndarray | None = None,
    ) -> tuple[np.ndarray, Any]:
        """Actions, and the state as given."""

    def save(self, path: str | Path) -> Path:
        """Write the state after the last whole update."""

    def describe(self) -> dict[str, Any]:
        """The agent in words of JSON."""


class Callback:
    """Base of callbacks: override the hooks you need; each is passed the agent, which may be read freely.

    Arguments need no annotations: an editor has their types from here.

    A method whose name begins with ``on_`` or ``_on_`` and is none of these gets a warning: training never calls it.
    """

    first_rank_only: bool = False
    """True if, of several ranks (:class:`klrl.run.World`), only the first one calls it: what writes, shows or plays."""

    def on_training_start(self, agent: LearningAgent, total_timesteps: int) -> bool | None:
        """Called before the first rollout; training ends once ``agent.num_timesteps`` reaches ``total_timesteps``.

        Returning ``False`` ends it before its first update.
        """

    def on_update_start(self, agent: LearningAgent, batch: Batch) -> None:
        """A batch has been collected."""

    def on_minibatch_end(self, agent: LearningAgent, metrics: dict[str, Any]) -> None:
        """A minibatch step was taken; ``metrics`` are its losses, numbers or 0-d tensors."""

    def on_epoch_end(self, agent: LearningAgent, epoch: int) -> None:
        """A pass over the batch is done."""

    def on_update_end(self, agent: LearningAgent, batch: Batch, metrics: Metrics) -> bool | None:
        """The update is done and ``metrics`` holds its drift report.

        Entries added to ``metrics`` are logged with them: numbers of any kind become floats, one line of text stays
        text, and anything else is left out, with a warning. Returning ``False``, numpy's and torch's too, ends the
        training; any other value does not.
        """

    def on_error(self, agent: LearningAgent, error: Exception) -> None:
        """Training is about to end by an exception; what is done here cannot change that."""

    def on_training_end(self, agent: LearningAgent) -> None:
        """After the last update, also when training ends by an exception or cannot begin."""


class Recorder(Callback):
    """Base of callbacks that record updates: they run after all others, and also if one of those failed."""

    first_rank_only = True


class CallerContext(Callback):
    """Runs user callbacks with the caller's gradient mode and numpy error settings, which an update overrides."""

    def __init__(self, callback: Callback) -> None:
        self.callback = callback
        self._gradients, self._errors = torch.is_grad_enabled(), np.geterr()

    def on_minibatch_end(self, agent: LearningAgent, metrics: dict[str, Any]) -> None:
        """Pass on."""
        with torch.set_grad_enabled(self._gradients), np.errstate(**self._errors):
            self.callback.on_minibatch_end(agent, metrics)

    def on_epoch_end(self, agent: LearningAgent, epoch: int) -> None:
        """Pass on."""
        with torch.set_grad_enabled(self._gradients), np.errstate(**self._errors):
            self.callback.on_epoch_end(agent, epoch)
