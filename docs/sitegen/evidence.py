"""Tables of many seeds beside published results, from the records in ``scripts/results/studies``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from klrl.studies.gathered import read
from klrl.studies.outcomes import DONE
from klrl.studies.statistics import Interval, interquartile_mean, interval_of, kl_per_return, mean
from sitegen.markdown import command, listed, table
from sitegen.published import best, digits, number, of_env, short, threshold
from sitegen.results import RESULTS, Row, groups, over_bounds

STUDIES = RESULTS / "studies"
RESAMPLES = 1999
DROP = 0.2
"""Share of what a run has gained at best whose loss counts as a drop."""
NOTHING = "No run has ended yet."
MUJOCO = {
    "v4": ("mujoco-v4-trpo", "mujoco-v4-ppo", "mujoco-v4-more-trpo", "mujoco-v4-more-ppo", "mujoco-v4-peers"),
    "v5": ("mujoco-v5-trpo", "mujoco-v5-ppo"),
}


def rows_of(*names: str) -> list[Row]:
    """The runs that are done in those of these records that exist."""
    return [row for name in names if _file(name).exists() for row in read(_file(name)) if row["status"] == DONE]


def _file(name: str) -> Path:
    return STUDIES / f"{name}.json"


def commands(*names: str) -> str:
    """The commands that make these records, of those that exist, with what, and which of their runs failed."""
    there = [name for name in names if _file(name).exists()]
    studies = [name for name in there if name != PEERS]
    parts = ["\n".join(["```", f"for name in {' '.join(studies)}; do", *_STEPS, "done", "```"])] if studies else []
    if PEERS in there:
        parts.append(command(f"klrl benchmark learning --peers --output scripts/results/studies/{PEERS}.json"))
    rows = [row for name in there for row in read(_file(name))]
    with_versions = {package: dict.fromkeys(row["versions"].get(package) for row in rows) for package in PACKAGES}
    known = [f"{package} {listed([*filter(None, found)])}" for package, found in with_versions.items() if any(found)]
    parts.append(f"With {listed(known)}.")
    failed = [row for row in rows if row["status"] != DONE]
    if failed:
        runs = listed([f"{row['env']} {row['variant']} seed {row['seed']}" for row in failed])
        parts.append(f"Failed, and in no number below: {runs}.")
    return "\n\n".join(parts)


PACKAGES = ("mujoco", "gymnasium", "torch", "stable_baselines3", "sb3_contrib")
PEERS = "mujoco-v4-peers"
"""The record of other libraries' runs, which no study makes."""
_STEPS = (
    "    klrl study scripts/benchmarks/studies/$name.toml --output studies/$name",
    "    klrl benchmark gather studies/$name --output scripts/results/studies/$name.json",
)


def lines_of(rows: Sequence[Row]) -> Iterator[tuple[str, str, list[Row]]]:
    """Environment, variant and runs of every line, an environment's together."""
    for (env,), of_env_ in groups(rows, "env").items():
        for (variant,), runs in groups(of_env_, "variant").items():
            yield env, variant, runs


# -- statistics of the runs of one line --------------------------------------------------------------


def returns(runs: Sequence[Row], name: str) -> np.ndarray:
    """One number of every run, NaN where it has none."""
    return np.array([math.nan if run[name] is None else run[name] for run in runs])


def curves(runs: Sequence[Row]) -> np.ndarray:
    """Mean return of the last 100 episodes, [n_seeds, n_points], NaN before the first one ended."""
    points = min(len(run["curve"]) for run in runs)
    return np.array([[math.nan if x is None else x for _, x, _ in run["curve"][:points]] for run in runs])


def largest_of_mean(runs: Sequence[Row]) -> Interval:
    """M1: the largest point of the mean curve over seeds, with a bootstrap over seeds."""
    of_runs = curves(runs)
    of_runs = of_runs[:, np.isfinite(of_runs).all(axis=0)]
    if not of_runs.size:
        return Interval(math.nan, math.nan, math.nan, 0, len(runs))

    def largest(seeds: np.ndarray, axis: int) -> Any:
        return of_runs[seeds.astype(int)].mean(axis=-2).max(axis=-1)

    return interval_of(largest, np.arange(len(runs)), resamples=RESAMPLES)


