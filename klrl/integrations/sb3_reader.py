"""A process that reads files of Stable-Baselines3, and what it found in them."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import gymnasium as gym
import numpy as np
from safetensors.torch import load
from torch import Tensor

from klrl.policy.spaces import below, space_from
from klrl.text import plain

LEAST_TORCH = (2, 10)
"""First release whose ``torch.load(weights_only=True)`` is used: older ones have known ways to execute code."""
TRUST = "--trust, which lets Stable-Baselines3 load it and so executes what is in it"
_FRAME = struct.Struct("<QQ")
_MOST = 2**28
"""Most bytes of an answer."""


class NotEnough(ValueError):
    """Reading is not enough to know this policy; Stable-Baselines3 itself may load it."""


@dataclass(frozen=True, eq=False)
class Statistics:
    """Running statistics of a ``VecNormalize``."""

    norm_obs: bool
    """True if observations are normalised."""
    norm_reward: bool
    clip_obs: float
    clip_reward: float
    epsilon: float
    gamma: float
    moments: dict[str, Tensor]
    """``obs.mean``, ``obs.var``, ``ret.mean``, ``ret.var`` in float64, those of observations if they are normalised."""
    counts: dict[str, float]
    """Number of observations and of returns: ``obs``, ``ret``."""

    def normalized(self, observations: np.ndarray) -> np.ndarray:
        """Normalise observations ``[*B, *O]`` as ``VecNormalize.normalize_obs`` does, to float32."""
        if not self.norm_obs:
            return observations
        mean, var = (self.moments[f"obs.{name}"].numpy() for name in ("mean", "var"))
        scaled = (observations - mean) / np.sqrt(var + self.epsilon)
        return np.clip(scaled, -self.clip_obs, self.clip_obs).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Model:
    """Contents of a model's zip, as they stand there."""

    path: Path
    version: str
    """Version of Stable-Baselines3 that wrote it."""
    observation_space: gym.Space
    action_space: gym.Space
    policy_class: str
    """Full name of the policy's class."""
    policy_kwargs: dict[str, Any]
    """Arguments of that class; classes by their names."""
    use_sde: bool
    used_vec_normalize: bool | None
    """True if training was on a ``VecNormalize``, which keeps its statistics elsewhere; ``None`` if unknown."""
    settings: dict[str, int | float | bool]
    """Settings that are numbers, all of them."""
    weights: dict[str, Tensor]
    """Parameters of the policy, float32."""


class Reader:
    """A process that reads one file after the other, in limited memory, and executes nothing of them.

    It starts with the first file, and again after a file that has ended it. Used as a context, it ends with that.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """Number of the process, if there is one."""
        return None if self._process is None else self._process.pid

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            process, self._process = self._process, None
            process.kill()
            process.communicate()

    def model(self, path: str | Path) -> Model:
        """Read a model's zip.

        Raises:
            ValueError: one line; it is damaged, or would execute something (:class:`NotEnough`: it needs more, or this
                torch is older than 2.10, on whose safe loading klrl relies).
        """
        said, tensors = self._ask("model", Path(path))
        try:
            for name in ("observation_space", "action_space"):
                said[name] = space_from(said[name], below(f"{name}.", tensors))
            return Model(path=Path(path), weights=below("policy.", tensors), **said)
        except Exception as error:
            raise ValueError(
                f"path = {path}: it is damaged: {plain(f'{type(error).__name__}: {error}', 400)}"
            ) from error

    def statistics(self, path: str | Path) -> Statistics:
        """Read a file that ``VecNormalize.save`` wrote.

        Raises:
            ValueError: one line; it is damaged, or would execute something.
        """
        said, tensors = self._ask("statistics", Path(path))
        counts = {name: said.pop(f"{name}_count") for name in ("obs", "ret") if f"{name}_count" in said}
        found = Statistics(moments=tensors, counts=counts, **said)
        good = found.epsilon > 0.0 and found.clip_obs > 0.0 and all(bool(x.isfinite().all()) for x in tensors.values())
        if not good or any(bool((x < 0.0).any()) for name, x in tensors.items() if name.endswith("var")):
            raise ValueError(
                f"path = {path}: its statistics are no statistics; allowed: finite numbers, variances >= 0"
            )
        return found

    def _ask(self, kind: str, path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps({"kind": kind, "path": os.fspath(path)}).encode() + b"\n")
            process.stdin.flush()
            sizes = _FRAME.unpack(process.stdout.read(_FRAME.size))
            if max(sizes) > _MOST:
                raise EOFError
            text, tensors = (process.stdout.read(n) for n in sizes)
            answer = json.loads(text)
            arrays = load(tensors) if tensors else {}
        except (OSError, EOFError, ValueError, struct.error) as error:
            self.close()
            raise ValueError(
                f"path = {path}: reading it ended the process that read it, in its limits of memory and time"
            ) from error
        except BaseException:  # Ctrl-C: half an answer is left in the pipe
            self.close()
            raise
        if "unsupported" in answer:
            raise NotEnough(f"path = {path}: {answer['unsupported']}; allowed: policies of layers alone, or {TRUST}")
        if "refused" in answer:
            raise ValueError(f"path = {path}: {answer['refused']}")
        return answer["said"], arrays

    def _start(self) -> subprocess.Popen[bytes]:
        found = version("torch")
        if _release(found) < LEAST_TORCH:
            least = ".".join(map(str, LEAST_TORCH))
            raise NotEnough(
                f"torch {found} cannot read other libraries' files safely; allowed: torch >= {least}, or {TRUST}"
            )
        environ = os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}  # threads reserve memory
        command = [sys.executable, "-P", "-W", "ignore", "-m", "klrl.integrations.sb3_process"]
        pipe, null = subprocess.PIPE, subprocess.DEVNULL
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=null, env=environ)
        return self._process


def _release(text: str) -> tuple[int, int]:
    major, minor, *_ = text.split(".")
    return int(major), int(minor)
