"""A network at one batch of inputs and its derivative there: what gradients and Fisher products are made of.

``J = d outputs / d theta`` is never built. A linearization multiplies by it from both sides: ``J v`` says how the
outputs move when the parameters do, ``J' u`` turns a gradient by the outputs into one by the parameters. theta is
the vector ``[P]`` of all the network's parameters, in the order of ``network.parameters()``.
"""

from __future__ import annotations

import abc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from operator import add
from typing import Any, Generic, TypeVar, cast

import torch
from torch import Tensor, nn

from klrl.policy.arrays import Array, concatenate, like, tensor
from klrl.policy.distributions import Distribution

Arrays = tuple[Array, ...]
T = TypeVar("T")


class Linearization(abc.ABC, Generic[T]):
    """Outputs of ``network``, cut from any graph, and the products with their Jacobian.

    If the output is a distribution, tangents and cotangents have one tensor per field of the record.
    """

    network: nn.Module
    output: T

    @abc.abstractmethod
    def pieces(self, *cotangent: Array) -> list[Array]:
        """Return J' u in consecutive pieces, vectors, for ``u`` in the shapes of the output."""

    def pull_back(self, *cotangent: Array) -> Array:
        """Return J' u, ``[P]``, for ``u`` in the shapes of the output."""
        pieces = self.pieces(*cotangent)
        return pieces[0] if len(pieces) == 1 else concatenate(pieces)

    @abc.abstractmethod
    def push_forward(self, tangent: Array) -> Arrays:
        """Return J v in the shapes of the output, for ``v [P]``."""


class ByAutograd(Linearization[T]):
    """A network of any kind, by torch's autograd: one backward pass per ``pull_back``, two per ``push_forward``."""

    def __init__(self, network: nn.Module, x: Array) -> None:
        self.network = network
        self._x = x
        self._parameters = list(network.parameters())
        with torch.enable_grad():
            output = network(tensor(x))
        self._graph = output.parameters if isinstance(output, Distribution) else (output,)
        cut = [like(y.detach(), x) for y in self._graph]
        self.output = cast("T", output.with_parameters(*cut) if isinstance(output, Distribution) else cut[0])

    def pieces(self, *cotangent: Array) -> list[Array]:
        """Return J' u by one backward pass."""
        return [like(self._backward([tensor(u) for u in cotangent]).detach(), self._x)]

    def push_forward(self, tangent: Array) -> Arrays:
        """Return J v: the derivative by u of u -> J' u, which is linear, times v (Townsend 2017)."""
        u = [torch.zeros_like(x, requires_grad=True) for x in self._graph]
        with torch.enable_grad():
            product = self._backward(u, create_graph=True) @ tensor(tangent)
        moved: Any = [torch.zeros_like(x) for x in u]
        if product.requires_grad:
            moved = torch.autograd.grad(product, u, materialize_grads=True, allow_unused=True)
        return tuple(like(x.detach(), self._x) for x in moved)

    def _backward(self, u: Any, *, create_graph: bool = False) -> Tensor:
        return flatten(_backward(self._graph, u, self._parameters, create_graph=create_graph))


def _backward(
    graph: Sequence[Tensor], u: Any, parameters: Sequence[Tensor], *, create_graph: bool = False
) -> list[Tensor]:
    """Return J' u by autograd, a tensor for every parameter; 0 for those that are frozen."""
    free = [p for p in parameters if p.requires_grad]
    moving = [(y, g) for y, g in zip(graph, u, strict=True) if y.requires_grad]  # a constant has no graph
    found: Any = []
    if moving:
        for y, g in (pair for pair in moving if pair[0].shape != pair[1].shape):
            raise ValueError(f"cotangent of shape {[*g.shape]}; allowed: {[*y.shape]}, that of the output")
        # <y, u> and not y with the cotangent u, for which torch loads sympy: a third of a second, 34 MiB.
        with torch.enable_grad():
            product = torch.stack([(y * g).sum() for y, g in moving]).sum()
        found = torch.autograd.grad(
            product, free, retain_graph=True, create_graph=create_graph, materialize_grads=True, allow_unused=True
        )
    parts = dict(zip(map(id, free), found, strict=bool(moving)))
    return [parts[id(p)] if id(p) in parts else torch.zeros_like(p) for p in parameters]


