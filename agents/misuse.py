"""Messages for users of other libraries, who try other arguments first."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from klrl.text import nearest, plain

if TYPE_CHECKING:
    from klrl.agents.config import AgentConfig

P = ParamSpec("P")
R = TypeVar("R")
_POLICIES = ("MlpPolicy", "CnnPolicy", "MultiInputPolicy")
"""Names that Stable-Baselines3 takes as the first argument, beside classes."""
_ELSEWHERE = {
    "policy": "nothing, the environment's spaces decide which networks there are",
    "policy_kwargs": "actor_hidden_sizes=, critic_hidden_sizes=, activation=, network= of the config",
    "verbose": "learn(..., progress_bar=True)",
    "tensorboard_log": "learn(..., run_dir=...)",
    "use_sde": "nothing, klrl has no state-dependent exploration",
    "normalize_advantage_per_minibatch": "normalize_advantage= of the config",
}
"""Arguments of other libraries, and their replacements."""


_METHODS = {
    "policy": "nothing, an agent has its policy already",
    "tb_log_name": "run_dir=, which names the run and its TensorBoard events",
    "log_interval": "nothing, every update is logged",
    "reset_num_timesteps": "nothing, learn() goes on counting; resume() finishes an interrupted training",
    "eval_env": "a callback that calls klrl.run.evaluate",
    "custom_objects": "nothing, settings are those that were saved",
    "print_system_info": "nothing, config.json of a run has the versions",
    "force_reset": "nothing, set_env() begins new episodes",
    "exclude": "nothing, the whole state is saved",
    "include": "nothing, the whole state is saved",
    "mask": "action_masks=",
}
"""Arguments of other libraries' methods, and their replacements."""
_ATTRIBUTES = {
    "get_env": "agent.envs",
    "env": "agent.envs",
    "set_parameters": "agent.start_from(other), which copies networks and statistics, or load(path)",
    "get_parameters": "agent.actor.state_dict() and agent.critic.state_dict()",
    "policy": "agent.actor and agent.critic; agent.distribution(observations)",
    "logger": "agent.history, and learn(..., run_dir=...)",
    "set_logger": "learn(..., run_dir=...), and callbacks",
    "set_random_seed": "seed= when the agent is made",
    "get_vec_normalize_env": "agent.normalizer",
    "ep_info_buffer": "agent.episodes",
    "ep_success_buffer": "agent.episodes, with info_keys=('is_success',)",
    "rollout_buffer": "batch in a callback's on_update_start and on_update_end",
    "n_envs": "agent.config.n_envs",
}
"""Attributes of other libraries' agents, and their replacements."""


def explained(method: Callable[P, R]) -> Callable[P, R]:
    """Let a method say in one line what klrl has instead of another library's argument."""
    known = [name for name in inspect.signature(method).parameters if name != "self"]

    @wraps(method)
    def checked(*args: P.args, **settings: P.kwargs) -> R:
        for name in settings.keys() - {*known}:
            instead = _METHODS.get(name) or _ELSEWHERE.get(name)
            hint = f"; allowed: {instead}" if instead else nearest(name, known)
            raise TypeError(f"{name} is no argument of {method.__name__}(){hint}")
        return method(*args, **settings)

    return checked


def explain_attribute(agent: object, name: str) -> None:
    """Say in one line what klrl has instead of an attribute of another library's agents.

    Raises:
        AttributeError: if it is one of them.
    """
    if name in _ATTRIBUTES:
        raise AttributeError(f"{name} is no attribute of {type(agent).__name__}; allowed: {_ATTRIBUTES[name]}")


def check_arguments(cls: type[Any], args: tuple[Any, ...], settings: Mapping[str, Any]) -> None:
    """Check the arguments of an agent before Python binds them.

    Raises:
        TypeError: a policy's name or class before the environment, or a setting beside the config; in one line.
    """
    if inspect.isabstract(cls):  # Python has a line for that
        return
    parameters = inspect.signature(cls.__init__).parameters
    known = [f.name for f in fields(cls.config_class)]
    extra = {name: x for name, x in settings.items() if name not in parameters}
    mine = {name: x for name, x in extra.items() if name in known}
    if args and _is_policy(args[0]):
        said = f"env = {args[0] if isinstance(args[0], str) else args[0].__name__}"
        allowed = _call(cls, args[1:], mine)
        raise TypeError(f"{said}: the environment is the first argument, and no policy is named; allowed: {allowed}")
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    for name, x in extra.items():
        said = f"{name} = {plain(repr(x), 80)}"
        if name in known:
            raise TypeError(f"{said} is a setting of {cls.config_class.__name__}; allowed: {_call(cls, args, mine)}")
        if name in _ELSEWHERE:
            raise TypeError(f"{said} is no argument of {cls.__name__}; allowed: {_ELSEWHERE[name]}")
        raise TypeError(f"{name} is no argument of {cls.__name__}{nearest(name, [*parameters, *known])}")


def check_config(config: object, config_class: type[AgentConfig]) -> None:
    """Refuse a config of another class.

    Raises:
        TypeError: one line that shows how it is written.
    """
    if not isinstance(config, (config_class, type(None))):
        name = config_class.__name__
        written = f", written {name}({_settings(config)})" if isinstance(config, dict) and config else ""
        raise TypeError(f"config = {plain(repr(config), 200)}; allowed: a {name}{written}")


def _is_policy(x: Any) -> bool:
    if isinstance(x, str):
        return x in _POLICIES
    return isinstance(x, type) and any(cls.__module__.startswith(("stable_baselines3", "sb3_")) for cls in x.__mro__)


def _settings(values: Mapping[Any, Any]) -> str:
    return plain(", ".join(f"{name}={x!r}" for name, x in values.items()), 200)


def _call(cls: type[Any], args: tuple[Any, ...], settings: Mapping[str, Any]) -> str:
    """Write out the right call; the environment is the first of ``args``."""
    env = repr(args[0]) if args and isinstance(args[0], str) else "env"
    config = f", config={cls.config_class.__name__}({_settings(settings)})" if settings else ""
    return f"{cls.__name__}({env}{config})"
