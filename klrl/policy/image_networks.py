"""Networks of images: where the channels are, and convolutions sized by the image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from klrl.policy.choices import IMAGE_NETWORKS, ImageNetwork
from klrl.policy.mlp import orthogonal

_FLOAT32: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}
_SMALL = (16, 32, 32)
_NATURE = ((32, 8, 4), (64, 4, 2), (64, 3, 1))
"""Channels, width and stride of every convolution."""
_IMPALA = (16, 32, 32)
_FEATURES: dict[str, int] = {"nature": 512, "impala": 256}
"""Outputs of the fully connected layer behind the convolutions, where there is one."""


class Layout:
    """Places of rows, columns and channels in the shape of an image, or of a stack of images.

    Rows and columns are the neighbouring axes with the most pixels, the first two of equal ones; what is before and
    behind them are channels, in this order. So a color image may be rows x columns x 3 or 3 x rows x columns, and a
    stack of four ``(4, 84, 84)``, ``(84, 84, 4)``, or in colors ``(4, 84, 84, 3)``.

    >>> layout = Layout((4, 84, 96, 3))
    >>> layout.channels, layout.size
    (12, (84, 96))
    """

    def __init__(self, shape: Sequence[int]) -> None:
        pairs = [n * m for n, m in pairwise(shape)]
        row = pairs.index(max(pairs))
        self.shape = tuple(shape)
        self.size = (shape[row], shape[row + 1])
        """Rows and columns."""
        self.channels = math.prod(shape[:row]) * math.prod(shape[row + 2 :])
        self._order = [0, *(1 + i for i in range(len(shape)) if i not in (row, row + 1)), 1 + row, 2 + row]

    def __call__(self, columns: Tensor) -> Tensor:
        """Return images ``[n, channels, rows, columns]`` that are given as vectors ``[n, size]``."""
        return columns.reshape(-1, *self.shape).permute(self._order).reshape(-1, self.channels, *self.size)


def check_image(name: ImageNetwork, layout: Layout) -> None:
    """Refuse images that are too small for a network.

    Raises:
        ValueError: naming the size, or an unknown network.
    """
    n_encoded(name, layout)
    if name == "nature" and min(layout.size) < (least := _least_size()):
        rows, columns = layout.size
        raise ValueError(
            f"image_network = 'nature' with images of {rows} x {columns}; allowed: {least} x {least} or more "
            "('small' and 'impala' take any)"
        )


def n_encoded(name: ImageNetwork, layout: Layout) -> int:
    """Return the number of features that a network makes of an image.

    Raises:
        ValueError: an unknown network.
    """
    if name not in IMAGE_NETWORKS:
        raise ValueError(f"image_network = {name!r}; allowed: {', '.join(IMAGE_NETWORKS)}")
    return _FEATURES.get(name) or math.prod(_halved(layout)) * _SMALL[-1]


def n_dense(name: ImageNetwork, layout: Layout) -> int:
    """Return the number of weights in the fully connected layer behind the convolutions, 0 where there is none."""
    if name == "small":
        return 0
    size = _halved(layout) if name == "impala" else [_after_nature(n) for n in layout.size]
    return math.prod(size) * (_IMPALA[-1] if name == "impala" else _NATURE[-1][0]) * _FEATURES[name]


def make_image_network(
    name: ImageNetwork, layout: Layout, generator: torch.Generator, *, layer_norm: bool = False
) -> nn.Sequential:
    """Make a network from images ``[n, channels, rows, columns]`` in [0, 1] to their ``n_encoded`` features.

    "small": three convolutions (3 x 3, stride 2; 16, 32, 32 channels). "nature": three convolutions and a layer of 512
    (Mnih et al. 2015, "Human-level control through deep reinforcement learning", methods). "impala": three times a
    convolution, a maximum over 3 x 3 with stride 2 and two residual blocks (16, 32, 32 channels), and a layer of 256
    (Espeholt et al. 2018, "IMPALA", figure 3, right, without its LSTM). Rectifiers throughout; orthogonal weights of
    gain sqrt(2), zero biases. ``layer_norm`` normalises the sums of the fully connected layer; convolutions have none.

    Raises:
        ValueError: images that are too small.
    """
    check_image(name, layout)
    convolutions = {"small": _small, "nature": _nature, "impala": _impala}[name](layout.channels, generator)
    if name == "small":
        return nn.Sequential(*convolutions)
    dense = nn.Linear(n_dense(name, layout) // _FEATURES[name], _FEATURES[name], device="meta")
    orthogonal(dense, 2**0.5, generator)
    norm = [nn.LayerNorm(_FEATURES[name], **_FLOAT32)] if layer_norm else []
    return nn.Sequential(*convolutions, nn.Flatten(), dense, *norm, nn.ReLU())


class Residual(nn.Module):
    """x + c(relu(d(relu(x)))) with two convolutions c and d, 3 x 3, that keep the size of the image."""

    def __init__(self, channels: int, generator: torch.Generator) -> None:
        super().__init__()
        first, second = (_convolution(channels, channels, 3, generator, padding=1) for _ in range(2))
        self.layers = nn.Sequential(nn.ReLU(), first, nn.ReLU(), second)

    def forward(self, x: Tensor) -> Tensor:
        """Return images of the same size."""
        return x + self.layers(x)


def _small(channels: int, generator: torch.Generator) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for n in _SMALL:
        layers += [_convolution(channels, n, 3, generator, stride=2, padding=1), nn.ReLU(inplace=True)]
        channels = n
    return layers


def _nature(channels: int, generator: torch.Generator) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for n, width, stride in _NATURE:
        layers += [_convolution(channels, n, width, generator, stride=stride), nn.ReLU(inplace=True)]
        channels = n
    return layers


def _impala(channels: int, generator: torch.Generator) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for n in _IMPALA:
        layers += [_convolution(channels, n, 3, generator, padding=1), nn.MaxPool2d(3, stride=2, padding=1)]
        layers += [Residual(n, generator), Residual(n, generator)]
        channels = n
    return [*layers, nn.ReLU()]


def _convolution(fan_in: int, fan_out: int, width: int, generator: torch.Generator, **more: int) -> nn.Conv2d:
    layer = nn.Conv2d(fan_in, fan_out, width, device="meta", **more)  # type: ignore[arg-type]
    orthogonal(layer, 2**0.5, generator)
    return layer


def _halved(layout: Layout) -> list[int]:
    """Rows and columns after three strides of 2, each rounded up."""
    return [-(-n // 8) for n in layout.size]


def _after_nature(n: int) -> int:
    for _, width, stride in _NATURE:
        n = (n - width) // stride + 1
    return n


def _least_size() -> int:
    """Rows from which the last convolution makes one."""
    n = 1
    for _, width, stride in reversed(_NATURE):
        n = (n - 1) * stride + width
    return n
