"""R14: the same run, whoever runs it, wherever, with however many processes."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from torture.case import Case, Outcome
from torture.processes import start_klrl
from torture.runs import Run, Uninterrupted, succeed
from torture.states import difference, run_parts

_SEEDS = 5
_RUNS = (Run("ppo", "CartPole-v1", updates=20), Run("trpo", "Pendulum-v1", updates=20))
_WAYS = ("another PYTHONHASHSEED", "another directory, by a relative path", "async", "async, under load")

_QUICK = {("ppo", "another PYTHONHASHSEED"), ("trpo", "async")}


def cases(seed: int) -> list[Case]:
    """Every seed of every run in every way: 40."""
    whole = Uninterrupted()
    return [
        Case(
            "R14",
            f"{run.agent} {run.env} seed {s}: {way}",
            _again(replace(run, seed=s), way, f"{seed} R14 {run} {s} {way}", whole),
            quick=s == 0 and (run.agent, way) in _QUICK,
        )
        for run in _RUNS
        for s in range(_SEEDS)
        for way in _WAYS
    ]


def _again(run: Run, way: str, seed: str, whole: Uninterrupted) -> Callable[[Path], Outcome]:
    """The same bits, but for the name of the engine."""

    def case(scratch: Path) -> Outcome:
        g, there = random.Random(seed), scratch / "another directory" / "deep"
        there.mkdir(parents=True)
        environment: Mapping[str, str] = {"PYTHONHASHSEED": str(g.randrange(1, 2**32))} if "HASH" in way else {}
        mine = replace(run, mode="async") if "async" in way else run
        words = mine.words(Path("run"))
        others = [start_klrl(run.words(scratch / f"other {i}"), scratch) for i in range(2 * ("load" in way))]
        succeed(start_klrl(words, there, environment))
        for other in others:
            succeed(other)
        found, expected = run_parts(there / "run"), whole.parts(run, scratch)
        differs = difference(_but_for_the_engine(found), _but_for_the_engine(expected))
        return Outcome([differs] if differs else [])

    return case


def _but_for_the_engine(parts: dict[str, str]) -> dict[str, str]:
    """All parts but the settings, which name it."""
    return {name: x for name, x in parts.items() if name != "state config"}
