"""R9 and R10: bad settings, spaces and environments. ``python -m klrl.scripts.protocol.inputs`` runs all cases.

A bad setting is refused in one line before any environment is made. Spaces and environments either train one
iteration or are refused in one line that says what is supported. Every case is a process of its own, forked once
everything is imported.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import gymnasium as gym
import torch

from klrl.agents import AGENTS, PPO, TRPO, AgentConfig
from klrl.scripts import train
from klrl.scripts.protocol.faulty import FAULTS, Sampled, action_spaces, observation_spaces
from klrl.scripts.training import Conduct
from klrl.trust_region import REGIONS
from klrl.validation import fits, hints

ENV = "Marked-v0"
"""A CartPole whose making leaves a mark."""
_MARK = "an-environment-was-made"
_SECONDS = 1.0
_WORDS = ("nan", "inf", "-inf", "-1", "0", "1e308", "1" + 30 * "0", "seven", "")
_VALUES: tuple[Any, ...] = (math.nan, math.inf, -math.inf, -1, 0, 1e308, 10**400, "seven", "", None, [], True, b"1", {})
_SMALL = ["--total-timesteps", "1", "--eval-episodes", "0"]


@dataclass(frozen=True)
class BadSetting:
    """A command line that must be refused, and what its one line must name; ``A|B`` is one or the other."""

    name: str
    argv: list[str]
    mentions: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """How a process ended."""

    status: int
    stderr: str
    seconds: float
    """Of computing: on a busy machine the clock would tell of others."""


def bad_settings() -> list[BadSetting]:
    """Every field with every word that its type does not allow, misspelt names, settings that contradict each other."""
    cases = []
    for agent, cls in AGENTS.items():
        types = hints(cls.config_class) | hints(Conduct) | hints(train.Training)
        del types["agent"], types["conduct"]
        for field, hint in types.items():
            flag = "--" + field.replace("_", "-")
            for word in _WORDS:
                if not _allowed(word, hint):
                    argv = [agent, "--env", ENV, *_SMALL, flag, word]
                    cases.append(BadSetting(f"{agent} {flag} {word!r}", argv, (field, _shown(word))))
            misspelt = flag[: len(flag) // 2] + flag[len(flag) // 2 + 1 :]
            argv = [agent, "--env", ENV, *_SMALL, misspelt, "1"]
            cases.append(BadSetting(f"{agent} {misspelt}", argv, (misspelt, f"did you mean {flag}")))
    return cases + [_contradiction(words, mentions) for words, *mentions in _contradictions()]


def _contradictions() -> Iterator[tuple[str, ...]]:
    """Words after ``klrl train``, then what the line must name."""
    yield "ppo --n-envs 2 --n-steps 8 --batch-size 17", "batch_size = 17", "16"
    yield "ppo --batch-size 1000000000000", "batch_size = 1000000000000"
    yield "ppo --n-steps 1000000000000", "n_steps = 1000000000000"
    yield "ppo --n-envs 65536 --n-steps 65536", "n_envs = 65536", "n_steps = 65536"
    yield "ppo --n-envs 100000", "n_envs = 100000"
    yield "ppo --n-envs 2048 --vectorization-mode async", "n_envs = 2048", "async"
    yield "ppo --actor-hidden-sizes 65536 65536", "actor_hidden_sizes", "65536"
    yield "ppo --trust-region clip+spo", "trust_region", "Clip"
    yield "ppo --action-distribution beta --state-dependent-std", "state_dependent_std = True", "beta"
    yield "ppo --device cuda:99", "device", "cuda:99"
    yield "ppo --device cuda:256", "device", "cuda:256"  # torch would read it as cuda:0
    yield "ppo --reference nowhere", "reference = nowhere"
    yield "ppo --start-from nowhere", "start_from = nowhere"
    yield "ppo --trust-region reference-penalty", "reference", "reference-penalty"
    yield "ppo --run-dir /dev/null/run", "/dev/null/run"
    yield "ppo 0.5", "0.5"
    yield "ppo --gamma 0.5 0.6", "0.6"
    yield "ppo --env Nowhere-v0", "env = 'Nowhere-v0'"
    yield "ppo --env Markd-v0", "Markd-v0", f"did you mean {ENV}"
    yield "ppo --env nowhere:Thing-v0", "nowhere:Thing-v0"
    yield "pppo", "algorithm = 'pppo'", "did you mean ppo"
    for agent in ("trpo", "npg"):
        yield f"{agent} --n-steps 8 --sub-sampling-factor 65", "sub_sampling_factor = 65", "64"
        yield f"{agent} --cg-preconditioner diagonal --cg-damping 0", "cg_preconditioner", "diagonal"
        for region in ("none", "clip", "spo", "projection", "adaptive-lr", "constraint+projection"):
            yield f"{agent} --trust-region {region}", "trust_region", region
    for setting, other in _READ_ELSEWHERE.items():
        yield (
            f"ppo --trust-region {other} --{setting.replace('_', '-')} 0.5",
            f"{setting} = 0.5",
            "region that reads it",
        )
    for region in REGIONS:
        misspelt = region[:-2] + region[-1]
        yield f"ppo --trust-region {misspelt}", f"trust_region = {misspelt!r}", f"did you mean {region}"


_READ_ELSEWHERE = {
    "target_kl": "clip", "clip_range": "constraint", "rollback_slope": "clip", "state_kl": "constraint",
    "state_distance": "projection", "regression_coef": "clip", "ratio_deviation": "clip", "kl_coef": "constraint",
    "reference_coef": "clip", "reference_kl": "clip",
}  # fmt: skip
"""Settings of regions, each with a region that does not read it."""


def _contradiction(words: str, mentions: list[str]) -> BadSetting:
    agent, *options = words.split()
    env = [] if "--env" in options else ["--env", ENV]
    return BadSetting(words, [agent, *env, *_SMALL, *options], tuple(mentions))


def _allowed(word: str, hint: Any) -> bool:
    """Whether a word on the command line is a value of a type."""
    args = get_args(hint)
    match get_origin(hint):
        case origin if origin is Annotated:
            return _allowed(word, args[0]) and (not _is_number(args[0]) or fits(args[0](word), hint))
        case origin if origin in (Union, UnionType):
            return any(_allowed(word, option) for option in args)
        case origin if origin is Literal:
            return word in args
        case origin if origin is tuple:
            return _allowed(word, args[0])
    if _is_number(hint):
        try:
            return fits(hint(word), hint)
        except ValueError:
            return False
    return hint in (str, Path) and word != ""


def _is_number(hint: Any) -> bool:
    return hint in (int, float)


def _shown(word: str) -> str:
    """How a message writes a word: a number may have been read from it."""
    return {"": "''", "1e308": "1e308|1e+308", _WORDS[6]: f"{_WORDS[6]}|1e+30"}.get(word, word)


def bad_keywords() -> Iterator[tuple[type[AgentConfig], str, Any]]:
    """Every field of every agent's config with every value that its type does not allow."""
    for cls in (agent.config_class for agent in AGENTS.values()):
        for name, hint in hints(cls).items():
            yield from ((cls, name, value) for value in _VALUES if not fits(value, hint))


