"""COLLECT: vector environments, rollouts, advantages.

Names are imported when they are used: a worker process that has its environment only does without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from klrl.experience.advantages import gae
    from klrl.experience.batch import Batch, Episode
    from klrl.experience.collector import Collector
    from klrl.experience.environments import EnvLike, make_vector_env
    from klrl.experience.steps import BadStep
    from klrl.experience.workers import WorkerFailed

__all__ = ["BadStep", "Batch", "Collector", "EnvLike", "Episode", "WorkerFailed", "gae", "make_vector_env"]
_MODULES = {
    "advantages": ("gae",),
    "batch": ("Batch", "Episode"),
    "collector": ("Collector",),
    "environments": ("EnvLike", "make_vector_env"),
    "steps": ("BadStep",),
    "workers": ("WorkerFailed",),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"klrl.experience.{module}"), name)
    raise AttributeError(f"module 'klrl.experience' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])
