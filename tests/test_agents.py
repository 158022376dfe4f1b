"""Agents: what holds for each of them, then what only PPO or only TRPO promises."""

import random
from dataclasses import dataclass, fields, replace
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from environments import Counting, Noise, box, random_batch, small_agent
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from torch import distributions as td

import klrl.agents.config
from klrl.agents import PPO, TRPO
from klrl.policy.distributions import Categorical
from klrl.run import Callback
from klrl.trust_region import REGIONS, Adaptive, All, Clip, KLConstraint, KLPenalty, TrustRegion

both = pytest.mark.parametrize("agent_class", [PPO, TRPO])
ACTION_SPACES = [box(1), box(6), box(17), gym.spaces.Discrete(5)]
every_space = pytest.mark.parametrize("space", ACTION_SPACES, ids=["Box(1)", "Box(6)", "Box(17)", "Discrete(5)"])


def same(tensors, others):
    return all(torch.equal(a, b) for a, b in zip(tensors, others, strict=True))


def parameters(agent):
    """Copies of everything that an optimiser or a step moves."""
    return [p.detach().clone() for p in (*agent.actor.parameters(), *agent.critic.parameters())]


def policy(agent):
    return [p.detach().clone() for p in agent.actor_parameters]


def slots(agent):
    """The optimiser's state, in the order of the parameters and the names."""
    state = agent.optimizer.state_dict()["state"]
    return [state[i][name] for i in sorted(state) for name in sorted(state[i])]


def without_time(agent):
    """The history as text, so that NaN equals NaN."""
    return repr([{k: v for k, v in metrics.items() if k != "time/fps"} for metrics in agent.history])


@dataclass(frozen=True)
class Nowhere(TrustRegion):
    """A region that every policy is outside of."""

    on_exit = "backtrack"

    def excess(self, change):
        return 1.0

    def step_length(self, curvature):
        return 1.0


def exactly(record):
    """A record as an object of torch.distributions in float64, the oracle."""
    if isinstance(record, Categorical):
        return td.Categorical(logits=record.logits.double())
    return td.Independent(td.Normal(record.mean.double(), record.log_std.double().exp()), 1)


class AfterEpoch(Callback):
    """Copies of policy and critic after every epoch."""

    def __init__(self):
        self.policies, self.critics = [], []

    def on_epoch_end(self, agent, epoch):
        self.policies.append(policy(agent))
        self.critics.append([p.detach().clone() for p in agent.critic.parameters()])


# -- learning -----------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_the_same_seed_gives_the_same_bits_and_another_seed_others(agent_class, env):
    one, again, other = (small_agent(agent_class, env, seed).learn(256) for seed in (0, 0, 1))
    assert same(parameters(one), parameters(again))
    assert without_time(one) == without_time(again)
    assert not any(torch.equal(a, b) for a, b in zip(policy(one), policy(other), strict=True))
    assert without_time(one) != without_time(other)


@both
def test_environments_in_other_processes_give_the_same_bits(agent_class):
    sync, other = (small_agent(agent_class, vectorization_mode=mode).learn(128) for mode in ("sync", "async"))
    assert same(parameters(sync), parameters(other))


@both
def test_the_global_random_generators_are_not_touched(agent_class):
    def states():
        return torch.get_rng_state().tolist(), repr(np.random.get_state()), random.getstate()  # noqa: NPY002

    before = states()
    agent = small_agent(agent_class).learn(128)
    agent.predict(agent.observation_space.sample())
    assert states() == before


@both
def test_learn_runs_whole_updates_until_the_steps_are_taken(agent_class):
    agent = small_agent(agent_class)
    assert agent.learn(100) is agent
    assert (agent.num_timesteps, agent.n_updates) == (128, 2)
    assert [metrics["time/total_timesteps"] for metrics in agent.learn(64).history] == [64.0, 128.0, 192.0]


@both
@pytest.mark.parametrize("steps", [0, -1, 1.5, "64", None, True])
def test_a_bad_number_of_steps_is_refused(agent_class, steps):
    with pytest.raises(ValueError, match=r"total_timesteps = .*; allowed: an integer >= 1"):
        small_agent(agent_class).learn(steps)


