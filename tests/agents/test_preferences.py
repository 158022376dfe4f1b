"""Preferences: made from play by return, or of one's own."""

import numpy as np
import pytest
import torch
from environments import Counting, Probe, small_agent
from support import same

from klrl.agents import PPO, Preferences, PreferencesConfig, collect_preferences


@pytest.mark.parametrize("label", ["larger", "bradley-terry"])
def test_preferences_compare_segments_from_one_start_by_return(label):
    """In Pendulum every start is another one, the reward of a step is known in its state."""
    agent = small_agent(PPO, "Pendulum-v1")
    config = PreferencesConfig(n_pairs=300, segment_length=3, label=label, temperature=2.0, n_envs=50)
    data = collect_preferences(agent, "Pendulum-v1", config, seed=100)
    assert data.valid.shape == (300, 2, 3)
    assert same(data.observations[:, 0, 0], data.observations[:, 1, 0])
    assert len(data.observations[:, 0, 0].unique(dim=0)) == 300
    assert not (data.actions[:, 0] == data.actions[:, 1]).any()
    cos, sin, speed = data.observations.double().unbind(-1)
    torque = 2.0 * data.actions[..., 0].double().clamp(-1.0, 1.0)  # the policy acts in units of the box
    returns = -(torch.atan2(sin, cos).square() + 0.1 * speed.square() + 0.001 * torque.square()).sum(-1)
    difference = returns[:, 0] - returns[:, 1]
    if label == "larger":
        assert (difference > 0.0).all()
    else:  # E[1 - 2 P(the better one)] over the data, as the sign of a fair draw
        better = (difference > 0.0).double()
        chance = (difference.abs() / 2.0).sigmoid()
        assert abs((better - chance).mean()) < 3.0 * (chance * (1.0 - chance)).mean().sqrt() / 300**0.5
    again = collect_preferences(small_agent(PPO, "Pendulum-v1"), "Pendulum-v1", config, seed=100)
    assert same((data.observations, data.actions), (again.observations, again.actions))


def test_segments_end_with_their_episode_and_equal_returns_are_no_preference():
    def env():
        return Probe(lambda s, a: 0.0, length=3)

    agent = small_agent(PPO, env)
    data = collect_preferences(agent, env, PreferencesConfig(n_pairs=5, segment_length=8, n_envs=2))
    assert data.valid.sum(-1).tolist() == [[3, 3]] * 5
    assert (data.observations[data.valid][:, 0] == torch.arange(3.0).repeat(10)).all()
    with pytest.raises(ValueError, match="label = 'larger' with 5 pairs of equal returns; allowed: "):
        collect_preferences(agent, env, PreferencesConfig(n_pairs=5, segment_length=8, label="larger"))


def test_a_start_that_is_not_repeated_is_refused():
    agent = small_agent(PPO, Counting)  # its observations count the episodes
    with pytest.raises(ValueError, match="env starts elsewhere after a reset with the same seed"):
        collect_preferences(agent, Counting, PreferencesConfig(n_pairs=2, segment_length=2, n_envs=2))


def test_data_of_ones_own_are_pairs_of_segments_with_steps():
    agent = small_agent(PPO, "CartPole-v1")
    own = Preferences.of(agent, np.ones((7, 2, 3, 4)), np.zeros((7, 2, 3), np.int32))
    assert (own.observations.dtype, own.actions.dtype, own.valid.all()) == (torch.float32, torch.int64, True)
    assert len(own[torch.tensor([1, 2])]) == 2
    with pytest.raises(ValueError, match=r"begin with \(7, 2, 1\), \(7, 3, 1\) and \(7, 3, 1\); allowed: one shape"):
        Preferences.of(agent, np.zeros((7, 2, 1, 4)), np.zeros((7, 3, 1), int))
    with pytest.raises(ValueError, match="valid has a segment without steps"):
        Preferences.of(agent, np.zeros((1, 2, 1, 4)), np.zeros((1, 2, 1), int), np.array([[[True], [False]]]))
    with pytest.raises(ValueError, match="label = 'smaller'; allowed: bradley-terry, larger"):
        PreferencesConfig(label="smaller")


