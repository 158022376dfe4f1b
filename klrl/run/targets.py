"""Metrics that are logged with a bound or an aim beside them, and the updates that went beyond it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TARGETS: Mapping[str, str] = {
    "drift/kl": "drift/kl_target",
    "drift/kl_quantile": "drift/kl_quantile_bound",
    "drift/kl_cvar": "drift/kl_cvar_bound",
    "drift/kl_max": "drift/kl_max_bound",
    "drift/ratio_variance": "drift/ratio_variance_target",
}
"""Measured metric -> its bound or aim, which is logged where the trust region has one."""


def beyond(row: Mapping[str, Any]) -> bool | None:
    """Tell whether an update went beyond a bound or aim in its metrics; ``None`` where there is none."""
    found = [row[measured] > row[asked] for measured, asked in TARGETS.items() if asked in row]
    return any(found) if found else None


def asked_for(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the bounds and aims in the metrics of an update, by what is measured."""
    return {measured: row[asked] for measured, asked in TARGETS.items() if asked in row}


def judged_by(asked: Mapping[str, float], otherwise: float) -> float:
    """Return the KL, nats, that single states are counted against: the mean's target, else the smallest bound.

    Args:
        asked: what :func:`asked_for` found.
        otherwise: the KL where it found none.
    """
    kls = [x for measured, x in asked.items() if measured.startswith("drift/kl")]
    return asked.get("drift/kl") or min(kls, default=otherwise)


def in_words(first: Mapping[str, float], last: Mapping[str, float]) -> str:
    """Return what updates are counted against: numbers, each with what it limits if that is not the mean KL.

    Args:
        first: what :func:`asked_for` found in the first update.
        last: the same in the last one.

    >>> in_words({"drift/kl": 0.01, "drift/kl_quantile": 0.04}, {"drift/kl": 0.01, "drift/kl_quantile": 0.03})
    '0.01, 0.04 to 0.03 (quantile)'
    """
    words = {name: name.removeprefix("drift/").removeprefix("kl_").replace("_", " ") for name in last}
    ways = {name: from_to(first.get(name, x), x) for name, x in last.items()}
    return ", ".join(way if name == "drift/kl" else f"{way} ({words[name]})" for name, way in ways.items())


def from_to(first: float, last: float) -> str:
    """Return a bound in words, with where it began if it moved."""
    return f"{last:g}" if first == last else f"{first:g} to {last:g}"
