"""Two agents' policies side by side: whether there is a KL between them, and how one takes the other's place."""

from __future__ import annotations

from typing import Any

import torch

from klrl.agents.core import Core
from klrl.policy.observations import one_line


def check_comparable(name: str, agent: Core[Any], other_name: str, other: Core[Any]) -> None:
    """Refuse two agents whose policies have no KL: it needs the same spaces, masks and family.

    Args:
        name: what the user calls the first agent.
        agent: the first agent.
        other_name: what the user calls the second agent.
        other: the second agent.

    Raises:
        ValueError: naming what differs.
    """
    for space in ("observation_space", "action_space"):
        ours, theirs = getattr(agent, space), getattr(other, space)
        if ours != theirs:
            raise ValueError(f"{other_name} has {space} {one_line(theirs)}; allowed: {name}'s, {one_line(ours)}")
    if (agent.encoding.shape, agent.encoding.mask_in_info) != (other.encoding.shape, other.encoding.mask_in_info):
        masks = agent.config.action_mask, other.config.action_mask
        raise ValueError(f"{name}'s action_mask is {masks[0]!r}, {other_name}'s {masks[1]!r}; allowed: the same masks")
    families = family(agent), family(other)
    if families[0] != families[1]:
        raise ValueError(
            f"{name}'s policy is a {families[0]}, {other_name}'s a {families[1]}; allowed: the same family"
        )


def family(agent: Core[Any]) -> str:
    """The name of the record that the agent's policy gives."""
    return type(agent.distribution(torch.ones(1, *agent.encoding.shape))).__name__


def copy_networks(source: Core[Any], target: Core[Any]) -> None:
    """Give the target the source's parameters.

    Raises:
        ValueError: other networks.
    """
    for mine, its in ((target.actor, source.actor), (target.critic, source.critic)):
        shapes = [{k: tuple(x.shape) for k, x in m.state_dict().items()} for m in (mine, its)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"networks of shapes {shapes[1]}; allowed: {shapes[0]}")
    for mine, its in ((target.actor, source.actor), (target.critic, source.critic)):
        mine.load_state_dict(its.state_dict())
