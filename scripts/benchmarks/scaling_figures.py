"""The figures of ``klrl benchmark scaling``: one PNG per axis, from the JSON's record alone."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from klrl.scripts.benchmarks.scaling_report import PHASES, WITHIN
from klrl.studies.results import write

Rows = list[dict[str, Any]]
Spread = dict[str, float]
NAMES = {
    "n_envs": "number of parallel environments",
    "width": "width of every hidden layer",
    "batch": "number of samples per update",
}
NUMBERS = FuncFormatter(lambda x, _: f"{x:,.0f}" if x >= 1.0 else f"{x:g}")
LEAST_SPAN = 8.0
"""Least range of a panel: small changes shall look small."""
SHOWN = {"ppo": "PPO", "trpo": "TRPO"}
# Okabe and Ito's colours, which every kind of eye tells apart, and a marker each for print without colour.
CURVES = {
    "ppo": ("#0072B2", "o", "PPO"),
    "trpo": ("#D55E00", "s", "TRPO, all states"),
    "trpo, every 5th state": ("#009E73", "^", "TRPO, every 5th state"),
    "trpo, 2,048 states at a time": ("#CC79A7", "D", "TRPO, all states, 2,048 at a time"),
}
DASHED = {"trpo, 2,048 states at a time"}
"""Curve drawn dashed, because it takes about the time of another one below it."""
PARTS = {
    "stepping": ("#56B4E9", "o", "stepping the environments"),
    "acting": ("#E69F00", "s", "acting: policy, sampling"),
    "update": ("#000000", "D", "update, all of it"),
    "minibatch steps": ("#0072B2", "v", "in the update: minibatch steps"),
    "Fisher products": ("#D55E00", "v", "in the update: Fisher products"),
    "critic": ("#009E73", "^", "in the update: critic"),
}


def save(record: dict[str, Any], output: Path) -> list[Path]:
    """Write the figure of every axis beside ``output``, and return their paths."""
    paths = []
    for axis in dict.fromkeys(row["axis"] for row in record["summary"]):
        path = output.with_name(f"{output.stem}-{axis}.png")
        picture = io.BytesIO()
        figure(record, axis).savefig(picture, dpi=120, format="png")
        write(path, picture.getvalue())
        paths.append(path)
    return paths


def figure(record: dict[str, Any], axis: str) -> Figure:
    """Draw one axis: the cost of a step, its parts by algorithm, peak memory; on the batch axis also TRPO's update."""
    rows = [row for row in record["summary"] if row["axis"] == axis]
    algorithms = [name for name in WITHIN if any(row["algorithm"] == name for row in rows)]
    panels: list[Callable[[Axes], None]] = [partial(_total, rows=[row for row in rows if row["curve"] in algorithms])]
    panels += [partial(_split, rows=[row for row in rows if row["curve"] == name], name=name) for name in algorithms]
    panels += [partial(_memory, rows=rows)]
    if axis == "batch" and "trpo" in algorithms:
        trpo = [row for row in rows if row["algorithm"] == "trpo"]
        panels += [partial(_update, rows=trpo, part=part) for part in ("update", "Fisher products")]
    columns = 2 if len(panels) <= 4 else 3
    lines = math.ceil(len(panels) / columns)
    made = Figure(figsize=(5.4 * columns, 4.2 * lines + 1.2), layout="constrained")
    grid = list(made.subplots(lines, columns, squeeze=False).flat)
    for ax, draw in zip(grid, panels, strict=False):
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
        draw(ax)
        _finish(ax, sorted({row["value"] for row in rows}), axis)
    for ax in grid[len(panels) :]:
        ax.remove()
    _same_height(grid[1 : 1 + len(algorithms)])
    title = f"What an environment step of klrl costs, against the {NAMES[axis]}"
    made.suptitle(f"{title}\n{fixed(record, axis)}", fontsize=11)
    return made


