"""A picture of what a bound on the KL buys: every seed's return over the bound, by region and learning rate."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from klrl.studies.statistics import interquartile_mean
from sitegen.diagrams import INK, svg
from sitegen.evidence import BOUNDS, fast, returns, rows_of
from sitegen.results import Row, groups

WIDTH, HEIGHT, LEFT, GAP, KEY = 250, 190, 64, 62, 300
COLOURS = ("#1f5fa8", "#c2410c", "#15803d", "#7c3aed", "#b3261e", "#0e7490", "#a16207", "#475569")
SETTINGS = ("clip_range", "target_kl", "state_kl", "state_distance", "next_kl")
"""What bounds the step, of which every run has one."""
LEVELS = ("small", "middle", "large")


def bound(run: Row) -> float:
    """Return what a run's step was bounded by: nats, or the clip's half-width."""
    return next(float(run["config"][name]) for name in SETTINGS if run["config"].get(name) is not None)


def drawing() -> str:
    """Draw a panel per environment and learning rate; a line joins a region's means, bars are all seeds."""
    rows = [
        row | {"fast": fast(row), "region": row["config"]["trust_region"], "bound": bound(row)}
        for row in rows_of(*BOUNDS)
    ]
    envs, regions = (list(dict.fromkeys(row[name] for row in rows)) for name in ("env", "region"))
    levels = {region: sorted({row["bound"] for row in rows if row["region"] == region}) for region in regions}
    parts = [_text(LEFT, 22, "Return of the last tenth of the training over the bound, by trust region", weight=600)]
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
            parts += _panel(x, y, title, ends, groups_of(rows, env, quick), levels)
    return svg(LEFT + of_panels, top + 2 * (HEIGHT + GAP + 18), parts, "Returns of all seeds over the bound on a step")


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
    of_regions: dict[str, list[Row]],
    levels: dict[str, list[float]],
) -> list[str]:
    low, high = ends

    def height(value: float) -> float:
        return y + HEIGHT - (HEIGHT - 26) * (value - low) / (high - low)

    parts = [_text(x, y + 12, title, weight=600)]
    for value in (low, (low + high) / 2, high):
        parts.append(f'<path d="M{x} {height(value):.1f} h{WIDTH}" stroke="#d5dbe1"/>')
        parts.append(_text(x - 6, height(value) + 4, f"{value:,.0f}", anchor="end", size=11))
    for k, level in enumerate(LEVELS):
        parts.append(_text(x + WIDTH * (k + 0.5) / 3, y + HEIGHT + 18, level, anchor="middle", size=11))
    names = list(levels)
    for region, runs in of_regions.items():
        i = names.index(region)
        colour, shift = COLOURS[i % len(COLOURS)], 9 * (i - (len(names) - 1) / 2)
        points = []
        for (at,), of_level in sorted(groups(runs, "bound").items()):
            place = x + WIDTH * (levels[region].index(at) + 0.5) / 3 + shift
            last = _finite(of_level)
            if not len(last):
                continue
            points.append((place, height(float(interquartile_mean(last)))))
            bar = f"M{place:.1f} {height(last.min()):.1f} V{height(last.max()):.1f}"
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
