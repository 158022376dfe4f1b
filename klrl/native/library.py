"""The compiled kernel at one of its levels, and the structures that it is given."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from ctypes import CDLL, POINTER, Structure, byref, c_double, c_int64, c_void_p
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from itertools import pairwise
from pathlib import Path
from typing import Self

import numpy as np

VERSION = 3
"""Version of the structures and functions; a file that was compiled from other ones is not used."""
LEVELS = ("plain", "avx2", "avx512")
"""Levels of processors that the kernel is compiled for, in ascending order; all but the first are x86-64's."""
VARIABLE = "KLRL_NATIVE"
"""Environment variable that chooses a level, or "off"."""
_MOST_LAYERS = 16
SURROGATES = ("plain", "clip", "spo", "rollback")
"""Surrogates that the kernel knows."""


class _Struct(Structure):
    """A structure of C that keeps alive the arrays whose addresses it holds."""

    alive: dict[str, np.ndarray]

    @classmethod
    def of(cls, **values: object) -> Self:
        """Fill the fields; of an array, its address."""
        struct = cls()
        struct.alive = {}
        struct.put(**values)
        return struct

    def put(self, **values: object) -> None:
        """Fill these fields anew."""
        for name, x in values.items():
            if isinstance(x, np.ndarray):
                self.alive[name], x = x, x.ctypes.data
            setattr(self, name, x)


class Network(_Struct):
    """A network of fully connected layers, and Adam's moments of its gradient.

    Fields: ``layers`` and their ``sizes``; ``own``, the number of parameters before the layers'; ``relu``, the
    activation if it is not tanh; ``steps`` and ``rate`` of Adam; ``theta``, ``mean``, ``square [P]``, moved in place.
    For its outputs alone, Adam's are left out.
    """

    _fields_ = (
        ("layers", c_int64), ("sizes", c_int64 * (_MOST_LAYERS + 1)), ("own", c_int64), ("relu", c_int64),
        ("steps", c_int64), ("rate", c_double), ("theta", c_void_p), ("mean", c_void_p), ("square", c_void_p),
    )  # fmt: skip
    steps: int

    @staticmethod
    def fits(sizes: Sequence[int]) -> bool:
        """Tell whether the kernel has room for so many layers."""
        return len(sizes) <= _MOST_LAYERS + 1

    @classmethod
    def with_layers(cls, sizes: Sequence[int], theta: np.ndarray, **values: object) -> Self:
        """Fill the fields, given the sizes of inputs, hidden layers and outputs, and all parameters."""
        padded = (c_int64 * (_MOST_LAYERS + 1))(*sizes)
        own = theta.size - sum((fan_in + 1) * fan_out for fan_in, fan_out in pairwise(sizes))
        return cls.of(layers=len(sizes) - 1, sizes=padded, own=own, theta=theta, **values)


class Samples(_Struct):
    """Samples ``[n, ...]`` in the order in which they are taken, ``batch`` at a time.

    Fields: ``width`` of the observations and the column where a ``mask`` begins (0 without one); ``order`` and
    ``choices`` of int64; of float32 ``observations``, ``actions``, ``log_prob``, ``advantage``, ``returns`` and the
    policy before the update, ``old`` (means or logits) and ``old_log_std``.
    """

    _fields_ = (
        *((name, c_int64) for name in ("n", "batch", "width", "mask")),
        *((name, c_void_p) for name in (
            "order", "choices", "observations", "actions", "log_prob", "advantage", "returns", "old", "old_log_std",
        )),
    )  # fmt: skip


class Loss(_Struct):
    """vf_coef E[(V - V_target)^2] - E[surrogate - beta KL(old||new)] - ent_coef E[H], and Adam's constants.

    Fields: ``surrogate`` by its place in "plain", "clip", "spo", "rollback", with ``epsilon`` and ``slope``;
    ``categorical``, if the policy is no Gaussian; ``d``, the numbers of an action or the choices.
    """

    _fields_ = (
        *((name, c_int64) for name in ("surrogate", "categorical", "d")),
        *((name, c_double) for name in (
            "epsilon", "slope", "beta", "vf_coef", "ent_coef", "clip_range", "log_std_init", "max_norm",
            "beta1", "beta2", "eps",
        )),
    )  # fmt: skip


