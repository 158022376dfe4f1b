"""DPO against autograd and against its closed form, the KL that it shows, and what it makes of a policy."""

import json
import math
from dataclasses import replace
from functools import cache

import gymnasium as gym
import numpy as np
import pytest
import torch
from environments import Noise, Probe, Sampling, box, small_agent
from support import exactly, parameters, same
from torch import distributions as td
from torch.nn.functional import logsigmoid

from klrl.agents import (
    PPO,
    TRPO,
    DPOConfig,
    PPOConfig,
    Preferences,
    PreferencesConfig,
    collect_preferences,
    fit_preferences,
    load_agent,
)
from klrl.agents.dpo import Compared, dpo_epochs, implicit_rewards, trajectory_kl
from klrl.scripts.main import main

REWARDS = math.log(2.0) * torch.tensor([0.0, 1.0, 2.0])


def random_preferences(agent, n=12, T=5, seed=0):
    """Made by hand: random observations and actions, segments of all lengths."""
    generator = torch.Generator().manual_seed(seed)
    observations = torch.randn(n, 2, T, 3, generator=generator)
    actions = agent.distribution(observations).sample(generator)
    lengths = torch.randint(1, T + 1, (n, 2, 1), generator=generator)
    return Preferences(observations, actions, torch.arange(T) < lengths)


