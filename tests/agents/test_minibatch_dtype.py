"""Minibatch steps in bfloat16: networks of images alone, and everything that is measured stays float32."""

from functools import partial

import numpy as np
import pytest
import torch
from environments import Sampling, small_agent
from gymnasium.spaces import Box, Dict
from support import MeasuredKL, parameters, same, slots
from torch import nn

from klrl.agents import PPO, TRPO, PPOConfig
from klrl.run import Callback

IMAGE = Box(0, 255, (6, 7, 3), np.uint8)
MIXED = Dict(image=IMAGE, x=Box(-1.0, 1.0, (2,)))
TARGET = 0.01


def agent_on(space=IMAGE, agent_class=PPO, seed=0, **settings):
    return small_agent(agent_class, partial(Sampling, space), seed, **({"minibatch_dtype": "bfloat16"} | settings))


class Types(Callback):
    """Types of what the first convolution is given, with a graph (steps) and without (all else)."""

    def __init__(self, *networks):
        self.found = {True: set(), False: set()}
        for network in networks:
            network.trunk.convolutions[0][0].register_forward_hook(
                lambda _, x, y: self.found[y.requires_grad].add((x[0].dtype, y.dtype))
            )


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("space", [IMAGE, MIXED], ids=["image", "Dict"])
def test_steps_are_in_bfloat16_and_acting_judging_and_parameters_are_not(space, shared):
    agent = agent_on(space, shared_encoder=shared, trust_region="constraint")
    types = Types(*([agent.actor] if shared else agent.networks))
    agent.learn(192, types)
    assert types.found == {
        True: {(torch.bfloat16, torch.bfloat16)},
        False: {(torch.float32, torch.float32)},
    }
    states = [x for s in agent.networks.optimizer.states for x in (s.theta, s.mean, s.square)]
    assert {x.dtype for x in states} == {np.dtype("float32")}
    assert agent.describe()["config"]["minibatch_dtype"] == "bfloat16"


def test_the_critic_of_trpo_steps_in_bfloat16_and_its_policy_in_float32():
    agent = agent_on(agent_class=TRPO, shared_encoder=False)
    critics, policys = Types(agent.critic), Types(agent.actor)
    agent.learn(128)
    assert critics.found[True] == {(torch.bfloat16, torch.bfloat16)}
    assert policys.found[True] == {(torch.float32, torch.float32)}


@pytest.mark.parametrize("shared", [True, False])
def test_the_gradient_is_that_of_float32_but_for_the_rounding_of_bfloat16(shared, monkeypatch):
    agent = agent_on(shared_encoder=shared, trust_region="clip").learn(64)
    samples = agent.prepare(agent.collector().collect(agent.act, 32))
    found = []
    monkeypatch.setattr(agent, "descend", lambda loss: found.append(loss.gradients()))
    (half,) = agent.minibatches(samples, 64, torch.arange(64))
    assert half.observations.dtype == torch.bfloat16
    agent._step(half)
    exact = half.map(lambda x: x.float() if x.dtype == torch.bfloat16 else x)
    agent._step(exact)
    for network in agent.networks:
        rounded, right = found[0][network], found[-1][network]
        assert rounded.dtype == torch.float32
        error = ((rounded - right).norm() / right.norm()).item()
        assert 0.0 < error < 0.15  # bfloat16 has 8 bits, and terms of both signs are added up


@pytest.mark.parametrize("seed", range(10))
def test_the_measured_kl_is_at_most_the_target_and_measured_in_float32(seed):
    measured, settings = MeasuredKL(), {"trust_region": "constraint", "target_kl": TARGET}
    agent = agent_on(seed=seed, learning_rate=3e-2, n_epochs=4, **settings).learn(128, measured)
    assert [row["drift/kl"] for row in agent.history] == pytest.approx(measured.found, rel=1e-3, abs=1e-9)
    assert len(measured.found) == 2
    assert max(measured.found) <= TARGET


def test_a_resumed_training_is_the_uninterrupted_one_to_the_bit(tmp_path):
    whole, half = (agent_on(learning_rate_schedule="constant") for _ in range(2))
    half.learn(64).save(tmp_path / "half")
    resumed = PPO.load(tmp_path / "half", partial(Sampling, IMAGE))
    assert resumed.config.minibatch_dtype == "bfloat16"
    whole.learn(192), resumed.learn(128)
    assert same(parameters(whole), parameters(resumed))
    assert same(slots(whole), slots(resumed))
    assert whole.history[-1]["drift/kl"] == resumed.history[-1]["drift/kl"]


def test_agents_saved_before_there_was_the_setting_step_in_float32():
    saved = {k: v for k, v in PPOConfig(minibatch_dtype="bfloat16").to_json().items() if k != "minibatch_dtype"}
    assert PPOConfig.from_json(saved).minibatch_dtype == "float32"


def test_what_has_no_network_of_images_of_klrls_is_refused():
    config = PPOConfig(minibatch_dtype="bfloat16")
    with pytest.raises(ValueError, match="minibatch_dtype = 'bfloat16' with observations without images; allowed: 'f"):
        PPO("CartPole-v1", config)
    own = PPOConfig(minibatch_dtype="bfloat16", network=lambda n, m: nn.Linear(n, m))
    with pytest.raises(ValueError, match="minibatch_dtype = 'bfloat16' with a network of your own; allowed: 'float32'"):
        PPO(partial(Sampling, IMAGE), own)
