"""R22: trainings on several ranks, one of which fails in every way, at any step."""

from __future__ import annotations

import random
import signal
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torture.case import Case, Outcome
from torture.processes import Ended, Fork, Forks, patient
from torture.runs import SMALL, STEPS
from torture.states import difference, run_parts

HOW = ("raise", "nan", "exit", "kill", "term", "stop")
"""An exception, a reward that is NaN, an exit without a word, SIGKILL, SIGTERM, SIGSTOP."""
_UPDATES, _TIMEOUT = 8, 5.0
_LINES = {
    "raise": "the gear is broken",
    "nan": "is nan in step",
    "exit": "no sign of life",
    "kill": "no sign of life",
    "stop": "no sign of life",
}
"""What rank 0 says where it has not failed itself."""
_SECONDS = {"raise": 10.0, "nan": 10.0, "term": 10.0, "exit": 10.0 + _TIMEOUT, "kill": 10.0 + _TIMEOUT}
_SECONDS["stop"] = _SECONDS["kill"]
"""Most seconds from the failure to the end of the last rank."""


@dataclass(frozen=True)
class Failure:
    """What happens to which of how many ranks, in which of its steps."""

    how: str
    ranks: int
    rank: int
    at: int

    @classmethod
    def random(cls, how: str, randomly: random.Random) -> Failure:
        """Some rank of two or four, at any of its steps."""
        n = randomly.choice((2, 4))
        return cls(how, n, randomly.randrange(n), randomly.randrange(1, _UPDATES * STEPS * 2 // n))

    def words(self, scratch: Path, name: str) -> list[str | Path]:
        """The command."""
        kwargs = ["--env-kwargs", f"how={self.how}", f"rank={self.rank}", f"at={self.at}"]
        env = ["--env", "torture.ranked:Failing-v0", *kwargs, f"marker={scratch / 'marker'}"]
        steps = ["--total-timesteps", f"{2 * _UPDATES * STEPS}", "--rank-timeout", f"{patient(_TIMEOUT):g}"]
        more = ["--n-envs", "4", "--no-try-envs", "--eval-episodes", "0"]
        return ["train", "ppo", *env, *SMALL, *more, *steps, "--run-dir", scratch / name]


def cases(seed: int) -> list[Case]:
    """Twenty of every failure, five in a case; and two of the quick ones."""
    made = [Case("R22", f"{how} {i}", _trials(f"{seed} R22 {how} {i}", how, 5), False, 900.0)
            for how in HOW for i in range(4)]  # fmt: skip
    return [Case("R22", "quick", _trials(f"{seed} R22 quick", "nan", 1), True, 300.0), *made]


def _trials(seed: str, how: str, trials: int) -> Callable[[Path], Outcome]:
    def case(scratch: Path) -> Outcome:
        randomly, problems, slowest = random.Random(seed), [], 0.0
        for i in range(trials):
            folder = scratch / str(i)
            folder.mkdir()
            failure = Failure.random(how, randomly)
            problem, seconds = try_once(failure, folder)
            slowest = max(slowest, seconds)
            if problem is None and seconds > patient(_SECONDS[how]):
                problem = f"the end took {seconds:.1f} s"
            if problem is not None:
                problems.append(f"{failure}: {problem}")
        return Outcome(problems, trials, {"largest seconds to the end": slowest})

    return case


def try_once(failure: Failure, scratch: Path) -> tuple[str | None, float]:
    """Let it happen, resume with one process, and compare; return what was wrong, and how long the end took."""
    processes = start_ranks(failure.ranks, failure.words(scratch, "run"), scratch)
    marker = scratch / "marker"
    processes[0].until(marker.exists, 300.0) if failure.rank else _until(marker, processes[0])
    happened = time.monotonic()
    others = [p for r, p in enumerate(processes) if r != failure.rank]
    ended = [p.wait(120.0) for p in others]
    seconds = time.monotonic() - happened
    if failure.how == "stop":
        processes[failure.rank].send(signal.SIGKILL)
    one = processes[failure.rank].wait(120.0)
    problem = _wrong(failure, ended, one) or _resumed(failure, scratch)
    return problem, seconds


def _until(marker: Path, process: Fork) -> None:
    while not marker.exists() and process.running:
        time.sleep(0.01)


def start_ranks(n: int, words: Sequence[str | Path], scratch: Path) -> list[Fork]:
    """Start ``klrl`` on so many ranks without torchrun, which would end all ranks with the first."""
    with socket.socket() as some:
        some.bind(("127.0.0.1", 0))
        port = some.getsockname()[1]
    common = {"WORLD_SIZE": f"{n}", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}"}
    return [Forks(scratch, {**common, "RANK": f"{r}"}).start(["klrl", *words]) for r in range(n)]


def _wrong(failure: Failure, others: Sequence[Ended], one: Ended) -> str | None:
    """Return what was wrong about the ends of the ranks."""
    expected = 128 + signal.SIGTERM if failure.how == "term" else 1
    if any(end.code != expected for end in others):
        return f"other ranks ended with {[end.code for end in others]}: {others[0].err[-300:]}"
    if failure.how in ("raise", "nan", "term") and one.code != expected:
        return f"the rank ended with {one.code}: {one.err[-300:]}"
    said = one.err if failure.rank == 0 else others[0].err
    if failure.how in ("exit", "kill", "stop") and failure.rank == 0:
        return None  # who would say it is gone
    if failure.how in _LINES and (_LINES[failure.how] not in said or f"rank {failure.rank}" not in said):
        return f"rank 0 said {said[-300:]!r}"
    return None


def _resumed(failure: Failure, scratch: Path) -> str | None:
    """Resume with one process, and return in what it differs from a run to which nothing happened."""
    forks = Forks(scratch)
    whole = forks.run(["klrl", *failure.words(scratch, "whole")], 300.0)  # the marker is there
    run = scratch / "run"
    verb = ["resume", run] if (run / "config.json").exists() else failure.words(scratch, "run")
    again = forks.run(["klrl", *verb, *(["--env", "torture.ranked:Failing-v0"] if verb[0] == "resume" else [])], 300.0)
    if whole.code or again.code:
        return f"statuses {whole.code}, {again.code}: {whole.err[-300:]} {again.err[-300:]}"
    digests = [{k: v for k, v in run_parts(scratch / name).items() if k != "state env"} for name in ("run", "whole")]
    return difference(*digests)
