"""Fully connected networks, whose derivative is written out.

For networks of this size autograd costs several times the arithmetic: every operation makes a node, every node is
visited again. The passes here are the same sums without the bookkeeping, in numpy, torch or the kernel;
:mod:`klrl.policy.paths` says when.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import relu6

from klrl.native import Kernel, Network
from klrl.policy.arrays import Array, is_numpy, positive, relu_, split, tanh_, tensor
from klrl.policy.choices import Activation
from klrl.policy.encoder import Encoder
from klrl.policy.linearization import Arrays, ByAutograd, Linearization, one_vector
from klrl.policy.paths import Linearizable, evaluates_in_kernel, has_formulas


class _Hardsigmoid(nn.Hardsigmoid):
    """The same function in pieces that can be differentiated twice, as Fisher products need; torch's cannot."""

    def forward(self, input: Tensor) -> Tensor:
        """Return max(0, min(x + 3, 6)) / 6."""
        return relu6(input + 3.0) / 6.0


_ACTIVATIONS: Mapping[Activation, type[nn.Module]] = {
    "tanh": nn.Tanh, "relu": nn.ReLU, "celu": nn.CELU, "elu": nn.ELU, "gelu": nn.GELU, "hardshrink": nn.Hardshrink,
    "hardsigmoid": _Hardsigmoid, "hardswish": nn.Hardswish, "hardtanh": nn.Hardtanh, "leaky_relu": nn.LeakyReLU,
    "logsigmoid": nn.LogSigmoid, "mish": nn.Mish, "prelu": nn.PReLU, "relu6": nn.ReLU6, "rrelu": nn.RReLU,
    "selu": nn.SELU, "sigmoid": nn.Sigmoid, "silu": nn.SiLU, "softplus": nn.Softplus, "softshrink": nn.Softshrink,
    "softsign": nn.Softsign, "tanhshrink": nn.Tanhshrink,
}  # fmt: skip
_FLOAT32: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}