@pytest.mark.parametrize(
    ("family", "unit"), [("squashed-gaussian", "numbers from -1 to 1"), ("beta", "numbers from 0 to 1")]
)
def test_actions_of_the_environment_are_refused_and_can_be_converted(family, unit):
    agent = small_agent(PPO, "Pendulum-v1", action_distribution=family)
    observations, torques = np.zeros((2, 2, 1, 3)), np.array([[[[0.5]], [[-1.5]]], [[[2.0]], [[-2.0]]]])
    with pytest.raises(ValueError, match=rf"allowed: its policy's own, {unit} \(agent.from_environment"):
        Preferences.of(agent, observations, torques)
    own = Preferences.of(agent, observations, agent.from_environment(torques))
    np.testing.assert_allclose(agent.actor.to_environment(own.actions), torques, rtol=1e-6)


def test_a_mask_of_0_and_1_is_one_of_bools_and_other_numbers_are_refused():
    agent = small_agent(PPO, "CartPole-v1")
    mask = np.array([[[1, 1, 0], [1, 0, 0]]])
    for dtype in (np.int64, np.uint8, np.float32, bool):
        pairs = Preferences.of(agent, np.zeros((1, 2, 3, 4)), np.zeros((1, 2, 3), int), mask.astype(dtype))
        assert pairs.valid.dtype == torch.bool
        np.testing.assert_array_equal(pairs.valid, mask == 1)
    with pytest.raises(ValueError, match="valid = 2 at a place; allowed: bool, or 0 and 1"):
        Preferences.of(agent, np.zeros((1, 2, 3, 4)), np.zeros((1, 2, 3), int), 2 * mask)


def saturated_preferences(mean):
    """Pairs of a squashed policy with this mean before the tanh: from 9 on, its float32 actions are 1."""
    agent = small_agent(PPO, "Pendulum-v1", action_distribution="squashed-gaussian")
    with torch.no_grad():
        *_, bias = agent.actor.trunk.parameters()
        bias.fill_(mean)
    return agent, collect_preferences(agent, "Pendulum-v1", PreferencesConfig(n_pairs=50, segment_length=3, n_envs=5))


def test_preferences_of_a_squashed_policy_remember_what_their_actions_are_the_tanh_of():
    """Their log-probability is that of u, less log(1 - tanh(u)^2) = 2 (log 2 - |u| - log(1 + e^-2|u|))."""
    agent, data = saturated_preferences(12.0)
    u = data.before_tanh.double()
    assert data.actions.min() > 1.0 - 1e-6
    torch.testing.assert_close(u.tanh(), data.actions.double(), atol=1e-6, rtol=0.0)
    policy = agent.distribution(data.observations[data.valid])
    base, u = policy.base, u[data.valid]
    slope = 2.0 * (np.log(2.0) - u.abs() - (-2.0 * u.abs()).exp().log1p())
    expected = torch.distributions.Normal(base.mean.double(), base.log_std.double().exp()).log_prob(u) - slope
    found = policy.log_prob_inside(data.taken(agent.device))
    torch.testing.assert_close(found.double(), expected.sum(-1), rtol=1e-4, atol=1e-4)
    some = data[torch.tensor([3, 4])]
    assert same(some.before_tanh, data.before_tanh[3:5])
    own = Preferences.of(agent, data.observations, data.actions, data.valid, data.before_tanh.numpy())
    assert same(own.before_tanh, data.before_tanh)


def test_preferences_without_what_was_before_the_tanh_are_read_by_their_actions():
    agent, data = saturated_preferences(0.5)
    unknown = Preferences(data.observations, data.actions, data.valid)
    policy = agent.distribution(data.observations[data.valid])
    by_action, by_u = (policy.log_prob_inside(x.taken(agent.device)) for x in (unknown, data))
    assert same(by_action, policy.log_prob(data.actions[data.valid]))
    torch.testing.assert_close(by_action, by_u, rtol=1e-3, atol=1e-3)
    assert unknown.map(lambda x: x).before_tanh is None
    for wrong in (data.before_tanh + 0.1, data.before_tanh[..., 0]):
        with pytest.raises(ValueError, match="before_tanh is not what actions are the tanh of; allowed: "):
            Preferences(data.observations, data.actions, data.valid, wrong)
    gaussian = small_agent(PPO, "Pendulum-v1")
    settings = PreferencesConfig(n_pairs=5, segment_length=2, n_envs=5)
    assert collect_preferences(gaussian, "Pendulum-v1", settings).before_tanh is None
