"""Tables of a comparison: Markdown with intervals over seeds, and a CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from klrl.studies.outcomes import DONE, FAILED
from klrl.studies.results import Row, write
from klrl.studies.statistics import student
from klrl.text import cell
from klrl.trust_region import DEFAULT_TARGET_KL

COLUMNS = (
    "env", "variant", "agent", "seed", "total_timesteps", "num_timesteps", "status", "error",
    "mean_return", "std_return", "last_tenth_return", "last_tenth_episodes",
    "kl_mean", "kl_median_second_half", "kl_largest", "kl_p95_mean", "kl_state_largest",
    "target_kl", "judged_by", "counted_against", "updates", "updates_over_target",
    "share_of_updates_over_target", "states_over_target", "steps_per_second", "peak_memory_mib", "last_beta",
    "last_actor_learning_rate", "next_kl_mean", "next_kl_largest", "next_judged_by", "next_counted_against",
    "next_judged", "next_over",
)  # fmt: skip
"""Columns of the CSV, one line per run; ``judged_by`` is the last KL that states are counted against."""


def table(rows: Sequence[Row]) -> str:
    """Return a Markdown table with one line per environment and variant, over the seeds that finished."""
    head = ["environment", "variant", "return", "return, last 10 % of training", "mean KL", "KL, second half"]
    head += ["largest KL", "updates over target", "states over target", "on the next states", "steps/s"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for env, variant in dict.fromkeys((r["env"], r["variant"]) for r in rows):
        group = [r for r in rows if (r["env"], r["variant"]) == (env, variant)]
        cells = _cells([r for r in group if r["status"] == DONE]) or ["", *[""] * 8]
        cells[0] = ", ".join(filter(None, [cells[0], *_not_done(group)]))
        lines.append(f"| {' | '.join(map(cell, [env, variant, *cells]))} |")
    note = (
        "Return: mean of the episodes that the trained policy plays after the training, by default 20 deterministic "
        "ones. ±: half of Student's 95 % interval over the n seeds, where there are three or more. KL, second half: "
        "median over its updates, then over seeds. On the next states: updates whose KL was over the target, or the "
        "region's bound for that, on the states that the new policy visited; the last one of a run visits none. *: the "
        f"region has no target, so over {DEFAULT_TARGET_KL:g}."
    )
    return "\n".join([*lines, "", note])


def _not_done(group: Sequence[Row]) -> Iterator[str]:
    """Yield how many runs of a line are not done, by what they are instead."""
    for status in (FAILED, "running", "waiting"):
        if n := sum(r["status"] == status for r in group):
            yield status if n == len(group) else f"{n} of {len(group)} {status}"


def _cells(group: Sequence[Row]) -> list[str]:
    """Return the cells after the names, for the runs of one line."""
    if not group:
        return []
    ended = [r["last_tenth_return"] for r in group if r["last_tenth_return"] is not None]
    over, updates = (sum(r[key] for r in group) for key in ("updates_over_target", "updates"))
    mark, targets = "*" if has_no_target(group[0]) else "", {counted_against(r) for r in group}
    target = targets.pop() if len(targets) == 1 else "its own, which moves"
    return [
        student([r["mean_return"] for r in group]).plus_minus(".1f"),
        student(ended).plus_minus(".1f") if ended else "no episode ended",
        f"{np.mean([r['kl_mean'] for r in group]):.4f}",
        f"{np.median([r['kl_median_second_half'] for r in group]):.4f}",
        f"{max(r['kl_largest'] for r in group):.4f}",
        f"{over} of {updates} over {target}",
        f"{np.mean([r['states_over_target'] for r in group]):.1%}{mark}",
        _on_next_states(group, mark),
        f"{np.median([r['steps_per_second'] for r in group]):,.0f}",
    ]


def has_no_target(row: Row) -> bool:
    """Tell whether a run's region has neither a target nor a bound."""
    return row["target_kl"] is None and not row.get("counted_against")


def counted_against(row: Row) -> str:
    """Return what a run's updates are counted against, with a star where that is not its region's."""
    return row.get("counted_against") or f"{row['judged_by']:g}{'*' if has_no_target(row) else ''}"


def _on_next_states(group: Sequence[Row], mark: str) -> str:
    """Count the updates over their bound on the next states; empty if these were not looked at."""
    judged, over = (sum(r.get(key, 0) for r in group) for key in ("next_judged", "next_over"))
    bounds = {r.get("next_counted_against", f"{r['next_judged_by']:g}"): None for r in group if "next_judged_by" in r}
    return f"{over} of {judged} over {', '.join(bounds)}{mark}" if judged else ""


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """Write one line per run; values that a failed run lacks are empty."""
    lines = io.StringIO(newline="")
    writer = csv.DictWriter(lines, COLUMNS, extrasaction="ignore")
    writer.writeheader()
    for row in rows:
        share = {}
        if row["status"] == DONE:
            share["share_of_updates_over_target"] = row["updates_over_target"] / row["updates"]
        writer.writerow(row | share)
    write(path, lines.getvalue())
