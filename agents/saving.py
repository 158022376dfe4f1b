"""An agent's whole state as tensors and JSON, and back; without pickle."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import chain, count, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from klrl.agents.learner import Learner
from klrl.agents.own_networks import Network, given_again, refuse_word, saved_name
from klrl.agents.paths import paths_of
from klrl.agents.predecessor import Predecessor
from klrl.agents.saved_policy import SavedPolicy, check_backed, load_space, moments, normalizer
from klrl.agents.saved_tensors import MOST, check_tensor, check_tensors
from klrl.experience import Episode
from klrl.experience.cursors import EnvCursor
from klrl.experience.environments import describe, described
from klrl.experience.training_envs import TrainingEnvs
from klrl.kl.drift import Probe
from klrl.policy.device import usable_or_cpu
from klrl.policy.normalizer import Moments, Normalizer
from klrl.policy.spaces import below, describe_space
from klrl.run import checkpoint
from klrl.run.callback import Metrics
from klrl.run.history import Block, History
from klrl.schedules import Value, schedulable
from klrl.text import plain
from klrl.trust_region import TrustRegion, region_from_json, region_to_json, with_region
from klrl.trust_region.codec import own_class
from klrl.validation import Bounds, Fraction, NonNegativeInt, validate

if TYPE_CHECKING:
    from klrl.agents.base import Agent

A = TypeVar("A", bound="Agent[Any]")

Tensors = dict[str, Tensor]
Count = Annotated[int, Bounds(0, MOST)]


class Training(NamedTuple):
    """First and last step of a training."""

    first: int
    last: int

    @classmethod
    def of(cls, data: Any) -> Training | None:
        """Read a saved training.

        Raises:
            ValueError: anything but two steps, the second after the first.
        """
        if data is None:
            return None
        training = cls(*data)
        if not all(type(x) is int for x in training) or not 0 <= training.first < training.last:
            raise ValueError(f"training = {data!r}; allowed: two steps, the second after the first")
        return training

    def remaining(self, now: int) -> float:
        """Return the share of the training that is left at step ``now``."""
        return (self.last - now) / (self.last - self.first)


@dataclass(frozen=True, eq=False)
class Snapshot:
    """Copy of an agent's whole state between two updates; nothing that the agent does later changes it."""

    num_timesteps: int
    tensors: Tensors
    state: dict[str, Any]
    cursor: EnvCursor | None
    region: TrustRegion
    """Region in force; the state only names a region of the user's own class."""
    paths: Callable[[], dict[str, str]]
    """Describes the paths of computation; it is called when the state is written, since it costs more than a copy."""

    def write(self, path: str | Path, lender: Path | None = None) -> Path:
        """Write the state to a directory; an older saved agent there is replaced.

        Args:
            path: the directory.
            lender: a saved agent that already has older rows of the history, to link to.

        Raises:
            FileExistsError: something else is there.
        """
        where = {} if self.cursor is None else self.cursor.tensors()
        tensors = self.tensors | {f"whereabouts.{k}": v for k, v in where.items()}
        history: History = self.state["history"]
        parts = [block.part for block in history.blocks()]
        state = self.state | {"paths": self.paths(), "history": len(history)}
        return checkpoint.write(path, tensors, state, parts, lender)


@dataclass(frozen=True, kw_only=True)
class _Numbers:
    """Counters in the JSON, under its keys."""

    seed: NonNegativeInt
    num_timesteps: Count
    n_updates: Count
    progress_remaining: Fraction
    fresh: bool

    def __post_init__(self) -> None:
        validate(self)


def dump(agent: Learner[Any]) -> tuple[Tensors, dict[str, Any]]:
    """Collect everything that determines what the agent does next."""
    tensors: Tensors = {}
    for name, module in (("actor", agent.actor), ("critic", agent.critic)):
        tensors |= {f"{name}.{k}": v for k, v in module.state_dict().items()}
    tensors |= {f"optimizer.{k}": v for k, v in agent.networks.optimizer.state().items()}
    tensors |= {f"streams.{k}": v for k, v in agent.streams.state().items()}
    tensors |= _dump_normalizer("normalizer", agent, agent.normalizer)
    tensors |= _dump_moments("return_scaler", agent.return_scaler.moments)
    tensors["return_scaler.running"] = agent.return_scaler.running
    before, predecessor = agent.predecessor, {}
    if before is not None and before.leads_to(agent.networks.actor_parameters):
        predecessor = {"parameters": before.parameters} | _dump_normalizer("normalizer", agent, before.normalizer)
    tensors |= {f"predecessor.{k}": x for k, x in predecessor.items()}
    if agent.drift.probe is not None:
        tensors["probe.observations"] = agent.drift.probe.observations
        tensors |= {f"probe.first.{i}": x for i, x in enumerate(agent.drift.probe.first.parameters)}
    state: dict[str, Any] = {
        "agent": agent.config.algorithm,
        "config": agent.config.to_json(),
        "region": region_to_json(agent.region),
        "seed": agent.seed,
        "num_timesteps": agent.num_timesteps,
        "n_updates": agent.n_updates,
        "progress_remaining": agent.progress_remaining,
        "fresh": agent.untrained,
        "kl_sum": agent.drift.kl_sum,
        "path_length": agent.drift.path_length,
        "normalizer_count": agent.normalizer.moments.count,
        "predecessor_count": agent.predecessor.normalizer.moments.count if agent.predecessor else 0,
        "return_scaler_count": agent.return_scaler.moments.count,
    }
    for name, space in (("observation_space", agent.observation_space), ("action_space", agent.action_space)):
        state[name], arrays = describe_space(space)
        tensors |= {f"{name}.{k}": v for k, v in arrays.items()}
    if agent.reference is not None:
        tensors |= {f"reference.{k}": v for k, v in agent.reference.tensors.items()}
        state["reference"] = agent.reference.state
    return {name: x.detach().to("cpu", copy=True) for name, x in tensors.items()}, state


