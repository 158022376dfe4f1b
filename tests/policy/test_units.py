"""Units of a box against exact arithmetic and torch's transformed distributions; trainings that know no unit."""

import warnings
from fractions import Fraction
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from environments import Noise, small_agent
from gymnasium.spaces import Box
from support import both, parameters, same
from torch import distributions as td

from klrl.agents import PPO, TRPO, PPOConfig, TRPOConfig
from klrl.agents.distillation import distill
from klrl.agents.saved_policy import SavedPolicy
from klrl.kl import kl_divergence
from klrl.kl.executed import kl_executed
from klrl.policy.distributions import DiagGaussian
from klrl.policy.units import Units, caution, unbounded

INF, LARGEST = np.inf, float(np.finfo(np.float64).max)
RANGES = [(-1.0, 1.0), (0.0, 1e3), (-1e-3, 1e-3), (500.0, 502.0), (-1e10, 1e10), (1.7e9, 1.7e9 + 1.0), (-3e-12, 1e-12)]


def space_of(*ranges, dtype=np.float64):
    low, high = np.array(ranges, dtype).T
    return Box(low, high, dtype=dtype)


def test_the_map_is_that_of_exact_arithmetic_and_so_is_its_inverse():
    space = space_of(*RANGES)
    a = np.random.default_rng(0).normal(size=(20, len(RANGES)))
    x = Units.of(space).to_environment(a)
    for j, (low, high) in enumerate(RANGES):
        size = max(abs(low), abs(high))
        for i in range(len(a)):
            exact = Fraction(low) + (Fraction(a[i, j]) + 1) / 2 * (Fraction(high) - Fraction(low))
            assert abs(float(Fraction(x[i, j]) - exact)) <= 1e-15 * size * (1.0 + abs(a[i, j]))
    # One digit of x is 1e-16 of its size, and worth as much of a as it is of half the range.
    worth = 1e-15 * np.max(np.abs(RANGES), 1) / (np.diff(RANGES)[:, 0] / 2.0)
    assert (np.abs(Units.of(space).from_environment(x) - a) <= worth * (1.0 + abs(a))).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_minus_one_to_one_changes_no_bit_and_makes_no_copy(dtype):
    a = np.random.default_rng(0).normal(size=(5, 2)).astype(dtype)
    units = Units.of(space_of((-1.0, 1.0), (-1.0, 1.0), dtype=dtype))
    assert units.are_environments
    assert units.to_environment(a) is a
    assert units.from_environment(a) is a


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_elements_without_a_range_keep_the_environments_unit(dtype):
    most = float(np.finfo(dtype).max)
    free = [(-INF, INF), (0.0, INF), (-INF, 5.0), (500.0, INF), (-most, most), (0.0, most), (-(2.0**63), 2.0**63)]
    space = space_of(*free, (7.0, 7.0), (0.0, 4.0), dtype=dtype)
    assert unbounded(space).tolist() == [True] * len(free) + [False, False]
    units = Units.of(space)
    assert (units.center.tolist(), units.half_range.tolist()) == ([0.0] * 8 + [2.0], [1.0] * 8 + [2.0])
    assert np.isfinite(units.to_environment(np.full(9, 1e3))).all()


def gaussians(d, n=50, seed=0):
    generator = torch.Generator().manual_seed(seed)
    fields = (torch.randn(n, d, dtype=torch.float64, generator=generator) for _ in range(4))
    mean, log_std, other, other_log_std = fields
    return DiagGaussian(mean, 0.3 * log_std), DiagGaussian(other, 0.3 * other_log_std)


def test_kl_and_the_clipped_actions_kl_are_those_in_the_environments_units():
    space = space_of((0.0, 1e3), (-1e-3, 1e-3), (500.0, 502.0))
    units = Units.of(space)
    center, half = torch.from_numpy(units.center), torch.from_numpy(units.half_range)
    p, q = gaussians(3)
    there = [td.Independent(td.Normal(center + half * r.mean, half * r.std), 1) for r in (p, q)]
    torch.testing.assert_close(kl_divergence(p, q), td.kl_divergence(*there), rtol=1e-6, atol=1e-9)
    in_units = [DiagGaussian(x.base_dist.loc, x.base_dist.scale.log()) for x in there]
    inside = kl_executed(p, q, -1.0, 1.0)
    torch.testing.assert_close(inside, kl_executed(*in_units, space.low, space.high), rtol=1e-6, atol=1e-9)
    assert (inside < kl_divergence(p, q)).all()


def test_a_log_density_differs_from_the_environments_by_the_volume():
    units = Units.of(space_of((0.0, 1e3), (-1e-3, 1e-3)))
    p, _ = gaussians(2)
    a = p.sample(torch.Generator().manual_seed(1))
    scaled = td.AffineTransform(*map(torch.from_numpy, (units.center, units.half_range)), event_dim=1)
    there = td.TransformedDistribution(td.Independent(td.Normal(p.mean, p.std), 1), scaled)
    x = torch.from_numpy(units.to_environment(a.numpy()))
    expected = there.log_prob(x) + float(np.log(units.half_range).sum())
    torch.testing.assert_close(p.log_prob(a), expected, rtol=1e-6, atol=1e-6)


