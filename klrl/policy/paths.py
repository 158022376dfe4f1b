"""Paths of computation: their table, and every predicate that chooses one.

Two choices, made apart, give four paths. The *kind of array*: on few rows an operation's cost is the way to it, and
numpy's way is several times shorter than torch's; on many it is the arithmetic, and nothing is left of that. *Who
differentiates*: a network of known layers is differentiated by formulas, any other by torch's autograd, whose
bookkeeping costs several times the arithmetic of a small network. A fifth path has no operations to get to: the
*kernel* (:mod:`klrl.native`), compiled C, takes whole epochs of minibatch steps where it knows every part of the loss.

=======  =====================================================  =======================================================
..       derivatives written out                                derivatives by autograd
=======  =====================================================  =======================================================
kernel   Adam's steps on minibatches: an MLP in the CPU's       --
         memory, a Gaussian or categorical policy, a
         surrogate of known arithmetic, klrl's own methods;
         an MLP's outputs in rollouts, klrl's own methods;
         its outputs and derivative on a whole batch (the
         gradient and Fisher products of TRPO and NPG), one
         thread or few multiplications
numpy    an :class:`~klrl.policy.mlp.MLP` in the CPU's memory,  any other network (images, Beta, a trunk of one's own,
         on minibatches: the default                            frozen parameters; a policy and values that move the
                                                                encoder they share): torch inside, arrays outside
torch    the same where there is no kernel, on a large batch    any other network there
         or minibatch, on a GPU
=======  =====================================================  =======================================================

The formulas are the same in a column (:mod:`klrl.policy.arrays`), and all of them give the same numbers but for
rounding. A region's surrogate and penalty and a family's log-probability bring their derivatives, too, or have
autograd's (:func:`brings_derivative`). Everything else follows the kind of array that it is given.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

from klrl.native import Kernel
from klrl.policy.arrays import Array

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from klrl.policy.linearization import Linearization

_LEARNING, _ACTING = 2**22, 2**18
"""Most multiplications in one layer, rows times weights, that numpy is given: beyond, arithmetic is all that costs.

Fewer while acting: nothing keeps numpy's BLAS from using threads there, which it does from 2^18 on; in an update
:func:`~klrl.policy.arrays.numpy_as_torch` does.
"""
_ACTING_IN_KERNEL = {"plain": 2**17, "avx2": 2**20, "avx512": 2**20}
"""The same for the kernel while acting, where rows are fewer than a register holds, counted as if they filled it."""
_IN_KERNEL = {"plain": 2**21, "avx2": 2**25, "avx512": 2**27}
"""Most multiplications in one layer that the kernel is given, by its level: beyond, BLAS has the better products."""


_WHOLE_IN_KERNEL = {"plain": 0, "avx2": 2**16, "avx512": 2**16}
"""Most weights in one layer with which the kernel evaluates a whole batch, by its level: beyond, BLAS is as fast."""
_IN_ONE_THREAD = 2**24
"""Most multiplications in one layer, on a whole batch, for which several threads of torch are not waited for."""


# -- the kind of array --------------------------------------------------------------------------


def rows_for_numpy(*networks: nn.Module) -> int:
    """Return up to how many rows of a minibatch these networks are given as numpy arrays; 0 outside the CPU."""
    parameters = [p for network in networks for p in network.parameters()]
    return _LEARNING // max(p.numel() for p in parameters) if all(p.is_cpu for p in parameters) else 0


def learns_in_numpy(rows: int, most: int) -> bool:
    """Tell whether a minibatch of so many rows is one of arrays, given :func:`rows_for_numpy`."""
    return rows <= most


def acts_in_numpy(rows: int, most: int) -> bool:
    """Tell whether actions for so many environments are computed in arrays, given :func:`rows_for_numpy`."""
    return rows <= most * _ACTING // _LEARNING


def acts_in_kernel(kernel: Kernel, rows: int, most: int) -> bool:
    """Tell whether the kernel is the fastest way to so many rows of outputs, given :func:`rows_for_numpy`.

    A single row leaves most of a register empty, and is BLAS's.
    """
    return rows > 1 and max(rows, 16) <= most * _ACTING_IN_KERNEL[kernel.level] // _LEARNING


def optimizes_in_numpy(parameters: Tensor) -> bool:
    """Tell whether the optimiser moves these by numpy, on their own memory."""
    return parameters.is_cpu


def learns_in_kernel(kernel: Kernel, rows: int, most: int) -> bool:
    """Tell whether the kernel is the fastest way for minibatches of so many rows, given :func:`rows_for_numpy`.

    Beyond numpy's minibatches torch is the other way, which may use several threads.
    """
    from torch import get_num_threads

    alone = learns_in_numpy(rows, most) or get_num_threads() == 1
    return alone and rows <= most * _IN_KERNEL[kernel.level] // _LEARNING


def evaluates_in_kernel(kernel: Kernel, rows: int, weights: int) -> bool:
    """Tell whether the kernel is the fastest way to outputs and derivatives on a whole batch.

    Args:
        kernel: the kernel.
        rows: of the batch; fewer than a register holds are BLAS's.
        weights: the largest layer's.
    """
    from torch import get_num_threads

    alone = rows * weights <= _IN_ONE_THREAD or get_num_threads() == 1
    return alone and rows >= 16 and weights <= _WHOLE_IN_KERNEL[kernel.level]


# -- who differentiates -------------------------------------------------------------------------


class Linearizable(abc.ABC):
    """A network that takes arrays as well as tensors, and linearizes itself."""

    @property
    @abc.abstractmethod
    def explicit(self) -> bool:
        """True where numpy computes its outputs when it is given arrays; otherwise torch does."""

    @property
    @abc.abstractmethod
    def written_out(self) -> bool:
        """True where its derivative is written out; otherwise it is autograd's."""

    @abc.abstractmethod
    def linearize(self, x: Array) -> Linearization[Any]:
        """The outputs at ``x [n, ...]`` and their derivative by the parameters."""


