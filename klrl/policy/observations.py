"""Observations of any supported space as one array: what collectors store and networks read.

A ``Box`` keeps its shape (a ``uint8`` image its type, too). Anything else becomes a vector of its parts, one after the
other: numbers unchanged, a ``Discrete`` as one-hot vector, bits as 0 and 1. An action mask, whatever its source, is at
the end of the vector, so that it stays with the state through batches, minibatches and measurements. Images beside
nothing but choices, bits, bytes and masks stay ``uint8`` there. Other numbers are float32, or float64 if a ``Box`` has
more digits than float32: they are needed until the mean is subtracted.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from klrl.policy.arrays import Array
from klrl.policy.choices import MASK, FrameStacks, MaskSource
from klrl.policy.normalizer import RESOLUTION, Normalizer
from klrl.text import one_line

MOST_ELEMENTS = 2**25
"""Most elements of an encoded observation or an action: an image of 4K has fewer."""
_DARK = 8
"""Factor below its bound at which an image counts as dark: all of its elements must be smaller."""
_LARGEST = float(np.finfo(np.float32).max)
"""Largest number of float32, in which networks compute."""
_KEYED = (gym.spaces.Dict, gym.spaces.Tuple)


@dataclass(frozen=True)
class Part:
    """A leaf of an observation space, and the columns of the vector that it fills."""

    keys: tuple[str | int, ...]
    """Keys on the way to it through Dicts and Tuples."""
    space: gym.Space
    columns: slice
    frame_stacks: FrameStacks = "channels"

    @property
    def name(self) -> str:
        """The part as an index in Python, after ``observation``."""
        return "".join(f"[{key!r}]" for key in self.keys)

    @cached_property
    def is_image(self) -> bool:
        """True for two or three dimensions of uint8, and four of a stack of images."""
        dimensions = (2, 3) if self.frame_stacks == "numbers" else (2, 3, 4)
        return isinstance(self.space, gym.spaces.Box) and self.space.dtype == np.uint8 and len(self.shape) in dimensions

    @property
    def fits_bytes(self) -> bool:
        """True if all values that the space has, as columns, are integers from 0 to 255."""
        return not isinstance(self.space, gym.spaces.Box) or self.space.dtype in (np.uint8, np.bool_)

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Shape of one observation of the part."""
        return tuple(self.space.shape or ())

    @property
    def scale(self) -> float:
        """Factor of its elements; 0 if running statistics find the scale."""
        if self.is_image:
            return 1.0 / max(float(self.space.high.max()), 1.0)  # type: ignore[attr-defined]
        return 0.0 if isinstance(self.space, gym.spaces.Box) else 1.0

    @property
    def choices(self) -> list[int] | None:
        """Lengths of the one-hot vectors of a Discrete or MultiDiscrete; ``None`` for numbers and bits."""
        space = self.space
        if not isinstance(space, (gym.spaces.Discrete, gym.spaces.MultiDiscrete)):
            return None
        return [int(n) for n in np.ravel(space.nvec if isinstance(space, gym.spaces.MultiDiscrete) else space.n)]

    def read(self, observation: Any) -> np.ndarray:
        """Return its values ``[*B, *shape]`` in an observation.

        Raises:
            ValueError: they are missing, or not numbers.
        """
        for key in self.keys:
            try:
                observation = observation[key]
            except (KeyError, IndexError, TypeError) as error:
                raise ValueError(f"observation{self.name} is missing; allowed: the structure of the space") from error
        try:
            x = np.asarray(observation)
        except ValueError:  # rows of different lengths
            x = np.empty(0, object)
        if x.dtype.kind not in "fiub":
            kind = type(observation).__name__
            raise ValueError(f"observation{self.name} is a {kind}; allowed: numbers, as in {one_line(self.space)}")
        if self.is_image:
            self.check_bytes(x)
        return x

    def check_bytes(self, x: np.ndarray) -> None:
        """Refuse values of a space that fits bytes, but for choices, which :meth:`encode` refuses, that do not.

        Raises:
            ValueError: naming the first one.
        """
        if self.choices is None and x.dtype not in (np.uint8, np.bool_):
            self._check(x, (x >= 0) & (x <= 255) & (x == np.floor(x)))

    def _check(self, x: np.ndarray, good: np.ndarray) -> None:
        if not good.all():
            raise ValueError(f"observation{self.name} has {x[~good][0]}; allowed: elements of {one_line(self.space)}")

    def encode(self, x: np.ndarray) -> np.ndarray:
        """Return values ``[*B, *shape]`` as columns ``[*B, n]``.

        Raises:
            ValueError: a value is not in its Discrete or MultiDiscrete space.
        """
        space, sizes = self.space, self.choices
        batch = x.shape[: x.ndim - len(self.shape)]
        if sizes is None:
            return x.reshape(*batch, _size(space))
        start: Any = space.start  # type: ignore[attr-defined]
        whole = x.astype(np.int64) if x.dtype.kind in "iub" else x  # an int8 may be too small for the difference
        shifted = (whole - np.asarray(start, np.int64)).reshape(*batch, len(sizes))
        self._check(x.reshape(shifted.shape), (shifted >= 0) & (shifted < sizes) & (shifted == np.floor(shifted)))
        index = shifted.astype(np.int64)
        return np.concatenate([np.arange(n) == index[..., i, None] for i, n in enumerate(sizes)], axis=-1)


