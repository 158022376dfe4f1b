"""The frame of an update: what it measures, freezes, scales and refuses."""

import copy
from dataclasses import dataclass, fields, replace
from functools import partial

import numpy as np
import pytest
import torch
from environments import Noise, box, random_batch, small_agent
from support import every_agent, every_space, exactly, parameters, same
from torch import distributions as td
from torch import nn

import klrl.agents.new_networks
import klrl.trust_region.names
from klrl.agents import PPO
from klrl.agents.actor_critic import worst_element
from klrl.policy.linearization import expectation
from klrl.policy.networks import Critic
from klrl.run import Callback
from klrl.trust_region import TrustRegion


@every_agent
@every_space
def test_the_policy_that_collected_is_the_one_updated(agent_class, space):
    agent = small_agent(agent_class, partial(Noise, space)).learn(256)
    assert max(metrics["drift/start_kl"] for metrics in agent.history[1:]) < 1e-9
    assert max(metrics["drift/start_ratio_error"] for metrics in agent.history[1:]) < 1e-4
    batch = random_batch(agent)
    change = agent.change(agent.prepare(batch))
    assert change.kl.max() == 0.0
    assert (change.ratio == 1.0).all()


@every_agent
def test_a_batch_of_another_policy_is_reported(agent_class):
    stranger = small_agent(agent_class, seed=1).learn(64)
    with pytest.warns(RuntimeWarning, match="the policy that collected the batch is not the one being updated: KL = "):
        small_agent(agent_class).update(random_batch(stranger))


@every_agent
@every_space
def test_an_update_with_a_batch_made_by_hand_moves_policy_and_critic(agent_class, space):
    agent = small_agent(agent_class, partial(Noise, space))
    before = parameters(agent)
    metrics = agent.update(random_batch(agent))
    assert metrics["drift/kl"] > 0.0
    assert (agent.num_timesteps, agent.n_updates) == (64, 1)
    assert not any(torch.equal(a, b) for a, b in zip(before, parameters(agent), strict=True))


@every_agent
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
        "drift/states_over_target": (kl > (metrics.get("drift/kl_target", 0.01))).float().mean(),
    }  # fmt: skip
    found = {name: metrics[name] for name in expected}
    assert found == pytest.approx({name: float(x) for name, x in expected.items()}, rel=1e-3, abs=1e-9)


@every_agent
def test_the_kl_of_new_statistics_is_reported_on_its_own_and_in_the_total(agent_class):
    agent = small_agent(agent_class, partial(Noise, box(2)), fold_normalizer=False).learn(64)
    batch = random_batch(agent)
    observations = batch.observations.flatten(0, 1)
    old, statistics = exactly(agent.distribution(observations)), agent.normalizer
    metrics = agent.update(batch)
    after = exactly(agent.distribution(observations))
    new = exactly(agent.actor(statistics(observations)).detach())
    assert metrics["drift/kl_normalizer"] == pytest.approx(td.kl_divergence(new, after).mean().item(), rel=1e-3)
    assert metrics["drift/kl_total"] == pytest.approx(td.kl_divergence(old, after).mean().item(), rel=1e-3)
    assert metrics["drift/kl_normalizer"] > 0.0


@every_agent
@every_space
def test_folded_statistics_leave_the_policy_where_the_update_left_it(agent_class, space):
    folded, plain = (
        small_agent(agent_class, partial(Noise, space), fold_normalizer=choice).learn(192) for choice in (True, False)
    )
    assert max(m["drift/kl_normalizer"] for m in folded.history) < 1e-10
    for m in folded.history:
        assert m["drift/kl_total"] == pytest.approx(m["drift/kl"], rel=1e-3)
    assert min(m["drift/kl_normalizer"] for m in plain.history[1:]) > 1e-8
    first, *later = [m["drift/start_kl"] for m in folded.history]
    assert max(later) < 1e-9 < first < 1e-4  # what nobody has trained yet takes its first statistics before it learns


