"""Environments as the command line names them, and as a saved run asks for them again."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec

from klrl.experience.atari import spec_of
from klrl.experience.environments import check_id, described
from klrl.experience.wrapped import Named, Wrapped, Wrapping
from klrl.scripts.cli.env_words import keywords
from klrl.text import plain


def wrappings(words: Sequence[Sequence[str]]) -> list[Wrapping]:
    """Return wrappers, which are looked for at once.

    Raises:
        ValueError: the first word is not MODULE:NAME of a wrapper, or a later one is.
    """
    found = []
    for name, *arguments in (one or ("",) for one in words):
        for word in (word for word in arguments if "=" not in word):
            raise ValueError(f"wrapper = {word!r} after {name}; allowed: key=value, or --wrapper {word}")
        found.append(Wrapping(name, keywords(arguments)))
        found[-1].find()
    return found


def in_words(env: str, kwargs: Sequence[str], wrappers: Sequence[Sequence[str]]) -> Named:
    """Return an environment by its id, with keyword arguments over those registered, inside wrappers.

    Raises:
        ValueError: an unknown id or wrapper.
    """
    if not kwargs and not wrappers:
        return env
    check_id(env)
    inside = wrappings(wrappers)
    found = with_kwargs(env, kwargs)
    return Wrapped(found, inside) if inside and isinstance(found, EnvSpec) else found


def with_kwargs(env: Named, kwargs: Sequence[str]) -> EnvSpec | Wrapped:
    """Return an environment with keyword arguments over its own."""
    wrappers = env.wrappers if isinstance(env, Wrapped) else ()
    inner = env.spec if isinstance(env, Wrapped) else env
    spec = copy.deepcopy(spec_of(inner))
    spec.kwargs = {**spec.kwargs, **keywords(kwargs)}
    return _inside(spec, wrappers)


def _inside(spec: EnvSpec, wrappers: Sequence[Wrapping]) -> EnvSpec | Wrapped:
    return Wrapped(spec, wrappers) if wrappers else spec


def environment(
    saved: Mapping[str, Any] | None, given: str | None, wrappers: Sequence[Sequence[str]] | None = None
) -> Named:
    """Return the environment that was given, by default the one that was saved.

    If both have the same id, the given one only says where it is registered: its settings are the saved ones. So do
    wrappers: nothing that is saved is imported.

    Args:
        saved: description of the saved one.
        given: id.
        wrappers: wrappers in words; ``None`` if the command takes none.

    Raises:
        ValueError: it is not registered here, the saved one has no id, or wrappers of it are not given.
    """
    if given is not None:
        check_id(given)
        if saved is None or saved.get("id") != gym.spec(given.rpartition(":")[2]).id:
            return in_words(given, (), wrappers or ())
    spec = described(None if saved is None else {k: v for k, v in saved.items() if k != "wrappers"})
    if saved is None or spec is None:
        name = plain(saved["id"], 80) if saved else None
        known = f"{name}, which is not registered here" if name else "one without an id"
        raise ValueError(f"env = {known}; allowed: --env {f'MODULE:{name}' if name else 'ID'}")
    kept = saved.get("wrappers", [])
    if not isinstance(kept, list):
        raise ValueError(f"wrappers = {plain(kept, 80)}; allowed: a list, as a run writes it")
    return _inside(spec, _again([*map(Wrapping.of, kept)], wrappers))


def _again(saved: Sequence[Wrapping], given: Sequence[Sequence[str]] | None) -> list[Wrapping]:
    """Return the wrappers that are given; where those were saved, with their arguments over the saved ones."""
    if saved and [one.name for one in saved] != [words[0] for words in given or () if words]:
        again = " ".join(f"--wrapper {one.name}" for one in saved)
        allowed = again if given is not None else "--env of an id of your own that is registered with them"
        inside = plain(", ".join(map(str, saved)))
        raise ValueError(f"env was inside {inside}, and nothing that is saved is imported; allowed: {allowed}")
    found = wrappings(given or ())
    return [Wrapping(a.name, {**a.kwargs, **b.kwargs}) for a, b in zip(saved, found, strict=True)] if saved else found
