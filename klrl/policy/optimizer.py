"""Adam on whole networks, each packed into one vector."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.adam import adam as adam_of_torch

from klrl.policy.arrays import tensor
from klrl.policy.paths import optimizes_in_numpy

BETA1, BETA2, EPS = 0.9, 0.999, 1e-5
_PIECE = 2**15
"""Numbers of an array that are moved at once: they and what is computed of them stay in a core's cache."""


class Adam:
    """Adam (Kingma and Ba 2015, algorithm 1) after the gradients' joint norm has been limited.

    The steps are those of ``torch.optim.Adam`` after ``clip_grad_norm_``, whose bookkeeping takes several times as
    long as the arithmetic on a small network.

    Args:
        parameters: one vector ``[P]`` per network, moved in place.
        learning_rate: step size; set the attribute to change it.
        max_grad_norm: longer gradients, of all networks together, are scaled down to this Euclidean norm.
        fused: whether torch's own step moves a network on the CPU, in one pass over its memory; for none by default.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        *,
        learning_rate: float,
        max_grad_norm: float,
        fused: Sequence[bool] | None = None,
    ) -> None:
        self.learning_rate = learning_rate
        self.max_grad_norm = max_grad_norm
        self.factors = [1.0] * len(parameters)
        """Factors of the learning rate by network; set it to change them."""
        fused = [False] * len(parameters) if fused is None else fused
        self.states = [AdamState.of(p.detach(), fused=f) for p, f in zip(parameters, fused, strict=True)]
        """Parameters and moments of each network, in the memory that is moved."""

    def step(self, gradients: Sequence[Tensor | None]) -> None:
        """Move every network that has a gradient ``[P]``; the others keep their moments, too.

        Raises:
            FloatingPointError: a gradient is not finite; nothing has moved (checked on the CPU only).
        """
        networks = zip(self.states, gradients, self.factors, strict=True)
        moving = [(n, n.array(g), self.learning_rate * factor) for n, g, factor in networks if g is not None]
        if not moving:
            return
        norm = sum(g @ g for _, g, _ in moving) ** 0.5
        if not isinstance(norm, Tensor) and not math.isfinite(norm):
            raise FloatingPointError(f"gradient of norm {norm}; allowed: finite numbers")
        excess = (norm / self.max_grad_norm).clip(1.0)
        for network, g, rate in moving:
            network.step(g, excess, rate)

    def moments(self, i: int) -> dict[str, Tensor]:
        """Copy one network's moments and step count."""
        return {name: x.clone() for name, x in self.states[i].state().items()}

    def put_back(self, i: int, moments: dict[str, Tensor]) -> None:
        """Restore the moments and step count that :meth:`moments` copied."""
        self.states[i].restore(moments)

    def state(self) -> dict[str, Tensor]:
        """Return the moments (in their own memory) and step counts, by network and name."""
        return {f"{i}.{name}": x for i, network in enumerate(self.states) for name, x in network.state().items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Restore what :meth:`state` returned."""
        for i, network in enumerate(self.states):
            network.restore({name: state[f"{i}.{name}"] for name in network.state()})


@dataclass(eq=False)
class AdamState:
    """One network's parameters theta and Adam's moments of its gradient: arrays on the CPU, tensors elsewhere."""

    theta: Any
    mean: Any
    square: Any
    steps: int = 0
    fused: bool = False
    """True if torch's own step moves arrays."""

    @classmethod
    def of(cls, theta: Tensor, *, fused: bool = False) -> AdamState:
        """Begin with moments of 0 and no steps."""
        mean, square = torch.zeros_like(theta), torch.zeros_like(theta)
        return cls(cls.array(theta), cls.array(mean), cls.array(square), fused=fused)

    @staticmethod
    def array(x: Tensor) -> Any:
        """Return the same memory as what the optimiser computes with."""
        return x.numpy() if isinstance(x, Tensor) and optimizes_in_numpy(x) else x

    def step(self, gradient: Any, excess: Any, rate: float) -> None:
        """Move along ``gradient / excess``, piece by piece: memory costs more than arithmetic here."""
        if self.fused and isinstance(gradient, np.ndarray):
            self._step_fused(gradient, excess, rate)
            return
        self.steps += 1
        # The corrections of the moments' bias, m / (1 - beta1^t) and v / (1 - beta2^t), taken out of the arrays.
        correction = (1.0 - BETA2**self.steps) ** 0.5
        factor = rate * correction / (1.0 - BETA1**self.steps)
        for piece, mean, square, theta in self._pieces(gradient):
            g = piece / excess
            towards = g - mean
            towards *= 1.0 - BETA1
            mean += towards
            g *= g
            g -= square
            g *= 1.0 - BETA2
            square += g
            root = square**0.5
            root += EPS * correction
            step = factor * mean
            step /= root
            theta -= step

    def _step_fused(self, gradient: np.ndarray, excess: float, rate: float) -> None:
        """Take the same step by torch's fused kernel, which divides the gradient where it is."""
        adam_of_torch(
            [tensor(self.theta)], [tensor(gradient)], [tensor(self.mean)], [tensor(self.square)], [], [self._count()],
            fused=True, grad_scale=torch.tensor(excess, dtype=torch.float32, device="cpu"), amsgrad=False,
            beta1=BETA1, beta2=BETA2, lr=rate, weight_decay=0.0, eps=EPS, maximize=False,
        )  # fmt: skip
        self.steps += 1

    def _pieces(self, gradient: Any) -> Iterator[tuple[Any, Any, Any, Any]]:
        """Yield a gradient, the moments and the parameters, arrays piece by piece, tensors in one."""
        whole = gradient, self.mean, self.square, self.theta
        if not isinstance(gradient, np.ndarray):
            yield whole
            return
        for start in range(0, len(gradient), _PIECE):
            g, mean, square, theta = (x[start : start + _PIECE] for x in whole)
            yield g, mean, square, theta

    def state(self) -> dict[str, Tensor]:
        """Return the moments (in their own memory) and the step count by the names that torch gives them."""
        return {"exp_avg": tensor(self.mean), "exp_avg_sq": tensor(self.square), "step": self._count()}

    def _count(self) -> Tensor:
        """Return the step count as torch's Adam keeps it, whatever the default type and device are."""
        return torch.tensor(self.steps, dtype=torch.float32, device="cpu")

    def restore(self, state: dict[str, Tensor]) -> None:
        """Restore what :meth:`state` returned."""
        self.mean[:] = self.array(state["exp_avg"])
        self.square[:] = self.array(state["exp_avg_sq"])
        self.steps = int(state["step"])
