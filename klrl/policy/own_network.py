"""Networks of a user's own: what a function of theirs makes, tried out before anything is trained with it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from klrl.text import one_line

Factory = Callable[[int, int], nn.Module]
"""Makes a network from features ``[n, n_inputs]`` to outputs ``[n, n_outputs]``."""


def own_network(factory: Factory, n_inputs: int, n_outputs: int, generator: torch.Generator) -> nn.Module:
    """Make a network and try it on two states; what it draws at random comes from the generator.

    Raises:
        ValueError: nothing that maps features to so many outputs, each state for itself.
    """
    wanted = "allowed: a function of (n_inputs, n_outputs) that returns a torch.nn.Module"
    with torch.random.fork_rng(devices=[]):  # modules know only the global generator
        torch.default_generator.set_state(generator.get_state())
        try:
            network = factory(n_inputs, n_outputs)
            if not isinstance(network, nn.Module):
                raise TypeError(f"made a {type(network).__name__}")
            _try(network.eval(), n_inputs, n_outputs)
        except Exception as error:  # of any kind: it is the user's code
            said = f"network({n_inputs}, {n_outputs}): {type(error).__name__}: {one_line(error)}"
            raise ValueError(f"{said}; {wanted}") from error
        generator.set_state(torch.default_generator.get_state())
    return network


@torch.no_grad()
def _try(network: nn.Module, n_inputs: int, n_outputs: int) -> None:
    """Evaluate two states together and apart."""
    states = torch.stack([torch.zeros(n_inputs, dtype=torch.float32), torch.ones(n_inputs, dtype=torch.float32)])
    together = network(states)
    if not isinstance(together, Tensor) or together.shape != (2, n_outputs):
        found = f"shape {[*together.shape]}" if isinstance(together, Tensor) else f"type {type(together).__name__}"
        raise ValueError(f"its outputs at features [2, {n_inputs}] have {found}, not shape [2, {n_outputs}]")
    apart = torch.cat([network(states[:1]), network(states[1:])])
    if not torch.allclose(together, apart, rtol=1e-3, atol=1e-4, equal_nan=True):
        raise ValueError("its outputs for a state change by chance or with other states, so no KL can be measured")
    for name, x in network.state_dict().items():
        if not isinstance(x, Tensor):
            raise ValueError(f"its state has {name}, a {type(x).__name__}, and only tensors are saved")
