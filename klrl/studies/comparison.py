"""Variants of one configuration that differ in exactly one thing."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, make_dataclass, replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

from klrl.agents import AGENTS, Agent, AgentConfig
from klrl.agents.names import agent_class, name_of
from klrl.text import nearest
from klrl.trust_region import PARAMETERS, REGIONS, RegionSettings, TrustRegion, with_region
from klrl.trust_region.names import parameters_of, readers_of, region_of_word
from klrl.validation import validate

CRITIC_PASSES = ("n_epochs", "n_critic_updates")
"""Names that agents use for the passes over the batch that fit their critic."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """An agent, its trust region, and at most one other setting: a line of the table per environment."""

    name: str
    agent: str
    region: str | TrustRegion
    """A name, or an object of a class of one's own."""
    changes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Variants, and the base that they share."""

    agent: str
    """Agent whose configuration is the base."""
    settings: Mapping[str, Any]
    """Changes to the base; a region's settings reach the regions that read them."""
    presets: bool
    """True to start from the environment's preset, False for the plain defaults."""
    variants: tuple[Variant, ...]
    every: bool = False
    """True if the variants are all possible values: those that do not fit an environment are then left out there."""

    def config(self, variant: Variant, env: str) -> AgentConfig:
        """Return the variant's configuration on an environment: the base except for the one thing.

        A trust region comes with the settings that it reads. Another agent has every field of the base that it knows,
        as many passes for its critic, and a trust region of its own.

        Raises:
            ValueError: a setting does not fit the others.
        """
        if variant.agent == self.agent:
            return replace(self._base(env, variant.region), **variant.changes)
        base, other = self._base(env, self._base_region()), agent_class(variant.agent).config_class
        kept = _fields(type(base)) - _fields(RegionSettings)
        values = {_named(other, name): getattr(base, name) for name in kept}
        shared = {name: value for name, value in values.items() if name in _fields(other)}
        return other(**(shared | self._chosen(other, variant.region)))

    def _base(self, env: str, region: str | TrustRegion) -> AgentConfig:
        config_class = agent_class(self.agent).config_class
        return config_class.for_env(env if self.presets else None, **self._chosen(config_class, region))

    def _base_region(self) -> str | TrustRegion:
        return self.settings.get("trust_region", _default_region(self.agent))

    def _chosen(self, config_class: type[AgentConfig], region: str | TrustRegion) -> dict[str, Any]:
        """The region, and the settings that it reads or that the agent has."""
        named = {_named(config_class, name): value for name, value in with_region(self.settings, region).items()}
        return {name: value for name, value in named.items() if name in _fields(config_class)}


def comparison(
    vary: Sequence[str | type[Agent[Any]]],
    agent: str = "ppo",
    also: Sequence[str] = (),
    assignments: Sequence[str] = (),
    presets: bool = True,
) -> Comparison:
    """Read a design in the form of the command line.

    Args:
        vary: name of a field, or "agent", and its values; without values, all possible ones. An agent is a name, a
            class, or ``"MODULE:CLASS"``.
        agent: agent whose preset is the base of all variants.
        also: other agents as further variants, each with its own trust region.
        assignments: changes to the base, ``"field=value"``.
        presets: whether the base is the environment's preset, or the plain defaults.

    Raises:
        ValueError: an unknown field, value or agent, a repeated variant, or a setting that nothing reads.
    """
    for other in also:
        _check("also", other, [name for name in AGENTS if name != agent])
    if not vary:
        raise ValueError("vary = (); allowed: FIELD [VALUES ...]")
    first, *words = (word if isinstance(word, str) else name_of(word) for word in vary)
    name = first.replace("-", "_")
    _check("vary", name, ["agent", *(f.name for f in fields(agent_class(agent).config_class))])
    every, words = not words, words or [*_every_value(agent, name)]
    agents = dict.fromkeys([agent, *also, *(word for word in words if name == "agent")])
    settings = dict(_assignment(word, [agent_class(a).config_class for a in agents]) for word in assignments)
    if name in settings:
        raise ValueError(f"set = {name!r}; allowed: what --vary does not vary")
    region = settings.get("trust_region", _default_region(agent))
    variants = [_variant(name, word, agent, region, "trust_region" in settings) for word in words]
    variants += [Variant(name=other, agent=other, region=_default_region(other)) for other in also]
    _check_variants(variants, settings)
    return Comparison(agent=agent, settings=settings, presets=presets, variants=tuple(variants), every=every)


