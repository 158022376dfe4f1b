"""R8: checkpoints and runs made to do harm: none may run code, change other files, fill the memory or the terminal."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from klrl.agents import PPO, PPOConfig
from klrl.run import checkpoint
from klrl.run.options import RunOptions
from torture import malicious_files, malicious_runs, malicious_settings
from torture.case import Case, Outcome
from torture.forgery import WRONG, Victim, paths_of, put
from torture.processes import Ended, Forks, patient

_MEBIBYTE = 2**20
_SPARE = 64 * _MEBIBYTE
"""Memory that a process may take beside twice the size of the files it reads."""
_SECONDS = 20.0
_IN_ONE_CASE = 10
_VALUES = 40
_QUICK = {
    "a sealed pickle instead of the tensors",
    "the manifest names '../../../outside/precious.txt'",
    "tensors is a pipe",
    "hidden layers of 50,000 x 50,000",
    "the environment evil:Evil-v0",
    "escapes in an environment's name",
    "run.lock is a link to the outside",
    "config.json is a link to zeros without end",
    "the next checkpoint is a link to an empty folder outside",
    "config.json with seed {}, no checkpoint",
}
Attack = tuple[str, Callable[[Victim], None]]


@dataclass(frozen=True)
class _Trial:
    """What is done with a run that has been attacked."""

    of: str
    jobs: tuple[tuple[str, ...], ...]
    """Each gets the run's directory as its last word."""
    statuses: tuple[int, ...]
    """How they may end."""
    env: str = "CartPole-v1"
    """Where the run learns."""


_READ = _Trial("", (("load",), ("klrl", "evaluate", "--episodes", "1")), (0, 2))
"""As a library, and by the command line."""
_RESUME = ("frugal", "klrl", "resume")
_LOSE = ("frugal", "poison-policy", "nan", "0", "resume")
_PARTS: tuple[tuple[_Trial, Callable[[], Iterable[Attack]]], ...] = (
    (_READ, lambda: [*malicious_files.attacks(), *malicious_settings.attacks()]),
    (_Trial(" on the files of a run that goes on", (_RESUME,), (0, 1, 2)), malicious_runs.of_files),
    (_Trial(" on the settings of a run that goes on", (_RESUME,), (0, 2)), malicious_runs.of_settings),
    (_Trial(" on a run whose policy gets lost", (_LOSE,), (1,), "Pendulum-v1"), malicious_runs.of_the_last_step),
)


def cases(seed: int) -> list[Case]:
    """Every attack once, and every value of a saved agent's JSON replaced by others."""
    one_by_one = [case for trial, attacks in _PARTS for case in _cases(trial, [*attacks()])]
    g = random.Random(f"{seed} R8")
    values = [
        Case("R8", f"{_VALUES} values replaced by others, part {i}", _case_of_values(g.random()), timeout=400.0)
        for i in range(10)
    ]
    return [*one_by_one, *values]


def _cases(trial: _Trial, attacks: list[Attack]) -> list[Case]:
    quick, slow = ([one for one in attacks if (one[0] in _QUICK) is wanted] for wanted in (True, False))
    groups = [*filter(None, [quick]), *(slow[i : i + _IN_ONE_CASE] for i in range(0, len(slow), _IN_ONE_CASE))]
    return [
        Case(
            "R8",
            f"{len(group)} attacks{trial.of} from: {group[0][0]}",
            _case(trial, group),
            quick=group is quick,
            timeout=400.0,
        )
        for group in groups
    ]


def _case(trial: _Trial, attacks: list[Attack]) -> Callable[[Path], Outcome]:
    def run(scratch: Path) -> Outcome:
        return _tried(scratch, _good(scratch, trial.env), attacks, trial)

    return run


def _case_of_values(seed: float) -> Callable[[Path], Outcome]:
    def run(scratch: Path) -> Outcome:
        good, g = _good(scratch, _READ.env), random.Random(seed)
        _, state = checkpoint.read(good)
        drawn = [(g.choice(paths_of(state)[1:]), g.choice([*WRONG, KeyError])) for _ in range(_VALUES)]
        return _tried(
            scratch,
            good,
            [(f"{path} replaced by {str(new)[:20]!r}", _replacing(path, new)) for path, new in drawn],
            _READ,
        )

    return run


def _replacing(path: tuple[str | int, ...], new: object) -> Callable[[Victim], None]:
    def attack(v: Victim) -> None:
        v.forge(lambda tensors, state: _remove(state, path) if new is KeyError else put(state, path, new))

    return attack


