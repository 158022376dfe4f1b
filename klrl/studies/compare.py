"""Runs of a comparison: those not finished yet are trained; a table of all, a CSV and a JSON."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path

from klrl.agents.names import agent_class
from klrl.studies.comparison import Comparison
from klrl.studies.parallel import in_parallel
from klrl.studies.report import write_csv
from klrl.studies.results import Row, claim, save
from klrl.studies.trials import FAILED, Trial, run

Say = Callable[[str], object]


class Runs:
    """The runs of a comparison, in the order of its table, and the directory that keeps them.

    Runs finished by an earlier call are reused, unless their settings, steps or versions have changed.

    Args:
        plan: the variants.
        steps: number of training steps by environment id.
        seeds: seeds of every variant.
        output: directory of ``compare.csv``, ``compare.json`` and ``runs/``, with a file per run.
        say: prints a line about runs that are left out, taken from an earlier call, or have ended.

    Raises:
        ValueError: a setting does not fit the others or the environment.
        OSError: a file cannot be read or written.
    """

    def __init__(
        self, plan: Comparison, steps: Mapping[str, int], seeds: Sequence[int], output: str | Path, say: Say = print
    ) -> None:
        output = Path(output)
        self.trials = trials_of(plan, steps, seeds, say)
        self.folder = output / "runs"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lines, self._record = output / "compare.csv", output / "compare.json"
        for file in (self._lines, self._record):
            claim(file)
        self._kept, self._say = kept_rows(self.trials, self.folder, say), say

    def __repr__(self) -> str:
        return f"<{len(self.trials)} runs in {self.folder}, {len(self._kept)} of them finished before>"

    def finish(self, command: str = "", processes: int = 2) -> list[Row]:
        """Train the runs that are not finished, ``processes`` at a time; write and return a row for each run.

        Args:
            command: command line, for the JSON.
            processes: number of runs at a time, one torch thread each.
        """
        left = [trial for trial in self.trials if trial.name not in self._kept]
        rows = self._kept | run_all(left, self.folder, processes, self._say)
        ordered = [{k: v for k, v in rows[trial.name].items() if k != "versions"} for trial in self.trials]
        write_csv(ordered, self._lines)
        save(command, ordered, self._record)
        return ordered


def trials_of(plan: Comparison, steps: Mapping[str, int], seeds: Sequence[int], say: Say) -> list[Trial]:
    """Return every run, in the order of the table; each configuration is checked against its environment first.

    If all possible values were asked for, a line names each that does not fit an environment.

    Raises:
        ValueError: a setting does not fit the others or the environment.
    """
    trials = []
    for env, total_timesteps in steps.items():
        for variant in plan.variants:
            try:
                config = plan.config(variant, env)
                agent_class(variant.agent)(env, config).close()
            except ValueError as error:
                if not plan.every:
                    raise ValueError(f"{env}, {variant.name}: {error}") from error
                say(f"left out: {env}, {variant.name}: {error}")
                continue
            names = {"env": env, "variant": variant.name, "agent": variant.agent}
            trials += [Trial(**names, seed=seed, total_timesteps=total_timesteps, config=config) for seed in seeds]
    return trials


def kept_rows(trials: Sequence[Trial], folder: Path, say: Say) -> dict[str, Row]:
    """Return finished runs of earlier calls by name, and report those that differ by now or are not klrl's.

    Raises:
        OSError: a file cannot be read, or not be replaced.
    """
    rows = {}
    for trial in trials:
        try:
            row = trial.kept(folder)
        except ValueError as error:
            say(f"{trial.name}: run again, {error}")
            continue
        if row is None:
            continue
        if changed := trial.differences(row):
            say(f"{trial.name}: run again, the finished run differs in {', '.join(changed)}")
        else:
            rows[trial.name] = row
    if rows:
        say(f"{len(rows)} of {len(trials)} runs are finished already")
    return rows


def run_all(trials: Sequence[Trial], folder: Path, processes: int, say: Say) -> dict[str, Row]:
    """Run the longest first, with a line for each that ends, and return rows by name."""
    rows: dict[str, Row] = {}
    jobs = sorted(trials, key=lambda trial: -trial.total_timesteps)
    started, left = time.monotonic(), sum(trial.total_timesteps for trial in trials)
    done = 0
    with contextlib.closing(in_parallel(run, [(trial, folder) for trial in jobs], processes)) as results:
        for row in results:
            name = f"{row['env']} {row['variant']} seed {row['seed']}"
            rows[name] = row
            done, left = done + row["total_timesteps"], left - row["total_timesteps"]
            seconds = (time.monotonic() - started) * left / done
            say(f"{len(rows)}/{len(jobs)}  {name}: {_said(row)}, {timedelta(seconds=round(seconds))} left")
    return rows


def _said(row: Row) -> str:
    if row["status"] == FAILED:
        return f"failed, {row['error']}"
    kl = f"KL mean {row['kl_mean']:.4f} largest {row['kl_largest']:.4f}"
    return f"return {row['mean_return']:.1f}, {kl}, {row['steps_per_second']:,.0f} steps/s"
