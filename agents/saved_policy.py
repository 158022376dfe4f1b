"""The policy of a saved agent and nothing else of it: what acts, with its statistics, on its spaces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor

from klrl.agents.config import OLDER
from klrl.agents.saved_tensors import MOST, check_finite, check_tensor
from klrl.policy.actors import make_actor
from klrl.policy.distributions import Distribution
from klrl.policy.normalizer import Moments, Normalizer
from klrl.policy.observations import Encoding
from klrl.policy.spaces import below, space_from
from klrl.policy.trunks import least_parameters
from klrl.run import checkpoint

Tensors = dict[str, Tensor]
SETTINGS = (
    "actor_hidden_sizes", "activation", "log_std_init", "action_distribution", "state_dependent_std", "scale_actions",
    "action_mask",
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
        config = {name: {**OLDER, **state["config"]}[name] for name in SETTINGS}
        self.state: dict[str, Any] = {name: state[name] for name in _STATE} | {"config": config}
        self.observation_space, self.action_space = (load_space(name, tensors, state) for name in _STATE[:2])
        self.encoding = check_backed(self.observation_space, self.action_space, config, tensors, ("actor",))
        kind = {name: config[name] for name in SETTINGS if name not in ("actor_hidden_sizes", "action_mask")}
        generator = torch.Generator()
        self.actor = make_actor(
            self.encoding, self.action_space, config["actor_hidden_sizes"], **kind, generator=generator
        )
        self.actor.load_state_dict(below("actor.", tensors))
        self.normalizer = normalizer(self.encoding, tensors, state["normalizer_count"])

    @classmethod
    def read(cls, path: str | Path) -> SavedPolicy:
        """That of a saved agent, or of a run directory's newest good checkpoint.

        Raises:
            FileNotFoundError: nothing saved there.
            ValueError: damaged.
        """
        saved = checkpoint.read(path)
        with checkpoint.as_damage(path):
            return cls(*saved)

    @torch.no_grad()
    def distribution(self, observations: Tensor) -> Distribution:
        """What it does at observations as in a batch, ``[*B, *O]``; in the CPU's memory."""
        return self.actor(self.normalizer(observations))


def load_space(name: str, tensors: Tensors, state: dict[str, Any]) -> gym.Space:
    """A space of a saved agent."""
    return space_from(state[name], below(f"{name}.", tensors))


def check_backed(
    observation_space: gym.Space,
    action_space: gym.Space,
    config: Mapping[str, Any],
    tensors: Tensors,
    networks: Sequence[str] = ("actor", "critic"),
) -> Encoding:
    """Make sure, before networks are made, that they are as large as what was saved; the encoding of observations.

    Settings and spaces are a few words that can ask for any amount of memory; tensors are as large as their file.

    Raises:
        ValueError: they are not.
    """
    encoding = Encoding(observation_space, action_space, config["action_mask"])
    if tuple(tensors["normalizer.mean"].shape) != encoding.shape:
        have = tuple(tensors["normalizer.mean"].shape)
        raise ValueError(f"observations have shape {encoding.shape}; allowed: {have}, as normalizer.mean")
    for network in networks:
        hidden = config[f"{network}_hidden_sizes"]
        n_outputs = gym.spaces.flatdim(action_space) if network == "actor" else 1
        least = least_parameters(encoding, hidden, n_outputs)
        saved = sum(x.numel() for x in below(f"{network}.", tensors).values())
        if least > saved:
            raise ValueError(
                f"{network}_hidden_sizes = {hidden} need {least:,} parameters; allowed: {saved:,}, as saved"
            )
    return encoding


def normalizer(encoding: Encoding, tensors: Tensors, count: int) -> Normalizer:
    """Observation statistics of a saved agent, and the scales of images where it found them out.

    Raises:
        ValueError: scales of other observations.
    """
    saved = below("normalizer.", tensors)
    known = encoding.normalizer()
    if (scale := saved.get("fixed_scale")) is not None:
        check_tensor("normalizer.fixed_scale", scale, torch.float64, encoding.shape if scale.ndim else ())
        check_finite("normalizer.fixed_scale", scale, 0.0)
        known = replace(known, fixed_scale=scale if scale.ndim else scale.item())
    return replace(known, moments=moments("normalizer", saved, count, encoding.shape))


def moments(name: str, tensors: Tensors, count: int, shape: Sequence[int]) -> Moments:
    """Statistics of a saved agent.

    Raises:
        ValueError: of other numbers than ``shape`` asks for, or of such as no statistics have.
    """
    if type(count) is not int or not 0 <= count <= MOST:
        raise ValueError(f"{name}_count = {count!r}; allowed: an integer in [0, {MOST}]")
    for kind, least in (("mean", None), ("variance", 0.0)):
        check_tensor(f"{name}.{kind}", tensors[kind], torch.float64, shape)
        check_finite(f"{name}.{kind}", tensors[kind], least)
    return Moments(tensors["mean"], tensors["variance"], count)
