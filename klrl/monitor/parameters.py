"""Copies of a network's parameters, which can be lent back to it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Parameters:
    """Copy of everything that a network computes with: its parameters and buffers as they are now."""

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._copies = [x.detach().clone() for x in self._tensors]

    @property
    def _tensors(self) -> Sequence[Tensor]:
        return [*self._network.parameters(), *self._network.buffers()]

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Let the network compute with the copies; what it had is put back to the bit."""
        own = Parameters(self._network)
        try:
            self._put()
            yield
        finally:
            own._put()

    @torch.no_grad()
    def _put(self) -> None:
        for x, copy in zip(self._tensors, self._copies, strict=True):
            x.copy_(copy)