def _variant(name: str, word: str, agent: str, region: str | TrustRegion, region_is_given: bool) -> Variant:
    """Make the variant for one value of the varied field."""
    if name == "agent":
        agent_class(word)
        return Variant(name=word, agent=word, region=region if region_is_given else _default_region(word))
    value = _value(agent_class(agent).config_class, name, word)
    if name == "trust_region":
        return Variant(name=word, agent=agent, region=value)
    return Variant(name=f"{name}={word}", agent=agent, region=region, changes={name: value})


def _check_variants(variants: Sequence[Variant], settings: Mapping[str, Any]) -> None:
    names = [variant.name for variant in variants]
    for twice in (name for name in names if names.count(name) > 1):
        raise ValueError(f"vary = {twice!r} twice; allowed: every variant once")
    read = frozenset().union(*(parameters_of(variant.region) for variant in variants))
    for unread in (name for name in settings if name in PARAMETERS and name not in read):
        raise ValueError(f"set = {unread!r}; allowed: only with a trust region that reads it ({readers_of(unread)})")


def _assignment(word: str, classes: Sequence[type[AgentConfig]]) -> tuple[str, Any]:
    """Read ``field=value`` for the first agent that has the field."""
    name, equals, text = word.partition("=")
    name = name.replace("-", "_")
    if not equals:
        raise ValueError(f"set = {word!r}; allowed: FIELD=VALUE ...")
    known = dict.fromkeys(f.name for config_class in classes for f in fields(config_class))
    _check("set", name, known)
    config_class = next(c for c in classes if name in _fields(c))
    value = _value(config_class, name, text)
    if name == "trust_region":
        parameters_of(value)
    return name, value


def _value(config_class: type[AgentConfig], name: str, word: str) -> Any:
    """Read a word as a value of a field: a number, True, False, None, several with commas, else text.

    Raises:
        ValueError: the value is not of the field's type, or out of its range.
    """
    try:
        value = ast.literal_eval(word.capitalize() if word in ("true", "false") else word)
    except (ValueError, SyntaxError, TypeError):
        value = word
    if name == "trust_region":
        value = region_of_word(word)
    hint = get_type_hints(config_class, include_extras=True)[name]
    if get_origin(hint) is tuple and not isinstance(value, tuple):
        value = (value,)
    validate(make_dataclass("Setting", [(name, hint)])(value))
    return value


def _every_value(agent: str, name: str) -> tuple[str, ...]:
    """Return the values of a field that has a few named ones."""
    if name == "agent":
        return tuple(AGENTS)
    if name == "trust_region":
        return tuple(REGIONS)
    hint = get_type_hints(agent_class(agent).config_class)[name]
    values = get_args(Literal[True, False] if hint is bool else hint)
    if not values or not all(isinstance(value, (str, bool)) for value in values):
        raise ValueError(f"vary = {name!r} without values; allowed: {name} VALUES ...")
    return tuple(map(str, values))


def _named(config_class: type[AgentConfig], name: str) -> str:
    """Return an agent's name of a field: the passes that fit the critic have two names."""
    return next((n for n in CRITIC_PASSES if n in _fields(config_class)), name) if name in CRITIC_PASSES else name


def _fields(config_class: type[RegionSettings]) -> frozenset[str]:
    return frozenset(f.name for f in fields(config_class))


def _default_region(agent: str) -> str:
    return next(str(f.default) for f in fields(agent_class(agent).config_class) if f.name == "trust_region")


def _check(name: str, value: str, known: Sequence[str] | Mapping[str, Any]) -> None:
    if value not in known:
        raise ValueError(f"{name} = {value!r}; allowed: {', '.join(known)}{nearest(value, known)}")
