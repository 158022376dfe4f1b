"""Train an agent: ``klrl train ppo --env CartPole-v1``, or ``python scripts/train.py ppo --env CartPole-v1``."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from itertools import count
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from klrl.agents.config import OLDER, AgentConfig
from klrl.agents.settings import CONFIGS
from klrl.output import as_program
from klrl.run.options import RunOptions
from klrl.run.presets import preset
from klrl.scripts.cli.command_line import bad_input, fail, failed_worker, parse
from klrl.scripts.cli.flags import given
from klrl.scripts.cli.own_modules import find_in_this_folder
from klrl.text import nearest
from klrl.trust_region.names import region_of_word
from klrl.validation import Bounds, NonNegativeInt


@dataclass(frozen=True, kw_only=True)
class Training:
    """Train an agent and keep everything about the run in one directory."""

    env: str
    """Gymnasium id, for example CartPole-v1 or HalfCheetah-v5; module:Id-v0 for one that a module registers."""
    agent: tyro.conf.OmitArgPrefixes[AgentConfig]
    total_timesteps: Annotated[int, Bounds(1, 10**12)] = 100_000
    """Environment steps to train for, over all environments; whole updates are run."""
    seed: NonNegativeInt = 0
    """Seed of the run, from which all its random streams derive."""
    run_dir: Path | None = None
    """A new or empty directory; by default runs/ENV__AGENT__SEED__TIME."""
    resume: tyro.conf.FlagCreatePairsOff[bool] = False
    """Go on with the run in --run-dir if it was begun, with the same flags; so one command may be repeated until the
    run is finished."""
    start_from: Path | None = None
    """Begin with the networks and statistics of this saved agent or run directory, to fine-tune its policy; settings
    that these depend on are its own by default."""
    preset: Literal["auto", "none"] = "auto"
    """Start from the known settings for the environment (auto), or from the plain defaults (none)."""
    run: tyro.conf.OmitArgPrefixes[RunOptions] = field(default_factory=RunOptions)


def main(argv: list[str] | None = None) -> None:
    """Run ``klrl train``."""
    name, options = _algorithm(sys.argv[1:] if argv is None else argv)
    prog = f"klrl train {name}"
    with bad_input(prog):
        default = _defaults(name, options)
    training = parse(Training, options, prog, default)
    if training.resume and _is_begun(prog, training):
        _resume(prog, training, given(options, "trust_region").get("trust_region"))
    else:
        _train(prog, name, training)


def _is_begun(prog: str, training: Training) -> bool:
    """Tell whether the run of these flags is there, to go on with; another run is bad input."""
    from klrl.studies.opening import difference

    with bad_input(prog):
        if training.run_dir is None:
            raise ValueError("resume = True without run_dir; allowed: with --run-dir")
        other = difference(training.run_dir, training.agent, training.env, training.seed, training.total_timesteps)
        if other is not None:
            raise ValueError(f"run_dir = {training.run_dir} holds another run: {other}; allowed: one of these flags")
        return (training.run_dir / "config.json").exists()


def _resume(prog: str, training: Training, region: str | None) -> None:
    """Go on as ``klrl resume`` does; what a file may not name, code of one's own, the flags have."""
    from klrl.run import Signals
    from klrl.scripts.cli.resuming import resume

    assert training.run_dir is not None
    own_env = training.env if ":" in training.env else None
    own_region = region if region is not None and ":" in region else None
    with Signals() as signals:
        resume(prog, training.run_dir, own_env, own_region, signals)


def _train(prog: str, name: str, training: Training) -> None:
    import torch

    from klrl.agents import AGENTS
    from klrl.run import Signals
    from klrl.run.directory import check_new
    from klrl.scripts.cli.training import run_training

    torch.set_num_threads(training.run.torch_threads)
    with bad_input(prog), failed_worker(prog):
        if training.run_dir is not None:
            check_new(training.run_dir)
        agent = AGENTS[name](training.env, training.agent, seed=training.seed, trial=True)
        if training.start_from is not None:
            agent.start_from(training.start_from)
        notes = {"start_from": None if training.start_from is None else str(training.start_from.resolve())}
        run_dir = training.run_dir or _new_directory(training.env, name, training.seed)
        keep = training.run.directory(run_dir, notes)
    known = {} if training.preset == "none" else preset(name, training.env)
    held = [f"{k} = {v}" for k, v in known.items() if getattr(training.agent, k) == v]
    if known:
        agent.preset = training.env
    learn = partial(agent.learn, training.total_timesteps)
    with Signals() as signals:
        run_training(prog, agent, learn, training.env, keep, training.run, signals, preset=held)


def _algorithm(words: list[str]) -> tuple[str, list[str]]:
    allowed = f"{', '.join(CONFIGS)}; klrl train ALGORITHM --help lists the options"
    if not words:
        fail("klrl train", f"algorithm missing; for example: klrl train ppo --env CartPole-v1; allowed: {allowed}")
    if words[0] in ("-h", "--help"):
        print(f"usage: klrl train ALGORITHM --env ID [OPTIONS]\n\nalgorithms: {allowed}")
        sys.exit(0)
    if words[0] not in CONFIGS:
        fail("klrl train", f"algorithm = {words[0]!r}; allowed: {allowed}{nearest(words[0], CONFIGS)}")
    return words[0], words[1:]


def _defaults(name: str, options: list[str]) -> Training:
    """The flags' defaults, which depend on the environment, the region and the size of the rollout."""
    words = given(options, "env", "preset", "trust_region", "n_envs", "n_steps", "reference", "start_from")
    sizes = {k: int(v) for k, v in words.items() if k in ("n_envs", "n_steps") and v.isdecimal()}
    own: dict[str, Any] = sizes | {k: v for k, v in words.items() if k == "reference"}
    if "trust_region" in words:
        find_in_this_folder(options)
        own["trust_region"] = region_of_word(words["trust_region"])
    if words.get("start_from"):
        own |= inherited(words["start_from"])
    config = CONFIGS[name].for_env(None if words.get("preset") == "none" else words.get("env"), **own)
    return Training(env=tyro.MISSING, agent=config)


def inherited(path: str) -> dict[str, Any]:
    """Return the settings of a saved agent on which its networks and statistics depend.

    Raises:
        FileNotFoundError: nothing is saved there.
        ValueError: the saved agent is damaged.
    """
    from klrl.agents.compatibility import NETWORKS
    from klrl.run import checkpoint

    try:
        config = {**OLDER, **checkpoint.read(path)[1]["config"]}
    except FileNotFoundError as error:
        raise FileNotFoundError(f"start_from = {path}: {str(error).partition(': ')[2]}") from error
    names = (*NETWORKS, "scale_actions", "normalize_observations", "scale_rewards")
    return {name: tuple(v) if isinstance(v := config[name], list) else v for name in names}


def _new_directory(env: str, agent: str, seed: int) -> Path:
    """Make a directory that nobody else has: the first to make it gets it."""
    name = f"{re.sub(r'[^A-Za-z0-9._:-]', '_', env)}__{agent}__{seed}__{datetime.now():%Y%m%d-%H%M%S}"
    for i in count(1):
        path = Path("runs") / (name if i == 1 else f"{name}-{i}")
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        return path
    raise AssertionError


if __name__ == "__main__":
    as_program(main)