@pytest.mark.parametrize("seed", [-1, 0.5, "0", None, True])
def test_a_bad_seed_is_refused(seed):
    with pytest.raises(ValueError, match=r"seed = .*; allowed: an integer >= 0"):
        small_agent(PPO, seed=seed)


@pytest.mark.parametrize("make", [lambda: gym.make("CartPole-v1"), lambda: gym.make_vec("CartPole-v1", num_envs=1)])
@both
def test_one_environment_of_a_task_with_a_preset_is_enough(agent_class, make):
    assert agent_class(make()).config.n_envs == 1


@both
def test_returns_and_lengths_are_means_over_the_last_hundred_episodes(agent_class):
    agent = small_agent(agent_class, lambda: Counting(length=4), n_steps=3, batch_size=6).learn(24)
    assert [m["rollout/ep_len_mean"] for m in agent.history] == pytest.approx([np.nan, 4, 4, 4], nan_ok=True)
    assert [m["rollout/ep_rew_mean"] for m in agent.history] == pytest.approx([np.nan, 6, 6, 6], nan_ok=True)


@both
def test_every_update_reports_the_metrics_that_must_exist(agent_class):
    agent = small_agent(agent_class).learn(128)
    assert {
        "time/total_timesteps", "time/fps", "rollout/ep_rew_mean", "rollout/ep_len_mean", "train/value_loss",
        "train/explained_variance", "train/learning_rate", "train/entropy", "drift/kl", "drift/kl_reverse",
        "drift/kl_max", "drift/kl_p95", "drift/kl_initial", "drift/kl_normalizer", "drift/kl_total", "drift/kl_k1",
        "drift/kl_k3", "drift/ratio_max", "drift/ess",
    } | (
        {"train/clip_fraction"}
        if agent_class is PPO
        else {"drift/kl_target", "train/line_search_scale", "train/cg_residual"}
    ) <= agent.history[0].keys()  # fmt: skip
    assert agent.history[0].keys() == agent.history[1].keys()


@pytest.mark.parametrize("name", list(REGIONS))
def test_targets_and_penalties_are_reported_where_there_are_some(name):
    metrics = small_agent(PPO, trust_region=name).learn(64).history[0]
    assert ("drift/kl_target" in metrics) == (name in ("early-stop", "constraint", "adaptive-penalty"))
    assert ("train/kl_penalty" in metrics) == ("penalty" in name)


@both
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


@both
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


# -- acting -------------------------------------------------------------------------------------


@both
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


@both
@pytest.mark.parametrize("shape", [(), (3,), (5,), (1, 2, 4), (4, 1)])
def test_an_observation_of_another_shape_is_refused(agent_class, shape):
    with pytest.raises(ValueError, match=r"observation has shape .*; allowed: \(4,\)"):
        small_agent(agent_class).predict(np.zeros(shape))


@both
def test_a_deterministic_prediction_is_the_mode(agent_class):
    observations = np.random.default_rng(0).normal(size=(50, 3))
    agent = small_agent(agent_class, partial(Noise, gym.spaces.Discrete(4))).learn(64)
    probabilities = agent.distribution(observations).probs
    np.testing.assert_array_equal(agent.predict(observations, deterministic=True)[0], probabilities.argmax(-1))


@both
def test_stochastic_predictions_have_the_frequencies_of_the_policy(agent_class):
    agent = small_agent(agent_class, partial(Noise, gym.spaces.Discrete(4))).learn(64)
    n = 20_000
    actions, _ = agent.predict(np.ones((n, 3)))
    p = agent.distribution(np.ones((1, 3))).probs[0].numpy()
    frequencies = np.bincount(actions, minlength=4) / n
    assert (abs(frequencies - p) < 4 * np.sqrt(p * (1 - p) / n)).all()


@both
def test_predicting_between_updates_does_not_change_training(agent_class):
    class Predict(Callback):
        def on_update_end(self, agent, batch, metrics):
            agent.predict(batch.observations[0].numpy())

    plain, predicting = small_agent(agent_class).learn(192), small_agent(agent_class).learn(192, callback=Predict())
    assert same(parameters(plain), parameters(predicting))


@both
@pytest.mark.parametrize(("env", "worst"), [("CartPole-v1", 1.0), ("Pendulum-v1", -2000.0)])
def test_stable_baselines3_evaluates_a_klrl_agent(agent_class, env, worst):
    agent = small_agent(agent_class, env).learn(64)
    mean, std = evaluate_policy(agent, Monitor(gym.make(env)), n_eval_episodes=3)
    assert worst < mean <= 500.0
    assert std >= 0.0