def iqm(scores: np.ndarray) -> Interval:
    """Interquartile mean with its bootstrap interval."""
    return interval_of(interquartile_mean, scores, resamples=RESAMPLES)


def steps_to(run: Row, value: float) -> float:
    """Steps after which the mean return of the last 100 episodes is a value for the first time; infinite if never."""
    return next((steps for steps, at, _ in run["curve"] if at is not None and at >= value), math.inf)


def drops(run: Row) -> bool:
    """Tell whether a run ever loses a fifth of what it had gained at best."""
    (curve,) = curves([run])
    curve = curve[np.isfinite(curve)]
    highest = np.maximum.accumulate(curve)
    return bool(len(curve)) and bool(np.any(highest - curve > DROP * (highest - curve[0])))


def spent(run: Row) -> float:
    """KL that a run spent for each unit of return that it gained, nats."""
    (curve,) = curves([run])
    return kl_per_return([run["kl_mean"] * run["updates"]], curve)


def shown(interval: Interval, spec: str | None = None) -> str:
    """Show an interval without its number of seeds, which stands in a column of its own."""
    if math.isnan(interval.value):
        return ""
    spec = digits(interval.value) if spec is None else spec
    ends = f" [{interval.low:{spec}}, {interval.high:{spec}}]" if interval.known else ""
    return f"{interval.value:{spec}}{ends}"


def _thousands(steps: float) -> str:
    return f"{steps / 1000:,.0f}k"


def _reached(runs: Sequence[Row], value: float) -> str:
    first = [steps for run in runs if (steps := steps_to(run, value)) < math.inf]
    return f"{_thousands(float(np.median(first))) if first else 'never'} ({len(first)} of {len(runs)})"


# -- MuJoCo ---------------------------------------------------------------------------------------


def mujoco(version: str) -> str:
    """Returns of every algorithm in every task, the best published ones below."""
    rows = rows_of(*MUJOCO[version])
    if not rows:
        return NOTHING
    head = ["environment", "algorithm", "seeds", "M1", "M2, mean", "M2, interquartile mean", "M3, interquartile mean"]
    lines = []
    for (env,), of_env_ in groups(rows, "env").items():
        lines += [[env, variant, f"{len(runs)}", *_metrics(runs)] for _, variant, runs in lines_of(of_env_)]
        agents, steps = dict.fromkeys(run["agent"] for run in of_env_), of_env_[0]["total_timesteps"]
        lines += [
            [env, f"published, best {agent.upper()}", "", *_published(env, agent.upper(), steps)] for agent in agents
        ]
    return "\n\n".join([commands(*MUJOCO[version]), table(head, lines), *_compared(rows), _kl(rows)])


def _metrics(runs: Sequence[Row]) -> list[str]:
    last, after = returns(runs, "last_tenth_return"), returns(runs, "mean_return")
    return [
        shown(largest_of_mean(runs)),
        shown(interval_of(mean, last, resamples=RESAMPLES)),
        shown(iqm(last)),
        shown(iqm(after)),
    ]


def _published(env: str, algorithm: str, steps: int) -> list[str]:
    found = [best(env, algorithm, metric, steps) for metric in ("M1", "M2", "M3")]
    one, two, three = ("" if record is None else short(record, env) for record in found)
    return [one, two, "", three]


def _compared(rows: Sequence[Row]) -> Iterator[str]:
    """Say for every algorithm of klrl's where its M2 is below the best published one."""
    for variant in ("PPO", "TRPO"):
        below, n = [], 0
        for env, name, runs in lines_of(rows):
            record = best(env, variant, "M2", runs[0]["total_timesteps"]) if name == variant else None
            if record is not None:
                value, theirs = (
                    float(np.nanmean(returns(runs, "last_tenth_return"))),
                    record["returns"][of_env(env)[0]][0],
                )
                n += 1
                below += [f"{env} ({number(value)}, {number(theirs)})"] * (value < theirs)
        if n:
            said = f"; below it: {listed(below)}" if below else ""
            yield f"{variant}: the mean M2 reaches the best published one in {n - len(below)} of {n} tasks{said}."


