"""Trainings on one and more ranks, in environments of any weight: ``klrl benchmark ranks``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from klrl.output import as_program
from klrl.scripts.cli.command_line import bad_input, ended_early, fail, parse
from klrl.scripts.cli.terminal import PlainConsole
from klrl.validation import NonNegative, PositiveInt

PROG = "klrl benchmark ranks"


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """Train PPO on one and more ranks under torchrun, and write steps/s, the bound by Amdahl and the cost of gathering.

    Steps take some milliseconds more, without a processor, so that a few processors are no limit.
    """

    env: str = "CartPole-v1"
    """Gymnasium id."""
    pauses: tuple[NonNegative, ...] = (1.0, 10.0)
    """Milliseconds that a step takes more."""
    ranks: tuple[PositiveInt, ...] = (1, 2)
    """Numbers of ranks."""
    n_envs: PositiveInt = 16
    """Environments, over all ranks."""
    n_steps: PositiveInt = 64
    """Steps of each in an update."""
    updates: PositiveInt = 6
    """Updates, of which the first one does not count."""
    output: Path = Path("ranks.json")
    """File for the measurements (JSON)."""


def main(argv: list[str] | None = None) -> None:
    """Run ``klrl benchmark ranks``."""
    words = sys.argv[1:] if argv is None else argv
    args = parse(Ranks, words, PROG)
    from klrl.run.directory import versions
    from klrl.studies.results import save

    console, rows = PlainConsole(), []
    with bad_input(PROG):
        if not args.output.absolute().parent.is_dir():
            raise ValueError(f"output = {args.output}; allowed: a file in a folder that exists")
    with ended_early(PROG):
        for pause in args.pauses:
            for n in args.ranks:
                row = {"pause": pause, "ranks": n, **_measured(args, pause, n)}
                rows.append(row)
                console.print(
                    f"{pause:g} ms, {n} ranks: {row['step'] + row['wait'] + row['gather'] + row['update']:.3f} s"
                )
    facts = {"env": args.env, "n_envs": args.n_envs, "n_steps": args.n_steps, "cores": os.cpu_count()}
    save(" ".join([PROG, *words]), [facts | row for row in rows], args.output)
    console.print(f"written: {args.output} ({', '.join(f'{k} {v}' for k, v in versions().items())})")


def _measured(args: Ranks, pause: float, n: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="klrl-ranks-") as folder:
        output = Path(folder) / "row.json"
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", f"{n}"]
        what = [output, time.time(), args.env, pause / 1e3, args.n_envs, args.n_steps, args.updates]
        command = [*torchrun, "-m", "klrl.scripts.benchmarks.ranks_run", *map(str, what)]
        ended = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
        if ended.returncode:
            fail(PROG, f"{n} ranks failed: {ended.stderr[-500:]}", status=1)
        return dict(json.loads(output.read_text()))


def bound(one: dict[str, Any], n: int) -> float:
    """Return how many times as fast n ranks can be, by Amdahl, given the times of one: stepping alone is shared."""
    return float((one["step"] + one["update"]) / (one["step"] / n + one["update"]))


def speedups(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return every row with its steps/s, its speed-up over one rank, the bound, and the share of gathering."""
    found = []
    for row in rows:
        one = next(x for x in rows if x["pause"] == row["pause"] and x["ranks"] == 1)
        whole, before = (sum(x[name] for name in ("step", "wait", "gather", "update")) for x in (row, one))
        rollout = row["step"] + row["wait"] + row["gather"]
        found.append(
            row
            | {"fps": row["n_envs"] * row["n_steps"] / whole, "speedup": before / whole}
            | {"bound": bound(one, row["ranks"]), "share": row["gather"] / rollout}
        )
    return found


if __name__ == "__main__":
    as_program(main)
