"""Two trainings whose drift the chapter on updates shows: ``python -m klrl.scripts.explore.training``."""

from __future__ import annotations

import json
import math
from importlib.resources import files
from pathlib import Path
from typing import Any

ENV, STEPS, SEED, TARGET = "CartPole-v1", 50_000, 0, 0.01
FILE = "results/explore-drift.json"
"""File of their metrics, in the folder of the scripts."""
COMMAND = "python -m klrl.scripts.explore.training"
KEPT = ("drift/kl", "drift/kl_max", "drift/kl_initial", "drift/path_length", "drift/ratio_max", "rollout/ep_rew_mean")
"""Metrics of every update that are kept, with five digits."""


def kept() -> dict[str, Any]:
    """Return the kept file: command, versions, a row for each training."""
    return json.loads((files("klrl.scripts") / FILE).read_text(encoding="utf-8"))


def trained(steps: int = STEPS) -> list[dict[str, Any]]:
    """Train PPO with its clip and TRPO with its constraint, and return what was measured after every update."""
    import torch

    from klrl.agents import PPO, TRPO, TRPOConfig

    torch.set_num_threads(1)
    agents: dict[str, Any] = {
        "PPO, clip 0.2": PPO(ENV, seed=SEED),
        f"TRPO, KL at most {TARGET:g}": TRPO(ENV, TRPOConfig(target_kl=TARGET), seed=SEED),
    }
    return [_row(name, agent.learn(steps).history) for name, agent in agents.items()]


def _row(name: str, history: list[dict[str, Any]]) -> dict[str, Any]:
    columns = {key: [_short(row.get(key, math.nan)) for row in history] for key in ("time/total_timesteps", *KEPT)}
    return {"trained": name, "env": ENV, "seed": SEED, "metrics": columns}


def _short(x: float) -> float | None:
    return float(f"{x:.5g}") if math.isfinite(x) else None


def main() -> None:
    """Train both, and write the file."""
    from klrl.studies.results import save

    output = Path(str(files("klrl.scripts") / FILE))
    save(COMMAND, trained(), output)
    print(f"written: {FILE}")


if __name__ == "__main__":
    main()
