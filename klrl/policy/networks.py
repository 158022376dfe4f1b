"""Networks of actors and critics: features of observations, a trunk, and the derivative of its outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from klrl.policy.arrays import Array, concatenate_last, expand, split, split_last, tensor
from klrl.policy.distributions import Distribution
from klrl.policy.linearization import Arrays, ByAutograd, Linearization
from klrl.policy.mlp import MLP
from klrl.policy.observations import Encoding
from klrl.policy.paths import Linearizable, is_explicit, is_laid_out, is_linearizable, is_written_out
from klrl.policy.trunks import make_trunk

T = TypeVar("T")
_BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout, nn.RReLU)


class Critic(nn.Module, Linearizable):
    """V(s): observations ``[*B, *O]`` to values ``[*B]``."""

    def __init__(self, encoding: Encoding, hidden: Sequence[int], **style: Any) -> None:
        super().__init__()
        self.encoding = encoding
        self.trunk = make_trunk(encoding, hidden, 1, output_gain=1.0, **style)

    def forward(self, observation: Array) -> Array:
        """Return values in units of the scaled return."""
        return evaluate(self.trunk, features(self.encoding, observation)).squeeze(-1)

    @property
    def explicit(self) -> bool:
        """True where the trunk is."""
        return is_explicit(self.trunk)

    @property
    def written_out(self) -> bool:
        """True where the trunk's derivative is, and no parameter was added."""
        return is_laid_out(self) and is_written_out(self.trunk)

    def linearize(self, observation: Array) -> Linearization[Array]:
        """Return the values at ``[n, *O]`` and their derivative by the parameters."""
        if not is_laid_out(self):
            return ByAutograd(self, observation)
        trunk = linearize(self.trunk, features(self.encoding, observation))
        return OnTrunk(self, trunk, trunk.output.squeeze(-1))


class OnTrunk(Linearization[T]):
    """A trunk's outputs in another form: cut in pieces, or beside parameters that are outputs themselves."""

    def __init__(self, network: nn.Module, trunk: Linearization[Array], output: T) -> None:
        self.network, self.output = network, output
        self._trunk = trunk

    def pieces(self, *cotangent: Array) -> list[Array]:
        """Return J' u; free parameters sum the cotangents of all rows, and come first in ``network.parameters()``."""
        own = list(self.network.parameters(recurse=False))
        u, rows = (cotangent[0], cotangent[1:]) if own else (concatenate_last(cotangent), ())
        trunk = self._trunk.pieces(u.reshape(self._trunk.output.shape))
        return [*[x.sum(0) * float(p.requires_grad) for x, p in zip(rows, own, strict=True)], *trunk]

    def push_forward(self, tangent: Array) -> Arrays:
        """Return J v: the trunk's tangent in the shape of the output, and that of the free parameters."""
        n = sum(p.numel() for p in self.network.parameters(recurse=False))
        free, rest = split(tangent, [n, len(tangent) - n])
        (d,) = self._trunk.push_forward(rest)
        if n:
            return d, expand(free, d.shape)
        if not isinstance(self.output, Distribution):
            return (d.squeeze(-1),)
        return tuple(split_last(d, len(self.output.parameters)))


def check_one_mode(**networks: nn.Module) -> list[str]:
    """Put networks in evaluation mode, and describe the parts that would behave otherwise in training mode.

    Raises:
        ValueError: parameters other than float32, or a part whose output for a state depends on other states.
    """
    changed = []
    for name, network in networks.items():
        for key, x in network.state_dict(prefix=f"{name}.").items():
            if x.is_floating_point() and x.dtype != torch.float32:
                raise ValueError(f"{key} has dtype {x.dtype}; allowed: torch.float32")
        for key, module in network.eval().named_modules(prefix=name):
            if isinstance(module, _BATCH_NORM) and module.running_mean is None:
                what = f"{key} is a {type(module).__name__} without running statistics"
                raise ValueError(f"{what}: its output for one state depends on others; allowed: track_running_stats")
            if isinstance(module, (*_BATCH_NORM, *_DROPOUT)):
                changed.append(f"{key} ({type(module).__name__})")
    return changed


def features(encoding: Encoding, observation: Array) -> Array:
    """Return one vector per state of everything but the mask, ``[*B, *O] -> [*B, n_features]``."""
    if len(encoding.shape) != 1:
        return observation.reshape(*observation.shape[: observation.ndim - len(encoding.shape)], -1)
    return observation[..., : encoding.n_features] if encoding.n_mask else observation


def linearize(trunk: nn.Module, x: Array) -> Linearization[Array]:
    """Outputs and derivative of a trunk at ``x [n, in]``: its own, as an :class:`MLP` has it, else by autograd.

    The trunk is in evaluation mode, as in :func:`evaluate`: the policy that acts is the one that is updated, and of
    which every KL is measured.
    """
    return trunk.linearize(x) if is_linearizable(trunk) else ByAutograd(trunk.eval(), x)


def evaluate(trunk: nn.Module, x: Array) -> Array:
    """Return the outputs only, in evaluation mode; a trunk other than an :class:`MLP` is given a tensor ``[n, in]``."""
    if isinstance(trunk, MLP):
        return trunk(x)
    outputs = trunk.eval()(tensor(x).reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], -1)
    return outputs if isinstance(x, Tensor) else outputs.detach().numpy()
