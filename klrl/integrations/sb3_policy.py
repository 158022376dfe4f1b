"""Policies of Stable-Baselines3, rebuilt from what their zip says: fully connected layers and a distribution."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from klrl.integrations.sb3_reader import TRUST, Model, NotEnough, Reader, Statistics
from klrl.policy.distributions import Bernoulli, Categorical, DiagGaussian, Distribution, MultiCategorical
from klrl.policy.observations import Encoding
from klrl.text import one_line, plain, warn_user

_POLICIES = {
    "stable_baselines3.common.policies.ActorCriticPolicy": False,
    "sb3_contrib.common.maskable.policies.MaskableActorCriticPolicy": True,
}
"""Classes that are layers alone, and whether they take action masks."""
_ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {
    "Tanh": nn.Tanh, "ReLU": nn.ReLU, "ELU": nn.ELU, "LeakyReLU": nn.LeakyReLU, "SiLU": nn.SiLU, "GELU": nn.GELU,
    "Sigmoid": nn.Sigmoid, "Softplus": nn.Softplus,
}  # fmt: skip
"""Activations that are made without arguments, by their names in torch."""
_HARMLESS = {
    "net_arch", "activation_fn", "ortho_init", "log_std_init", "features_extractor_class", "share_features_extractor",
    "normalize_images", "optimizer_class", "optimizer_kwargs", "use_sde", "use_expln", "full_std", "squash_output",
}  # fmt: skip
"""Arguments that tensors' shapes tell already, or that only training reads; the rest is checked below."""
_LAYERS = ("mlp_extractor.policy_net.", "mlp_extractor.value_net.", "action_net.", "value_net.")
"""Beginnings of the names of parameters that are layers of actor and critic; older versions could share some."""
_FLATTEN = "stable_baselines3.common.torch_layers.FlattenExtractor"


@dataclass(frozen=True, eq=False)
class Layers:
    """Linear layers with an activation between them, and after the last one where they are hidden ones."""

    linears: tuple[tuple[Tensor, Tensor], ...]
    """Weight and bias of every layer, from the input on."""

    @property
    def hidden_sizes(self) -> tuple[int, ...]:
        """Widths of the hidden layers."""
        return tuple(len(bias) for _, bias in self.linears[:-1])

    def __call__(self, x: Tensor, activation: nn.Module) -> Tensor:
        """Return the outputs at features ``[n, k]``."""
        for weight, bias in self.linears[:-1]:
            x = activation(linear(x, weight, bias))
        return linear(x, *self.linears[-1])


@dataclass(frozen=True, eq=False)
class SB3Policy:
    """Actor and critic of PPO, A2C, TRPO or MaskablePPO, with the normalisation of their training.

    Observations are encoded (:class:`klrl.policy.Encoding`), as environments give them, not normalised.
    """

    model: Model
    statistics: Statistics | None
    encoding: Encoding
    actor: Layers
    critic: Layers
    activation: str
    """Name of the activation in ``torch.nn``."""
    log_std: Tensor | None
    """Free log standard deviations of a Gaussian."""
    masked: bool
    """True if it takes action masks."""

    @property
    def action_space(self) -> gym.Space:
        """The environment's."""
        return self.model.action_space

    @property
    def algorithm(self) -> str:
        """Name of the algorithm, as far as its settings tell it."""
        known = self.model.settings
        kind = "TRPO" if "cg_max_steps" in known else "PPO" if "n_epochs" in known else "A2C"
        return f"Maskable{kind}" if self.masked else kind

    def features(self, observations: Tensor) -> Tensor:
        """Return what the first layer is given, ``[n, *O] -> [n, k]``, without a mask."""
        x = observations.numpy()
        x = x[..., : self.encoding.n_features] if self.encoding.n_mask else x
        x = x if self.statistics is None else self.statistics.normalized(x)
        return torch.from_numpy(x).float().flatten(1)

    @torch.no_grad()
    def distribution(self, observations: Tensor) -> Distribution:
        """Return the policy at encoded observations ``[n, *O]``; a Gaussian in the environment's units."""
        outputs = self.actor(self.features(observations), _ACTIVATIONS[self.activation]())
        space = self.model.action_space
        if self.log_std is not None:
            return DiagGaussian(outputs, self.log_std.expand_as(outputs).clone())
        if self.encoding.n_mask:
            outputs = Categorical.masked(outputs, self.encoding.allowed(observations) > 0.5).logits
        if isinstance(space, gym.spaces.Discrete):
            return Categorical(outputs)
        if isinstance(space, gym.spaces.MultiDiscrete):
            return MultiCategorical(outputs, tuple(space.nvec.tolist()))
        return Bernoulli(outputs)

    @torch.no_grad()
    def values(self, observations: Tensor) -> Tensor:
        """Return the critic's values ``[n]`` at encoded observations, in units of the reward that it learned from."""
        return self.critic(self.features(observations), _ACTIVATIONS[self.activation]()).squeeze(-1)

    def to_environment(self, action: Tensor) -> np.ndarray:
        """Return the environment's actions, ``[n, ...]``; those of a Box are clipped to it."""
        space = self.model.action_space
        shaped = action.numpy().reshape(len(action), *(space.shape or ()))
        if isinstance(space, gym.spaces.Box):
            shaped = np.clip(shaped, space.low, space.high)
        return shaped.astype(space.dtype, copy=False)