def _remove(state: object, path: tuple[str | int, ...]) -> None:
    for key in path[:-1]:
        state = state[key]  # type: ignore[index]
    del state[path[-1]]  # type: ignore[attr-defined]


def _good(scratch: Path, env: str) -> Path:
    """A small agent's run, killed after the first of its two updates."""
    run_dir = scratch / "good"
    agent = PPO(env, PPOConfig(n_envs=2, n_steps=64), seed=0)
    agent.learn(malicious_runs.NEXT, RunOptions(checkpoint_every=128, eval_episodes=1).directory(run_dir))
    agent.close()
    shutil.rmtree(checkpoint.step_directory(run_dir, malicious_runs.NEXT))
    return run_dir


def _tried(scratch: Path, good: Path, attacks: list[Attack], trial: _Trial) -> Outcome:
    modules = scratch / "modules"
    modules.mkdir()
    marker = scratch / "marker"
    (modules / "evil.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
    problems, largest = [], 0.0
    forks = Forks(scratch, {"PYTHONPATH": str(modules)})
    usual = _usual(forks, good, trial)
    for i, (name, attack) in enumerate(attacks):
        victim = Victim(scratch / f"run-{i}", scratch / f"outside-{i}", marker)
        shutil.copytree(good, victim.run_dir)
        victim.outside.mkdir()
        (victim.outside / "precious.txt").write_text("years of work")
        attack(victim)
        size = sum(p.lstat().st_size for p in victim.run_dir.rglob("*"))
        before = _contents(victim.outside)
        for ended in _ends(forks, victim.run_dir, trial):
            largest = max(largest, ended.peak - usual)
            problem = _excess(ended, usual + max(2 * size, _SPARE)) or _problem(ended, trial)
            problems += [f"{name}: {problem}"] if problem else []
        if marker.exists():
            problems.append(f"{name}: its code ran")
            marker.unlink()
        if before != _contents(victim.outside):
            problems.append(f"{name}: files outside of the run were changed")
        if ended.code == 0 and (links := malicious_runs.links(victim.run_dir)):
            problems.append(f"{name}: it went on by way of links: {', '.join(links)}")
        shutil.rmtree(victim.run_dir)
    return Outcome(problems, len(attacks), {"largest memory beside the usual, MiB": round(largest / _MEBIBYTE, 1)})


def _usual(forks: Forks, good: Path, trial: _Trial) -> int:
    """The most memory that it takes without an attack, when nothing is wrong."""
    ends = [*_ends(forks, shutil.copytree(good, good.with_name("usual")), trial)]
    wrong = [problem for ended in ends if (problem := _problem(ended, trial))]
    assert not wrong, f"without an attack: {wrong[0]}"
    return max(ended.peak for ended in ends)


def _ends(forks: Forks, run_dir: Path, trial: _Trial) -> Iterator[Ended]:
    return (forks.run([*job, run_dir], _SECONDS + 1.0) for job in trial.jobs)


def _problem(ended: Ended, trial: _Trial) -> str | None:
    """Whether it ended well, or said in one printable line what is wrong."""
    lines = ended.err.splitlines()
    said = json.loads(ended.out) if ended.out.startswith("{") else {}
    if not all(c.isprintable() or c == "\n" for c in ended.out + ended.err):
        return f"not printable: {ended.err + ended.out!r}"[:200]
    if ended.code not in trial.statuses or any("Traceback" in line for line in lines):
        return f"status {ended.code}: {' '.join(lines[-1:])}"[:200]
    if ended.code != 0 and (len(lines) != 1 or not lines[0].startswith(("klrl evaluate: ", "klrl resume: "))):
        return f"{len(lines)} lines: {ended.err[:200]!r}"
    if "error" in said and not (said["known"] and _is_plain(said["error"])):
        return f"{said['type']}: {said['error']!r}"[:200]
    return None


def _is_plain(text: str) -> bool:
    return text.isprintable() and len(text) < 2000


def _excess(ended: Ended, most: float) -> str | None:
    if ended.seconds > patient(_SECONDS):
        return f"it took {ended.seconds:.0f} s"
    if ended.peak > most:
        return f"{ended.peak / _MEBIBYTE:.0f} MiB of memory, more than {most / _MEBIBYTE:.0f}"
    return None


def _contents(folder: Path) -> dict[str, bytes]:
    """Of every file, and nothing of every folder."""
    return {str(p): p.read_bytes() if p.is_file() else b"" for p in folder.rglob("*")}