# -- updating -----------------------------------------------------------------------------------


@both
@every_space
def test_the_policy_that_collected_is_the_one_updated(agent_class, space):
    agent = small_agent(agent_class, partial(Noise, space)).learn(256)
    assert max(metrics["drift/start_kl"] for metrics in agent.history) < 1e-9
    assert max(metrics["drift/start_ratio_error"] for metrics in agent.history) < 1e-4
    batch = random_batch(agent)
    change = agent.change(agent.samples(batch))
    assert change.kl.max() == 0.0
    assert (change.ratio == 1.0).all()


@both
def test_a_batch_of_another_policy_is_reported(agent_class):
    stranger = small_agent(agent_class, seed=1).learn(64)
    with pytest.warns(RuntimeWarning, match="the policy that collected the batch is not the one being updated: KL = "):
        small_agent(agent_class).update(random_batch(stranger))


@both
@every_space
def test_an_update_with_a_batch_made_by_hand_moves_policy_and_critic(agent_class, space):
    agent = small_agent(agent_class, partial(Noise, space))
    before = parameters(agent)
    metrics = agent.update(random_batch(agent))
    assert metrics["drift/kl"] > 0.0
    assert (agent.num_timesteps, agent.n_updates) == (64, 1)
    assert not any(torch.equal(a, b) for a, b in zip(before, parameters(agent), strict=True))


@both
@every_space
def test_the_drift_report_is_that_of_torch_in_float64(agent_class, space):
    agent = small_agent(agent_class, partial(Noise, space), normalize_observations=False, learning_rate=1e-2)
    batch = random_batch(agent, n_steps=128)
    first = exactly(agent.distribution(batch.observations.flatten(0, 1)))
    metrics = agent.update(batch)
    new = exactly(agent.distribution(batch.observations.flatten(0, 1)))
    kl, reverse = td.kl_divergence(first, new), td.kl_divergence(new, first)
    expected = {
        "drift/kl": kl.mean(), "drift/kl_reverse": reverse.mean(), "drift/kl_max": kl.max(),
        "drift/kl_p95": kl.quantile(0.95, interpolation="higher"), "drift/kl_initial": kl.mean(),
        "drift/kl_total": kl.mean(), "drift/kl_normalizer": 0.0, "train/entropy": new.entropy().mean(),
    }  # fmt: skip
    found = {name: metrics[name] for name in expected}
    assert found == pytest.approx({name: float(x) for name, x in expected.items()}, rel=1e-3, abs=1e-9)


@both
def test_the_kl_of_new_statistics_is_reported_on_its_own_and_in_the_total(agent_class):
    agent = small_agent(agent_class, partial(Noise, box(2))).learn(64)
    batch = random_batch(agent)
    observations = batch.observations.flatten(0, 1)
    old, statistics = exactly(agent.distribution(observations)), agent.normalizer
    metrics = agent.update(batch)
    after = exactly(agent.distribution(observations))
    new = exactly(agent.actor(statistics(observations)).detach())
    assert metrics["drift/kl_normalizer"] == pytest.approx(td.kl_divergence(new, after).mean().item(), rel=1e-3)
    assert metrics["drift/kl_total"] == pytest.approx(td.kl_divergence(old, after).mean().item(), rel=1e-3)
    assert metrics["drift/kl_normalizer"] > 0.0


@both
def test_observation_statistics_stand_still_through_rollout_and_update(agent_class):
    class Watch(Callback):
        def __init__(self):
            self.seen = []

        def on_update_start(self, agent, batch):
            self.seen.append([agent.normalizer])

        def on_epoch_end(self, agent, epoch):
            self.seen[-1].append(agent.normalizer)

        def on_update_end(self, agent, batch, metrics):
            count = agent.normalizer.moments.count
            assert count == agent.num_timesteps
            np.testing.assert_allclose(agent.normalizer.moments.mean, self.mean(batch, agent), rtol=1e-6)

        def mean(self, batch, agent):
            self.rows = [*getattr(self, "rows", []), *batch.observations.flatten(0, 1).double().numpy()]
            return np.mean(self.rows, axis=0)

    watch = Watch()
    agent = small_agent(agent_class).learn(192, callback=watch)
    for first, *rest in watch.seen:
        assert all(normalizer is first for normalizer in rest)
    assert len({id(n) for n in [*(seen[0] for seen in watch.seen), agent.normalizer]}) == 4