@every_agent
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_folded_statistics_leave_policy_and_values_at_raw_observations_as_they_were(agent_class, activation):
    class Before(Callback):
        def on_epoch_end(self, agent, epoch):
            normalized = agent.normalizer(x)
            self.seen = [*agent.actor(normalized).parameters, agent.critic(normalized)]

    x, before = 2.0 * torch.randn(50, 3, generator=torch.Generator().manual_seed(0)), Before()
    agent = small_agent(agent_class, partial(Noise, box(2)), activation=activation, fold_normalizer=True).learn(64)
    statistics = agent.normalizer
    agent.learn(64, callback=before)
    assert not torch.equal(statistics(x), agent.normalizer(x))
    after = [*agent.distribution(x).parameters, agent.critic(agent.normalized(x))]
    for one, other in zip(before.seen, after, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@every_agent
def test_the_first_statistics_change_no_weight_and_later_ones_change_the_first_layers_only(agent_class):
    class Before(Callback):
        def on_epoch_end(self, agent, epoch):
            self.seen = parameters(agent)

    before, n = Before(), len(list(small_agent(agent_class).actor.parameters()))
    agent = small_agent(agent_class, fold_normalizer=True).learn(64, callback=before)
    assert same(before.seen, parameters(agent))
    agent.learn(64, callback=before)
    moved = [not torch.equal(a, b) for a, b in zip(before.seen, parameters(agent), strict=True)]
    assert [i for i, changed in enumerate(moved) if changed] == [0, 1, n, n + 1]


@every_agent
def test_statistics_of_a_trunk_without_a_first_layer_change_as_they_are_and_are_reported(agent_class):
    agent = small_agent(agent_class, partial(Noise, box(2)), fold_normalizer=True).learn(64)
    agent.actor.trunk = torch.nn.Sequential(torch.nn.Tanh(), torch.nn.Linear(3, 2))
    assert agent.learn(64).history[-1]["drift/kl_normalizer"] > 1e-8


@every_agent
def test_the_sum_of_every_updates_kl_goes_on_over_calls_of_learn_and_files(agent_class, tmp_path):
    agent = small_agent(agent_class).learn(128)
    agent.learn(64)
    loaded = agent_class.load(agent.save(tmp_path / "agent")).learn(64)
    assert len(loaded.history) == 4
    steps = [metrics["drift/kl"] for metrics in loaded.history]
    found = [metrics["drift/kl_sum"] for metrics in loaded.history]
    assert found == pytest.approx(np.cumsum(steps), rel=1e-12)


@every_agent
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
    del watch.seen[0][0]  # none yet; they are taken from the first batch before it is learned from
    for first, *rest in watch.seen:
        assert all(normalizer is first for normalizer in rest)
    assert len({id(n) for n in [*(seen[0] for seen in watch.seen), agent.normalizer]}) == 3


@every_agent
def test_explained_variance_is_that_of_numpy_and_nan_where_the_target_is_constant(agent_class):
    agent = small_agent(agent_class, scale_rewards=False, normalize_observations=False, gamma=0.0)
    batch = random_batch(agent)
    values = agent.critic(batch.observations).detach().double().numpy()
    rewards = batch.rewards.double().numpy()
    expected = 1.0 - np.var(rewards - values) / np.var(rewards)
    assert agent.update(batch)["train/explained_variance"] == pytest.approx(expected, rel=1e-4)
    nothing = replace(random_batch(agent), rewards=torch.zeros(32, 2))
    assert np.isnan(agent.update(nothing)["train/explained_variance"])


@every_agent
def test_an_update_that_overflows_raises_and_moves_nothing(agent_class):
    agent = small_agent(agent_class, scale_rewards=False)
    before = parameters(agent)
    with pytest.raises(FloatingPointError, match=r"^returns in update 0 at 0 steps are not finite with rewards up to"):
        agent.update(random_batch(agent, scale=1e38))
    assert same(parameters(agent), before)


@every_agent
def test_a_gradient_that_is_not_finite_is_named_and_moves_nothing(agent_class, monkeypatch):
    agent = small_agent(agent_class)
    value_loss = agent.value_loss

    def with_nan(samples):
        loss = value_loss(samples)
        gradients = loss.gradients()
        gradients[agent.critic][3] = np.nan
        monkeypatch.setattr(type(loss), "gradients", lambda self: gradients)
        return loss

    monkeypatch.setattr(agent, "value_loss", with_nan)
    before = parameters(agent)[len([*agent.actor.parameters()]) :]
    expected = r"^gradient of critic\.\S+, element \[\d+, \d+\], is nan in update 0 at 0 steps: gradient of norm nan;"
    with pytest.raises(FloatingPointError, match=expected):
        agent.update(random_batch(agent))
    assert same(parameters(agent)[len([*agent.actor.parameters()]) :], before)


def test_where_only_the_norm_of_a_gradient_is_none_its_largest_element_is_named():
    networks = {"actor": nn.Linear(2, 1), "critic": nn.Linear(2, 1)}
    gradients = {networks["actor"]: np.array([1.0, 2.0, 3.0]), networks["critic"]: np.array([1.0, -1e30, 5.0])}
    assert worst_element(networks, gradients) == "gradient of critic.weight, element [0, 1], is -1e+30"
    gradients[networks["actor"]][2] = -np.inf
    assert worst_element(networks, gradients) == "gradient of actor.bias, element [0], is -inf"


@every_agent
def test_scaled_rewards_of_any_size_leave_finite_parameters(agent_class):
    agent = small_agent(agent_class)
    agent.update(random_batch(agent, scale=1e30))
    assert all(p.isfinite().all() for p in parameters(agent))


@pytest.mark.parametrize(
    ("schedule", "rates"), [("linear", [1e-3, 0.75e-3, 0.5e-3, 0.25e-3]), ("constant", [1e-3] * 4)]
)
@every_agent
def test_the_learning_rate_follows_its_schedule(agent_class, schedule, rates):
    agent = small_agent(agent_class, learning_rate=1e-3, learning_rate_schedule=schedule).learn(256)
    assert [metrics["train/learning_rate"] for metrics in agent.history] == pytest.approx(rates)


@every_agent
@pytest.mark.parametrize("scaled", [True, False])
def test_the_unit_of_the_reward_matters_only_without_scaling(agent_class, scaled):
    agents = [small_agent(agent_class, scale_rewards=scaled) for _ in range(2)]
    for agent, unit in zip(agents, (1.0, 1000.0), strict=True):
        agent.update(random_batch(agent, scale=unit))
    difference = max((a - b).abs().max() for a, b in zip(*map(parameters, agents), strict=True))
    assert (difference < 1e-4) == scaled


@every_agent
def test_advantages_are_normalised_over_the_batch_where_configured(agent_class):
    plain, normal = (small_agent(agent_class, normalize_advantage=choice) for choice in (False, True))
    advantage, expected = (agent.prepare(random_batch(agent, scale=7.0)).advantage for agent in (normal, plain))
    assert advantage.mean().item() == pytest.approx(0.0, abs=1e-6)
    assert advantage.std(correction=0).item() == pytest.approx(1.0)
    assert np.corrcoef(advantage, expected)[0, 1] == pytest.approx(1.0)
    assert expected.std() > 2.0


@every_agent
@pytest.mark.parametrize(("scale", "norm"), [(1e4, 0.25), (1e-4, None)])
def test_long_gradients_are_scaled_down_and_short_ones_left(agent_class, scale, norm):
    agent = small_agent(agent_class, max_grad_norm=0.25)
    critic = agent.critic.linearize(torch.ones(1, 4))
    loss = expectation(critic.output, critic, (torch.full((1,), scale),))
    g = loss.gradients()[agent.critic].clone()
    agent.descend(loss)
    moments = agent.networks.optimizer.state()
    ours = agent.networks.optimized.index(agent.critic)
    expected = 0.1 * (g if norm is None else norm * g / g.norm())  # after one step: (1 - beta1) g
    torch.testing.assert_close(moments[f"{ours}.exp_avg"], expected)


@every_agent
def test_every_setting_is_read(agent_class, monkeypatch):
    config_class, read = agent_class.config_class, set()

    def record(self, name):
        read.add(name)
        return object.__getattribute__(self, name)

    monkeypatch.setattr(klrl.trust_region.names, "validate", lambda config: None)
    monkeypatch.setattr(config_class, "__getattribute__", record)
    for env in ("CartPole-v1", "Pendulum-v1"):
        small_agent(agent_class, env).learn(64)
    assert {f.name for f in fields(config_class)} - read == set()


@dataclass(frozen=True)
class InTorch(TrustRegion):
    def surrogate(self, change):
        return torch.clamp(change.ratio, max=1.1) * change.advantage


@every_agent
@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda agent: agent.__reduce_ex__(4)])
def test_a_copy_is_refused_because_it_would_not_learn(agent_class, duplicate):
    with pytest.raises(
        TypeError, match=rf"{agent_class.__name__} cannot be copied or pickled; allowed: save\(\) and load"
    ):
        duplicate(small_agent(agent_class))


