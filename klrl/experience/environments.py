"""Construction of environments from anything that can be one: id, EnvSpec, factory, Env or VectorEnv."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any, TypeGuard, cast

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit

from klrl.experience.atari import register_game, spec_of
from klrl.experience.cursors import EnvCursor
from klrl.experience.engines import EnvPoolVectorEnv, VectorizationMode, from_entry_point, plain_spec
from klrl.experience.episodes import SeededEpisodes
from klrl.experience.infos import SyncEnvs, WorkerEnvs
from klrl.experience.processes import check_open_files
from klrl.experience.steps import CheckedSteps
from klrl.experience.unknown import why_unknown
from klrl.experience.workers import OnFailure, WorkerVectorEnv
from klrl.experience.wrapped import Wrapped, made
from klrl.keywords import is_plain, of_json, to_json
from klrl.policy.spaces import check_spaces
from klrl.text import warn_user

EnvLike = str | EnvSpec | Callable[[], gym.Env] | gym.Env | VectorEnv
ENGINES: dict[str, Callable[[EnvSpec, int, gym.Space, gym.Space], VectorEnv]] = {
    "vector_entry_point": from_entry_point,
    "envpool": EnvPoolVectorEnv,
}
"""Functions of ``EnvSpec``, number and Gymnasium's spaces that make the environments of a mode."""


def make_vector_env(
    env: EnvLike,
    n_envs: int,
    vectorization_mode: VectorizationMode = "sync",
    worker_timeout: float = 60.0,
    on_worker_failure: OnFailure = "stop",
    *,
    rebuild_envs: bool = False,
    seed_every_episode: bool = True,
    first: int = 0,
) -> VectorEnv:
    """Make a vector environment of ``n_envs`` copies of ``env``.

    In this process ("sync") or one process each ("async"), in SAME_STEP autoreset mode and with episodes that are
    seeded one by one (:class:`SeededEpisodes`); or made by id or ``EnvSpec`` in an engine with a mode of its own: the
    environment's own vector ("vector_entry_point") or EnvPool ("envpool").
    A ``VectorEnv`` passes through with its own engine, size and mode (NEXT_STEP or SAME_STEP); one ``Env`` instance
    becomes a vector of one. A function is called ``n_envs`` times; for processes once more before, in this one, to see
    the spaces. Processes have ``worker_timeout`` seconds for every answer; one that fails ends them all or is made
    anew, as ``on_worker_failure`` says. Environments are kept, unless ``rebuild_envs`` gives every episode a new one.
    In messages they are numbered from ``first`` on.

    Raises:
        ValueError: an unknown id, a missing package, spaces that no network fits, autoreset switched off, too many
            processes for the limit of open files, an environment or setting that the engine does not have, or
            ``rebuild_envs`` where nothing can be made.
    """
    if rebuild_envs and (number_of(env) is not None or vectorization_mode not in ("sync", "async")):
        what = f"vectorization_mode = {vectorization_mode!r}" if number_of(env) is None else f"a {type(env).__name__}"
        raise ValueError(f"rebuild_envs = True with {what}; allowed: an id, EnvSpec or function in sync or async")
    if isinstance(env, VectorEnv):
        _check_vector(env)
        return env
    make = factory(env)
    if vectorization_mode in ENGINES:
        spec = plain_spec(env, vectorization_mode)
        with _first(env, make) as one:
            envs = ENGINES[vectorization_mode](spec, n_envs, one.observation_space, one.action_space)
        declared_mode(envs)
        return envs
    if vectorization_mode not in ("sync", "async"):
        allowed = ", ".join(["sync", "async", *ENGINES])
        raise ValueError(f"vectorization_mode = {vectorization_mode!r}; allowed: {allowed}")
    one = _first(env, make)
    n = number_of(env) or n_envs
    seeded = _Seeded(make, (one.observation_space, one.action_space), seed_every_episode, rebuild_envs, first)
    if vectorization_mode == "sync":
        return _in_this_process(one, seeded, n, kept=one is env)
    if one is not env:  # else workers have copies of it
        one.close()
    check_open_files(n)
    makes = [partial(seeded, i) for i in range(n)]
    return WorkerEnvs(makes, timeout=worker_timeout, on_failure=on_worker_failure, like=one)


def _check_vector(envs: VectorEnv) -> None:
    """Check the attributes of a user's vector, and warn if the agent's seed will not reach it."""
    for name in ("num_envs", "single_observation_space", "single_action_space"):
        if getattr(envs, name, None) is None:
            raise ValueError(f"env = {type(envs).__name__} without {name}; allowed: a VectorEnv that has it")
    check_spaces(envs.single_observation_space, envs.single_action_space)
    declared_mode(envs)
    if _is_pool(envs):
        warn_user(
            "env is an EnvPool, which takes a seed only when it is made: the agent's seed does not reach it; "
            "allowed: envpool.make(..., seed=...) by yourself, or vectorization_mode = 'envpool'"
        )