def read_policy(path: str | Path, vec_normalize: str | Path | None = None, reader: Reader | None = None) -> SB3Policy:
    """Read a policy of Stable-Baselines3 without executing anything that stands in its zip.

    Args:
        path: what the model's ``save`` wrote.
        vec_normalize: what ``VecNormalize.save`` wrote, or ``"none"`` if observations were not normalised by one.
        reader: a process that reads; by default one is started and ended.

    Raises:
        ValueError: one line: the zip is damaged, its VecNormalize is missing, or (:class:`NotEnough`) the policy is
            more than layers.
    """
    if reader is None:
        with Reader() as reader:
            return read_policy(path, vec_normalize, reader)
    model = reader.model(path)
    policy = rebuilt(model)
    return replace(policy, statistics=statistics_of(model, vec_normalize, reader))


def statistics_of(model: Model, vec_normalize: str | Path | None, reader: Reader) -> Statistics | None:
    """Read the statistics of a model's observations.

    Raises:
        ValueError: it was trained on a VecNormalize that is not given, or on another one.
    """
    if vec_normalize is None and model.used_vec_normalize:
        raise ValueError(
            f"path = {model.path} was trained on a VecNormalize, whose statistics its zip does not hold; allowed: "
            f"--vecnormalize {beside(model.path) or 'FILE, as VecNormalize.save wrote it'}, or --vecnormalize none if "
            "it left observations as they are"
        )
    if vec_normalize is None or str(vec_normalize) == "none":
        return None
    if model.used_vec_normalize is False:
        warn_user(f"{model.path} was not trained on a VecNormalize; {vec_normalize} normalises what it observes")
    statistics = reader.statistics(vec_normalize)
    if statistics.norm_obs and statistics.moments["obs.mean"].shape != model.observation_space.shape:
        have = tuple(statistics.moments["obs.mean"].shape)
        raise ValueError(
            f"vecnormalize = {vec_normalize} is for observations of shape {have}; allowed: "
            f"{model.observation_space.shape}, as {model.path} has them"
        )
    return statistics


def beside(path: Path) -> Path | None:
    """Return the VecNormalize that Stable-Baselines3's ``CheckpointCallback`` saved beside a model, if it is there."""
    found = re.fullmatch(r"(.*)_(\d+_steps)\.zip", path.name)
    file = path.with_name(f"{found[1]}_vecnormalize_{found[2]}.pkl") if found else None
    return file if file is not None and file.is_file() else None


def rebuilt(model: Model) -> SB3Policy:
    """Rebuild a policy, without statistics, from what its zip says.

    Raises:
        NotEnough: it is more than layers.
        ValueError: its parameters do not fit its spaces.
    """
    activation = _check_class(model)
    _check_spaces(model)
    masked = _POLICIES[model.policy_class]
    try:
        encoding = Encoding(model.observation_space, model.action_space, "info" if masked else "none", "numbers")
    except ValueError as error:
        raise ValueError(f"path = {model.path}: {error}") from error
    actor, critic = (
        _layers(model, f"mlp_extractor.{net}_net", last) for net, last in (("policy", "action"), ("value", "value"))
    )
    n_actions = gym.spaces.flatdim(model.action_space)
    for layers, n_outputs in ((actor, n_actions), (critic, 1)):
        _check_sizes(model, layers, encoding.n_features, n_outputs)
    log_std = model.weights.get("log_std")
    if (log_std is not None) != isinstance(model.action_space, gym.spaces.Box) or (
        log_std is not None and log_std.shape != (n_actions,)
    ):
        raise ValueError(f"path = {model.path}: it is damaged: its log_std does not fit {one_line(model.action_space)}")
    return SB3Policy(model, None, encoding, actor, critic, activation, log_std, masked)


