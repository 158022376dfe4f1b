"""Every action space learns, and its KL is the one asked for: ``klrl benchmark spaces``."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from klrl.output import as_program
from klrl.scripts.benchmarks.learning import Task, benchmark
from klrl.scripts.cli.command_line import parse
from klrl.validation import NonNegativeInt, PositiveInt


def from_one(env: gym.Env) -> gym.Env:
    """Wrap Discrete actions to count from 1."""
    space = env.action_space
    assert isinstance(space, gym.spaces.Discrete)
    return gym.wrappers.TransformAction(env, _minus_one, gym.spaces.Discrete(int(space.n), start=1))


def _minus_one(action: np.integer) -> int:
    return int(action) - 1


def five_levels(env: gym.Env) -> gym.Env:
    """Wrap a Box into five levels per dimension: MultiDiscrete."""
    return gym.wrappers.DiscretizeAction(env, 5, multidiscrete=True)


def two_pushers(env: gym.Env) -> gym.Env:
    """Wrap a cart to have one engine on either side, on or off: MultiBinary(2)."""
    return gym.wrappers.TransformAction(env, _push, gym.spaces.MultiBinary(2))


def _push(bits: np.ndarray) -> np.ndarray:
    left, right = bits.astype(np.float32)
    return np.array([3.0 * (right - left)], np.float32)


def _tasks(agent: str) -> tuple[Task, ...]:
    """Return one real environment per action space and kind of policy; PPO is given a bound, too."""
    bound: dict[str, Any] = {"trust_region": "clip+constraint", "target_kl": 0.02} if agent == "ppo" else {}
    heads: dict[str, dict[str, Any]] = {
        "state-dependent std": {"state_dependent_std": True},
        "squashed Gaussian": {"action_distribution": "squashed-gaussian"},
        "beta": {"action_distribution": "beta"},
    }
    tasks = (
        Task(agent, "CartPole-v1", 50_000, 475.0, space="Discrete(2, start=1)", wrap=from_one),
        Task(agent, "Taxi-v4", 300_000, 7.0, space="masked Discrete(6)", settings={"action_mask": "info"}),
        Task(agent, "HalfCheetah-v4", 300_000, 1000.0, space="MultiDiscrete([5] * 6)", wrap=five_levels),
        Task(agent, "InvertedPendulum-v5", 100_000, 950.0, space="MultiBinary(2)", wrap=two_pushers),
        Task(agent, "Pendulum-v1", 100_000, -200.0, space="Box(1), Gaussian"),
        *(
            Task(agent, "Pendulum-v1", 200_000, -200.0, space=f"Box(1), {name}", settings=settings)
            for name, settings in heads.items()
        ),
    )
    return tuple(replace(task, settings={**bound, **task.settings}) for task in tasks)


SPACES = (*_tasks("ppo"), *_tasks("trpo"))


@dataclass(frozen=True, kw_only=True)
class Spaces:
    """Train PPO and TRPO in every action space, evaluate deterministically over 20 episodes, write JSON and a table."""

    seeds: tuple[NonNegativeInt, ...] = (0, 1, 2)
    """Run seeds."""
    spaces: tuple[str, ...] = tuple(dict.fromkeys(task.space for task in SPACES))
    """Names of action spaces; by default all."""
    processes: PositiveInt = 2
    """Runs at a time, one torch thread each."""
    output: Path = Path("spaces.json")
    """File for the measurements (JSON)."""


def main(argv: list[str] | None = None) -> None:
    """Run ``klrl benchmark spaces``."""
    words = sys.argv[1:] if argv is None else argv
    args = parse(Spaces, words, "klrl benchmark spaces")
    benchmark("spaces", words, SPACES, "space", args.spaces, args.seeds, args.processes, args.output)


if __name__ == "__main__":
    as_program(main)
