"""Fine-tuning near a saved policy."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import gymnasium as gym
import pytest
import torch
from environments import Noise, Sampling, box, random_batch, small_agent
from support import both, exactly, parameters, same
from torch import distributions as td

from klrl.agents import PPO, TRPO, PPOConfig
from klrl.trust_region import (
    All,
    KLConstraint,
    ReferenceConstraint,
    ReferenceForwardConstraint,
    ReferenceForwardPenalty,
    ReferencePenalty,
    TrustRegion,
)

FAST = {"learning_rate": 2e-2, "learning_rate_schedule": "constant", "n_epochs": 4}


@pytest.fixture
def saved(tmp_path):
    """A policy that is not the one a new agent begins with."""
    agent = small_agent(PPO, partial(Noise, box(2)), seed=7, **FAST).learn(256)
    return str(agent.save(tmp_path / "reference"))


def batch_and_kl(agent, reference):
    """A batch, and a function that measures the mean KL(agent||reference) on it, in float64 by torch."""
    batch = random_batch(agent)
    return batch, lambda: mean_kl(agent, reference, batch)


def mean_kl(one, other, batch):
    """The mean KL(one||other), in float64 by torch."""
    states = batch.observations.flatten(0, 1)
    return td.kl_divergence(*(exactly(a.distribution(states)) for a in (one, other))).mean().item()


@both
def test_the_kl_to_a_reference_is_reported_whatever_the_region(agent_class, saved):
    agent = small_agent(agent_class, partial(Noise, box(2)), reference=saved, normalize_observations=False)
    reference = PPO.load(saved)
    batch, kl = batch_and_kl(agent, reference)
    metrics = agent.update(batch)
    assert metrics["drift/kl_reference"] == pytest.approx(kl(), rel=1e-4)
    assert metrics["drift/kl_reference_forward"] == pytest.approx(mean_kl(reference, agent, batch), rel=1e-4)
    assert metrics["drift/kl_reference_forward"] != pytest.approx(metrics["drift/kl_reference"], rel=1e-2)
    without = small_agent(agent_class).learn(64).history[0]
    assert not without.keys() & {"drift/kl_reference", "drift/kl_reference_forward"}


@pytest.mark.parametrize(
    ("name", "setting", "metric"),
    [
        ("reference-penalty", "reference_coef", "drift/kl_reference"),
        ("reference-forward-penalty", "reference_forward_coef", "drift/kl_reference_forward"),
    ],
)
def test_a_penalty_draws_the_policy_to_the_reference(saved, name, setting, metric):
    kls = []
    for coef in (1e-3, 100.0):
        settings = {"trust_region": name, setting: coef, "reference": saved} | FAST
        agent = small_agent(PPO, partial(Noise, box(2)), normalize_observations=False, **settings)
        for seed in range(10):
            metrics = agent.update(random_batch(agent, seed))
        kls.append(metrics[metric])
    assert kls[1] < 0.1 * kls[0]


@both
@pytest.mark.parametrize("forward", [False, True])
def test_a_constraint_holds_on_every_batch_from_a_start_inside(agent_class, forward, saved):
    bound = (ReferenceForwardConstraint if forward else ReferenceConstraint)(0.01)
    region = bound if agent_class is PPO else All(KLConstraint(0.005), bound)
    settings = {k: v for k, v in FAST.items() if agent_class is PPO or k == "learning_rate"}
    settings |= {"trust_region": region, "reference": saved, "normalize_observations": False}
    agent = small_agent(agent_class, partial(Noise, box(2)), **settings)
    reference = PPO.load(saved)
    agent.start_from(reference)
    found = []
    for _ in range(5):
        batch = random_batch(agent)
        found.append(agent.update(batch)["drift/kl_reference_forward" if forward else "drift/kl_reference"])
        ends = (reference, agent) if forward else (agent, reference)
        assert mean_kl(*ends, batch) == pytest.approx(found[-1], rel=1e-4, abs=1e-9)
    assert max(found) <= 0.01
    assert max(found) > 0.004


@pytest.mark.parametrize("region", [ReferencePenalty(2.0), ReferenceForwardPenalty(2.0)], ids=["backward", "forward"])
def test_the_gradient_of_the_penalty_is_that_of_the_exact_kl(region, saved):
    agent = small_agent(PPO, partial(Noise, box(2)), trust_region=region, reference=saved)
    with torch.no_grad():
        samples = agent.prepare(random_batch(agent))
        policy = agent.actor.linearize(samples.observations)
        objective = agent.objective(policy, samples.change(policy.output))
    new = exactly(agent.actor(samples.observations))
    loss = (new.log_prob(samples.actions) * samples.advantage).mean()
    p, q = new, exactly(samples.reference)
    loss = (
        loss - 2.0 * (td.kl_divergence(p, q) if isinstance(region, ReferencePenalty) else td.kl_divergence(q, p)).mean()
    )
    expected = torch.autograd.grad(loss, list(agent.actor.parameters()))
    found = objective.gradients()[agent.actor]
    torch.testing.assert_close(found, torch.cat([g.flatten() for g in expected]).float(), rtol=1e-4, atol=1e-5)


def test_a_reference_is_saved_with_the_agent_whatever_becomes_of_its_path(saved, tmp_path):
    settings = {"trust_region": "clip+reference-penalty", "reference": saved} | FAST
    agent = small_agent(PPO, partial(Noise, box(2)), **settings).learn(64)
    path = agent.save(tmp_path / "agent")
    PPO.load(saved, partial(Noise, box(2))).learn(64).save(saved)
    loaded = PPO.load(path)
    (tmp_path / "reference").rename(tmp_path / "elsewhere")
    again = PPO.load(loaded.save(tmp_path / "again"))
    batch = random_batch(agent)
    expected = repr(agent.update(batch))
    assert repr(loaded.update(batch)) == expected
    assert repr(again.update(batch)) == expected


def test_an_agent_may_be_saved_where_its_reference_was(saved):
    agent = small_agent(PPO, partial(Noise, box(2)), reference=saved).learn(64)
    assert agent.save(saved) == Path(saved)
    loaded = PPO.load(saved)
    assert repr(loaded.update(random_batch(loaded))) == repr(agent.update(random_batch(agent)))
    assert small_agent(PPO, partial(Noise, box(2)), reference=saved).reference is not None


@dataclass(frozen=True)
class Own(TrustRegion):
    """Not klrl's."""


