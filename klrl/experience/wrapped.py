"""Environments of an ``EnvSpec`` inside wrappers that are known by name, so that a saved run can ask for them again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec

from klrl.experience.atari import is_preprocessed, preprocessed, spec_of, without_preprocessing
from klrl.experience.unknown import why_not_installed
from klrl.keywords import of_json, to_json
from klrl.own import named
from klrl.text import plain

_ALLOWED = "MODULE:NAME of a Gymnasium wrapper, or of a function of an environment that returns one"


def made(env: str | EnvSpec) -> gym.Env:
    """Make an environment by its id or ``EnvSpec``.

    Raises:
        DependencyNotInstalled: a package is missing; one line says which of klrl's extras has it.
    """
    try:
        spec = spec_of(env)
        if is_preprocessed(spec):
            return preprocessed(spec)
        return gym.make(
            without_preprocessing(spec), disable_env_checker=True
        )  # CheckedSteps says in one line what is wrong
    except gym.error.DependencyNotInstalled as error:
        raise gym.error.DependencyNotInstalled(why_not_installed(error)) from error


@dataclass(frozen=True)
class Wrapping:
    """A wrapper by its name, ``MODULE:NAME``, and its keyword arguments."""

    name: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        said = ", ".join(f"{key}={value!r}" for key, value in self.kwargs.items())
        return f"{self.name}({said})" if said else self.name

    def find(self) -> Callable[..., Any]:
        """Import the wrapper.

        Raises:
            ValueError: it is not there, or nothing that can be called.
        """
        found = named("wrapper", self.name, _ALLOWED)
        if not callable(found):
            raise ValueError(f"wrapper = {self.name!r} is a {type(found).__name__}; allowed: {_ALLOWED}")
        return found

    @classmethod
    def of(cls, data: Any) -> Wrapping:
        """Read a saved one.

        Raises:
            ValueError: nothing that was saved so.
        """
        known = isinstance(data, dict) and isinstance(data.get("name"), str) and isinstance(data.get("kwargs"), dict)
        if not known:
            raise ValueError(f"wrapper = {plain(repr(data), 80)}; allowed: a name and keyword arguments")
        return cls(data["name"], of_json(data["kwargs"]))

    def to_json(self) -> dict[str, Any] | None:
        """Return what :meth:`of` reads; ``None`` if JSON cannot keep an argument."""
        kwargs = to_json(self.kwargs)
        return None if kwargs is None else {"name": self.name, "kwargs": kwargs}


@dataclass(frozen=True)
class Wrapped:
    """Makes an environment of ``spec`` inside wrappers, the first one innermost."""

    spec: EnvSpec
    wrappers: Sequence[Wrapping]

    def __call__(self) -> gym.Env:
        """Make one.

        Raises:
            ValueError: a wrapper that does not wrap, or does not take its arguments.
        """
        env = made(self.spec)
        for wrapping in self.wrappers:
            try:
                wrapped = wrapping.find()(env, **wrapping.kwargs)
            except TypeError as error:
                env.close()
                raise ValueError(f"wrapper = {wrapping}: {error}") from error
            if not isinstance(wrapped, gym.Env):
                env.close()
                raise ValueError(f"wrapper = {wrapping} made a {type(wrapped).__name__}; allowed: {_ALLOWED}")
            env = wrapped
        return env


Named = str | EnvSpec | Wrapped
"""An environment that names describe."""
