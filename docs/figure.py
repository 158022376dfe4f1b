"""Trains TRPO on CartPole-v1 with one seed and draws it: ``python docs/figure.py`` writes docs/_static/training.svg."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch

from klrl.agents import TRPO
from klrl.experience import Batch
from klrl.run import Callback
from klrl.run.callback import Metrics

mpl.use("svg")
from matplotlib import pyplot as plt

OUTPUT = Path(__file__).parent / "_static" / "training.svg"
RETURN, KL, TARGET = "#1f5fa8", "#1f5fa8", "#c2410c"


class Returns(Callback):
    """Keeps the return of every episode, by the step at which its update was done."""

    def __init__(self) -> None:
        self.points: list[tuple[int, float]] = []

    def on_update_end(self, agent: Any, batch: Batch, metrics: Metrics) -> None:
        """Note the episodes that ended in the batch."""
        self.points += [(agent.num_timesteps, episode.episode_return) for episode in batch.episodes]


def main() -> None:
    """Train, and draw the returns and the measured KL of every update."""
    torch.set_num_threads(1)
    returns = Returns()
    agent = TRPO("CartPole-v1", seed=0).learn(50_000, returns)
    steps = [float(row["time/total_timesteps"]) for row in agent.history]
    kl, target = [float(row["drift/kl"]) for row in agent.history], float(agent.history[-1]["drift/kl_target"])
    plt.rcParams.update({"svg.hashsalt": "klrl", "font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
    figure, (above, below) = plt.subplots(2, 1, figsize=(7.2, 4.6), sharex=True, layout="constrained")
    above.scatter(*zip(*returns.points, strict=True), s=7, color="#b8cbe2", label="every episode")
    above.plot(
        steps, [float(row["rollout/ep_rew_mean"]) for row in agent.history], color=RETURN, label="mean of the last 100"
    )
    above.set_ylabel("return")
    above.legend(frameon=False, loc="lower right", fontsize=10)
    below.axhline(target, color=TARGET, linewidth=1.2)
    below.annotate("target_kl, the bound", (steps[0], target), (0, 5), textcoords="offset points", color=TARGET)
    below.bar(steps, kl, width=0.6 * steps[0], color=KL)
    below.set_ylim(0.0, 1.3 * target)
    below.set_ylabel("measured KL(old‖new)\nof each update, nats")
    below.set_xlabel("environment steps")
    above.set_title("TRPO on CartPole-v1, seed 0", loc="left", fontsize=11)
    figure.savefig(OUTPUT, metadata={"Date": None}, facecolor="white")
    inside = sum(x <= target for x in kl)
    print(f"written: {OUTPUT}; {inside} of {len(steps)} updates at most {target:g} nats")


if __name__ == "__main__":
    main()
