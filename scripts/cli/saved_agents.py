"""Saved agents on the command line: an agent with its environment, its returns, and the end of long work."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym

from klrl.agents import Agent, load_agent
from klrl.agents.own_networks import of_flag
from klrl.experience import BadStep
from klrl.experience.environments import env_id, factory
from klrl.experience.wrapped import Named
from klrl.run import checkpoint, evaluate
from klrl.run.directory import check_new, versions
from klrl.run.disk import LARGEST_CONFIG, read_regular_file
from klrl.run.evaluation import CannotAct
from klrl.schedules import functions_in
from klrl.scripts.cli.command_line import ended_early, fail
from klrl.scripts.cli.environments import environment
from klrl.studies import results
from klrl.text import plain, warn_user
from klrl.trust_region import KLConstraint, TrustRegion
from klrl.trust_region.codec import own_class


@dataclass(frozen=True)
class LoadedAgent:
    """A saved agent, to act, and the environment to play it in."""

    agent: Agent[Any]
    name: str
    """Name of the algorithm."""
    env: Named

    @property
    def env_id(self) -> str | None:
        """Registered id of the environment."""
        return env_id(self.env)

    @classmethod
    def load(
        cls,
        path: Path,
        env: str | None,
        wrappers: Sequence[Sequence[str]] | None = None,
        network: str | None = None,
    ) -> LoadedAgent:
        """Load a saved agent, by default with the environment of its training.

        Args:
            path: the saved agent, or a run directory.
            env: id of another environment, or of this one in its module.
            wrappers: wrappers in words; ``None`` if the command takes none.
            network: ``MODULE:NAME`` of what made networks of one's own.

        Raises:
            FileNotFoundError: nothing is saved there.
            ValueError: the agent is damaged, or its environment does not fit.
        """
        found = checkpoint.read(path)
        saved = found[1]
        agent = to_act(path, found, network)
        wanted = environment(saved["env"], env, wrappers)
        loaded = cls(agent, saved["agent"], wanted)
        with loaded._first() as one:
            if (one.observation_space, one.action_space) != (agent.observation_space, agent.action_space):
                allowed = agent.observation_space
                raise ValueError(f"env = {env_id(wanted)}: its spaces differ from the agent's; allowed: {allowed}")
        return loaded

    def make(self) -> gym.Env:
        """Make one environment."""
        return factory(self.env)()

    def _first(self) -> gym.Env:
        try:
            return self.make()
        except Exception as error:  # saved or given arguments that it does not take
            raise ValueError(f"env = {self.env_id}: {type(error).__name__}: {error}") from error

    def returns(
        self, agents: dict[str, Agent[Any]], episodes: int, seed: int, max_steps: int
    ) -> dict[str, dict[str, Any]]:
        """Play episodes of each agent, with its most probable and with sampled actions; print and return results."""
        record: dict[str, dict[str, Any]] = {}
        for name, agent in agents.items():
            said, record[name] = [], {}
            for how in ("deterministic", "stochastic"):
                with self.make() as env:
                    deterministic = how == "deterministic"
                    result = evaluate(agent, env, episodes, deterministic=deterministic, seed=seed, max_steps=max_steps)
                said.append(f"{result.mean:.1f} ± {result.std:.1f} over {len(result.returns)} {how} episodes")
                record[name][how] = {"mean_return": result.mean, "std_return": result.std, "returns": result.returns}
                record[name][how] |= {"cut": result.cut}
            print(f"{name}: mean return {', '.join(said)}")
        return record


def to_act(path: Path, found: tuple[Any, dict[str, Any]], network: str | None) -> Agent[Any]:
    """Return a saved agent to act with, which needs neither its trust region nor schedules, but its networks.

    Args:
        path: the saved agent, or the run directory.
        found: what was read there.
        network: ``MODULE:NAME`` of what made networks of one's own.

    Raises:
        ValueError: the agent is damaged, or its networks are not given.
    """
    saved = found[1]
    own = of_flag(path, saved.get("config"), network)
    return load_agent(path, saved=found, trust_region=_to_act_with(saved), schedules=_for_acting(saved), network=own)


def _to_act_with(saved: dict[str, Any]) -> TrustRegion | None:
    """Return any region in place of a custom one, which is not saved: acting needs none."""
    config = saved.get("config")
    regions = [saved.get("region"), config.get("trust_region") if isinstance(config, dict) else None]
    return KLConstraint() if own_class(regions) else None


def _for_acting(saved: dict[str, Any]) -> dict[str, float]:
    """Return numbers in place of functions that schedule settings, which are not saved: acting needs none."""
    config = saved.get("config")
    functions = functions_in(config) if isinstance(config, dict) else {}
    return dict.fromkeys(functions.keys() - {"network"}, 0.1)


def compare_versions(then: Mapping[str, Any], consequence: str) -> None:
    """Warn if other versions may give other numbers."""
    now = versions()
    changed = [f"{name} {then[name]} -> {now.get(name, 'none')}" for name in then if then[name] != now.get(name)]
    if changed:
        warn_user(f"versions differ, so {consequence}: {plain(', '.join(changed))}")


def compare_paths(then: Any, now: Mapping[str, str], consequence: str) -> None:
    """Warn if other paths of computation than a saved agent's will round differently."""
    known = then if isinstance(then, dict) else {}
    changed = [f"{name} {known[name]} -> {now[name]}" for name in now if name in known and known[name] != now[name]]
    if changed:
        warn_user(f"paths differ, so {consequence}: {plain('; '.join(changed))}")


def versions_of(path: Path) -> dict[str, Any]:
    """Return the versions of the run of a run directory, or of a checkpoint in it, as far as its files say."""
    for run in (path, path.absolute().parent.parent):
        try:
            found = json.loads(read_regular_file(run / "config.json", LARGEST_CONFIG))["versions"]
        except (OSError, ValueError, TypeError, KeyError, RecursionError):  # a saved agent can act without it
            continue
        if isinstance(found, dict):
            return found
    return {}


def claim(output: Path, numbers: Path | None, *, again: bool) -> None:
    """Make sure before long work that its results can be written.

    Args:
        output: directory of the agent.
        numbers: file of the numbers.
        again: whether this was checked before, so that the agent may exist by now.

    Raises:
        OSError: they cannot be written, or ``output`` exists already.
    """
    if not again:
        check_new(output, "output")
    if numbers:
        results.claim(numbers, "json")
    output.mkdir(parents=True, exist_ok=True)


def write(numbers: Path | None, record: dict[str, Any]) -> None:
    """Write the record as JSON, with the versions that made it."""
    if numbers:
        results.write(numbers, json.dumps(record | {"versions": versions()}, indent=1) + "\n")


@contextlib.contextmanager
def working(prog: str, more: Callable[[], str] = str) -> Iterator[None]:
    """Report the early end of long work in one line.

    Exit status 1 for numbers that are not finite and other input an agent cannot act on, 130 for Ctrl-C.

    Args:
        prog: name of the command.
        more: end of the line about Ctrl-C, or about a disk.
    """
    try:
        with ended_early(prog, more):
            yield
    except (FloatingPointError, CannotAct) as error:
        fail(prog, error, status=1)
    except BadStep as error:
        fail(prog, error)
