"""Probe environments with one thing to learn each, and CartPole as a whole."""

from functools import partial

import gymnasium as gym
import pytest
import torch
from environments import Probe, box, small_agent

from klrl.agents import NPG, PPO, TRPO
from klrl.run import evaluate

GAMMA = 0.9

both = pytest.mark.parametrize("agent_class", [PPO, TRPO])


def trained(agent_class, env, n_updates=10, **settings):
    """An agent after a few thousand steps; half of the updates are more than it needs."""
    quick = {"n_envs": 8, "batch_size": 64, "learning_rate": 1e-2, "learning_rate_schedule": "constant"}
    agent = small_agent(agent_class, env, gamma=GAMMA, **quick, **settings)
    return agent.learn(n_updates * agent.config.n_envs * agent.config.n_steps)


@torch.no_grad()
def value(agent, observation):
    return agent.critic(agent.normalizer(torch.tensor([[observation]]))).item()


def action(agent, observation):
    return agent.predict(torch.tensor([observation]).numpy(), deterministic=True)[0]


@both
@pytest.mark.parametrize(
    ("env", "values"),
    [
        (partial(Probe, lambda state, action: 1.0), {0.0: 1.0}),
        (partial(Probe, lambda state, action: state, observations=(-1.0, 1.0)), {-1.0: -1.0, 1.0: 1.0}),
        (partial(Probe, lambda state, action: 1.0, length=2), {0.0: GAMMA, 1.0: 1.0}),
    ],
    ids=["constant reward", "reward depends on the observation", "reward after two steps"],
)
def test_the_critic_learns_the_discounted_return(agent_class, env, values):
    agent = trained(agent_class, env, scale_rewards=False)
    assert {state: value(agent, state) for state in values} == pytest.approx(values, abs=0.05)


@both
@pytest.mark.parametrize(
    ("env", "best"),
    [
        (partial(Probe, lambda state, action: float(action == 1)), {0.0: 1}),
        (
            partial(Probe, lambda state, action: float(action == state), observations=(0.0, 1.0)),
            {0.0: 0, 1.0: 1},
        ),
        (
            partial(
                Probe,
                lambda state, action: float(action == 3 + state),
                observations=(0.0, 2.0),
                action_space=gym.spaces.Discrete(3, start=3),
            ),
            {0.0: 3, 2.0: 5},
        ),
    ],
    ids=["action", "observation and action", "actions that start at 3"],
)
def test_the_policy_learns_the_best_action(agent_class, env, best):
    agent = trained(agent_class, env)
    assert {state: action(agent, state) for state in best} == best


@both
@pytest.mark.parametrize(
    ("env", "best"),
    [
        (partial(Probe, lambda state, action: -abs(action[0] - 0.5), action_space=box(1)), {0.0: 0.5}),
        (
            partial(Probe, lambda state, action: state * action[0], observations=(-1.0, 1.0), action_space=box(1)),
            {-1.0: -1.0, 1.0: 1.0},
        ),
    ],
    ids=["action", "observation and action"],
)
def test_the_policy_learns_the_best_real_action(agent_class, env, best):
    agent = trained(agent_class, env, n_updates=20)
    assert {state: action(agent, state).item() for state in best} == pytest.approx(best, abs=0.15)


@pytest.mark.slow
@pytest.mark.parametrize(("agent_class", "timesteps"), [(PPO, 50_000), (TRPO, 25_000), (NPG, 25_000)])
def test_cartpole_is_solved(agent_class, timesteps):
    agent = agent_class("CartPole-v1", seed=0).learn(timesteps)
    assert evaluate(agent, gym.make("CartPole-v1"), n_episodes=6).mean >= 475.0
