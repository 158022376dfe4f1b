"""Engines that make environments by id, many at once: EnvPool, and environments that are vectorised themselves.

An agent must not depend on the engine it learned with, so an engine counts only if Gymnasium makes the same id with
the same spaces; where just bounds or dtypes differ, Gymnasium's are kept.
"""

from __future__ import annotations

import contextlib
import difflib
import warnings
from collections.abc import Iterable, Iterator, Sequence
from types import ModuleType
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from klrl.experience.atari import ale_vector, envpool_settings, is_preprocessed, spec_of

VectorizationMode = Literal["sync", "async", "vector_entry_point", "envpool"]
NO_LIMIT = 2**31 - 1
"""``max_episode_steps`` for an engine that wants an int32 where Gymnasium has None."""

# Settings of EnvPool itself, of an id's version, and files that it would look for among its own.
_RESERVED = {
    "base_path", "batch_size", "env_seed", "frame_stack", "gym_reset_return_info", "gymnasium_v5_render_camera",
    "max_episode_steps", "max_num_players", "num_envs", "num_threads", "post_constraint", "reward_threshold", "seed",
    "thread_affinity_offset", "version", "xml_file",
}  # fmt: skip


def plain_spec(env: object, mode: str) -> EnvSpec:
    """Return the ``EnvSpec`` of an id, or of an ``EnvSpec`` without wrappers: an engine can make nothing else.

    Raises:
        ValueError: ``env`` is neither.
    """
    spec = spec_of(env) if isinstance(env, str) else env
    if not isinstance(spec, EnvSpec) or spec.additional_wrappers:
        what = f"EnvSpec {spec.id} with wrappers" if isinstance(spec, EnvSpec) else f"{env!r}"
        raise ValueError(
            f"vectorization_mode = {mode!r} and env = {what}; allowed: an id or EnvSpec without wrappers "
            "('sync' and 'async' take any environment, and a VectorEnv brings its own engine)"
        )
    return spec


class EnvPoolVectorEnv(VectorEnv):
    """EnvPool's environments in C++ threads, with Gymnasium's spaces and seeds, in NEXT_STEP autoreset mode.

    Each environment has a seed and random numbers of its own; trajectories depend neither on the number of environments
    nor on threads. There are as many threads as cores this process may run on, at most one per environment (EnvPool's
    default; ``taskset`` limits it). An episode that terminates in the very step of its time limit is reported as
    truncated only: EnvPool does not tell the two apart.

    Args:
        spec: spec of an id that Gymnasium and EnvPool both know; its changes to the registered settings are passed on.
        num_envs: number of environments.
        observation_space: space of Gymnasium's environment.
        action_space: space of Gymnasium's environment.

    Raises:
        ValueError: EnvPool is not installed, does not know the id or a setting, or has other spaces.
    """

    def __init__(self, spec: EnvSpec, num_envs: int, observation_space: gym.Space, action_space: gym.Space) -> None:
        self.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}
        self.spec, self.num_envs = spec, num_envs
        self.single_observation_space, self.single_action_space = observation_space, action_space
        self.observation_space, self.action_space = (
            batch_space(s, num_envs) for s in (observation_space, action_space)
        )
        self._envpool = _import_envpool()
        self._settings = {"task_id": spec.id, "num_envs": num_envs} | _settings(spec, self._envpool)
        self._pool: Any = None
        with _bounds_in_float64():
            theirs = self._envpool.make_spec(**self._settings)
            same = _fits(observation_space, theirs.observation_space) and _fits(action_space, theirs.action_space)
            if not same or not _same_bounds(action_space, theirs.action_space):
                raise ValueError(
                    f"env = {spec.id!r}: EnvPool's spaces are {theirs.observation_space}, {theirs.action_space}; "
                    f"allowed: Gymnasium's, {observation_space}, {action_space}"
                )

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin new episodes everywhere; a seed needs new environments, because EnvPool seeds only at construction."""
        if seed is not None or self._pool is None:
            seeds = _seeds(seed, self.num_envs)
            with _bounds_in_float64():
                self._pool = self._envpool.make(env_type="gymnasium", seed=seeds, **self._settings)
                _ = self._pool.observation_space  # made once, when first asked for
        return self._pool.reset(options=options)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step every environment; one whose episode ended in the last step is reset instead."""
        return self._pool.step(actions)

    def close_extras(self, **kwargs: Any) -> None:
        """End the threads."""
        self._pool = None


def from_entry_point(spec: EnvSpec, num_envs: int, observation_space: gym.Space, action_space: gym.Space) -> VectorEnv:
    """Make an environment that is itself vectorised, by its ``vector_entry_point``; its class sets the autoreset mode.

    Args:
        spec: its settings and time limit are passed on.
        num_envs: number of environments.
        observation_space: space of Gymnasium's single environment.
        action_space: space of Gymnasium's single environment.

    Raises:
        ValueError: there is no such entry point, it does not take a setting, or it has other spaces.
    """
    if is_preprocessed(spec):
        return _with_spaces(ale_vector(spec, num_envs), spec, observation_space, action_space)
    if spec.vector_entry_point is None:
        have = [s.id for s in gym.registry.values() if s.vector_entry_point is not None]
        raise ValueError(f"env = {spec.id!r} has no vector_entry_point; {_hint(spec.id, have)}")
    registered = gym.registry.get(spec.id, spec).max_episode_steps
    # make_vec passes a limit on, but leaves out None, and the class's own default would come back.
    lifted = spec.max_episode_steps is None and registered is not None
    settings: dict[str, Any] = {"max_episode_steps": NO_LIMIT} if lifted else {}
    try:
        envs = gym.make_vec(spec, num_envs, "vector_entry_point", **settings)
    except (gym.error.Error, ImportError, TypeError) as error:
        raise ValueError(f"env = {spec.id!r}, vectorization_mode = 'vector_entry_point': {error}") from error
    return _with_spaces(envs, spec, observation_space, action_space)