def _is_pool(envs: VectorEnv) -> bool:
    """True for a vector of EnvPool's own, found out without importing EnvPool."""
    return any(cls.__module__.partition(".")[0] == "envpool" for cls in type(envs.unwrapped).__mro__)


def _first(env: EnvLike, make: Callable[[], gym.Env]) -> gym.Env:
    """Make one environment and check it before making many."""
    try:
        one = make()
    except (gym.error.Error, ImportError) as error:
        raise ValueError(f"env = {env_id(env)!r}: {error}") from error
    except TypeError as error:
        if not isinstance(env, EnvSpec):
            raise
        raise ValueError(f"env = {env.id!r}: {error}") from error  # a setting it does not have
    if not isinstance(one, gym.Env):
        raise ValueError(f"env made a {type(one).__name__}; allowed: a function that makes a gymnasium.Env")
    try:
        check_spaces(one.observation_space, one.action_space)
    except ValueError:
        if one is not env:
            one.close()
        raise
    return one


@dataclass(frozen=True)
class _Seeded:
    """Makes environments whose episodes are seeded and whose steps are checked, by their index."""

    make: Callable[[], gym.Env]
    spaces: tuple[gym.Space, gym.Space]
    every: bool
    rebuild: bool
    first: int

    def __call__(self, i: int, ready: Sequence[gym.Env] = ()) -> SeededEpisodes:
        """Make one of them, around an environment that is ``ready``, if there is one."""
        left = [*ready]

        def make() -> gym.Env:
            return CheckedSteps(left.pop if left else self.make, self.first + i, self.spaces)

        return SeededEpisodes(make, self.first + i, every=self.every, rebuild=self.rebuild)


def _in_this_process(one: gym.Env, seeded: _Seeded, n: int, kept: bool) -> SyncVectorEnv:
    """Make a vector of ``n``, ``one`` and more; a failure closes all of them, but for ``one`` if it is ``kept``."""
    made: list[gym.Env] = [one]
    try:
        made[0] = seeded(0, [one])
        while len(made) < n:
            made.append(seeded(len(made)))
        makes = [partial(made.__getitem__, i) for i in range(n)]
        # What is returned may change in the next step: the collector copies what it keeps.
        return SyncEnvs(makes, copy=False, autoreset_mode=AutoresetMode.SAME_STEP)
    except BaseException:
        for env in made[kept:]:
            env.close()
        raise


def factory(env: str | EnvSpec | Callable[[], gym.Env] | gym.Env) -> Callable[[], gym.Env]:
    """Return a function that makes one environment (or returns the one instance given)."""
    if isinstance(env, gym.Env):
        return lambda: env
    if isinstance(env, (str, EnvSpec)):
        if isinstance(env, str):
            check_id(env)
        return partial(made, env)
    if callable(env):
        return env
    raise ValueError(
        f"env = {env!r}; allowed: an id, an EnvSpec, a function that makes an Env, an Env or a VectorEnv of Gymnasium"
    )


def check_id(env: str) -> None:
    """Refuse an id that Gymnasium does not know, before any environment is made.

    Raises:
        ValueError: the message names the id and the nearest ones.
    """
    module, _, name = env.rpartition(":")
    try:
        register_game(name)
        if module:
            import_module(module)
        gym.spec(name)
    except (gym.error.Error, ImportError) as error:
        raise ValueError(f"env = {env!r}: {why_unknown(module, name, error)}") from error


def env_id(env: EnvLike) -> str | None:
    """Return the registered id, if there is one, without a module to import: the key of presets."""
    if isinstance(env, str):
        return env.rpartition(":")[2]
    spec = env if isinstance(env, EnvSpec) else getattr(env, "spec", None)
    return spec.id if isinstance(spec, EnvSpec) else None


def number_of(env: EnvLike | None) -> int | None:
    """Number of environments that ``env`` fixes; ``None`` if any number of them can be made."""
    return env.num_envs if isinstance(env, VectorEnv) else 1 if isinstance(env, gym.Env) else None


def describe(env: EnvLike | None) -> dict[str, Any] | None:
    """Return an id, ``EnvSpec`` or ``Env`` as JSON; ``None`` if names and plain settings cannot describe it."""
    if isinstance(env, Wrapped):
        inner, wrappers = describe(env.spec), [one.to_json() for one in env.wrappers]
        return None if inner is None or None in wrappers else inner | {"wrappers": wrappers}
    spec = spec_of(env) if isinstance(env, str) else env
    limit = spec.max_episode_steps if isinstance(spec, EnvSpec) else None
    if isinstance(env, gym.Env):
        spec, limit = env.spec, time_limit(env)
        if not all(type(wrapper) in _IN_A_SPEC for wrapper in _wrappers(env)):
            return None
    if not isinstance(spec, EnvSpec) or spec.additional_wrappers:
        return None
    if spec.entry_point != gym.registry.get(spec.id, spec).entry_point:
        return None
    kwargs = to_json(spec.kwargs)
    plain = kwargs is not None and is_plain(limit)
    return {"id": spec.id, "kwargs": kwargs, "max_episode_steps": limit} if plain else None


