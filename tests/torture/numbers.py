"""R4: numbers that are none, from environments and from the policy: named and refused, and what was learned is kept."""

from __future__ import annotations

import itertools
import re
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from klrl.run import checkpoint
from torture.case import Case, Outcome
from torture.poisoned import ELEMENT, EPISODE, FIELDS, INDEX, N_ENVS, PLACES, RECORD, VALUES, name
from torture.poisoned import STEPS as PLACED
from torture.processes import Ended, Forks
from torture.runs import STEPS, Run, resumption, saved
from torture.states import difference, saved_parts

_AGENTS, _MODES = ("ppo", "trpo"), ("sync", "async")
_NONE, _TOO_LARGE = ("nan", "inf", "minus-inf"), ("huge", "largest")
_POISONED_AT = 3 * STEPS
"""Steps after which a parameter of the policy is none."""
_DUMPED = {"observation": "next_observation", "final observation": "final_observation"}
"""Names in ``non-finite.npz``, where they are not the field's."""
_LEARNED = ("actor.", "critic.", "optimizer.", "normalizer.", "return_scaler.")
_LOSS, _REST = r"(gradient of \S+, element \[[\d, ]+\], is \S+|returns)", ".*; allowed: finite numbers"
"""What the line says where numbers are too large to learn from."""


def cases(seed: int) -> list[Case]:
    """Three values in every field, for every agent and engine; and rewards that are too large to learn from."""
    del seed  # nothing here is random
    fields = [
        Case(
            "R4",
            f"{field}, {agent}, {mode}",
            _of(field, _NONE, _run(agent, mode)),
            quick=(field, agent, mode) == ("reward", "ppo", "sync"),
        )
        for field, agent, mode in itertools.product((*FIELDS, "action"), _AGENTS, _MODES)
    ]
    large = [
        Case("R4", f"rewards too large, {agent}", _of("reward", _TOO_LARGE, _run(agent, "sync", "--no-scale-rewards")))
        for agent in _AGENTS
    ]
    return [*fields, *large]


def _run(agent: str, mode: str, *more: str) -> Run:
    return Run(agent, name(), mode, updates=6, every=2, more=("--keep-checkpoints", "99", *more))


def _of(field: str, values: tuple[str, ...], run: Run) -> Callable[[Path], Outcome]:
    """One run without poison, and one with each value."""

    def case(scratch: Path) -> Outcome:
        problems = []
        forks = Forks(scratch)
        clean = forks.run(["klrl", *replace(run, every=1).words(scratch / "clean")])
        assert clean.code == 0, f"without poison it ended with {clean.code}: {clean.err[-300:]}"
        for value in values:
            (scratch / RECORD).unlink()
            problems += [f"{value}: {problem}" for problem in _Poisoned(run, field, value, scratch).problems(forks)]
        return Outcome(problems, len(values))

    return case


@dataclass(frozen=True)
class _Poisoned:
    """A run that ends, and ends in the same way when it is resumed."""

    run: Run
    field: str
    value: str
    scratch: Path

    def problems(self, forks: Forks) -> Iterator[str]:
        """What is wrong with it."""
        job, run = ["klrl"], self.run
        if self.field == "action":
            job = ["poison-policy", f"{VALUES[self.value]}", f"{_POISONED_AT}"]
        else:
            run = replace(run, env=name(self.field, self.value))
        first = forks.run([*job, *run.words(self._run_dir)])
        where, steps = self._where()
        again = forks.run([*job, *resumption(run, self._run_dir)])
        whole = steps // STEPS
        line = re.escape(where) if self.value in _NONE else f"{_LOSS} in update {whole} at {whole * STEPS} steps{_REST}"
        yield from _ends(first, f"klrl train {run.agent}: {line}")
        yield from _ends(again, f"klrl resume: {line}")
        if first.err.partition(": ")[2] != again.err.partition(": ")[2]:
            yield f"said {first.err!r}, and resumed {again.err!r}"
        yield from self._kept(whole * STEPS)
        if self.value in _NONE:
            yield from self._dumped()

    @property
    def _run_dir(self) -> Path:
        return self.scratch / self.value

    def _where(self) -> tuple[str, int]:
        """What the line must say, and the steps of all environments before, as they have recorded them."""
        index = 0 if self.field == "action" else INDEX  # all get actions from the same policy
        words = [line.split() for line in (self.scratch / RECORD).read_text().splitlines()]
        seeded = [(int(seed), int(step)) for _, seed, step in words if seed != "None"]  # the trial resets without, too
        mine = [(seed, step) for seed, step in seeded if PLACES.get(seed, (-1, 0))[0] == index]
        if self.field != "action" and self.value in _NONE:  # it is found when the rollout is over
            last = np.inf if self.field == "final observation" else max(PLACED[self.value], self.field == "reward")
            until = [i for i, (seed, step) in enumerate(mine) if PLACES[seed] == (INDEX, EPISODE) and step <= last]
            mine = mine[: until[-1] + 1]
        seed, step = mine[-1]
        taken = sum(step > 0 for _, step in mine) - (self.field != "action")
        step += self.field == "action"  # which was not executed any more
        episode = len({seed for seed, _ in mine}) - 1
        assert PLACES[seed] == (index, episode)
        element = "" if self.field == "reward" else f", element [{ELEMENT}],"
        return (
            f"{self.field} of environment {index}{element} is {VALUES[self.value]} in step {step} of its episode "
            f"{episode}, after {N_ENVS * taken} steps; allowed: finite numbers; the step is in "
            f"{self._run_dir / 'non-finite.npz'}"
        ), N_ENVS * taken

    def _kept(self, steps: int) -> Iterator[str]:
        """The last whole update, as it is without poison."""
        if saved(self._run_dir) != steps:
            yield f"the newest checkpoint has {saved(self._run_dir)} steps, not {steps}"
        tensors = checkpoint.read(self._run_dir)[0]
        if bad := [key for key, x in tensors.items() if key.startswith(_LEARNED) and not x.isfinite().all()]:
            yield f"saved, but not finite: {', '.join(bad)}"
        without = saved_parts(checkpoint.step_directory(self.scratch / "clean", steps))
        if differs := difference(saved_parts(self._run_dir) | {"state env": without["state env"]}, without):
            yield f"the newest checkpoint is not that of a run without poison: {differs}"

    def _dumped(self) -> Iterator[str]:
        """The step, with the value in its place and nothing else that is none."""
        with zipfile.ZipFile(self._run_dir / "non-finite.npz") as file:
            step = {key.removesuffix(".npy"): np.lib.format.read_array(file.open(key)) for key in file.namelist()}
        key = _DUMPED.get(self.field, self.field)
        if not {"observation", "action", key} <= step.keys():
            yield f"non-finite.npz has only {', '.join(step)}"
            return
        if step["environment"] != (0 if self.field == "action" else INDEX):
            yield f"non-finite.npz is about environment {step['environment']}"
        row = 0 if self.field in ("action", "final observation") else INDEX
        there = step[key][row] if self.field == "reward" else step[key][row, ELEMENT]
        if not np.array_equal(there, VALUES[self.value], equal_nan=True):
            yield f"non-finite.npz has {there} in {key}"


def _ends(ended: Ended, line: str) -> Iterator[str]:
    """With exit status 1 and one line."""
    if ended.code != 1 or not re.fullmatch(f"{line}\n", ended.err):
        yield f"ended with {ended.code}: {ended.err[-500:]!r}, not {line}"
