"""Finish a training that was interrupted: ``klrl resume runs/demo``."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from gymnasium.envs.registration import EnvSpec

from klrl.agents import AGENTS, Agent, AgentConfig, load_agent
from klrl.run import Callback, checkpoint
from klrl.run.directory import LARGEST_CONFIG, versions
from klrl.run.disk import contents
from klrl.run.signals import Signals
from klrl.scripts.command_line import bad_input, failed_worker, parse
from klrl.scripts.saved_agents import environment
from klrl.scripts.training import Conduct, carry_out
from klrl.words import plain, printable

_TYPES = {
    "agent": (str,), "env": (dict, type(None)), "seed": (int,), "total_timesteps": (int,), "config": (dict,),
    "versions": (dict,), "start_from": (str, type(None)),
}  # fmt: skip
"""What a config.json must have."""


@dataclass(frozen=True, kw_only=True)
class Resuming:
    """Go on from the newest good checkpoint to the steps that were asked for, as if nothing had happened."""

    path: tyro.conf.Positional[Path]
    """A run directory."""
    env: str | None = None
    """Gymnasium id, for environments of your own: module:Id-v0; by default that of the run."""


def main(argv: list[str] | None = None) -> None:
    """Run ``klrl resume``."""
    prog = "klrl resume"
    args = parse(Resuming, sys.argv[1:] if argv is None else argv, prog)
    with Signals(lambda: None):  # before the directory is claimed; nothing can be saved until the training goes on
        _resume(prog, args)


def _resume(prog: str, args: Resuming) -> None:
    with bad_input(prog), failed_worker(prog):
        run = _read(args.path)
        conduct, config = _settings(args.path, run)
        torch.set_num_threads(conduct.torch_threads)
        keep = conduct.directory(args.path, resume=True)
        keep.claim()
        env = environment(run["env"], args.env)
        agent, learn = _agent(args.path, run, config, env)
        keep.check_run(agent)
    reason = _finished(agent, conduct)
    if reason is not None:
        keep.release()
        print(printable(f"{args.path}: finished, {reason}"))
        return
    _compare(run["versions"])
    where = f"{agent.num_timesteps:,} of {run['total_timesteps']:,} steps" if agent.training else "no checkpoint: anew"
    print(printable(f"resuming {args.path}: {where}"))
    carry_out(prog, agent, learn, env, keep, conduct)


def _read(path: Path) -> dict[str, Any]:
    """What ``config.json`` says about the run."""
    file = path / "config.json"
    if not file.exists():
        raise FileNotFoundError(f"path = {path}: no config.json there; allowed: a run directory")
    try:
        run = {"start_from": None} | json.loads(contents(file, LARGEST_CONFIG))
        missing = _TYPES.keys() - run.keys()
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"path = {file} is not as a run writes it: {error}") from error
    if missing:
        raise ValueError(f"path = {file} is not as a run writes it: no {', '.join(sorted(missing))}")
    for name in (name for name, types in _TYPES.items() if type(run[name]) not in types):
        raise ValueError(f"path = {file} is not as a run writes it: {name} = {plain(run[name], 80)}")
    if run["agent"] not in AGENTS:
        raise ValueError(f"path = {path} holds agent {run['agent']!r}; allowed: {', '.join(AGENTS)}")
    if run["total_timesteps"] < 1:
        raise ValueError(f"path = {path}: total_timesteps = {run['total_timesteps']}; allowed: an integer >= 1")
    return run


def _settings(path: Path, run: dict[str, Any]) -> tuple[Conduct, AgentConfig]:
    try:
        return Conduct.noted(run), AGENTS[run["agent"]].config_class.from_json(run["config"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"path = {path / 'config.json'} is not as a run writes it: {error!r}") from error


def _agent(
    path: Path, run: dict[str, Any], config: AgentConfig, env: str | EnvSpec
) -> tuple[Agent[Any], Callable[[Sequence[Callback]], object]]:
    """The agent where it was, or as it began if nothing of it was saved; and what trains it."""
    try:
        saved = checkpoint.read(path)
    except FileNotFoundError:
        agent = AGENTS[run["agent"]](env, config, seed=run["seed"])
        if run["start_from"] is not None:
            agent.start_from(run["start_from"])
        agent.preset = run.get("preset")
        return agent, lambda callbacks: agent.learn(run["total_timesteps"], callbacks)
    agent = load_agent(path, env, saved=saved)
    return agent, agent.resume


def _finished(agent: Agent[Any], conduct: Conduct) -> str | None:
    """Why there is nothing to do, if there is nothing to do."""
    if agent.training is None:
        return None
    if agent.num_timesteps >= agent.training.last:
        return f"{agent.num_timesteps:,} steps"
    spent = [budget.spent(agent.history[-1]) for budget in conduct.budgets() if budget.on_exceed == "stop"]
    return next((reason for reason in spent if reason), None)


def _compare(then: dict[str, str]) -> None:
    """Warn where other versions than then may give other numbers."""
    now = versions()
    changed = [f"{name} {then[name]} -> {now.get(name, 'none')}" for name in then if then[name] != now.get(name)]
    if changed:
        text = f"versions differ, so the run may differ from the uninterrupted one: {', '.join(changed)}"
        warnings.warn(text, RuntimeWarning, stacklevel=2)


if __name__ == "__main__":
    main()
