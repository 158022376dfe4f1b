"""The charts of a report: what is in each, and in which section it stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from klrl.report.reading import LoggedRun
from klrl.run.targets import TARGETS
from klrl.run.titles import title, unit


@dataclass(frozen=True, kw_only=True)
class Chart:
    """One metric of every run over its training."""

    column: str
    section: str
    about: str
    x: Literal["steps", "spent"] = "steps"
    target: str | None = None
    """Column of the bound to draw beside it; updates beyond it are marked."""

    @property
    def key(self) -> str:
        """Name in the page."""
        return f"{self.column}|{self.x}"

    @property
    def title(self) -> str:
        """Title of the chart."""
        return title(self.column)

    @property
    def unit(self) -> str:
        """Text at the y axis, with its unit."""
        return unit(self.column)

    @property
    def is_kl(self) -> bool:
        """True where the axis begins at 0, or may be logarithmic."""
        return self.unit == "KL, nats"


SECTIONS = {
    "learning": "Learning curves",
    "drift": "Drift",
    "step": "What the step did",
    "cost": "Return against KL spent",
}
"""Titles of the sections with charts, in their order."""
_ABOUT = {
    "learning": {
        "rollout/ep_rew_mean": "Mean undiscounted return of the last 100 episodes, played by the policy that learns.",
        "eval/mean_reward": "Mean undiscounted return of the episodes played to evaluate the policy.",
        "rollout/ep_len_mean": "Mean length of the last 100 episodes.",
        "eval/mean_ep_length": "Mean length of the episodes played to evaluate the policy.",
        "rollout/success_rate": "Share of the last 100 episodes that succeeded, as their environment says.",
        "eval/success_rate": "Share of the evaluation's episodes that succeeded, as their environment says.",
    },
    "drift": {
        "drift/kl": "KL(old‖new) after the whole update, exact, mean over the batch's states. Dotted: its target. "
        "A cross marks each update beyond its target.",
        "drift/kl_p95": "KL(old‖new) that 95 % of the batch's states do not exceed.",
        "drift/kl_max": "Largest KL(old‖new) of the batch's states. Dotted: its bound, where there is one.",
        "drift/kl_quantile": "KL(old‖new) that the share of the states that the region names does not exceed. Dotted: "
        "its bound.",
        "drift/kl_cvar": "Mean KL(old‖new) of the states with the largest. Dotted: its bound.",
        "drift/ratio_variance": "Exact variance of the ratio under the old policy, χ²(new‖old), mean over the batch's "
        "states. Dotted: its aim.",
        "drift/kl_reverse": "KL(new‖old) after the whole update, mean over the batch's states.",
        "drift/kl_next": "KL(old‖new) on the states that the new policy visits, in the next rollout. Dotted: the bound "
        "for it, where there is one.",
        "drift/kl_total": "KL(old‖new) across the update and the change of observation statistics after it.",
        "drift/states_over_target": "Share of the batch's states whose own KL is above the target or bound, or above "
        "0.01 nats where there is none.",
        "drift/kl_initial": "KL(first policy‖new) on states of the first batch: how far it went.",
        "drift/kl_sum": "Sum of the measured KL of all updates so far.",
        "drift/path_length": "Sum of √(2 KL), a mean over states, over the updates so far.",
        "drift/straightness": "Distance √(2 KL) of the path's ends over its length: 1 is a straight path, 0 a circle.",
        "train/entropy": "Mean entropy of the policy after the update.",
    },
    "step": {
        "train/clip_fraction": "Share of samples with |ratio − 1| above the clip range (0.2 where nothing clips).",
        "train/line_search_scale": "Share of the natural-gradient step that was taken; 0: rejected, the policy did not "
        "move.",
        "train/cg_residual": "What conjugate gradient left of the gradient, damping included.",
        "train/backtrack_scale": "Share of the update's way that was kept where the policy went back after its last "
        "epoch; 1: after that it did not go back.",
        "train/kl_penalty": "Weight of the KL penalty during the update.",
        "train/actor_learning_rate": "Adam's step size for the policy.",
        "train/policy_epochs": "Epochs in which the policy still moved.",
        "train/explained_variance": "1 − Var(target − V) / Var(target) of the critic before the update; 1: a perfect "
        "critic.",
    },
}
_TARGETS = {**TARGETS, "drift/kl_next": "drift/kl_next_target"}
"""Bounds by the column that they are for."""
CHARTS = (
    *(
        Chart(column=column, section=section, about=about, target=_TARGETS.get(column))
        for section, abouts in _ABOUT.items()
        for column, about in abouts.items()
    ),
    Chart(
        column="rollout/ep_rew_mean",
        section="cost",
        x="spent",
        about="What the policy's way has bought: return over the KL of all updates before the rollout.",
    ),
    Chart(
        column="eval/mean_reward",
        section="cost",
        x="spent",
        about="What the policy's way has bought: return over the KL of all updates so far.",
    ),
)
"""Charts in their order."""


def charts_of(runs: Sequence[LoggedRun]) -> list[Chart]:
    """Return the charts for which at least one run has a number."""
    return [chart for chart in CHARTS if any(_has(run, chart) for run in runs)]


def _has(run: LoggedRun, chart: Chart) -> bool:
    needed = [chart.column, *(["drift/kl"] if chart.x == "spent" else [])]
    return all((run.column(name) == run.column(name)).any() for name in needed)
