"""Evaluation plays whole episodes and changes nothing."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from environments import Counting, small_agent

from klrl.agents import PPO
from klrl.run import Evaluation, evaluate


class Recorder:
    """An agent that remembers what it was asked."""

    def __init__(self):
        self.asked = []

    def predict(self, observation, deterministic=False):
        self.asked.append((*observation[:3], deterministic))
        return np.int64(1), None


@pytest.mark.parametrize("ending", ["terminated", "truncated"])
@pytest.mark.parametrize("deterministic", [True, False])
def test_every_step_of_every_episode_is_played_once(ending, deterministic):
    agent = Recorder()
    result = evaluate(agent, Counting(7, length=4, ending=ending), n_episodes=3, deterministic=deterministic)
    assert agent.asked == [(7, episode, step, deterministic) for episode in range(3) for step in range(4)]
    assert result == Evaluation(returns=(6.0,) * 3, lengths=(4,) * 3)


def test_mean_and_standard_deviation_are_those_of_the_episodes():
    result = Evaluation(returns=(1.0, 3.0), lengths=(1, 1))
    assert (result.mean, result.std) == (2.0, 1.0)


def test_the_seed_decides_the_episodes():
    agent = small_agent(PPO)
    results = [evaluate(agent, gym.make("CartPole-v1"), n_episodes=5, seed=seed) for seed in (0, 0, 1)]
    assert results[0] == results[1] != results[2]


@pytest.mark.parametrize("deterministic", [True, False])
def test_evaluating_between_two_trainings_does_not_change_the_second(deterministic):
    plain, evaluated = (small_agent(PPO).learn(64) for _ in range(2))
    evaluate(evaluated, gym.make("CartPole-v1"), n_episodes=3, deterministic=deterministic)
    for a, b in zip(plain.learn(64).actor_parameters, evaluated.learn(64).actor_parameters, strict=True):
        assert torch.equal(a, b)
