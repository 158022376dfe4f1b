"""Intermediate results of fitting an agent, so that the same command continues however it ended."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from klrl.agents import Agent, load_agent
from klrl.run import checkpoint
from klrl.run.callback import Metrics
from klrl.run.directory import versions
from klrl.text import plain, printable

EVERY = 10.0
"""Seconds between saves: work that is over sooner leaves only its result on the disk."""


def fingerprint(agent: Agent[Any]) -> str:
    """Return a digest of an agent's tensors, which identifies it wherever it is saved."""
    digest = hashlib.sha256()
    for name, x in sorted(agent.snapshot().tensors.items()):
        digest.update(f"{name} {tuple(x.shape)} ".encode() + x.contiguous().numpy().tobytes())
    return digest.hexdigest()


@dataclass
class Found:
    """Intermediate result of an earlier call of the same command."""

    agent: Agent[Any]
    state: dict[str, Tensor]
    """State of the remaining passes."""
    history: list[Metrics]


class Halfway:
    """A folder beside an agent's own: the agent after one of the last passes, and all that decides the others.

    Args:
        output: path of the finished agent.
        decided_by: everything that decides the result, as plain JSON; the work of other commands is not touched.
        network: what made the agent's networks, if they are of one's own.
    """

    def __init__(self, output: Path, decided_by: dict[str, Any], network: Any = None) -> None:
        self._network = network
        decided = json.dumps(decided_by | {"versions": versions()}, sort_keys=True)
        self._decided = hashlib.sha256(decided.encode()).hexdigest()
        self._parts = output.with_name(f"{output.name}.parts")
        self.folder = self._parts / self._decided[:16]
        self._kept: Path | None = None
        self._at = time.monotonic()

    def find(self) -> Found | None:
        """Return the newest good state, with a line about it and about each damaged one, or ``None``."""
        for path in sorted(self.folder.glob("[0-9]" * 9), reverse=True):
            try:
                tensors, state = checkpoint.read(path / "state")
                with checkpoint.as_damage(path):
                    history = json.loads(tensors.pop("history").numpy().tobytes())
                    if state["decided_by"] != self._decided or state["passes"] != len(history):
                        raise ValueError("it belongs to other work")
                found = Found(load_agent(path / "agent", network=self._network), tensors, history)
            except (ValueError, OSError) as error:
                print(f"left out: {plain(error)}")
                continue
            print(printable(f"going on after {len(history)} passes, from {path}"))
            self._kept = path
            return found
        return None

    def goes_on(self) -> str:
        """Return the end of a message: how to continue work that was ended from outside."""
        return "" if self._kept is None else f"; {self._kept} is kept, and the same command continues"

    def keep(self, agent: Agent[Any], state: dict[str, Tensor], history: list[Metrics], *, last: bool) -> None:
        """Write agent and state after a pass, if it is time; after the ``last`` one only if others were written."""
        if self._kept is None if last else time.monotonic() - self._at < EVERY:
            return
        path = self.folder / f"{len(history):09d}"
        path.mkdir(parents=True, exist_ok=True)
        agent.save(path / "agent")
        rows = torch.from_numpy(np.frombuffer(json.dumps(history).encode(), np.uint8).copy())
        said = {"decided_by": self._decided, "passes": len(history)}
        checkpoint.write(path / "state", {**state, "history": rows}, said)  # its manifest says that all is written
        if self._kept is not None and self._kept != path:
            shutil.rmtree(self._kept)
        self._kept, self._at = path, time.monotonic()

    def forget(self) -> None:
        """Remove the folder, once the result is written."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if self._parts.is_dir() and not any(self._parts.iterdir()):
            self._parts.rmdir()
