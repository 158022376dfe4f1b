"""Trunks of networks: from features to outputs, by layers for vectors and convolutions for images."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from klrl.policy.choices import Activation, ImageNetwork
from klrl.policy.encoder import Encoder
from klrl.policy.image_networks import Layout, make_image_network, n_dense, n_encoded
from klrl.policy.mlp import mlp
from klrl.policy.observations import Encoding
from klrl.policy.own_network import Factory, own_network


def make_trunk(
    encoding: Encoding,
    hidden: Sequence[int],
    n_outputs: int,
    *,
    output_gain: float,
    activation: Activation,
    generator: torch.Generator,
    layer_norm: bool = False,
    image_network: ImageNetwork = "small",
    network: Factory | None = None,
) -> nn.Module:
    """Make fully connected layers, behind convolutions if the observation has images; or a network of one's own.

    Raises:
        ValueError: a network of one's own that does not fit, or images that are too small for theirs.
    """
    if network is not None:
        return own_network(network, encoding.n_features, n_outputs, generator)
    style: dict[str, Any] = {"activation": activation, "output_gain": output_gain, "generator": generator}
    style["layer_norm"] = layer_norm
    if not encoding.images:
        return mlp([encoding.n_features, *hidden, n_outputs], **style)
    return ImageTrunk(encoding, hidden, n_outputs, image_network=image_network, **style)


def least_parameters(
    encoding: Encoding, hidden: Sequence[int], n_outputs: int, image_network: ImageNetwork = "small"
) -> int:
    """Return a lower bound on the number of parameters of :func:`make_trunk`, without making any.

    Raises:
        ValueError: an unknown network for images.
    """
    dense = sum(n_dense(image_network, Layout(part.shape)) for part in encoding.images)
    return dense + least_of_head(encoding, hidden, n_outputs, image_network)


def least_of_head(
    encoding: Encoding,
    hidden: Sequence[int],
    n_outputs: int,
    image_network: ImageNetwork = "small",
    n_inputs: int | None = None,
) -> int:
    """Return the number of weights and biases of the fully connected layers alone, which encoders of images precede.

    ``n_inputs`` is the number of their inputs, if these are not an encoder's of images.

    Raises:
        ValueError: an unknown network for images.
    """
    if n_inputs is None:
        n_inputs = sum(n_encoded(image_network, Layout(part.shape)) for part in encoding.images)
        n_inputs += sum(part.columns.stop - part.columns.start for part in encoding.parts if not part.is_image)
    return sum((fan_in + 1) * fan_out for fan_in, fan_out in pairwise([n_inputs, *hidden, n_outputs]))


class ImageTrunk(nn.Module, Encoder):
    """A network of convolutions per image, then fully connected layers on their features and all others."""

    def __init__(
        self,
        encoding: Encoding,
        hidden: Sequence[int],
        n_outputs: int,
        *,
        generator: torch.Generator,
        layer_norm: bool = False,
        image_network: ImageNetwork = "small",
        **style: Any,
    ) -> None:
        super().__init__()
        self.images = [(part.columns, Layout(part.shape)) for part in encoding.images]
        self.others = [part.columns for part in encoding.parts if not part.is_image]
        self.convolutions = nn.ModuleList(
            make_image_network(image_network, layout, generator, layer_norm=layer_norm) for _, layout in self.images
        )
        size = sum(columns.stop - columns.start for columns in self.others)
        size += sum(n_encoded(image_network, layout) for _, layout in self.images)
        self.layers = mlp([size, *hidden, n_outputs], generator=generator, layer_norm=layer_norm, **style)

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs ``[n, out]`` at features ``[n, in]``, images scaled to [0, 1].

        Convolutions of bfloat16 features are computed in bfloat16; what is returned is float32.
        """
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
        features = [x[:, others].float() for others in self.others]
        for (columns, layout), convolutions in zip(self.images, self.convolutions, strict=True):
            images = layout(x[:, columns])
            if torch.is_grad_enabled() and images.is_cpu:  # backward, a CPU is faster with channels last in memory
                images = images.contiguous(memory_format=torch.channels_last)
            features.append(_in_its_type(convolutions, images).flatten(1))
        return torch.cat(features, -1)


def _in_its_type(network: nn.Module, x: Tensor) -> Tensor:
    """Return outputs in float32, of products in bfloat16 where the inputs are; parameters are float32 in any case."""
    if x.dtype != torch.bfloat16:
        return network(x)
    with torch.autocast(x.device.type, torch.bfloat16):
        return network(x).float()