def refuse_keyword(cls: type[AgentConfig], name: str, value: Any) -> str | None:
    """What went wrong where ``cls(name=value)`` should have been refused; ``None`` if it was."""
    try:
        cls(**{name: value})
    except ValueError as error:
        line = str(error)
        fine = "\n" not in line and line.startswith((f"{name} = {value!r}", f"{name} = {str(value)[:50]}"))
        return None if fine and "allowed" in line else f"{name} = {str(value)[:50]}: {line[:300]}"
    return f"{name} = {value!r} was accepted"


def refuse_setting(case: BadSetting) -> str | None:
    """What went wrong where ``klrl train`` should have refused; ``None`` if it did."""
    with tempfile.TemporaryDirectory() as folder:

        def call() -> None:
            os.chdir(folder)
            gym.register(ENV, _marked)  # type: ignore[arg-type]
            train.main(case.argv)

        outcome = in_child(call)
        made, written = (Path(folder) / _MARK).exists(), list(Path(folder).iterdir())
    line = outcome.stderr
    silent = [text for text in case.mentions if not any(_squeezed(x) in _squeezed(line) for x in text.split("|"))]
    wrong = {
        f"status {outcome.status}": outcome.status != 2,
        f"{line.count(chr(10))} lines": line.count("\n") != 1,
        "an environment was made": made,
        f"written: {written}": bool(written),
        f"does not name {silent}": bool(silent),
        "does not say what is allowed": "allowed" not in line and "did you mean" not in line,
        f"{outcome.seconds:.1f} s": outcome.seconds > _SECONDS,
        f"{len(line)} characters": len(line) > 800,
    }
    found = [text for text, so in wrong.items() if so]
    return f"klrl train {case.name}: {', '.join(found)}: {line[:600]}" if found else None


