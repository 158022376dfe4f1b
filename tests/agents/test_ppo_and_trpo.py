"""The trust region you ask for is the trust region you get; what only PPO or only TRPO promises."""

from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise, product

import gymnasium as gym
import numpy as np
import pytest
import torch
from environments import Noise, box, random_batch, small_agent
from support import (
    ACTION_SPACES,
    GAUSSIAN_ONLY,
    NEEDS_REFERENCE,
    NEEDS_TOTAL_VARIATION,
    AfterEpoch,
    BeforeAndAfter,
    Nowhere,
    both,
    every_space,
    exactly,
    parameters,
    policy,
    same,
)
from torch import distributions as td

from klrl.agents import PPO, TRPO, NPGConfig, TRPOConfig
from klrl.run import Callback
from klrl.trust_region import (
    REGIONS,
    Adaptive,
    AdaptiveLearningRate,
    All,
    KLConstraint,
    KLPenalty,
    KLProjection,
    TrustRegion,
)


class Measure(BeforeAndAfter):
    """The mean over states of KL(old||new) after every update, in float64 with torch's own formula."""

    def __init__(self):
        super().__init__(lambda old, new: td.kl_divergence(old, new).mean())

    def on_update_end(self, agent, batch, metrics):
        super().on_update_end(agent, batch, metrics)
        assert metrics["drift/kl"] == pytest.approx(self.kls[-1], rel=1e-3, abs=1e-9)
        assert metrics["drift/kl"] <= metrics["drift/kl_target"]


@every_space
@pytest.mark.parametrize(
    ("agent_class", "settings", "seeds"),
    [
        (TRPO, {"n_critic_updates": 1}, 3),
        (TRPO, {"n_critic_updates": 1, "cg_damping": 0.0, "sub_sampling_factor": 8, "log_std_init": -2.0}, 6),
        (PPO, {"trust_region": "constraint", "learning_rate": 0.02, "n_epochs": 4}, 3),
        (PPO, {"trust_region": "clip+constraint", "learning_rate": 0.02, "n_epochs": 2}, 3),
    ],
    ids=["TRPO", "TRPO-rough", "PPO", "PPO-clip"],
)
def test_the_kl_of_every_update_is_inside_the_constraint(agent_class, settings, seeds, space):
    target_kl, kls = 0.01, []
    for seed in range(seeds):
        measure = Measure()
        settings = settings | {"target_kl": target_kl, "normalize_observations": False}
        small_agent(agent_class, partial(Noise, space), seed, **settings).learn(128, callback=measure)
        kls += measure.kls
    assert max(kls) <= target_kl * (1 + 1e-5)
    assert max(kls) > 0.4 * target_kl


@both
def test_a_step_that_is_rejected_leaves_the_policy_as_it_was_to_the_bit(agent_class):
    settings = {"trust_region": Nowhere(), "fold_normalizer": False}
    agent = small_agent(agent_class, partial(Noise, box(2)), **settings).learn(64)
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


def surrogate(agent, samples):
    """E[ratio x advantage] of the current policy, in float64 by torch."""
    new = exactly(agent.actor(samples.observations))
    return ((new.log_prob(samples.actions) - samples.log_prob.double()).exp() * samples.advantage).mean()


def test_trpo_takes_no_step_that_improves_by_less_than_the_share_of_what_the_gradient_predicts():
    settings = {"target_kl": 0.5, "line_search_shrinking_factor": 0.7, "line_search_max_iter": 8}
    settings |= {"normalize_observations": False, "scale_rewards": False}
    accepted = {share: [] for share in (0.0, 0.5, 0.9, 0.999)}
    for space, (share, scales) in product(ACTION_SPACES, accepted.items()):
        agent = small_agent(TRPO, partial(Noise, space), accept_ratio=share, **settings)
        (start,), batch = policy(agent), random_batch(agent, n_steps=128)
        samples = agent.prepare(batch)
        before = surrogate(agent, samples)
        g = torch.cat([x.flatten() for x in torch.autograd.grad(before, list(agent.actor.parameters()))])
        metrics = agent.update(batch)
        scales.append(metrics["train/line_search_scale"])
        if scales[-1] > 0.0:
            predicted = g @ (policy(agent)[0] - start)
            assert predicted > 0.0
            assert surrogate(agent, samples) - before > (1.0 - 1e-3) * share * predicted
        else:
            assert metrics["train/stop_reason"] == "rejected: the surrogate improves by less than accept_ratio asks"
    for scales in zip(*accepted.values(), strict=True):
        assert [*scales] == sorted(scales, reverse=True)
    assert sum(accepted[0.999]) < sum(accepted[0.0])


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


