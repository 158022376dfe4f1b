"""KEEP: configuration presets, logging, checkpoints, evaluation, progress."""

from klrl.run.budget import KLBudget
from klrl.run.callback import Callback
from klrl.run.callback_list import CallbackList
from klrl.run.evaluation import Evaluation, evaluate

__all__ = ["Callback", "CallbackList", "Evaluation", "KLBudget", "evaluate"]
