"""The numbers of a page: every array once, rounded to five digits and compressed; what they are, as JSON."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from klrl.report.charts import Chart
from klrl.report.curves import average, peaks, thinned
from klrl.report.reading import LoggedRun

_MOST = 900_000
"""Numbers in all curves together: with them, a page stays below 6 MB."""
_FEWEST = 200
"""Points of a curve, however many there are."""
_UNUSED = 2**7 - 1
"""Bits of a number's 32 that are left out: without them it has 17 binary digits, and compresses to two thirds."""


class Arrays:
    """Arrays by number: equal ones, such as the steps of runs that differ in their seed, are kept once."""

    def __init__(self) -> None:
        self._numbers: dict[bytes, int] = {}

    def __call__(self, x: np.ndarray, *, exact: bool = False) -> int:
        """Return the number of an array; unless it is exact in 32 bits, it is rounded to five digits."""
        with np.errstate(over="ignore"):  # what no 32 bits can hold is as good as infinite on a screen
            bits = np.ascontiguousarray(x, "<f4").view("<u4")
        if not exact:
            rounded = (bits + (_UNUSED >> 1)) & ~np.uint32(_UNUSED)
            bits = np.where(np.isfinite(bits.view("<f4")), rounded, bits)
        return self._numbers.setdefault(bits.tobytes(), len(self._numbers))

    def lengths(self) -> list[int]:
        """Return the lengths of all arrays."""
        return [len(data) // 4 for data in self._numbers]

    def coded(self) -> str:
        """Return the arrays one after the other, compressed, in base64."""
        return base64.b64encode(gzip.compress(b"".join(self._numbers), mtime=0)).decode("ascii")


def payload(runs: Sequence[LoggedRun], charts: Sequence[Chart]) -> tuple[dict[str, Any], str]:
    """Return everything that the page's script draws: what it is, as plain JSON, and the numbers, coded."""
    envs, names = distinct(run.env for run in runs), distinct(run.variant for run in runs)
    arrays = Arrays()
    most = _MOST // max(1, len(runs) * len(charts))
    if max((run.updates for run in runs), default=0) > most:  # each curve has an x of its own then
        most = max(_FEWEST, most // 2)
    curves = {
        chart.key: [_curves(chart, [run for run in runs if run.env == env], names, arrays, most) for env in envs]
        for chart in charts
    }
    data = {
        "envs": envs,
        "variants": names,
        "seeds": max((len({*g}) for g in _seeds(runs).values()), default=0),
        "charts": {c.key: {"title": c.title, "unit": c.unit, "x": axis(c, runs), "log": c.is_kl} for c in charts},
        "curves": curves,
        "lengths": arrays.lengths(),
    }
    return data, arrays.coded()


def distinct(names: Any) -> list[str]:
    """Return names in the order in which they appear, each once."""
    return [*dict.fromkeys(names)]


def safe_json(data: Any) -> str:
    r"""Return JSON in which nothing can end a script element or begin another.

    >>> safe_json(["</script>"])
    '["\\u003c/script>"]'
    """
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _seeds(runs: Sequence[LoggedRun]) -> Mapping[tuple[str, str], list[int]]:
    groups: dict[tuple[str, str], list[int]] = {}
    for i, run in enumerate(runs):
        groups.setdefault((run.env, run.variant), []).append(i)
    return groups


def axis(chart: Chart, runs: Sequence[LoggedRun]) -> str:
    """Return what stands at the x axis of a chart."""
    if chart.x == "spent":
        return "KL spent, nats"
    logged = [run.counts_steps for run in runs if run.updates]
    return "environment steps" if all(logged) else "updates" if not any(logged) else "environment steps, or updates"


def points(run: LoggedRun, chart: Chart) -> tuple[np.ndarray, np.ndarray]:
    """Return x and y of a run in a chart, where there is a number, ``[points]`` each."""
    y = run.column(chart.column)
    if chart.x == "steps":
        x = run.steps
    else:  # a rollout's return is that of the policy before the row's update
        x = run.spent - np.nan_to_num(run.column("drift/kl")) if chart.column.startswith("rollout/") else run.spent
    there = np.isfinite(x) & np.isfinite(y)
    return x[there], y[there]


def _curves(
    chart: Chart, runs: Sequence[LoggedRun], names: Sequence[str], arrays: Arrays, most: int
) -> dict[str, list[list[Any]]]:
    """Return a chart's curves on one environment: of every run, and the average of every variant."""
    found: dict[str, list[list[Any]]] = {"runs": [], "means": [], "marks": [], "targets": []}
    for number, name in enumerate(names):
        group = [run for run in runs if run.variant == name]
        curves = [(run, *points(run, chart)) for run in group]
        curves = [(run, x, y) for run, x, y in curves if len(x)]
        for run, x, y in curves:
            kept = thinned(y, most)
            found["runs"].append([number, _seed(run), arrays(x[kept], exact=True), arrays(y[kept])])
        if curves:
            x, *means = average([(x, y) for _, x, y in curves])
            found["means"].append([number, arrays(x, exact=True), *map(arrays, means)])
        if chart.target is not None:
            _add_target(chart, chart.target, number, group, found, arrays, most)
    return found


def _add_target(
    chart: Chart,
    target: str,
    number: int,
    runs: Sequence[LoggedRun],
    found: dict[str, list[list[Any]]],
    arrays: Arrays,
    most: int,
) -> None:
    """Add the bound of a variant, and a mark at each of its updates beyond it."""
    for run in runs:
        bound, over = run.column(target), run.beyond(chart.column)
        there = np.isfinite(bound)
        kept = thinned(bound[there], most)
        line = [number, arrays(run.steps[there][kept], exact=True), arrays(bound[there][kept])]
        if there.any() and line not in found["targets"]:
            found["targets"].append(line)
        if over.any():
            x, y = run.steps[over], run.column(chart.column)[over]
            kept = peaks(x, y, most)
            found["marks"].append([number, _seed(run), arrays(x[kept], exact=True), arrays(y[kept])])


def _seed(run: LoggedRun) -> str:
    return "" if run.seed is None else str(run.seed)