@both
def test_explained_variance_is_that_of_numpy_and_nan_where_the_target_is_constant(agent_class):
    agent = small_agent(agent_class, scale_rewards=False, normalize_observations=False, gamma=0.0)
    batch = random_batch(agent)
    values = agent.critic(batch.observations).detach().double().numpy()
    rewards = batch.rewards.double().numpy()
    expected = 1.0 - np.var(rewards - values) / np.var(rewards)
    assert agent.update(batch)["train/explained_variance"] == pytest.approx(expected, rel=1e-4)
    nothing = replace(random_batch(agent), rewards=torch.zeros(32, 2))
    assert np.isnan(agent.update(nothing)["train/explained_variance"])


@both
def test_an_update_that_overflows_raises_with_the_name_of_the_parameter(agent_class):
    agent = small_agent(agent_class, scale_rewards=False)
    with pytest.raises(FloatingPointError, match=r"(actor|critic)\.\S+ is not finite after update 0 at 0 steps"):
        agent.update(random_batch(agent, scale=1e38))


@both
def test_scaled_rewards_of_any_size_leave_finite_parameters(agent_class):
    agent = small_agent(agent_class)
    agent.update(random_batch(agent, scale=1e30))
    assert all(p.isfinite().all() for p in parameters(agent))


@pytest.mark.parametrize(
    ("schedule", "rates"), [("linear", [1e-3, 0.75e-3, 0.5e-3, 0.25e-3]), ("constant", [1e-3] * 4)]
)
@both
def test_the_learning_rate_follows_its_schedule(agent_class, schedule, rates):
    agent = small_agent(agent_class, learning_rate=1e-3, learning_rate_schedule=schedule).learn(256)
    assert [metrics["train/learning_rate"] for metrics in agent.history] == pytest.approx(rates)


@both
@pytest.mark.parametrize("scaled", [True, False])
def test_the_unit_of_the_reward_matters_only_without_scaling(agent_class, scaled):
    agents = [small_agent(agent_class, scale_rewards=scaled) for _ in range(2)]
    for agent, unit in zip(agents, (1.0, 1000.0), strict=True):
        agent.update(random_batch(agent, scale=unit))
    difference = max((a - b).abs().max() for a, b in zip(*map(parameters, agents), strict=True))
    assert (difference < 1e-4) == scaled


@both
def test_advantages_are_normalised_over_the_batch_where_configured(agent_class):
    plain, normal = (small_agent(agent_class, normalize_advantage=choice) for choice in (False, True))
    advantage, expected = (agent.samples(random_batch(agent, scale=7.0)).advantage for agent in (normal, plain))
    assert advantage.mean().item() == pytest.approx(0.0, abs=1e-6)
    assert advantage.std(correction=0).item() == pytest.approx(1.0)
    assert np.corrcoef(advantage, expected)[0, 1] == pytest.approx(1.0)
    assert expected.std() > 2.0


@both
@pytest.mark.parametrize(("scale", "norm"), [(1e4, 0.25), (1e-4, None)])
def test_long_gradients_are_scaled_down_and_short_ones_left(agent_class, scale, norm):
    agent = small_agent(agent_class, max_grad_norm=0.25)
    critic = list(agent.critic.parameters())
    loss = scale * agent.critic(torch.ones(1, 4)).sum()
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, critic, retain_graph=True)])
    agent.descend(loss, critic)
    result = torch.cat([p.grad.flatten() for p in critic])
    torch.testing.assert_close(result, expected if norm is None else norm * expected / expected.norm())


@both
def test_every_setting_is_read(agent_class, monkeypatch):
    config_class, read = agent_class.config_class, set()

    def record(self, name):
        read.add(name)
        return object.__getattribute__(self, name)

    monkeypatch.setattr(klrl.agents.config, "validate", lambda config: None)
    monkeypatch.setattr(config_class, "__getattribute__", record)
    for env in ("CartPole-v1", "Pendulum-v1"):
        small_agent(agent_class, env).learn(64)
    assert {f.name for f in fields(config_class)} - read == set()