def _kl(rows: Sequence[Row]) -> str:
    head = [
        "environment",
        "algorithm",
        "mean KL",
        "largest KL",
        "over target",
        "first at the threshold (seeds)",
        "published",
    ]
    lines = []
    for env, variant, runs in lines_of(rows):
        goal = threshold(env)
        cells = ["", ""]
        if goal is not None:
            theirs = goal["steps"].get(runs[0]["agent"].upper())
            cells[0] = f"{number(goal['value'])}: {_reached(runs, goal['value'])}"
            cells[1] = "" if theirs is None else f"{_thousands(theirs)} ({goal['source']})"
        lines.append([env, variant, *_moved(runs), *cells, shown(iqm(np.array([spent(run) for run in runs])), ".2g")])
    return table([*head, "nats per unit of return"], lines)


def _moved(runs: Sequence[Row]) -> list[str]:
    largest = max(run["kl_largest"] for run in runs)
    return [f"{np.mean([run['kl_mean'] for run in runs]):.4f}", f"{largest:.4f}", over_bounds(runs)]


def headline() -> str:
    """Mean M2 of PPO and TRPO in few lines, beside the best published one, and TRPO's updates over its bound."""
    rows = rows_of("mujoco-v4-ppo", "mujoco-v4-trpo")
    if not rows:
        return NOTHING
    envs, lines = list(dict.fromkeys(row["env"] for row in rows)), []
    for variant in ("PPO", "TRPO"):
        ours: dict[str, str] = {}
        theirs: dict[str, str] = {}
        for env, runs in ((env, runs) for env, name, runs in lines_of(rows) if name == variant):
            ours[env] = f"{number(float(np.nanmean(returns(runs, 'last_tenth_return'))))} ({len(runs)})"
            if (record := best(env, variant, "M2", runs[0]["total_timesteps"])) is not None:
                theirs[env] = number(record["returns"][of_env(env)[0]][0])
        lines += [[f"{variant} (seeds)", *(ours.get(env, "") for env in envs)]]
        lines += [[f"published {variant}", *(theirs.get(env, "") for env in envs)]]
    bounded = {env: over_bounds(runs) for env, name, runs in lines_of(rows) if name == "TRPO"}
    return table(["", *envs], [*lines, ["updates of TRPO", *(bounded.get(env, "") for env in envs)]])


# -- classic control and Box2D ----------------------------------------------------------------------


def classic() -> str:
    """Every preset to its end, with the returns that count as reached."""
    names = ("classic-ppo", "classic-trpo")
    rows = rows_of(*names)
    if not rows:
        return NOTHING
    head = ["environment", "algorithm", "steps", "seeds", "goal", "M3, interquartile mean", "seeds whose M3 is there"]
    head += ["training first there (seeds)", "published", "published M3", "largest KL", "over target"]
    lines, reached = [], [0, 0]
    for env, variant, runs in lines_of(rows):
        goal, after = threshold(env), returns(runs, "mean_return")
        assert goal is not None
        there = int((after >= goal["value"]).sum())
        reached = [reached[0] + there, reached[1] + len(runs)]
        algorithm = runs[0]["agent"].upper()
        first, record = goal["steps"].get(algorithm), best(env, algorithm, "M3", None)
        lines.append(
            [
                env, variant, f"{runs[0]['total_timesteps']:,}", f"{len(runs)}", f"{goal['value']:g}",
                shown(iqm(after)), f"{there} of {len(runs)}", _reached(runs, goal["value"]),
                "" if first is None else _thousands(first), "" if record is None else short(record, env),
                *_moved(runs)[1:],
            ]
        )  # fmt: skip
    return "\n\n".join([commands(*names), table(head, lines), f"{reached[0]} of {reached[1]} runs reach their goal."])


# -- recipes ----------------------------------------------------------------------------------------


RECIPES = (
    "recipe-ppo", "recipe-ppo-finalists", "recipe-constraint", "recipe-trpo", "recipe-trpo-finalists",
    "recipe-pendulum", "recipe-mountaincar", "recipe-lunar",
)  # fmt: skip
BASE = "base"
"""The variant from which the others of a recipe differ in what they name."""


