"""Folding of a change of observation statistics into the networks' first layers, which keeps their outputs.

With x_old = (x - m) k and x_new = (x - m') k' the first layer W x_old + b is W' x_new + b' for W' = W k / k' and
b' = b + W k (m' - m); van Hasselt et al. 2016, "Learning values across many orders of magnitude", proposition 1, do the
same at a network's outputs.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from klrl.policy.mlp import MLP
from klrl.policy.networks import features
from klrl.policy.normalizer import Normalizer
from klrl.policy.observations import Encoding

_IN_TURN = (MLP, nn.Sequential)
"""Classes that call their modules in turn, the first one with the features."""


def first_layer(network: nn.Module) -> nn.Linear | None:
    """Return the layer that normalised features enter; ``None`` if it is unknown (images, a module of one's own)."""
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


def _affine(encoding: Encoding, normalizer: Normalizer) -> tuple[Tensor, Tensor]:
    """Return mean and scale of the first layer's inputs, ``[n_features]`` each."""
    mean, scale = normalizer.affine
    return features(encoding, mean), features(encoding, scale)
