"""KEEP: configuration presets, logging, checkpoints, evaluation, progress."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from klrl.run.budget import KLBudget
from klrl.run.callback import Callback, LearningAgent, Metrics
from klrl.run.callback_list import CallbackList
from klrl.run.evaluation import Evaluation, evaluate
from klrl.run.history import History
from klrl.run.signals import Interrupted, Signals

if TYPE_CHECKING:
    from klrl.run.directory import RunDirectory
    from klrl.run.progress import Progress

__all__ = [
    "Callback",
    "CallbackList",
    "Evaluation",
    "History",
    "Interrupted",
    "KLBudget",
    "LearningAgent",
    "Metrics",
    "Progress",
    "RunDirectory",
    "Signals",
    "evaluate",
]
_MODULES = {"RunDirectory": "directory", "Progress": "progress"}
"""Names that take their time to import: TensorBoard, and a terminal."""


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"klrl.run.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'klrl.run' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])
