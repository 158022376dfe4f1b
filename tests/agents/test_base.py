"""The public face of agents: learning and acting."""

import random
from dataclasses import replace
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from environments import Counting, Noise, box, random_batch, small_agent
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from support import NEEDS_REFERENCE, every_agent, parameters, policy, same, without_time

from klrl.agents import PPO
from klrl.policy.distributions import Categorical
from klrl.run import Callback
from klrl.trust_region import REGIONS


@every_agent
@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_the_same_seed_gives_the_same_bits_and_another_seed_others(agent_class, env):
    one, again, other = (small_agent(agent_class, env, seed).learn(256) for seed in (0, 0, 1))
    assert same(parameters(one), parameters(again))
    assert without_time(one) == without_time(again)
    assert not any(torch.equal(a, b) for a, b in zip(policy(one), policy(other), strict=True))
    assert without_time(one) != without_time(other)


@every_agent
def test_environments_in_other_processes_give_the_same_bits(agent_class):
    sync, other = (small_agent(agent_class, vectorization_mode=mode).learn(128) for mode in ("sync", "async"))
    assert same(parameters(sync), parameters(other))


@every_agent
def test_the_global_random_generators_are_not_touched(agent_class):
    def states():
        return torch.get_rng_state().tolist(), repr(np.random.get_state()), random.getstate()  # noqa: NPY002

    before = states()
    agent = small_agent(agent_class).learn(128)
    agent.predict(agent.observation_space.sample())
    assert states() == before


@every_agent
def test_learn_runs_whole_updates_until_the_steps_are_taken(agent_class):
    agent = small_agent(agent_class)
    assert agent.learn(100) is agent
    assert (agent.num_timesteps, agent.n_updates) == (128, 2)
    assert [metrics["time/total_timesteps"] for metrics in agent.learn(64).history] == [64.0, 128.0, 192.0]


@every_agent
@pytest.mark.parametrize("steps", [0, -1, 1.5, "64", None, True])
def test_a_bad_number_of_steps_is_refused(agent_class, steps):
    with pytest.raises(ValueError, match=r"total_timesteps = .*; allowed: an integer >= 1"):
        small_agent(agent_class).learn(steps)


@pytest.mark.parametrize("seed", [-1, 0.5, "0", None, True])
def test_a_bad_seed_is_refused(seed):
    with pytest.raises(ValueError, match=r"seed = .*; allowed: an integer >= 0"):
        small_agent(PPO, seed=seed)


@every_agent
@pytest.mark.parametrize("callback", [print, [print], "stop"])
def test_what_is_no_callback_is_refused(agent_class, callback):
    with pytest.raises(ValueError, match=r"callback = .*; allowed: a klrl.run.Callback or several"):
        small_agent(agent_class).learn(64, callback=callback)


@pytest.mark.parametrize("make", [lambda: gym.make("CartPole-v1"), lambda: gym.make_vec("CartPole-v1", num_envs=1)])
@every_agent
def test_one_environment_of_a_task_with_a_preset_is_enough(agent_class, make):
    assert agent_class(make()).config.n_envs == 1


@every_agent
def test_returns_and_lengths_are_means_over_the_last_hundred_episodes(agent_class):
    agent = small_agent(agent_class, lambda: Counting(length=4), n_steps=3, batch_size=6).learn(24)
    assert [m["rollout/ep_len_mean"] for m in agent.history] == pytest.approx([np.nan, 4, 4, 4], nan_ok=True)
    assert [m["rollout/ep_rew_mean"] for m in agent.history] == pytest.approx([np.nan, 6, 6, 6], nan_ok=True)


@every_agent
def test_every_update_reports_the_metrics_that_must_exist(agent_class):
    agent = small_agent(agent_class).learn(128)
    assert {
        "time/total_timesteps", "time/fps", "rollout/ep_rew_mean", "rollout/ep_len_mean", "train/value_loss",
        "train/explained_variance", "train/learning_rate", "train/entropy", "drift/kl", "drift/kl_reverse",
        "drift/kl_max", "drift/kl_p95", "drift/kl_initial", "drift/kl_normalizer", "drift/kl_total", "drift/kl_k1",
        "drift/kl_k3", "drift/kl_sum", "drift/ratio_max", "drift/ess",
    } | (
        {"train/clip_fraction"}
        if agent_class is PPO
        else {"drift/kl_target", "train/kl_predicted", "train/cg_residual", "train/damping_share"}
    ) <= agent.history[0].keys()  # fmt: skip
    assert agent.history[0].keys() == agent.history[1].keys()


@pytest.mark.parametrize("name", list(REGIONS))
def test_targets_and_penalties_are_reported_where_there_are_some(name, tmp_path):
    saved = {"reference": str(small_agent(PPO, "Pendulum-v1").save(tmp_path / "a"))} if name in NEEDS_REFERENCE else {}
    agent = small_agent(PPO, "Pendulum-v1", trust_region=name, **saved)
    region = agent.region
    metrics = agent.learn(64).history[0]
    assert metrics.get("drift/kl_target") == region.target_kl
    assert metrics.get("train/kl_penalty") == region.beta


