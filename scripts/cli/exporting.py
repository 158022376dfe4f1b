"""Comparison of an exported policy with the agent's own predictions (``klrl export``)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from klrl.agents.export import ExportedPolicy
from klrl.agents.predictor import Predictor
from klrl.policy.choices import MASK
from klrl.policy.observations import Part
from klrl.policy.units import Units

CLOSE = 1e-5
"""Largest difference of actions, in units of their size or half their range where larger than 1; of choices, of their
log-probabilities."""
_MOST = 2**26
"""Most elements of observations: fewer of them where they are large images."""
Run = Callable[[Mapping[str, np.ndarray]], np.ndarray]


def number_of_observations(agent: Predictor[Any]) -> int:
    """Return on how many observations a graph is compared: 1,000, or fewer large images."""
    return max(2, min(1_000, _MOST // agent.encoding.n_features))


def largest_difference(agent: Predictor[Any], policy: ExportedPolicy, run: Run) -> float:
    """Return the largest difference between what a deterministic graph computes and ``predict``.

    Args:
        agent: the agent.
        policy: what was exported.
        run: the graph.
    """
    observations, inputs = some_observations(agent, policy.parts, number_of_observations(agent))
    masks = {"action_masks": inputs[MASK]} if agent.encoding.mask_in_info else {}
    mine = agent.predict(observations, deterministic=True, **masks)[0]
    return difference(agent, observations, masks, mine, run(inputs))


def runner(file: Path, policy: ExportedPolicy) -> Run:
    """Return the function from inputs by name to actions that a file's graph is; ONNX is computed by onnxruntime.

    Raises:
        ValueError: onnxruntime is not installed.
    """
    if file.suffix != ".onnx":
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*get_attr")  # torch 2.6, of what it loads
            module = torch.export.load(file).module()
        return lambda inputs: module(*(torch.from_numpy(inputs[name]) for name in policy.names)).numpy()
    try:
        import onnxruntime
    except ImportError as error:
        raise ValueError(
            f"{error}: the graph is written but not compared; allowed: pip install 'klrl[export]'"
        ) from error
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(None, dict(inputs))[0]


def difference(
    agent: Predictor[Any], observations: Any, masks: Mapping[str, Any], mine: np.ndarray, its: np.ndarray
) -> float:
    """Return the largest difference of two batches of actions; infinity for another shape or type."""
    if (mine.shape, mine.dtype) != (its.shape, its.dtype):
        return float("inf")
    if mine.dtype.kind == "f":
        a, b = mine.astype(np.float64), its.astype(np.float64)
        half = Units.of(agent.action_space).half_range.reshape(mine.shape[1:])  # type: ignore[arg-type]
        return float((np.abs(a - b) / np.maximum(np.maximum(1.0, half), np.abs(a))).max())
    policy = agent.distribution(observations, *masks.values()).cpu()
    log_probs = [policy.log_prob(_as_policy(agent.action_space, x, policy.event_shape)) for x in (mine, its)]
    return float((log_probs[0] - log_probs[1]).abs().max())


def _as_policy(space: gym.Space, actions: np.ndarray, event_shape: tuple[int, ...]) -> torch.Tensor:
    """Return actions of the environment as the policy has them: from 0, flat."""
    x = torch.from_numpy(np.asarray(actions, np.int64) - np.asarray(getattr(space, "start", 0)))
    x = x.reshape(len(actions), *event_shape)
    return x.to(torch.float32) if isinstance(space, gym.spaces.MultiBinary) else x


def some_observations(agent: Predictor[Any], parts: list[Part], n: int) -> tuple[Any, dict[str, np.ndarray]]:
    """Return ``n`` observations like those of the training, nested as the space is, and as a graph's inputs."""
    rng, encoding = np.random.default_rng(0), agent.encoding
    mean, std = (
        x.numpy().reshape(-1) for x in (agent.normalizer.moments.mean, agent.normalizer.moments.variance.sqrt())
    )
    leaves = {part.keys: _values(part, rng, n, mean[part.columns], std[part.columns]) for part in parts}
    mask = None
    if encoding.n_mask:
        mask = _masks(np.ravel(getattr(agent.action_space, "nvec", encoding.n_mask)), rng, n)
    if encoding.mask_part is not None and mask is not None:
        leaves[(MASK,)] = mask.reshape(n, *encoding.mask_part.shape).astype(encoding.mask_part.space.dtype)
    inputs = {".".join(["observation", *map(str, keys)]): x for keys, x in leaves.items()}
    return _nested(encoding.space, leaves), inputs | (
        {MASK: mask} if encoding.mask_in_info and mask is not None else {}
    )


def _values(part: Part, rng: np.random.Generator, n: int, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """Return ``n`` values of a part: numbers around those of the training, anything else by chance."""
    space, dtype = part.space, part.space.dtype
    if isinstance(space, gym.spaces.Box) and not part.is_image and len(mean) == space.low.size:
        x = (mean + 2.0 * std * rng.standard_normal((n, len(mean)))).reshape(n, *part.shape)
        x = np.clip(x, space.low.astype(np.float64), space.high.astype(np.float64))
        return (x if np.dtype(dtype).kind == "f" else np.round(x)).astype(dtype)
    space.seed(int(rng.integers(2**31)))
    return np.stack([np.asarray(space.sample(), dtype) for _ in range(n)])


def _masks(sizes: np.ndarray, rng: np.random.Generator, n: int) -> np.ndarray:
    """Return masks ``[n, k]`` that allow at least one choice of every component, which has so many."""
    heads = []
    for size in sizes:
        head = rng.integers(0, 2, (n, int(size)), dtype=np.int8)
        head[np.arange(n), rng.integers(0, size, n)] = 1
        heads.append(head)
    return np.concatenate(heads, -1)


def _nested(space: gym.Space, leaves: Mapping[tuple[Any, ...], np.ndarray], keys: tuple[Any, ...] = ()) -> Any:
    """Return a batch of observations from its leaves."""
    if isinstance(space, gym.spaces.Dict):
        return {key: _nested(inner, leaves, (*keys, key)) for key, inner in space.spaces.items()}
    if isinstance(space, gym.spaces.Tuple):
        return tuple(_nested(inner, leaves, (*keys, i)) for i, inner in enumerate(space.spaces))
    return leaves[keys]
