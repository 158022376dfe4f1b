"""Designs as tables: of TOML files, and of Python's dictionaries, which are the same."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import tomli_w

import klrl
from klrl.agents import AgentConfig
from klrl.agents.names import agent_class
from klrl.run.disk import read_regular_file
from klrl.run.options import RunOptions
from klrl.studies.design import Design, Variant, check_names, check_one_of, default_region, names_of, setting
from klrl.text import plain
from klrl.validation import fits

LARGEST = 2**20
"""Largest file of a design, in bytes."""
_KEYS = {
    "steps": (int, "an integer"),
    "environments": (list | dict, "a list of ids, or a table of id = steps"),
    "seeds": (list | str, 'a list of integers, or a range such as "0-9"'),
    "presets": (bool, "true or false"),
    "only_fitting": (bool, "true or false"),
    "left_out": (list, "pairs of an environment and a variant"),
    "base": (dict, "a table: agent, and settings"),
    "run": (dict, "a table of options of klrl train"),
    "variants": (list, "tables, each [[variants]]: name, agent, trust_region, settings"),
}
"""Entries of a design, their types, and these in words."""


def read(path: Path) -> Design:
    """Read a design from a TOML file.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no TOML, or no design; one line says where.
    """
    data = _toml(path)
    try:
        return design_of(data)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def cells(path: Path) -> list[tuple[str, str, int, int]]:
    """Return environment, variant, seed and training steps of every run in a record that :func:`text` made.

    Agents and trust regions of one's own that it names are not imported, and settings not judged.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no TOML, or no record; one line says where.
    """
    data = _toml(path)
    try:
        _check_types(data)
        environments, seeds = _environments(data), _seeds(data["seeds"])
        names = [table["name"] for table in data["variants"]]
        if not all(type(x) is int for x in (*seeds, *environments.values())) or not all(fits(x, str) for x in names):
            raise ValueError("no record of a study; allowed: as klrl study writes it")
    except KeyError as error:
        raise ValueError(f"{path}: {error} is missing; allowed: as klrl study writes it") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    there = ((env, name) for env in environments for name in names if [env, name] not in data.get("left_out", []))
    return [(env, name, seed, environments[env]) for env, name in there for seed in seeds]


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(read_regular_file(path, LARGEST).decode())
    except FileNotFoundError:
        raise FileNotFoundError(f"design = {path}: no such file; allowed: a TOML file with a design") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"design = {path}: {plain(error, 300)}; allowed: a TOML file with a design") from error


def text(design: Design) -> str:
    """Return the TOML from which :func:`read` makes the same design."""
    data: dict[str, Any] = {"presets": design.presets}
    if design.only_fitting:
        data["only_fitting"] = True
    if design.left_out:
        data["left_out"] = [list(pair) for pair in design.left_out]
    data |= {
        "seeds": _range(design.seeds),
        "environments": dict(design.environments),
        "base": {"agent": design.agent} | _written(design.settings),
        "run": {name: value for name, value in asdict(design.options).items() if value is not None},
        "variants": [
            {"name": v.name, "agent": v.agent, "trust_region": v.region} | _written(v.changes) for v in design.variants
        ],
    }
    head = f"# A study of klrl {klrl.__version__}. To repeat it: klrl study THIS_FILE --output NEW_DIRECTORY\n\n"
    return head + tomli_w.dumps(data)


def _range(seeds: Sequence[int]) -> list[int] | str:
    """Return seeds as they are read; several in a row as a range."""
    whole = len(seeds) > 2 and tuple(seeds) == (*range(seeds[0], seeds[-1] + 1),)
    return f"{seeds[0]}-{seeds[-1]}" if whole else list(seeds)


def _written(settings: Mapping[str, Any]) -> dict[str, Any]:
    plain_values = {name: list(v) if isinstance(v, tuple) else v for name, v in settings.items()}
    return {name: "None" if value is None else value for name, value in plain_values.items()}


def design_of(data: Mapping[str, Any]) -> Design:
    """Make a design of its table.

    Args:
        data: ``environments``, a table of steps by id, or a list beside ``steps``; ``seeds``, a list or "0-9";
            ``variants``, each with a ``name``, an ``agent``, a ``trust_region`` and settings, as far as they differ
            from those of ``base``; ``run``, options that do not affect updates; ``presets``, whether known settings for
            an environment come before the base's; ``only_fitting``, whether variants are left out where they do not
            fit an environment; ``left_out``, pairs of an environment and a variant.

    Raises:
        ValueError: an unknown entry, setting, agent or region, a value that is not allowed, two variants of one name,
            or a design that contradicts itself.
    """
    _check_types(data)
    agent, base = _agent(data.get("base", {}), "ppo")
    tables = data.get("variants", [{}])
    variants = tuple(_variant(table, agent, base.get("trust_region")) for table in tables)
    classes = [agent_class(name).config_class for name in dict.fromkeys([agent, *(v.agent for v in variants)])]
    design = Design(
        agent=agent,
        settings={name: _setting("base", classes, name, value) for name, value in base.items()},
        presets=data.get("presets", True),
        variants=variants,
        only_fitting=data.get("only_fitting", False),
        left_out=tuple((env, variant) for env, variant in data.get("left_out", [])),
        environments=_environments(data),
        seeds=_seeds(data.get("seeds", [0, 1, 2])),
        options=_options(data.get("run", {})),
    )
    design.check()
    return design


def _check_types(data: Mapping[str, Any]) -> None:
    for name, value in data.items():
        check_one_of("design", name, _KEYS)
        hint, words = _KEYS[name]
        if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
            raise ValueError(f"{name} = {plain(repr(value), 80)}; allowed: {words}")
    for pair in data.get("left_out", []):
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(name, str) for name in pair)):
            raise ValueError(f"left_out = {plain(repr(pair), 80)}; allowed: {_KEYS['left_out'][1]}")
    for table in data.get("variants", []):
        if not isinstance(table, dict):
            raise ValueError(f"variants = {plain(repr(table), 80)}; allowed: {_KEYS['variants'][1]}")


def _environments(data: Mapping[str, Any]) -> dict[str, int]:
    given = data.get("environments", {})
    if isinstance(given, dict):
        if "steps" in data:
            raise ValueError(f"steps = {data['steps']}; allowed: beside a list of environments, not a table of steps")
        return dict(given)
    if "steps" not in data:
        raise ValueError("steps missing; allowed: beside a list of environments, or a table of id = steps")
    for env in given:
        if not isinstance(env, str):
            raise ValueError(f"environments = {plain(repr(env), 80)}; allowed: ids")
    check_names("environments", given)
    return dict.fromkeys(given, data["steps"])


def _seeds(given: Sequence[Any] | str) -> tuple[int, ...]:
    if not isinstance(given, str):
        return tuple(given)
    first, dash, last = given.partition("-")
    if not (dash and first.isdecimal() and last.isdecimal() and 0 <= int(last) - int(first) < 10**6):
        raise ValueError(f"seeds = {given!r}; allowed: {_KEYS['seeds'][1]}")
    return tuple(range(int(first), int(last) + 1))


def _options(given: Mapping[str, Any]) -> RunOptions:
    for name in given:
        check_one_of("run", name, [f.name for f in fields(RunOptions)])
    return RunOptions(**given)


def _variant(table: Mapping[str, Any], base_agent: str, base_region: Any) -> Variant:
    """Read a variant; without a name it is called by what it changes."""
    name = table.get("name")
    if name is not None and not (isinstance(name, str) and name.strip() and fits(name, str)):
        raise ValueError(f"name = {plain(repr(name), 80)}; allowed: text")
    agent, changes = _agent({k: v for k, v in table.items() if k != "name"}, base_agent)
    config_class = agent_class(agent).config_class
    region = changes.get("trust_region", base_region) or default_region(agent)
    said = [*([agent] if "agent" in table else []), *(f"{k}={_shown(v)}" for k, v in changes.items())]
    return Variant(
        name=name or ", ".join(said).replace("trust_region=", "") or "base",
        agent=agent,
        region=_setting(name or "variants", [config_class], "trust_region", region),
        changes={
            k: _setting(name or "variants", [config_class], k, v) for k, v in changes.items() if k != "trust_region"
        },
    )


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _agent(table: Mapping[str, Any], default: str) -> tuple[str, dict[str, Any]]:
    """Return the name of an agent, and the rest of a table."""
    agent = table.get("agent", default)
    if not isinstance(agent, str):
        raise ValueError(f"agent = {plain(repr(agent), 80)}; allowed: a name, or MODULE:CLASS of one of your own")
    agent_class(agent)
    return agent, {name: value for name, value in table.items() if name != "agent"}


def _setting(where: str, classes: Sequence[type[AgentConfig]], name: str, value: Any) -> Any:
    """Return the value of a setting of the first agent that has it."""
    check_one_of(where, name, dict.fromkeys(n for c in classes for n in sorted(names_of(c))))
    return setting(next(c for c in classes if name in names_of(c)), name, value)