def fixed(record: dict[str, Any], axis: str) -> str:
    """Describe what stays the same along the axis."""
    w = record["workload"]
    samples, layers = w["n_envs"] * w["n_steps"], w["hidden_sizes"]
    words = {
        "n_envs": f"{w['n_envs']} environments",
        "batch": f"{samples:,} samples per update",
        "width": f"hidden layers {' + '.join(map(str, layers))}",
    }
    if axis == "n_envs":
        words["batch"] += " (fewer steps in each of more environments)"
    if axis == "width":
        words["depth"] = f"{len(layers)} hidden layers"
    threads = "1 thread" if w["threads"] == 1 else f"{w['threads']} threads"
    first = [record["env"], *(text for name, text in words.items() if name != axis), threads]
    settings = {
        "ppo": f"PPO {w['n_epochs']} epochs of minibatches of {w['batch_size']}",
        "trpo": f"TRPO at most {w['cg_max_steps']} CG steps, its critic {w['n_critic_updates']} epochs "
        f"of minibatches of {w['critic_batch_size']}",
    }
    algorithms = {row["algorithm"] for row in record["summary"]}
    second = "; ".join(text for name, text in settings.items() if name in algorithms)
    return f"fixed: {', '.join(first)};\n{second}\nmarkers: median of the repeats; bars: smallest to largest"


def _total(ax: Axes, rows: Rows) -> None:
    for name, curve in _curves(rows):
        _draw(ax, curve, [row["us_per_step"] for row in curve], *CURVES[name][:2], SHOWN[name])
    ax.set(title="Cost of a step (left), speed (right)", ylabel="µs per environment step")
    right = ax.secondary_yaxis("right", functions=(_inverse, _inverse))
    right.set_ylabel("steps/s")
    right.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    right.yaxis.set_major_formatter(NUMBERS)
    right.yaxis.set_minor_formatter(NullFormatter())


def _split(ax: Axes, rows: Rows, name: str) -> None:
    for part in (*PHASES, *WITHIN[name]):
        dashes = "--" if part in WITHIN[name] else "-"
        _draw(ax, rows, [row["parts_us_per_step"][part] for row in rows], *PARTS[part], style=dashes)
    ax.set(title=f"Where {SHOWN[name]}'s time goes", ylabel="µs per environment step")


def _memory(ax: Axes, rows: Rows) -> None:
    for name, curve in _curves(rows):
        label = SHOWN[name] if {row["curve"] for row in rows} <= set(SHOWN) else CURVES[name][2]
        _draw(ax, curve, [row["peak_mib"] for row in curve], *CURVES[name][:2], label)
    ax.set(title="Peak memory of the process, libraries included", ylabel="MiB")


def _update(ax: Axes, rows: Rows, part: str) -> None:
    for name, curve in _curves(rows):
        seconds = [
            {k: 1e-6 * row["samples_per_update"] * us for k, us in row["parts_us_per_step"][part].items()}
            for row in curve
        ]
        _draw(ax, curve, seconds, *CURVES[name], style="--" if name in DASHED else "-")
    ax.set(
        title=f"TRPO: time of {'an update' if part == 'update' else 'its Fisher products'}", ylabel="seconds per update"
    )


def _curves(rows: Rows) -> Iterable[tuple[str, Rows]]:
    """Yield the rows of each curve."""
    return [
        (name, [row for row in rows if row["curve"] == name])
        for name in CURVES
        if any(r["curve"] == name for r in rows)
    ]


def _draw(ax: Axes, rows: Rows, values: list[Spread], colour: str, marker: str, label: str, style: str = "-") -> None:
    """Draw one curve: medians, and a bar from the smallest to the largest."""
    middle = [value["median"] for value in values]
    ends = [[v["median"] - v["min"] for v in values], [v["max"] - v["median"] for v in values]]
    ax.errorbar(
        [row["value"] for row in rows],
        middle,
        yerr=ends,
        color=colour,
        marker=marker,
        markersize=5,
        linestyle=style,
        linewidth=1.5,
        capsize=3,
        label=label,
    )


def _finish(ax: Axes, values: list[int], axis: str) -> None:
    """Set a tick at every measured value, numbers without powers of ten, and a legend."""
    low, high = ax.get_ylim()
    if (wider := LEAST_SPAN * low / high) > 1.0:
        ax.set_ylim(low / wider**0.5, high * wider**0.5)
    ax.set_xticks(values, [f"{v // 1024}k" if v % 1024 == 0 and axis == "batch" else str(v) for v in values])
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    ax.yaxis.set_major_formatter(NUMBERS)
    for one in (ax.xaxis, ax.yaxis):
        one.set_minor_formatter(NullFormatter())
    ax.set_xlabel(NAMES[axis])
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8)


def _same_height(panels: list[Axes]) -> None:
    """Give panels that are compared one scale."""
    low = min(ax.get_ylim()[0] for ax in panels)
    high = max(ax.get_ylim()[1] for ax in panels)
    for ax in panels:
        ax.set_ylim(low, high)


def _inverse(x: Any) -> Any:
    """Convert microseconds per step to steps/s, and back."""
    return 1e6 / np.maximum(x, 1e-9)
