"""The bad settings of R9: what no field's type allows, misspelt names, settings that contradict each other."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from klrl.agents import AGENTS, AgentConfig
from klrl.run.options import RunOptions
from klrl.schedules import During
from klrl.scripts import train
from klrl.trust_region import REGIONS
from klrl.validation import fits, hints

ENV = "Marked-v0"
"""The environment of every command line; whoever tries them registers it."""
_WORDS = ("nan", "inf", "-inf", "-1", "0", "1e308", "1" + 30 * "0", "seven", "")
_VALUES: tuple[Any, ...] = (math.nan, math.inf, -math.inf, -1, 0, 1e308, 10**400, "seven", "", None, [], True, b"1", {})
_SMALL = ["--total-timesteps", "1", "--eval-episodes", "0"]


@dataclass(frozen=True)
class BadSetting:
    """A command line that must be refused, and what its one line must name; ``A|B`` is one or the other."""

    name: str
    argv: list[str]
    mentions: tuple[str, ...]


def bad_settings() -> list[BadSetting]:
    """Every field with every word that its type does not allow, misspelt names, settings that contradict each other."""
    cases = []
    for agent, cls in AGENTS.items():
        types = hints(cls.config_class) | hints(RunOptions) | hints(train.Training)
        del types["agent"], types["run"]
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
    yield "ppo --network torch.nn:Linear --layer-norm", "layer_norm = True", "network = torch.nn.modules.linear:Linear"
    yield "ppo --network nowhere:net", "network = 'nowhere:net'"
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
    "reference_coef": "clip", "reference_kl": "clip", "quantile_kl": "cvar-constraint", "quantile_level": "constraint",
    "cvar_kl": "quantile-constraint", "max_state_kl": "constraint", "state_tv": "dppo-kl", "ratio_variance": "clip",
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
        case origin if origin is Annotated and any(isinstance(x, During) for x in args):
            return fits(float(word) if _is_float(word) else word, hint)
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


def _is_float(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


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
