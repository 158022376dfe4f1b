"""Policy of a saved agent, with its statistics and spaces, and nothing else of the agent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor

from klrl.agents.config import OLDER, shares_encoder
from klrl.agents.new_networks import SETTINGS, new_actor
from klrl.agents.own_networks import Network, given_again, saved_name, shared_with
from klrl.agents.saved_tensors import MOST, check_finite, check_tensor
from klrl.policy.distributions import Distribution
from klrl.policy.normalizer import Moments, Normalizer
from klrl.policy.observations import Encoding
from klrl.policy.spaces import below, space_from
from klrl.policy.trunks import least_of_head, least_parameters
from klrl.run import checkpoint

Tensors = dict[str, Tensor]
_TENSORS = ("actor.", "normalizer.", "observation_space.", "action_space.")
_STATE = ("observation_space", "action_space", "normalizer_count")


class SavedPolicy:
    """A policy that never changes, from which reference terms measure; it needs neither critic nor region.

    Args:
        tensors: a saved agent's, or :attr:`tensors`.
        state: a saved agent's, or :attr:`state`.
        network: what made its networks, if they are of one's own: only its name is saved.

    Raises:
        ValueError: damaged, or networks of one's own that are not given.
    """

    def __init__(self, tensors: Tensors, state: dict[str, Any], network: Network | None = None) -> None:
        self.tensors = {name: x for name, x in tensors.items() if name.startswith(_TENSORS)}
        config = {name: {**OLDER, **state["config"]}[name] for name in SETTINGS}
        self.state: dict[str, Any] = {name: state[name] for name in _STATE} | {"config": config}
        self.observation_space, self.action_space = (load_space(name, tensors, state) for name in _STATE[:2])
        self.encoding = check_backed(self.observation_space, self.action_space, config, tensors, ("actor",))
        network = given_again(config, network)
        self.actor = new_actor(config | {"network": network}, self.encoding, self.action_space, torch.Generator())
        self.actor.load_state_dict(below("actor.", tensors))
        self.normalizer = normalizer(self.encoding, tensors, state["normalizer_count"])

    @classmethod
    def read(cls, path: str | Path, network: Network | None = None) -> SavedPolicy:
        """Read the policy of a saved agent, or of a run directory's newest good checkpoint.

        ``network`` makes its networks, if they are of one's own.

        Raises:
            FileNotFoundError: nothing saved there.
            ValueError: damaged.
        """
        saved = checkpoint.read(path)
        with checkpoint.as_damage(path):
            return cls(*saved, network)

    @classmethod
    def referred_to(cls, path: str | Path, network: Network | str | None) -> SavedPolicy:
        """Read the policy that an agent is to measure from; networks of one's own are made by what made the agent's.

        Raises:
            FileNotFoundError: nothing saved there.
            ValueError: damaged, or networks that are made otherwise.
        """
        try:
            tensors, state = checkpoint.read(path)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"reference = {path}: {str(error).partition(': ')[2]}") from error
        shared = shared_with(f"reference = {path}", state.get("config"), network)
        with checkpoint.as_damage(path):
            return cls(tensors, state, shared)

    @torch.no_grad()
    def distribution(self, observations: Tensor) -> Distribution:
        """Return the distributions at observations ``[*B, *O]`` as in a batch; in the CPU's memory."""
        return self.actor(self.normalizer(observations))


def load_space(name: str, tensors: Tensors, state: dict[str, Any]) -> gym.Space:
    """Read a space of a saved agent."""
    return space_from(state[name], below(f"{name}.", tensors))


def check_backed(
    observation_space: gym.Space,
    action_space: gym.Space,
    config: Mapping[str, Any],
    tensors: Tensors,
    networks: Sequence[str] = ("actor", "critic"),
) -> Encoding:
    """Check, before networks are made, that they are no larger than the saved ones; return the encoding.

    A few words of settings and spaces can ask for any amount of memory; saved tensors are as large as their file.

    Raises:
        ValueError: they are larger.
    """
    known = {**OLDER, **config}
    encoding = Encoding(observation_space, action_space, config["action_mask"], known["frame_stacks"])
    if tuple(tensors["normalizer.mean"].shape) != encoding.shape:
        have = tuple(tensors["normalizer.mean"].shape)
        raise ValueError(f"observations have shape {encoding.shape}; allowed: {have}, as normalizer.mean")
    for network in networks if saved_name(config) is None else ():
        hidden = config[f"{network}_hidden_sizes"]
        n_outputs = gym.spaces.flatdim(action_space) if network == "actor" else 1
        if network == "critic" and shares_encoder(known["shared_encoder"], encoding, own=False):
            width = None if encoding.images else config["actor_hidden_sizes"][-1]
            least = least_of_head(encoding, hidden, n_outputs, known["image_network"], width)
        else:
            least = least_parameters(encoding, hidden, n_outputs, known["image_network"])
        saved = sum(x.numel() for x in below(f"{network}.", tensors).values())
        if least > saved:
            raise ValueError(
                f"{network}_hidden_sizes = {hidden} need {least:,} parameters; allowed: {saved:,}, as saved"
            )
    return encoding


def normalizer(encoding: Encoding, tensors: Tensors, count: int) -> Normalizer:
    """Read the observation statistics of a saved agent, and the scales of images that it has learned.

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
    """Read running statistics of a saved agent.

    Raises:
        ValueError: another shape, or values that no statistics have.
    """
    if type(count) is not int or not 0 <= count <= MOST:
        raise ValueError(f"{name}_count = {count!r}; allowed: an integer in [0, {MOST}]")
    for kind, least in (("mean", None), ("variance", 0.0)):
        check_tensor(f"{name}.{kind}", tensors[kind], torch.float64, shape)
        check_finite(f"{name}.{kind}", tensors[kind], least)
    return Moments(tensors["mean"], tensors["variance"], count)