class Joint:
    """Two networks in one pass by autograd, of which the second reads what the first one's encoder says.

    It knows its two linearizations by their networks alone: in a circle of references the graph would stay in memory.

    Args:
        owner: the network that the encoder belongs to.
        reader: the other one, whose parameters are its own.
        x: inputs ``[n, ...]`` of both.
    """

    def __init__(self, owner: nn.Module, reader: nn.Module, x: Array) -> None:
        self._owner, self._x = owner, x
        self._parameters = {network: list(network.parameters()) for network in (owner, reader)}

    def pull_back(self, cotangents: Mapping[InJoint[Any], Arrays]) -> dict[nn.Module, Array]:
        """Return the gradients by both networks' parameters, ``[P]``, in one pass backwards.

        The owner is moved by the outputs of either, the reader by its own alone.
        """
        graph = [y for at in cotangents for y in at.graph]
        u = [tensor(g) for given in cotangents.values() for g in given]
        networks = [n for n in self._parameters if n is self._owner or any(at.network is n for at in cotangents)]
        found = iter(_backward(graph, u, [p for n in networks for p in self._parameters[n]]))
        return {n: like(flatten(next(found) for _ in self._parameters[n]).detach(), self._x) for n in networks}


class InJoint(Linearization[T]):
    """One network of a :class:`Joint`, whose gradient :class:`Objective` takes together with the other's."""

    def __init__(self, joint: Joint, network: nn.Module, x: Array, output: Any) -> None:
        self.joint, self.network, self._x = joint, network, x
        self.graph: Sequence[Tensor] = output.parameters if isinstance(output, Distribution) else (output,)
        cut = [like(y.detach(), x) for y in self.graph]
        self.output = cast("T", output.with_parameters(*cut) if isinstance(output, Distribution) else cut[0])

    def pieces(self, *cotangent: Array) -> list[Array]:
        """Return J' u by the network's own parameters."""
        return [self.joint.pull_back({self: cotangent})[self.network]]

    def push_forward(self, tangent: Array) -> Arrays:
        """Return J v for a tangent of the network's own parameters."""
        return ByAutograd[Any](self.network, self._x).push_forward(tangent)


@dataclass(frozen=True, eq=False)
class Objective:
    """A scalar function of networks' outputs: its value, and its gradient at those outputs.

    Sums and multiples of objectives are objectives, so a loss reads as in the paper; the derivative by the parameters
    is taken once, by :meth:`gradients`, when the whole loss is known.
    """

    value: Any
    """Value of the function: a 0-d tensor or array."""
    terms: tuple[tuple[Linearization[Any], float, Arrays], ...]
    """Gradients by outputs: the network's linearization, a factor, the gradient."""

    def __add__(self, other: Objective) -> Objective:
        return Objective(self.value + other.value, self.terms + other.terms)

    def __sub__(self, other: Objective) -> Objective:
        return self + -other

    def __neg__(self) -> Objective:
        return -1.0 * self

    def __rmul__(self, factor: float) -> Objective:
        return Objective(factor * self.value, tuple((at, factor * f, u) for at, f, u in self.terms))

    def gradients(self) -> dict[nn.Module, Tensor]:
        """Return d objective / d theta, ``[P]``, for every network it depends on."""
        cotangents: dict[Linearization[Any], Arrays] = {}
        for at, factor, u in self.terms:
            u = tuple([factor * x for x in u])
            cotangents[at] = tuple(map(add, cotangents[at], u)) if at in cotangents else u
        gradients: dict[nn.Module, Tensor] = {}
        for network, g in _pulled_back(cotangents):
            gradients[network] = gradients[network] + g if network in gradients else g
        return gradients


