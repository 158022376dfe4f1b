"""Summary of ``klrl benchmark scaling``: medians, ranges, a table."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median
from typing import Any

from klrl.scripts.benchmarks.scaling_measurements import Point, Row
from klrl.scripts.benchmarks.speed_report import markdown
from klrl.scripts.benchmarks.timers import ENVIRONMENTS, PARTS

STEPPING = (ENVIRONMENTS, "storing steps")
ACTING = ("acting",)
PHASES: dict[str, tuple[str, ...]] = {
    "stepping": STEPPING,
    "acting": ACTING,
    "update": tuple(part for part in PARTS if part not in STEPPING + ACTING),
}
"""Cost of a step by parts of the profile; time that no timer covers is the update's."""
WITHIN: dict[str, tuple[str, ...]] = {"ppo": ("minibatch steps",), "trpo": ("Fisher products", "critic")}
"""Parts of an algorithm's update that are shown, too."""


def summarise(measured: Iterable[tuple[Point, list[Row]]]) -> list[dict[str, Any]]:
    """Return one row per measured point, with the spread over the repeats."""
    return [_row(point, rows) for point, rows in measured if rows]


def _row(point: Point, rows: list[Row]) -> dict[str, Any]:
    work = point.job.workload
    costs = [1e6 / row["steps_per_second"] for row in rows]
    parts = PHASES | {name: (name,) for name in WITHIN[point.job.algorithm]}
    return {
        **point.names,
        "algorithm": point.job.algorithm,
        "updates": work.updates,
        "samples_per_update": work.steps_per_update,
        "repeats": len(rows),
        "steps_per_second": spread([row["steps_per_second"] for row in rows]),
        "us_per_step": spread(costs),
        "parts_us_per_step": {
            name: spread([cost * sum(row["shares"][p] for p in within) for cost, row in zip(costs, rows, strict=True)])
            for name, within in parts.items()
        },
        "peak_mib": spread([row["peak_mib"] for row in rows]),
    }


def spread(values: list[float]) -> dict[str, float]:
    """Return median and range."""
    return {"median": median(values), "min": min(values), "max": max(values)}


def table(summary: list[dict[str, Any]]) -> str:
    """Return the summary as Markdown, costs in microseconds per environment step."""
    head = ["axis", "value", "curve", "us/step", "min–max", *PHASES, "steps/s", "peak MiB", "updates × repeats"]
    body = [
        [
            row["axis"],
            f"{row['value']:,}",
            row["curve"],
            f"{row['us_per_step']['median']:.1f}",
            f"{row['us_per_step']['min']:.1f}–{row['us_per_step']['max']:.1f}",
            *(f"{row['parts_us_per_step'][phase]['median']:.1f}" for phase in PHASES),
            f"{row['steps_per_second']['median']:,.0f}",
            f"{row['peak_mib']['median']:,.0f}",
            f"{row['updates']} × {row['repeats']}",
        ]
        for row in summary
    ]
    return markdown([head, *body])