def restore(agent: Learner[Any], tensors: Tensors, state: dict[str, Any]) -> None:
    """Restore the state that :func:`dump` returned, except the region, in an agent with the same spaces and config.

    Raises:
        ValueError: a number is out of range.
    """
    _Numbers(**{f.name: state[f.name] for f in fields(_Numbers)})
    agent.actor.load_state_dict(_below("actor", tensors))
    agent.critic.load_state_dict(_below("critic", tensors))
    agent.networks.optimizer.restore(_below("optimizer", tensors))
    agent.streams.restore(_below("streams", tensors))
    agent.normalizer = normalizer(agent.encoding, tensors, state["normalizer_count"])
    scaler = _below("return_scaler", tensors)
    returns = moments("return_scaler", scaler, state["return_scaler_count"], ())
    agent.return_scaler = replace(agent.return_scaler, moments=returns, running=scaler["running"])
    agent.drift.probe = None
    if probe := _below("probe", tensors):
        parameters = [probe[f"first.{i}"] for i in range(len(probe) - 1)]
        family = agent.distribution(probe["observations"][:1]).cpu()
        for i, (saved, its) in enumerate(zip(parameters, family.parameters, strict=True)):
            check_tensor(f"probe.first.{i}", saved, its.dtype, (len(probe["observations"]), *its.shape[1:]))
        agent.drift.probe = Probe(probe["observations"], family.with_parameters(*parameters))
    agent.predecessor = _predecessor(agent, tensors, state)
    agent.num_timesteps, agent.n_updates = state["num_timesteps"], state["n_updates"]
    agent.progress_remaining = state["progress_remaining"]
    agent.values = agent.config.values_at(agent.progress_remaining)
    if "reference" in state:
        network = agent.config.network if saved_name(state["reference"]["config"]) else None
        agent.reference = SavedPolicy(_below("reference", tensors), state["reference"], network)
    agent.untrained = state["fresh"]
    for name in ("kl_sum", "path_length"):
        setattr(agent.drift, name, float(state.get(name, math.nan)))  # not saved before there was the metric


def _predecessor(agent: Learner[Any], tensors: Tensors, state: dict[str, Any]) -> Predecessor | None:
    """Read the policy before the last update; none was saved before there was the metric."""
    saved, now = _below("predecessor", tensors), agent.networks.actor_parameters
    if not saved:
        return None
    check_tensor("predecessor.parameters", saved["parameters"], now.dtype, now.shape)
    before = normalizer(agent.encoding, saved, state["predecessor_count"])
    return Predecessor(saved["parameters"].to(now.device), before, now.detach().clone())


def essence(agent: Learner[Any]) -> Iterator[Tensor]:
    """Yield what has to be the same wherever the same updates are taken: parameters, statistics and generators."""
    for network in agent.networks:
        yield from network.parameters()
    for known in (agent.normalizer.moments, agent.return_scaler.moments):
        yield from (known.mean, known.variance)
    yield from agent.streams.state().values()


def become(agent: Learner[Any], tensors: Tensors, state: dict[str, Any]) -> None:
    """Take over the state of an agent with the same spaces and config; a region of one's own class stays."""
    restore(agent, tensors, state)
    if own_class(state["region"]) is None:
        agent.region = region_from_json(state["region"])


def snapshot(agent: Agent[Any]) -> Snapshot:
    """Copy the whole state as it is now."""
    tensors, data = dump(agent)
    if agent.rebuilds_if_needed and not agent.config.rebuild_envs:  # nothing was decided yet
        del data["config"]["rebuild_envs"]
    mine = {
        "env": describe(agent.training_envs.env),
        "preset": agent.preset,
        "ep_rew_mean": float(np.mean([e.episode_return for e in agent.episodes])) if agent.episodes else None,
        "episodes": [list(vars(e).values()) for e in agent.episodes],
        "history": agent.history.copy(),
        "training": agent.training,
    }
    paths = partial(paths_of, agent)
    return Snapshot(agent.num_timesteps, tensors, data | mine, agent.training_envs.cursor, agent.region, paths)


