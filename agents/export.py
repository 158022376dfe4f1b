"""A policy as one graph of tensors: from the environment's observations to the environment's actions."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from klrl.agents.learner import Learner
from klrl.policy.actor import Actor
from klrl.policy.actors import BernoulliActor, CategoricalActor, MultiCategoricalActor
from klrl.policy.box_actors import BetaActor, GaussianActor
from klrl.policy.choices import MASK
from klrl.policy.distributions import SquashedGaussian
from klrl.policy.mlp import MLP
from klrl.policy.networks import features
from klrl.policy.observations import Part
from klrl.text import one_line, plain

Format = Literal["onnx", "torch"]
_TRIES = 16
"""Proposals for each gamma variable; all of them are rejected with a probability below 0.05^16."""
_MOST_ROWS = 2**31 - 1
"""Most observations at once: torch 2.6 exports only what has a bound."""
_TRACED = "networks of torch's operations, without decisions that depend on numbers"


class ExportedPolicy(nn.Module):
    """The policy of an agent, with its normaliser and the units of its actions, in torch's operations alone.

    Args:
        agent: is copied, and may go on learning.
        deterministic: return the mode of the distribution instead of a sample.

    Raises:
        ValueError: an actor of one's own.
    """

    outputs: ClassVar[list[str]] = ["action"]
    """Names of what the graph returns."""

    def __init__(self, agent: Learner[Any], *, deterministic: bool = True) -> None:
        super().__init__()
        actor: Any = agent.actor
        if type(actor) not in _ACTIONS:
            known = ", ".join(cls.__name__ for cls in _ACTIONS)
            raise ValueError(f"actor = {type(actor).__name__} is not klrl's; allowed: {known}")
        self.deterministic = deterministic
        self.trunk = _plain(copy.deepcopy(actor.trunk).cpu().eval())
        self.log_std = None if getattr(actor, "log_std", None) is None else nn.Parameter(actor.log_std.detach().cpu())
        self._actor, self._encoding, self._normalizer = actor, agent.encoding, agent.normalizer
        self.requires_grad_(False)
        self._actions = _ACTIONS[type(actor)]
        self._space = agent.action_space
        agent.normalizer(torch.zeros(1, *agent.encoding.shape, dtype=torch.float32))  # its constants, once

    @property
    def parts(self) -> list[Part]:
        """Leaves of the observation space in the order of the inputs, the mask last."""
        mask = self._encoding.mask_part
        return [*self._encoding.parts, *([] if mask is None else [mask])]

    @property
    def names(self) -> list[str]:
        """Names of the inputs: ``observation``, its parts behind dots; ``action_mask`` where masks come by ``info``."""
        named = [".".join(["observation", *map(str, part.keys)]) for part in self.parts]
        return [*named, MASK] if self._encoding.mask_in_info else named

    @property
    def description(self) -> dict[str, Any]:
        """Inputs and spaces of the graph, as plain JSON."""
        return {
            "inputs": self.names,
            "observation_space": one_line(self._encoding.space),
            "action_space": one_line(self._space),
            "deterministic": self.deterministic,
        }

    def examples(self, n: int) -> tuple[Tensor, ...]:
        """Return inputs for ``n`` observations, of the right types and shapes; each allows every action."""
        found = [_example(part, n) for part in self.parts]
        mask = [torch.ones(n, self._encoding.n_mask, dtype=torch.int8)] if self._encoding.mask_in_info else []
        return (*found, *mask)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the environment's actions ``[n, *A]`` for raw observations ``[n, *O]``, one input per part."""
        encoding = self._encoding
        columns = [self._columns(part, x) for part, x in zip(encoding.parts, inputs, strict=False)]
        mask = _rows(inputs[-1]) if encoding.n_mask else None
        whole = torch.cat(columns if mask is None else [*columns, mask.to(columns[0].dtype)], -1)
        x = self._normalizer(whole.reshape(-1, *encoding.shape))
        outputs = self.trunk(features(encoding, x))
        return self._actions(self, outputs, None if mask is None else mask > 0.5).to(_dtype(self._space.dtype))

    def _columns(self, part: Part, x: Tensor) -> Tensor:
        """Return a part as columns ``[n, k]`` of the encoding's type: numbers, bits, one-hot vectors."""
        kind = _dtype(self._encoding.dtype)
        if (sizes := part.choices) is None:
            return _rows(x).to(kind)
        start = torch.as_tensor(np.ravel(part.space.start), dtype=torch.int64)  # type: ignore[attr-defined]
        index = _rows(x).to(torch.int64) - start
        hot = [index[:, i, None] == torch.arange(size) for i, size in enumerate(sizes)]
        return torch.cat(hot, -1).to(kind)

    # -- actions by actor -----------------------------------------------------------------------

    def _chosen(self, logits: Tensor, allowed: Tensor | None) -> Tensor:
        """Return the likeliest choice ``[n]``, or one with the softmax's probabilities (Gumbel 1954)."""
        if allowed is not None:
            logits = torch.where(allowed, logits, -torch.inf)
        return (logits if self.deterministic else logits - (-_uniform(logits).log()).log()).argmax(-1)

    def _one(self, logits: Tensor, allowed: Tensor | None) -> Tensor:
        return self._chosen(logits, allowed) + self._actor.start

    def _several(self, logits: Tensor, allowed: Tensor | None) -> Tensor:
        sizes = list(self._actor.nvec)
        masks = [None] * len(sizes) if allowed is None else allowed.split(sizes, -1)
        chosen = [self._chosen(head, mask) for head, mask in zip(logits.split(sizes, -1), masks, strict=True)]
        start = torch.as_tensor(self._space.start, dtype=torch.int64)  # type: ignore[attr-defined]
        return torch.stack(chosen, -1).reshape(-1, *self._actor.space.shape) + start

    def _bits(self, logits: Tensor, _: Tensor | None) -> Tensor:
        bits = logits > 0.0 if self.deterministic else _uniform(logits) < logits.sigmoid()
        return bits.reshape(-1, *self._actor.space.shape)

    def _gaussian(self, outputs: Tensor, _: Tensor | None) -> Tensor:
        actor = self._actor
        mean = outputs[:, : actor.d]
        log_std = outputs[:, actor.d :] + actor.log_std_init if self.log_std is None else self.log_std.expand_as(mean)
        a = mean if self.deterministic else mean + log_std.exp() * torch.randn_like(mean)
        if actor.squashed:
            return self._stretched(0.5 * (SquashedGaussian(a, log_std).mode() + 1.0))
        if not actor.units.are_environments:
            a = torch.from_numpy(actor.units.center) + torch.from_numpy(actor.units.half_range) * a
        return self._clipped(a)

    def _beta(self, outputs: Tensor, _: Tensor | None) -> Tensor:
        policy = self._actor.policy(outputs, None)
        if self.deterministic:
            return self._stretched(policy.mode())
        a, b = _gamma(policy.alpha), _gamma(policy.beta)
        return self._stretched(a / (a + b))

    def _clipped(self, a: Tensor) -> Tensor:
        low, high = (torch.from_numpy(x) for x in (self._actor.space.low, self._actor.space.high))
        return torch.minimum(torch.maximum(a.reshape(-1, *low.shape), low), high)

    def _stretched(self, unit: Tensor) -> Tensor:
        low, high = (torch.from_numpy(x.reshape(-1)) for x in (self._actor.space.low, self._actor.space.high))
        return self._clipped((1.0 - unit) * low + unit * high)


