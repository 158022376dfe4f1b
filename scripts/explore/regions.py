"""Policies within a bound on KL: probabilities, Gaussians, and the steps of two gradients, all by klrl.kl."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from klrl.kl import fisher_product, kl_divergence, reverse_kl
from klrl.policy.distributions import Categorical, DiagGaussian

GOAL = 2.0
"""The action that is rewarded best: the reward is -(action - GOAL)^2."""


def root(f: Callable[[Tensor], Tensor], low: Tensor, high: Tensor) -> Tensor:
    """Return where rising functions ``[*B]`` are 0 between two ends, by bisection."""
    for _ in range(80):
        middle = (low + high) / 2
        above = f(middle) > 0.0
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return (low + high) / 2


def coin(p: Tensor) -> Categorical:
    """Return two actions, the first with probability p, ``[*B]``."""
    return Categorical(torch.stack([p, 1.0 - p], -1).log())


def coin_within(p: Tensor, delta: float) -> tuple[Tensor, Tensor]:
    """Return the least and the largest probability q with KL(p‖q) <= delta, ``[*B]``."""
    ends = [
        p + sign * root(lambda x, s=sign: kl_divergence(coin(p), coin(p + s * x)) - delta, 0.0 * p, room)  # type: ignore[misc]
        for sign, room in ((-1.0, p), (1.0, 1.0 - p))
    ]
    return ends[0], ends[1]


def gaussian(mean: Tensor | float, std: Tensor | float) -> DiagGaussian:
    """Return Gaussians of one dimension, ``[*B]``."""
    m, s = torch.broadcast_tensors(*(torch.as_tensor(x, dtype=torch.float64) for x in (mean, std)))
    return DiagGaussian(m.unsqueeze(-1), s.log().unsqueeze(-1))


def std_within(delta: float) -> tuple[float, float]:
    """Return the least and the largest standard deviation of a N(0, s^2) with KL(N(0, 1)‖N(0, s^2)) <= delta."""
    old, sign = gaussian(0.0, torch.ones(2)), torch.tensor([-1.0, 1.0]).double()
    ends = root(
        lambda x: kl_divergence(old, gaussian(0.0, (sign * x).exp())) - delta,
        torch.zeros(2).double(), torch.full((2,), 5.0).double(),
    )  # fmt: skip
    low, high = (sign * ends).exp().tolist()
    return low, high


class Gradient(NamedTuple):
    """A direction of change of mean and log standard deviation, ``[*B]`` each."""

    mean: Tensor
    log_std: Tensor


def reward(mean: Tensor, std: Tensor) -> Tensor:
    """Return the expected reward of a Gaussian policy, -(mean - GOAL)^2 - std^2."""
    return -((mean - GOAL) ** 2) - std**2


def plain_gradient(std: Tensor) -> Gradient:
    """Return the gradient of the expected reward at N(0, std^2)."""
    mean, log_std = torch.zeros_like(std).requires_grad_(), std.log().requires_grad_()
    return Gradient(*torch.autograd.grad(reward(mean, log_std.exp()).sum(), (mean, log_std)))


def natural_gradient(std: Tensor) -> Gradient:
    """Return F^-1 times it; the Fisher matrix F is diagonal here."""
    old, ones = gaussian(0.0, std), torch.ones_like(std).unsqueeze(-1)
    diagonal = fisher_product(old, (ones, ones))
    return Gradient(*(g / torch.as_tensor(f).squeeze(-1) for g, f in zip(plain_gradient(std), diagonal, strict=True)))


def moved(std: Tensor, way: Gradient, size: Tensor | float) -> DiagGaussian:
    """Return the policy after a step of a size."""
    return gaussian(size * way.mean, std * (size * way.log_std).exp())


def kl_of_step(std: Tensor, way: Gradient, size: Tensor | float) -> Tensor:
    """Return KL(old‖new) of a step."""
    return kl_divergence(gaussian(0.0, std), moved(std, way, size))


def gain_at(std: Tensor, way: Gradient, delta: float) -> Tensor:
    """Return what a step of KL(old‖new) = delta gains in expected reward."""
    length = torch.hypot(way.mean / std, way.log_std)
    size = root(lambda x: kl_of_step(std, way, x) - delta, torch.zeros_like(std), 2.0 / length)
    new = moved(std, way, size)
    return reward(new.mean.squeeze(-1), new.log_std.exp().squeeze(-1)) - reward(torch.zeros_like(std), std)


def best_gain(std: float, delta: float, directions: int = 3600) -> Tensor:
    """Return the most that any direction gains at KL(old‖new) = delta, of so many all around."""
    turn = torch.arange(directions, dtype=torch.float64) * (2.0 * torch.pi / directions)
    wide = torch.full_like(turn, std)
    return gain_at(wide, Gradient(std * turn.cos(), turn.sin()), delta).max()


def both(mean: float, std: float) -> tuple[float, float]:
    """Return KL(N(0, 1)‖N(mean, std^2)) and the reverse."""
    old, new = gaussian(0.0, 1.0), gaussian(mean, std)
    return float(kl_divergence(old, new)), float(reverse_kl(old, new))
