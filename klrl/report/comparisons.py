"""An audit as a page shows it: tables, and charts with standard errors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from klrl.report.audits import Compared, Mean, Played, SavedAudit

Pair = tuple[Played, Played]
"""Two policies, the earlier one first."""
POLICIES = ("policy", "algorithm", "library", "steps", "mean return", "episodes", "states", "statistics", "path")
DIVERGENCES = ("KL, nats", "on the states of", "mean", "median", "90 %", "95 %", "99 %", "largest")
"""Columns of the tables."""
_MEAN = "Mean over the states in nats, with its standard error over episodes"


def section(audit: SavedAudit) -> dict[str, Any]:
    """Return the words, tables and charts of one audit."""
    names = [policy.name for policy in audit.policies]
    dimensions = len(audit.compared[0].per_dimension)
    charts = _of_two(audit) if len(names) == 2 else _of_many(audit)
    charts += _by_dimension(audit) if dimensions > 1 else []
    what = f"{names[0]} and {names[1]}" if len(names) == 2 else f"{len(names)} policies in order"
    return {
        "title": f"{audit.env}: {what}",
        "path": None if audit.path is None else str(audit.path),
        "seed": audit.seed,
        "versions": [*audit.versions.items()],
        "directions": [_name(direction, audit) for direction in (0, 1)],
        "policies": [_played(policy) for policy in audit.policies],
        "divergences": [_row(x) for x in audit.compared],
        "dimensions_head": ["KL, nats", "on the states of", *map(str, range(1, dimensions + 1))],
        "dimensions": [[f"KL({x.p}‖{x.q})", x.states_of, *map(_figure, x.per_dimension)] for x in audit.compared],
        "charts": charts,
    }


def _played(policy: Played) -> list[str]:
    known = [policy.origin.get(name, "–") for name in ("algorithm", "library", "statistics", "path")]
    episodes = f"{policy.episodes:,}" + (f"\n{policy.cut:,} cut" if policy.cut else "")
    steps = "–" if policy.steps is None else f"{policy.steps:,}"
    return [policy.name, *known[:2], steps, f"{policy.mean_return:,.1f}", episodes, f"{policy.states:,}", *known[2:]]


def _row(x: Compared) -> list[str]:
    return [f"KL({x.p}‖{x.q})", x.states_of, _figure(x.kl), *map(_digits, (*x.quantiles, x.largest))]


def _of_two(audit: SavedAudit) -> list[dict[str, Any]]:
    pair = audit.policies[0], audit.policies[1]
    series = []
    for direction in (0, 1):
        found = [(i + 1.0, x) for i in (0, 1) if (x := _measured(audit, pair, direction, i))]
        marks = [[x.quantiles[0], x.quantiles[2], x.largest] for _, x in found]
        points = [(at, x.kl, _words(x)) for at, x in found]
        series.append(_series(direction, audit, points) | {"marks": [*zip(*marks, strict=True)]})
    about = f"{_MEAN}. Dash, circle, triangle: the median, the 95 % quantile and the largest of the states."
    plot = _plot("", "bars", "on the states of", series, [_short(policy.name) for policy in pair])
    return [{"title": "How far they are apart", "about": about, "plots": [plot]}]


def _of_many(audit: SavedAudit) -> list[dict[str, Any]]:
    first, *later = audit.policies
    steps = [policy.steps for policy in audit.policies]
    known = [x for x in steps if x is not None]
    rising = len(known) == len(steps) and all(a < b for a, b in pairwise(known))
    places = known if rising else range(1, len(steps) + 1)
    at = {policy.name: float(x) for policy, x in zip(audit.policies, places, strict=True)}
    axis = "environment steps" if rising else "place in the order"
    about = f"{_MEAN}, at the {'steps' if rising else 'place'} of the later of the two."
    return [
        {"title": title, "about": about, "plots": [_line(audit, pairs, side, at, axis) for side in (0, 1)]}
        for title, pairs in (
            ("From each to the next", [*pairwise(audit.policies)]),
            ("From the first", [(first, policy) for policy in later]),
        )
    ]


def _line(audit: SavedAudit, pairs: Sequence[Pair], side: int, at: Mapping[str, float], axis: str) -> dict[str, Any]:
    series = []
    for direction in (0, 1):
        found = [(at[pair[1].name], x) for pair in pairs if (x := _measured(audit, pair, direction, side))]
        series.append(_series(direction, audit, [(where, x.kl, _words(x)) for where, x in found]))
    return _plot(f"on the {('earlier', 'later')[side]} one's states", "line", axis, series)


def _by_dimension(audit: SavedAudit) -> list[dict[str, Any]]:
    pair = audit.policies[0], audit.policies[-1]
    plots = []
    for side in (0, 1):
        series = []
        for direction in (0, 1):
            x = _measured(audit, pair, direction, side)
            parts = [] if x is None else [(i + 1.0, part, _figure(part)) for i, part in enumerate(x.per_dimension)]
            series.append(_series(direction, audit, parts))
        plots.append(_plot(f"on {pair[side].name}'s states", "bars", "dimension of the action", series))
    ends = "" if len(audit.policies) == 2 else ", from the first to the last"
    about = f"{_MEAN}, of every dimension, head or bit of the action; they add up to that of the whole action."
    return [{"title": f"By dimension of the action{ends}", "about": about, "plots": plots}]


def _measured(audit: SavedAudit, pair: Pair, direction: int, side: int) -> Compared | None:
    """Return KL(earlier‖later), or for direction 1 KL(later‖earlier), on the states of a side of the pair."""
    p, q = pair if direction == 0 else pair[::-1]
    return audit.between(p.name, q.name, pair[side].name)


def _name(direction: int, audit: SavedAudit) -> str:
    names = [policy.name for policy in audit.policies] if len(audit.policies) == 2 else ["earlier", "later"]
    p, q = names if direction == 0 else names[::-1]
    return f"KL({p}‖{q})"


def _series(direction: int, audit: SavedAudit, points: Sequence[tuple[float, Mean, str]]) -> dict[str, Any]:
    """Return one direction of a chart; ends of its error bars are null where there is no standard error."""
    return {
        "name": _name(direction, audit),
        "at": [x for x, _, _ in points],
        "y": [mean.value for _, mean, _ in points],
        "low": [_plain(mean.value - mean.stderr) for _, mean, _ in points],
        "high": [_plain(mean.value + mean.stderr) for _, mean, _ in points],
        "words": [words for _, _, words in points],
        "marks": [],
    }


def _plot(
    title: str, kind: str, axis: str, series: Sequence[dict[str, Any]], ticks: Sequence[str] = ()
) -> dict[str, Any]:
    """Return what the page's script draws; ``ticks`` are the names of the places 1, 2, ... instead of numbers."""
    log = any(y > 0.0 for one in series for y in one["y"])  # what is 0 everywhere has no logarithm
    return {"title": title, "kind": kind, "x": axis, "unit": "KL, nats", "log": log, "ticks": ticks, "series": series}


def _words(x: Compared) -> str:
    middle, tail = _digits(x.quantiles[0]), _digits(x.quantiles[2])
    return f"{_figure(x.kl)}, median {middle}, 95 % {tail}, largest {_digits(x.largest)}"


def _short(name: str) -> str:
    """Return as much of a name as there is place for below an axis."""
    return name if len(name) <= 24 else f"{name[:23]}…"


def _figure(x: Mean) -> str:
    return _digits(x.value) if math.isnan(x.stderr) else f"{_digits(x.value)} ± {x.stderr:.2g}"


def _digits(x: float) -> str:
    return f"{x:.4g}"


def _plain(x: float) -> float | None:
    return x if math.isfinite(x) else None