class MLP(nn.Sequential, Linearizable, Encoder):
    """Linear layers and activations in turn, as :func:`mlp` makes them; all but the last layer can be shared."""

    kernel: Kernel | None = None
    """The kernel, for whole batches of tensors without a graph, if there is one to use; copies have none."""

    def __getstate__(self) -> dict[str, Any]:
        """Leave out of copies what has addresses of this object's memory."""
        return {name: x for name, x in vars(self).items() if name not in ("kernel", "_layers")}

    def forward(self, input: Array) -> Array:
        """Return the outputs ``[*B, out]`` at ``[*B, in]``, in evaluation mode, also of layers that were inserted."""
        layers = self.layers
        if layers.explicit and is_numpy(input):
            return _Explicit(self, input, layers).output
        if self.in_kernel(input):
            return _InKernel(self, input, layers, derivative=False).output
        if not layers.explicit:
            self.eval()
        output = super().forward(tensor(input))  # type: ignore[no-untyped-call]
        return output.detach().numpy() if is_numpy(input) else output

    @property
    def explicit(self) -> bool:
        """True where the layers are known."""
        return self.layers.explicit

    @property
    def written_out(self) -> bool:
        """True where the layers are known, none is frozen, and their parameters are all there are, each once."""
        return self.layers.written_out

    @property
    def n_encoded(self) -> int:
        """Width of the last hidden layer."""
        last: Any = self[-1]
        return int(last.in_features)

    def encode(self, x: Tensor) -> Tensor:
        """Return the last hidden layer's outputs."""
        for layer in list(self)[:-1]:
            x = layer(x)
        return x

    def decode(self, encoded: Tensor) -> Tensor:
        """Apply the last layer."""
        return cast("Tensor", self[-1](encoded))

    def outputs_in_numpy(self) -> Callable[[np.ndarray], np.ndarray]:
        """Return the function from inputs to outputs, for as long as the layers stay the same ones, and explicit."""
        layers = self.layers
        return lambda x: _Explicit(self, x, layers).output

    def linearize(self, x: Array) -> Linearization[Array]:
        """Return the outputs at ``x [n, in]`` and their derivative by the parameters."""
        layers = self.layers
        if not layers.written_out:
            return ByAutograd(self, x)
        return _InKernel(self, x, layers) if self.in_kernel(x) else _Explicit(self, x, layers)

    def in_kernel(self, x: Array) -> bool:
        """Tell whether the kernel evaluates these inputs."""
        kernel = self.kernel
        if kernel is None or not isinstance(x, Tensor) or torch.is_grad_enabled():
            return False
        if not (x.is_cpu and x.dtype == torch.float32 and self.layers.network is not None):
            return False
        width, *_ = self.layers.sizes
        return x.shape[-1] == width and evaluates_in_kernel(kernel, x.numel() // width, self.layers.most_weights)

    @property
    def layers(self) -> _Layers:
        """Facts about the layers; renewed when a layer was replaced, hooked, moved in memory or frozen."""
        known: _Layers | None = self.__dict__.get("_layers")
        layers: list[Any] = list(self._modules.values())
        parameters = [
            (p.data_ptr(), p.requires_grad)
            for module in (self, *layers)
            for p in module._parameters.values()
            if p is not None
        ]
        hooks = [len(layer._forward_hooks) + len(layer._forward_pre_hooks) for layer in layers]
        if known is None or known.key != (layers, parameters, hooks):
            known = self.__dict__["_layers"] = _Layers.of((layers, parameters, hooks))
        return known


@dataclass(frozen=True, eq=False)
class _Layers:
    key: tuple[list[nn.Module], list[tuple[int, bool]], list[int]]
    """Layers, address and requires_grad of each parameter, and number of hooks: a change means other facts."""
    explicit: bool
    """Tell whether the layers are written out here, as :func:`~klrl.policy.paths.has_formulas` has it."""
    tensors: list[tuple[Tensor, Tensor]]
    """Weight and bias of every linear layer, outside of any graph."""
    arrays: list[tuple[np.ndarray, np.ndarray]]
    """Weights and biases as numpy arrays; empty if they are not in the CPU's memory."""
    sizes: list[int]
    """Sizes of inputs, hidden layers and outputs."""
    is_tanh: bool
    """The activation is tanh; otherwise the rectifier."""
    written_out: bool
    """Explicit, no parameter is frozen, none was added, and none is shared by layers."""
    network: Network | None
    """The same for the kernel; ``None`` unless all parameters are pieces of one vector in the CPU's memory."""

    @property
    def most_weights(self) -> int:
        """Weights in the largest layer."""
        return max(fan_in * fan_out for fan_in, fan_out in pairwise(self.sizes))

    @classmethod
    def of(cls, key: tuple[list[nn.Module], list[tuple[int, bool]], list[int]]) -> _Layers:
        layers, parameters, hooks = key
        explicit = has_formulas(layers, hooks)
        linears = [layer for layer in layers[::2] if isinstance(layer, nn.Linear)]
        tensors = [(layer.weight.detach(), layer.bias.detach()) for layer in linears]
        arrays = [(W.numpy(), b.numpy()) for W, b in tensors if W.is_cpu]
        is_tanh = {type(layer) for layer in layers[1::2]} == {nn.Tanh}
        sizes = [layer.in_features for layer in linears[:1]] + [layer.out_features for layer in linears]
        each_once = len(parameters) == len({where for where, _ in parameters}) == 2 * len(linears)
        written_out = explicit and each_once and all(free for _, free in parameters)
        theta = one_vector([x for layer in tensors for x in layer]) if explicit and Network.fits(sizes) else None
        network = None if theta is None else Network.with_layers(sizes, theta.numpy(), relu=not is_tanh)
        return cls(key, explicit, tensors, arrays, sizes, is_tanh, written_out, network)


def orthogonal(layer: nn.Linear | nn.Conv2d, gain: float, generator: torch.Generator) -> None:
    """Give orthogonal weights and zero biases, float32, to a layer without memory, on the device "meta".

    There its own start draws nothing from the global generator. So it does in torch's ``skip_init``, but that imports
    SymPy, which takes longer than everything else about a new agent.
    """
    weight = torch.empty(layer.weight.shape, dtype=torch.float32, device="cpu")
    nn.init.orthogonal_(weight, gain, generator=generator)
    layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(weight.new_zeros(len(weight)))


def mlp(
    sizes: Sequence[int],
    *,
    activation: Activation,
    output_gain: float,
    generator: torch.Generator,
    layer_norm: bool = False,
) -> MLP:
    """Make fully connected layers ``sizes[0] -> ... -> sizes[-1]`` with orthogonal weights and zero biases.

    Gain sqrt(2) in hidden layers and ``output_gain`` in the last: 0.01 for policies, so that training
    starts near the uniform policy (Andrychowicz et al. 2021, "What Matters in On-Policy RL", section 3.2).
    ``layer_norm`` normalises every hidden layer's sums before the activation (Ba et al. 2016, "Layer Normalization").
    """
    layers: list[nn.Module] = []
    for i, (fan_in, fan_out) in enumerate(pairwise(sizes)):
        last = i == len(sizes) - 2
        linear = nn.Linear(fan_in, fan_out, device="meta")
        orthogonal(linear, output_gain if last else 2**0.5, generator)
        norm = [nn.LayerNorm(fan_out, **_FLOAT32)] if layer_norm else []
        layers += [linear] if last else [linear, *norm, _activation(activation)]
    return MLP(*layers)


def _activation(name: Activation) -> nn.Module:
    """Make an activation; only PReLU has a parameter, and a type."""
    cls: Any = _ACTIVATIONS[name]
    return cls(**_FLOAT32) if cls is nn.PReLU else cls()


class _Explicit(Linearization[Array]):
    """Layer k computes h_k = f(h_{k-1} W_k' + b_k); the last one has no f."""

    def __init__(self, network: MLP, x: Array, layers: _Layers) -> None:
        self.network = network
        self._is_tanh = layers.is_tanh
        self._layers: list[tuple[Array, Array]] = layers.arrays if is_numpy(x) else layers.tensors
        self._inputs: list[Array] = []
        self._slopes: list[Array] = []
        for W, b in self._layers:
            if self._inputs:
                x = tanh_(x) if self._is_tanh else relu_(x)
            self._inputs.append(x)
            x = x @ W.T
            x += b
        self.output = x

    def pieces(self, *cotangent: Array) -> list[Array]:
        """Back-propagation: by W_k the gradient is g' h_{k-1}, by b_k the sum of g over the rows."""
        (g,) = cotangent
        parts: list[Array] = []
        for k in range(len(self._layers) - 1, -1, -1):
            parts += g.sum(0), (g.T @ self._inputs[k]).reshape(-1)
            if k > 0:
                g = g @ self._layers[k][0]
                g *= self._slope(k)
        return parts[::-1]

    def push_forward(self, tangent: Array) -> Arrays:
        """The product rule, layer by layer: h_{k-1} V_k' + c_k + dh_{k-1} W_k' for a tangent (V, c)."""
        parts = iter(split(tangent, [math.prod(x.shape) for layer in self._layers for x in layer]))
        d: Array = None
        for k, (W, _) in enumerate(self._layers):
            V, c = next(parts).reshape(W.shape), next(parts)
            moved = self._inputs[k] @ V.T
            moved += c
            if d is not None:
                d *= self._slope(k)
                moved += d @ W.T
            d = moved
        return (d,)

    def _slope(self, k: int) -> Array:
        """f' at layer k's inputs h: 1 - h^2 for tanh, 1 where h > 0 for the rectifier."""
        if not self._slopes:
            self._slopes = [1.0 - h * h if self._is_tanh else positive(h) for h in self._inputs[1:]]
        return self._slopes[k - 1]


class _InKernel(Linearization[Array]):
    """The same as :class:`_Explicit`, by the kernel; the parameters must stay where they are between the products."""

    def __init__(self, network: MLP, x: Tensor, layers: _Layers, *, derivative: bool = True) -> None:
        assert network.kernel is not None
        assert layers.network is not None
        self.network = network
        rows = x.detach().reshape(-1, x.shape[-1]).contiguous().numpy()
        self._at = network.kernel.linearize(layers.network, rows, derivative=derivative)
        self.output = torch.from_numpy(self._at.outputs).reshape(*x.shape[:-1], -1)

    def pieces(self, *cotangent: Array) -> list[Array]:
        """Return J' u."""
        (u,) = cotangent
        return [torch.from_numpy(self._at.pull_back(u.numpy()))]

    def push_forward(self, tangent: Array) -> Arrays:
        """Return J v."""
        return (torch.from_numpy(self._at.push_forward(tangent.numpy())),)