def test_on_the_way_back_adam_keeps_the_moments_of_the_steps_that_led_outside():
    def moments(region):
        agent = small_agent(PPO, trust_region=region, n_epochs=1, learning_rate=3e-2)
        metrics = agent.update(random_batch(agent))
        return metrics["train/backtrack_scale"], agent.networks.optimizer.state()

    (scale, kept), (_, unbounded) = moments(KLConstraint(1e-3)), moments(TrustRegion())
    assert 0.0 < scale < 1.0
    assert all(torch.equal(kept[name], unbounded[name]) for name in unbounded)


def test_where_no_step_stays_inside_adam_has_the_actors_moments_of_before_and_the_critic_goes_on():
    agent = small_agent(PPO, trust_region="none", n_epochs=4, learning_rate=1e-2)
    agent.update(random_batch(agent))
    before = {name: x.clone() for name, x in agent.networks.optimizer.state().items()}
    agent.region = Nowhere()
    metrics = agent.update(random_batch(agent, seed=1), epochs := AfterEpoch())
    assert (metrics["train/backtrack_scale"], metrics["train/policy_epochs"]) == (0.0, 1.0)
    assert metrics["train/stop_reason"] == "stopped: no step stays inside"
    for name, x in agent.networks.optimizer.state().items():
        assert torch.equal(x, before[name]) == name.startswith("0."), name
    assert not any(same(a, b) for a, b in pairwise(epochs.critics))


def test_after_a_stop_adam_keeps_the_moments_of_the_steps_that_were_kept():
    agent = small_agent(PPO, trust_region="early-stop", target_kl=1e-9, n_epochs=2)
    agent.update(random_batch(agent))
    assert all(x.any() for x in agent.networks.optimizer.state().values())


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_adaptive_lr_scales_the_first_step_of_the_actor_and_not_that_of_the_critic(scale):
    def step(region):
        agent = small_agent(PPO, trust_region=region, n_epochs=1, batch_size=64)
        before = parameters(agent)
        metrics = agent.update(random_batch(agent))
        moved = [a - b for a, b in zip(parameters(agent), before, strict=True)]
        n = len(list(agent.actor.parameters()))
        return moved[:n], moved[n:], metrics

    plain, scaled = step(TrustRegion()), step(AdaptiveLearningRate(scale=scale))
    for a, b in zip(plain[0], scaled[0], strict=True):
        torch.testing.assert_close(scale * a, b, rtol=1e-3, atol=1e-6)
    assert same(plain[1], scaled[1])
    rate = plain[2]["train/learning_rate"]
    assert scaled[2]["train/learning_rate"] == plain[2]["train/actor_learning_rate"] == rate
    assert scaled[2]["train/actor_learning_rate"] == rate * scale


