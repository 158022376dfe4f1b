"""Running statistics against numpy on everything at once, and reward scaling against a plain loop."""

import dataclasses
import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from klrl.policy.normalizer import RESOLUTION, Moments, Normalizer, ReturnScaler


def rows(n, *shape, seed=0):
    """Data far from zero, with scales that differ by six orders of magnitude."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, *shape)) * 10.0 ** rng.uniform(-3, 3, size=shape) + rng.normal(size=shape) * 1e3


@pytest.mark.parametrize("shape", [(), (4,), (2, 3)])
@pytest.mark.parametrize("cuts", [[], [1], [0, 1, 1, 50, 199], list(range(1, 200))])
def test_absorbing_in_chunks_equals_absorbing_everything_at_once(shape, cuts):
    data, moments = rows(200, *shape), Moments.of_shape(shape)
    for chunk in np.split(data, cuts):
        moments = moments.absorb(torch.tensor(chunk))
    assert moments.count == 200
    np.testing.assert_allclose(moments.mean, data.mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.variance, data.var(0), rtol=1e-9)


def test_a_normalizer_is_the_identity_until_it_has_absorbed_something():
    x = torch.tensor([[-1e6, 0.0, 3.5]], dtype=torch.float64)
    assert torch.equal(Normalizer.of_shape((3,))(x), x.to(torch.float32))
    assert torch.equal(Normalizer.of_shape((3,)).absorb(x[:0])(x), x.to(torch.float32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.uint8])
def test_normalised_data_are_centred_scaled_float32(dtype):
    data = torch.tensor(rows(500, 3)).clamp(0, 255).to(dtype) if dtype == torch.uint8 else torch.tensor(rows(500, 3))
    z = Normalizer.of_shape((3,)).absorb(data.to(dtype))(data.to(dtype))
    x = data.to(dtype).double().numpy()
    assert z.dtype == torch.float32
    np.testing.assert_allclose(z, (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-8), rtol=1e-4, atol=1e-5)


def test_normalised_values_are_clipped_on_both_sides():
    normalizer = dataclasses.replace(Normalizer.of_shape(()).absorb(torch.tensor([-1.0, 1.0])), clip=2.0)
    z = normalizer(torch.tensor([-1e9, -1.5, 0.0, 1.5, 1e9]))  # mean 0, variance 1
    torch.testing.assert_close(z, torch.tensor([-2.0, -1.5, 0.0, 1.5, 2.0]))


def test_a_feature_that_never_changes_becomes_zero():
    x = torch.full((10, 2), 7.25)
    assert torch.equal(Normalizer.of_shape((2,)).absorb(x)(x), torch.zeros(10, 2))


def test_absorbing_leaves_the_old_normalizer_as_it_was():
    old = Normalizer.of_shape((3,)).absorb(torch.tensor(rows(10, 3)))
    x, mean = torch.tensor(rows(5, 3)), old.moments.mean.clone()
    before = old(x)
    new = old.absorb(torch.tensor(rows(10, 3, seed=1)))
    assert torch.equal(old(x), before)
    assert torch.equal(old.moments.mean, mean)
    assert not torch.equal(new(x), before)
    with pytest.raises(dataclasses.FrozenInstanceError):
        old.clip = 1.0


def rollout(T=40, N=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(T, N)) * 5 + 2, rng.random((T, N)) < 0.1, rng.random((T, N)) < 0.9


def loop_returns(rewards, ended, valid, gamma):
    """The forward discounted returns of every environment, one after the other, one step at a time."""
    seen = []
    for n in range(rewards.shape[1]):
        R = 0.0
        for t in range(rewards.shape[0]):
            if valid[t, n]:
                R = gamma * R + rewards[t, n]
                seen.append(R)
            if ended[t, n]:
                R = 0.0
    return seen


@pytest.mark.parametrize("cuts", [[], [1, 2, 17]])
@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
def test_rewards_are_divided_by_the_deviation_of_the_discounted_return(gamma, cuts):
    rewards, ended, valid = rollout()
    scaler = ReturnScaler.for_environments(3)
    for part in zip(*(np.split(x, cuts) for x in (rewards, ended, valid)), strict=True):
        scaler = scaler.absorb(*map(torch.tensor, part), gamma)
    seen = loop_returns(rewards, ended, valid, gamma)
    assert scaler.moments.count == len(seen) == valid.sum()
    np.testing.assert_allclose(scaler.moments.variance, np.var(seen), rtol=1e-9)
    np.testing.assert_allclose(
        scaler(torch.tensor(rewards)), np.clip(rewards / np.sqrt(np.var(seen) + 1e-8), -10, 10), rtol=1e-6
    )


def test_the_discounted_return_restarts_with_the_episode():
    rewards, ended = torch.ones(4, 1), torch.tensor([[False], [True], [False], [False]])
    scaler = ReturnScaler.for_environments(1).absorb(rewards, ended, torch.ones(4, 1, dtype=bool), 1.0)
    # Returns 1, 2 | 1, 2: mean 3/2, variance 1/4; the third step has not seen the end of its episode.
    assert scaler.moments.mean.item() == 1.5
    assert scaler.moments.variance.item() == 0.25
    assert scaler.running.tolist() == [2.0]


def test_rows_that_are_not_valid_change_nothing():
    rewards = torch.tensor([[1.0], [1e6], [1.0]])
    valid = torch.tensor([[True], [False], [True]])
    scaler = ReturnScaler.for_environments(1).absorb(rewards, torch.zeros(3, 1, dtype=bool), valid, 1.0)
    assert (scaler.moments.count, scaler.moments.mean.item(), scaler.running.item()) == (2, 1.5, 2.0)


def test_a_scaler_is_the_identity_until_it_has_absorbed_something_and_clips_afterwards():
    x = torch.tensor([[-1e6, 0.5]])
    assert torch.equal(ReturnScaler.for_environments(2)(x), x)
    rewards, ended, valid = map(torch.tensor, rollout(N=2))
    scaled = dataclasses.replace(ReturnScaler.for_environments(2).absorb(rewards, ended, valid, 0.9), clip=3.0)(x)
    assert scaled[0, 0] == -3.0
    assert scaled.dtype == torch.float32


def test_returns_start_anew_when_the_number_of_environments_changes():
    ones, none = torch.ones(5, 3), torch.zeros(5, 3, dtype=bool)
    three = ReturnScaler.for_environments(3).absorb(ones, none, ~none, 1.0)
    two = three.absorb(ones[:1, :2], none[:1, :2], ~none[:1, :2], 1.0)
    assert two.running.tolist() == [1.0, 1.0]
    assert two.moments.count == 17


def test_absorbing_rewards_leaves_the_old_scaler_as_it_was():
    rewards, ended, valid = map(torch.tensor, rollout())
    old = ReturnScaler.for_environments(3).absorb(rewards, ended, valid, 0.99)
    running, scaled = old.running.clone(), old(rewards)
    old.absorb(100 * rewards, ended, valid, 0.99)
    assert torch.equal(old.running, running)
    assert torch.equal(old(rewards), scaled)


# Known scales.
def test_one_known_scale_multiplies_and_nothing_is_found_out():
    pixels = torch.arange(256, dtype=torch.uint8).reshape(4, 8, 8)
    normalizer = Normalizer.of_shape((8, 8), 1.0 / 255.0)
    assert not normalizer.learns
    assert normalizer.absorb(pixels) is normalizer
    z = normalizer(pixels)
    assert z.dtype == torch.float32
    np.testing.assert_allclose(z, np.arange(256).reshape(4, 8, 8) / 255.0, rtol=1e-6)
    np.testing.assert_array_equal(normalizer(pixels.numpy()), z)


def test_a_scale_of_one_changes_nothing():
    x = torch.eye(5)
    assert torch.equal(Normalizer.of_shape((5,), 1.0).absorb(7.0 * x)(x), x)


@pytest.mark.parametrize("n_absorbed", [0, 50])
def test_known_scales_multiply_their_elements_and_statistics_the_others(n_absorbed):
    fixed = torch.tensor([1.0, 0.0, 1.0 / 255.0, 0.0], dtype=torch.float64)
    data = torch.tensor(rows(50, 4)).abs()
    data[:, 2] = 1e4  # no limit where the scale is known
    mixed, plain = Normalizer.of_shape((4,), fixed), Normalizer.of_shape((4,))
    assert mixed.learns
    mixed, plain = (n.absorb(data[:n_absorbed]) for n in (mixed, plain))
    expected = plain(data)
    expected[:, 0], expected[:, 2] = data[:, 0], data[:, 2] / 255.0
    torch.testing.assert_close(mixed(data), expected, rtol=1e-6, atol=0.0)
    np.testing.assert_array_equal(mixed(data.numpy()), mixed(data))


# Any unit.
def exact(x):
    """(x - mean) / std by fractions, for a column."""
    x = [Fraction(float(v)) for v in x]
    mean = sum(x) / len(x)
    std = math.sqrt(sum((v - mean) ** 2 for v in x) / len(x))
    return [float(v - mean) / std for v in x]


@pytest.mark.parametrize(
    ("scale", "offset"),
    [(10.0**k, 0.0) for k in (-100, -30, -8, -4, 6, 30)] + [(1.0, b) for b in (-1e3, 1e7, 1.7e9)] + [(1e-3, 1.7e9)],
)
def test_every_unit_and_offset_is_normalised_to_its_digits(scale, offset):
    data = np.random.default_rng(0).normal(size=(300, 2)) * scale + offset
    normalizer = Normalizer.of_shape((2,), resolution=RESOLUTION[np.float64])
    for chunk in np.split(data, [1, 2, 100]):
        normalizer = normalizer.absorb(torch.tensor(chunk))
    z = normalizer(torch.tensor(data))
    expected = np.transpose([exact(column) for column in data.T])
    digits = 1e-15 * abs(offset) / scale
    np.testing.assert_allclose(z, expected, rtol=1e-5 + digits, atol=1e-6 + digits)
    np.testing.assert_array_equal(normalizer(data), z)


@pytest.mark.parametrize("value", [0.0, 0.1, 1.0 / 3.0, -7.25, 1e-30, 1.7e9 + 0.1, 1e30])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_never_changes_is_exactly_zero_in_every_unit(value, dtype):
    normalizer = Normalizer.of_shape((), resolution=RESOLUTION[dtype])
    for n in (1, 7, 1000, 333) * 10:
        x = np.full(n, value, dtype)
        normalizer = normalizer.absorb(torch.tensor(x))
    assert not normalizer(x).any()
    assert np.isfinite(normalizer(x + dtype(1.0))).all()


def test_the_rounding_of_a_float32_is_no_change_and_more_is():
    value = np.float32(1000.1)
    jitter = np.array([value, np.nextafter(value, np.float32(2e3)), np.nextafter(value, np.float32(0.0))] * 50)
    assert not Normalizer.of_shape(()).absorb(torch.tensor(jitter))(jitter).any()
    wider = value + 1e-2 * (jitter - value) / np.abs(jitter - value).max()
    assert Normalizer.of_shape(()).absorb(torch.tensor(wider))(wider).std() == pytest.approx(1.0, rel=1e-2)


def test_a_constant_that_begins_to_move_is_normalised_from_the_next_statistics_on():
    constant, moving = torch.full((100,), 3.0), 3.0 + torch.randn(100, generator=torch.Generator().manual_seed(0))
    normalizer = Normalizer.of_shape(()).absorb(constant)
    assert not normalizer(moving).any()
    both = torch.cat([constant, moving]).double()
    expected = (moving - both.mean()) / both.std(correction=0)
    torch.testing.assert_close(normalizer.absorb(moving)(moving), expected.float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", [10.0**k for k in (-30, -12, -8, -3, 6, 12, 30)])
def test_rewards_are_scaled_alike_in_every_unit(scale):
    rewards, ended, valid = map(torch.tensor, rollout())
    seen = loop_returns(rewards.numpy(), ended.numpy(), valid.numpy(), 0.9)
    scaler = ReturnScaler.for_environments(3).absorb(scale * rewards, ended, valid, 0.9)
    expected = (rewards / np.std(seen)).clip(-10, 10)
    np.testing.assert_allclose(scaler((scale * rewards).float()), expected, rtol=1e-5)