def recipe(study: str) -> str:
    """What each change of a recipe does to the returns of the last tenth."""
    rows = rows_of(study)
    if not rows:
        return NOTHING
    envs = list(dict.fromkeys(row["env"] for row in rows))
    scores: dict[tuple[str, str], dict[int, float]] = {
        key: {run["seed"]: run["last_tenth_return"] for run in runs if run["last_tenth_return"] is not None}
        for key, runs in groups(rows, "variant", "env").items()
    }
    lines = []
    for variant in dict.fromkeys(row["variant"] for row in rows):
        changes = []
        for env in envs:
            here, there = scores.get((variant, env), {}), scores.get((BASE, env), {})
            if shared := sorted(here.keys() & there.keys()):
                x, y = (float(np.mean([of[seed] for seed in shared])) for of in (here, there))
                changes.append((x - y) / abs(y))
        cells = [number(float(np.mean([*of.values()]))) if (of := scores.get((variant, env))) else "" for env in envs]
        change = float(np.mean(changes)) if changes else math.nan
        lines.append((change, [variant, *cells, "" if math.isnan(change) else f"{change:+.0%}"]))
    lines.sort(key=lambda line: -math.inf if math.isnan(line[0]) else line[0], reverse=True)
    seeds = sorted({row["seed"] for row in rows})
    those = f"those of the seeds {listed([*map(str, seeds)])} that have ended" if len(seeds) > 1 else f"seed {seeds[0]}"
    steps = f"{rows[0]['total_timesteps']:,}"
    said = f"M2 after {steps} steps, mean over {those}; change from the base on the same seeds: mean over tasks."
    return "\n\n".join([commands(study), said, table(["", *envs, "change"], [cells for _, cells in lines])])


# -- what a bound buys --------------------------------------------------------------------------------


BOUNDS = ("kl-bound", "kl-bound-projections")


def fast(run: Row) -> bool:
    """Tell whether a run has ten times the presets' learning rate."""
    return bool(run["config"]["learning_rate"] > 1e-3)


def bounds() -> str:
    """Return and stability under every region and bound, at two learning rates."""
    rows = rows_of(*BOUNDS)
    if not rows:
        return NOTHING
    head = ["", "seeds", "M2", "worst seed", "spread", "runs with a drop", "largest KL"]
    parts = ["![Returns over the mean KL of an update, by region and learning rate](_static/kl-bound.svg)"]
    parts += [commands(*BOUNDS)]
    held = [row for row in rows if "constraint" in row["config"]["trust_region"]]
    over = sum(row["updates_over_target"] for row in held)
    parts += [f"Under constraints {over:,} of {sum(row['updates'] for row in held):,} updates end over their bound."]
    for (env, quick), group in groups([row | {"fast": fast(row)} for row in rows], "env", "fast").items():
        lines = [_stability(variant.partition(",")[0], runs) for (variant,), runs in groups(group, "variant").items()]
        rate = "ten times the preset's learning rate" if quick else "the preset's learning rate"
        parts += [f"{env}, {group[0]['total_timesteps']:,} steps, {rate}:", table(head, lines)]
    return "\n\n".join(parts)


def _stability(variant: str, runs: Sequence[Row]) -> list[str]:
    last = returns(runs, "last_tenth_return")
    fell = sum(map(drops, runs))
    spread = number(float(np.nanstd(last, ddof=1))) if len(runs) > 1 else ""
    largest = f"{max(run['kl_largest'] for run in runs):.3g}"
    return [
        f"`{variant}`",
        f"{len(runs)}",
        shown(iqm(last)),
        number(float(np.nanmin(last))),
        spread,
        f"{fell}",
        largest,
    ]


BLOCKS: dict[str, Callable[[], str]] = {
    "headline": headline,
    "mujoco-v4": lambda: mujoco("v4"),
    "mujoco-v5": lambda: mujoco("v5"),
    "classic": classic,
    **{study: partial(recipe, study) for study in RECIPES},
    "kl-bound": bounds,
}
