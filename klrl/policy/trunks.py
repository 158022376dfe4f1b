"""Trunks of networks: from features to outputs, by layers for vectors and convolutions for images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from klrl.policy.choices import Activation
from klrl.policy.encoder import Encoder
from klrl.policy.mlp import mlp, orthogonal
from klrl.policy.observations import Encoding, Part
from klrl.policy.own_network import Factory, own_network

_CHANNELS = (16, 32, 32)


def make_trunk(
    encoding: Encoding,
    hidden: Sequence[int],
    n_outputs: int,
    *,
    output_gain: float,
    activation: Activation,
    generator: torch.Generator,
    layer_norm: bool = False,
    network: Factory | None = None,
) -> nn.Module:
    """Make fully connected layers, behind convolutions if the observation has images; or a network of one's own.

    Raises:
        ValueError: a network of one's own that does not fit.
    """
    if network is not None:
        return own_network(network, encoding.n_features, n_outputs, generator)
    style: dict[str, Any] = {"activation": activation, "output_gain": output_gain, "generator": generator}
    style["layer_norm"] = layer_norm
    if not encoding.images:
        return mlp([encoding.n_features, *hidden, n_outputs], **style)
    return ImageTrunk(encoding, hidden, n_outputs, **style)


def least_parameters(encoding: Encoding, hidden: Sequence[int], n_outputs: int) -> int:
    """Return a lower bound on the number of parameters of :func:`make_trunk`, without making any."""
    n_inputs = sum(_n_features(part) for part in encoding.parts)
    return least_of_layers([n_inputs, *hidden, n_outputs])


def least_of_layers(sizes: Sequence[int]) -> int:
    """Return the number of weights and biases of fully connected layers."""
    return sum((fan_in + 1) * fan_out for fan_in, fan_out in pairwise(sizes))


def _n_features(part: Part) -> int:
    """Return the number of features that the layers see of a part of the observation."""
    if not part.is_image:
        return part.columns.stop - part.columns.start
    rows = list(part.shape)
    if len(rows) == 3:
        del rows[0 if _channels(part)[1] else -1]
    for _ in _CHANNELS:
        rows = [(n + 1) // 2 for n in rows]
    return math.prod(rows) * _CHANNELS[-1]


class ImageTrunk(nn.Module, Encoder):
    """Three convolutions (3 x 3, stride 2) per image, then fully connected layers on them and all other features."""

    def __init__(
        self,
        encoding: Encoding,
        hidden: Sequence[int],
        n_outputs: int,
        *,
        generator: torch.Generator,
        **style: Any,
    ) -> None:
        super().__init__()
        self.images = encoding.images
        self.others = [part.columns for part in encoding.parts if not part.is_image]
        self.convolutions = nn.ModuleList(_convolutions(_channels(part)[0], generator) for part in self.images)
        with torch.no_grad():
            size = self._features(torch.zeros(1, encoding.n_features, dtype=torch.float32, device="cpu")).shape[-1]
        self.layers = mlp([size, *hidden, n_outputs], generator=generator, **style)

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs ``[n, out]`` at features ``[n, in]``, images scaled to [0, 1]."""
        return self.layers(self._features(x))

    @property
    def n_encoded(self) -> int:
        """Number of features that the layers are given."""
        first: Any = self.layers[0]
        return int(first.in_features)

    def encode(self, x: Tensor) -> Tensor:
        """Return what the convolutions say, and all other features."""
        return self._features(x)

    def decode(self, encoded: Tensor) -> Tensor:
        """Apply the layers."""
        return self.layers(encoded)

    def _features(self, x: Tensor) -> Tensor:
        columns = [x[:, others] for others in self.others]
        for part, convolution in zip(self.images, self.convolutions, strict=True):
            columns.append(convolution(_as_image(x[:, part.columns], part)).flatten(1))
        return torch.cat(columns, -1)


def _channels(part: Part) -> tuple[int, bool]:
    """Return the number of channels, and True if they come first: there are fewer of them than rows or columns."""
    if len(part.shape) == 2:
        return 1, True
    first = part.shape[0] < part.shape[-1]
    return part.shape[0 if first else -1], first


def _as_image(columns: Tensor, part: Part) -> Tensor:
    """Return ``[n, channels, height, width]``."""
    x = columns.reshape(-1, *part.shape)
    if len(part.shape) == 2:
        return x.unsqueeze(1)
    return x if _channels(part)[1] else x.permute(0, 3, 1, 2)


def _convolutions(channels: int, generator: torch.Generator) -> nn.Sequential:
    """Orthogonal weights of gain sqrt(2), zero biases."""
    layers: list[nn.Module] = []
    for n in _CHANNELS:
        layer = nn.Conv2d(channels, n, 3, stride=2, padding=1, device="meta")
        orthogonal(layer, 2**0.5, generator)
        layers += [layer, nn.ReLU()]
        channels = n
    return nn.Sequential(*layers)