def _check_class(model: Model) -> str:
    """Refuse a policy that is more than layers; return its activation."""
    kwargs = model.policy_kwargs
    said = kwargs.get("activation_fn", "torch.nn.modules.activation.Tanh")
    activation = str(said).removeprefix("torch.nn.modules.activation.")
    more = sorted(model.weights.keys() - {"log_std"})
    more = [name for name in more if not name.startswith(_LAYERS)]
    problem = ""
    if re.search(r"\.(recurrent|sac|td3|dqn|ddpg|tqc|qrdqn|ars|crossq)\.", model.policy_class):
        raise ValueError(
            f"path = {model.path} is a {plain(model.policy_class, 200)}, which has no distribution of actions that "
            "depends on the observation alone; allowed: PPO, A2C, TRPO, MaskablePPO"
        )
    if model.policy_class not in _POLICIES:
        problem = f"its policy is a {model.policy_class}"
    elif model.use_sde or kwargs.get("use_sde") or kwargs.get("squash_output"):
        problem = "its policy explores by gSDE"
    elif strange := sorted(kwargs.keys() - _HARMLESS):
        problem = f"its policy has the argument {strange[0]}"
    elif kwargs.get("features_extractor_class", _FLATTEN) != _FLATTEN:
        problem = f"its policy has a {kwargs['features_extractor_class']}"
    elif activation not in _ACTIVATIONS:
        problem = f"its policy has the activation {said}"
    elif more:
        problem = f"its policy has the parameter {more[0]}"
    if problem:
        raise NotEnough(f"path = {model.path}: {plain(problem, 200)}; allowed: policies of layers alone, or {TRUST}")
    return activation


def _check_spaces(model: Model) -> None:
    """Refuse spaces on which Stable-Baselines3 computes otherwise than its layers say."""
    space = model.observation_space
    if isinstance(space, gym.spaces.Box) and space.dtype == np.uint8 and len(space.shape) in (2, 3):
        raise NotEnough(
            f"path = {model.path}: its observations {one_line(space)} are images; allowed: vectors, or {TRUST}"
        )
    for name, one in (("observation_space", space), ("action_space", model.action_space)):
        flat = not isinstance(one, gym.spaces.MultiDiscrete) or one.nvec.ndim == 1
        if not flat or np.any(getattr(one, "start", 0) != 0):
            raise ValueError(
                f"path = {model.path}: {name} = {one_line(one)}; allowed: choices in a row that start at 0"
            )


def _layers(model: Model, hidden: str, last: str) -> Layers:
    """Return the layers under these names."""
    found: list[tuple[Tensor, Tensor]] = []
    names = [f"{hidden}.{2 * i}" for i in range(len(model.weights))]
    names = [name for name in names if f"{name}.weight" in model.weights] + [f"{last}_net"]
    for name in names:
        both = [model.weights.get(f"{name}.{kind}") for kind in ("weight", "bias")]
        weight, bias = both
        if weight is None or bias is None or weight.ndim != 2 or bias.shape != weight.shape[:1]:
            raise ValueError(f"path = {model.path}: it is damaged: {name} is no linear layer")
        found.append((weight, bias))
    mine = sum(name.startswith((f"{hidden}.", f"{last}_net.")) for name in model.weights)
    if 2 * len(found) != mine:
        raise NotEnough(
            f"path = {model.path}: its {hidden} is more than layers; allowed: policies of layers alone, or {TRUST}"
        )
    return Layers(tuple(found))


def _check_sizes(model: Model, layers: Layers, n_inputs: int, n_outputs: int) -> None:
    for weight, bias in layers.linears:
        if weight.shape[1] != n_inputs:
            raise ValueError(
                f"path = {model.path}: it is damaged: a layer of {weight.shape[1]} inputs is given {n_inputs}"
            )
        if not bool(weight.isfinite().all() & bias.isfinite().all()):
            raise ValueError(f"path = {model.path} has parameters that are not finite; allowed: finite numbers")
        n_inputs = len(bias)
    if n_inputs != n_outputs:
        raise ValueError(f"path = {model.path}: it is damaged: its last layer has {n_inputs} outputs, not {n_outputs}")
