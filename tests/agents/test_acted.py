"""What acting computed of images is not computed again by the update; whatever has changed since is."""

from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch
from environments import Sampling, small_agent
from gymnasium.spaces import Box, Dict, Discrete
from support import parameters, same

from klrl.agents import PPO, image_passes
from klrl.policy.share import Share
from klrl.run import Callback

IMAGE = Box(0, 255, (36, 36, 1), np.uint8)
MIXED = Dict(image=IMAGE, x=Box(-1.0, 1.0, (2,)))
BOX = Box(-1.0, 1.0, (2,), np.float32)
N_ENVS, N_STEPS = 8, 24
N = N_ENVS * N_STEPS
SETTINGS = {
    "n_envs": N_ENVS,
    "n_steps": N_STEPS,
    "batch_size": 96,
    "n_epochs": 2,
    "image_network": "nature",
    "trust_region": "clip",
    "scale_rewards": False,
}


class Asked(Callback):
    """Calls something before each update, and counts the rows that the encoder is given in each phase of it."""

    def __init__(self, agent, before=lambda agent, batch: None):
        self.rows, self._before, self._phase = Counter(), before, "acting"
        for network in agent.networks:
            for convolutions in getattr(network.trunk, "convolutions", []):
                convolutions[0].register_forward_hook(lambda _, x, y: self.rows.update({self._phase: len(x[0])}))

    def on_update_start(self, agent, batch):
        self._phase, self.batch = "update", batch
        self._before(agent, batch)

    def on_epoch_end(self, agent, epoch):
        self._phase = "after the epochs" if epoch + 1 == agent.config.n_epochs else "update"

    def on_update_end(self, agent, batch, metrics):
        self._phase = "acting"


def agent_on(space=IMAGE, *, shared=True, **settings):
    return small_agent(PPO, partial(Sampling, space, length=100), shared_encoder=shared, **(SETTINGS | settings))


@pytest.mark.parametrize("shared", [True, False])
def test_rows_that_the_encoders_are_given(shared):
    agent = agent_on(shared=shared)
    asked = Asked(agent)
    agent.learn(N, asked)
    bootstrap, check, probe = N_ENVS, 16, 64
    epochs = 2 * N * (1 if shared else 2)
    values = bootstrap + (0 if shared else N)
    assert asked.rows == {"acting": N, "update": values + check + epochs, "after the epochs": N + probe}
    asked.rows.clear()
    agent.learn(N, asked)
    assert asked.rows["acting"] == N + 64  # drift/kl_next of the update before
    assert asked.rows["update"] == values + check + epochs
    assert agent.history[-1]["drift/states"] == 64.0


@pytest.mark.parametrize("actions", [Discrete(3), BOX], ids=["Discrete", "Box"])
@pytest.mark.parametrize("shared", [True, False])
def test_policy_and_values_are_those_of_a_fresh_pass(shared, actions, monkeypatch):
    agent = small_agent(PPO, partial(Sampling, IMAGE, actions, length=10), shared_encoder=shared, **SETTINGS)
    found, original = [], image_passes.computed

    def compared(agent, batch):
        pytest.fail("the policy was computed again")

    monkeypatch.setattr(image_passes, "computed", compared)

    class Compare(Callback):
        def on_update_start(self, agent, batch):
            taken, fresh = image_passes.of_acting(agent, batch), original(agent, batch)
            for x, y in zip(taken[0].parameters, fresh[0].parameters, strict=True):
                torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(taken[1], fresh[1], rtol=1e-4, atol=1e-5)
            found.append(batch)

    agent.learn(2 * N, Compare())
    assert len(found) == 2
    assert all((batch.values is not None) == shared for batch in found)
    assert all(row["drift/start_kl"] < 1e-9 for row in agent.history)
    assert all(row["drift/start_ratio_error"] < 1e-4 for row in agent.history)


def _move(agent, batch):
    with torch.no_grad():
        agent.networks.actor_parameters.mul_(1.001)


def _write(agent, batch):
    batch.observations.bitwise_not_()


def _move_head(agent, batch):
    with torch.no_grad():
        next(iter(agent.critic.parameters())).mul_(1.001)


@pytest.mark.parametrize("change", [_move, _write, _move_head])
def test_what_was_changed_after_the_rollout_is_computed_again(change):
    agent = agent_on()
    asked = Asked(agent, change)
    with pytest.warns(RuntimeWarning) if change is _write else _nothing():
        agent.learn(N, asked)
    assert asked.rows["update"] == N + N_ENVS + 2 * N


def _nothing():
    from contextlib import nullcontext

    return nullcontext()


class Acting(PPO):
    """Acts by a method of its own."""

    def act(self, observations):
        return super().act(observations)


def test_other_ways_to_act_and_batches_of_ones_own_are_computed():
    agent = small_agent(Acting, partial(Sampling, IMAGE, length=100), **SETTINGS)
    asked = Asked(agent)
    agent.learn(N, asked)
    assert asked.rows["update"] == N + N_ENVS + 2 * N
    agent = agent_on()
    batch = agent.collector().collect(agent.act, N_STEPS)
    assert agent.image_passes.begin_to_act(agent) is not None
    assert batch.values is None
    asked = Asked(agent)
    agent.update(batch)
    assert sum(asked.rows.values()) == N + N_ENVS + 2 * N + N + 64


def test_statistics_that_the_first_batch_brings_are_those_of_the_first_update():
    agent = agent_on(MIXED)
    asked = Asked(agent)
    agent.learn(N, asked)  # the policy acted without statistics: asked once to compare and once to be updated
    assert asked.rows["update"] == N_ENVS + 16 + N + N_ENVS + 2 * N
    assert agent.history[0]["drift/start_kl"] > 0.0


def test_an_update_that_moves_nothing_reports_no_drift():
    agent = agent_on(learning_rate=1e-30, max_grad_norm=1e-30)
    agent.learn(N)
    assert agent.history[0]["drift/kl"] == 0.0


@pytest.mark.parametrize("shared", [True, False])
def test_a_training_with_a_share_of_the_rows_has_the_same_bits(shared, monkeypatch):
    whole, part = agent_on(shared=shared), agent_on(shared=shared)
    whole.learn(2 * N)
    monkeypatch.setattr("klrl.run.world.World.acting_share", lambda self, n: Share(0, n, n))
    part.learn(2 * N)
    assert same(parameters(whole), parameters(part))
