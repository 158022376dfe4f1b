"""Search over settings with Optuna: trials are run directories, and go on after whatever ended them."""

from __future__ import annotations

import inspect
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from klrl.run import Callback
from klrl.run.callback import Metrics
from klrl.run.lock import Lock
from klrl.studies.scored import POINTS, Curve, Score, scored_run
from klrl.studies.tuning import Tuning, shown
from klrl.text import allowed, one_line, plain

if TYPE_CHECKING:
    import optuna

BUDGET = "kl_budget"
"""Name of the constraint."""
RETRIES = 3
"""Number of times that a trial is taken over from a dead process without a new checkpoint in between."""
_LEFT_AT = "left_at"


class Tuner:
    """Trials of a search, in a directory and an Optuna study, by this process and any others with the same output.

    Every trial has a directory ``trials/NUMBER/``, with a run directory ``seed-SEED`` for each of its seeds. A process
    that dies leaves its trial to the next one, which goes on at the newest checkpoint.

    Args:
        design: what is searched.
        output: directory of the trials and, by default, the study, which is called as the directory.
        storage: an Optuna storage URL; by default SQLite in the output directory.
        sampler: name of a class in ``optuna.samplers``.
        pruner: name of a class in ``optuna.pruners``; by default MedianPruner, and none with two objectives.
        sampler_seed: seed of the sampler: one process then tries the same settings again.
        checkpoint_every: environment steps between checkpoints, by default a tenth of the training.
        say: prints a line about each trial.

    Raises:
        ValueError: an unknown sampler or pruner, a storage that cannot be used, another search in the same study, or no
            Optuna.
        OSError: nothing can be written there.
    """

    def __init__(
        self,
        design: Tuning,
        output: str | Path,
        *,
        storage: str | None = None,
        sampler: str = "TPESampler",
        pruner: str | None = None,
        sampler_seed: int = 0,
        checkpoint_every: int | None = None,
        say: Callable[[str], object] = print,
    ) -> None:
        check_optuna()
        from filelock import FileLock

        self.design, self.output, self._say = design, Path(output), say
        self._seed, self._every = sampler_seed, checkpoint_every
        self._sampler = _named("sampler", sampler)
        self._sampler_of(0)
        judge = _pruner(pruner, design)
        (self.output / "trials").mkdir(parents=True, exist_ok=True)
        self.turns = FileLock(self.output / "tune.lock")
        """Held while one process chooses its next trial or writes the results."""
        with self.turns, _quiet():
            self.study = _study(design, self.output, storage, judge)

    def __repr__(self) -> str:
        return f"<{len(self.study.get_trials(deepcopy=False))} trials in {self.output}>"

    def run(self, trials: int, callbacks: Sequence[Callback] = ()) -> None:
        """Train until the study has this many trials; first those that another process has left.

        Args:
            trials: number of trials of the whole study, failed and pruned ones included.
            callbacks: more callbacks of every training.

        Raises:
            OSError: a file cannot be read or written; the same call goes on with the trial.
        """
        torch.set_num_threads(1)
        while (turn := self._next(trials)) is not None:
            try:
                with _quiet():
                    self._finish(turn, callbacks)
            except (KeyboardInterrupt, OSError):  # nothing that the trial is to blame for
                turn.trial.set_user_attr(_LEFT_AT, [])
                raise
            finally:
                turn.lock.release()

    def counts(self) -> dict[str, int]:
        """Return the number of trials by state: complete, pruned, fail, running (in another process), waiting."""
        return dict(Counter(trial.state.name.lower() for trial in self.study.get_trials(deepcopy=False)))

    # -- whose turn it is -----------------------------------------------------------------------

    def _next(self, trials: int) -> Turn | None:
        """Return a trial that no process works on, or a new one, or ``None`` if there are enough."""
        from optuna.trial import Trial, TrialState

        with self.turns, _quiet():
            known = self.study.get_trials(deepcopy=False)
            for left in known:
                if left.state != TrialState.RUNNING or (lock := self._free(left.number)) is None:
                    continue
                left = self.study.get_trials(deepcopy=False)[left.number]
                if left.state != TrialState.RUNNING:  # its process ended it before it let go of the lock
                    lock.release()
                    continue
                trial = Trial(self.study, left._trial_id)
                if self._keeps_dying(trial):
                    lock.release()
                    continue
                self._say(f"trial {left.number} goes on")
                self.study.sampler = self._sampler_of(left.number)
                return Turn(trial, self.design.suggest(trial), lock, frozenset(left.intermediate_values))
            if len(known) >= trials:
                return None
            self.study.sampler = self._sampler_of(len(known))
            trial = self.study.ask()
            lock = self._free(trial.number)
            assert lock is not None
            return Turn(trial, self.design.suggest(trial), lock)

    def _keeps_dying(self, trial: optuna.Trial) -> bool:
        """Fail a trial if its processes died too often without a new checkpoint in between."""
        from optuna.trial import TrialState

        path = self._directory(trial.number)
        newest = max((step.name for step in path.glob("seed-*/checkpoints/[0-9]*")), default="")
        here = f"{len([*path.glob('seed-*.json')])} seeds done, checkpoint {newest}"
        left_at = [*(there for there in trial.user_attrs.get(_LEFT_AT, []) if there == here), here]
        trial.set_user_attr(_LEFT_AT, left_at)
        if len(left_at) <= RETRIES:
            return False
        said = f"its process died {len(left_at)} times without a new checkpoint"
        trial.set_user_attr("error", said)
        self.study.tell(trial, state=TrialState.FAIL)
        self._say(f"trial {trial.number}: failed, {said}; {shown(trial.params)}")
        return True

    def _free(self, number: int) -> Lock | None:
        """Lock a trial's directory; ``None`` if another process has."""
        path = self._directory(number)
        path.mkdir(parents=True, exist_ok=True)
        try:
            return Lock(path)
        except BlockingIOError:
            return None

    def _directory(self, number: int) -> Path:
        return self.output / "trials" / str(number)

    def _sampler_of(self, number: int) -> optuna.samplers.BaseSampler:
        """Return a sampler for one trial, whose random numbers follow from the seed and the trial's number alone.

        A quasi-random sequence is one for all trials, and Optuna keeps its place in it.
        """
        from optuna.samplers import QMCSampler

        of_trial = int(np.random.SeedSequence([self._seed, number]).generate_state(1)[0])
        try:
            with _quiet():
                return self._sampler(seed=self._seed if issubclass(self._sampler, QMCSampler) else of_trial)
        except ImportError as error:
            raise ValueError(f"sampler = {self._sampler.__name__}: {one_line(error)}") from error

    # -- one trial ------------------------------------------------------------------------------

    def _finish(self, turn: Turn, callbacks: Sequence[Callback]) -> None:
        """Train every seed, and tell the study what the trial is worth, that it was pruned, or why it failed."""
        from optuna.trial import TrialState

        trial, report = turn.trial, Report(turn, prune=self.design.objective == "return")
        try:
            config, scores = self.design.config(turn.chosen), list[Score]()
            for seed in self.design.seeds:
                directory = self._directory(trial.number) / f"seed-{seed}"
                score = scored_run(self.design, config, seed, directory, self._every, [report, *callbacks])
                if score is None:
                    self._constrain(turn, report.kl_sum)
                    self.study.tell(trial, state=TrialState.PRUNED)
                    self._say(f"trial {trial.number}: pruned; {turn}")
                    return
                report.finished.append(score)
                scores.append(score)
            value, kl = (float(np.mean([getattr(s, x) for s in scores])) for x in ("mean_return", "kl_sum"))
            if not (math.isfinite(value) and math.isfinite(kl)):
                raise ValueError(f"return = {value}, KL = {kl}; allowed: numbers (no episode ended, for example)")
        except OSError:
            raise
        except Exception as error:  # a failed trial is a result, and the search goes on
            said = plain(f"{type(error).__name__}: {error}")
            trial.set_user_attr("error", said)
            self.study.tell(trial, state=TrialState.FAIL)
            self._say(f"trial {trial.number}: failed, {said}; {turn}")
            return
        self._tell(turn, scores, value, kl)

    def _tell(self, turn: Turn, scores: Sequence[Score], value: float, kl: float) -> None:
        self._constrain(turn, kl)
        for name in ("mean_return", "kl_sum"):
            turn.trial.set_user_attr(name, [getattr(score, name) for score in scores])
        self.study.tell(turn.trial, [value, kl] if self.design.objective == "return-and-kl" else value)
        budget = self.design.kl_budget
        over = f", over the budget of {budget:g}" if budget is not None and kl > budget else ""
        self._say(f"trial {turn.trial.number}: return {value:.6g}, KL {kl:.4g} nats{over}; {turn}")

    def _constrain(self, turn: Turn, kl: float) -> None:
        if self.design.kl_budget is not None and BUDGET not in turn.trial.constraints:
            turn.trial.set_constraint(BUDGET, kl - self.design.kl_budget)


