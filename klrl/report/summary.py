"""The words and tables of a report: results with intervals, what differs, how to repeat it, failures."""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from klrl.keywords import of_json, to_word
from klrl.report.intervals import FEWEST, Interval, over_seeds
from klrl.report.payload import distinct
from klrl.report.reading import ENDING, LoggedRun
from klrl.report.variants import differing, settings_of, shown


@dataclass(frozen=True)
class Group:
    """The runs of a variant on an environment."""

    env: str
    variant: str
    runs: tuple[LoggedRun, ...]

    @property
    def measured(self) -> tuple[LoggedRun, ...]:
        """Runs with at least one update."""
        return tuple(run for run in self.runs if run.updates)


def groups(runs: Sequence[LoggedRun]) -> list[Group]:
    """Return the runs by environment and variant, in the order in which these appear."""
    pairs = [(env, variant) for env in distinct(r.env for r in runs) for variant in distinct(r.variant for r in runs)]
    found = [Group(*pair, tuple(run for run in runs if (run.env, run.variant) == pair)) for pair in pairs]
    return [group for group in found if group.runs]


RESULTS = (
    "environment", "variant", "runs", "return, last 10 % of training", "last evaluation", "mean KL, nats",
    "largest KL, nats", "updates over target", "over it on the next states", "KL spent, nats", "steps/s",
)  # fmt: skip
"""Columns of the table of results."""


def results(group: Group) -> list[str]:
    """Return a row of the table of results; means are over seeds, with their intervals and the number of seeds."""
    runs = group.measured
    status = Counter(run.status for run in group.runs)
    counted = ", ".join(f"{n} {word}" for word, n in status.items())
    updates = sum(run.updates for run in runs)
    over = _share_over([run.over for run in runs], [run.judged for run in runs])
    largest = max((_largest(run.column("drift/kl")) for run in runs), default=math.nan)
    return [
        group.env,
        group.variant,
        counted,
        with_interval(over_seeds([_final_return(run) for run in runs]), "{:,.1f}"),
        with_interval(over_seeds([_last_evaluation(run) for run in runs]), "{:,.1f}"),
        with_interval(over_seeds([_mean(run.column("drift/kl")) for run in runs]), "{:.4f}"),
        number(largest, "{:.4f}"),
        over or f"no target\n{updates:,} updates",
        _share_over([run.over_next for run in runs], [np.isfinite(run.next_bound) for run in runs]) or "–",
        with_interval(over_seeds([_last(run.spent) for run in runs if _has_kl(run)]), "{:.3g}"),
        number(_median([_last(run.column("time/fps")) for run in runs]), "{:,.0f}"),
    ]


def _share_over(over: Sequence[np.ndarray], judged: Sequence[np.ndarray]) -> str:
    """Return the share of the updates with a bound that are over it, and their numbers; empty if there are none."""
    n, beyond = (sum(int(x.sum()) for x in xs) for xs in (judged, over))
    return f"{beyond / n:.0%}\n{beyond:,} of {n:,}" if n else ""


def _last_evaluation(run: LoggedRun) -> float:
    """Return the mean return of a study's evaluation after the training, or else of the last one during it."""
    return _last(run.column("eval/mean_reward")) if math.isnan(run.final_return) else run.final_return


def with_interval(interval: Interval, form: str) -> str:
    """Return a mean, its interval and the number of seeds as text; of too few seeds the mean and the number."""
    if interval.n == 0:
        return "–"
    mean = form.format(interval.value)
    if interval.n < FEWEST or not math.isfinite(interval.low):
        return f"{mean}\nn = {interval.n}"
    return f"{mean}\n{form.format(interval.low)} to {form.format(interval.high)}, n = {interval.n}"


def number(x: float, form: str) -> str:
    """Return a number as text, a dash if there is none."""
    return form.format(x) if math.isfinite(x) else "–" if math.isnan(x) else "∞"


def _final_return(run: LoggedRun) -> float:
    return run.last_tenth if math.isfinite(run.last_tenth) else _last(run.column("rollout/ep_rew_mean"))


def _has_kl(run: LoggedRun) -> bool:
    return bool(np.isfinite(run.column("drift/kl")).any())


def _last(x: np.ndarray) -> float:
    there = x[np.isfinite(x)]
    return float(there[-1]) if len(there) else math.nan


