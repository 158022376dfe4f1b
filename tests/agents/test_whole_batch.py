"""Whole batches of images: in pieces, bytes until the network, and no pass twice; drift on some of the states."""

from functools import partial

import numpy as np
import pytest
import torch
from environments import Sampling, small_agent
from gymnasium.spaces import Box, Dict
from support import every_agent, parameters, same

from klrl.agents import PPO, TRPO
from klrl.agents.whole_batch import ROWS, in_pieces
from klrl.kl import kl_divergence
from klrl.kl.drift import rows_evenly
from klrl.policy.distributions import DiagGaussian
from klrl.policy.normalizer import Normalizer

IMAGE = Box(0, 255, (6, 7, 3), np.uint8)
MIXED = Dict(image=IMAGE, x=Box(-1.0, 1.0, (2,)))
N_STEPS = 160
N = 2 * N_STEPS
SETTINGS = {"n_steps": N_STEPS, "batch_size": 64}


def test_pieces_are_put_together_in_their_order():
    x = torch.randn(2 * ROWS + 3, 4)
    sizes = []

    def policy(piece):
        sizes.append(len(piece))
        return DiagGaussian(piece, -piece)

    found = in_pieces(policy, x)
    assert sizes == [ROWS, ROWS, 3]
    assert torch.equal(found.mean, x)
    assert torch.equal(found.log_std, -x)
    assert torch.equal(in_pieces(lambda piece: piece[:, 0], x), x[:, 0])
    assert len(in_pieces(lambda piece: piece, x[:0])) == 0


@every_agent
def test_a_batch_of_images_is_bytes_until_the_network(agent_class, monkeypatch):
    pieces = {} if agent_class is PPO else {"fisher_batch_size": 64}
    agent = small_agent(agent_class, partial(Sampling, IMAGE), **SETTINGS, **pieces).learn(N)
    batch, rows = agent.collector().collect(agent.act, N_STEPS), []
    original = Normalizer.__call__
    monkeypatch.setattr(Normalizer, "__call__", lambda self, x: (rows.append(len(x)), original(self, x))[1])
    samples = agent.prepare(batch)
    assert samples.observations.dtype == torch.uint8
    agent.update(batch)
    assert max(rows) == ROWS < len(samples) == N


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("space", [IMAGE, MIXED], ids=["image", "Dict"])
def test_what_is_prepared_is_what_the_networks_say(space, shared):
    agent = small_agent(PPO, partial(Sampling, space), shared_encoder=shared, **SETTINGS).learn(N)
    batch = agent.collector().collect(agent.act, N_STEPS)
    samples = agent.prepare(batch)
    x = agent.normalized(batch.observations.flatten(0, 1))
    with torch.no_grad():
        torch.testing.assert_close(samples.old.logits, agent.actor(x).logits)
        torch.testing.assert_close(samples.values, agent.critic(x))
        torch.testing.assert_close(agent.advantages(batch), (samples.advantage, samples.returns))
        agent.networks.actor_parameters.mul_(1.5)
        torch.testing.assert_close(agent.change(samples).new.logits, agent.actor(x).logits)


@pytest.mark.parametrize("region", ["clip", "constraint"])
def test_the_encoder_is_asked_once_before_the_update_and_once_after_it(region):
    agent = small_agent(PPO, partial(Sampling, IMAGE), trust_region=region, n_epochs=1, **SETTINGS)
    batch, rows = agent.collector().collect(agent.act, N_STEPS), []
    agent.actor.trunk.convolutions[0].register_forward_hook(
        lambda _, x, y: rows.append(0 if y.requires_grad else len(x[0]))
    )
    metrics = agent.update(batch)
    assert metrics["train/stop_reason"] == "all epochs done"
    after_the_batch = 2 + len(batch.final_observations)
    assert sum(rows) == N + after_the_batch + N + 64  # and the probe of drift/kl_initial


def test_minibatches_of_images_are_the_shuffled_samples_scaled():
    agent = small_agent(PPO, partial(Sampling, IMAGE), **SETTINGS)
    samples = agent.prepare(agent.collector().collect(agent.act, N_STEPS))
    order = torch.randperm(N, generator=torch.Generator().manual_seed(0))
    parts = [*agent.minibatches(samples, 64, order)]
    assert [len(part) for part in parts] == [64] * 5
    found = np.concatenate([part.observations for part in parts])
    np.testing.assert_array_equal(found, (samples.observations[order].float() * (1.0 / 255.0)).numpy())
    np.testing.assert_array_equal(np.concatenate([part.log_prob for part in parts]), samples.log_prob[order])


# --drift-states.
@every_agent
def test_fewer_states_change_the_metrics_that_ask_the_network_once_more_and_no_bit_of_the_training(agent_class):
    every, few = (small_agent(agent_class, "CartPole-v1", drift_states=n) for n in (None, 16))
    every.learn(192), few.learn(192)
    assert same(parameters(every), parameters(few))
    changed = {"drift/kl_total", "drift/kl_normalizer", "drift/kl_next", "drift/states", "time/fps"}
    for row, other in zip(every.history, few.history, strict=True):
        assert "drift/states" not in row
        assert other["drift/states"] == 16.0
        assert repr({k: v for k, v in row.items() if k not in changed}) == repr(
            {k: v for k, v in other.items() if k not in changed}
        )
    assert every.history[0]["drift/kl_next"] != few.history[0]["drift/kl_next"]


def test_the_fewer_states_are_spread_over_the_batch():
    agent = small_agent(PPO, "CartPole-v1", drift_states=16, fold_normalizer=False).learn(64)
    batch = agent.collector().collect(agent.act, 32)
    old = agent.actor(agent.normalized(batch.observations.flatten(0, 1)))
    metrics = agent.update(batch)
    new = agent.distribution(batch.observations.flatten(0, 1))
    kl = kl_divergence(old, new)
    assert metrics["drift/kl_total"] == pytest.approx(kl[rows_evenly(64, 16)].double().mean().item(), rel=1e-3)
    assert rows_evenly(64, 16).tolist()[:3] == [0, 4, 8]
    assert rows_evenly(64, 16)[-1] == 63


def test_what_a_region_judges_is_of_every_state():
    region = {"trust_region": "next-state-constraint"}
    every, few = (small_agent(TRPO, "CartPole-v1", drift_states=n, **region).learn(192) for n in (None, 16))
    for row, other in zip(every.history[:-1], few.history[:-1], strict=True):
        assert row["drift/kl_next"] == other["drift/kl_next"]
