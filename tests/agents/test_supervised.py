"""Steps on the policy alone, of every kind."""

import gymnasium as gym
import pytest
import torch
from environments import Counting, Noise, box, small_agent
from support import both, parameters, same, slots
from torch import nn

from klrl.agents import PPO, DistillationConfig, DPOConfig, PreferencesConfig, collect_preferences, fit_preferences
from klrl.agents.distillation import distillation_rounds
from klrl.agents.supervised import ActorDescent, closed_after, environments
from klrl.policy.linearization import Objective


def towards_zero(agent, x):
    """E[|logits|^2] / 2."""
    policy = agent.actor.linearize(x)
    logits = policy.output.logits
    return Objective(0.5 * logits.square().sum(-1).mean(), ((policy, 1.0 / len(x), (logits,)),))


@both
def test_a_step_moves_the_policy_and_nothing_else(agent_class):
    agent = small_agent(agent_class, "CartPole-v1").learn(64)
    before, critic = parameters(agent), [p.clone() for p in agent.critic.parameters()]
    descent = ActorDescent(agent, learning_rate=1e-2, max_grad_norm=1.0)
    forgotten = slots(agent)
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    losses = []
    for _ in range(50):
        loss = towards_zero(agent, x)
        losses.append(loss.value.item())
        descent.step(loss)
    assert losses[-1] < 0.1 * losses[0]
    assert not same(parameters(agent), before)
    assert same(agent.critic.parameters(), critic)
    assert same(slots(agent), forgotten)


def test_the_agents_optimiser_forgets_the_policy_and_keeps_the_critic():
    agent = small_agent(PPO, "CartPole-v1").learn(64)
    actor, critic = (agent.networks.optimizer.moments(i) for i in (0, 1))
    ActorDescent(agent, learning_rate=1e-2, max_grad_norm=1.0)
    assert all(x.count_nonzero() > 0 for x in actor.values())
    assert all(x.count_nonzero() == 0 for x in agent.networks.optimizer.moments(0).values())
    assert same(agent.networks.optimizer.moments(1).values(), critic.values())


def test_a_network_of_ones_own_is_taken_in():
    agent = small_agent(PPO, "CartPole-v1")
    agent.actor.trunk = nn.Linear(4, 2)
    x = torch.ones(3, 4)
    before = towards_zero(agent, x).value.item()
    ActorDescent(agent, learning_rate=1e-2, max_grad_norm=1.0).step(towards_zero(agent, x))
    assert towards_zero(agent, x).value.item() < before


def test_environments_are_closed_but_not_those_of_the_user():
    made = []

    def make():
        made.append(Counting())
        return made[-1]

    agent, own = small_agent(PPO, Counting), Counting()
    for env in (make, own):
        with closed_after(environments(env, 2, agent), env):
            assert not own.closed
    assert [env.closed for env in made] == [True] * 2
    assert not own.closed


KINDS = {
    "Gaussian": (box(2), {}),
    "state-dependent": (box(2), {"state_dependent_std": True}),
    "squashed": (box(2), {"action_distribution": "squashed-gaussian"}),
    "Beta": (box(2), {"action_distribution": "beta"}),
    "MultiDiscrete": (gym.spaces.MultiDiscrete([3, 2]), {}),
    "MultiBinary": (gym.spaces.MultiBinary(3), {}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_policy_can_be_distilled_and_tuned(kind):
    space, settings = KINDS[kind]
    teacher, student = (small_agent(PPO, lambda: Noise(space), seed=seed, **settings) for seed in (0, 1))
    with torch.no_grad():
        teacher.networks.actor_parameters.normal_(std=0.5, generator=teacher.streams.networks)
    for direction in ("forward", "reverse"):
        short = DistillationConfig(direction=direction, n_rounds=2, n_envs=2, n_steps=32, learning_rate=3e-3)
        rows = list(distillation_rounds(teacher, student, lambda: Noise(space), short))
        assert rows[-1][f"distill/kl_{direction}"] < rows[0][f"distill/kl_{direction}"]
    pairs = PreferencesConfig(n_pairs=32, segment_length=4, n_envs=8)
    data = collect_preferences(teacher, lambda: Noise(space), pairs)
    fit_preferences(student, teacher, data, DPOConfig(n_epochs=5, learning_rate=3e-3))
    assert student.history[-1]["dpo/loss"] < student.history[0]["dpo/loss"]
