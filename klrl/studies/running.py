"""The way of a study to its end: runs are claimed, made, gone on with after a kill, and their outcomes kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

from klrl.run.checkpoint import MANIFEST
from klrl.run.directory import versions
from klrl.studies.claims import Claim, claim_file, recovered
from klrl.studies.engines import Engine
from klrl.studies.outcomes import DONE, FAILED, outcome_file, read_outcome, write_outcome
from klrl.studies.parallel import Ended
from klrl.studies.results import Row
from klrl.studies.trials import Trial
from klrl.studies.watching import Progress, Watch

_GLANCE = 1.0
"""Seconds between looks at how far the study is, and at claims of others."""


class Running:
    """Makes those of some runs that are not done and that nobody else has claimed, seed by seed, the longest first.

    Args:
        trials: the runs.
        runs: the folder of their directories.
        engine: makes them.
        retries: how often a run whose process was killed goes on, without a new checkpoint in between.
        say: prints a line.
        watch: how far the whole study is.
        tell: is told that every second.
    """

    def __init__(
        self,
        trials: Sequence[Trial],
        runs: Path,
        engine: Engine,
        retries: int,
        say: Callable[[str], object],
        watch: Watch,
        tell: Callable[[Progress], object] | None,
    ) -> None:
        self._directories = {trial.name: trial.directory(runs) for trial in trials}
        self._engine, self._retries, self._say = engine, retries, say
        self._watch, self._tell = watch, tell
        self._began = time.time()
        self._left = sorted(trials, key=lambda trial: (trial.seed, -trial.total_timesteps))
        self._claims = {trial.name: Claim(self._directories[trial.name]) for trial in trials}
        self._made: dict[str, Trial] = {}
        """Runs that the engine makes now."""
        self._deaths: dict[str, tuple[str, int]] = {}
        """The newest checkpoint at the last kill of a run, and the kills since it was written."""
        self._seen: dict[str, float] = {}
        """Time of the last sign of life that others gave for a run, at the first look."""
        self._ended = 0

    def finish(self) -> None:
        """Make the runs.

        Raises:
            OSError: an outcome cannot be written.
        """
        done = [trial for trial in self._left if self._is_over(trial)]
        if done:
            rows = {trial.name: read_outcome(self._directories[trial.name]) for trial in done}
            others = [name for name, row in rows.items() if row and row["versions"] != versions()]
            more = f", {len(others)} of them with other versions: {', '.join(others[:3])}" if others else ""
            self._say(f"{len(done)} of {len(self._left)} runs are done already{more}")
        self._left = [trial for trial in self._left if trial not in done]
        try:
            with self._engine:
                while self._go_on():
                    pass
        finally:
            for claim in self._claims.values():
                claim.release()
        for trial in self._left:
            self._say(f"{trial.name}: {self._claims[trial.name].owner or 'another process'} has it")

    def _go_on(self) -> bool:
        """Begin what can begin, take what has ended; return False once there is nothing left to wait for."""
        while self._engine.free and (trial := self._next()) is not None:
            claim = self._claims[trial.name]
            self._made[trial.name] = trial
            self._engine.start(trial, self._directories[trial.name], claim.token, claim.taken)
        if not self._engine.busy:
            if not any(self._may_expire(trial) for trial in self._left):
                return False
            time.sleep(_GLANCE)
        for ended in self._engine.wait(_GLANCE if self._tell or self._left else None):
            self._take(ended)
        if self._tell is not None:
            self._tell(self._watch.now())
        return True

    def _next(self) -> Trial | None:
        """Return the next run, claimed."""
        for trial in [*self._left]:
            if self._is_over(trial):
                self._left.remove(trial)
            elif self._claims[trial.name].take():
                self._left.remove(trial)
                if not self._is_over(trial):  # else another process has ended it just now
                    recovered(self._directories[trial.name])
                    return trial
                self._claims[trial.name].release()
        return None

    def _is_over(self, trial: Trial) -> bool:
        """Tell whether a run is done, or has failed since this call began."""
        directory = self._directories[trial.name]
        try:
            row = read_outcome(directory)
        except ValueError as error:
            self._say(f"{trial.name}: evaluated again, {error}")
            outcome_file(directory).unlink()
            return False
        if row is None or row["status"] == DONE:
            return row is not None
        return outcome_file(directory).stat().st_mtime > self._began

    def _may_expire(self, trial: Trial) -> bool:
        """Tell whether nobody has given a sign of life for another's run since the first look."""
        try:
            touched = claim_file(self._directories[trial.name]).stat().st_mtime
        except FileNotFoundError:
            return True
        return self._seen.setdefault(trial.name, touched) == touched

    def _take(self, ended: Ended) -> None:
        """Keep an outcome, or go on after a kill."""
        trial = self._made.pop(ended.key)
        directory = self._directories[trial.name]
        claim = self._claims[trial.name]
        if claim.lost:
            owner = claim.owner or "another process"
            self._say(f"{trial.name}: left to {owner}, which claimed it when this one gave no sign of life")
            return
        if ended.death is not None and self._lives_on(trial, ended.death):
            self._made[trial.name] = trial
            self._engine.start(trial, directory, claim.token, False)
            return
        row = ended.result if ended.death is None and ended.error is None else self._failed(trial, ended)
        write_outcome(directory, row)
        claim.release()
        self._ended += 1
        self._say(f"{self._ended}/{self._ended + len(self._made) + len(self._left)}  {trial.name}: {self._said(row)}")

    def _lives_on(self, trial: Trial, death: str) -> bool:
        """Tell whether a run whose process was killed is to go on."""
        checkpoints = self._directories[trial.name] / "checkpoints"
        newest = max((path.parent.name for path in checkpoints.glob(f"[0-9]*/{MANIFEST}")), default="none")
        before, deaths = self._deaths.get(trial.name, (newest, 0))
        deaths = deaths + 1 if newest == before else 1
        self._deaths[trial.name] = newest, deaths
        if deaths <= self._retries:
            self._say(f"{trial.name}: {death}; it goes on from its checkpoint ({newest.lstrip('0') or '0'})")
        return deaths <= self._retries

    def _failed(self, trial: Trial, ended: Ended) -> Row:
        if ended.error is not None:
            said = f"{type(ended.error).__name__}: {ended.error}"
        else:
            deaths = self._deaths[trial.name][1]
            said = f"{ended.death}, {deaths} times without a new checkpoint in between"
        return trial.identity() | {"versions": versions(), "status": FAILED, "error": said, "traceback": None}

    def _said(self, row: Row) -> str:
        """Return what to print about an outcome."""
        if row["status"] == FAILED:
            return f"failed, {row['error']}"
        left = self._watch.now().seconds_left
        kl = f"KL mean {row['kl_mean']:.4f} largest {row['kl_largest']:.4f}"
        speed = f"{row['steps_per_second']:,.0f} steps/s"
        return f"return {row['mean_return']:.1f}, {kl}, {speed}, {time_left(left)}"


def time_left(seconds: float) -> str:
    """Return a time in words.

    >>> time_left(3_700.2), time_left(float("inf"))
    ('1:01:40 left', 'time left unknown')
    """
    if seconds == float("inf"):
        return "time left unknown"
    return f"{timedelta(seconds=round(seconds))} left"
