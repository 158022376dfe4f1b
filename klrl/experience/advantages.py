"""Generalised advantage estimation."""

from __future__ import annotations

import torch
from torch import Tensor


def gae(
    rewards: Tensor, values: Tensor, next_values: Tensor, terminated: Tensor, ended: Tensor, gamma: float, lam: float
) -> Tensor:
    """A_t = sum_l (gamma lambda)^l delta_{t+l}, delta_t = r_t + gamma V(s_{t+1}) - V(s_t), within one episode.

    Schulman et al. 2016, "High-Dimensional Continuous Control Using GAE", eq. 16. Termination makes V(s_{t+1})
    zero; truncation keeps it. Both end the sum.

    Args:
        rewards: r_t, ``[T, *B]``.
        values: V(s_t), ``[T, *B]``.
        next_values: V of the state that the step led to (the final state where an episode ended), ``[T, *B]``.
        terminated: the step led to a terminal state, bool ``[T, *B]``.
        ended: the step ended an episode, by termination or truncation, bool ``[T, *B]``.
        gamma: discount.
        lam: lambda, the trace's decay.

    Returns:
        Advantages, ``[T, *B]``, in the units of the rewards.
    """
    delta = rewards + gamma * next_values.masked_fill(terminated, 0.0) - values
    decay = torch.full_like(delta, gamma * lam).masked_fill(ended, 0.0)
    advantages, factors = delta.numpy(force=True), decay.numpy(force=True)  # where an operation on a row costs least
    for t in range(len(advantages) - 2, -1, -1):
        advantages[t] += factors[t] * advantages[t + 1]
    return torch.from_numpy(advantages).to(delta.device)
