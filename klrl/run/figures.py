"""Figures of trainings for papers and notebooks, by matplotlib (extra ``plots``)."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from klrl.run.callback import STEP, Metrics
from klrl.run.targets import TARGETS
from klrl.run.titles import title, unit
from klrl.text import allowed

METRICS = ("rollout/ep_rew_mean", "drift/kl")
"""Metrics that are drawn by default."""
FORMATS = ("png", "svg", "pdf")
"""Formats of :func:`save`, by the end of the file's name."""
KL = "drift/kl"
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#9A6700", "#56B4E9", "#555555")
_DASHES: tuple[Any, ...] = (
    "-",
    (0, (6, 2)),
    (0, (2, 1.5)),
    (0, (7, 2, 2, 2)),
    (0, (10, 3)),
    (0, (7, 2, 2, 2, 2, 2)),
    (0, (4, 5)),
)
"""Okabe and Ito's colours, and dashes for grey print, of the first variants."""


@dataclass(frozen=True, eq=False)
class Curve:
    """One line, with an interval around it if there is one."""

    x: np.ndarray
    y: np.ndarray
    label: str = ""
    style: int = 0
    """Number of the variant, which decides colour and dashes."""
    low: np.ndarray | None = None
    high: np.ndarray | None = None


@dataclass(eq=False)
class Panel:
    """One pair of axes."""

    title: str
    x: str
    y: str
    curves: list[Curve] = field(default_factory=list)
    targets: list[Curve] = field(default_factory=list)
    marks: list[Curve] = field(default_factory=list)
    """Points beyond the targets."""


class ShownFigure(Figure):
    """A figure that a notebook shows, whatever its backend."""

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.savefig(file, format="png")
        return file.getvalue()


def figure(panels: Sequence[Sequence[Panel]], heading: str = "") -> Figure:
    """Draw rows of panels; lines with the same label share one entry of the legend.

    Args:
        panels: rows, all of the same length.
        heading: title of the whole.
    """
    rows, columns = len(panels), len(panels[0])
    drawn = ShownFigure(figsize=(6.4 * columns, 0.6 + 2.7 * rows), layout="constrained")
    named: dict[str, Line2D] = {}
    axes = drawn.subplots(rows, columns, squeeze=False, sharex="col")
    for i, (line, row) in enumerate(zip(axes, panels, strict=True)):
        for ax, panel in zip(line, row, strict=True):
            named |= dict(_draw(ax, panel))
            if i < rows - 1:
                ax.set_xlabel("")
    if heading:
        drawn.suptitle(heading, x=0.01, ha="left", fontsize=11, parse_math=False)
    if len(named) > 1:
        columns = min(4, len(named))
        legend = drawn.legend([*named.values()], [*named], loc="outside lower center", ncols=columns, frameon=False)
        for text in legend.get_texts():
            text.set_parse_math(False)
    return drawn


def _draw(ax: Axes, panel: Panel) -> Iterator[tuple[str, Line2D]]:
    """Draw a panel; yield what the legend names. No text is read as mathematics: it may be the name of a run."""
    for curve in panel.curves:
        colour, dashes = _COLOURS[curve.style % len(_COLOURS)], _DASHES[(curve.style + curve.style // 7) % 7]
        (line,) = ax.plot(curve.x, curve.y, color=colour, linestyle=dashes, linewidth=1.4, label=curve.label)
        if curve.label:
            yield curve.label, line
        if curve.low is not None and curve.high is not None and np.isfinite(curve.low).any():
            ax.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.18, linewidth=0)
    for curve in panel.targets:
        (line,) = ax.plot(curve.x, curve.y, color="black", linestyle=":", linewidth=1.2, label="target")
        yield "target", line
    for curve in panel.marks:
        label = "update beyond its target"
        (line,) = ax.plot(curve.x, curve.y, "x", color="black", markersize=4, label=label)
        yield label, line
    ax.set_title(panel.title, loc="left", fontsize=10, parse_math=False)
    ax.set_xlabel(panel.x)
    ax.set_ylabel(panel.y, parse_math=False)
    ax.grid(alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)
    if panel.y == unit(KL):
        ax.set_ylim(bottom=0.0)


def figure_of(history: Iterable[Metrics], metrics: Sequence[str] = METRICS, heading: str = "") -> Figure:
    """Draw metrics of one training below each other, the measured KL with its target.

    Args:
        history: a dict of metrics per update.
        metrics: their names.
        heading: title of the whole.

    Raises:
        ValueError: there is no update, or none has such a metric.
    """
    rows = [*history]
    if not rows:
        raise ValueError("history = []; allowed: at least one update, by learn(total_timesteps)")
    known = [name for name in dict.fromkeys(k for row in rows for k in row) if not isinstance(rows[-1].get(name), str)]
    check_metrics(metrics, known)
    x = np.array([float(row.get(STEP, i + 1)) for i, row in enumerate(rows)])
    across = "environment steps" if STEP in rows[-1] else "updates"
    return figure(
        [
            [panel_of(name, across, x, {k: _column(rows, k) for k in (name, TARGETS.get(name, name))})]
            for name in metrics
        ],
        heading,
    )


def check_metrics(metrics: Sequence[str], known: Sequence[str]) -> None:
    """Refuse metrics that were not logged.

    Raises:
        ValueError: names the first, and those that were, or of many the nearest.
    """
    if not metrics:
        raise ValueError("metrics = (); allowed: at least one")
    for name in (name for name in metrics if name not in known):
        raise ValueError(f"metrics = {name!r}; allowed: {allowed(name, known)}")


def panel_of(metric: str, across: str, x: np.ndarray, columns: dict[str, np.ndarray]) -> Panel:
    """Return the panel of one metric of one training, with its target and what is beyond it, if it can have one."""
    y, panel = columns[metric], Panel(title(metric), across, unit(metric), [Curve(x, columns[metric])])
    if metric in TARGETS:
        target = columns[TARGETS[metric]]
        over, there = y > target, np.isfinite(target)
        panel.targets = [Curve(x[there], target[there])] if there.any() else []
        panel.marks = [Curve(x[over], y[over])] if over.any() else []
    return panel


def _column(rows: Sequence[Metrics], name: str) -> np.ndarray:
    return np.array([x if isinstance(x := row.get(name), float) else np.nan for row in rows])


def check_format(output: Path) -> None:
    """Refuse a name of a file whose end is no format.

    Raises:
        ValueError: names those that are.
    """
    if output.suffix.removeprefix(".").lower() not in FORMATS:
        raise ValueError(f"output = {output}; allowed: a name that ends in .{', .'.join(FORMATS)}")


def coded(drawn: Figure, output: Path) -> bytes:
    """Return a figure in the format that a file's name asks for; the same figure gives the same bytes."""
    file = io.BytesIO()
    kind = output.suffix.removeprefix(".").lower()
    import matplotlib as mpl

    with mpl.rc_context({"svg.hashsalt": "klrl", "pdf.fonttype": 42}):
        drawn.savefig(file, format=kind, dpi=200, metadata=_NO_DATE.get(kind))
    return file.getvalue()


_NO_DATE: dict[str, Any] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
