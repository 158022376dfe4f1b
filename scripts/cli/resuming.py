"""Finish of an interrupted training (``klrl resume``)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from klrl.agents import AGENTS, Agent, AgentConfig
from klrl.agents.own_networks import of_flag
from klrl.experience.wrapped import Named
from klrl.run import checkpoint
from klrl.run.directory import only_leftovers
from klrl.run.signals import Signals
from klrl.run.world import World
from klrl.schedules import functions_in
from klrl.scripts.cli import run_config
from klrl.scripts.cli.command_line import bad_input, failed_worker
from klrl.scripts.cli.environments import environment
from klrl.scripts.cli.ranks import follow, named
from klrl.scripts.cli.saved_agents import compare_paths, compare_versions
from klrl.scripts.cli.training import run_training
from klrl.studies.opening import Learn, saved_or_new, why_finished
from klrl.text import plain, printable
from klrl.trust_region import TrustRegion

if TYPE_CHECKING:
    from klrl.scripts.resume import Resuming


def resume(prog: str, args: Resuming, signals: Signals, world: World | None = None) -> None:
    """Train to the end from the newest good checkpoint of the run directory.

    Args:
        prog: name of the command, for messages.
        args: the run directory, and what of the run is not saved.
        signals: handlers, installed.
        world: all ranks of the training, of which the first one has the files.
    """
    path, world = args.path, World() if world is None else world
    prog = named(prog, world)
    with bad_input(prog), failed_worker(prog):
        run = world.said_by_first(lambda: _read(path))
        _refuse_schedules(path, run["config"])
        region = run_config.saved_region(path, run, args.trust_region)
        network = of_flag(path, run["config"], args.network)
        options, config = run_config.settings(path / "config.json", run, region, network=network)
        torch.set_num_threads(options.torch_threads)
        world.settle(rank_timeout=options.rank_timeout, on_divergence=options.on_divergence)
        env = environment(run["env"], args.env, args.wrapper)
        if world.rank == 0:
            keep = options.directory(path, resume=True)
            keep.claim()
        agent, learn = _agent(path, run, config, env, region, world)
        owed = False
        if world.rank == 0:
            keep.check_run(agent)
            owed = any(one.owes(agent) for one in (*options.evaluation(env), *options.videos(env, path)))
    reason = None if world.any(owed) else why_finished(agent, options.budgets(), options.goal())
    reason = world.said_by_first(lambda: reason)
    if world.rank > 0:
        if reason is None:
            follow(prog, agent, learn, options, signals)
        return
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
    return run_config.read(file)


def _refuse_schedules(path: Path, config: Mapping[str, Any]) -> None:
    """Refuse a run with settings that functions schedule: no flag gives one again."""
    named = {name: function for name, function in functions_in(config).items() if name != "network"}
    if named:
        what = plain(", ".join(f"{name} = {function}" for name, function in named.items()), 200)
        again = ", ".join(f"{name!r}: ..." for name in named)
        allowed = f"in Python, klrl.agents.load_agent({str(path)!r}, env, schedules={{{again}}}).learn(...)"
        raise ValueError(f"{what}: functions are not saved; allowed: {allowed}")


def _allowed(path: Path) -> str:
    """Return the end of a message: a run directory, and what else goes on there or can be begun."""
    if (path / "study.toml").exists():
        return f"allowed: a run directory; the study there goes on with klrl study --output {path}"
    again = f", or klrl train ... --run-dir {path} to begin one there" if only_leftovers(path) else ""
    return f"allowed: a run directory{again}"


def _agent(
    path: Path, run: dict[str, Any], config: AgentConfig, env: Named, region: TrustRegion | None, world: World
) -> tuple[Agent[Any], Learn]:
    """Return the agent as saved, or as it began if nothing was saved; and the function that trains it."""

    def new() -> Agent[Any]:
        agent = AGENTS[run["agent"]](env, config, seed=run["seed"], trial=True)
        if run["start_from"] is not None:
            agent.start_from(run["start_from"])
        agent.preset = run.get("preset")
        return agent

    def read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
        return world.saved_by_first(lambda: checkpoint.read(path))

    return saved_or_new(path, new, run["total_timesteps"], env, region, config.network, read)