# -- the trust region you ask for is the trust region you get -----------------------------------


class Measure(Callback):
    """The mean over states of KL(old||new) after every update, in float64 with torch's own formula."""

    def __init__(self):
        self.kls = []

    def on_update_start(self, agent, batch):
        self.observations = batch.observations.flatten(0, 1)
        self.old = exactly(agent.distribution(self.observations))

    def on_update_end(self, agent, batch, metrics):
        new = exactly(agent.distribution(self.observations))
        self.kls.append(td.kl_divergence(self.old, new).mean().item())
        assert metrics["drift/kl"] == pytest.approx(self.kls[-1], rel=1e-3, abs=1e-9)
        assert metrics["drift/kl"] <= metrics["drift/kl_target"]


@every_space
@pytest.mark.parametrize(
    ("agent_class", "settings"),
    [
        (TRPO, {"n_critic_updates": 1}),
        (TRPO, {"n_critic_updates": 1, "cg_damping": 0.0, "sub_sampling_factor": 8, "log_std_init": -2.0}),
        (PPO, {"trust_region": "constraint", "learning_rate": 0.02, "n_epochs": 4}),
        (PPO, {"trust_region": "clip+constraint", "learning_rate": 0.02, "n_epochs": 2}),
    ],
    ids=["TRPO", "TRPO-rough", "PPO", "PPO-clip"],
)
def test_the_kl_of_every_update_is_inside_the_constraint(agent_class, settings, space):
    target_kl, kls = 0.01, []
    for seed in range(20):
        measure = Measure()
        settings = settings | {"target_kl": target_kl, "normalize_observations": False}
        small_agent(agent_class, partial(Noise, space), seed, **settings).learn(128, callback=measure)
        kls += measure.kls
    assert max(kls) <= target_kl * (1 + 1e-5)
    assert max(kls) > 0.5 * target_kl


@both
def test_a_step_that_is_rejected_leaves_the_policy_as_it_was_to_the_bit(agent_class):
    agent = small_agent(agent_class, partial(Noise, box(2)), trust_region=Nowhere()).learn(64)
    before, critic = policy(agent), [p.detach().clone() for p in agent.critic.parameters()]
    metrics = agent.update(random_batch(agent))
    assert same(policy(agent), before)
    assert not same(agent.critic.parameters(), critic)
    assert metrics["drift/kl"] == metrics["drift/kl_reverse"] == metrics["drift/kl_max"] == 0.0
    assert metrics["drift/ratio_max"] == metrics["drift/ess"] == 1.0
    assert metrics["train/line_search_scale" if agent_class is TRPO else "train/backtrack_scale"] == 0.0
    assert "back inside" not in metrics["train/stop_reason"]
    assert agent_class is PPO or metrics["train/stop_reason"] == "rejected: outside the trust region"


def test_trpo_without_any_advantage_stays_and_says_why():
    agent = small_agent(TRPO, partial(Noise, box(2)), normalize_advantage=False, gamma=0.0)
    before = policy(agent)
    with torch.no_grad():
        for parameter in agent.critic.parameters():
            parameter.zero_()
    metrics = agent.update(replace(random_batch(agent), rewards=torch.zeros(32, 2)))
    assert same(policy(agent), before)
    assert metrics["train/line_search_scale"] == metrics["drift/kl"] == 0.0
    assert metrics["train/stop_reason"] == "rejected: right-hand side is zero or not finite"


@every_space
def test_trpo_predicts_the_kl_of_a_small_step(space):
    agent = small_agent(TRPO, partial(Noise, space), target_kl=1e-6, cg_damping=1e-3)
    metrics = agent.update(random_batch(agent, n_steps=128))
    assert metrics["train/line_search_scale"] > 0.0
    assert metrics["train/kl_predicted"] == pytest.approx(metrics["drift/kl"], rel=0.1)


@pytest.mark.parametrize("region", ["early-stop", "clip+early-stop"])
def test_ppo_stops_the_policy_outside_the_region_and_the_critic_goes_on(region):
    agent = small_agent(PPO, trust_region=region, target_kl=1e-6, n_epochs=4, learning_rate=1e-2)
    epochs = AfterEpoch()
    metrics = agent.update(random_batch(agent), epochs)
    assert all(same(after, epochs.policies[0]) for after in epochs.policies)
    assert not any(same(a, b) for a, b in zip(epochs.critics, epochs.critics[1:], strict=False))
    assert metrics["train/policy_epochs"] == 1.0
    assert metrics["train/stop_reason"] == "stopped: outside the trust region"
    assert metrics["drift/kl"] > 1e-6