def _pulled_back(cotangents: Mapping[Linearization[Any], Arrays]) -> Iterator[tuple[nn.Module, Array]]:
    """Yield networks and gradients by their parameters; those of a :class:`Joint` come by one pass."""
    joint: dict[Joint, dict[InJoint[Any], Arrays]] = {}
    for at, u in cotangents.items():
        if isinstance(at, InJoint):
            joint.setdefault(at.joint, {})[at] = u
        else:
            yield at.network, at.pull_back(*u)
    for both, parts in joint.items():
        yield from both.pull_back(parts).items()


def expectation(values: Tensor, at: Linearization[Any], gradient: Arrays) -> Objective:
    """Return the mean of ``values [n]``, given the gradient of each by its own row of the outputs ``at`` a network."""
    n = len(values)
    return Objective(values.sum() / n, ((at, 1.0 / n, gradient),))


def flatten(tensors: Iterable[Tensor]) -> Tensor:
    """Copy all elements into one vector ``[P]``."""
    return torch.cat([x.reshape(-1) for x in tensors])


def pack(network: nn.Module) -> nn.Parameter:
    """Move a network's parameters into one vector ``[P]``, of which each becomes a view, and return the vector.

    An optimiser's step on it costs one operation instead of one per parameter. Moving the network to another device
    or type gives its parameters memory of their own again (:func:`is_packed`).
    """
    parameters = list(network.parameters())
    vector = flatten(p.detach() for p in parameters)
    for parameter, part in zip(parameters, vector.split([p.numel() for p in parameters]), strict=True):
        parameter.data = part.view_as(parameter)
    return nn.Parameter(vector)


def one_vector(tensors: Sequence[Tensor]) -> Tensor | None:
    """Return the vector of which these are the consecutive pieces, as :func:`pack` makes them.

    ``None`` if they are not, or not of float32 in the CPU's memory.
    """
    size = sum(x.numel() for x in tensors)
    if not all(x.is_cpu and x.dtype == torch.float32 and x.is_contiguous() for x in tensors):
        return None
    first, where = tensors[0].detach(), tensors[0].data_ptr()
    for x in tensors:
        if x.data_ptr() != where:
            return None
        where += 4 * x.numel()
    if first.untyped_storage().nbytes() < 4 * (first.storage_offset() + size):  # neighbours by chance
        return None
    return first.as_strided((size,), (1,))


def check_separate(**networks: nn.Module) -> None:
    """Refuse networks that share a parameter or its memory: packed, each would have, and move, a copy of its own.

    Raises:
        ValueError: the message names the shared parameters of both.
    """
    for (name, network), (other_name, other) in combinations(networks.items(), 2):
        shared = [
            (f"{name}.{ours}", f"{other_name}.{theirs}")
            for ours, p in network.named_parameters()
            for theirs, q in other.named_parameters()
            if p is q or _overlap(p, q)
        ]
        if shared:
            ours, theirs = (", ".join(dict.fromkeys(names)) for names in zip(*shared, strict=True))
            raise ValueError(
                f"{other_name} shares parameters with {name}: {theirs} = {ours}; "
                "allowed: a copy for each, made by copy.deepcopy"
            )


def _overlap(p: Tensor, q: Tensor) -> bool:
    """Return True if the byte ranges of two parameters overlap."""
    if p.device != q.device or not p.numel() or not q.numel():
        return False
    (start, end), (other_start, other_end) = map(_extent, (p, q))
    return start < other_end and other_start < end


def _extent(p: Tensor) -> tuple[int, int]:
    last = sum((size - 1) * stride for size, stride in zip(p.shape, p.stride(), strict=True))
    return p.data_ptr(), p.data_ptr() + (last + 1) * p.element_size()


def is_packed(network: nn.Module, vector: Tensor) -> bool:
    """Return True if the network's parameters, and nothing else, are still :func:`pack`'s views of ``vector``."""
    where = vector.data_ptr()
    for parameter in network.parameters():
        if parameter.data_ptr() != where:
            return False
        where += parameter.numel() * parameter.element_size()
    return where == vector.data_ptr() + vector.numel() * vector.element_size()
