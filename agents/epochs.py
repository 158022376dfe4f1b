"""Epochs of minibatch steps, in the kernel where it knows the loss; :mod:`klrl.policy.paths` has the table."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from operator import is_not
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from klrl.agents.update_batch import UpdateBatch
from klrl.native import SURROGATES, Kernel, Loss, Network, Samples
from klrl.policy.actors import CategoricalActor
from klrl.policy.box_actors import GaussianActor
from klrl.policy.mlp import MLP
from klrl.policy.networks import Critic
from klrl.policy.observations import Encoding
from klrl.policy.optimizer import BETA1, BETA2, EPS, Adam, AdamState
from klrl.policy.paths import is_written_out, learns_in_kernel
from klrl.run.callback import Callback
from klrl.run.callback_list import hears
from klrl.trust_region import Clip
from klrl.trust_region.all import members
from klrl.trust_region.arithmetic import Arithmetic, arithmetic

if TYPE_CHECKING:
    from klrl.agents.base import Agent
    from klrl.agents.learner import Learner

Step = Callable[[UpdateBatch], dict[str, Any]]
_METRICS = ("train/policy_gradient_loss", "train/value_loss", "train/clip_fraction")
_DEFINITIONS = {
    "_step", "_critic_step", "_clip_fraction", "minibatches", "objective", "penalized_surrogate", "value_loss",
    "entropy", "descend",
}  # fmt: skip
"""Methods that define a step; the kernel knows klrl's own."""
_PARTS = {"descend", "step", "linearize", "policy", "surrogate", "surrogate_gradient", "penalty", "penalty_gradient"}
"""Methods of the agent's parts that take part in one."""


@dataclass(frozen=True)
class Terms:
    """Terms of a loss that has no others: value E[(V - V_target)^2] - entropy E[H] - E[surrogate - penalty]."""

    value: float
    policy: bool = False
    """False where the first term is the only one."""
    entropy: float = 0.0


def kernel_of(agent: Learner[Any], samples: UpdateBatch | None = None) -> Kernel | None:
    """Return the kernel if it can take the agent's steps (on these samples), as the agent is now."""
    networks, kernel = agent.networks, agent.networks.kernel
    if kernel is None or not _is_klrls(agent) or type(networks.optimizer) is not Adam:
        return None
    moved = networks.optimized
    known = (
        all(_is_known(network, agent.encoding) for network in moved)
        and (agent.actor not in moved or arithmetic(agent.region) is not None)
        and learns_in_kernel(kernel, agent.config.batch_size, networks.numpy_rows)
        and (samples is None or (networks.is_packed and _in_range(agent, samples)))
    )
    return kernel if known else None


def _is_klrls(agent: Learner[Any]) -> bool:
    """Tell whether nobody has redefined what a step is, in a class or in an object."""
    found = [getattr(type(agent), name) for name in _DEFINITIONS if hasattr(type(agent), name)]
    homes = [getattr(f, "__globals__", {}).get("__name__", "") for f in found]  # functools.wraps copies __module__
    networks, region = agent.networks, agent.region
    parts = [networks, networks.optimizer, *networks.optimized, region, *members(region)]
    return (
        all(home.startswith("klrl.agents.") for home in homes)
        and not vars(agent).keys() & _DEFINITIONS
        and not any(vars(part).keys() & _PARTS for part in parts)
    )


def _is_known(network: Any, encoding: Encoding) -> bool:
    """Tell whether the kernel knows what parameters and outputs mean, and finds as many as it looks for."""
    if not is_written_out(network) or type(network.trunk) is not MLP:
        return False
    (inputs, *_, outputs) = sizes = network.trunk.layers.sizes
    if type(network) is GaussianActor:
        free = network.log_std is None or network.log_std.requires_grad
        meant = free and not network.squashed and outputs == (network.d if network.own else 2 * network.d)
    else:
        meant = type(network) is CategoricalActor or (type(network) is Critic and outputs == 1)
    return meant and inputs == encoding.n_features and Network.fits(sizes)


class Epochs:
    """Epochs of minibatch steps on the same samples.

    What the kernel is given is made once, and anew where a callback may have changed it.

    Args:
        agent: its networks move.
        samples: the whole batch.
        callback: is told of the steps, if it has anything to do then.
    """

    def __init__(self, agent: Agent[Any], samples: UpdateBatch, callback: Callback) -> None:
        self._agent, self._samples, self._callback = agent, samples, callback
        self._watched = hears(callback, "on_minibatch_end")
        self._interrupted = self._watched or hears(callback, "on_epoch_end")
        self._known: _InKernel | None = None
        self._known_of: tuple[object, ...] = ()

    def steps(self, step: Step, terms: Terms) -> dict[str, list[Any]]:
        """Take a step on every minibatch, in a new random order; return the metrics by name, a number for each step.

        Args:
            step: takes the step on one minibatch and returns its metrics.
            terms: the loss that this step lowers, for the kernel, which takes as many of the steps as it can.
        """
        agent, samples, callback = self._agent, self._samples, self._callback
        config, size, columns = agent.config, agent.config.batch_size, slice(None) if terms.policy else slice(1, 2)
        if (kernel := self._in_kernel()) is None:
            return _in_numpy(agent, agent.minibatches(samples), step, callback)
        order = torch.randperm(len(samples), generator=agent.streams.minibatches, device="cpu")
        metrics: dict[str, list[Any]] = {name: [] for name in _METRICS[columns]}
        while len(order) and agent.config is config and kernel is not None:
            part = order[:size] if self._watched else order
            taken = kernel.take(part, terms)
            order = order[len(taken) * size :]
            if self._watched:
                for row in taken.tolist():
                    one = dict(zip(metrics, row[columns], strict=True))
                    callback.on_minibatch_end(agent, one)
                    _add(metrics, {name: [value] for name, value in one.items()})
            else:
                _add(metrics, dict(zip(metrics, taken.T[columns].tolist(), strict=True)))
            if len(taken) * size < len(part):  # in front of a gradient that is not finite: numpy's step says where
                break
            if len(order):
                kernel = self._in_kernel()
        if len(order):
            _add(metrics, _in_numpy(agent, agent.minibatches(samples, size, order), step, callback))
        return metrics

    def _in_kernel(self) -> _InKernel | None:
        """Return what the kernel is given, if it can take the agent's steps as the agent is now."""
        agent = self._agent
        now = agent.config, agent.region, agent.networks.optimizer
        if self._interrupted or not self._known_of or any(map(is_not, now, self._known_of)):
            kernel = kernel_of(agent, self._samples)
            self._known = None if kernel is None else _InKernel(kernel, agent, self._samples)
            self._known_of = now
        return self._known


