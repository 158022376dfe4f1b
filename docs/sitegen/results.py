"""Tables of returns and measured KL, from the JSON files in ``scripts/results``."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from klrl.studies.report import counted_against, has_no_target
from klrl.studies.statistics import student
from sitegen.markdown import command, listed, table

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "scripts" / "results"
Row = dict[str, Any]


def read(name: str) -> dict[str, Any]:
    """Read one file of results."""
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def groups(rows: Sequence[Row], *keys: str) -> dict[tuple[Any, ...], list[Row]]:
    """Rows by the values of some of their columns, in the order of the rows."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[key] for key in keys), []).append(row)
    return found


def over(rows: Sequence[Row]) -> str:
    """Count the updates that moved farther than their target."""
    return f"{sum(r['updates_over_target'] or 0 for r in rows):,} of {sum(r['updates'] for r in rows):,}"


def tasks(rows: Sequence[Row]) -> str:
    """One line per agent and task, seeds side by side."""
    lines = []
    for (agent, env, space), group in groups(rows, "agent", "env", "space").items():
        goal, target = group[0]["goal"], group[0]["target_kl"]
        lines.append(
            [
                agent,
                f"{env}, {space}" if space else env,
                f"{group[0]['total_timesteps']:,}",
                "" if goal is None else f"{goal:g}",
                ", ".join(f"{r['mean_return']:.1f}" for r in group),
                f"{np.mean([r['kl_mean'] for r in group]):.4f}",
                f"{max(r['kl_largest'] for r in group):.4f}",
                "" if target is None else f"{over(group)} over {target:g}",
            ]
        )
    head = ["agent", "environment", "steps", "goal", "return, by seed", "mean KL", "largest KL", "over target"]
    return table(head, lines)


def reached(rows: Sequence[Row]) -> str:
    """Say how many runs reach their goal, and which do not."""
    with_goal = [r for r in rows if r["goal"] is not None]
    missed = [r for r in with_goal if r["mean_return"] < r["goal"]]
    count = f"{len(with_goal) - len(missed)} of {len(with_goal)} runs reach their goal"
    lines = []
    for (agent, env, space), group in groups(missed, "agent", "env", "space").items():
        runs = listed([f"seed {r['seed']} ({r['mean_return']:.1f})" for r in group])
        lines.append(f"- {agent}, {env}{f', {space}' if space else ''}, goal {group[0]['goal']:g}: {runs}")
    return "\n".join([f"{count}; these do not:", "", *lines]) if missed else f"{count}."


def learning() -> str:
    """What presets reach."""
    record = read("learning.json")
    rows = record["rows"]
    trpo = [r for r in rows if r["agent"] == "trpo"]
    ratios = [r["kl_largest"] / r["kl_mean"] for r in rows if r["agent"] == "ppo"]
    return "\n\n".join(
        [
            command(record["command"]),
            tasks(rows),
            f"`over target` counts the updates whose measured KL(old‖new) exceeds `target_kl`; for TRPO it must be 0, "
            f"and is: {over(trpo)}. PPO's clip bounds no KL: the largest update of a run moved {min(ratios):.1f} to "
            f"{max(ratios):.1f} times as far as its mean one.",
            reached(rows),
        ]
    )


def learning_curve() -> str:
    """Training return on HalfCheetah along the way."""
    rows = [r for r in read("learning.json")["rows"] if r["env"] == "HalfCheetah-v4"]
    points = rows[0]["curve"][3::4]
    head = ["steps", *(f"{steps / 1000:.0f}k" for steps, _ in points)]
    return table(head, [[r["agent"], *(f"{value:.0f}" for _, value in r["curve"][3::4])] for r in rows])


def spaces() -> str:
    """Every action space."""
    record = read("spaces.json")
    return "\n\n".join([command(record["command"]), tasks(record["rows"]), reached(record["rows"])])


def asked() -> str:
    """KL asked for and measured."""
    record = read("asked.json")
    rows, lines = record["rows"], []
    for (env, space), group in groups(rows, "env", "space").items():
        cells = [space, env]
        for agent in ("ppo", "trpo"):
            runs = [r for r in group if r["agent"] == agent]
            mean, largest = np.mean([r["kl_mean"] for r in runs]), max(r["kl_largest"] for r in runs)
            cells += [f"{mean:.4f}, {largest:.4f}", over(runs)]
        lines.append(cells)
    head = ["actions", "environment", "PPO: mean, largest KL", "over", "TRPO: mean, largest KL", "over"]
    asked_for, steps = listed(sorted({f"{r['target_kl']:g}" for r in rows})), rows[0]["total_timesteps"]
    return "\n\n".join(
        [
            command(record["command"]),
            f"A `constraint` of {asked_for} nats, {steps:,} steps:",
            table(head, lines),
            f"{over(rows)} updates moved farther than they were asked to.",
        ]
    )


def _last_tenth(rows: Sequence[Row]) -> str:
    return student([r["last_tenth_return"] for r in rows]).plus_minus(".0f")