@dataclass(frozen=True)
class Turn:
    """A trial that this process works on."""

    trial: optuna.Trial
    chosen: Mapping[str, Any]
    lock: Lock
    reported: frozenset[int] = frozenset()
    """Points that the pruner knows already."""

    def __str__(self) -> str:
        return shown(self.chosen)


class Report(Callback):
    """Reports the mean return over seeds at points along their runs, one seed after the other, and ends bad ones.

    The k-th seed's points come after those of the seeds before it, and are means over all k: so trials are compared
    over the same seeds at the same part of the training, however long their rollouts are.
    """

    def __init__(self, turn: Turn, prune: bool) -> None:
        self._turn, self._prune = turn, prune
        self.finished: list[Score] = []
        self._kl_sum = 0.0

    @property
    def kl_sum(self) -> float:
        """KL spent so far, in nats, mean over the seeds begun."""
        return float(np.mean([*(score.kl_sum for score in self.finished), self._kl_sum]))

    def on_training_start(self, agent: Any, total_timesteps: int) -> None:
        """Begin with what a checkpoint has."""
        self._curve = Curve(total_timesteps, agent.history)
        self._known = 0

    def on_update_end(self, agent: Any, batch: Any, metrics: Metrics) -> bool | None:
        """Report the points that this update reaches; ``False`` ends the training."""
        self._kl_sum = float(metrics["drift/kl_sum"])
        self._curve.add(metrics)
        if not self._prune:
            return None
        for point in range(self._known, len(self._curve.values)):
            over_seeds = [*(score.curve[point] for score in self.finished), self._curve.values[point]]
            step, value = len(self.finished) * POINTS + point, float(np.mean(over_seeds))
            if math.isfinite(value) and step not in self._turn.reported:
                self._turn.trial.report(value, step)
        self._known = len(self._curve.values)
        return False if self._turn.trial.should_prune() else None