class Encoding:
    """Conversion of an environment's observations to the array ``[*B, *shape]`` that everything else uses.

    Args:
        space: the observation space.
        action_space: the action space, which masks must fit.
        action_mask: source of masks: an entry ``action_mask`` of a Dict observation ("auto"), the environment's
            ``info`` ("info"), or nowhere ("none").
        frame_stacks: what four dimensions of uint8 are: an image whose frames are channels ("channels"), or numbers.

    Raises:
        ValueError: the message names the space and the supported ones.
    """

    def __init__(
        self,
        space: gym.Space,
        action_space: gym.Space,
        action_mask: MaskSource = "auto",
        frame_stacks: FrameStacks = "channels",
    ) -> None:
        self.space = space
        leaves = dict(_leaves(space))
        n_actions = n_choices(action_space)
        if action_mask == "info" and n_actions is None:
            what = one_line(action_space)
            raise ValueError(f"action_mask = 'info' with action space {what}; allowed: Discrete, MultiDiscrete")
        mask = _mask(space, action_space) if action_mask == "auto" else None
        if mask is not None:
            del leaves[(MASK,)]
        self.parts = _arranged(leaves, frame_stacks)
        if not self.parts:
            what = one_line(space)
            raise ValueError(f"observation space {what} is empty; allowed: one with at least one element")
        self.n_features = self.parts[-1].columns.stop
        """Number of columns before the mask."""
        if self.n_features > MOST_ELEMENTS:
            raise ValueError(
                f"observation space {one_line(space)} has {self.n_features} elements (one for each value of a "
                f"Discrete); allowed: at most {MOST_ELEMENTS}"
            )
        self.mask_in_info = action_mask == "info"
        self.mask_part = Part((MASK,), mask, slice(0, n_actions)) if mask is not None else None
        """The entry of a Dict observation that is the mask, if there is one."""
        self.n_mask = (n_actions or 0) if self.mask_in_info or mask is not None else 0
        self._choices = _choices(action_space) if self.n_mask else np.zeros(0, int)
        self._keeps_shape = isinstance(space, gym.spaces.Box) and self.n_mask == 0
        self.shape = self.parts[0].shape if self._keeps_shape else (self.n_features + self.n_mask,)
        self._is_bytes = bool(self.images) and all(part.fits_bytes for part in self.parts)
        boxes = [part.space for part in self.parts if isinstance(part.space, gym.spaces.Box)]
        self._is_long = not all(np.can_cast(space.dtype, np.float32) for space in boxes)
        self.dtype = np.dtype(np.uint8 if self._is_bytes else np.float64 if self._is_long else np.float32)

    def __repr__(self) -> str:
        """Conversion of observations of a space to arrays."""
        mask = f", {self.n_mask} of them a mask" if self.n_mask else ""
        return f"Encoding({one_line(self.space)} -> {self.dtype}{[*self.shape]}{mask})"

    @property
    def images(self) -> list[Part]:
        """The parts that are images."""
        return [part for part in self.parts if part.is_image]

    @property
    def fixed_scale(self) -> Tensor | float | None:
        """Factors of elements of known scale, 0 for the others; a single number if it is the same for all.

        ``None`` if running statistics must find all of them.
        """
        return self._scale([part.scale for part in self.parts])

    def scale_seen(self, encoded: Tensor) -> Tensor | float | None:
        """Return :attr:`fixed_scale`, for images 1 over the largest element in these observations ``[n, *shape]``."""
        seen = self._largest(encoded)
        return self._scale([1.0 / seen[part.keys] if seen.get(part.keys) else part.scale for part in self.parts])

    def dark_images(self, encoded: Tensor) -> str:
        """Describe images that stay far below their space's bound in these observations; empty if there are none."""
        seen = self._largest(encoded)
        declared = {part.keys: (part, round(1.0 / part.scale)) for part in self.images}
        dark = [(part, seen[k], most) for k, (part, most) in declared.items() if 0.0 < seen[k] <= most / _DARK]
        return " and ".join(f"observation{part.name} has elements up to {x:g} of {most:g}" for part, x, most in dark)

    def _largest(self, encoded: Tensor) -> dict[tuple[str | int, ...], float]:
        """Return the largest element of every image."""
        flat = encoded.reshape(len(encoded), -1)
        return {part.keys: float(flat[:, part.columns].max()) for part in self.images}

    def _scale(self, of_parts: Sequence[float]) -> Tensor | float | None:
        columns = [np.full(_width(part.space), x) for part, x in zip(self.parts, of_parts, strict=True)]
        scale = np.concatenate([*columns, np.ones(self.n_mask)])
        if (scale == scale[0]).all():
            return float(scale[0]) or None
        return torch.from_numpy(scale).reshape(self.shape)

    def normalizer(self) -> Normalizer:
        """Return a normaliser without data."""
        resolution = RESOLUTION[np.float64 if self._is_long else np.float32]
        return Normalizer.of_shape(self.shape, self.fixed_scale, resolution=resolution)

    def __call__(self, observation: Any, masks: Any = None) -> np.ndarray:
        """Return observations ``[*B]``, nested as the space is, as an array ``[*B, *shape]`` of its own memory.

        Args:
            observation: one observation, or a batch as vector environments return it.
            masks: ``[*B, n]``, if they come from ``info``; without them everything is allowed.

        Raises:
            ValueError: another structure or shape, a value outside of a Discrete, or unexpected masks.
        """
        if masks is not None and not self.mask_in_info:
            raise ValueError("action_masks beside an observation; allowed: only where action_mask = 'info'")
        with np.errstate(over="ignore"):  # what float32 cannot hold is infinite
            if self._keeps_shape:
                x = self.parts[0].read(observation)
                self._batch(self.parts[0], x)
                encoded = np.array(x, dtype=self.dtype)
            else:
                encoded = self._concatenated(observation, masks)
            if self._is_long and (large := np.abs(encoded) > _LARGEST).any():
                encoded[large] *= np.inf
        return encoded

    def _concatenated(self, observation: Any, masks: Any) -> np.ndarray:
        parts = self.parts if self.mask_part is None else [*self.parts, self.mask_part]
        values = [(part, part.read(observation)) for part in parts]
        if self._is_bytes:
            for part, x in values[: len(self.parts)]:
                part.check_bytes(x)
        batch = self._batch(*values[0])
        for part, x in values[1:]:
            if self._batch(part, x) != batch:
                raise ValueError(f"observation{part.name} has shape {x.shape}; allowed: {(*batch, *part.shape)}")
        columns = [part.encode(x) for part, x in values]
        if self.mask_in_info:
            columns.append(np.ones((*batch, self.n_mask)) if masks is None else self._checked_masks(masks, batch))
        if self._is_bytes and self.n_mask:
            columns[-1] = columns[-1] > 0.5
        return np.concatenate(columns, axis=-1, dtype=self.dtype, casting="unsafe" if self._is_bytes else "same_kind")

    def _batch(self, part: Part, x: np.ndarray) -> tuple[int, ...]:
        n = x.ndim - len(part.shape)
        if n < 0 or x.shape[n:] != part.shape:
            many = ("n", *part.shape)
            raise ValueError(f"observation{part.name} has shape {x.shape}; allowed: {part.shape} or {many}")
        return x.shape[:n]

    def _checked_masks(self, masks: Any, batch: tuple[int, ...]) -> np.ndarray:
        x = flat_mask(masks) if not batch else np.asarray(masks)
        flat = x.reshape(*batch, -1) if x.size == np.prod(batch, dtype=int) * self.n_mask else x
        if flat.shape != (*batch, self.n_mask):
            raise ValueError(f"{MASK} has shape {x.shape}; allowed: {(*batch, self.n_mask)}")
        return flat

    def allowed(self, encoded: Array) -> Array:
        """Return the mask at the end of encoded observations, ``[*B, n_mask]``; a view."""
        return encoded[..., self.n_features :]

    def forbids_everything(self, encoded: np.ndarray) -> np.ndarray:
        """Return True where a mask allows no choice in some component of the action: bool, ``[*B]``."""
        if self.n_mask == 0:
            return np.zeros(encoded.shape[: encoded.ndim - len(self.shape)], dtype=bool)
        allowed = np.logical_or.reduceat(self.allowed(encoded) > 0.5, self._choices, axis=-1)
        return np.asarray(~allowed.all(-1))

    def locate(self, index: tuple[int, ...]) -> str:
        """Name the element of the observation that an element of the encoded array holds."""
        if self._keeps_shape:
            return f", element {list(index)},"
        for part in self.parts:
            if index[0] < part.columns.stop:
                return f"{part.name}, element [{index[0] - part.columns.start}],"
        return f"['{MASK}'],"