def test_ppo_goes_through_all_epochs_inside_the_region():
    agent = small_agent(PPO, trust_region="early-stop", target_kl=100.0, n_epochs=4)
    epochs = AfterEpoch()
    metrics = agent.update(random_batch(agent), epochs)
    assert not any(same(a, b) for a, b in zip(epochs.policies, epochs.policies[1:], strict=False))
    assert (metrics["train/policy_epochs"], metrics["train/stop_reason"]) == (4.0, "all epochs done")


def test_ppo_that_backtracked_kept_a_part_of_the_epochs_step():
    agent = small_agent(PPO, trust_region="constraint", target_kl=1e-3, n_epochs=4, learning_rate=1e-2)
    metrics = agent.update(random_batch(agent))
    assert 0.0 < metrics["drift/kl"] <= 1e-3
    assert metrics["train/backtrack_scale"] in {0.5**k for k in range(1, 11)}
    assert metrics["train/stop_reason"] == "stopped: back inside the trust region"


@pytest.mark.parametrize("region", [*REGIONS, "clip+fixed-penalty"])
@every_space
def test_at_the_old_policy_the_gradient_of_every_objective_is_the_policy_gradient(region, space):
    agent = small_agent(PPO, partial(Noise, space), trust_region=region).learn(64)
    samples = agent.samples(random_batch(agent))
    change = agent.change(samples)
    objective = (agent.region.gain(change) - agent.region.penalty(change)).mean()
    log_prob = exactly(agent.actor(samples.observations)).log_prob(samples.actions)
    expected = torch.autograd.grad((log_prob * samples.advantage).mean(), agent.actor_parameters)
    for a, b in zip(torch.autograd.grad(objective, agent.actor_parameters), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_the_coefficient_of_a_penalty_adapts_once_per_update():
    coefficient = Adaptive(target_kl=0.01, beta=1.0)
    agent = small_agent(PPO, trust_region=KLPenalty(coefficient), n_epochs=5, learning_rate=1e-6)
    metrics = [agent.update(random_batch(agent)) for _ in range(3)]
    assert [m["train/kl_penalty"] for m in metrics] == [1.0, 0.5, 0.25]
    assert coefficient.beta == 1.0


@pytest.mark.parametrize(("n_epochs", "differ"), [(1, False), (3, True)])
def test_recomputed_advantages_matter_from_the_second_epoch_on(n_epochs, differ):
    agents = [small_agent(PPO, n_epochs=n_epochs, recompute_advantages=choice) for choice in (False, True)]
    for agent in agents:
        agent.update(random_batch(agent))
    assert same(*map(parameters, agents)) != differ


def test_a_bonus_for_entropy_raises_it():
    results = []
    for coefficient in (0.0, 1.0):
        agent = small_agent(PPO, partial(Noise, box(2)), ent_coef=coefficient, learning_rate=1e-2)
        results.append(agent.update(random_batch(agent))["train/entropy"])
    assert results[1] > results[0] + 0.1


def test_a_value_loss_without_weight_leaves_the_critic():
    agent = small_agent(PPO, vf_coef=0.0)
    before = [p.detach().clone() for p in agent.critic.parameters()]
    agent.update(random_batch(agent))
    assert same(agent.critic.parameters(), before)


# -- keeping ------------------------------------------------------------------------------------


@pytest.fixture(params=["PPO-Discrete", "PPO-Box", "TRPO-Discrete", "TRPO-Box"])
def trained(request):
    """An agent in the middle of its training."""
    agent_class, env = {
        "PPO-Discrete": (PPO, "CartPole-v1"), "PPO-Box": (PPO, "Pendulum-v1"),
        "TRPO-Discrete": (TRPO, "CartPole-v1"), "TRPO-Box": (TRPO, "Pendulum-v1"),
    }[request.param]  # fmt: skip
    settings = {"trust_region": "clip+adaptive-penalty"} if agent_class is PPO else {}
    return small_agent(agent_class, env, seed=3, **settings).learn(192)


def test_a_loaded_agent_is_the_saved_one_to_the_bit(trained, tmp_path):
    loaded = type(trained).load(trained.save(tmp_path / "agent"))
    assert same(parameters(loaded), parameters(trained))
    assert same(slots(loaded), slots(trained))
    for ours, theirs in ((loaded.normalizer, trained.normalizer), (loaded.return_scaler, trained.return_scaler)):
        assert same((ours.moments.mean, ours.moments.variance), (theirs.moments.mean, theirs.moments.variance))
        assert ours.moments.count == theirs.moments.count > 0
    assert torch.equal(loaded.return_scaler.running, trained.return_scaler.running)
    assert same(loaded.streams.state().values(), trained.streams.state().values())
    for name in ("config", "region", "seed", "num_timesteps", "n_updates", "observation_space", "action_space"):
        assert getattr(loaded, name) == getattr(trained, name), name


@pytest.mark.parametrize("deterministic", [True, False])
def test_a_loaded_agent_predicts_the_same_bits(trained, tmp_path, deterministic):
    loaded = type(trained).load(trained.save(tmp_path / "agent"))
    observations = np.random.default_rng(0).normal(size=(20, *trained.observation_space.shape))
    for _ in range(2):
        ours, theirs = (agent.predict(observations, deterministic=deterministic)[0] for agent in (loaded, trained))
        np.testing.assert_array_equal(ours, theirs)


def test_the_next_updates_of_a_loaded_agent_are_the_same_bits(trained, tmp_path):
    loaded = type(trained).load(trained.save(tmp_path / "agent"))
    for i in range(2):
        assert repr(loaded.update(random_batch(loaded, seed=i))) == repr(trained.update(random_batch(trained, seed=i)))
    assert same(parameters(loaded), parameters(trained))


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
@pytest.mark.parametrize(
    "space", [gym.spaces.Discrete(3, start=5), gym.spaces.Box(np.float32([-2, 0]), np.float32([1, np.inf]))]
)
def test_spaces_are_saved_with_start_bounds_shape_and_type(space, shape, tmp_path):
    agent = small_agent(PPO, partial(Noise, space, shape))
    loaded = PPO.load(agent.save(tmp_path / "agent"))
    assert (loaded.observation_space, loaded.action_space) == (agent.observation_space, space)
    one, other = (a.predict(np.ones(shape), deterministic=True)[0] for a in (agent, loaded))
    np.testing.assert_array_equal(one, other)


def test_a_loaded_agent_learns_on_without_being_given_an_environment(trained, tmp_path):
    loaded = type(trained).load(trained.save(tmp_path / "agent"))
    assert loaded.learn(64).num_timesteps == 192 + 64
    assert loaded.config == trained.config


@both
def test_saving_twice_replaces(agent_class, tmp_path):
    agent = small_agent(agent_class)
    agent.save(tmp_path / "agent")
    agent.learn(64).save(tmp_path / "agent")
    assert agent_class.load(tmp_path / "agent").num_timesteps == 64
    assert [p.name for p in tmp_path.iterdir()] == ["agent"]


@both
def test_saving_over_something_else_is_refused(agent_class, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="is not a saved agent"):
        small_agent(agent_class).save(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(("saved", "wanted"), [(PPO, TRPO), (TRPO, PPO)])
def test_loading_as_another_class_is_refused(saved, wanted, tmp_path):
    path = small_agent(saved).save(tmp_path / "agent")
    with pytest.raises(ValueError, match=r"holds agent .*; allowed: .*"):
        wanted.load(path)


@both
def test_a_region_of_ones_own_is_named_in_saved_state_and_given_again_to_load(agent_class, tmp_path):
    path = small_agent(agent_class, trust_region=Nowhere()).learn(64).save(tmp_path / "agent")
    with pytest.raises(ValueError, match=r"saved trust region 'Nowhere' is not klrl's; allowed: to give it to load"):
        agent_class.load(path)
    assert agent_class.load(path, trust_region=Nowhere()).learn(64).region == Nowhere()


def test_a_region_may_give_a_setting_without_a_default():
    @dataclass(frozen=True)
    class Bound(TrustRegion):
        target_kl: float

    assert (Bound(0.1).target_kl, Bound(0.1).on_exit) == (0.1, None)


@both
def test_the_settings_of_another_agent_are_refused(agent_class):
    other = (TRPO if agent_class is PPO else PPO).config_class()
    with pytest.raises(ValueError, match=f"config = .*; allowed: a {agent_class.config_class.__name__}"):
        agent_class("CartPole-v1", config=other)


@both
def test_recent_episodes_are_the_last_hundred_and_are_saved(agent_class, tmp_path):
    agent = small_agent(agent_class, partial(Counting, length=1)).learn(128)
    assert [e.total_timesteps for e in agent.episodes][-1] == 128
    assert len(agent.episodes) == 100
    loaded = agent_class.load(agent.save(tmp_path / "agent"), env=partial(Counting, length=1))
    assert loaded.episodes == agent.episodes


@both
@pytest.mark.filterwarnings("ignore:.*settotalmass.*")
def test_mujoco_tasks_train_with_their_presets(agent_class):
    config = agent_class.config_class.for_env("HalfCheetah-v5", n_envs=2, n_steps=16)
    agent = agent_class("HalfCheetah-v5", config=config).learn(32)
    assert agent.config.log_std_init == -0.5
    assert agent.history[-1]["drift/kl_covariance_part"] >= 0.0


@both
def test_an_agent_of_an_unnamed_environment_predicts_and_asks_for_one_before_learning(agent_class, tmp_path):
    loaded = agent_class.load(small_agent(agent_class, Counting).save(tmp_path / "agent"))
    assert loaded.action_space.contains(loaded.predict(np.zeros(4))[0])
    with pytest.raises(ValueError, match="env = None; allowed: an environment"):
        loaded.learn(64)
    loaded.set_env(Counting)
    assert loaded.learn(64).num_timesteps == 64


@both
def test_a_loaded_agent_takes_the_environments_it_is_given(agent_class, tmp_path):
    path = small_agent(agent_class, Counting).save(tmp_path / "agent")
    loaded = agent_class.load(path, SyncVectorEnv([Counting] * 3))
    assert loaded.config.n_envs == 3
    assert loaded.learn(64).num_timesteps >= 64


def test_arguments_of_a_registered_environment_are_saved_and_stay_with_the_agent(tmp_path):
    spec = gym.make("Pendulum-v1", g=5.0).spec
    loaded = PPO.load(small_agent(PPO, spec).save(tmp_path / "agent"))
    assert loaded.describe()["env"]["kwargs"]["g"] == 5.0
    assert "g" not in gym.spec("Pendulum-v1").kwargs


def test_a_time_limit_of_a_registered_environment_stays_with_the_agent(tmp_path):
    spec = gym.make("Pendulum-v1", max_episode_steps=7).spec
    loaded = PPO.load(small_agent(PPO, spec).save(tmp_path / "agent"))
    assert loaded.learn(64).history[-1]["rollout/ep_len_mean"] == 7.0


def test_a_numpy_integer_is_a_seed_that_can_be_saved(tmp_path):
    agent = small_agent(PPO, seed=np.int64(7))
    assert PPO.load(agent.save(tmp_path / "agent")).seed == 7
    assert same(parameters(agent), parameters(small_agent(PPO, seed=7)))


@pytest.mark.parametrize("env", ["Pendulum-v1", partial(Noise, gym.spaces.Discrete(2), (4,))])
def test_environments_with_other_spaces_are_refused(env):
    with pytest.raises(ValueError, match=r"env has (observation|action)_space .*; allowed: the agent's"):
        small_agent(PPO).set_env(env)


def test_a_discrete_space_that_starts_elsewhere_is_another_space():
    agent = small_agent(PPO, partial(Noise, gym.spaces.Discrete(3)))
    with pytest.raises(ValueError, match="env has action_space"):
        agent.set_env(partial(Noise, gym.spaces.Discrete(3, start=1)))


@pytest.mark.parametrize(
    "region", [Clip(0.1), KLConstraint(0.02), All(Clip(0.3), KLPenalty(Adaptive(target_kl=0.02))), TrustRegion()]
)
def test_a_region_given_as_an_object_is_saved_with_its_state(region, tmp_path):
    agent = small_agent(PPO, trust_region=region).learn(64)
    loaded = PPO.load(agent.save(tmp_path / "agent"))
    assert (loaded.config.trust_region, loaded.region) == (region, agent.region)
