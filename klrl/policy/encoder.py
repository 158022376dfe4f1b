"""Interface of trunks in two parts: an encoder, whose outputs others may read, and a head on them."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


class Encoder(abc.ABC):
    """A trunk whose outputs are ``decode(encode(x))``."""

    @property
    @abc.abstractmethod
    def n_encoded(self) -> int:
        """Number of outputs of the encoder."""

    @abc.abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """Return the encoder's outputs ``[n, n_encoded]`` at features ``[n, in]``."""

    @abc.abstractmethod
    def decode(self, encoded: Tensor) -> Tensor:
        """Return the trunk's outputs ``[n, out]``, given the encoder's."""
