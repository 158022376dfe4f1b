"""Networks of a user's own among an agent's settings: a function that makes them, of which only the name is saved."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Annotated, Any

import tyro

from klrl.own import named
from klrl.schedules import function_name, functions_in
from klrl.text import plain

Network = Callable[..., Any]
"""A function of (n_inputs, n_outputs) that returns a ``torch.nn.Module``."""
NetworkArgument = Annotated[
    str | Callable | None,
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="None|MODULE:NAME",
        instance_from_str=lambda words: None if words[0] == "None" else network_of_word(words[0]),
        is_instance=lambda x: x is None or callable(x),
        str_from_instance=lambda x: ["None" if x is None else function_name(x)],
    ),
]
_OF_LAYERS = ("actor_hidden_sizes", "critic_hidden_sizes", "activation", "layer_norm", "image_network")
"""Settings of klrl's layers, which a network of one's own does not read."""


def network_of_word(word: str) -> Network:
    """Return the function ``MODULE:NAME`` that makes networks.

    Names in files are never imported: this is for words that the user gives.

    Raises:
        ValueError: it is not there, or nothing that can be called.
    """
    allowed = "MODULE:NAME of a function of (n_inputs, n_outputs) that returns a torch.nn.Module"
    found = named("network", word, allowed)
    if not callable(found):
        raise ValueError(f"network = {word!r} is a {type(found).__name__}; allowed: {allowed}")
    return found


def check_layers(config: Any) -> None:
    """Refuse settings of klrl's layers beside a network of one's own.

    Raises:
        ValueError: naming the setting, and its default.
    """
    if config.network is None:
        return
    if config.shared_encoder:
        said = f"shared_encoder = True with network = {function_name(config.network)}, of which no part is an encoder"
        raise ValueError(f"{said}; allowed: False")
    for f in (f for f in fields(config) if f.name in _OF_LAYERS and getattr(config, f.name) != f.default):
        said = f"{f.name} = {getattr(config, f.name)!r} with network = {function_name(config.network)}"
        raise ValueError(f"{said}, which has layers of its own; allowed: {f.default!r}")


def saved_name(config: Any) -> str | None:
    """Return the name of the function in saved settings that made an agent's networks, if it was not klrl's."""
    name = functions_in(config).get("network") if isinstance(config, dict) else None
    return None if name is None else plain(name, 120)


def refuse_word(config: Mapping[str, Any]) -> None:
    """Refuse a word for a network in saved settings: nothing that is saved is imported.

    Raises:
        ValueError: there is one.
    """
    if isinstance(word := config.get("network"), str):
        raise ValueError(f"network = {plain(word, 120)} in saved settings; allowed: one that is given again")


def given_again(config: Any, network: Network | str | None) -> Network | None:
    """Return the network that is given for saved settings, which name one.

    Raises:
        ValueError: they name one and none is given, or the other way round.
    """
    name = saved_name(config)
    if name is not None and network is None:
        raise ValueError(f"network = {name}: functions are not saved; allowed: load(..., network=...)")
    if name is None and network is not None:
        said = network if isinstance(network, str) else function_name(network)
        raise ValueError(f"network = {said}; allowed: None, because the saved networks are klrl's")
    return network_of_word(network) if isinstance(network, str) else network


def shared_with(name: str, config: Any, network: Network | str | None) -> Network | None:
    """Return an agent's own network if another agent, in saved settings, has the same one; ``None`` if it has klrl's.

    Args:
        name: the other agent in the user's words.
        config: its settings.
        network: what made the agent's networks.

    Raises:
        ValueError: the other agent has another network of one's own.
    """
    theirs = saved_name(config)
    if theirs is None:
        return None
    mine = None if network is None else function_name(network)
    if mine != theirs:
        raise ValueError(f"{name} has network = {theirs}; allowed: the agent's, {mine}")
    return given_again(config, network)


def of_flag(path: object, config: Any, word: str | None) -> Network | None:
    """Return the network that a command line gives for a saved agent, whose settings name one.

    Args:
        path: the user's word for the saved agent.
        config: its settings.
        word: ``MODULE:NAME``, if the flag was given.

    Raises:
        ValueError: the settings name one and none is given, or the other way round, or nothing is there.
    """
    if word is None and (name := saved_name(config)) is not None:
        raise ValueError(f"path = {path}: network = {name}: functions are not saved; allowed: --network {name}")
    return given_again(config, word)