@every_agent
@pytest.mark.parametrize("mode", ["sync", "vector_entry_point"])
def test_training_on_environments_that_reset_in_the_next_step_counts_valid_steps_only(agent_class, mode):
    class Valid(Callback):
        n = 0

        def on_update_end(self, agent, batch, metrics):
            self.n += int(batch.valid.sum())
            assert not batch.valid.all()

    envs = gym.make_vec("CartPole-v1", num_envs=3, vectorization_mode=mode)
    assert envs.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    agent = small_agent(agent_class, envs)
    agent.learn(192, callback=(valid := Valid()))
    assert agent.config.n_envs == 3
    assert agent.num_timesteps == valid.n >= 192


@every_agent
def test_dummy_steps_do_not_change_an_update(agent_class):
    plain, padded = (small_agent(agent_class) for _ in range(2))
    batch, wild = random_batch(plain), random_batch(padded, seed=1, n_steps=1)
    rows = replace(wild, rewards=wild.rewards + 1e3, valid=torch.zeros(1, 2, dtype=torch.bool))
    batch = replace(batch, terminated=batch.terminated.clone())
    batch.terminated[-1] = ~batch.truncated[-1]
    joined = {
        name: torch.cat([getattr(batch, name), getattr(rows, name)])
        for name in ("observations", "actions", "rewards", "valid")
    }
    ends = {n: torch.cat([getattr(batch, n), torch.zeros(1, 2, dtype=torch.bool)]) for n in ("terminated", "truncated")}
    behaviour = Categorical(torch.cat([batch.behaviour.logits, rows.behaviour.logits]))
    plain.update(batch)
    padded.update(replace(batch, **joined, **ends, behaviour=behaviour))
    assert padded.num_timesteps == plain.num_timesteps == 64
    for a, b in zip(parameters(plain), parameters(padded), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


@every_agent
@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
@pytest.mark.parametrize("space", [gym.spaces.Discrete(3, start=5), box(2), gym.spaces.Box(-2, 1, (2, 3), np.float64)])
def test_predict_answers_one_or_many_observations_with_actions_of_the_space(agent_class, shape, space, deterministic):
    agent = small_agent(agent_class, partial(Noise, space, shape))
    one, state = agent.predict(np.ones(shape), state="memory", episode_start=np.ones(1), deterministic=deterministic)
    many, _ = agent.predict(np.ones((4, *shape)), deterministic=deterministic)
    assert state == "memory"
    assert space.contains(one)
    assert many.shape == (4, *space.shape)
    assert all(space.contains(action) for action in many)


@every_agent
@pytest.mark.parametrize("shape", [(), (3,), (5,), (1, 2, 4), (4, 1)])
def test_an_observation_of_another_shape_is_refused(agent_class, shape):
    with pytest.raises(
        ValueError, match=r"observation has (shape .*; allowed: \(4,\)|batch shape \(1, 2\); allowed: \(\))"
    ):
        small_agent(agent_class).predict(np.zeros(shape))


@every_agent
def test_a_deterministic_prediction_is_the_mode(agent_class):
    observations = np.random.default_rng(0).normal(size=(50, 3))
    agent = small_agent(agent_class, partial(Noise, gym.spaces.Discrete(4))).learn(64)
    probabilities = agent.distribution(observations).probs
    np.testing.assert_array_equal(agent.predict(observations, deterministic=True)[0], probabilities.argmax(-1))


@every_agent
def test_stochastic_predictions_have_the_frequencies_of_the_policy(agent_class):
    agent = small_agent(agent_class, partial(Noise, gym.spaces.Discrete(4))).learn(64)
    n = 20_000
    actions, _ = agent.predict(np.ones((n, 3)))
    p = agent.distribution(np.ones((1, 3))).probs[0].numpy()
    frequencies = np.bincount(actions, minlength=4) / n
    assert (abs(frequencies - p) < 4 * np.sqrt(p * (1 - p) / n)).all()


@every_agent
def test_predicting_between_updates_does_not_change_training(agent_class):
    class Predict(Callback):
        def on_update_end(self, agent, batch, metrics):
            agent.predict(batch.observations[0].numpy())

    plain, predicting = small_agent(agent_class).learn(192), small_agent(agent_class).learn(192, callback=Predict())
    assert same(parameters(plain), parameters(predicting))


@every_agent
@pytest.mark.parametrize(("env", "worst"), [("CartPole-v1", 1.0), ("Pendulum-v1", -2000.0)])
def test_stable_baselines3_evaluates_a_klrl_agent(agent_class, env, worst):
    agent = small_agent(agent_class, env).learn(64)
    mean, std = evaluate_policy(agent, Monitor(gym.make(env)), n_eval_episodes=3)
    assert worst < mean <= 500.0
    assert std >= 0.0