_ACTIONS: dict[type[Actor], Callable[[ExportedPolicy, Tensor, Tensor | None], Tensor]] = {
    CategoricalActor: ExportedPolicy._one,
    MultiCategoricalActor: ExportedPolicy._several,
    BernoulliActor: ExportedPolicy._bits,
    GaussianActor: ExportedPolicy._gaussian,
    BetaActor: ExportedPolicy._beta,
}


def _plain(network: nn.Module) -> nn.Module:
    """Replace layers that choose a path of computation by the same ones in torch alone."""
    if isinstance(network, MLP):
        return nn.Sequential(*network)
    for name, child in network.named_children():
        setattr(network, name, _plain(child))
    return network


def _rows(x: Tensor) -> Tensor:
    """Return ``[n, *shape]`` as ``[n, k]``."""
    return x.unsqueeze(-1) if x.ndim == 1 else x.flatten(1)


def _uniform(like: Tensor) -> Tensor:
    """Return random numbers in (0, 1)."""
    tiny = torch.finfo(like.dtype).tiny
    return torch.rand_like(like).clamp(tiny, 1.0 - torch.finfo(like.dtype).eps / 2.0)


def _gamma(shape: Tensor) -> Tensor:
    """Sample gamma variables of shapes >= 1 (Marsaglia and Tsang 2000, "A Simple Method for Generating Gamma ...").

    Proposals are made all at once, and the first that is accepted is taken.
    """
    d = (shape - 1.0 / 3.0).expand(_TRIES, *shape.shape)
    x = torch.randn_like(d)
    v = (1.0 + x / (9.0 * d).sqrt()) ** 3
    positive = v > 0.0
    v = torch.where(positive, v, 1.0)
    accepted = positive & (_uniform(d).log() < 0.5 * x * x + d - d * v + d * v.log())
    first = accepted.to(torch.float32).argmax(0, keepdim=True)
    return (d * v).gather(0, first).squeeze(0)