def _with_spaces(envs: VectorEnv, spec: EnvSpec, observation_space: gym.Space, action_space: gym.Space) -> VectorEnv:
    """Return a vector environment that has Gymnasium's spaces."""
    ours, theirs = (observation_space, action_space), (envs.single_observation_space, envs.single_action_space)
    if ours != theirs:
        envs.close()
        raise ValueError(f"env = {spec.id!r}: its vector_entry_point has spaces {theirs}; allowed: Gymnasium's, {ours}")
    return envs


def _import_envpool() -> ModuleType:
    try:
        import envpool
    except ImportError as error:
        raise ValueError(f"vectorization_mode = 'envpool': {error}; allowed: pip install 'klrl[envpool]'") from error
    return envpool


def _settings(spec: EnvSpec, envpool: ModuleType) -> dict[str, Any]:
    """Translate an ``EnvSpec``'s changes of the registered environment into EnvPool's settings; nothing is dropped."""
    if is_preprocessed(spec):
        settings = envpool_settings(spec)
        _check_types(spec, settings, envpool)
        return settings
    known = [name for name in envpool.list_all_envs() if name in gym.registry]
    if spec.id not in known:
        raise ValueError(f"env = {spec.id!r} is not one of EnvPool's environments; {_hint(spec.id, known)}")
    registered = gym.spec(spec.id)
    if spec.entry_point != registered.entry_point:
        raise ValueError(f"env = {spec.id!r}: entry_point = {spec.entry_point!r}; allowed: {registered.entry_point!r}")
    changed = {k: v for k, v in spec.kwargs.items() if k not in registered.kwargs or v != registered.kwargs[k]}
    config = envpool.make_spec(spec.id).config._asdict()
    takes = {k: v for k, v in sorted(config.items()) if k not in _RESERVED}
    for k in [*changed, *(registered.kwargs.keys() - spec.kwargs.keys())]:
        if k not in takes:
            value = spec.kwargs.get(k)
            raise ValueError(f"env = {spec.id!r}: {k} = {value!r}; allowed with EnvPool: {', '.join(takes) or 'none'}")
    settings = changed | {"max_episode_steps": spec.max_episode_steps or NO_LIMIT}
    _check_types(spec, {"task_id": spec.id, **settings}, envpool)
    return settings


def _check_types(spec: EnvSpec, settings: dict[str, Any], envpool: ModuleType) -> None:
    """Refuse settings of a type, or a game, that EnvPool does not have."""
    task = settings["task_id"]
    if task not in envpool.list_all_envs():
        raise ValueError(
            f"env = {spec.id!r} is not one of EnvPool's environments; {_hint(task, envpool.list_all_envs())}"
        )
    takes = {k: v for k, v in sorted(envpool.make_spec(task).config._asdict().items()) if k not in _RESERVED}
    if unknown := settings.keys() - takes.keys() - _RESERVED - {"task_id"}:
        name = min(unknown)
        raise ValueError(f"env = {spec.id!r}: {name} = {settings[name]!r}; allowed with EnvPool: {', '.join(takes)}")
    try:
        envpool.make_spec(**settings)
    except TypeError as error:
        said = {k: v for k, v in settings.items() if k != "task_id"}
        raise ValueError(f"env = {spec.id!r}: {said}; allowed with EnvPool: the types of {takes}") from error


def _seeds(seed: int | Sequence[int] | None, n: int) -> list[int]:
    """Return one seed per environment, as the signed 32-bit integers that EnvPool takes."""
    if seed is None:
        return np.random.SeedSequence().generate_state(n).view(np.int32).tolist()
    seeds = [seed + i for i in range(n)] if isinstance(seed, (int, np.integer)) else list(seed)
    return np.array(seeds, dtype=np.uint32).view(np.int32).tolist()


def _fits(ours: gym.Space, theirs: gym.Space) -> bool:
    """True for spaces of the same kind, shape and choices."""
    if isinstance(ours, Discrete) and isinstance(theirs, Discrete):
        return bool(ours.n == theirs.n and ours.start == theirs.start)
    return isinstance(ours, Box) and isinstance(theirs, Box) and ours.shape == theirs.shape


def _same_bounds(ours: gym.Space, theirs: gym.Space) -> bool:
    if not isinstance(ours, Box) or not isinstance(theirs, Box):
        return True
    return np.allclose(ours.low, theirs.low) and np.allclose(ours.high, theirs.high)


def _hint(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    return f"allowed: {', '.join(near) if near else ', '.join(sorted(known)[:5]) + ', ...'}"


@contextlib.contextmanager
def _bounds_in_float64() -> Iterator[None]:
    """Silence Gymnasium's warning about EnvPool's bounds, which are float64 for float32 spaces."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*Box (low|high)'s precision lowered", category=UserWarning)
        yield
