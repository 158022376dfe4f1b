"""Games of the Arcade Learning Environment with standard preprocessing, by Gymnasium, ale-py's vector and EnvPool.

The preprocessing of Machado et al. 2018, "Revisiting the Arcade Learning Environment" (and of Mnih et al. 2015): up to
30 no-ops after a reset, every action for 4 frames of which the last two are merged by their maximum, 84 x 84 gray
pixels, a stack of the last 4 such images, zeros before the first. No button is pressed for the player after a reset,
and rewards and lives are left as they are: what only the learner is told is a matter of :mod:`klrl.experience.told`.

The keyword argument ``preprocessing`` says so among those of an ``EnvSpec``, which are saved with a run.
"""

from __future__ import annotations

import copy
import importlib.util
import os
import sys
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import VectorEnv, VectorWrapper

NAMESPACE, MODULE = "ALE", "ale_py"
_KEY, _STANDARD, _NONE = "preprocessing", "standard", "none"
_STACK = 4
_OWN = {"noop_max": 30, "frameskip": 4}
"""Settings of the preprocessing, which may be given as keyword arguments, and their defaults."""


def spec_of(env: str | EnvSpec) -> EnvSpec:
    """Return a spec of one's own of an id, a game's with its preprocessing; an ``EnvSpec`` is what it is.

    Raises:
        gymnasium.error.Error: an unknown id.
        ModuleNotFoundError: the module of a known namespace is not installed.
    """
    if not isinstance(env, str):
        return env
    module, _, name = env.rpartition(":")
    register_game(name)
    if module:
        importlib.import_module(module)
    spec = copy.deepcopy(gym.spec(name))
    if spec.namespace == NAMESPACE:
        spec.kwargs = {_KEY: _STANDARD, **spec.kwargs}
    return spec


def register_game(name: str) -> None:
    """Import ale-py if this is the id of a game.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    if name.startswith(f"{NAMESPACE}/") and name not in gym.registry:
        importlib.import_module(MODULE)


def is_preprocessed(spec: EnvSpec) -> bool:
    """Tell whether a spec asks for the standard preprocessing.

    Raises:
        ValueError: it asks for another one.
    """
    said = spec.kwargs.get(_KEY, _NONE)
    if spec.namespace == NAMESPACE and said not in (_STANDARD, _NONE):
        raise ValueError(f"preprocessing = {said!r}; allowed: {_STANDARD!r}, {_NONE!r}")
    return bool(spec.namespace == NAMESPACE and said == _STANDARD)


def without_preprocessing(spec: EnvSpec) -> EnvSpec:
    """Return a spec without the word about its preprocessing, as Gymnasium takes it."""
    if spec.namespace != NAMESPACE or _KEY not in spec.kwargs:
        return spec
    spec = copy.deepcopy(spec)
    del spec.kwargs[_KEY]
    return spec


def preprocessed(spec: EnvSpec) -> gym.Env:
    """Make a game in Gymnasium's wrappers.

    Raises:
        ValueError: a setting that the preprocessing does not allow.
        DependencyNotInstalled: OpenCV is missing.
    """
    noop_max, frameskip, kwargs = _settings(spec)
    if importlib.util.find_spec("cv2") is None:
        raise gym.error.DependencyNotInstalled("OpenCV is not installed; allowed: pip install 'klrl[atari]'")
    inner = copy.deepcopy(spec)
    inner.kwargs = kwargs | {"frameskip": 1, "obs_type": "grayscale"}
    env = gym.make(inner, disable_env_checker=True)
    env = gym.wrappers.AtariPreprocessing(env, noop_max=noop_max, frame_skip=frameskip)
    return gym.wrappers.FrameStackObservation(env, _STACK, padding_type="zero")


def ale_vector(spec: EnvSpec, num_envs: int) -> VectorEnv:
    """Make ale-py's own vector of a game, in NEXT_STEP autoreset mode and as many threads as cores.

    Raises:
        ValueError: a setting that it does not take.
    """
    noop_max, frameskip, kwargs = _settings(spec)
    own = {"noop_max": noop_max, "frameskip": frameskip, "stack_num": _STACK}
    off = {"reward_clipping": False, "use_fire_reset": False, "num_threads": min(num_envs, _cores())}
    before = dict(VectorEnv.metadata)
    try:
        envs = gym.make_vec(spec.id, num_envs, "vector_entry_point", **{**kwargs, **own, **off})
    except TypeError as error:
        raise ValueError(f"env = {spec.id!r}, vectorization_mode = 'vector_entry_point': {error}") from error
    envs.metadata = dict(envs.metadata)
    VectorEnv.metadata.clear()  # ale-py writes its mode into the dict of all classes of vectors
    VectorEnv.metadata.update(before)
    return _SmallerSeeds(envs)


class _SmallerSeeds(VectorWrapper):
    """Passes seeds of 32 bits on as those of 31 that ale-py takes."""

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset all games; they have consecutive seeds."""
        return self.env.reset(seed=None if seed is None else int(seed) % (2**31 - self.num_envs), options=options)


def envpool_settings(spec: EnvSpec) -> dict[str, Any]:
    """Return EnvPool's name of a game, and its settings of the same preprocessing.

    It makes one no-op more than it is asked for at most, and at least one.
    """
    noop_max, frameskip, kwargs = _settings(spec)
    for name in ("game", "render_mode"):
        kwargs.pop(name, None)
    frames = kwargs.pop("max_num_frames_per_episode", None)
    limit = {} if frames is None else {"max_episode_steps": frames // frameskip}
    own = {"noop_max": max(1, noop_max), "frame_skip": frameskip, "stack_num": _STACK, "use_fire_reset": False}
    return {"task_id": spec.id.removeprefix(f"{NAMESPACE}/"), **kwargs, **limit, **own}


def _settings(spec: EnvSpec) -> tuple[int, int, dict[str, Any]]:
    """Return no-ops, frames per action and the keyword arguments of the game."""
    kwargs = {k: v for k, v in spec.kwargs.items() if k not in (_KEY, "obs_type")}
    if "obs_type" in spec.kwargs:
        kind = spec.kwargs["obs_type"]
        raise ValueError(f"obs_type = {kind!r} with preprocessing = 'standard'; allowed: with preprocessing = 'none'")
    noop_max, frameskip = (kwargs.pop(name, default) for name, default in _OWN.items())
    for name, value, least in (("noop_max", noop_max, 0), ("frameskip", frameskip, 1)):
        if type(value) is not int or value < least:
            raise ValueError(f"{name} = {value!r} with preprocessing = 'standard'; allowed: an integer >= {least}")
    return noop_max, frameskip, kwargs


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
