"""Several callbacks as one, with checks between them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from klrl.run.callback import Callback, CallerContext, Metrics, Recorder
from klrl.run.hooks import check_callback, ends, name_lookalikes
from klrl.run.metrics import settle
from klrl.run.world import World
from klrl.text import warn_user

if TYPE_CHECKING:
    from klrl.experience import Batch


class CallbackList(Callback):
    """Calls several callbacks in order; training ends if one of them asks for it.

    Raises:
        ValueError: a value is no callback, or has a hook that cannot be called.
    """

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self.callbacks = tuple(_flat(callbacks))
        for callback in self.callbacks:
            check_callback(callback)
        self._told: set[tuple[str, str]] = set()
        """Additions that were left out, and about which a warning was given."""

    def on_training_start(self, agent: Any, total_timesteps: int) -> bool | None:
        """Call the hook of every callback, and return False if one of them wants to stop."""
        answers = [(callback, callback.on_training_start(agent, total_timesteps)) for callback in self.callbacks]
        wishes = [ends(answer, f"{type(callback).__name__}.on_training_start") for callback, answer in answers]
        return False if any(wishes) else None

    def on_update_start(self, agent: Any, batch: Batch) -> None:
        """Call the hook of every callback."""
        for callback in self.callbacks:
            callback.on_update_start(agent, batch)

    def on_minibatch_end(self, agent: Any, metrics: dict[str, Any]) -> None:
        """Call the hook of every callback."""
        for callback in self.callbacks:
            callback.on_minibatch_end(agent, metrics)

    def on_epoch_end(self, agent: Any, epoch: int) -> None:
        """Call the hook of every callback."""
        for callback in self.callbacks:
            callback.on_epoch_end(agent, epoch)

    def on_update_end(self, agent: Any, batch: Batch, metrics: Metrics) -> bool | None:
        """Call the hook of every callback, recorders last, and return False if one of them wants to stop.

        If one raises, only recorders still run after it. Additions that are no metrics are left out, with a warning.

        Raises:
            ValueError: an answer is neither true nor false.
        """
        own, wishes = dict(metrics), []
        recorders = [callback for callback in self.callbacks if isinstance(callback, Recorder)]
        others = [callback for callback in self.callbacks if not isinstance(callback, Recorder)]
        try:
            wishes += [self._ends(callback, agent, batch, metrics, own) for callback in others]
        finally:
            wishes += [ends(recorder.on_update_end(agent, batch, metrics)) for recorder in recorders]
        return False if any(wishes) else None

    def _ends(self, callback: Callback, agent: Any, batch: Batch, metrics: Metrics, own: Metrics) -> bool:
        """Call one callback's hook, check its changes of the metrics, and return True if it wants to stop."""
        who = f"{type(callback).__name__}.on_update_end"
        try:
            answer = callback.on_update_end(agent, batch, metrics)
        except BaseException:
            with contextlib.suppress(ValueError):  # the hook's own exception matters more
                settle(metrics, own, who)
            raise
        self._settle(metrics, own, who)
        return ends(answer, who)

    def _settle(self, metrics: Metrics, own: Metrics, who: str) -> None:
        """Leave out what is no metric, and warn once about each kind: hours of training should not end for it."""
        try:
            settle(metrics, own, who)
        except ValueError as error:
            kind = who, str(error).partition(" is ")[0]
            if kind not in self._told:
                self._told.add(kind)
                warn_user(f"left out: {error}")

    def on_error(self, agent: Any, error: Exception) -> None:
        """Call the hook of every callback."""
        for callback in self.callbacks:
            callback.on_error(agent, error)

    def on_training_end(self, agent: Any) -> None:
        """Call the hook of every callback, even if one of them raises."""
        with ExitStack() as stack:
            for callback in reversed(self.callbacks):
                stack.callback(callback.on_training_end, agent)


def hears(callback: Callback, hook: str) -> bool:
    """Tell whether a callback, or one of several, has something to do in a hook."""
    if type(callback) is CallerContext:
        return hears(callback.callback, hook)
    if type(callback) is CallbackList:
        return any(hears(one, hook) for one in callback.callbacks)
    nothing = getattr(Callback, hook)
    return hook in vars(callback) or getattr(type(callback), hook, nothing) is not nothing


def _flat(callbacks: Sequence[Callback]) -> Iterator[Callback]:
    """Yield all callbacks, also those in nested lists."""
    for callback in callbacks:
        if type(callback) is CallbackList:
            yield from callback.callbacks
        else:
            yield callback


def make_callbacks(
    callback: Callback | Sequence[Callback] | None,
    progress_bar: bool = False,
    run_dir: str | Path | None = None,
    *,
    resume: bool = False,
) -> Callback:
    """Return all callbacks of a training as one, from the arguments of ``Agent.learn``.

    Raises:
        ValueError: a value is no callback, or has a hook that cannot be called.
        FileExistsError: ``run_dir`` is not empty.
    """
    given = [callback] if callback is None or not isinstance(callback, Sequence) else callback
    told = CallbackList([c for c in given if c is not None])
    if World.current().rank > 0:
        told.callbacks = tuple(one for one in told.callbacks if not one.first_rank_only)
        return told
    for one in told.callbacks:
        name_lookalikes(one)
    if run_dir is not None:
        from klrl.run.directory import RunDirectory  # TensorBoard imports slowly

        told.callbacks += (RunDirectory(run_dir, resume=resume),)
    if progress_bar:
        from klrl.run.progress import Progress

        told.callbacks += (Progress(),)
    return told
