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
"""Metrics of what infos say under is_success, and under any other key, whose name follows."""


def info_metric(key: str) -> str:
    """The metric that is the mean over episodes of what their last infos say under a key."""
    return SUCCESS if key == "is_success" else f"{INFO}{key}"


class Callback:
    """Override what you need; the agent is passed to every hook and may be read freely.

    A method whose name begins with ``on_`` or ``_on_`` and is none of these gets a warning: training never calls it.
    """

    def on_training_start(self, agent: Any, total_timesteps: int) -> None:
        """Before the first rollout; training ends once ``agent.num_timesteps`` reaches ``total_timesteps``."""

    def on_update_start(self, agent: Any, batch: Batch) -> None:
        """A batch has been collected."""

    def on_minibatch_end(self, agent: Any, metrics: dict[str, Any]) -> None:
        """A minibatch step was taken; ``metrics`` are its losses, numbers or 0-d tensors."""

    def on_epoch_end(self, agent: Any, epoch: int) -> None:
        """A pass over the batch is done."""

    def on_update_end(self, agent: Any, batch: Batch, metrics: Metrics) -> bool | None:
        """The update is done and ``metrics`` holds its drift report.

        What is added to ``metrics`` is written wherever they are: numbers of any kind become floats, one line of text
        stays text, and anything else is left out, with a warning. ``False``, numpy's and torch's too, ends the
        training; any other answer does not.
        """

    def on_error(self, agent: Any, error: Exception) -> None:
        """Training is about to end by an exception; what is done here cannot change that."""

    def on_training_end(self, agent: Any) -> None:
        """After the last update, also when training ends by an exception or cannot begin."""


class Recorder(Callback):
    """A callback that keeps what the others leave of an update: it comes after them, and also where one has failed."""


class CallerContext(Callback):
    """Calls the hooks within an update as if outside of it: gradients and numpy's warnings as the caller has them."""

    def __init__(self, callback: Callback) -> None:
        self._callback = callback
        self._gradients, self._errors = torch.is_grad_enabled(), np.geterr()

    def on_minibatch_end(self, agent: Any, metrics: dict[str, Any]) -> None:
        """Pass on."""
        with torch.set_grad_enabled(self._gradients), np.errstate(**self._errors):
            self._callback.on_minibatch_end(agent, metrics)

    def on_epoch_end(self, agent: Any, epoch: int) -> None:
        """Pass on."""
        with torch.set_grad_enabled(self._gradients), np.errstate(**self._errors):
            self._callback.on_epoch_end(agent, epoch)
