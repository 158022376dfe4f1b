"""The KL that other libraries and klrl were asked for, logged and moved by: a table, and a figure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

import numpy as np

from klrl.scripts.benchmarks.asked_peers import summary
from klrl.scripts.benchmarks.asked_peers import table as table_of
from sitegen.diagrams import svg
from sitegen.markdown import command, listed
from sitegen.results import Row, groups, read

FILE = "asked-peers.json"
LEFT, WIDTH, LINE_HEIGHT, TOP = 392, 400, 26, 56
LOWEST, HIGHEST = 1e-3, 0.2
OVER, WITHIN, LOGGED = "#b3261e", "#1f5fa8", "#1f2933"


def asked_peers() -> str:
    """Table of all lines, and what it says."""
    record = read(FILE)
    rows = record["rows"]
    return "\n\n".join([command(record["command"]), table_of(rows), said(rows)])


def said(rows: Sequence[Row]) -> str:
    """Sentences about the farthest line and about klrl's."""
    lines = {key: summary(group) for key, group in groups(rows, "env", "trained").items()}
    target = rows[0]["target_kl"]
    (env, trained), worst = max(lines.items(), key=lambda item: item[1]["kl_mean"])
    ours = [x for (_, name), x in lines.items() if name.startswith("klrl")]
    over = sum(round(x["over"] * x["updates"]) for x in ours)
    error = max(row["start_ratio_error"] for row in rows if not row["trained"].startswith("klrl"))
    return (
        f"Asked for {target:g} nats, {trained} moved {worst['kl_mean']:.4f} on average on {env} and logged "
        f"{worst['logged_mean']:.4f}. Of klrl's updates, {over} of {sum(x['updates'] for x in ours):,} went over. "
        f"Before the first step of an update the ratios of the other libraries' policies, recomputed, were 1 up to "
        f"{error:.0e}."
    )


def asked_short() -> str:
    """Two sentences for the first page."""
    rows = read(FILE)["rows"]
    lines = {key: summary(group) for key, group in groups(rows, "env", "trained").items()}
    trpo = [(env, x) for (env, name), x in lines.items() if name == "sb3-contrib TRPO"]
    times = listed([f"{x['times_logged']:.1f} times on {env}" for env, x in trpo])
    return f"What sb3-contrib's TRPO moves, over what it logs: {times}."


def drawing() -> str:
    """Draw a line per environment and algorithm: all updates' KL, their mean, and the mean of what was logged."""
    rows = read(FILE)["rows"]
    lines = groups(rows, "env", "trained")
    target = rows[0]["target_kl"]
    height = TOP + LINE_HEIGHT * (len(lines) + len({env for env, _ in lines})) + 34
    bottom = height - 30
    parts = [_text(LEFT, 20, "Exact KL(old‖new) of every update, nats", weight=600)]
    parts += [_key()]
    for tick in (0.001, 0.003, 0.01, 0.03, 0.1):
        x = _x(tick)
        parts.append(f'<path d="M{x:.1f} {TOP} V{bottom}" stroke="#d5dbe1" stroke-width="1"/>')
        parts.append(_text(round(x, 1), bottom + 17, f"{tick:g}", anchor="middle", size=12))
    parts.append(f'<path d="M{_x(target):.1f} {TOP - 6} V{bottom}" stroke="{LOGGED}" stroke-dasharray="4 3"/>')
    parts.append(_text(round(_x(target), 1), TOP - 11, f"asked for {target:g}", anchor="middle", size=12))
    y, before = float(TOP), ""
    for (env, trained), group in lines.items():
        if env != before:
            y, before = y + LINE_HEIGHT, env
            parts.append(_text(16, y - 6, env, weight=600))
        y += LINE_HEIGHT
        parts += _line(y - 10, trained, group, target)
    return svg(LEFT + WIDTH + 30, height, parts, "KL asked for, logged and measured, by library and environment")


def _line(y: float, trained: str, group: Sequence[Row], target: float) -> list[str]:
    kl = np.array([x for row in group for x in row["kl"]])
    mean, logged = float(kl.mean()), float(np.mean([x for row in group for x in row["logged"]]))
    low, high = (float(np.quantile(kl, q)) for q in (0.1, 0.9))
    colour = OVER if mean > target else WITHIN
    parts = [
        _text(LEFT - 14, y + 4, trained, anchor="end"),
        f'<path d="M{_x(kl.min()):.1f} {y:g} H{_x(kl.max()):.1f}" stroke="{colour}" stroke-width="1.5"/>',
        f'<path d="M{_x(low):.1f} {y:g} H{_x(high):.1f}" stroke="{colour}" stroke-width="7" opacity="0.35"/>',
        f'<circle cx="{_x(mean):.1f}" cy="{y:g}" r="5" fill="{colour}"/>',
    ]
    if not trained.startswith("klrl"):
        parts.append(_diamond(_x(logged), y))
    return parts


def _key() -> str:
    y = 16
    parts = [f'<circle cx="24" cy="{y}" r="5" fill="{OVER}"/>', f'<circle cx="38" cy="{y}" r="5" fill="{WITHIN}"/>']
    parts += [_text(50, y + 4, "measured mean; bar: 10 to 90 %, line: all", size=12)]
    parts += [_diamond(24, y + 20), _text(50, y + 24, "mean of what the library logs", size=12)]
    return "\n".join(parts)


def _diamond(x: float, y: float) -> str:
    return f'<path d="M{x:.1f} {y - 6:g} l6 6 l-6 6 l-6 -6 z" fill="none" stroke="{LOGGED}" stroke-width="1.6"/>'


def _x(kl: float) -> float:
    inside = min(max(kl, LOWEST), HIGHEST)
    return LEFT + WIDTH * math.log(inside / LOWEST) / math.log(HIGHEST / LOWEST)


def _text(x: float, y: float, text: str, **look: Any) -> str:
    anchor, weight, size = look.get("anchor", "start"), look.get("weight", 400), look.get("size", 13)
    return (
        f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" font-weight="{weight}" font-size="{size}">'
        f"{escape(text)}</text>"
    )


BLOCKS: dict[str, Callable[[], str]] = {"asked-peers": asked_peers, "asked-short": asked_short}
DIAGRAMS: dict[str, Callable[[], str]] = {"asked-peers": drawing}
