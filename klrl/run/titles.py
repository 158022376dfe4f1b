"""Titles and units of the metrics that charts show: the one table for reports, figures and notebooks."""

from __future__ import annotations

from collections.abc import Mapping

TITLES: Mapping[str, tuple[str, str]] = {
    "rollout/ep_rew_mean": ("Return in training", "return, reward"),
    "eval/mean_reward": ("Return in evaluation", "return, reward"),
    "rollout/ep_len_mean": ("Length of episodes", "length, steps"),
    "eval/mean_ep_length": ("Length of episodes in evaluation", "length, steps"),
    "rollout/success_rate": ("Success in training", "share of episodes"),
    "eval/success_rate": ("Success in evaluation", "share of episodes"),
    "drift/kl": ("Measured KL of every update", "KL, nats"),
    "drift/kl_p95": ("95 % quantile over states", "KL, nats"),
    "drift/kl_max": ("Largest over states", "KL, nats"),
    "drift/kl_quantile": ("Bounded quantile over states", "KL, nats"),
    "drift/kl_cvar": ("Mean of the tail of states", "KL, nats"),
    "drift/ratio_variance": ("Variance of the ratio", "χ²(new‖old)"),
    "drift/kl_reverse": ("Reverse KL", "KL, nats"),
    "drift/kl_next": ("On the next states", "KL, nats"),
    "drift/kl_total": ("With the change of statistics", "KL, nats"),
    "drift/states": ("States measured once more", "states"),
    "drift/states_over_target": ("States over the target", "share of states"),
    "drift/kl_initial": ("From the first policy", "KL, nats"),
    "drift/kl_sum": ("KL spent", "KL, nats"),
    "drift/path_length": ("Length of the path", "length, √nats"),
    "drift/straightness": ("Straightness of the path", "distance / length"),
    "train/entropy": ("Entropy", "entropy, nats"),
    "train/clip_fraction": ("Clipped samples", "share of samples"),
    "train/line_search_scale": ("Line search", "share of the full step"),
    "train/cg_residual": ("Residual of conjugate gradient", "‖g − F x‖ / ‖g‖"),
    "train/backtrack_scale": ("Backtracking", "share of the way"),
    "train/kl_penalty": ("Penalty coefficient", "β"),
    "train/actor_learning_rate": ("Learning rate of the actor", "step size"),
    "train/policy_epochs": ("Epochs of the policy", "epochs"),
    "train/explained_variance": ("Explained variance", "share of variance"),
}
"""Metric -> title, and what stands at the axis with its unit."""


def title(metric: str) -> str:
    """Return the title of a metric: its name, if it is not one of klrl's."""
    return TITLES.get(metric, (metric, metric))[0]


def unit(metric: str) -> str:
    """Return what stands at the axis of a metric: its name, if it is not one of klrl's."""
    return TITLES.get(metric, (metric, metric))[1]
