"""KEEP: configuration presets, logging, checkpoints, evaluation, progress."""

from typing import TYPE_CHECKING

from klrl.lazy import exports
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
__getattr__, __dir__ = exports(__name__, {"RunDirectory": "directory", "Progress": "progress"})
"""Names that take their time to import: TensorBoard, and a terminal."""