def _mean(x: np.ndarray) -> float:
    there = x[np.isfinite(x)]
    return float(there.mean()) if len(there) else math.nan


def _largest(x: np.ndarray) -> float:
    there = x[~np.isnan(x)]
    return float(there.max()) if len(there) else -math.inf


def _median(values: Sequence[float]) -> float:
    there = [x for x in values if math.isfinite(x)]
    return float(np.median(there)) if there else math.nan


@dataclass(frozen=True)
class Differences:
    """Settings that differ between the variants, and those that do not."""

    names: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    """Environment and variant, then a value for each name."""
    same: tuple[tuple[str, str], ...]


def differences(found: Sequence[Group]) -> Differences:
    """Compare the settings of the groups' first runs."""
    known = [group for group in found if group.runs[0].config]
    settings = [settings_of(group.runs[0].config) for group in known]
    names = differing(settings)
    rows = [
        (group.env, group.variant, *(mine.get(name, "–") for name in names))
        for group, mine in zip(known, settings, strict=True)
    ]
    same = {name: x for one in settings for name, x in one.items() if name not in names}
    return Differences(tuple(names), tuple(rows), tuple(same.items()))


def stop_reasons(found: Sequence[Group]) -> list[tuple[str, str, str]]:
    """Return why the updates of each group ended, the most frequent reason first."""
    rows = []
    for group in found:
        count = sum((Counter(run.reasons) for run in group.runs), Counter[str]())
        total = sum(count.values())
        said = ", ".join(f"{reason} {n / total:.0%}" for reason, n in count.most_common())
        if total:
            rows.append((group.env, group.variant, said))
    return rows


def failures(runs: Sequence[LoggedRun]) -> list[tuple[str, str, str, str]]:
    """Return name, status, reason and directory of every run that is not whole, or could not be read whole."""
    rows = []
    for run in runs:
        said = "; ".join(filter(None, [run.error, *run.notes]))
        if run.status in ("failed", "stopped", "waiting") or run.notes:
            rows.append((run.name, run.status, said, str(run.directory)))
    return rows


def versions(runs: Sequence[LoggedRun]) -> list[tuple[str, str]]:
    """Return the versions of Python and packages, all of them where runs differ."""
    found: dict[str, dict[str, None]] = {}
    for run in runs:
        named = run.config.get("versions")
        for name, version in named.items() if isinstance(named, dict) else ():
            found.setdefault(str(name), {})[str(version)] = None
    return [(name, ", ".join(versions)) for name, versions in found.items()]


def command(config: Mapping[str, Any]) -> str:
    """Return the command that trains a run again, every setting written out.

    Empty where there is none: for logs of other libraries, which have no trust region of klrl's, and settings that no
    flag can say, such as functions and trust regions made in Python.
    """
    own, env = config.get("config"), config.get("env")
    trained_by_klrl = isinstance(config.get("total_timesteps"), int) and isinstance(config.get("region"), dict)
    if not trained_by_klrl or not isinstance(own, dict) or not isinstance(env, dict):
        return ""
    if any(isinstance(value, dict) for value in own.values()):
        return ""
    words = ["klrl", "train", str(config.get("agent")), "--env", str(env.get("id")), "--seed", str(config.get("seed"))]
    words += ["--total-timesteps", str(config.get("total_timesteps")), "--preset", "none"]
    noted = {name: config.get(name) for name in ("start_from", *ENDING)}
    for name, value in (own | noted).items():
        words += _flag(name, value)
    if kwargs := _keywords(env.get("kwargs")):
        words += ["--env-kwargs", *kwargs]
    wrappers = env.get("wrappers")
    for one in wrappers if isinstance(wrappers, list) else ():
        if isinstance(one, dict):
            words += ["--wrapper", str(one.get("name")), *_keywords(one.get("kwargs"))]
    return shlex.join(words)


def _keywords(given: Any) -> list[str]:
    return [f"{name}={to_word(value)}" for name, value in of_json(given).items()] if isinstance(given, dict) else []


def _flag(name: str, value: Any) -> list[str]:
    flag = f"--{name.replace('_', '-')}"
    if value is None:
        return []
    if isinstance(value, bool):
        return [flag if value else flag.replace("--", "--no-", 1)]
    return [flag, *map(shown, value)] if isinstance(value, list) else [flag, shown(value)]