def holds_numbers(space: gym.Space, kinds: str) -> bool:
    """Return True for a non-empty Box of these kinds of dtype in which every element has finite values.

    Bounds could be NaN, or infinite on the wrong side.
    """
    if not isinstance(space, gym.spaces.Box) or space.dtype.kind not in kinds or _size(space) == 0:
        return False
    return bool(((space.low <= space.high) & (space.low < np.inf) & (space.high > -np.inf)).all())


def flat_mask(mask: Any) -> np.ndarray:
    """Return a mask as a vector; for a MultiDiscrete space it may be a tuple per component, as for ``sample``."""
    return np.concatenate([np.ravel(x) for x in mask]) if isinstance(mask, (tuple, list)) else np.ravel(mask)


def _leaves(
    space: gym.Space, keys: tuple[str | int, ...] = (), others: Sequence[str | int] = ()
) -> Iterator[tuple[tuple[str | int, ...], gym.Space]]:
    """Yield the spaces without parts in a space, with their keys."""
    if isinstance(space, _KEYED):
        items = space.spaces.items() if isinstance(space, gym.spaces.Dict) else enumerate(space.spaces)
        beside = list(space.spaces) if isinstance(space, gym.spaces.Dict) else []
        for key, inner in items:
            yield from _leaves(inner, (*keys, key), [k for k in beside if isinstance(k, str) and not keys and k != key])
        return
    discrete = isinstance(space, (gym.spaces.Discrete, gym.spaces.MultiDiscrete, gym.spaces.MultiBinary))
    if not (discrete or holds_numbers(space, "fiub")):
        where = "".join(f"[{key!r}]" for key in keys)
        hint = "a gymnasium.ObservationWrapper can make one of them"
        if not isinstance(space, gym.spaces.Box) and others:
            hint += f"; without it: --wrapper gymnasium.wrappers:FilterObservation 'filter_keys={json.dumps(others)}'"
        raise ValueError(
            f"observation space{where} {one_line(space)} is not supported; allowed: non-empty Box of numbers, "
            f"Discrete, MultiDiscrete, MultiBinary, and Dict and Tuple of these ({hint})"
        )
    yield keys, space


