"""The policy of a saved agent and nothing else of it: what acts, with its statistics, on its spaces."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor

from klrl.policy.actors import make_actor
from klrl.policy.distributions import Distribution
from klrl.policy.normalizer import Moments, Normalizer
from klrl.policy.observations import Encoding
from klrl.policy.spaces import below, space_from
from klrl.run import checkpoint

Tensors = dict[str, Tensor]
SETTINGS = (
    "actor_hidden_sizes", "activation", "log_std_init", "action_distribution", "state_dependent_std", "action_mask",
)  # fmt: skip
"""Of an agent's config, what its policy depends on."""
_TENSORS = ("actor.", "normalizer.", "observation_space.", "action_space.")
_STATE = ("observation_space", "action_space", "normalizer_count")


class SavedPolicy:
    """A policy that does not move: what reference terms measure from. It needs neither critic nor region.

    Args:
        tensors: of a saved agent, or those of :attr:`tensors`.
        state: of a saved agent, or that of :attr:`state`.
    """

    def __init__(self, tensors: Tensors, state: dict[str, Any]) -> None:
        self.tensors = {name: x for name, x in tensors.items() if name.startswith(_TENSORS)}
        config = {name: state["config"][name] for name in SETTINGS}
        self.state: dict[str, Any] = {name: state[name] for name in _STATE} | {"config": config}
        self.observation_space, self.action_space = (load_space(name, tensors, state) for name in _STATE[:2])
        self.encoding = Encoding(self.observation_space, self.action_space, config["action_mask"])
        kind = {name: config[name] for name in SETTINGS if name not in ("actor_hidden_sizes", "action_mask")}
        generator = torch.Generator()
        self.actor = make_actor(
            self.encoding, self.action_space, config["actor_hidden_sizes"], **kind, generator=generator
        )
        self.actor.load_state_dict(below("actor.", tensors))
        scale = self.encoding.fixed_scale
        self.normalizer = Normalizer(moments(below("normalizer.", tensors), state["normalizer_count"]), scale)

    @classmethod
    def read(cls, path: str | Path) -> SavedPolicy:
        """That of a saved agent, or of a run directory's newest good checkpoint.

        Raises:
            FileNotFoundError: nothing saved there.
            ValueError: damaged.
        """
        return cls(*checkpoint.read(path))

    @torch.no_grad()
    def distribution(self, observations: Tensor) -> Distribution:
        """What it does at observations as in a batch, ``[*B, *O]``; in the CPU's memory."""
        return self.actor(self.normalizer(observations))


def load_space(name: str, tensors: Tensors, state: dict[str, Any]) -> gym.Space:
    """A space of a saved agent."""
    return space_from(state[name], below(f"{name}.", tensors))


def moments(tensors: Tensors, count: int) -> Moments:
    """Statistics of a saved agent."""
    return Moments(tensors["mean"], tensors["variance"], count)
