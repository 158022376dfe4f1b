"""Compatibility of policies: existence of a KL between two, and copies of networks from one to the other."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import torch

from klrl.agents.learner import Learner
from klrl.agents.new_networks import SETTINGS
from klrl.agents.saved_policy import SavedPolicy
from klrl.text import one_line

Policy = Learner[Any] | SavedPolicy
NETWORKS = (*(name for name in SETTINGS if name != "scale_actions"), "critic_hidden_sizes")
"""Settings that an agent's networks depend on."""


def check_comparable(name: str, agent: Policy, other_name: str, other: Policy) -> None:
    """Refuse two agents without a KL between them, which needs the same spaces, masks, family and units of actions.

    Args:
        name: the first agent in the user's words.
        agent: the first agent.
        other_name: the second agent in the user's words.
        other: the second agent.

    Raises:
        ValueError: naming what differs.
    """
    check_same_spaces(name, agent, other_name, other.observation_space, other.action_space)
    if (mine := _reading(agent)) != (its := _reading(other)):
        raise ValueError(f"{other_name} reads {its}; allowed: as {name}, {mine} (action_mask)")
    families = family(agent), family(other)
    if families[0] != families[1]:
        raise ValueError(
            f"{name}'s policy is a {families[0]}, {other_name}'s a {families[1]}; allowed: the same family"
        )
    if agent.actor.units != other.actor.units:
        mine, its = _units(agent), _units(other)
        raise ValueError(f"{other_name} acts in units of the {its}; allowed: of the {mine}, as {name} (scale_actions)")


def check_same_spaces(
    name: str, agent: Policy, other_name: str, observation_space: gym.Space, action_space: gym.Space
) -> None:
    """Refuse spaces that differ from an agent's.

    Raises:
        ValueError: naming the space that differs.
    """
    for kind, theirs in (("observation_space", observation_space), ("action_space", action_space)):
        if (ours := getattr(agent, kind)) != theirs:
            raise ValueError(f"{other_name} has {kind} {one_line(theirs)}; allowed: {name}'s, {one_line(ours)}")


def family(agent: Policy) -> str:
    """Return the name of the record of the agent's policy."""
    return type(agent.distribution(torch.ones(1, *agent.encoding.shape, dtype=torch.float32, device="cpu"))).__name__


def _units(agent: Policy) -> str:
    units = agent.actor.units
    return "environment" if units is None or units.are_environments else "box"


def _reading(agent: Policy) -> str:
    """Describe the columns of observations that networks are given: every part, and a mask."""
    encoding = agent.encoding
    parts = [f"observation{part.name}" for part in encoding.parts]
    mask = "" if not encoding.n_mask else ", a mask in info" if encoding.mask_in_info else ", a mask among them"
    return f"{', '.join(parts)}{mask}"


def copy_networks(source: Learner[Any], target: Learner[Any]) -> None:
    """Copy the source's parameters to the target.

    Raises:
        ValueError: other networks, or the target has learned already.
    """
    if not target.untrained:
        raise ValueError("the agent has learned already; allowed: a new one to start from another one's networks")
    for name in NETWORKS:
        mine, its = getattr(target.config, name), getattr(source.config, name)
        if mine != its:
            raise ValueError(f"{name} = {its!r} of the other agent's networks; allowed: the agent's, {mine!r}")
    shared, its = target.shares_encoder, source.shares_encoder
    if shared != its:
        raise ValueError(f"shared_encoder = {its} of the other agent's networks; allowed: the agent's, {shared}")
    for own, other in zip(target.networks, source.networks, strict=True):
        own.load_state_dict(other.state_dict())
    target.untrained = False
