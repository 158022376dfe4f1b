"""Folding of changed statistics into the networks' layers, which keeps what they say.

A change of observation statistics goes into the first layer: with x_old = (x - m) k and x_new = (x - m') k' that layer,
W x_old + b, is W' x_new + b' for W' = W k / k' and b' = b + W k (m' - m).

A change of the reward's scale goes into the critic's last layer: where rewards were multiplied by k and now are by k',
(W h + b) k' / k is in the new units what W h + b was in the old ones. Van Hasselt et al. 2016, "Learning values across
many orders of magnitude", proposition 1 (PopArt), without the shift: rewards are not centred.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from klrl.policy.mlp import MLP
from klrl.policy.networks import Critic, features
from klrl.policy.normalizer import Normalizer
from klrl.policy.observations import Encoding
from klrl.policy.shared_encoder import SharedCritic

_IN_TURN = (MLP, nn.Sequential)
"""Classes that call their modules in turn, the first one with the features."""


def first_layer(network: nn.Module) -> nn.Linear | None:
    """Return the layer that normalised features enter; ``None`` if it is unknown (images, a module of one's own).

    A critic on the policy's encoder has none: what its head is given keeps its meaning where the policy does.
    """
    if isinstance(network, SharedCritic) and network.shares:
        return None
    trunk = layer = network._modules.get("trunk")
    while isinstance(layer, nn.Sequential) and type(layer) in _IN_TURN and len(layer) and not _is_hooked(layer):
        layer = layer[0]
    if type(layer) is not nn.Linear or trunk is None or layer.bias is None or _is_hooked(layer):
        return None
    every = [p for _, module in trunk.named_modules(remove_duplicate=False) for p in module._parameters.values()]
    used_once = all(sum(p is own for p in every) == 1 for own in (layer.weight, layer.bias))
    return layer if used_once else None


def _is_hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


@torch.no_grad()
def fold(networks: Iterable[nn.Module], encoding: Encoding, old: Normalizer, new: Normalizer) -> None:
    """Make networks compute at ``new(x)`` what they computed at ``old(x)``, up to rounding and clipping.

    In place. Networks without a known first layer are not changed, and neither are elements whose standard deviation
    grew more than ``clip`` times: most of their values were clipped before, so there is no function to keep, and such
    large weights would spoil later learning. An element that had been constant, and so 0, begins with weights of 0.
    """
    (mean, scale), (new_mean, new_scale) = _affine(encoding, old), _affine(encoding, new)
    growth, shift = torch.where(new_scale > 0.0, scale / new_scale, 1.0), scale * (new_mean - mean)
    kept = (growth <= new.clip) | (old.moments.count == 0)  # without statistics nothing was clipped
    growth, shift = torch.where(kept, growth, 1.0), torch.where(kept, shift, 0.0)
    for layer in filter(None, map(first_layer, networks)):
        # Computed in float64 and rounded once. Adam's moments of the layer stay: what they are off by shrinks with the
        # change itself, as 1 / number of updates, and nobody knows the shift's term in the second moment anyway.
        W = layer.weight.double()
        layer.bias.copy_(layer.bias.double() + W @ shift.to(W.device))
        layer.weight.copy_(W * growth.to(W.device))


def output_layer(network: nn.Module, x: Tensor) -> nn.Linear | None:
    """Return the linear layer whose output is the network's; ``None`` if another operation comes last.

    Layers that are known are not asked; any other network is watched while it evaluates ``x``.
    """
    if type(network) is Critic and isinstance(network.trunk, MLP) and network.written_out:
        last = network.trunk[-1]
        return last if isinstance(last, nn.Linear) else None
    calls: list[tuple[nn.Linear, Tensor, int]] = []

    def note(layer: nn.Module, _: object, output: Tensor) -> None:
        if isinstance(layer, nn.Linear):
            calls.append((layer, output, output._version))

    plain = [m for m in network.modules() if type(m) is nn.Linear and not m._forward_hooks and not m._forward_pre_hooks]
    watches = [layer.register_forward_hook(note) for layer in plain]
    try:
        with torch.no_grad():
            values = network(x)
    finally:
        for watch in watches:
            watch.remove()
    if not calls:
        return None
    layer, output, version = calls[-1]
    # The same memory, in which nothing was written afterwards: every call's output is still alive, so it is no other's.
    is_last = (output.data_ptr(), output.numel(), output._version) == (values.data_ptr(), values.numel(), version)
    return layer if is_last and _is_used_once(layer, network, [called for called, *_ in calls]) else None


def _is_used_once(layer: nn.Linear, network: nn.Module, calls: Sequence[nn.Module]) -> bool:
    """Tell whether a layer was called once, and its parameters are no other module's."""
    parameters = [id(p) for module in network.modules() for p in module._parameters.values()]
    return sum(layer is called for called in calls) == 1 and all(
        parameters.count(id(p)) == 1 for p in layer.parameters()
    )


@torch.no_grad()
def rescale(layer: nn.Linear, factor: float) -> None:
    """Multiply a layer's outputs by a factor, in place; computed in float64 and rounded once."""
    for p in layer.parameters():
        p.copy_(p.double() * factor)


def _affine(encoding: Encoding, normalizer: Normalizer) -> tuple[Tensor, Tensor]:
    """Return mean and scale of the first layer's inputs, ``[n_features]`` each."""
    mean, scale = normalizer.affine
    return features(encoding, mean), features(encoding, scale)
