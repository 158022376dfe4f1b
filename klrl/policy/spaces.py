"""Supported spaces, and their form as JSON and tensors."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from klrl.policy.actors import check_action_space
from klrl.policy.observations import Encoding

Described = tuple[dict[str, Any], dict[str, Tensor]]


def check_spaces(observation_space: gym.Space, action_space: gym.Space) -> None:
    """Refuse spaces that no network here fits.

    Raises:
        ValueError: the message names the space and the supported ones.
    """
    Encoding(observation_space, action_space, "none")
    check_action_space(action_space)


def describe_space(space: gym.Space) -> Described:
    """Return a supported space as plain JSON, and its arrays by name."""
    if isinstance(space, (gym.spaces.Dict, gym.spaces.Tuple)):
        named = space.spaces.items() if isinstance(space, gym.spaces.Dict) else enumerate(space.spaces)
        inner = [(key, *describe_space(x)) for key, x in named]
        kind = "Dict" if isinstance(space, gym.spaces.Dict) else "Tuple"
        data = {"class": kind, "spaces": [[key, x] for key, x, _ in inner]}
        return data, {f"{i}.{k}": v for i, (*_, arrays) in enumerate(inner) for k, v in arrays.items()}
    if isinstance(space, gym.spaces.Discrete):
        return {"class": "Discrete", "n": int(space.n), "start": int(space.start), "dtype": str(space.dtype)}, {}
    if isinstance(space, gym.spaces.MultiBinary):
        return {"class": "MultiBinary", "n": space.n if isinstance(space.n, int) else list(space.shape)}, {}
    names = ("low", "high") if isinstance(space, gym.spaces.Box) else ("nvec", "start")
    arrays = {name: torch.from_numpy(np.array(getattr(space, name))) for name in names}
    return {"class": type(space).__name__, "dtype": str(space.dtype)}, arrays


def space_from(data: dict[str, Any], arrays: dict[str, Tensor]) -> gym.Space:
    """Restore a space from :func:`describe_space`.

    Raises:
        ValueError: it describes no supported space.
    """
    kind = data["class"]
    if kind in ("Dict", "Tuple"):
        inner = [(key, space_from(x, below(f"{i}.", arrays))) for i, (key, x) in enumerate(data["spaces"])]
        # Pairs keep their order, which is that of the networks' inputs; a dict's keys would be sorted.
        return gym.spaces.Dict(inner) if kind == "Dict" else gym.spaces.Tuple([x for _, x in inner])
    if kind == "Discrete":
        return _discrete(data["n"], data["start"], np.dtype(data["dtype"]))
    if kind == "MultiBinary":
        return gym.spaces.MultiBinary(data["n"])
    dtype = np.dtype(data["dtype"]).type
    if kind == "Box":
        return gym.spaces.Box(arrays["low"].numpy(), arrays["high"].numpy(), dtype=dtype)
    if kind == "MultiDiscrete":
        return gym.spaces.MultiDiscrete(arrays["nvec"].numpy(), dtype=dtype, start=arrays["start"].numpy())
    raise ValueError(f"space of class {kind!r}; allowed: Box, Discrete, MultiDiscrete, MultiBinary, Dict, Tuple")


def _discrete(n: int, start: int, dtype: np.dtype) -> gym.spaces.Discrete:
    """Make a Discrete; Gymnasium before 1.2.2 knows only one type, and takes no argument for it."""
    if dtype == np.int64:
        return gym.spaces.Discrete(n, start=start)
    try:
        return gym.spaces.Discrete(n, start=start, dtype=dtype.type)
    except TypeError as error:
        release = f"gymnasium {gym.__version__}"
        raise ValueError(f"space Discrete({n}) of type {dtype}; allowed with {release}: int64") from error


def below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names begin with a prefix, without the prefix."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
