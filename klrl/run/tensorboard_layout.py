"""Words to TensorBoard beside the numbers: which of them belong in one chart, and the run's settings.

The charts stand under Custom Scalars, the settings under HParams and in the list of runs. Both go into every event file
of a run, where TensorBoard takes the newest; charts that are the same in all runs are shown once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tensorboard.compat.proto.summary_pb2 import Summary

CHARTS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "Drift": {
        "KL of every update, nats: measured, its target, 95 % quantile and largest over states": (
            "drift/kl", "drift/kl_target", "drift/kl_p95", "drift/kl_max",
        ),
        "KL of the states that move farthest, nats: what a region bounds of them": (
            "drift/kl_quantile", "drift/kl_quantile_bound", "drift/kl_cvar", "drift/kl_cvar_bound",
            "drift/kl_max_bound",
        ),
        "The same on the states that the new policy visits, and the bound for that": (
            "drift/kl_next", "drift/kl_next_target",
        ),
        "Where the policy went, nats: KL spent, and from the first policy": ("drift/kl_sum", "drift/kl_initial"),
        "How far it went: length of the path, square root of nats": ("drift/path_length",),
        "How straight: distance of the ends over length": ("drift/straightness",),
    },
    "Return": {
        "Return of training and of evaluation": ("rollout/ep_rew_mean", "eval/mean_reward"),
    },
    "Step": {
        "What the step did: shares, residual of conjugate gradient, penalty coefficient": (
            "train/clip_fraction", "train/line_search_scale", "train/backtrack_scale", "train/cg_residual",
            "drift/states_over_target", "train/kl_penalty",
        ),
    },
}  # fmt: skip
"""Metrics of each chart, by category and title. Other charts under the same title would stand beside older runs'."""


def layout() -> Summary:
    """Return the charts of Custom Scalars."""
    from torch.utils.tensorboard.summary import custom_scalars

    exactly = {
        category: {name: ["Multiline", [f"^{re.escape(tag)}$" for tag in tags]] for name, tags in charts.items()}
        for category, charts in CHARTS.items()
    }
    return custom_scalars(exactly)


def session(settings: Mapping[str, bool | float | str]) -> Summary:
    """Return the settings of a run for HParams."""
    from torch.utils.tensorboard.summary import hparams

    return hparams(dict(settings), {})[1]