def _squeezed(text: str) -> str:
    """Names of flags and fields alike."""
    return text.replace("-", "_")


def _marked() -> gym.Env:
    Path(_MARK).touch()
    return gym.make("CartPole-v1")


def space_pairs() -> Iterator[tuple[str, str]]:
    """Names of observation spaces and action spaces, each with each."""
    yield from ((o, a) for o in observation_spaces() for a in action_spaces())


def try_spaces(observations: str, actions: str) -> str | None:
    """What went wrong with a pair of spaces, which PPO and TRPO either learn on or refuse; ``None`` if nothing."""
    pair = observation_spaces()[observations], action_spaces()[actions]
    outcome = in_child(lambda: _learn(lambda: Sampled(*pair)))
    if outcome.status == 0 and not outcome.stderr:
        return None
    named = any(f"{what} space" in outcome.stderr for what in ("observation", "action"))
    kinds = any(type(space).__name__ in outcome.stderr for space in pair)
    if outcome.status == 2 and _is_clear(outcome.stderr) and named and kinds:
        return None
    return f"{observations} -> {actions}: status {outcome.status}: {outcome.stderr[-600:]}"


def try_environment(name: str) -> str | None:
    """What went wrong with a faulty environment, which is learned on or refused; ``None`` if nothing."""
    make, mentions, twin = FAULTS[name]
    outcome = in_child(lambda: _learn(make, twin))
    if mentions is None:
        fine = outcome.status == 0 and not outcome.stderr
    else:
        fine = outcome.status == 2 and _is_clear(outcome.stderr) and all(m in outcome.stderr for m in mentions)
    return None if fine else f"{name}: status {outcome.status}: {outcome.stderr[-600:]}"


def _is_clear(line: str) -> bool:
    return line.count("\n") == 1 and "allowed" in line and len(line) < 1000


def _learn(make: Callable[[], gym.Env], twin: Callable[[], gym.Env] | None = None) -> None:
    """One iteration of PPO and TRPO; a refusal is one line on stderr, status 2. A twin must lead to the same policy."""
    warnings.simplefilter("error")
    for cls in (PPO, TRPO):
        agents = []
        for maker in (make, twin or make)[: 1 if twin is None else 2]:
            config: Any = cls.config_class(n_envs=2, n_steps=16, batch_size=16, actor_hidden_sizes=(4,))
            try:
                agents.append(cls(maker, config, seed=0).learn(32))
            except (ValueError, FloatingPointError) as error:
                print(error, file=sys.stderr)
                sys.exit(2)
        assert all(p.isfinite().all() for p in agents[0].actor.parameters()), "parameters that are not finite"
        assert torch.equal(agents[0].actor_parameters, agents[-1].actor_parameters), "its twin learned something else"


def in_child(call: Callable[[], None], seconds: float = 60.0) -> Outcome:
    """Run something in a forked process; an exception leaves its traceback on stderr and status 70."""
    with tempfile.TemporaryFile("w+") as err, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 on forks beside threads, which sleep here
        if (pid := os.fork()) == 0:
            os._exit(_status(call, err, seconds))
        _, code, used = os.wait4(pid, 0)
        err.seek(0)
        return Outcome(os.waitstatus_to_exitcode(code), err.read(), used.ru_utime + used.ru_stime)


def _status(call: Callable[[], None], err: Any, seconds: float) -> int:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    with open(os.devnull, "w") as null:
        os.dup2(null.fileno(), 1)
        os.dup2(err.fileno(), 2)
        sys.stdout, sys.stderr = null, err
        status = 0
        try:
            call()
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else 70
        except BaseException:
            traceback.print_exc()
            status = 70
        err.flush()
    return status


def main() -> None:
    """Run all cases; exit status 1 where one failed."""
    torch.set_num_threads(1)
    gym.logger.min_level = gym.logger.ERROR
    settings = [refuse_setting(case) for case in bad_settings()]
    keywords = [refuse_keyword(*case) for case in bad_keywords()]
    pairs = [try_spaces(*pair) for pair in space_pairs()]
    faults = [try_environment(name) for name in FAULTS]
    for name, results in {
        "R9 command lines": settings, "R9 keywords": keywords, "R10 spaces": pairs, "R10 environments": faults,
    }.items():  # fmt: skip
        print(f"{name}: {results.count(None)} of {len(results)} passed")
        print(*(f"  {problem}" for problem in results if problem), sep="\n", end="")
    sys.exit(any([*settings, *keywords, *pairs, *faults]))


if __name__ == "__main__":
    main()
