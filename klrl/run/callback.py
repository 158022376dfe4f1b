"""Hooks into training, down to the minibatch."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from klrl.experience import Batch

Metrics = dict[str, float | str]
"""One update's metrics by name, ``group/name``; all are numbers but ``train/stop_reason``."""
SUCCESS, INFO = "rollout/success_rate", "rollout/info/"
"""Metrics of what infos say under is_success, and under any other key, whose name follows."""


def info_metric(key: str) -> str:
    """The metric that is the mean over episodes of what their last infos say under a key."""
    return SUCCESS if key == "is_success" else f"{INFO}{key}"


class Callback:
    """Override what you need; the agent is passed to every hook and may be read freely."""

    def on_training_start(self, agent: Any, total_timesteps: int) -> None:
        """Before the first rollout; training ends once ``agent.num_timesteps`` reaches ``total_timesteps``."""

    def on_update_start(self, agent: Any, batch: Batch) -> None:
        """A batch has been collected."""

    def on_minibatch_end(self, agent: Any, metrics: dict[str, Any]) -> None:
        """A minibatch step was taken; ``metrics`` are its losses, numbers or 0-d tensors."""

    def on_epoch_end(self, agent: Any, epoch: int) -> None:
        """A pass over the batch is done."""

    def on_update_end(self, agent: Any, batch: Batch, metrics: Metrics) -> bool | None:
        """The update is done and ``metrics`` holds its drift report; ``False`` ends the training."""

    def on_error(self, agent: Any, error: Exception) -> None:
        """Training is about to end by an exception; what is done here cannot change that."""

    def on_training_end(self, agent: Any) -> None:
        """After the last update, also when training ends by an exception or cannot begin."""


class Outside(Callback):
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


class CallbackList(Callback):
    """Calls several callbacks in order; training ends if one of them says so."""

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self.callbacks = tuple(callbacks)

    def on_training_start(self, agent: Any, total_timesteps: int) -> None:
        """Pass on."""
        for callback in self.callbacks:
            callback.on_training_start(agent, total_timesteps)

    def on_update_start(self, agent: Any, batch: Batch) -> None:
        """Pass on."""
        for callback in self.callbacks:
            callback.on_update_start(agent, batch)

    def on_minibatch_end(self, agent: Any, metrics: dict[str, Any]) -> None:
        """Pass on."""
        for callback in self.callbacks:
            callback.on_minibatch_end(agent, metrics)

    def on_epoch_end(self, agent: Any, epoch: int) -> None:
        """Pass on."""
        for callback in self.callbacks:
            callback.on_epoch_end(agent, epoch)

    def on_update_end(self, agent: Any, batch: Batch, metrics: Metrics) -> bool | None:
        """Pass on to all, then say whether one of them wants to stop."""
        wishes = [callback.on_update_end(agent, batch, metrics) for callback in self.callbacks]
        return False if any(wish is False for wish in wishes) else None

    def on_error(self, agent: Any, error: Exception) -> None:
        """Pass on."""
        for callback in self.callbacks:
            callback.on_error(agent, error)

    def on_training_end(self, agent: Any) -> None:
        """Pass on to all, whatever one of them raises."""
        with ExitStack() as stack:
            for callback in reversed(self.callbacks):
                stack.callback(callback.on_training_end, agent)


def gather(
    callback: Callback | Sequence[Callback] | None,
    progress_bar: bool = False,
    run_dir: str | Path | None = None,
    *,
    resume: bool = False,
) -> Callback:
    """What is to be told of a training, as ``Agent.learn`` takes it, in one.

    Raises:
        ValueError: something that is no callback.
        FileExistsError: ``run_dir`` is not empty.
    """
    given = [callback] if callback is None or not isinstance(callback, Sequence) else callback
    callbacks = [c for c in given if c is not None]
    for unfit in (c for c in callbacks if not isinstance(c, Callback)):
        raise ValueError(f"callback = {unfit!r}; allowed: a klrl.run.Callback or several")
    if run_dir is not None:
        from klrl.run.directory import RunDirectory  # TensorBoard takes its time to import

        callbacks.append(RunDirectory(run_dir, resume=resume))
    if progress_bar:
        from klrl.run.progress import Progress

        callbacks.append(Progress())
    return CallbackList(callbacks)
