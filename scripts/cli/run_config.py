"""A run's ``config.json`` on the command line, or settings alone: read and checked, and turned back into options."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from klrl.agents.config import AgentConfig
from klrl.agents.settings import CONFIGS
from klrl.run.disk import LARGEST_CONFIG, read_regular_file
from klrl.run.options import RunOptions
from klrl.text import allowed, plain
from klrl.trust_region import TrustRegion, with_region
from klrl.trust_region.codec import own_class
from klrl.trust_region.names import region_of_word

_TYPES = {
    "agent": (str,), "env": (dict, type(None)), "seed": (int,), "total_timesteps": (int,), "config": (dict,),
    "versions": (dict,), "start_from": (str, type(None)),
}  # fmt: skip
"""Types of the entries that a config.json must have."""
_ALLOWED = {
    "path": "allowed: a run directory, or its config.json",
    "config": "allowed: a run directory, its config.json, or best.json of klrl tune",
}
"""Endings of messages, by the user's word for the file."""


def read(file: Path) -> dict[str, Any]:
    """Read a ``config.json``.

    Raises:
        OSError: there is none.
        ValueError: it is not as a run writes it.
    """
    return _checked(_object(file, "path"), file, "path")


def read_to_repeat(config: str, agent: str) -> dict[str, Any]:
    """Read what ``--config`` names: a run, or settings alone, of no environment, as ``klrl tune`` writes the best.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: it is neither, or another agent's.
    """
    path = Path(config)
    file = path / "config.json" if path.is_dir() else path
    if not file.exists():
        raise FileNotFoundError(f"config = {config}: nothing there; {_ALLOWED['config']}")
    found = _object(file, "config")
    if "trust_region" in found:
        _check_settings(config, found, agent)
        return {"agent": agent, "config": found, "env": None, "start_from": None}
    run = _checked(found, file, "config")
    if run["agent"] != agent:
        raise ValueError(f"config = {config} is that of a run of {run['agent']}; allowed: klrl train {run['agent']}")
    return run


def _check_settings(config: str, settings: Mapping[str, Any], agent: str) -> None:
    known = {name: {f.name for f in fields(cls)} for name, cls in CONFIGS.items()}
    for name in (name for name in settings if name not in known[agent]):
        fitting = [f"klrl train {other}" for other in known if settings.keys() <= known[other]]
        said = ", ".join(fitting) or allowed(name, known[agent])
        raise ValueError(f"config = {config}: {plain(name, 80)} is no setting of {agent}; allowed: {said}")


def _object(file: Path, name: str) -> dict[str, Any]:
    """Read an object from JSON; ``name`` is the user's word for the file."""
    try:
        found = json.loads(read_regular_file(file, LARGEST_CONFIG))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} = {file} is not as a run writes it: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{name} = {file} is not as a run writes it: {plain(found, 80)}; {_ALLOWED[name]}")
    return found


def _checked(found: Mapping[str, Any], file: Path, name: str) -> dict[str, Any]:
    """Return a run, if it has what a run writes."""
    run = {"start_from": None, **found}
    if missing := _TYPES.keys() - run.keys():
        raise ValueError(
            f"{name} = {file} is not as a run writes it: no {', '.join(sorted(missing))}; {_ALLOWED[name]}"
        )
    for key in (key for key, types in _TYPES.items() if type(run[key]) not in types):
        raise ValueError(f"{name} = {file} is not as a run writes it: {key} = {plain(run[key], 80)}")
    if run["agent"] not in CONFIGS:
        raise ValueError(f"{name} = {file.parent} holds agent {run['agent']!r}; allowed: {', '.join(CONFIGS)}")
    if run["total_timesteps"] < 1:
        raise ValueError(
            f"{name} = {file.parent}: total_timesteps = {run['total_timesteps']}; allowed: an integer >= 1"
        )
    return run


def saved_region(path: Path, run: Mapping[str, Any], given: str | None) -> TrustRegion | None:
    """Return the trust region given in place of a custom one, which is not saved; ``None`` for klrl's own.

    Raises:
        ValueError: the run has a custom one, and none is given; or the other way round.
    """
    saved = own_class(run["config"].get("trust_region"))
    if saved is None:
        if given is not None:
            raise ValueError(f"trust_region = {given}; allowed: only for a run whose trust region is of your own class")
        return None
    if given is None:
        raise ValueError(
            f"path = {path}: trust region {plain(saved, 80)} is not klrl's; allowed: --trust-region MODULE:NAME"
        )
    region = region_of_word(given)
    if isinstance(region, str):
        raise ValueError(f"trust_region = {given!r}; allowed: MODULE:NAME of a TrustRegion, or of what makes one")
    return region


def settings(
    file: Path, run: Mapping[str, Any], region: TrustRegion | str | None, **changes: Any
) -> tuple[RunOptions, AgentConfig]:
    """Return the options and settings of a run, with this trust region if there is one, and further changes.

    Raises:
        ValueError: a value is out of range, or the file is not as a run writes it.
    """
    # Older versions made a new environment for every episode if a trial found that to help.
    config = {"rebuild_envs": run.get("replay") == "new"} | run["config"] | changes
    if region is not None:
        config = with_region(config, region)
    try:
        return RunOptions.noted(dict(run)), CONFIGS[run["agent"]].from_json(config)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"path = {file} is not as a run writes it: {error!r}") from error
