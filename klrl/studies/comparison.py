"""Designs of variants that differ in exactly one thing, in the words of a command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from klrl.agents import AGENTS, Agent, AgentConfig
from klrl.agents.names import agent_class, name_of
from klrl.run.options import RunOptions
from klrl.studies.design import (
    Design,
    Variant,
    check_names,
    check_one_of,
    check_read,
    default_region,
    every_value,
    names_of,
    setting_of_word,
)
from klrl.studies.design_file import design_of
from klrl.trust_region import REGIONS


def comparison(
    vary: Sequence[str | type[Agent[Any]]],
    agent: str = "ppo",
    also: Sequence[str] = (),
    assignments: Sequence[str] = (),
    presets: bool = True,
    *,
    environments: Mapping[str, int] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    options: RunOptions | None = None,
) -> Design:
    """Read a design in the form of the command line.

    Args:
        vary: name of a field, or "agent", and its values; without values, all possible ones. An agent is a name, a
            class, or ``"MODULE:CLASS"``.
        agent: agent whose preset is the base of all variants.
        also: other agents as further variants, each with its own trust region.
        assignments: changes to the base, ``"field=value"``.
        presets: whether the base is the environment's preset, or the plain defaults.
        environments: training steps by environment id.
        seeds: seeds of every variant.
        options: options of every run.

    Raises:
        ValueError: an unknown field, value or agent, a repeated variant, or a setting that nothing reads.
    """
    for other in also:
        check_one_of("also", other, [name for name in AGENTS if name != agent])
    if not vary:
        raise ValueError("vary = (); allowed: FIELD [VALUES ...]")
    first, *words = (word if isinstance(word, str) else name_of(word) for word in vary)
    name = first.replace("-", "_")
    check_one_of("vary", name, ["agent", *(f.name for f in fields(agent_class(agent).config_class))])
    every, words = not words, words or [*_every_word(agent, name)]
    agents = dict.fromkeys([agent, *also, *(word for word in words if name == "agent")])
    settings = dict(assignment(word, [agent_class(a).config_class for a in agents]) for word in assignments)
    if name in settings:
        raise ValueError(f"set = {name!r}; allowed: what --vary does not vary")
    region = settings.get("trust_region", default_region(agent))
    variants = [_variant(name, word, agent, region, "trust_region" in settings) for word in words]
    variants += [Variant(name=other, agent=other, region=default_region(other)) for other in also]
    check_names("vary", [variant.name for variant in variants])
    check_read(variants, settings)
    return Design(
        agent=agent,
        settings=settings,
        presets=presets,
        variants=tuple(variants),
        only_fitting=every,
        environments=environments or {},
        seeds=tuple(seeds),
        options=options or RunOptions(),
    )


def _every_word(agent: str, name: str) -> tuple[str, ...]:
    """Return the words for all values of a field that has a few named ones."""
    if name == "agent":
        return tuple(AGENTS)
    return tuple(REGIONS) if name == "trust_region" else tuple(map(str, every_value(agent, name)))


def _variant(name: str, word: str, agent: str, region: str, region_is_given: bool) -> Variant:
    """Make the variant for one value of the varied field."""
    if name == "agent":
        agent_class(word)
        return Variant(name=word, agent=word, region=region if region_is_given else default_region(word))
    value = setting_of_word(agent_class(agent).config_class, name, word)
    if name == "trust_region":
        return Variant(name=word, agent=agent, region=value)
    return Variant(name=f"{name}={word}", agent=agent, region=region, changes={name: value})


def assignment(word: str, classes: Sequence[type[AgentConfig]]) -> tuple[str, Any]:
    """Read ``field=value`` for the first agent that has the field.

    Raises:
        ValueError: no agent has it, or it does not allow the value.
    """
    name, equals, text = word.partition("=")
    name = name.replace("-", "_")
    if not equals:
        raise ValueError(f"set = {word!r}; allowed: FIELD=VALUE ...")
    known = dict.fromkeys(f.name for config_class in classes for f in fields(config_class))
    check_one_of("set", name, known)
    return name, setting_of_word(next(c for c in classes if name in names_of(c)), name, text)


def variants_of(
    words: Sequence[str],
    agent: str = "ppo",
    assignments: Sequence[str] = (),
    presets: bool = True,
    *,
    environments: Mapping[str, int],
    seeds: Sequence[int] = (0, 1, 2),
    options: RunOptions | None = None,
) -> Design:
    """Read a design of variants that differ in anything, in the words of a command line.

    Args:
        words: for each variant ``"field=value ..."``, what it has in place of the base; fields are ``name``, ``agent``,
            ``trust_region`` and all settings.
        agent: agent whose preset is the base of all variants.
        assignments: changes to the base, ``"field=value"``.
        presets: whether the base is the environment's preset, or the plain defaults.
        environments: training steps by environment id.
        seeds: seeds of every variant.
        options: options of every run.

    Raises:
        ValueError: an unknown field, value or agent, or a design that contradicts itself.
    """
    tables = [_table(word, agent) for word in words] or [{}]
    agents = dict.fromkeys([agent, *(table.get("agent", agent) for table in tables)])
    classes = [agent_class(name).config_class for name in agents]
    data = {
        "presets": presets,
        "environments": dict(environments),
        "seeds": list(seeds),
        "base": {"agent": agent} | dict(assignment(word, classes) for word in assignments),
        "run": {} if options is None else asdict(options),
        "variants": tables,
    }
    return design_of(data)


def _table(words: str, agent: str) -> dict[str, Any]:
    """Return one variant as a table."""
    texts = dict(word.partition("=")[::2] for word in words.split())
    named = {key: texts[key] for key in ("name", "agent") if texts.get(key)}
    config_class = agent_class(named.get("agent", agent)).config_class
    rest = [word for word in words.split() if word.partition("=")[0] not in named]
    return named | dict(assignment(word, [config_class]) for word in rest)