class _InKernel:
    """Structures that the kernel is given, as long as settings, region and networks stay the same ones."""

    def __init__(self, kernel: Kernel, agent: Learner[Any], samples: UpdateBatch) -> None:
        self._kernel, self._networks = kernel, agent.networks
        self._given = [_network(*moved) for moved in zip(self._networks.optimized, self._states, strict=True)]
        self._samples = cache(lambda policy: _samples(agent, samples, policy=policy))
        self._loss = cache(lambda terms: _loss(agent, terms))

    def take(self, order: Tensor, terms: Terms) -> np.ndarray:
        """Take the steps on the samples in this order; return their metrics ``[steps, 3]``."""
        samples, networks = self._samples(terms.policy), self._networks
        samples.put(n=len(order), order=order.numpy())
        for given, state, factor in zip(self._given, self._states, networks.optimizer.factors, strict=True):
            given.put(steps=state.steps, rate=networks.optimizer.learning_rate * factor)
        by_network = dict(zip(networks.optimized, self._given, strict=True))
        actor = by_network[networks.actor] if terms.policy else None
        taken = self._kernel.epoch(actor, by_network[networks.critic], samples, self._loss(terms))
        for given, state in zip(self._given, self._states, strict=True):
            state.steps = given.steps
        return taken

    @property
    def _states(self) -> list[AdamState]:
        return self._networks.optimizer.states


def _in_numpy(
    agent: Agent[Any], minibatches: Iterator[UpdateBatch], step: Step, callback: Callback
) -> dict[str, list[Any]]:
    taken: dict[str, list[Any]] = defaultdict(list)
    for minibatch in minibatches:
        metrics = step(minibatch)
        callback.on_minibatch_end(agent, metrics)
        _add(taken, {name: [value] for name, value in metrics.items()})
    return taken


def _add(metrics: dict[str, list[Any]], more: Mapping[str, list[Any]]) -> None:
    for name, values in more.items():
        metrics.setdefault(name, []).extend(values)


def _in_range(agent: Learner[Any], samples: UpdateBatch) -> bool:
    """Tell whether actions are indices of choices where they have to be: the kernel does not look."""
    if not (agent.actor in agent.networks.optimized and _chooses(agent)):
        return True
    low, high = torch.aminmax(samples.actions)
    return samples.actions.dtype == torch.int64 and low.item() >= 0 and high.item() < _n_outputs(agent.actor)


def _network(network: Any, state: AdamState) -> Network:
    layers = network.trunk.layers
    moments = {"mean": state.mean, "square": state.square}
    return Network.with_layers(layers.sizes, state.theta, relu=not layers.is_tanh, **moments)


def _samples(agent: Learner[Any], samples: UpdateBatch, *, policy: bool) -> Samples:
    n, encoding = len(samples), agent.encoding
    width = encoding.n_features + encoding.n_mask
    floats = {"observations": (agent.inputs(samples.observations), width), "returns": (samples.returns, 1)}
    choices = None
    if policy:
        k = samples.old.parameters[0].shape[-1]
        floats |= {"log_prob": (samples.log_prob, 1), "advantage": (samples.advantage, 1)}
        floats |= {name: (x, k) for name, x in zip(("old", "old_log_std"), samples.old.parameters, strict=False)}
        if _chooses(agent):
            choices = samples.actions.reshape(n).contiguous().numpy()
        else:
            floats |= {"actions": (samples.actions, k)}
    arrays = {name: x.reshape(n, k).float().contiguous().numpy() for name, (x, k) in floats.items()}
    return Samples.of(
        batch=agent.config.batch_size, width=width, mask=encoding.n_features if encoding.n_mask else 0,
        choices=choices, **arrays,
    )  # fmt: skip


def _loss(agent: Learner[Any], terms: Terms) -> Loss:
    adam = {"max_norm": agent.networks.optimizer.max_grad_norm, "beta1": BETA1, "beta2": BETA2, "eps": EPS}
    if not terms.policy:
        return Loss.of(vf_coef=terms.value, **adam)
    actor: Any = agent.actor
    region, known = agent.region, arithmetic(agent.region) or Arithmetic()
    outputs: dict[str, Any] = {"d": _n_outputs(actor), "categorical": True}
    if not _chooses(agent):
        outputs = {"d": actor.d, "log_std_init": actor.log_std_init}
    return Loss.of(
        surrogate=SURROGATES.index(known.surrogate), epsilon=known.epsilon, slope=known.slope, beta=known.beta,
        vf_coef=terms.value, ent_coef=terms.entropy, clip_range=region.clip_range or Clip().clip_range,
        **outputs, **adam,
    )  # fmt: skip


def _n_outputs(network: Any) -> int:
    return network.trunk.layers.sizes[-1]


def _chooses(agent: Learner[Any]) -> bool:
    return type(agent.actor) is CategoricalActor