def regions() -> str:
    """Every trust region, a table for each environment."""
    record = read("regions/results.json")
    rows = record["rows"]
    parts = [command(record["command"])]
    head = ["", "return", "mean KL", "largest KL", "over"]
    order = list(dict.fromkeys(r["variant"] for r in rows if r["agent"] == rows[0]["agent"]))
    for (env, steps), group in groups(rows, "env", "total_timesteps").items():
        of = {variant: runs for (variant,), runs in groups(group, "variant").items()}
        names = [*(name for name in order if name in of), *(name for name in of if name not in order)]
        parts += [f"{env}, {steps:,} steps:", table(head, [_region_line(name, of[name]) for name in names])]
    return "\n\n".join([*parts, _regions_said(rows)])


def _region_line(variant: str, runs: Sequence[Row]) -> list[str]:
    name = variant.upper() if variant == runs[0]["agent"] else f"`{variant}`"
    mean, largest = np.mean([r["kl_mean"] for r in runs]), max(r["kl_largest"] for r in runs)
    return [name, _last_tenth(runs), f"{mean:.4f}", f"{largest:.3f}", over_bounds(runs)]


def over_bounds(runs: Sequence[Row]) -> str:
    """Count the updates over the bounds that they are counted against, each named once."""
    return f"{over(runs)} over {', '.join(dict.fromkeys(counted_against(r) for r in runs))}"


def _regions_said(rows: Sequence[Row]) -> str:
    aims = {variant: group for (variant,), group in groups(rows, "variant").items()}
    held = [name for name, group in aims.items() if not any(r["updates_over_target"] for r in group)]
    bounded = [name for name in held if not has_no_target(aims[name][0])]
    free = max(rows, key=lambda r: r["kl_largest"])
    return (
        f"Return: of the episodes that ended in the last tenth of the training, mean and half of Student's 95 % "
        f"interval over the n seeds; KL: over all updates; over: updates over the target or the bound that the region "
        f"has, nats unless it says otherwise (*: it has none, and is counted against the others' target; "
        f"`next-state-constraint` moves its own: by seed, the last one, or the first to the last).\n\n"
        f"Of the regions that have one, {listed([f'`{name}`' for name in bounded])} never exceeded it "
        f"({over(aims[bounded[0]])} updates each). The largest single update of all, {free['kl_largest']:.1f} nats, "
        f"was one of `{free['variant']}` on {free['env']}."
    )


def movement() -> str:
    """What each bound does to the mean, to the states that move farthest and to those that come next."""
    records = [read(f"movement-{agent}/results.json") for agent in ("trpo", "ppo")]
    rows = [r for record in records for r in record["rows"]]
    head = [
        "",
        "return",
        "mean KL",
        "95 % quantile",
        "largest of a state",
        "over",
        "mean on the next states",
        "over there",
    ]
    parts = [command(record["command"]) for record in records]
    for (agent, env, steps), group in groups(rows, "agent", "env", "total_timesteps").items():
        lines = [_movement_line(name, runs) for (name,), runs in groups(group, "variant").items()]
        parts += [f"{agent.upper()}, {env}, {steps:,} steps:", table(head, lines)]
    said = (
        "Return: of the episodes that ended in the last tenth of the training, mean and half of Student's 95 % "
        "interval over the n seeds; mean and quantile of the states' KL: means over all updates; largest: of all "
        "states of all updates; over: updates over the bound in force on the batch, nats (`next-state-constraint` "
        "moves its own: by seed, the last one, or the first to the last); mean on the next states: `drift/kl_next`, "
        "the mean over the updates; over there: updates over the bound on the mean, of those that a rollout judged."
    )
    next_over = {name: _share(runs) for (name,), runs in groups(rows, "variant").items() if name in _BOUNDS_ON_A_MEAN}
    both = " and ".join(f"{share} under `{name}`" for name, share in next_over.items())
    return "\n\n".join([*parts, f"{said} {over(rows)} updates went over on the batch; on the next states {both}."])


_BOUNDS_ON_A_MEAN = ("constraint", "next-state-constraint")


def _movement_line(variant: str, runs: Sequence[Row]) -> list[str]:
    names = ("kl_mean", "kl_p95_mean", "next_kl_mean")
    mean, quantile, following = (f"{np.mean([r[name] for r in runs]):.4f}" for name in names)
    largest = f"{max(r['kl_state_largest'] for r in runs):.3f}"
    return [
        f"`{variant}`", _last_tenth(runs), mean, quantile, largest, over_bounds(runs), following,
        _share(runs) if variant in _BOUNDS_ON_A_MEAN else "",
    ]  # fmt: skip


def _share(runs: Sequence[Row]) -> str:
    judged, beyond = (sum(r[key] for r in runs) for key in ("next_judged", "next_over"))
    return f"{beyond} of {judged}, {beyond / judged:.1%}"


def klip() -> str:
    """The CartPole row of the KLip-PPO paper."""
    record = read("klip/compare.json")
    lines = []
    for (variant,), runs in groups(record["rows"], "variant").items():
        returns = [r["last_tenth_return"] for r in runs]
        spread = f"{np.mean(returns):.0f} ± {statistics.stdev(returns):.0f}"
        lines.append([f"`{variant}`", spread, ", ".join(f"{x:.0f}" for x in returns)])
    return "\n\n".join([command(record["command"]), table(["", "mean ± standard deviation", "by seed"], lines)])