def test_adaptive_lr_changes_after_every_epoch_and_an_update_begins_near_the_last_ones_rate():
    agent = small_agent(PPO, trust_region="adaptive-lr", n_epochs=4, learning_rate=1e-6)
    rates = []

    class Rates(Callback):
        def on_minibatch_end(self, agent, metrics):
            rates.append(agent.networks.optimizer.learning_rate * agent.region.lr_scale / 1e-6)

    for k in range(3):  # a KL far below its aim
        metrics = agent.update(random_batch(agent), Rates())
        epochs = np.reshape(rates[-len(rates) // (k + 1) :], (4, -1))
        assert epochs == pytest.approx(np.broadcast_to(1.5 ** (k + np.arange(4.0)), epochs.T.shape).T)
        assert metrics["train/actor_learning_rate"] == pytest.approx(1e-6 * 1.5**k)


@dataclass(frozen=True)
class Slower(TrustRegion):
    """A setting of one's own, without a default."""

    lr_scale: float


def test_a_region_of_ones_own_may_scale_the_learning_rate():
    agent = small_agent(PPO, trust_region=All(KLConstraint(), Slower(0.25)), learning_rate=1e-3)
    assert agent.update(random_batch(agent))["train/actor_learning_rate"] == 0.25e-3


@pytest.mark.parametrize("config_class", [TRPOConfig, NPGConfig])
@pytest.mark.parametrize("region", ["constraint+projection", All(KLConstraint(), KLProjection())])
def test_natural_gradients_refuse_projections(config_class, region):
    with pytest.raises(ValueError, match=r"; allowed for (TRPO|NPG): no projection, it is for PPO$"):
        config_class(trust_region=region)


OF_THE_ACTOR = ["constraint+adaptive-lr", All(KLConstraint(), AdaptiveLearningRate()), All(KLConstraint(), Slower(0.5))]


@pytest.mark.parametrize("region", OF_THE_ACTOR)
def test_trpo_refuses_to_scale_a_learning_rate_that_its_actor_does_not_have(region):
    with pytest.raises(ValueError, match=r"^trust_region = .*; allowed for TRPO: nothing that scales .* learning rate"):
        TRPOConfig(trust_region=region)


def test_espo_stops_the_policy_once_its_ratios_are_far_enough_from_one():
    far = {"n_epochs": 30, "learning_rate": 1e-2}
    stopped, tight = (
        small_agent(PPO, trust_region="espo", ratio_deviation=bound, **far).update(random_batch(small_agent(PPO)))
        for bound in (0.2, 1e-4)
    )
    assert (tight["train/policy_epochs"], tight["train/stop_reason"]) == (1.0, "stopped: outside the trust region")
    assert 1.0 < stopped["train/policy_epochs"] < 30.0
    assert stopped["drift/kl"] >= 0.2**2 / 2.0
    assert "drift/kl_target" not in stopped


def test_ppo_goes_through_all_epochs_inside_the_region():
    agent = small_agent(PPO, trust_region="early-stop", target_kl=100.0, n_epochs=4)
    epochs = AfterEpoch()
    metrics = agent.update(random_batch(agent), epochs)
    assert not any(same(a, b) for a, b in zip(epochs.policies, epochs.policies[1:], strict=False))
    assert (metrics["train/policy_epochs"], metrics["train/stop_reason"]) == (4.0, "all epochs done")


class Places(Callback):
    """The policy's parameters where the last minibatch of every epoch has led, and where the region has left them."""

    def __init__(self):
        self.led, self.left = [], []

    def on_minibatch_end(self, agent, metrics):
        self.last = agent.networks.actor_parameters.clone()

    def on_epoch_end(self, agent, epoch):
        self.led.append(self.last)
        self.left.append(agent.networks.actor_parameters.clone())


def test_ppo_outside_a_constraint_goes_back_along_the_line_to_the_policy_before_the_update():
    agent = small_agent(PPO, trust_region="constraint", target_kl=1e-3, n_epochs=3, learning_rate=3e-2)
    old, metrics = agent.networks.actor_parameters.clone(), agent.update(random_batch(agent), places := Places())
    for led, left in zip(places.led, places.left, strict=True):
        scale = ((left - old) @ (led - old) / (led - old).square().sum()).item()
        assert 0.0 < scale < 1.0
        torch.testing.assert_close(left, old + scale * (led - old), rtol=1e-4, atol=1e-6)
    assert metrics["train/backtrack_scale"] == pytest.approx(scale, rel=1e-4)
    assert 0.9 * 1e-3 < metrics["drift/kl"] <= 1e-3


class Answers(TrustRegion):
    """A region that answers what it is told to, and the last answer from then on."""

    on_exit = "backtrack"

    def violation(self, change):
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


def test_where_nothing_on_the_way_back_is_inside_the_policy_is_what_the_last_epoch_that_was_inside_made_of_it():
    agent = small_agent(PPO, trust_region=Answers(), n_epochs=4, learning_rate=1e-2)
    Answers.answers = [-1.0, -1.0, 1.0]
    metrics = agent.update(random_batch(agent), places := Places())
    assert (metrics["train/policy_epochs"], metrics["train/backtrack_scale"]) == (3.0, 0.0)
    assert metrics["train/stop_reason"] == "stopped: no step stays inside"
    assert not torch.equal(places.left[0], places.left[1])
    assert not torch.equal(places.led[2], places.left[1])
    assert all(torch.equal(left, places.left[1]) for left in places.left[2:])


@pytest.mark.parametrize("region", ["constraint", "clip+constraint"])
def test_ppo_that_went_back_inside_a_constraint_takes_its_other_epochs_from_there(region):
    agent = small_agent(PPO, trust_region=region, target_kl=1e-3, n_epochs=4, learning_rate=1e-2)
    metrics = agent.update(random_batch(agent), epochs := AfterEpoch())
    assert not any(same(a, b) for a, b in pairwise(epochs.policies))
    assert metrics["train/policy_epochs"] == 4.0
    assert 0.9 * 1e-3 < metrics["drift/kl"] <= 1e-3
    assert metrics["train/backtrack_scale"] < 1.0
    assert metrics["train/stop_reason"] == "all epochs done, back inside the trust region"


@pytest.mark.parametrize(
    ("region", "space"),
    [
        (r, s)
        for r in [*REGIONS, "clip+fixed-penalty"]
        for s in [box(1 if r in NEEDS_TOTAL_VARIATION else 6), gym.spaces.Discrete(5)]
        if r not in NEEDS_REFERENCE and (r not in GAUSSIAN_ONLY or s.shape)  # a Discrete has none
    ],
)
def test_at_the_old_policy_the_gradient_of_every_objective_is_the_policy_gradient(region, space):
    agent = small_agent(PPO, partial(Noise, space), trust_region=region).learn(64)
    with torch.no_grad():
        samples = agent.prepare(random_batch(agent))
        policy = agent.actor.linearize(samples.observations)
        objective = agent.objective(policy, samples.change(policy.output))
    log_prob = exactly(agent.actor(samples.observations)).log_prob(samples.actions)
    expected = torch.autograd.grad((log_prob * samples.advantage).mean(), list(agent.actor.parameters()))
    expected = torch.cat([g.flatten() for g in expected])
    torch.testing.assert_close(objective.gradients()[agent.actor], expected, rtol=1e-4, atol=1e-6)


@every_space
def test_trpo_takes_the_same_step_whether_it_sees_the_batch_in_parts_or_whole(space):
    steps = []
    for size in (None, 10):
        agent = small_agent(TRPO, partial(Noise, space), fisher_batch_size=size)
        start = agent.networks.actor_parameters.detach().clone()
        agent.update(random_batch(agent))
        steps.append(agent.networks.actor_parameters.detach() - start)
    assert (steps[0] - steps[1]).norm() < 1e-2 * steps[0].norm()  # fifteen steps of CG amplify rounding
    assert steps[0].norm() > 0.0


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


def test_a_second_training_begins_with_the_rate_that_adaptive_lr_ended_the_first_with():
    agent = small_agent(PPO, trust_region="adaptive-lr", learning_rate=1e-3, learning_rate_schedule="linear")
    for _ in range(2):
        agent.learn(8 * agent.config.n_envs * agent.config.n_steps)
    rates = [row["train/actor_learning_rate"] for row in agent.history]
    assert len(rates) == 16
    assert all(0.66 < after / before < 1.51 for before, after in pairwise(rates))
    assert [row["train/learning_rate"] for row in agent.history[7:9]] == pytest.approx([1e-3 / 8, 1e-3])


def test_the_natural_gradients_penalty_follows_the_kl_whatever_the_critics_rate():
    agent = small_agent(TRPO, trust_region="adaptive-penalty", learning_rate_schedule="linear")
    agent.learn(4 * agent.config.n_envs * agent.config.n_steps)
    assert agent.region.coefficient.rate_share == 1.0


@pytest.mark.parametrize(("agent_class", "n_envs"), [(PPO, 2), (TRPO, 2), (PPO, 64)])
def test_a_saturated_squashed_policy_learns_from_right_ratios(agent_class, n_envs):
    """Means of 12 before the tanh, where every action is 1 in float32; k1 and k3 of many actions are near the KL."""
    settings = {"action_distribution": "squashed-gaussian", "normalize_observations": False}
    agent = small_agent(agent_class, "Pendulum-v1", n_envs=n_envs, n_steps=1024 // n_envs, **settings)
    with torch.no_grad():
        *_, bias = agent.actor.trunk.parameters()
        bias.fill_(12.0)
    agent.learn(1024)
    (row,) = agent.history
    assert row["drift/start_ratio_error"] < 1e-3
    assert row["drift/kl"] > 1e-5
    spread = (2.0 * row["drift/kl"] / 1024) ** 0.5
    assert row["drift/kl_k1"] == pytest.approx(row["drift/kl"], abs=5.0 * spread)
    assert row["drift/kl_k3"] == pytest.approx(row["drift/kl"], rel=0.3)


def test_a_batch_without_what_was_before_the_tanh_is_read_by_its_actions():
    agent = small_agent(PPO, "Pendulum-v1", action_distribution="squashed-gaussian")
    batch = agent.collector().collect(agent.act, agent.config.n_steps)
    assert batch.before_tanh is not None
    torch.testing.assert_close(batch.before_tanh.tanh(), batch.actions)
    known, unknown, other = (
        agent.prepare(b)
        for b in (batch, replace(batch, before_tanh=None), replace(batch, before_tanh=batch.before_tanh + 1.0))
    )
    assert unknown.before_tanh is other.before_tanh is None
    torch.testing.assert_close(known.log_prob, unknown.log_prob, rtol=1e-3, atol=1e-3)
    gaussian = small_agent(PPO, "Pendulum-v1")
    assert gaussian.collector().collect(gaussian.act, 4).before_tanh is None
