"""The figure of ``klrl plot``: metrics below each other, environments beside each other, seeds averaged."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from klrl.report.charts import Chart
from klrl.report.curves import average
from klrl.report.intervals import FEWEST
from klrl.report.payload import axis, distinct, points
from klrl.report.reading import LoggedRun
from klrl.run.figures import METRICS, Curve, Panel, check_metrics, figure
from klrl.run.targets import TARGETS
from klrl.run.titles import title, unit


def figure_of_runs(runs: Sequence[LoggedRun], metrics: Sequence[str] = (), *, seeds: bool = False) -> Figure:
    """Draw metrics of runs.

    Args:
        runs: as :func:`klrl.report.read_runs` reads them.
        metrics: names of columns; by default return and measured KL, as far as they were logged.
        seeds: draw every seed, also of variants that have enough of them for a mean with its interval.

    Raises:
        ValueError: no run has an update, or none has such a metric.
    """
    runs = [run for run in runs if run.updates]
    if not runs:
        raise ValueError("path = runs without a complete update; allowed: at least one with a metrics.csv")
    known = distinct(name for run in runs for name, x in run.columns.items() if (x == x).any())
    metrics = metrics or [name for name in METRICS if name in known]
    check_metrics(metrics, known)
    envs, names = distinct(run.env for run in runs), distinct(run.variant for run in runs)
    rows = [[_panel(metric, env, runs, names, seeds) for env in envs] for metric in metrics]
    return figure(rows)


def _panel(metric: str, env: str, runs: Sequence[LoggedRun], names: Sequence[str], seeds: bool) -> Panel:
    chart = Chart(column=metric, section="", about="", target=TARGETS.get(metric))
    panel = Panel(f"{title(metric)}, {env}", axis(chart, runs), unit(metric))
    for style, name in enumerate(names):
        group = [run for run in runs if (run.env, run.variant) == (env, name)]
        curves = [(x, y) for x, y in (points(run, chart) for run in group) if len(x)]
        if len(curves) >= FEWEST and not seeds:
            x, mean, low, high, _ = average(curves)
            panel.curves.append(Curve(x, mean, name, style, low, high))
        else:
            panel.curves += [Curve(x, y, name, style) for x, y in curves]
        for run in group if chart.target else ():
            target, over = run.column(TARGETS[metric]), run.beyond(metric)
            line = np.isfinite(target)
            same = [curve for curve in panel.targets if _goes_on(curve.y, target[line])]
            if line.any() and all(len(curve.y) < line.sum() for curve in same):
                panel.targets = [curve for curve in panel.targets if curve not in same]
                panel.targets.append(Curve(run.steps[line], target[line]))
            panel.marks += [Curve(run.steps[over], run.column(metric)[over])] if over.any() else []
    return panel


def _goes_on(one: np.ndarray, other: np.ndarray) -> bool:
    """Tell whether one of two targets is the beginning of the other."""
    n = min(len(one), len(other))
    return np.array_equal(one[:n], other[:n])
