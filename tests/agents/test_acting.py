"""Acting in rollouts is acting: to the bit without the kernel, and but for rounding with it."""

from functools import partial

import numpy as np
import pytest
import torch
from environments import Sampling, small_agent
from test_every_space import CASES, every_case
from torch import nn

from klrl.agents import PPO
from klrl.agents.acting import acting, acting_kernel
from klrl.agents.learner import Learner
from klrl.experience.collector import OnArrays
from klrl.native import at_level, available
from klrl.policy.mlp import MLP
from klrl.run import Callback

LEVELS = [pytest.param(level, id=level) for level in available()]
ELSEWHERE = {"Discrete, images", "beta", "beta, images"}
"""Cases whose networks or families are others."""
USUAL = {name: case for name, case in CASES.items() if name not in ELSEWHERE}


def agent_in(case, **settings):
    """An agent that has learned a little, with observation statistics."""
    observations, actions, masks, options = case
    env = partial(Sampling, observations, actions, masks=masks)
    return small_agent(PPO, env, **({"n_envs": 3, "n_epochs": 1} | options | settings)).learn(64)


def steps(agent, act, observations):
    """What is done in a rollout of these observations, with the same noise every time."""
    state = agent.streams.actions.get_state()
    try:
        with agent.sampler.ahead(len(observations)):
            if isinstance(act, OnArrays):
                return [act.act(x.numpy()) for x in observations]
            return [act(x) for x in observations]
    finally:
        agent.streams.actions.set_state(state)


def seen_by(agent, n=5):
    """Observations of ``n`` steps, as a rollout has them."""
    return agent.collector().collect(agent.act, n).observations


@every_case
def test_a_rollout_acts_as_the_agent_does_to_the_bit_without_the_kernel(observations, actions, masks, options):
    agent = agent_in((observations, actions, masks, options))
    agent.networks.kernel = None
    x, act = seen_by(agent), acting(agent)
    assert isinstance(act, OnArrays) == ((observations, actions, masks, options) in USUAL.values())
    for (a, executed, policy), (b, expected, same) in zip(
        steps(agent, act, x), steps(agent, agent.act, x), strict=True
    ):
        assert type(policy) is type(same)
        for one, other in zip((a, executed, *policy.parameters), (b, expected, *same.parameters), strict=True):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("case", USUAL.values(), ids=USUAL)
def test_with_the_kernel_distributions_differ_by_rounding(case, level):
    agent = agent_in(case)
    agent.networks.kernel = at_level(level)
    assert acting_kernel(agent) is agent.networks.kernel
    x = seen_by(agent)
    for (a, _, policy), (_, _, same) in zip(steps(agent, acting(agent), x), steps(agent, agent.act, x), strict=True):
        for one, other in zip(policy.parameters, same.parameters, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
        assert np.isfinite(policy.log_prob(a)).all()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", ["Discrete, mask in observations", "gaussian", "squashed, state-dependent"])
def test_a_batch_holds_the_distributions_that_were_acted_from(name, level):
    agent = agent_in(CASES[name])
    agent.networks.kernel = at_level(level)
    batch = agent.collector().collect(acting(agent), 16)
    again = agent.distribution(batch.observations)
    for one, other in zip(batch.behaviour.parameters, again.parameters, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert batch.behaviour.log_prob(batch.actions).isfinite().all()


class Watching(Callback):
    """Keeps the distance between the actions' distributions and the policy's at the beginning of an update."""

    def __init__(self):
        self.apart = []

    def on_update_start(self, agent, batch):
        again = agent.distribution(batch.observations)
        self.apart += [
            (one - other).abs().max().item()
            for one, other in zip(batch.behaviour.parameters, again.parameters, strict=True)
        ]


@pytest.mark.parametrize("level", [None, *available()])
def test_every_rollout_of_a_training_acts_by_the_parameters_of_that_moment(level):
    agent, watching = small_agent(PPO, "Pendulum-v1", learning_rate=0.01), Watching()
    agent.networks.kernel = None if level is None else at_level(level)
    before = agent.actor.log_std.detach().clone()
    agent.learn(64 * 4, callback=watching)
    assert (agent.actor.log_std - before).abs().max() > 0.01
    assert max(watching.apart) < 1e-5


class ActsItself(PPO):
    def act(self, observations):
        return super().act(observations)


def with_own_act(agent):
    agent.act = partial(Learner.act, agent)


def with_own_policy(agent):
    agent.actor.policy = agent.actor.policy


def with_hook(agent):
    agent.actor.trunk.register_forward_hook(lambda *_: None)


def with_hook_on_a_layer(agent):
    agent.actor.trunk[0].register_forward_hook(lambda *_: None)


def with_own_trunk(agent):
    agent.actor.trunk = nn.Sequential(*agent.actor.trunk)


def with_own_layer(agent):
    agent.actor.trunk = MLP(*agent.actor.trunk, nn.Identity())


@pytest.mark.parametrize(
    "change",
    [with_own_act, with_own_policy, with_hook, with_hook_on_a_layer, with_own_trunk, with_own_layer],
    ids=lambda f: f.__name__,
)
def test_what_somebody_redefined_acts_itself(change):
    agent = small_agent(PPO, "Pendulum-v1")
    assert isinstance(acting(agent), OnArrays)
    change(agent)
    assert acting(agent) == agent.act
    assert acting_kernel(agent) is None
    agent.learn(64)


def test_an_agent_with_an_act_of_its_own_is_asked():
    agent = small_agent(ActsItself, "Pendulum-v1")
    assert acting(agent) == agent.act
    assert "kernel" not in agent.describe()["paths"]["acting"]


@pytest.mark.parametrize("level", LEVELS)
def test_describe_says_that_the_kernel_acts_and_where_not(level, monkeypatch):
    monkeypatch.setenv("KLRL_NATIVE", level)
    assert small_agent(PPO, n_envs=8).describe()["paths"]["acting"] == f"kernel ({level})"
    for settings in ({"n_envs": 1}, {"actor_hidden_sizes": (1024, 1024)}, {"actor_hidden_sizes": (4,) * 16}):
        assert "kernel" not in small_agent(PPO, **settings).describe()["paths"]["acting"], settings
    monkeypatch.setenv("KLRL_NATIVE", "off")
    assert small_agent(PPO).describe()["paths"]["acting"] == "numpy"


@pytest.mark.parametrize("how", ["added layer", "added parameter", "shared weight"])
def test_parameters_that_are_not_the_layers_in_their_order_are_not_for_the_kernel(how):
    agent = small_agent(PPO, actor_hidden_sizes=(8, 8, 8))
    assert (acting_kernel(agent) is None) == (agent.networks.kernel is None)
    if how == "added layer":
        agent.actor.auxiliary = nn.Linear(3, 2)
    elif how == "added parameter":
        agent.actor.scale = nn.Parameter(torch.ones(1))
    else:
        agent.actor.trunk[4].weight = agent.actor.trunk[2].weight
    agent.networks.repack()
    assert acting_kernel(agent) is None
    x = seen_by(agent)
    for (a, *_), (b, *_) in zip(steps(agent, acting(agent), x), steps(agent, agent.act, x), strict=True):
        assert np.array_equal(np.asarray(a), np.asarray(b))