def _arranged(leaves: dict[tuple[str | int, ...], gym.Space], frame_stacks: FrameStacks) -> list[Part]:
    parts, start = [], 0
    for keys, space in leaves.items():
        parts.append(Part(keys, space, slice(start, start + _width(space)), frame_stacks))
        start = parts[-1].columns.stop
    return parts


def _width(space: gym.Space) -> int:
    """Number of columns of the vector."""
    if isinstance(space, gym.spaces.Discrete):
        return int(space.n)
    return int(space.nvec.sum()) if isinstance(space, gym.spaces.MultiDiscrete) else _size(space)


def _size(space: gym.Space) -> int:
    return int(np.prod(space.shape or ()))


def _choices(space: gym.Space) -> np.ndarray:
    """Return the position in a mask at which each component of an action begins."""
    sizes = space.nvec.ravel() if isinstance(space, gym.spaces.MultiDiscrete) else np.array([_width(space)])
    return np.cumsum([0, *sizes[:-1]])


def _mask(space: gym.Space, action_space: gym.Space) -> gym.Space | None:
    """Return the entry of a Dict that says which actions are allowed."""
    mask = space.spaces.get(MASK) if isinstance(space, gym.spaces.Dict) else None
    if mask is not None and n_choices(action_space) is None:
        raise ValueError(
            f"observation['{MASK}'] with action space {one_line(action_space)}; allowed: masks of Discrete and "
            "MultiDiscrete actions (or action_mask = 'none', to treat it as any other observation)"
        )
    fits = isinstance(mask, (gym.spaces.Box, gym.spaces.MultiBinary)) and _size(mask) == n_choices(action_space)
    if mask is not None and not fits:
        raise ValueError(
            f"observation['{MASK}'] is {one_line(mask)}; allowed with {one_line(action_space)}: a Box or MultiBinary "
            f"of {n_choices(action_space)} elements (or action_mask = 'none')"
        )
    return mask


def n_choices(space: gym.Space) -> int | None:
    """Number of choices that a mask of an action space must cover; ``None`` if it has no masks."""
    return _width(space) if isinstance(space, (gym.spaces.Discrete, gym.spaces.MultiDiscrete)) else None
