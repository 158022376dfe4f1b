"""R17: the clock of the machine jumps, in a run or before it goes on."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable
from pathlib import Path

from klrl.run.callback import STEP
from klrl.run.tensorboard_writer import points
from torture.case import Case
from torture.processes import Ended, start_child
from torture.runs import Run, at_row, resumption, succeed, written

_RUN = Run("ppo", "CartPole-v1", updates=12, every=3)
_HOUR, _DAY = 3600, 86_400
_LOOKS = 20
"""How often a run looks at the clock before it jumps."""


def cases(seed: int) -> list[Case]:
    """Forward and back, while a run goes on and while it waits to be resumed."""
    within = {"forward by an hour": _HOUR, "back by an hour": -_HOUR, "back by a day": -_DAY}
    between = {"back by an hour before it is resumed": [-_HOUR], "back before every second part": [-_HOUR, -_DAY]}
    return [
        *(Case("R17", name, _within(shift), quick=shift == -_DAY, timeout=300.0) for name, shift in within.items()),
        *(Case("R17", name, _between(shifts), timeout=300.0) for name, shifts in between.items()),
    ]


def _within(shift: int) -> Callable[[Path], str | None]:
    def case(scratch: Path) -> str | None:
        run_dir = scratch / "run"
        words = ["jump", str(shift), str(_LOOKS), *_RUN.words(run_dir)]
        return _wrong(run_dir, succeed(start_child(words, scratch)))

    return case


def _between(shifts: list[int]) -> Callable[[Path], str | None]:
    def case(scratch: Path) -> str | None:
        run_dir = scratch / "run"
        process = _RUN.start(scratch, run_dir)
        for i, shift in enumerate(shifts):
            process.until(at_row(run_dir, 4 + 3 * i))
            process.kill()
            process = start_child(["jump", str(shift), "0", *resumption(_RUN, run_dir)], scratch)
        return _wrong(run_dir, succeed(process))

    return case


def _wrong(run_dir: Path, ended: Ended) -> str | None:
    """What is wrong with the logs of a run: its speeds, its rows, what TensorBoard shows of them."""
    with (run_dir / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    if written(run_dir) != _RUN.updates:
        return f"{written(run_dir)} rows of {_RUN.updates} updates"
    if not all(0.0 < float(row["time/fps"]) < math.inf for row in rows):
        return "a speed is not positive"
    if late := re.search(r"-[\d:]+ left|-[\d,]+ steps/s", ended.out):
        return f"progress says {late[0]!r}"
    seen = {tag: [step for step, _ in values] for tag, values in points(run_dir).items()}
    for name in (name for name in rows[0] if name != "train/stop_reason"):
        steps = [int(float(row[STEP])) for row in rows if not math.isnan(float(row[name]))]
        if seen.get(name, []) != steps:
            return f"TensorBoard shows {name} at {seen.get(name)}, metrics.csv at {steps}"
    return None
