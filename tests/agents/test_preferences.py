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
