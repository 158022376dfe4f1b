"""Finish of an interrupted training (``klrl resume``)."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from gymnasium.envs.registration import EnvSpec

from klrl.agents import AGENTS, Agent, AgentConfig, load_agent
from klrl.run import Callback, checkpoint
from klrl.run.directory import LARGEST_CONFIG, only_leftovers
from klrl.run.disk import read_regular_file
from klrl.run.signals import Signals
from klrl.scripts.cli.command_line import bad_input, failed_worker
from klrl.scripts.cli.run_options import RunOptions
from klrl.scripts.cli.saved_agents import compare_paths, compare_versions, environment
from klrl.scripts.cli.training import run_training
from klrl.text import plain, printable
from klrl.trust_region import TrustRegion, with_region
from klrl.trust_region.codec import own_class
from klrl.trust_region.names import region_of_word

_TYPES = {
    "agent": (str,), "env": (dict, type(None)), "seed": (int,), "total_timesteps": (int,), "config": (dict,),
    "versions": (dict,), "start_from": (str, type(None)),
}  # fmt: skip
"""Types of the entries that a config.json must have."""


def resume(prog: str, path: Path, given_env: str | None, given_region: str | None, signals: Signals) -> None:
    """Train to the end from the newest good checkpoint of the run directory ``path``.

    Args:
        prog: name of the command, for messages.
        path: the run directory.
        given_env: Gymnasium id, if it is to be registered by a module.
        given_region: ``module:NAME`` of a trust region that is not saved.
        signals: handlers, installed.
    """
    with bad_input(prog), failed_worker(prog):
        run = _read(path)
        region = _region(path, run, given_region)
        options, config = _settings(path, run, region)
        torch.set_num_threads(options.torch_threads)
        keep = options.directory(path, resume=True)
        keep.claim()
        env = environment(run["env"], given_env)
        agent, learn = _agent(path, run, config, env, region)
        keep.check_run(agent)
        evaluations = options.evaluation(env)
    reason = None if any(one.owes(agent) for one in evaluations) else _finished(agent, options)
    if reason is not None:
        keep.release()
        print(printable(f"{path}: finished, {reason}"))
        return
    compare_versions(run["versions"], "the run may differ from the uninterrupted one")
    compare_paths(
        agent.saved_paths or run.get("paths"),
        agent.describe()["paths"],
        "the run will differ from the uninterrupted one",
    )
    steps = f"{agent.num_timesteps:,} of {run['total_timesteps']:,} steps"
    where = steps if agent.training else "nothing was saved, so the run begins anew"
    print(printable(f"resuming {path}: {where}"))
    run_training(prog, agent, learn, env, keep, options, signals)


def _read(path: Path) -> dict[str, Any]:
    """Read the run's ``config.json``."""
    file = path / "config.json"
    if not file.exists():
        raise FileNotFoundError(f"path = {path}: no config.json there, so there is no run to resume; {_allowed(path)}")
    try:
        run = {"start_from": None} | json.loads(read_regular_file(file, LARGEST_CONFIG))
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


def _allowed(path: Path) -> str:
    """Return the end of a message: a run directory, or how to begin one where a run has died at once."""
    again = f", or klrl train ... --run-dir {path} to begin one there" if only_leftovers(path) else ""
    return f"allowed: a run directory{again}"


def _region(path: Path, run: dict[str, Any], given: str | None) -> TrustRegion | None:
    """Return the trust region given in place of a custom one, which is not saved; ``None`` for klrl's own."""
    saved = own_class(run["config"].get("trust_region"))
    if saved is None:
        if given is not None:
            raise ValueError(f"trust_region = {given}; allowed: only for a run whose trust region is of your own class")
        return None
    if given is None:
        raise ValueError(
            f"path = {path}: trust region {plain(saved, 80)} is not klrl's; allowed: --trust-region MODULE:NAME"
        )
    region = region_of_word(given)
    if isinstance(region, str):
        raise ValueError(f"trust_region = {given!r}; allowed: MODULE:NAME of a TrustRegion, or of what makes one")
    return region


def _settings(path: Path, run: dict[str, Any], region: TrustRegion | None) -> tuple[RunOptions, AgentConfig]:
    # Older versions made a new environment for every episode if a trial found that to help.
    config = {"rebuild_envs": run.get("replay") == "new"} | run["config"]
    if region is not None:
        config = with_region(config, region)
    try:
        return RunOptions.noted(run), AGENTS[run["agent"]].config_class.from_json(config)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"path = {path / 'config.json'} is not as a run writes it: {error!r}") from error


def _agent(
    path: Path, run: dict[str, Any], config: AgentConfig, env: str | EnvSpec, region: TrustRegion | None
) -> tuple[Agent[Any], Callable[[Sequence[Callback]], object]]:
    """Return the agent as saved, or as it began if nothing was saved; and the function that trains it."""
    try:
        saved = checkpoint.read(path)
    except FileNotFoundError:
        agent = AGENTS[run["agent"]](env, config, seed=run["seed"], trial=True)
        if run["start_from"] is not None:
            agent.start_from(run["start_from"])
        agent.preset = run.get("preset")
        return agent, lambda callbacks: agent.learn(run["total_timesteps"], callbacks)
    agent = load_agent(path, env, saved=saved, trust_region=region)
    return agent, agent.resume


def _finished(agent: Agent[Any], options: RunOptions) -> str | None:
    """Return why there is nothing to do, or ``None``."""
    if agent.training is None:
        return None
    if agent.num_timesteps >= agent.training.last:
        return f"{agent.num_timesteps:,} steps"
    newest = agent.history[-1]
    spent = [budget.spent(newest) for budget in options.budgets() if budget.on_exceed == "stop"]
    reached = [goal.reached(agent, newest) for goal in options.goal()]
    return next((reason for reason in (*spent, *reached) if reason), None)
