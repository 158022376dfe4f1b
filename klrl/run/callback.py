"""Hooks into training, down to the minibatch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from klrl.experience import Batch

Metrics = dict[str, float | str]
"""One update's metrics by name, ``group/name``: numbers, and text such as ``train/stop_reason``."""
SUCCESS, INFO = "rollout/success_rate", "rollout/info/"
"""Metrics of what infos hold under is_success, and (followed by the key) under other keys."""


def info_metric(key: str) -> str:
    """Return the name of the metric that averages, over episodes, the value of a key in their last infos."""
    return SUCCESS if key == "is_success" else f"{INFO}{key}"


class Callback:
    """Base of callbacks: override the hooks you need; each is passed the agent, which may be read freely.

    A warning names methods that begin with ``on_`` or ``_on_`` but are not hooks: training never calls them.
    """

    def on_training_start(self, agent: Any, total_timesteps: int) -> None:
        """Run before the first rollout; training ends once ``agent.num_timesteps`` reaches ``total_timesteps``."""

    def on_update_start(self, agent: Any, batch: Batch) -> None:
        """Run when a batch has been collected, before its update."""

    def on_minibatch_end(self, agent: Any, metrics: dict[str, Any]) -> None:
        """Run after a minibatch step; ``metrics`` are its losses, numbers or 0-d tensors."""

    def on_epoch_end(self, agent: Any, epoch: int) -> None:
        """Run after a pass over the batch."""

    def on_update_end(self, agent: Any, batch: Batch, metrics: Metrics) -> bool | None:
        """Run after the update; ``metrics`` holds its drift report.

        Entries added to ``metrics`` are logged with them: numbers of any kind become floats, one line of text stays
        text, and anything else is left out, with a warning. Returning ``False``, numpy's and torch's too, ends the
        training; any other value does not.
        """

    def on_error(self, agent: Any, error: Exception) -> None:
        """Run when an exception is about to end training; the hook cannot prevent that."""

    def on_training_end(self, agent: Any) -> None:
        """Run after the last update, also if training ended by an exception or could not begin."""


class Recorder(Callback):
    """Base of callbacks that record updates: they run after all others, and also if one of those failed."""


class CallerContext(Callback):
    """Runs user callbacks with the caller's gradient mode and numpy error settings, which an update overrides."""

    def __init__(self, callback: Callback) -> None:
        self._callback = callback
        self._gradients, self._errors = torch.is_grad_enabled(), np.geterr()

    def on_minibatch_end(self, agent: Any, metrics: dict[str, Any]) -> None:
        """Call the callback's hook in the caller's modes."""
        with torch.set_grad_enabled(self._gradients), np.errstate(**self._errors):
            self._callback.on_minibatch_end(agent, metrics)

    def on_epoch_end(self, agent: Any, epoch: int) -> None:
        """Call the callback's hook in the caller's modes."""
        with torch.set_grad_enabled(self._gradients), np.errstate(**self._errors):
            self._callback.on_epoch_end(agent, epoch)
