"""R2: processes that only save, killed at random moments."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import torch

from klrl.run import checkpoint
from torture.case import Case, Outcome
from torture.processes import start_child

_KILLS = 5
"""In one case; there are twenty of them."""


def cases(seed: int) -> list[Case]:
    """A hundred kills."""
    return [
        Case("R2", f"saving without end, {_KILLS} kills, part {i}", _case(f"{seed} R2 {i}"), quick=i == 0)
        for i in range(20)
    ]


def _case(seed: str) -> Any:
    def run(scratch: Path) -> Outcome:
        g, saved = random.Random(seed), scratch / "saved"
        problems: list[str] = []
        inside = 0
        for kill in range(_KILLS):
            last = _save_and_die(scratch, saved, g.uniform(0.0, 0.2))
            inside += len(list(saved.iterdir())) != 3
            problems += [f"kill {kill}: {problem}" for problem in _problems(saved, last)]
        return Outcome(problems, trials=_KILLS, facts={"kills": _KILLS, "inside a write": inside})

    return run


def _save_and_die(scratch: Path, saved: Path, seconds: float) -> int:
    """The number of the last saved agent that a process reported before it was killed."""
    child = start_child(["save-for-ever", saved], scratch)
    child.until(lambda: child.out.count("\n") >= 3)
    time.sleep(seconds)
    return int(child.kill().out.splitlines()[-1])


def _problems(saved: Path, last: int) -> list[str]:
    """Whether the last one that was reported, or the one after it, is there; and nothing else after the next save."""
    try:
        tensors, state = checkpoint.read(saved)
    except (ValueError, OSError) as error:
        return [f"unreadable: {error}"]
    found = []
    if state["number"] not in (last, last + 1):
        found.append(f"number {state['number']} is there, {last} was reported")
    if tensors["x"][0] != state["number"]:
        found.append("tensors and JSON are of different agents")
    checkpoint.write(saved, {"x": torch.zeros(1)}, {"agent": "ppo", "number": -1})
    left = sorted(path.name for path in saved.iterdir())
    return [*found, f"left behind: {', '.join(left)}"] if len(left) != 3 else found
