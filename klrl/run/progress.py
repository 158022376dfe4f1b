"""Progress shown to a person: a live panel on a terminal or in a notebook, one plain line per update elsewhere."""

from __future__ import annotations

import math
import sys
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from klrl.experience import Batch
from klrl.output import steady
from klrl.run.callback import INFO, SUCCESS, Metrics, Recorder
from klrl.run.evaluation import MEAN_REWARD, SUCCESS_RATE
from klrl.run.targets import TARGETS


class Progress(Recorder):
    """Shows steps/s, time left, return, KL against its target, and the effect of line search or clipping."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(file=steady(sys.stdout))
        self._live: Live | _Cell | None = None
        self._evaluated: Metrics = {}
        """Last evaluation, which stays in the panel until the next one."""

    def on_training_start(self, agent: Any, total_timesteps: int) -> None:
        """Open the panel, if there is a terminal or a notebook."""
        self._total, self._live = total_timesteps, None
        if self.console.is_jupyter:
            self._live = _Cell()
        elif self.console.is_terminal:
            self._live = Live(console=self.console, auto_refresh=False)
            self._live.start()

    def on_update_end(self, agent: Any, batch: Batch, metrics: Metrics) -> None:
        """Redraw the panel, or print a line."""
        self._evaluated |= {name: metrics[name] for name in (MEAN_REWARD, SUCCESS_RATE) if name in metrics}
        facts = summary(metrics if self._live is None else self._evaluated | metrics, self._total)
        if self._live is None:
            steps = f"{agent.num_timesteps:>9,}/{self._total:,}"
            line = "  ".join([steps, *(f"{name} {value}" for name, value in facts.items())])
            self.console.print(line, highlight=False, markup=False, emoji=False, soft_wrap=True)
        else:
            self._live.update(self._panel(agent, facts), refresh=True)

    def on_training_end(self, agent: Any) -> None:
        """Leave the last panel on the screen."""
        if self._live is not None:
            self._live.stop()

    def _panel(self, agent: Any, facts: dict[str, str]) -> Panel:
        grid = Table.grid(padding=(0, 2))
        grid.add_row("steps", ProgressBar(self._total, min(agent.num_timesteps, self._total), width=40))
        grid.add_row("", f"{agent.num_timesteps:,} of {self._total:,}")
        for name, value in facts.items():
            grid.add_row(Text(name), Text(value))  # with brackets they would be markup
        return Panel(grid, title=f"{type(agent).__name__}, seed {agent.seed}", expand=False)


class _Cell:
    """The output of a notebook's cell, drawn again in place; Rich's ``Live`` would need widgets for that."""

    def __init__(self) -> None:
        self._shown: Any = None

    def update(self, panel: Panel, *, refresh: bool) -> None:
        """Show the panel in the place of the last one."""
        from IPython.display import display

        if self._shown is None:
            self._shown = display(panel, display_id=True)
        else:
            self._shown.update(panel)

    def stop(self) -> None:
        """Leave the panel: it is part of the notebook."""


def summary(metrics: Metrics, total_timesteps: int) -> dict[str, str]:
    """Return the few facts worth watching, as text: name to value, in the order of display."""

    def number(name: str) -> float:
        return float(metrics.get(name, math.nan))

    speed = number("time/fps")
    left = max(0.0, total_timesteps - number("time/total_timesteps")) / speed if speed > 0 else math.nan
    facts = {
        "steps/s": f"{speed:,.0f}",
        "left": str(timedelta(seconds=round(left))) if math.isfinite(left) else "-",
        "return": _show(number("rollout/ep_rew_mean"), ".1f"),
        "KL": f"{number('drift/kl'):.4f}" + _of(number("drift/kl_target"), " of {:g}"),
        "max KL": f"{number('drift/kl_max'):.3f}" + _of(number("drift/kl_max_bound"), " of {:g}"),
    }
    optional = {
        "success": (SUCCESS, ".0%"),
        "evaluation": (MEAN_REWARD, ".1f"),
        "success there": (SUCCESS_RATE, ".0%"),
        "clipped": ("train/clip_fraction", ".0%"),
        "penalty": ("train/kl_penalty", ".3g"),
        "line search": ("train/line_search_scale", ".2f"),
        "explained": ("train/explained_variance", ".2f"),
    }
    optional |= {name.partition("/")[2]: (name, ".3g") for name in metrics if name.startswith(INFO)}
    tails = {"quantile": "drift/kl_quantile", "tail": "drift/kl_cvar"}
    facts |= {
        f"{word} KL": f"{number(name):.4f} of {number(TARGETS[name]):g}"
        for word, name in tails.items()
        if name in metrics
    }
    facts |= {label: _show(number(name), form) for label, (name, form) in optional.items() if name in metrics}
    reason = str(metrics.get("train/stop_reason", ""))
    return facts | ({"note": reason} if reason.startswith(("rejected", "stopped")) else {})


def _show(x: float, form: str) -> str:
    return "-" if math.isnan(x) else f"{x:{form}}"


def _of(x: float, form: str) -> str:
    return "" if math.isnan(x) else form.format(x)