def _dtype(dtype: Any) -> torch.dtype:
    """Return torch's type for one of numpy's."""
    return torch.from_numpy(np.zeros(1, dtype)).dtype


def _example(part: Part, n: int) -> Tensor:
    """Return ``n`` values of a part's space, all the same."""
    first = np.broadcast_to(np.asarray(getattr(part.space, "start", 0)), part.shape)
    return torch.from_numpy(np.broadcast_to(first.astype(part.space.dtype), (n, *part.shape)).copy())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what torch's exporter says about itself from the user."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def exported(policy: Any, format: Format) -> Any:
    """Return the graph: a ``torch.export.ExportedProgram``, or a ``torch.onnx.ONNXProgram``; n is free in both.

    Args:
        policy: an :class:`ExportedPolicy`, or any module with ``examples``, ``names`` and ``outputs``.
        format: "torch", or "onnx", for which the extra ``export`` is needed.

    Raises:
        ValueError: a network that cannot be traced, operations that ONNX does not have, or a missing package.
    """
    for package in ("onnx", "onnxscript") if format == "onnx" else ():
        if importlib.util.find_spec(package) is None:
            raise ValueError(f"format = 'onnx' needs {package}: pip install 'klrl[export]'; allowed without: torch")
    inputs = policy.examples(3)
    free = {"inputs": tuple({0: torch.export.Dim("n", min=1, max=_MOST_ROWS)} for _ in inputs)}
    try:
        with _quiet(), torch.no_grad():
            program = torch.export.export(policy.eval(), inputs, dynamic_shapes=free, strict=False)
            if format == "torch":
                return program
            names = {"input_names": policy.names, "output_names": policy.outputs}
            return torch.onnx.export(program, inputs, dynamo=True, verbose=False, **names)
    except Exception as error:  # of torch's tracer, about any code
        cause = error.__cause__ or error
        raise ValueError(f"the policy cannot be exported: {one_line(plain(cause, 400))}; allowed: {_TRACED}") from error


def export_policy(
    agent: Learner[Any], path: str | Path, format: Format = "onnx", *, deterministic: bool = True
) -> ExportedPolicy:
    """Write an agent's policy as a graph from raw observations to the environment's actions; return what was exported.

    Args:
        agent: the agent, or one that was loaded.
        path: the file; an older one is replaced once the new one is complete.
        format: "onnx", for onnxruntime and others (extra ``export``), or "torch", for ``torch.export.load``.
        deterministic: take the mode of the distribution; otherwise the graph draws samples.

    Raises:
        ValueError: a policy that cannot be exported, or a missing package.
    """
    policy, path = ExportedPolicy(agent, deterministic=deterministic), Path(path)
    program = exported(policy, format)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.tmp")
    with _quiet():
        if format == "onnx":
            program.model.metadata_props["klrl"] = json.dumps(policy.description)
            program.save(aside, external_data=False)
        else:
            with aside.open("wb") as file:
                torch.export.save(program, file, extra_files={"klrl": json.dumps(policy.description)})
    aside.replace(path)
    return policy