@every_agent
@pytest.mark.parametrize("name", ["actor", "critic"])
def test_a_network_that_was_moved_in_memory_goes_on_learning(agent_class, name):
    agent = small_agent(agent_class).learn(64)
    getattr(agent, name).double().float()
    before = [p.detach().clone() for p in getattr(agent, name).parameters()]
    agent.learn(64)
    assert not any(torch.equal(a, b) for a, b in zip(before, getattr(agent, name).parameters(), strict=True))


@every_agent
def test_hooks_within_an_update_see_gradients_and_numpys_warnings_as_the_caller_has_them(agent_class):
    seen = []

    class Probe(Callback):
        def on_epoch_end(self, agent, epoch):
            seen.append((torch.is_grad_enabled(), np.geterr()))

        def on_minibatch_end(self, agent, metrics):
            self.on_epoch_end(agent, 0)

    with np.errstate(over="raise"):
        small_agent(agent_class).learn(64, callback=Probe())
        assert seen
        assert all(state == (True, np.geterr()) for state in seen)


def test_a_region_written_in_torch_trains():
    agent = small_agent(PPO, trust_region=InTorch()).learn(64)
    assert agent.history[-1]["drift/kl"] > 0.0


@every_agent
def test_networks_put_in_after_construction_learn_too(agent_class):
    agent = small_agent(agent_class).learn(64)
    for network, n_out in ((agent.actor, 2), (agent.critic, 1)):
        network.trunk = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, n_out))
    before = parameters(agent)
    agent.learn(64)
    assert not any(torch.equal(a, b) for a, b in zip(before, parameters(agent), strict=True))
    assert agent.history[-1]["drift/kl"] > 0.0


