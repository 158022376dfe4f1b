"""Learning from images at equal work, for ``klrl benchmark speed --images``: jobs and their table."""

from __future__ import annotations

from dataclasses import replace
from statistics import median
from typing import Any

from klrl.scripts.benchmarks.random_images import HALF, PONG, RANDOM, SEPARATE, SHARED
from klrl.scripts.benchmarks.speed_report import markdown
from klrl.scripts.benchmarks.workload import Job, Workload

ROWS = {
    (RANDOM, SEPARATE): "random images, two networks",
    (RANDOM, SHARED): "random images, one shared network",
    (RANDOM, HALF): "the same, klrl's minibatch steps in bfloat16",
    (PONG, SHARED): "Pong, shared network: klrl on EnvPool, Stable-Baselines3 on Gymnasium",
}
"""Comparisons, by environment and variant."""
WORK = Workload(updates=6, n_steps=32, n_epochs=2, hidden_sizes=())
_NETWORK: dict[str, Any] = {"image_network": "nature", "scale_rewards": False}


def jobs(work: Workload, peers: bool, games: bool) -> list[Job]:
    """Return the jobs of one repeat.

    Args:
        work: settings that both libraries are given.
        peers: whether Stable-Baselines3 is measured, too.
        games: whether Pong is.
    """
    found = []
    for env, variant in (row for row in ROWS if games or row[0] == RANDOM):
        kind: dict[str, Any] = {"algorithm": "ppo", "env": env, "seed": 0, "workload": work, "variant": variant}
        engine = "envpool" if env == PONG else "sync"
        settings: dict[str, Any] = _NETWORK | {"shared_encoder": variant != SEPARATE}
        settings |= {"minibatch_dtype": "bfloat16"} if variant == HALF else {}
        settings |= {"sign_of_rewards": True, "life_is_episode": True} if env == PONG else {}
        found.append(Job(library="klrl", engine=engine, settings=settings, **kind))
        if peers and variant != HALF:
            found.append(Job(library="stable-baselines3", engine="sync", **kind))
    return found


def with_seed(many: list[Job], seed: int) -> list[Job]:
    """Return the jobs of another repeat."""
    return [replace(job, seed=seed) for job in many]


def summarise(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each comparison: median steps per CPU second and peak memory of both, and their ratios."""
    found = []
    for (env, variant), name in ROWS.items():
        variants = {"klrl": variant, "stable-baselines3": SHARED if variant == HALF else variant}
        of = {
            library: [r for r in rows if (r["env"], r["variant"], r["library"]) == (env, its, library)]
            for library, its in variants.items()
        }
        if not of["klrl"]:
            continue
        row: dict[str, Any] = {"what": name, "env": env, "variant": variant, "repeats": len(of["klrl"])}
        for library, group in ((k, v) for k, v in of.items() if v):
            speeds = {n: median(r[n] for r in group) for n in ("steps_per_second", "steps_per_cpu_second")}
            row[library] = speeds | {"peak_mib": max(r["peak_mib"] for r in group)}
        if "stable-baselines3" in row:
            ours, theirs = row["klrl"], row["stable-baselines3"]
            row["speed_ratio"] = ours["steps_per_cpu_second"] / theirs["steps_per_cpu_second"]
            row["memory_ratio"] = ours["peak_mib"] / theirs["peak_mib"]
        found.append(row)
    return found


def table(summary: list[dict[str, Any]]) -> str:
    """Return the comparisons as Markdown."""
    head = [
        "",
        "klrl, steps/CPU s",
        "Stable-Baselines3",
        "klrl / it",
        "peak MiB: klrl",
        "Stable-Baselines3",
        "klrl / it",
    ]
    body = []
    for row in summary:
        ours, theirs = row["klrl"], row.get("stable-baselines3")
        speeds = [f"{ours['steps_per_cpu_second']:,.0f}", f"{theirs['steps_per_cpu_second']:,.0f}" if theirs else ""]
        peaks = [f"{ours['peak_mib']:,.0f}", f"{theirs['peak_mib']:,.0f}" if theirs else ""]
        ratios = [f"{row[name]:.2f}" if theirs else "" for name in ("speed_ratio", "memory_ratio")]
        body.append([row["what"], *speeds, ratios[0], *peaks, ratios[1]])
    return markdown([head, *body])
