"""The KL asked for and the KL measured, for every action space: ``klrl benchmark asked``."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from klrl.output import as_program
from klrl.scripts.benchmarks.learning import Task, benchmark
from klrl.scripts.benchmarks.spaces import five_levels, two_pushers
from klrl.scripts.cli.command_line import parse
from klrl.validation import NonNegativeInt, PositiveInt

_STEPS = 50_000
ASKED = tuple(
    Task(agent, env, _STEPS, space=space, wrap=wrap, settings={"trust_region": "constraint", "target_kl": 0.01})
    for agent in ("ppo", "trpo")
    for env, space, wrap in (
        ("InvertedPendulum-v5", "Box(1)", None),
        ("Hopper-v4", "Box(3)", None),
        ("HalfCheetah-v4", "Box(6)", None),
        ("Humanoid-v4", "Box(17)", None),
        ("CartPole-v1", "Discrete(2)", None),
        ("HalfCheetah-v4", "MultiDiscrete([5] * 6)", five_levels),
        ("InvertedPendulum-v5", "MultiBinary(2)", two_pushers),
    )
)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Train PPO and TRPO under a constraint of 0.01 nats in spaces of every kind and size; JSON and a table."""

    seeds: tuple[NonNegativeInt, ...] = (0, 1, 2)
    """Run seeds."""
    spaces: tuple[str, ...] = tuple(dict.fromkeys(task.space for task in ASKED))
    """Names of action spaces; by default all."""
    processes: PositiveInt = 2
    """Runs at a time, one torch thread each."""
    output: Path = Path("asked.json")
    """File for the measurements (JSON)."""
    peers: bool = False
    """Train other libraries beside klrl, too (klrl benchmark asked --peers --help lists the options)."""


def main(argv: list[str] | None = None) -> None:
    """Run ``klrl benchmark asked``."""
    words = sys.argv[1:] if argv is None else argv
    if "--peers" in words:
        from klrl.scripts.benchmarks import asked_peers

        asked_peers.main(words)
        return
    args = parse(Asked, words, "klrl benchmark asked")
    benchmark("asked", words, ASKED, "space", args.spaces, args.seeds, args.processes, args.output)


if __name__ == "__main__":
    as_program(main)
