"""Noise drawn for many steps at once: the same distributions, independent over steps, and dropped when unused."""

import math

import numpy as np
import pytest
import torch

from klrl.policy.distributions import Bernoulli, Beta, Categorical, DiagGaussian, MultiCategorical, SquashedGaussian
from klrl.policy.sampling import Sampler

T, N = 4000, 5
kinds = pytest.mark.parametrize("kind", [torch.from_numpy, lambda x: x], ids=["tensors", "arrays"])


def generator(seed=7):
    return torch.Generator().manual_seed(seed)


def drawn(policy, steps=T, seed=7):
    """One sample of every step, all announced, ``[T, N, ...]``."""
    sampler = Sampler(generator(seed))
    with sampler.ahead(steps):
        return np.stack([np.asarray(sampler(policy)) for _ in range(steps)])


def check_moments(x, mean, std):
    """Mean and standard deviation over steps, and no correlation of one step or state with the next, at 5 sigma."""
    z = (x - mean) / std
    assert abs(z.mean(0)).max() < 5 / math.sqrt(T)
    assert (abs((z * z).mean(0) - 1.0) < 5 * np.sqrt((z**4).mean(0) / T)).all()
    for lag in (1, 2, 16):
        assert abs((z[lag:] * z[:-lag]).mean(0)).max() < 5 / math.sqrt(T)
    assert abs((z[:, 1:] * z[:, :-1]).mean(0)).max() < 5 / math.sqrt(T)


@kinds
def test_gaussian_actions_have_mean_and_std_and_are_independent(kind):
    rng = np.random.default_rng(0)
    mean, log_std = (rng.normal(size=(N, 2)).astype(np.float32) for _ in range(2))
    check_moments(drawn(DiagGaussian(kind(mean), kind(log_std))), mean, np.exp(log_std))
    squashed = np.arctanh(drawn(SquashedGaussian(kind(mean), kind(0.0 * log_std - 1.0))).astype(float))
    check_moments(squashed, mean, np.exp(-1.0))


@kinds
def test_choices_have_their_probabilities_and_are_independent(kind):
    logits = np.random.default_rng(1).normal(size=(N, 5)).astype(np.float32)
    logits[:, 2] = -np.inf
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    actions = drawn(Categorical(kind(logits)))
    assert not (actions == 2).any()
    for k in (0, 1, 3, 4):
        check_moments(actions == k, p[:, k], np.sqrt(p[:, k] * (1.0 - p[:, k])))
    heads = drawn(MultiCategorical(kind(logits[:, [0, 1, 3, 4]]), (1, 3)))
    assert not heads[..., 0].any()
    q = np.exp(logits[:, [1, 3, 4]])
    q /= q.sum(-1, keepdims=True)
    for k in range(3):
        check_moments(heads[..., 1] == k, q[:, k], np.sqrt(q[:, k] * (1.0 - q[:, k])))
    bits = drawn(Bernoulli(kind(logits[:, [0, 1]])))
    b = 1.0 / (1.0 + np.exp(-logits[:, [0, 1]]))
    check_moments(bits, b, np.sqrt(b * (1.0 - b)))


@pytest.mark.parametrize("policy", [DiagGaussian(torch.zeros(N, 2), torch.zeros(N, 2)), Categorical(torch.zeros(N, 3))])
def test_noise_is_that_of_one_draw_and_in_pieces_where_it_is_large(policy, monkeypatch):
    noise = policy.draw_noise(generator(), (6,))
    assert noise.shape[:2] == (6, N)
    expected = torch.stack([policy.from_noise(x) for x in noise]).numpy()
    np.testing.assert_array_equal(drawn(policy, 6), expected)
    monkeypatch.setattr("klrl.policy.sampling._MOST", 2 * sum(x.numel() for x in policy.parameters))
    g = generator()
    pieces = torch.cat([policy.draw_noise(g, (2,)) for _ in range(3)])
    expected = torch.stack([policy.from_noise(x) for x in pieces]).numpy()
    np.testing.assert_array_equal(drawn(policy, 6), expected)


def test_what_was_not_announced_is_drawn_as_it_comes():
    sampler, g = Sampler(generator()), generator()
    policy, other = (DiagGaussian(torch.zeros(n, 2), torch.zeros(n, 2)) for n in (N, 1))
    assert torch.equal(sampler(policy), policy.sample(g))
    with sampler.ahead(2):
        noise = policy.draw_noise(g, (2,))
        assert torch.equal(sampler(policy), noise[0])
        assert torch.equal(sampler(other), other.sample(g))  # of another shape
        assert torch.equal(sampler(policy), noise[1])
        assert torch.equal(sampler(policy), policy.sample(g))  # more than announced
    with sampler.ahead(3):
        sampler(policy)
    policy.draw_noise(g, (3,))
    assert torch.equal(sampler(policy), policy.sample(g))  # what was left was dropped


def test_a_family_without_noise_of_its_own_is_sampled_step_by_step():
    policy, g = Beta(torch.full((N, 2), 2.0), torch.full((N, 2), 3.0)), generator()
    expected = torch.stack([policy.sample(g) for _ in range(3)]).numpy()
    np.testing.assert_array_equal(drawn(policy, 3), expected)