def penalties() -> str:
    """Medians of the KL over what was asked for."""
    records = [read(f"penalties-{aim}/compare.json") for aim in ("0.003", "0.01", "0.03")]
    rows = [r for record in records for r in record["rows"]]
    envs = list(dict.fromkeys(r["env"] for r in rows))
    lines, medians = [], []
    for (variant,), of_variant in groups(rows, "variant").items():
        for (aim,), group in groups(of_variant, "target_kl").items():
            cells = [f"`{variant}`", f"{aim:g}"]
            for env in envs:
                ratios = [r["kl_median_second_half"] / aim for r in group if r["env"] == env]
                medians += [(ratio, variant, aim, env) for ratio in ratios]
                cells.append(", ".join(f"{x:.2f}" for x in ratios))
            lines.append(cells)
    first, *others = records
    aims = [f"{record['rows'][0]['target_kl']:g}" for record in others]
    return "\n\n".join(
        [
            command(first["command"]),
            f"and the same with {listed(aims)} nats.",
            table(["", "asked", *envs], lines),
            f"{_near_their_aim(medians)} {_wildest(rows)}",
        ]
    )


def _near_their_aim(medians: Sequence[tuple[float, str, float, str]]) -> str:
    outside = [m for m in medians if not 1 / 1.5 <= m[0] <= 1.5]
    which = listed(sorted({f"`{variant}` at {aim:g} on {env}" for _, variant, aim, env in outside}))
    text = f"{len(medians) - len(outside)} of {len(medians)} medians are within a factor of 1.5"
    return text + (f"; the others: {which}." if outside else ".")


def _wildest(rows: Sequence[Row]) -> str:
    said = []
    for kind in (True, False):
        of_kind = [r for r in rows if ("penalty" in r["variant"]) == kind]
        r = max(of_kind, key=lambda r: r["kl_largest"] / r["target_kl"])
        times = f"{r['kl_largest'] / r['target_kl']:,.0f} times as far as asked for"
        said.append(f"{times} under `{r['variant']}` ({r['env']}, {r['target_kl']:g})")
    return f"An aim is no bound: the largest single update went {listed(said)}."


def fold() -> str:
    """Folding the observation statistics, or not."""
    record = read("fold/compare.json")
    by_variant = groups(record["rows"], "variant")
    envs = list(dict.fromkeys(r["env"] for r in record["rows"]))
    lines = [
        [f"`{variant}`", *(_last_tenth([r for r in runs if r["env"] == env]) for env in envs)]
        for (variant,), runs in by_variant.items()
    ]
    return "\n\n".join([command(record["command"]), table(["", *envs], lines)])


def critic() -> str:
    """Critics that keep their values when the scale of rewards changes, and critics that do not."""
    from klrl.scripts.benchmarks.critic_runs import table as of_ways

    record = read("critic.json")
    return "\n\n".join([command(record["command"]), of_ways(record["rows"])])


def finetune() -> str:
    """What KL to a saved policy keeps."""
    from klrl.scripts.benchmarks.finetune_runs import table as of_variants

    record = read("finetune.json")
    said = []
    for (variant,), group in groups(record["rows"], "variant").items():
        for setting in ("reference_kl", "reference_forward_kl"):
            if (bound := group[0]["settings"].get(setting)) is None:
                continue
            outside, updates = sum(r[f"updates_over_{setting}"] for r in group), sum(r["updates"] for r in group)
            largest = max(r[f"kl_{setting.removesuffix('_kl')}_largest"] for r in group) / bound
            said.append(
                f"- `{variant}`: {outside} of {updates} updates end outside, at up to {largest:.1f} times the bound"
            )
    return "\n\n".join(
        [
            command(record["command"]),
            of_variants(record["rows"]),
            "How often updates under a bound end outside of it:",
            "\n".join(said),
        ]
    )


def versions() -> str:
    """What each file of results was measured with."""
    files = ["learning.json", "spaces.json", "asked.json", "regions/results.json", "movement-trpo/results.json"]
    files += ["movement-ppo/results.json", "klip/compare.json"]
    files += ["penalties-0.01/compare.json", "fold/compare.json", "critic.json", "finetune.json", "accuracy.json"]
    files += ["speed.json", "scaling.json", "asked-peers.json"]
    packages = ("python", "torch", "gymnasium", "numpy", "mujoco")
    lines = [[f"`{name}`", *(read(name)["versions"].get(package, "") for package in packages)] for name in files]
    return table(["file in `scripts/results`", *packages], lines)


BLOCKS: dict[str, Callable[[], str]] = {
    "learning": learning,
    "learning-curve": learning_curve,
    "spaces": spaces,
    "asked": asked,
    "regions": regions,
    "movement": movement,
    "klip": klip,
    "penalties": penalties,
    "fold": fold,
    "critic": critic,
    "finetune": finetune,
    "versions": versions,
}