_IN_A_SPEC = {TimeLimit, OrderEnforcing, PassiveEnvChecker}
"""Wrappers that a spec does not count as additional; classes derived from them are."""


def _wrappers(env: gym.Env) -> Iterator[gym.Wrapper]:
    while isinstance(env, gym.Wrapper):
        yield env
        env = env.env


def time_limit(env: gym.Env) -> int | None:
    """Smallest number of steps after which episodes are truncated; ``spec`` knows only the outermost limit."""
    limits = (wrapper._max_episode_steps for wrapper in _wrappers(env) if isinstance(wrapper, TimeLimit))
    return min(limits, default=None)


def described(data: dict[str, Any] | None) -> EnvSpec | None:
    """Return the ``EnvSpec`` that :func:`describe` wrote, if its id is registered here and nothing is to be imported.

    Raises:
        ValueError: :func:`describe` does not write such data.
    """
    if data is None:
        return None
    limit = data.get("max_episode_steps", 0)
    named = isinstance(data.get("id"), str) and isinstance(data.get("kwargs"), dict)
    if not named or not (limit is None or (type(limit) is int and limit >= 1)):
        raise ValueError(f"env = {data}; allowed: an id, keyword arguments and a number of steps >= 1 or null")
    with contextlib.suppress(ModuleNotFoundError):
        register_game(data["id"])
    if data["id"] not in gym.registry or data.get("wrappers"):
        return None
    spec = copy.deepcopy(gym.spec(data["id"]))
    spec.kwargs, spec.max_episode_steps = of_json(data["kwargs"]), data["max_episode_steps"]
    return spec


def declared_mode(envs: VectorEnv) -> AutoresetMode | None:
    """Return NEXT_STEP or SAME_STEP, declared as mode, value or name; ``None`` if the environment declares nothing.

    Raises:
        ValueError: autoreset is off, and rollouts could not go on after an episode; or something else is declared.
    """
    said = (envs.metadata or {}).get("autoreset_mode")
    for mode in (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP):
        if said is mode or (isinstance(said, str) and said.replace("_", "").lower() == mode.value.lower()):
            return mode
    if said is None:
        return None
    shown = said.value if isinstance(said, AutoresetMode) else said
    raise ValueError(f"autoreset_mode = {shown!r}; allowed: {AutoresetMode.NEXT_STEP.value!r}, 'SameStep'")


def spawn_env_seeds(seeds: np.random.SeedSequence, n: int) -> list[int]:
    """Return independent seeds of ``n`` environments, 32 bits each."""
    return [int(s.generate_state(1)[0]) for s in seeds.spawn(n)]


def is_seeded(envs: VectorEnv) -> TypeGuard[SyncVectorEnv | WorkerVectorEnv]:
    """True if every episode has a seed of its own, so that the environments can be taken to any cursor."""
    if isinstance(envs, SyncVectorEnv):
        return all(isinstance(env, SeededEpisodes) and env.every for env in envs.envs)
    return isinstance(envs, WorkerVectorEnv) and envs.seeded


def reset(envs: VectorEnv, cursor: EnvCursor) -> tuple[Any, dict[str, Any]]:
    """Take every environment to its cursor, and return the observations there and info.

    Environments that cannot be taken to a cursor begin new episodes from their seeds; a foreign ``VectorEnv`` promises
    to take a single seed and gets one, and EnvPool, which would ignore it, gets none.
    """
    if is_seeded(envs):
        if isinstance(envs, WorkerVectorEnv):
            envs.go_to(cursor.episode_cursors())
        else:
            for env, episode in zip(_seeded(envs), cursor.episode_cursors(), strict=True):
                env.cursor = episode
        return envs.reset()
    if _is_pool(envs):
        return envs.reset()
    seeds: list[int] = cursor.env_seeds.tolist()
    own = isinstance(envs.unwrapped, (SyncVectorEnv, AsyncVectorEnv, WorkerVectorEnv, EnvPoolVectorEnv))
    return envs.reset(seed=seeds if own else seeds[0])  # type: ignore[arg-type]


def diverged(envs: VectorEnv) -> Sequence[bool]:
    """True for each environment that did not arrive at its cursor in the last :func:`reset`."""
    if not is_seeded(envs):
        return [False] * envs.num_envs
    return envs.diverged() if isinstance(envs, WorkerVectorEnv) else [env.diverged for env in _seeded(envs)]


def _seeded(envs: SyncVectorEnv) -> Sequence[SeededEpisodes]:
    return cast("Sequence[SeededEpisodes]", envs.envs)
