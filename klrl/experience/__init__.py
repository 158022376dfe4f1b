"""COLLECT: vector environments, rollouts, advantages."""

from klrl.experience.advantages import gae
from klrl.experience.collector import Batch, Collector, Episode
from klrl.experience.environments import EnvLike, make_vector_env
from klrl.experience.steps import BadStep

__all__ = ["BadStep", "Batch", "Collector", "EnvLike", "Episode", "gae", "make_vector_env"]