def is_linearizable(network: nn.Module) -> TypeGuard[Linearizable]:
    """Tell whether a network linearizes itself; any other is given tensors, and autograd differentiates it."""
    return isinstance(network, Linearizable)


def is_explicit(network: nn.Module) -> bool:
    """Tell whether numpy computes the outputs of a network when it is given arrays."""
    return is_linearizable(network) and network.explicit


def is_written_out(network: nn.Module) -> bool:
    """Tell whether the derivative of a network is written out."""
    return is_linearizable(network) and network.written_out


def is_laid_out(network: nn.Module, own: Sequence[str] = ()) -> bool:
    """Tell whether a network's parameters are its own ones, of these names, then its trunk's, as formulas have them.

    Otherwise one was added, or is shared; a trunk knows for itself whether its layers share any.
    """
    free = {name: p for name, p in network._parameters.items() if p is not None}
    trunk = network._modules.get("trunk")
    if trunk is None or len(network._modules) > 1 or [*free] != [*own]:
        return False
    return not free or {*map(id, free.values())}.isdisjoint(map(id, trunk.parameters()))


def has_formulas(layers: Sequence[nn.Module], hooks: Sequence[int]) -> bool:
    """Tell whether these layers are written out: linear ones with one kind of activation between, without hooks."""
    from torch import nn

    linears, between = layers[::2], layers[1::2]
    return (
        len(layers) % 2 == 1
        and all(type(layer) is nn.Linear and layer.bias is not None for layer in linears)
        and {type(layer) for layer in between} in (set(), {nn.Tanh}, {nn.ReLU})
        and not any(hooks)
    )


def brings_derivative(cls: type, function: str, derivative: str) -> bool:
    """Tell whether a class got a function's derivative with it or after it; otherwise autograd has to find it."""
    return _depth(cls, derivative) <= _depth(cls, function)


def _depth(cls: type, name: str) -> int:
    """Number of steps up its bases to where a class finds an attribute."""
    return next(i for i, base in enumerate(cls.__mro__) if name in vars(base))


# -- in words -----------------------------------------------------------------------------------


def outputs_in_words(arrays: bool, network: nn.Module, device: torch.device) -> str:
    """Return in words what computes a network's outputs alone, where it is given arrays or tensors."""
    return _words(arrays, is_explicit(network), device)


def in_words(arrays: bool, network: nn.Module, device: torch.device) -> str:
    """Return in words what computes a network's outputs together with their derivative."""
    written_out = is_written_out(network)
    return f"{_words(arrays, written_out, device)}, derivatives {'written out' if written_out else 'by autograd'}"


def kernel_in_words(kernel: Kernel) -> str:
    """Return in words what takes whole epochs of minibatch steps, or acts."""
    return f"kernel ({kernel.level})"


def _words(arrays: bool, formulas: bool, device: torch.device) -> str:
    torch_there = "torch" if device.type == "cpu" else f"torch on {device}"
    if not arrays:
        return torch_there
    return "numpy" if formulas else f"numpy around a network in {torch_there}"
