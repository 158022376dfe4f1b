"""Studies: variants, environments and seeds, trained so that nothing is lost, each run in a directory of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, Self

from klrl.run.checkpoint import replace
from klrl.run.directory import versions
from klrl.studies import design_file
from klrl.studies.design import Design
from klrl.studies.engines import Engine, EngineName, make_engine
from klrl.studies.outcomes import DONE, FAILED, read_outcome
from klrl.studies.parallel import RETRIES
from klrl.studies.places import run_directory
from klrl.studies.report import table, write_csv
from klrl.studies.results import Row, claim, save
from klrl.studies.running import Running
from klrl.studies.trials import Trial, fitting, trials_of
from klrl.studies.watching import Progress, Status, Watch, status_of
from klrl.text import plain

RECORD, RUNS, CSV, JSON = "study.toml", "runs", "results.csv", "results.json"
"""Names in a study's directory: its record, the folder of its runs, its table in two forms."""
Say = Callable[[str], object]


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run of a study, as it is now."""

    env: str
    variant: str
    seed: int
    total_timesteps: int
    directory: Path
    """Run directory, as ``klrl train`` makes it; it is missing until the run is begun."""
    status: Status
    error: str | None
    """One line on why it failed."""
    final_return: float | None
    """Mean return of the evaluation after the training, once the run is done."""

    @property
    def name(self) -> str:
        """Name of the run in messages."""
        return f"{self.env} {self.variant} seed {self.seed}"


def quietly(line: str) -> None:
    """Say nothing."""


class Study:
    """A design and the directory of its runs; nothing is written, or trained, before :meth:`run`.

    ``OUTPUT/study.toml`` is the design, from which alone the study can be repeated; ``OUTPUT/runs/ENV/VARIANT/seed-N/``
    are run directories, with what became of each in ``seed-N.json`` beside it; ``OUTPUT/results.csv`` and
    ``results.json`` are the table. A study that is there already is gone on with; its design may have grown.

    Args:
        design: variants, environments and seeds.
        output: a new or empty directory, or that of this study.
        say: prints a line about each variant that is left out because it does not fit an environment.

    Raises:
        ValueError: the design contradicts itself or does not fit its environments, or the directory is another study's.
        OSError: the directory cannot be used.
    """

    def __init__(self, design: Design, output: str | Path, *, say: Say = quietly) -> None:
        design.check()
        self.design, self.output = fitting(design, say), Path(output)
        self._check_output()

    @classmethod
    def of(
        cls,
        output: str | Path,
        *,
        environments: Mapping[str, int],
        variants: Mapping[str, Mapping[str, Any]],
        seeds: Sequence[int] = (0, 1, 2),
        base: Mapping[str, Any] | None = None,
        presets: bool = True,
        run: Mapping[str, Any] | None = None,
    ) -> Self:
        """Make a study in Python.

        Args:
            output: its directory.
            environments: training steps by environment id.
            variants: by name, what each has in place of the base: ``agent``, ``trust_region``, any settings.
            seeds: seeds of every variant.
            base: ``agent`` ("ppo" by default) and settings of all variants.
            presets: whether known settings for an environment come before the base's.
            run: options that do not affect updates, as ``klrl train`` has them.

        Raises:
            ValueError: see the class.
            OSError: see the class.
        """
        data = {
            "environments": dict(environments),
            "variants": [{**changes, "name": name} for name, changes in variants.items()],
            "seeds": list(seeds),
            "base": dict(base or {}),
            "presets": presets,
            "run": dict(run or {}),
        }
        return cls(design_file.design_of(data), output)

    @classmethod
    def read(cls, design: str | Path, output: str | Path, *, say: Say = quietly) -> Self:
        """Make the study of a TOML file.

        Args:
            design: the file.
            output: directory of the study.
            say: as of the class.

        Raises:
            ValueError: see the class.
            OSError: see the class; there is no such file.
        """
        return cls(design_file.read(Path(design)), output, say=say)

    @classmethod
    def load(cls, output: str | Path) -> Self:
        """Return the study that is in a directory, to look at it or to go on with it.

        Raises:
            FileNotFoundError: there is none.
            ValueError: its record is damaged.
        """
        path = Path(output) / RECORD
        if not path.exists():
            raise FileNotFoundError(f"output = {output}: no {RECORD} there; allowed: the directory of a study")
        study = cls.__new__(cls)
        study.design, study.output = design_file.read(path), Path(output)
        return study

    def __repr__(self) -> str:
        runs = self.runs
        counts = {status: sum(run.status == status for run in runs) for status in ("done", "running", "failed")}
        return f"<Study in {self.output}: {len(runs)} runs, {', '.join(f'{n} {s}' for s, n in counts.items())}>"

    def run(
        self,
        engine: EngineName | Engine = "processes",
        *,
        processes: int = 2,
        retries: int = RETRIES,
        task: tuple[int, int] | None = None,
        command: str = "",
        say: Say = print,
        watch: Callable[[Progress], object] | None = None,
    ) -> list[Row]:
        """Train every run that is not done, from its newest checkpoint; write the table and return its rows.

        The smallest seed of everything comes first, so that a study on its way is a whole one of fewer seeds. Other
        processes, on any machine that shares the disk, may do the same at the same time: each run is one's. Runs that
        failed before this call are tried again.

        Args:
            engine: processes of this machine ("processes"), tasks of Ray ("ray": what is free of this machine), or an
                engine (:func:`make_engine`).
            processes: runs at a time with "processes"; a single one is made in this process.
            retries: how often a run whose process was killed goes on, without a new checkpoint in between.
            task: ``(i, n)`` to make the i-th of n parts of the runs only, from 1.
            command: command line, for the JSON.
            say: prints a line about runs done earlier, and about each that ends.
            watch: is told every second how far the study is.

        Raises:
            ValueError: an argument out of range, or the engine cannot be had; the line says how it can.
            OSError: something cannot be written.
        """
        first, step = task or (1, 1)
        if not 1 <= first <= step:
            raise ValueError(f"task = {first}/{step}; allowed: I/N with 1 <= I <= N")
        made = make_engine(engine, processes=processes, retries=retries) if isinstance(engine, str) else engine
        self.record()
        runs = self.output / RUNS
        how_far = Watch(self.trials, runs)
        Running(self.trials[first - 1 :: step], runs, made, retries, say, how_far, watch).finish()
        return self.save(command)

    @property
    def runs(self) -> list[Run]:
        """Every run as it is now, in the order of the table."""
        design = self.design
        cells = [(env, variant.name, seed) for env, variant in design.cells() for seed in design.seeds]
        return [_run(self.output, *cell, design.environments[cell[0]]) for cell in cells]

    @cached_property
    def trials(self) -> list[Trial]:
        """Runs with all that decides them, in the order of the table."""
        return trials_of(self.design)

    def rows(self) -> list[Row]:
        """Return a row of the table for every run, in its order; of those that are not done only who they are.

        Runs of other versions than these say so (``versions``).
        """
        return [self._row(trial) for trial in self.trials]

    def _row(self, trial: Trial) -> Row:
        directory = trial.directory(self.output / RUNS)
        status = status_of(directory)
        row = read_outcome(directory) if status in (DONE, FAILED) else None
        if row is None:
            return trial.identity() | {"status": status, "error": None}
        hidden = {"traceback", "versions"} if row["versions"] == versions() else {"traceback"}
        return {name: value for name, value in row.items() if name not in hidden}

    def table(self) -> str:
        """Return a Markdown table with a line per environment and variant, over the seeds that are done."""
        return table(self.rows())

    def report(self, file: str | Path) -> None:
        """Write the report: one HTML file that needs no network (extra ``report``).

        Raises:
            ValueError: the extra is not installed.
            OSError: the file cannot be written.
        """
        import_module("klrl.report").write([self.output], file)

    def save(self, command: str = "") -> list[Row]:
        """Write the table as CSV and JSON, and return its rows.

        Args:
            command: command line, for the JSON.

        Raises:
            OSError: a file cannot be written.
        """
        rows = self.rows()
        write_csv(rows, self.output / CSV)
        save(command, rows, self.output / JSON)
        return rows

    def record(self) -> None:
        """Make the directory and write the record, before anything else is in it.

        Raises:
            OSError: it cannot be written.
        """
        self.output.mkdir(parents=True, exist_ok=True)
        text = design_file.text(self.design).encode()
        path = self.output / RECORD
        if not path.exists() or path.read_bytes() != text:
            replace(path, text)
        (self.output / RUNS).mkdir(exist_ok=True)

    def _others(self) -> bool:
        """Tell whether anything but a study's record, whole or being written, stands in place of the directory."""
        if not self.output.is_dir():
            return self.output.exists()
        return not all(path.name.startswith(RECORD) for path in self.output.iterdir())

    def _check_output(self) -> None:
        """Refuse a directory with anything but this study in it.

        Raises:
            ValueError: another study, or another run in place of one of this.
            FileExistsError: something else.
        """
        trials, said, new = self.trials, f"output = {self.output}", "allowed: a new directory"
        others = self._others()  # looked for first: the same command may be writing its record at this moment
        if (self.output / RECORD).exists():
            mine = {trial.name: trial for trial in trials}
            for theirs in Study.load(self.output).trials:
                if theirs.name not in mine:
                    raise ValueError(f"{said} is another study's, with {theirs.name!r}; {new}")
                if (other := _differences(theirs, mine[theirs.name])) is not None:
                    raise ValueError(
                        f"{said} is another study's, with {theirs.name}: {other}; allowed: a new directory"
                    )
        elif (self.output / "compare.json").exists():
            raise FileExistsError(
                f"{said} has a comparison of an earlier klrl (compare.json); allowed: a new directory"
            )
        elif others:
            raise FileExistsError(f"{said} is not empty, and there is no {RECORD}; {new}")
        for file in (self.output / CSV, self.output / JSON):
            if file.is_dir():
                claim(file)
        for trial in trials:
            with contextlib.suppress(ValueError):  # found out again
                read_outcome(trial.directory(self.output / RUNS))
            if (other := trial.difference(self.output / RUNS)) is not None:
                raise ValueError(f"{said} has another run in place of {trial.name}: {other}; {new}")


