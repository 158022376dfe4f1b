"""KEEP: configuration presets, logging, checkpoints, evaluation, progress."""

from typing import TYPE_CHECKING

from klrl.lazy import exports

if TYPE_CHECKING:
    from klrl.run.budget import KLBudget
    from klrl.run.callback import Callback, LearningAgent, Metrics
    from klrl.run.callback_list import CallbackList
    from klrl.run.directory import RunDirectory
    from klrl.run.eval_callback import EvalCallback, StopAtReturn
    from klrl.run.evaluation import Evaluation, evaluate
    from klrl.run.history import History
    from klrl.run.progress import Progress
    from klrl.run.signals import Interrupted, Signals
    from klrl.run.video import VideoCallback
    from klrl.run.world import World

__all__ = [
    "Callback",
    "CallbackList",
    "EvalCallback",
    "Evaluation",
    "History",
    "Interrupted",
    "KLBudget",
    "LearningAgent",
    "Metrics",
    "Progress",
    "RunDirectory",
    "Signals",
    "StopAtReturn",
    "VideoCallback",
    "World",
    "evaluate",
]
__getattr__, __dir__ = exports(
    __name__,
    {
        "Callback": "callback",
        "CallbackList": "callback_list",
        "EvalCallback": "eval_callback",
        "Evaluation": "evaluation",
        "History": "history",
        "Interrupted": "signals",
        "KLBudget": "budget",
        "LearningAgent": "callback",
        "Metrics": "callback",
        "Progress": "progress",
        "RunDirectory": "directory",
        "Signals": "signals",
        "StopAtReturn": "eval_callback",
        "VideoCallback": "video",
        "World": "world",
        "evaluate": "evaluation",
    },
)
"""Names that take their time to import: torch, TensorBoard, a terminal."""