def restored(
    cls: type[A],
    tensors: Tensors,
    data: dict[str, Any],
    trust_region: TrustRegion | None,
    device: str | None,
    schedules: Mapping[str, Value],
    network: Network | str | None = None,
) -> A:
    """Make the agent that was saved, without environments.

    Args:
        cls: its class.
        tensors: saved tensors.
        data: the JSON beside them.
        trust_region: a region in place of the saved one.
        device: device of its networks; by default the saved one.
        schedules: settings that are scheduled, in place of the saved ones.
        network: what made its networks, if they are of one's own.

    Raises:
        ValueError: damaged, or an agent of another class.
    """
    if data["agent"] != cls.config_class.algorithm:
        raise ValueError(f"holds agent {plain(repr(data['agent']), 80)}; allowed: {cls.config_class.algorithm!r}")
    if trust_region is not None:
        data["config"] = with_region(data["config"], trust_region)
        data["region"] = trust_region
    for name in (name for name in schedules if name not in schedulable(cls.config_class)):
        raise ValueError(f"schedules has {name!r}; allowed: {', '.join(schedulable(cls.config_class))}")
    data["config"] |= schedules
    saved = dict(data["config"])
    if network is not None or saved_name(saved) is None:  # else it is refused with other functions that are missing
        refuse_word(saved)
        data["config"]["network"] = given_again(saved, network)
    data["config"]["device"] = device or usable_or_cpu(data["config"]["device"])
    agent = cls.__new__(cls)
    config = cls.config_class.from_json(data["config"])
    observations, actions = (load_space(f"{name}_space", tensors, data) for name in ("observation", "action"))
    check_backed(observations, actions, saved, tensors)
    Learner.__init__(agent, observations, actions, config, data["seed"])
    check_tensors(tensors, dump(agent)[0])
    restore(agent, tensors, data)
    agent.region = region_from_json(data["region"])
    if not isinstance(agent.region, TrustRegion):
        raise ValueError(f"region = {data['region']!r}; allowed: a trust region")
    agent.begin(TrainingEnvs(described(data["env"]), cursor=cursor(agent, tensors)), data["preset"])
    agent.rebuilds_if_needed = "rebuild_envs" not in data["config"]
    agent.episodes.extend(map(episode, data["episodes"]))
    agent.history = history(data["history"], tensors)
    agent.training = Training.of(data["training"])
    agent.saved_paths = data.get("paths", {})  # not saved before there was the kernel
    return agent


def _dump_moments(name: str, moments: Moments) -> Tensors:
    return {f"{name}.mean": moments.mean, f"{name}.variance": moments.variance}


def _dump_normalizer(name: str, agent: Learner[Any], normalizer: Normalizer) -> Tensors:
    tensors = _dump_moments(name, normalizer.moments)
    if agent.encoding.images:  # the scale may come from a first batch, or from another agent
        scale = torch.as_tensor(normalizer.fixed_scale, dtype=torch.float64, device="cpu")
        tensors[f"{name}.fixed_scale"] = scale
    return tensors


def history(data: Any, tensors: Tensors) -> History:
    """Read a saved history; format 3 has groups of rows with the same names, whose numbers are a tensor.

    Raises:
        ValueError: damaged.
    """
    if isinstance(data, list):
        return History(_grouped(data, tensors))
    parts = takewhile(bool, (_below(f"history.{i}", tensors) for i in count()))
    read = History.of(map(Block.read, parts))
    if data != len(read):
        raise ValueError(f"history = {data!r}; allowed: {len(read)}, the number of rows")
    return read


def _grouped(groups: Sequence[dict[str, Any]], tensors: Tensors) -> Iterator[Metrics]:
    for i, group in enumerate(groups):
        for other in (x for x in [*group["names"], *chain(*group["texts"].values())] if not isinstance(x, str)):
            raise ValueError(f"history has {other!r}; allowed: text")
        texts = [group["texts"].get(name) for name in group["names"]]
        for row in tensors[f"history.{i}"].tolist():
            values = (x if known is None else known[int(x)] for x, known in zip(row, texts, strict=True))
            yield dict(zip(group["names"], values, strict=True))


def episode(data: Sequence[Any]) -> Episode:
    """Read a saved episode, with or without infos.

    Raises:
        ValueError: it has anything but numbers.
    """
    total_timesteps, episode_return, length, env_index, info = data if len(data) > 4 else [*data, {}]
    numbers = total_timesteps, episode_return, length, env_index
    if not isinstance(info, dict) or not all(map(_is_number, (*numbers, *info.values()))):
        raise ValueError(f"episode {plain(repr(data), 200)}; allowed: numbers, integers up to {MOST}")
    return Episode(*numbers, info)


def _is_number(x: object) -> bool:
    return type(x) is float or (type(x) is int and abs(x) <= MOST)


def cursor(agent: Learner[Any], tensors: Tensors) -> EnvCursor | None:
    """Read the cursor of the saved agent's environments, or ``None`` if there is none.

    Raises:
        ValueError: a cursor that these environments cannot have.
    """
    where = _below("whereabouts", tensors)
    return EnvCursor.of(where, agent.action_space.shape or (), agent.encoding.shape) if where else None


def _below(prefix: str, tensors: Tensors) -> Tensors:
    return below(f"{prefix}.", tensors)
