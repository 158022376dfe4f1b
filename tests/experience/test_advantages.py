"""Generalised advantage estimation against its definition."""

import numpy as np
import pytest
import torch

from klrl.experience import gae


def by_definition(rewards, values, next_values, terminated, ended, gamma, lam):
    """A_t = sum_l (gamma lambda)^l delta_{t+l} up to the end of the episode; O(T^2), one environment, float64."""
    delta = [
        r + (0.0 if end else gamma * after) - v
        for r, v, after, end in zip(rewards, values, next_values, terminated, strict=True)
    ]
    advantages = []
    for t in range(len(delta)):
        end = next((k for k in range(t, len(delta)) if ended[k]), len(delta) - 1)
        advantages.append(sum((gamma * lam) ** (k - t) * delta[k] for k in range(t, end + 1)))
    return advantages


@pytest.mark.parametrize(("gamma", "lam"), [(0.99, 0.95), (0.9, 0.0), (1.0, 1.0), (0.0, 0.5)])
def test_gae_is_its_definition_on_a_thousand_patterns_of_termination_and_truncation(gamma, lam):
    rng = np.random.default_rng(0)
    shape = (12, 50, 20)
    rewards, values, next_values = rng.normal(size=(3, *shape))
    terminated = rng.random(shape) < rng.random(shape[1:])
    ended = terminated | (rng.random(shape) < 0.2)
    columns = [torch.from_numpy(x) for x in (rewards, values, next_values, terminated, ended)]
    result = gae(*columns, gamma, lam)
    assert result.shape == shape
    for index in np.ndindex(shape[1:]):
        column = (slice(None), *index)
        expected = by_definition(*(x[column] for x in (rewards, values, next_values, terminated, ended)), gamma, lam)
        np.testing.assert_allclose(result[column], expected, rtol=1e-10, atol=1e-12)


REWARDS, VALUES, NEXT_VALUES = (
    torch.tensor([1.0, 2.0, 3.0]),
    torch.tensor([10.0, 20.0, 30.0]),
    torch.tensor([20.0, 30.0, 40.0]),
)
NEVER, LAST, MIDDLE = torch.tensor([[0, 0, 0], [0, 0, 1], [0, 1, 0]], dtype=torch.bool)


@pytest.mark.parametrize(
    ("terminated", "ended", "lam", "expected"),
    [
        (NEVER, NEVER, 0.0, [1.0 + 10.0 - 10.0, 2.0 + 15.0 - 20.0, 3.0 + 20.0 - 30.0]),
        (NEVER, NEVER, 1.0, [1.0 + 1.0 + 0.75 + 5.0 - 10.0, 2.0 + 1.5 + 10.0 - 20.0, 3.0 + 20.0 - 30.0]),
        (NEVER, LAST, 1.0, [1.0 + 1.0 + 0.75 + 5.0 - 10.0, 2.0 + 1.5 + 10.0 - 20.0, 3.0 + 20.0 - 30.0]),
        (LAST, LAST, 1.0, [1.0 + 1.0 + 0.75 - 10.0, 2.0 + 1.5 - 20.0, 3.0 - 30.0]),
        (NEVER, MIDDLE, 1.0, [1.0 + 1.0 + 7.5 - 10.0, 2.0 + 15.0 - 20.0, 3.0 + 20.0 - 30.0]),
        (MIDDLE, MIDDLE, 1.0, [1.0 + 1.0 - 10.0, 2.0 - 20.0, 3.0 + 20.0 - 30.0]),
    ],
    ids=["one-step", "to-the-end", "truncation-last", "termination-last", "truncation-middle", "termination-middle"],
)
def test_gae_by_hand_with_gamma_one_half(terminated, ended, lam, expected):
    result = gae(REWARDS, VALUES, NEXT_VALUES, terminated, ended, 0.5, lam)
    assert result.tolist() == expected