def check_optuna() -> None:
    """Refuse to go on without Optuna.

    Raises:
        ValueError: names the extra.
    """
    try:
        import optuna
    except ImportError as error:
        raise ValueError("the search needs Optuna: pip install 'klrl[tune]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out Optuna's warnings that a part of it may change."""
    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


def _named(kind: str, name: str) -> Any:
    """Return a sampler's or pruner's class that needs no arguments.

    Raises:
        ValueError: there is none of that name.
    """
    import optuna

    module, base = (
        (optuna.samplers, optuna.samplers.BaseSampler)
        if kind == "sampler"
        else (optuna.pruners, optuna.pruners.BasePruner)
    )
    known = {n: c for n in dir(module) if inspect.isclass(c := getattr(module, n)) and issubclass(c, base)}
    ending = {"BruteForceSampler"}  # it ends Study.optimize, which is not what runs here, and raises elsewhere
    known = {n: c for n, c in known.items() if not (inspect.isabstract(c) or _required(c) or n in ending)}
    if name not in known:
        raise ValueError(f"{kind} = {name!r}; allowed: {allowed(name, known)}")
    return known[name]


def _required(cls: type) -> list[str]:
    """Return the arguments without which a class cannot be made."""
    given = inspect.signature(cls).parameters.values()
    return [p.name for p in given if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]


def _pruner(name: str | None, design: Tuning) -> Any:
    if design.objective == "return-and-kl":
        if name not in (None, "NopPruner"):
            raise ValueError(f"pruner = {name!r} with objective = 'return-and-kl'; allowed: NopPruner")
        return _named("pruner", "NopPruner")()
    return _named("pruner", name or "MedianPruner")()


def _study(design: Tuning, output: Path, storage: str | None, pruner: Any) -> optuna.Study:
    """Open the study, or begin it.

    Raises:
        ValueError: it cannot be used, or is of another search.
    """
    import optuna

    url = storage or f"sqlite:///{output.resolve() / 'study.db'}"
    patient = {"connect_args": {"timeout": 60}} if url.startswith("sqlite:") else {}
    up, down = optuna.study.StudyDirection.MAXIMIZE, optuna.study.StudyDirection.MINIMIZE
    directions = [up, down] if design.objective == "return-and-kl" else [up]
    try:
        name = output.resolve().name
        database = url if url.startswith("redis:") else optuna.storages.RDBStorage(url, engine_kwargs=patient)
        study = optuna.create_study(
            storage=database, study_name=name, directions=directions, pruner=pruner, load_if_exists=True
        )
    except Exception as error:  # of SQLAlchemy, or of a database's driver
        said = plain(f"{type(error).__name__}: {error}", 300)
        raise ValueError(f"storage = {url}: {said}; allowed: an Optuna storage URL, as sqlite:///study.db") from error
    now, then = design.record(), study.user_attrs.get("klrl")
    if then is None:
        if study.get_trials(deepcopy=False):
            raise ValueError(f"storage = {url} has another study {name!r}; allowed: one of klrl tune, or a new one")
        study.set_user_attr("klrl", now)
    elif then != now:
        other = ", ".join(f"{k} = {plain(then.get(k), 80)}" for k in now if then.get(k) != now[k])
        raise ValueError(f"output = {output} holds another search: {other}; allowed: the same one, or a new directory")
    return study