@pytest.mark.parametrize("space", [box(3), gym.spaces.Discrete(4)], ids=["Box", "Discrete"])
def test_loss_and_gradient_are_those_of_plain_torch_distributions(space):
    reference, policy = (small_agent(PPO, lambda: Noise(space), seed=seed, log_std_init=0.2 * seed) for seed in (0, 1))
    with torch.no_grad():
        policy.networks.actor_parameters.mul_(3.0)
    data, beta = random_preferences(reference), 0.7
    log_pi = exactly(policy.actor(data.observations)).log_prob(data.actions)
    log_ref = exactly(reference.distribution(data.observations)).log_prob(data.actions)
    h = [sum((log_pi - log_ref)[:, i, t] * data.valid[:, i, t] for t in range(5)) for i in (0, 1)]
    expected = -logsigmoid(beta * (h[0] - h[1])).mean()
    expected.backward()
    gradient = torch.cat([p.grad.reshape(-1) for p in policy.actor.parameters()])
    compared = Compared.of(policy, reference, data)
    loss = compared.loss(policy.actor.linearize(compared.states), beta)
    torch.testing.assert_close(loss.value.double(), expected.detach(), rtol=1e-5, atol=0.0)
    torch.testing.assert_close(loss.gradients()[policy.actor], gradient, rtol=1e-4, atol=1e-6)
    row = next(dpo_epochs(policy, reference, data, DPOConfig(beta=beta)))
    assert row["dpo/loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert row["dpo/margin"] == pytest.approx(beta * (h[0] - h[1]).mean().item(), rel=1e-4)
    assert row["dpo/accuracy"] == pytest.approx((h[0] > h[1]).double().mean().item())
    p, q = (exactly(agent.distribution(data.observations)) for agent in (policy, reference))
    back = td.kl_divergence(q, p) * data.valid
    assert row["dpo/kl_policy_reference"] == pytest.approx(td.kl_divergence(p, q)[data.valid].mean().item(), rel=1e-4)
    assert row["dpo/kl_reference_policy"] == pytest.approx(back[data.valid].mean().item(), rel=1e-4)
    assert row["dpo/trajectory_kl_reference_policy"] == pytest.approx(back.sum(-1).mean().item(), rel=1e-4)
    for name, side in zip(("preferred", "other"), h, strict=True):
        assert row[f"dpo/reward_{name}"] == pytest.approx(beta * side.mean().item(), rel=1e-4)
    rewards = implicit_rewards(policy, reference, data, beta)
    torch.testing.assert_close(rewards.double(), beta * torch.stack(h, 1).detach(), rtol=1e-4, atol=1e-5)


def bandit(seed=0):
    """A reference that prefers some of three actions by itself; its logits are a bias."""
    agent = small_agent(PPO, lambda: Probe(lambda s, a: 0.0, action_space=gym.spaces.Discrete(3)), seed=seed)
    agent.actor.trunk = torch.nn.Linear(1, 3)
    with torch.no_grad():
        agent.actor.trunk.bias.copy_(torch.tensor([0.5, 0.2, -0.7]))
    return agent


def exact_preferences(agent):
    """Every pair of actions, each order as often as Bradley and Terry say: odds e^(r_i - r_j) = 2^(i - j)."""
    pairs = [(1, 0)] * 10 + [(0, 1)] * 5 + [(2, 0)] * 12 + [(0, 2)] * 3 + [(2, 1)] * 10 + [(1, 2)] * 5
    return Preferences.of(agent, np.zeros((45, 2, 1, 1)), np.array(pairs)[..., None])


@cache
def tuned(beta):
    """A bandit's policy after DPO has converged, the reference, and the last metrics."""
    reference, policy = bandit(), bandit()
    config = DPOConfig(beta=beta, n_epochs=250, batch_size=45, learning_rate=0.1, max_grad_norm=100.0)
    fit_preferences(policy, reference, exact_preferences(reference), config)
    return policy, reference, policy.history[-1]


@pytest.mark.parametrize("beta", [0.5, 1.0])
def test_the_minimiser_is_the_reference_times_e_to_the_reward_by_beta(beta):
    policy, reference, _ = tuned(beta)
    state = torch.zeros(1, 1)
    expected = (reference.distribution(state).log_probs + REWARDS / beta).softmax(-1)  # DPO eq. 4
    torch.testing.assert_close(policy.distribution(state).probs, expected, rtol=1e-3, atol=1e-4)
    every_action = Preferences.of(policy, np.zeros((3, 2, 1, 1)), np.array([[0, 0], [1, 1], [2, 2]])[..., None])
    implied = implicit_rewards(policy, reference, every_action, beta)[:, 0]  # DPO eq. 5
    torch.testing.assert_close(implied - implied[0], REWARDS - REWARDS[0], rtol=1e-3, atol=1e-3)


def test_kl_grows_as_beta_falls_as_the_closed_form_says():
    ref = torch.tensor([0.5, 0.2, -0.7]).double().softmax(-1)
    shown, expected = [], []
    for beta in (4.0, 2.0, 1.0, 0.5):
        shown.append(tuned(beta)[2]["dpo/kl_policy_reference"])
        optimum = (ref.log() + REWARDS.double() / beta).softmax(-1)
        expected.append((optimum * (optimum / ref).log()).sum().item())
    assert shown == sorted(shown)
    assert shown == pytest.approx(expected, rel=5e-3)


def test_kl_between_trajectories_is_that_of_all_action_sequences():
    """Three steps through states that no action changes: the sum of the three states' KL, whatever is played."""

    def env():
        return Probe(lambda s, a: 0.0, length=3)

    policy, reference = (small_agent(PPO, env, seed=seed) for seed in (0, 1))
    for agent in (policy, reference):
        with torch.no_grad():
            agent.networks.actor_parameters.normal_(generator=agent.streams.networks)
    p, q = (exactly(agent.distribution(torch.tensor([[0.0], [1.0], [2.0]]))) for agent in (policy, reference))
    expected = td.kl_divergence(p, q).sum().item()
    estimate, error = trajectory_kl(policy, reference, env, n=32, length=5)
    assert expected > 0.01
    assert estimate == pytest.approx(expected, rel=1e-4)
    assert error == pytest.approx(0.0, abs=1e-6)


def test_data_that_does_not_fit_is_refused():
    agent, other = small_agent(PPO, "CartPole-v1"), small_agent(PPO, "CartPole-v1")
    with pytest.raises(
        ValueError, match=r"do not fit the agent: actions = 7 in 2 of 2 steps; .* integers 0 to 1 \(agent"
    ):
        Preferences.of(agent, np.zeros((1, 2, 1, 4)), np.full((1, 2, 1), 7))
    data = Preferences(torch.zeros(1, 2, 1, 4), torch.full((1, 2, 1), 7), torch.ones(1, 2, 1))
    with pytest.raises(ValueError, match="preferences do not fit the reference"):
        fit_preferences(other, agent, data)
    with pytest.raises(ValueError, match="policy is the reference; allowed: another agent"):
        fit_preferences(agent, agent, data)
    masked, same_masks = (
        small_agent(PPO, lambda: Sampling(box(3), gym.spaces.Discrete(3), masks="observation")) for _ in range(2)
    )
    observation = {"x": np.zeros((1, 2, 1, 3)), "action_mask": np.broadcast_to([1, 1, 0], (1, 2, 1, 3))}
    never = Preferences.of(masked, observation, np.array([[[0], [2]]]))
    with pytest.raises(ValueError, match="the reference never takes 1 of 2 actions; allowed: actions it takes"):
        fit_preferences(same_masks, masked, never)


def test_a_half_trained_cartpole_policy_learns_what_is_preferred(tmp_path):
    config = replace(PPOConfig.for_env("CartPole-v1"), learning_rate_schedule="constant")
    path = PPO("CartPole-v1", config, seed=100).learn(2048).save(tmp_path / "reference")
    reference, policy = load_agent(path), load_agent(path)
    pairs = PreferencesConfig(n_pairs=256, label="larger", n_envs=64)
    data = collect_preferences(reference, "CartPole-v1", pairs, seed=100)
    fit_preferences(policy, reference, data, DPOConfig(n_epochs=8, learning_rate=1e-3))
    first, last = policy.history[len(reference.history)], policy.history[-1]
    assert first["dpo/accuracy"] == 0.5
    assert first["dpo/loss"] == pytest.approx(math.log(2.0))
    assert [first[f"dpo/kl_{name}"] for name in ("policy_reference", "reference_policy")] == [0.0, 0.0]
    assert last["dpo/accuracy"] > 0.65
    assert last["dpo/loss"] < 0.66
    assert last["dpo/kl_policy_reference"] > 0.005
    fresh = PreferencesConfig(n_pairs=64, segment_length=300, n_envs=64)
    lengths = [
        collect_preferences(agent, "CartPole-v1", fresh, seed=7).valid.sum(-1).double().mean().item()
        for agent in (reference, policy)
    ]
    assert lengths[1] > 1.5 * lengths[0]  # in CartPole the return is the length
    assert not same(parameters(policy)[:2], parameters(reference)[:2])
    assert same(policy.critic.parameters(), reference.critic.parameters())


def test_trpo_is_tuned_as_well_and_learns_on():
    reference, policy = (small_agent(TRPO, "CartPole-v1") for _ in range(2))
    data = collect_preferences(reference, "CartPole-v1", PreferencesConfig(n_pairs=32, n_envs=8))
    fit_preferences(policy, reference, data, DPOConfig(n_epochs=2))
    assert policy.history[-1]["dpo/loss"] < policy.history[0]["dpo/loss"]
    assert policy.learn(1).history[-1]["drift/kl"] <= policy.region.target_kl


def test_the_verb_leaves_an_agent_and_the_numbers(tmp_path, capsys):
    reference = str(small_agent(PPO, "CartPole-v1").learn(64).save(tmp_path / "reference"))
    small = ["--n-pairs", "16", "--n-envs", "4", "--n-epochs", "2", "--episodes", "2", "--segment-length", "20"]
    words = ["dpo", reference, "--output", str(tmp_path / "tuned"), "--json", str(tmp_path / "numbers.json")]
    main([*words, *small])
    printed = capsys.readouterr().out
    assert "epoch  2: loss 0.6" in printed
    assert "KL(tuned‖reference) of the tuned policy's first 20 steps: " in printed
    assert "tuned: mean return " in printed
    record = json.loads((tmp_path / "numbers.json").read_text())
    assert len(record["history"]) == 3
    assert record["n_pairs"] == 16
    assert load_agent(tmp_path / "tuned").learn(1).n_updates == 2
    for bad, message in (
        ([str(tmp_path / "nothing")], "no saved agent there"),
        ([reference, "--beta", "0"], "beta = 0.0; allowed: a number > 0"),
        ([reference, "--env", "Acrobot-v1"], "its spaces differ from the agent's"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["dpo", *bad, "--output", str(tmp_path / "other")])
        line = capsys.readouterr().err
        assert stop.value.code == 2
        assert message in line
        assert line.count("\n") == 1
    assert not (tmp_path / "other").exists()


def test_a_margin_that_grows_while_the_preferred_segment_becomes_less_likely_is_seen():
    """Two actions are preferred to a third, in states that a network cannot tell apart: one of them wins."""
    reference, policy = bandit(), bandit()
    actions = torch.tensor([[[0], [1]], [[1], [2]]] * 8)
    data = Preferences(torch.zeros(16, 2, 1, 1), actions, torch.ones(16, 2, 1, dtype=torch.bool))
    fit_preferences(policy, reference, data, DPOConfig(beta=0.1, n_epochs=60, learning_rate=3e-2))
    probs = (policy.distribution(torch.zeros(1, 1)).probs / reference.distribution(torch.zeros(1, 1)).probs)[0]
    row, log_ratio = policy.history[-1], probs.log().double()
    assert row["dpo/reward_preferred"] == pytest.approx(0.1 * (log_ratio[0] + log_ratio[1]).item() / 2, abs=1e-5)
    assert row["dpo/reward_other"] == pytest.approx(0.1 * (log_ratio[1] + log_ratio[2]).item() / 2, abs=1e-5)
    assert row["dpo/reward_preferred"] < 0.0 < row["dpo/margin"]