# Trainings.
class Choice(gym.Env):
    """The reward is how near the action is to a place in the box that the observation tells."""

    observation_space = Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, low, high, dtype=np.float32):
        self.action_space = Box(low, high, (1,), dtype)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps, self.seen = 0, self.np_random.uniform(-1.0, 1.0, 1).astype(np.float32)
        return self.seen, {}

    def step(self, action):
        assert self.action_space.contains(action)
        low, high = self.action_space.low.astype(float), self.action_space.high.astype(float)
        share = 2.0 * (action - low) / (high - low) - 1.0
        reward = -float(abs(share[0] - 0.5 * self.seen[0]))
        self.steps, self.seen = self.steps + 1, self.np_random.uniform(-1.0, 1.0, 1).astype(np.float32)
        return self.seen, reward, False, self.steps == 20, {}


@both
def test_a_training_is_the_same_in_every_unit(agent_class):
    """To the bit, because powers of two lose no digit."""
    first, *others = (
        parameters(small_agent(agent_class, partial(Choice, -x, x)).learn(256)) for x in (1.0, 2.0**30, 2.0**-30)
    )
    for other in others:
        assert same(first, other)


@both
def test_a_training_is_nearly_the_same_in_an_offset_box(agent_class):
    one, other = (
        small_agent(agent_class, partial(Choice, low, high, np.float64)).learn(256)
        for low, high in ((-1.0, 1.0), (1.7e9, 1.7e9 + 100.0))
    )
    assert one.predict([0.3], deterministic=True)[0] != other.predict([0.3], deterministic=True)[0]
    for ours, theirs in zip(parameters(one), parameters(other), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-3)


@both
def test_without_the_setting_the_unit_is_the_environments(agent_class):
    agent = small_agent(agent_class, partial(Choice, 500.0, 502.0), scale_actions=False)
    assert agent.actor.to_environment(np.float32([0.5, 501.5])[:, None]).tolist() == [[500.0], [501.5]]
    scaled = small_agent(agent_class, partial(Choice, 500.0, 502.0))
    assert scaled.actor.to_environment(np.float32([0.5, -3.0])[:, None]).tolist() == [[501.5], [500.0]]


# Where the unit is a guess.
@pytest.mark.parametrize("space", [Box(-INF, INF, (2,)), space_of((-1.0, 1.0), (500.0, INF)), Box(-3e38, 3e38, (2,))])
def test_training_says_once_that_a_unit_is_a_guess(space):
    agent = small_agent(PPO, partial(Noise, space))
    with pytest.warns(RuntimeWarning, match="lacks bounds in .* begins with mean 0 and std 1") as said:
        agent.learn(64)
    assert len(said) == 1
    assert "\n" not in str(said[0].message)
    agent.learn(64)
    small_agent(PPO, partial(Noise, space), scale_actions=False).learn(64)


def test_what_is_said_names_elements_and_what_clipping_takes():
    assert caution(Box(-5.0, 5.0, (3,))) == caution(space_of(*RANGES)) == ""
    assert "in all elements:" in caution(Box(0.0, INF, (3,)))
    text = caution(space_of((-1.0, 1.0), (1.5, INF), (0.0, INF)), log_std=0.0)
    outside = td.Normal(0.0, 1.0).cdf(torch.tensor(1.5)).item()
    assert f"in elements [1, 2]: there a Gaussian begins with mean 0 and std 1, of which {outside:.1%}" in text
    assert "is outside of [1.5, inf] in element 1" in text
    assert "outside" not in caution(space_of((1.5, INF)), log_std=1.0)  # most of std e is not


# Files and other policies.
@pytest.mark.parametrize("config_class", [PPOConfig, TRPOConfig])
def test_files_without_the_setting_mean_the_environments_unit(config_class):
    data = config_class().to_json()
    assert data.pop("scale_actions") is True
    assert config_class.from_json(data).scale_actions is False
    assert config_class.from_json(data | {"scale_actions": True}).scale_actions is True


def test_a_saved_policy_without_the_setting_acts_in_the_environments_unit():
    snapshot = small_agent(PPO, partial(Choice, 0.0, 1e3)).learn(64).snapshot()
    config = {k: v for k, v in snapshot.state["config"].items() if k != "scale_actions"}
    one, other = (
        SavedPolicy(snapshot.tensors, snapshot.state),
        SavedPolicy(snapshot.tensors, snapshot.state | {"config": config}),
    )
    assert one.actor.units == Units(np.array([500.0]), np.array([500.0]))
    assert other.actor.units == Units(np.zeros(1), np.ones(1))
    assert SavedPolicy(other.tensors, other.state).actor.units == other.actor.units


def test_policies_in_different_units_have_no_kl(tmp_path):
    settings = [{"scale_actions": scale} for scale in (True, False)]
    mine, its = (small_agent(PPO, partial(Choice, 0.0, 1e3), **x) for x in settings)
    line = "reference acts in units of the environment; allowed: of the box, as agent"
    with pytest.raises(ValueError, match=line):
        mine.refer_to(its.save(tmp_path / "other"))
    with pytest.raises(ValueError, match="other acts in units of the box; allowed: of the environment"):
        its.start_from(mine)
    with pytest.raises(ValueError, match="student acts in units of the environment"):
        distill(mine, its, partial(Choice, 0.0, 1e3))
    same_anyway = [small_agent(PPO, partial(Choice, -1.0, 1.0), **x) for x in settings]
    same_anyway[0].start_from(same_anyway[1])


def test_a_loaded_agent_acts_in_the_same_units(tmp_path):
    for scale in (True, False):
        agent = small_agent(TRPO, partial(Choice, 500.0, 502.0), scale_actions=scale).learn(64)
        loaded = TRPO.load(agent.save(tmp_path / str(scale)))
        seen = np.float32([[0.1], [-0.7]])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            expected = agent.predict(seen, deterministic=True)[0]
        np.testing.assert_array_equal(loaded.predict(seen, deterministic=True)[0], expected)