def test_a_reference_needs_nothing_of_its_agent_but_the_policy(tmp_path):
    path = small_agent(TRPO, partial(Noise, box(2)), trust_region=All(KLConstraint(), Own())).save(tmp_path / "own")
    agent = small_agent(PPO, partial(Noise, box(2)), reference=str(path))
    assert agent.learn(64).history[0]["drift/kl_reference"] > 0.0


def test_what_no_kl_leads_to_is_refused_in_one_line(saved, tmp_path):
    with pytest.raises(ValueError, match=r"^reference = None with 'reference-penalty'; allowed: a saved agent"):
        PPOConfig(trust_region="reference-penalty")
    with pytest.raises(FileNotFoundError, match=r"^reference = .*nothing: no saved agent there; allowed: "):
        PPO("CartPole-v1", PPOConfig(reference=str(tmp_path / "nothing")))
    with pytest.raises(ValueError, match=r"^reference has observation_space .*; allowed: agent's"):
        PPO("CartPole-v1", PPOConfig(reference=saved))
    with pytest.raises(ValueError, match=r"^agent's policy is a Beta, reference's a DiagGaussian; allowed: the same"):
        small_agent(PPO, partial(Noise, box(2)), reference=saved, action_distribution="beta")


@both
def test_an_agent_starts_from_another_ones_networks_and_statistics(agent_class, saved):
    other = PPO.load(saved)
    agent = small_agent(agent_class, partial(Noise, box(2))).start_from(other)
    assert same(parameters(agent), parameters(other))
    states = torch.randn(20, *agent.observation_space.shape)
    assert same(agent.distribution(states).parameters, other.distribution(states).parameters)
    metrics = agent.update(random_batch(agent))
    assert metrics["drift/kl_normalizer"] < 1e-9
    probe = agent.drift.probe.observations
    kl = td.kl_divergence(*(exactly(a.distribution(probe)) for a in (other, agent))).mean().item()
    assert metrics["drift/kl_initial"] == pytest.approx(kl, rel=1e-3)
    assert kl > 1e-6


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (
            {"actor_hidden_sizes": (5,)},
            r"^actor_hidden_sizes = \(8,\) of the other .*; allowed: the agent's, \(5,\)$",
        ),
        ({"activation": "relu"}, r"^activation = 'tanh' of the other agent's networks; allowed: the agent's, 'relu'$"),
    ],
)
def test_other_networks_are_refused_and_nothing_is_lost(saved, settings, text):
    agent = small_agent(PPO, partial(Noise, box(2)), **settings)
    before = parameters(agent)
    with pytest.raises(ValueError, match=text):
        agent.start_from(PPO.load(saved))
    assert same(parameters(agent), before)


def test_a_path_will_do_to_start_from(saved, tmp_path):
    agent = small_agent(PPO, partial(Noise, box(2))).start_from(saved)
    assert same(parameters(agent), parameters(PPO.load(saved)))
    with pytest.raises(FileNotFoundError, match="no saved agent there"):
        small_agent(PPO).start_from(tmp_path / "nothing")


def test_what_has_learned_does_not_start_again(saved):
    with pytest.raises(ValueError, match=r"^the agent has learned already; allowed: a new one"):
        small_agent(PPO, partial(Noise, box(2))).learn(64).start_from(PPO.load(saved))


@both
def test_a_policy_that_never_saw_normalised_observations_is_kept_when_they_are_from_now_on(agent_class):
    env = partial(Noise, box(2))
    other = small_agent(PPO, env, seed=7, normalize_observations=False, **FAST).learn(256)
    settings = {"trust_region": "constraint", "normalize_observations": True}
    agent = small_agent(agent_class, env, **settings).start_from(other).learn(256)
    for metrics in agent.history:
        assert metrics["drift/kl_normalizer"] < 1e-9
        assert metrics["drift/kl_total"] <= 0.01
        assert metrics["drift/start_kl"] < 1e-6


def masked(action_mask):
    space = gym.spaces.Dict(
        action_mask=gym.spaces.MultiBinary(3), x=gym.spaces.Box(-1.0, 1.0, (2,)), b=gym.spaces.Discrete(2)
    )
    env = partial(Sampling, space, gym.spaces.Discrete(3))
    return small_agent(PPO, env, action_mask=action_mask)


def test_policies_that_read_observations_in_another_way_are_not_compared(tmp_path):
    path = masked("none").save(tmp_path / "a")
    with pytest.raises(ValueError, match=r"^reference reads .*; allowed: as agent, .*a mask among them"):
        masked("auto").refer_to(path)
