"""Summary of ``klrl benchmark speed``: medians, ratios, tables."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from statistics import median
from typing import Any

from klrl.scripts.benchmarks.measure import BOUND
from klrl.text import cell

Row = dict[str, Any]
_NAMES = ("env", "algorithm", "library", "engine", "variant")


def summarise(rows: list[Row]) -> list[Row]:
    """Return one row per library, engine, algorithm, environment and variant: median and spread, and how klrl compares.

    ``klrl_ratio`` is the median of klrl (engine sync) over this median, ``bound_share`` this median over that of
    stepping the same engine's environments alone; both are of steps per second of CPU time.
    """
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in _NAMES), []).append(row)
    medians = {key: median(row["steps_per_cpu_second"] for row in group) for key, group in groups.items()}
    envs = list(dict.fromkeys(row["env"] for row in rows))
    summary = []
    for key in sorted(groups, key=lambda key: (envs.index(key[0]), key[1])):
        env, algorithm, _, engine, variant = key
        speeds = [row["steps_per_second"] for row in groups[key]]
        ours, bound = medians.get((env, algorithm, "klrl", "sync", "")), medians.get((env, "", BOUND, engine, variant))
        names = dict(zip(_NAMES, key, strict=True))
        spread = {"repeats": len(speeds), "median": median(speeds), "min": min(speeds), "max": max(speeds)}
        spread |= {"cpu_median": medians[key]}
        compared = {
            "klrl_ratio": ours / medians[key] if ours else None,
            "bound_share": medians[key] / bound if bound else None,
        }
        summary.append(names | spread | compared | {"peak_mib": max(row["peak_mib"] for row in groups[key])})
    return summary


def table(rows: list[Row]) -> str:
    """Return the summary as Markdown."""
    head = ["library", "environment", "algorithm", "engine", "steps/s", "min–max", "steps/CPU s"]
    head += ["klrl / it", "of bound", "peak MiB"]
    body = [
        [
            ", ".join(filter(None, [row["library"], row.get("variant")])),
            *(row[name] for name in ("env", "algorithm", "engine")),
            f"{row['median']:,.0f}",
            f"{row['min']:,.0f}–{row['max']:,.0f}",
            f"{row['cpu_median']:,.0f}" if "cpu_median" in row else "",
            "" if row["klrl_ratio"] is None else f"{row['klrl_ratio']:.2f}",
            "" if row["bound_share"] is None else f"{row['bound_share']:.0%}",
            f"{row['peak_mib']:,.0f}",
        ]
        for row in rows
    ]
    return markdown([head, *body])


def profile_table(rows: list[Row]) -> str:
    """Return shares of klrl's wall time as Markdown, parts side by side."""
    parts = list(rows[0]["shares"])
    body = [[r["env"], r["algorithm"], r["engine"], *(f"{r['shares'][p]:.1%}" for p in parts)] for r in rows]
    return markdown([["environment", "algorithm", "engine", *parts], *body])


def markdown(rows: list[list[str]]) -> str:
    """Return a table whose first row is its head."""
    head, *body = (f"| {' | '.join(map(cell, row))} |" for row in rows)
    return "\n".join([head, "|---" * len(rows[0]) + "|", *body])


def machine() -> dict[str, Any]:
    """Describe the machine of the measurements."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    model = names[0] if names else platform.processor()
    return {"cpu": model, "cpu_count": os.cpu_count(), "platform": platform.platform()}