class Kernel:
    """The kernel at one of its levels.

    Args:
        library: the compiled file.
        level: one of :data:`LEVELS` that this processor has.
    """

    def __init__(self, library: CDLL, level: str) -> None:
        self.level = level
        self._epoch = library[f"klrl_epoch_{level}"]
        self._epoch.argtypes = [POINTER(Network), POINTER(Network), POINTER(Samples), POINTER(Loss), c_void_p]
        self._epoch.restype = c_int64
        self._outputs = library[f"klrl_outputs_{level}"]
        self._outputs.argtypes = [POINTER(Network), c_void_p, c_int64, c_void_p, c_void_p, c_int64]
        self._outputs.restype = None
        self._push, self._pull = (library[f"klrl_{name}_{level}"] for name in ("push", "pull"))
        for function in (self._push, self._pull):
            function.argtypes = [POINTER(Network), c_void_p, c_int64, c_void_p, c_void_p]
            function.restype = None
        self._room = library["klrl_room"]
        self._room.argtypes = [POINTER(Network), c_int64]
        self._room.restype = c_int64
        self._function = library[f"klrl_function_{level}"]
        self._function.argtypes = [c_int64, c_void_p, c_void_p, c_int64]

    def epoch(self, actor: Network | None, critic: Network | None, samples: Samples, loss: Loss) -> np.ndarray:
        """Take the steps of an epoch on one network or both, and return the metrics of every step that was taken.

        They are policy loss, value loss and clip fraction, ``[steps, 3]``. The kernel stops in front of a gradient
        that is not finite; then there are fewer steps than minibatches.
        """
        metrics = np.empty((-(-samples.n // samples.batch), 3))
        return metrics[: self._epoch(actor, critic, samples, loss, metrics.ctypes.data)]

    def outputs(self, network: Network, rows: int) -> Callable[[np.ndarray], np.ndarray]:
        """Return the function from inputs ``[rows, in]``, converted to float32, to outputs ``[rows, out]``.

        Its memory is made once, so only one thread at a time may call it.
        """
        x, y = (np.zeros((rows, network.sizes[k]), np.float32) for k in (0, network.layers))
        memory = np.zeros(self._room(network, 0), np.float32)
        at, given_x, given_y = (array.ctypes.data_as(c_void_p) for array in (memory, x, y))  # keep the arrays alive
        given = byref(network), at, rows, given_x, given_y, 0

        def evaluate(inputs: np.ndarray) -> np.ndarray:
            x[...] = inputs
            self._outputs(*given)
            return y.copy()

        return evaluate

    def linearize(self, network: Network, x: np.ndarray, *, derivative: bool = True) -> Jacobian:
        """Evaluate the network at inputs ``[n, in]``, float32, and keep what the products with its Jacobian need.

        The parameters must stay what they are between the products. Without a derivative there are outputs alone.
        """
        n = len(x)
        outputs = np.empty((n, network.sizes[network.layers]), np.float32)
        memory = np.empty(self._room(network, n if derivative else 0), np.float32)
        x = np.ascontiguousarray(x, np.float32)
        self._outputs(network, memory.ctypes.data, n, x.ctypes.data, outputs.ctypes.data, derivative)
        return Jacobian(self, network, memory, outputs)

    def function(self, name: str, x: np.ndarray) -> np.ndarray:
        """Evaluate the kernel's "exp", "expm1" or "tanh" at float32 numbers, as many as are a multiple of 16."""
        y = np.empty_like(x)
        self._function(("exp", "expm1", "tanh").index(name), x.ctypes.data, y.ctypes.data, x.size)
        return y


class Jacobian:
    """Outputs of a network at n inputs, and products with their Jacobian J by its parameters theta ``[P]``."""

    def __init__(self, kernel: Kernel, network: Network, memory: np.ndarray, outputs: np.ndarray) -> None:
        self._kernel, self._network, self._memory = kernel, network, memory
        self.outputs = outputs
        """``[n, out]``."""

    def push_forward(self, v: np.ndarray) -> np.ndarray:
        """Return J v, ``[n, out]``, for ``v [P]``."""
        d = np.empty_like(self.outputs)
        self._multiply(self._kernel._push, v, d)
        return d

    def pull_back(self, u: np.ndarray) -> np.ndarray:
        """Return J' u, ``[P]``, for ``u [n, out]``; 0 for the parameters before the layers'."""
        g = np.zeros_like(self._network.alive["theta"])
        self._multiply(self._kernel._pull, u, g)
        return g

    def _multiply(self, function: Callable[..., None], factor: np.ndarray, product: np.ndarray) -> None:
        factor = np.ascontiguousarray(factor, np.float32)
        memory, n = self._memory.ctypes.data, len(self.outputs)
        function(self._network, memory, n, factor.ctypes.data, product.ctypes.data)


def find() -> Kernel | None:
    """Return the kernel at the level of ``KLRL_NATIVE``, else the processor's highest, or ``None``.

    Raises:
        ValueError: a level that there is not.
    """
    asked = os.environ.get(VARIABLE, "")
    if asked == "off":
        return None
    levels = available()
    if asked and asked not in levels:
        why = "" if levels else ": the kernel was not built with klrl, which takes a C compiler"
        raise ValueError(f"{VARIABLE} = {asked}; allowed here: {', '.join((*reversed(levels), 'off'))}{why}")
    return at_level(asked or levels[-1]) if levels else None


def absence() -> str:
    """Say why :func:`find` returns ``None``."""
    return "off" if available() else "not built"


@cache
def available() -> tuple[str, ...]:
    """Return the levels that this processor has, in ascending order; none if the kernel was not built."""
    library = _library()
    if library is None or library["klrl_version"]() != VERSION:
        return ()
    return LEVELS[: library["klrl_level"]() + 1]


@cache
def at_level(level: str) -> Kernel:
    """Return the kernel at one of the available levels."""
    library = _library()
    assert library is not None
    return Kernel(library, level)


@cache
def _library() -> CDLL | None:
    for suffix in EXTENSION_SUFFIXES:
        try:
            return CDLL(str(Path(__file__).with_name(f"_kernel{suffix}")))
        except OSError:
            continue
    return None