@every_agent
def test_a_whole_network_put_in_learns_too(agent_class):
    agent, other = small_agent(agent_class).learn(64), small_agent(agent_class, seed=1)
    agent.actor, agent.critic = other.actor, other.critic
    before = parameters(agent)
    agent.learn(64)
    assert not any(torch.equal(a, b) for a, b in zip(before, parameters(agent), strict=True))


@every_agent
def test_actor_and_critic_with_a_common_trunk_are_refused_before_anything_moves(agent_class):
    agent = small_agent(agent_class).learn(64)
    common = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh())
    agent.actor.trunk = torch.nn.Sequential(common, torch.nn.Linear(8, 2))
    agent.critic.trunk = torch.nn.Sequential(common, torch.nn.Linear(8, 1))
    before, batch = parameters(agent), random_batch(agent)
    named = (
        r"critic\.trunk\.0\.0\.weight, critic\.trunk\.0\.0\.bias = actor\.trunk\.0\.0\.weight, actor\.trunk\.0\.0\.bias"
    )
    with pytest.raises(
        ValueError, match=f"^critic shares parameters with actor: {named}; allowed: .*deepcopy"
    ) as error:
        agent.update(batch)
    assert "\n" not in str(error.value)
    assert same(parameters(agent), before)
    agent.critic.trunk = copy.deepcopy(agent.critic.trunk)
    agent.update(batch)
    assert not any(torch.equal(a, b) for a, b in zip(before, parameters(agent), strict=True))


@every_agent
@pytest.mark.parametrize("share", ["parameter", "memory", "network"])
def test_the_networks_that_agents_begin_with_cannot_share_a_parameter_either(agent_class, share):
    agent = small_agent(agent_class)
    ours, theirs = agent.actor.trunk[0], agent.critic.trunk[0]
    if share == "parameter":
        theirs.weight = ours.weight
    elif share == "memory":
        theirs.weight.data = ours.weight.data
    else:
        agent.critic.trunk = agent.actor.trunk
    with pytest.raises(ValueError, match=r"critic\.trunk\.0\.weight.* = actor\.trunk\.0\.weight"):
        agent.learn(64)


@every_agent
def test_an_agent_is_not_made_with_a_common_trunk(agent_class, monkeypatch):
    made, make_actor = [], klrl.agents.new_networks.make_actor

    def remember(*args, **kwargs):
        made.append(make_actor(*args, **kwargs))
        return made[-1]

    def critic(*args, **kwargs):
        network = Critic(*args, **kwargs)
        network.trunk = made[-1].trunk
        return network

    monkeypatch.setattr(klrl.agents.new_networks, "make_actor", remember)
    monkeypatch.setattr(klrl.agents.new_networks, "Critic", critic)
    with pytest.raises(ValueError, match=r"^critic shares parameters with actor: critic\.trunk\."):
        small_agent(agent_class)
