"""Names for variants, from what differs between the settings of runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from klrl.keywords import decoded, to_word

_OF_ITSELF = {"trust_region", "agent"}
"""Settings whose values need no name beside them."""
_NO_DIFFERENCE = {"seed", "device"}
_MOST = 3
"""Settings in a name; a table has all."""


def settings_of(config: Mapping[str, Any]) -> dict[str, str]:
    """Return everything in a ``config.json`` that decides a training, but for its seed, as text by name."""
    own = config.get("config")
    flat: dict[str, Any] = {"agent": config["agent"]} if "agent" in config else {}
    flat |= own if isinstance(own, dict) else {}
    env = config.get("env")
    made = {name: x for name, x in env.items() if name != "id"} if isinstance(env, dict) else {}
    flat |= {f"env {name}": decoded(x) for name, x in made.items()}
    region = config.get("region")
    if isinstance(region, dict) and not isinstance(flat.get("trust_region"), str):
        flat["trust_region"] = region.get("class", region)
    names = ("total_timesteps", "start_from", "kl_budget", "kl_budget_length", "initial_kl_budget", "over_budget")
    flat |= {name: config[name] for name in names if name in config}
    return {name: shown(x) for name, x in flat.items() if name not in _NO_DIFFERENCE}


def shown(x: Any) -> str:
    """Return a value as one reads it: text without quotation marks, other values as JSON, or with their tuples."""
    return x if isinstance(x, str) else "-" if x is None else to_word(x)


def differing(settings: Sequence[Mapping[str, str]]) -> list[str]:
    """Return the names that do not have the same value everywhere, or are not everywhere, in their order."""
    names = dict.fromkeys(name for one in settings for name in one)
    return [name for name in names if len({one.get(name) for one in settings}) > 1]


def variants(runs: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """Return a name for each of the runs, each given by its environment and its ``config.json``.

    The agent's, if there are several, and what differs between runs of the same agent on the same environment.

    >>> variants([("A", {"agent": "ppo", "config": {"gamma": 0.9}}), ("A", {"agent": "ppo", "config": {"gamma": 0.8}})])
    ['gamma=0.9', 'gamma=0.8']
    """
    settings = [settings_of(config) for _, config in runs]
    several = len({one.get("agent") for one in settings}) > 1
    names = []
    for (env, _), mine in zip(runs, settings, strict=True):
        alike = [
            s for (e, _), s in zip(runs, settings, strict=True) if e == env and s.get("agent") == mine.get("agent")
        ]
        names.append(_name(mine, differing(alike), several))
    return _distinct([env for env, _ in runs], names, settings)


def _name(mine: Mapping[str, str], differs: Sequence[str], several: bool) -> str:
    """Name a variant by what differs, and by its agent if there are several, or if nothing differs."""
    words = [mine[x] if x in _OF_ITSELF else f"{x}={mine[x]}" for x in differs if mine.get(x, "-") != "-"]
    if len(words) > _MOST:
        words = [*words[:_MOST], "..."]
    agent = [mine["agent"]] if "agent" in mine and (several or not words) else []
    return " ".join([*agent, *words])


def _distinct(envs: Sequence[str], names: Sequence[str], settings: Sequence[Mapping[str, str]]) -> list[str]:
    """Number the names that other settings on the same environment have, too."""
    owners: dict[tuple[str, str], list[Mapping[str, str]]] = {}
    numbered = []
    for env, name, mine in zip(envs, names, settings, strict=True):
        others = owners.setdefault((env, name), [])
        if mine not in others:
            others.append(mine)
        number = others.index(mine) + 1
        numbered.append(name if number == 1 else f"{name} #{number}".strip())
    return numbered