def recorded_runs(output: Path) -> list[Run]:
    """Return the runs of the study in a directory by its record alone: no agent or trust region in it is imported.

    Raises:
        FileNotFoundError: there is no study.
        ValueError: its record is damaged.
    """
    return [_run(output, *cell) for cell in design_file.cells(output / RECORD)]


def _run(output: Path, env: str, variant: str, seed: int, total_timesteps: int) -> Run:
    directory = run_directory(output / RUNS, env, variant, seed)
    status = status_of(directory)
    row = read_outcome(directory) if status in (DONE, FAILED) else None
    return Run(
        env=env,
        variant=variant,
        seed=seed,
        total_timesteps=total_timesteps,
        directory=directory,
        status=status,
        error=row["error"] if row and status == FAILED else None,
        final_return=row["mean_return"] if row and status == DONE else None,
    )


def _differences(theirs: Trial, mine: Trial) -> str | None:
    """Return in what two runs of one name differ, or ``None``."""
    then, now = ({**asdict(trial.options), **_flat(trial.identity())} for trial in (theirs, mine))
    changed = [name for name in then | now if then.get(name) != now.get(name)]
    return ", ".join(f"{x} = {plain(then.get(x), 80)} and not {plain(now.get(x), 80)}" for x in changed) or None


def _flat(row: Row) -> Row:
    return {name: value for name, value in row.items() if name != "config"} | row["config"]
