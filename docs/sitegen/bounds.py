"""A picture of what a bound on the KL buys: returns over the KL that updates had, by region and learning rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

import numpy as np

from klrl.studies.statistics import interquartile_mean
from sitegen.diagrams import INK, svg
from sitegen.evidence import BOUNDS, fast, returns, rows_of
from sitegen.results import Row, groups

WIDTH, HEIGHT, LEFT, GAP, KEY = 250, 190, 64, 62, 300
COLOURS = ("#1f5fa8", "#c2410c", "#15803d", "#7c3aed", "#111827", "#0e9fb8", "#db2777", "#8a6d00")
SETTINGS = ("clip_range", "target_kl", "state_kl", "state_distance", "next_kl")
"""What bounds the step, of which every run has one."""


def bound(run: Row) -> float:
    """Return what a run's step was bounded by: nats, or the clip's half-width."""
    return next(float(run["config"][name]) for name in SETTINGS if run["config"].get(name) is not None)


def drawing() -> str:
    """Draw a panel per environment and learning rate: a line joins a region's means, bars are all seeds."""
    rows = [
        row | {"fast": fast(row), "region": row["config"]["trust_region"], "bound": bound(row)}
        for row in rows_of(*BOUNDS)
        if row["kl_mean"] > 0.0  # a policy that stood still or has none is nowhere on the axis
    ]
    envs, regions = (list(dict.fromkeys(row[name] for row in rows)) for name in ("env", "region"))
    levels = {region: sorted({row["bound"] for row in rows if row["region"] == region}) for region in regions}
    title = "Return of the last tenth of the training over the mean KL of an update, nats"
    parts = [_text(LEFT, 22, title, weight=600)]
    moved = np.log10([row["kl_mean"] for row in rows])
    decades = range(math.floor(moved.min()), math.floor(moved.max()) + 2)
    of_panels = max(2, len(envs)) * (WIDTH + GAP)
    abreast = max(1, of_panels // KEY)
    for i, region in enumerate(regions):
        at = LEFT + KEY * (i % abreast), 42 + 18 * (i // abreast)
        parts += _key(*at, region, levels[region], COLOURS[i % len(COLOURS)])
    top = 48 + 18 * -(-len(regions) // abreast)
    for i, quick in enumerate((False, True)):
        for j, env in enumerate(envs):
            x, y = LEFT + j * (WIDTH + GAP), top + i * (HEIGHT + GAP + 18)
            ends = _ends([row for row in rows if row["env"] == env])
            title = f"{env}{', 10 x learning rate' if quick else ''}"
            parts += _panel(x, y, title, ends, decades, groups_of(rows, env, quick), regions)
    return svg(LEFT + of_panels, top + 2 * (HEIGHT + GAP + 18), parts, "Returns of all seeds over the KL of an update")


def groups_of(rows: Sequence[Row], env: str, quick: bool) -> dict[str, list[Row]]:
    """Return the runs of one panel by region."""
    here = [row for row in rows if row["env"] == env and row["fast"] == quick]
    return {region: runs for (region,), runs in groups(here, "region").items()}


def _ends(runs: Sequence[Row]) -> tuple[float, float]:
    """Return the ends of an axis, which both learning rates of an environment share."""
    every = _finite(runs)
    return float(min([0.0, *every])), float(max([1.0, *every]))


def _finite(runs: Sequence[Row]) -> np.ndarray:
    """Return the returns of the last tenth of the runs that have one."""
    found = returns(runs, "last_tenth_return")
    return found[np.isfinite(found)]


def _panel(
    x: int,
    y: int,
    title: str,
    ends: tuple[float, float],
    decades: range,
    of_regions: dict[str, list[Row]],
    names: Sequence[str],
) -> list[str]:
    low, high = ends

    def height(value: float) -> float:
        return y + HEIGHT - (HEIGHT - 26) * (value - low) / (high - low)

    def place(kl: float) -> float:
        return x + WIDTH * (math.log10(kl) - decades[0]) / (decades[-1] - decades[0])

    parts = [_text(x, y + 12, title, weight=600)]
    for value in (low, (low + high) / 2, high):
        parts.append(f'<path d="M{x} {height(value):.1f} h{WIDTH}" stroke="#d5dbe1"/>')
        parts.append(_text(x - 6, height(value) + 4, f"{value:,.0f}", anchor="end", size=11))
    for decade in decades:
        parts.append(f'<path d="M{place(10.0**decade):.1f} {y + HEIGHT} v4" stroke="#94a3b8"/>')
        parts.append(_text(place(10.0**decade), y + HEIGHT + 18, f"{10.0**decade:g}", anchor="middle", size=11))
    for region, runs in of_regions.items():
        colour = COLOURS[names.index(region) % len(COLOURS)]
        points = []
        for _, of_bound in sorted(groups(runs, "bound").items()):
            last = _finite(of_bound)
            if not len(last):
                continue
            at = place(float(np.exp(np.mean(np.log([run["kl_mean"] for run in of_bound])))))
            points.append((at, height(float(interquartile_mean(last)))))
            bar = f"M{at:.1f} {height(last.min()):.1f} V{height(last.max()):.1f}"
            parts.append(f'<path d="{bar}" stroke="{colour}" stroke-width="2" opacity="0.45"/>')
        path = " L".join(f"{a:.1f} {b:.1f}" for a, b in points)
        parts += [f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="1.2"/>'] * bool(points)
        parts += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3.5" fill="{colour}"/>' for a, b in points]
    return parts


def _key(x: int, y: int, region: str, levels: Sequence[float], colour: str) -> list[str]:
    said = f"{region}: {', '.join(f'{level:g}' for level in levels)}"
    return [f'<circle cx="{x + 4}" cy="{y - 4}" r="4" fill="{colour}"/>', _text(x + 14, y, said, size=12)]


def _text(x: float, y: float, text: str, anchor: str = "start", weight: int = 400, size: int = 13) -> str:
    place = f'x="{x:g}" y="{y:g}" text-anchor="{anchor}"'
    return f'<text {place} font-weight="{weight}" font-size="{size}" fill="{INK}">{escape(text)}</text>'


DIAGRAMS = {"kl-bound": drawing} if rows_of(*BOUNDS) else {}
