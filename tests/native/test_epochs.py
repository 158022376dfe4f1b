"""The kernel's steps against autograd in float64, and whole updates against those of the numpy path."""

from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache, partial, wraps
from itertools import pairwise, product

import gymnasium as gym
import numpy as np
import pytest
import torch
from environments import Sampling, random_batch, small_agent
from torch import distributions as td
from torch import nn

from klrl.agents import NPG, PPO, TRPO
from klrl.agents.epochs import Epochs, Terms, kernel_of
from klrl.agents.update_batch import UpdateBatch
from klrl.native import Kernel, at_level, available
from klrl.policy.distributions import Categorical
from klrl.policy.linearization import flatten
from klrl.run import Callback
from klrl.run.callback_list import CallbackList
from klrl.trust_region import REGIONS as NAMED
from klrl.trust_region import (
    SPO,
    Adaptive,
    AdaptiveLearningRate,
    All,
    Clip,
    Coefficient,
    Fixed,
    KLConstraint,
    KLPenalty,
    Rollback,
    TrustRegion,
)
from klrl.trust_region.arithmetic import arithmetic

levels = pytest.mark.parametrize("level", available())
pytestmark = pytest.mark.skipif(not available(), reason="the kernel was not built")

BOX, CHOICES = gym.spaces.Box(-1.0, 1.0, (3,), np.float32), gym.spaces.Discrete(5)
POLICIES = {
    "gaussian": (BOX, None, {"log_std_init": -0.4}),
    "gaussian with a std of states": (BOX, None, {"state_dependent_std": True, "log_std_init": -0.4}),
    "categorical": (CHOICES, None, {}),
    "masked": (CHOICES, "observation", {}),
}
REGIONS = {
    "none": TrustRegion(),
    "clip": Clip(0.2),
    "spo": SPO(0.15),
    "rollback": Rollback(0.1, 0.4),
    "penalty": KLPenalty(Fixed(3.0)),
    "clip and penalties": All(Clip(0.2), KLPenalty(Fixed(1.0)), KLPenalty(Adaptive(beta=2.0))),
}


def with_levels(names, *values):
    """Parametrise by all combinations at the highest level of the kernel, and by every second one at the others.

    All levels are one source, compiled for vectors of other lengths; each meets each two of the values.
    """
    last = len(available()) - 1
    combinations = [
        (level, *(value for _, value in combination))
        for i, level in enumerate(available())
        for combination in product(*map(enumerate, values))
        if i == last or (i + sum(j for j, _ in combination)) % 2
    ]
    return pytest.mark.parametrize(("level", *names), combinations)


def agent_of(policy, level, agent_class=PPO, n_features=7, seed=0, **settings):
    """An agent on the kernel at a level, or on numpy."""
    space, masks, options = POLICIES[policy]
    observations = gym.spaces.Box(-np.inf, np.inf, (n_features,), np.float32)
    agent = small_agent(agent_class, partial(Sampling, observations, space, masks=masks), seed, **options, **settings)
    agent.networks.kernel = level and at_level(level)
    assert agent.encoding.n_mask == (5 if masks else 0)
    return agent


def samples_of(agent, n, seed=0, moved=0.1):
    """Samples from before the networks were moved."""
    g = torch.Generator().manual_seed(seed)
    encoding = agent.encoding
    x = torch.randn(n, *encoding.shape, generator=g)
    if encoding.n_mask:
        x[:, encoding.n_features :] = (torch.rand(n, encoding.n_mask, generator=g) < 0.6).float()
        x[:, encoding.n_features] = 1.0
    old = agent.actor(x).detach()
    actions, (advantage, returns) = old.sample(g), torch.randn(2, n, generator=g)
    samples = UpdateBatch(x, actions, old, old.log_prob(actions), advantage, returns)
    for p in (*agent.actor.parameters(), *agent.critic.parameters()):
        p.data += moved * torch.randn(p.shape, generator=g)
    return samples


def in_torch(record):
    if isinstance(record, Categorical):
        return td.Categorical(logits=record.logits)
    return td.Independent(td.Normal(record.mean, record.log_std.exp()), 1)


def surrogate_in_torch(region, ratio, A):
    """The surrogates of the papers, and the sum of the penalties' coefficients."""
    members = region.regions if isinstance(region, All) else [region]
    surrogate, beta = ratio * A, sum(r.beta or 0.0 for r in members)
    for r in members:
        eps = r.clip_range
        if isinstance(r, Clip):
            surrogate = torch.min(ratio * A, ratio.clamp(1.0 - eps, 1.0 + eps) * A)
        elif isinstance(r, SPO):
            surrogate = ratio * A - A.abs() / (2.0 * eps) * (ratio - 1.0).square()
        elif isinstance(r, Rollback):
            inside = ratio.clamp(1.0 - eps, 1.0 + eps)
            surrogate = torch.min(ratio * A, (inside - r.rollback_slope * (ratio - inside)) * A)
    return surrogate, beta


def by_autograd(agent, samples):
    """Metrics and gradients of PPO's loss on these samples, by torch.distributions and autograd in float64."""
    config, n = agent.config, agent.encoding.n_features
    x = samples.observations.double()
    trunks = {name: nn.Sequential(*deepcopy(getattr(agent, name).trunk)).double() for name in ("actor", "critic")}
    log_std = None if getattr(agent.actor, "log_std", None) is None else agent.actor.log_std.detach().double()
    free = [] if log_std is None else [log_std.requires_grad_()]
    y = trunks["actor"](x[:, :n])
    if isinstance(samples.old, Categorical):
        allowed = x[:, n:] > 0.5 if agent.encoding.n_mask else torch.ones_like(y, dtype=torch.bool)
        new = td.Categorical(logits=torch.where(allowed, y, -torch.inf))
        old = td.Categorical(logits=samples.old.logits.double())
        p, log_p, log_q = new.probs, torch.where(allowed, new.logits, 0.0), torch.where(allowed, old.logits, 0.0)
        entropy, kl = -(p * log_p).sum(-1), (old.probs * (log_q - log_p)).sum(-1)
    else:
        d = samples.actions.shape[-1]
        fields = (y, log_std.expand_as(y)) if free else (y[:, :d], y[:, d:] + agent.actor.log_std_init)
        new = td.Independent(td.Normal(fields[0], fields[1].exp()), 1)
        old = in_torch(samples.old.map(torch.Tensor.double))
        entropy, kl = new.entropy(), td.kl_divergence(old, new)
    actions = samples.actions if isinstance(samples.old, Categorical) else samples.actions.double()
    ratio = (new.log_prob(actions) - samples.log_prob.double()).exp()
    surrogate, beta = surrogate_in_torch(agent.region, ratio, samples.advantage.double())
    objective = (surrogate - beta * kl).mean()
    value_loss = (trunks["critic"](x[:, :n]).squeeze(-1) - samples.returns.double()).square().mean()
    loss = config.vf_coef * value_loss - objective - config.ent_coef * entropy.mean()
    outside = ((ratio - 1.0).abs() > (agent.region.clip_range or 0.2)).double().mean()
    metrics = [x.item() for x in (-objective, value_loss, outside)]
    gradients = torch.autograd.grad(loss, [*free, *trunks["actor"].parameters(), *trunks["critic"].parameters()])
    n_actor = len(free) + len(list(trunks["actor"].parameters()))
    return metrics, [flatten(gradients[:n_actor]), flatten(gradients[n_actor:])]


def first_gradients(agent):
    """What Adam's first step has seen: its mean is (1 - beta1) g."""
    return [torch.from_numpy(state.mean.copy()).double() / 0.1 for state in agent.networks.optimizer.states]


def step(agent, samples):
    """One minibatch step in the kernel."""
    terms = Terms(agent.config.vf_coef, policy=True, entropy=agent.config.ent_coef)
    return Epochs(agent, samples, Callback()).steps(pytest.fail, terms)


# A sum of n float32 products is off by at most n 6e-8 of the sum of their sizes, on average by sqrt(n) 6e-8; some
# hundred rows and weights make that 1e-6 of the norm.
@with_levels(("policy", "region", "ent_coef"), POLICIES, REGIONS, [0.0, 0.03])
def test_a_step_is_that_of_the_gradient_by_autograd(level, policy, region, ent_coef):
    settings = {"trust_region": REGIONS[region], "ent_coef": ent_coef, "vf_coef": 0.7, "max_grad_norm": 1e6}
    agent = agent_of(policy, level, batch_size=64, **settings)
    samples = samples_of(agent, 64)
    expected, gradients = by_autograd(agent, samples)
    metrics = [value for (value,) in step(agent, samples).values()]
    assert metrics == pytest.approx(expected, rel=2e-5, abs=2e-6)
    for g, e in zip(first_gradients(agent), gradients, strict=True):
        assert (g - e).norm() <= 3e-6 * e.norm()


SHAPES = [  # actor, critic, rows in a minibatch, features
    ((), (), 1, 1),
    ((), (5,), 3, 17),
    ((1,), (33, 2), 16, 3),
    ((7, 13), (), 65, 5),
    ((31, 17, 9), (64, 64, 3), 63, 16),
    ((70,), (129,), 130, 19),
]


@with_levels(("policy", "activation", "sizes"), POLICIES, ["tanh", "relu"], SHAPES)
def test_steps_are_those_of_autograd_in_every_shape(level, policy, activation, sizes):
    actor, critic, rows, features = sizes
    shape = {"actor_hidden_sizes": actor, "critic_hidden_sizes": critic, "activation": activation}
    settings = {"trust_region": All(Clip(0.1), KLPenalty()), "ent_coef": 0.01, "max_grad_norm": 1e6}
    agent = agent_of(policy, level, n_features=features, batch_size=64, **shape, **settings)
    agent.config = replace(agent.config, n_steps=256, batch_size=rows)
    samples = samples_of(agent, rows, moved=0.05)
    expected, gradients = by_autograd(agent, samples)
    metrics = [value for (value,) in step(agent, samples).values()]
    assert metrics == pytest.approx(expected, rel=2e-5, abs=3e-6)
    for g, e in zip(first_gradients(agent), gradients, strict=True):
        assert (g - e).norm() <= 1e-5 * e.norm() + 1e-7


def state_of(agent):
    """Everything that an update moves."""
    return [flatten(network.parameters()) for network in agent.networks], agent.networks.optimizer.state()


# Adam divides by the root of the mean square, so rounding errors in small gradients make steps that differ by more than
# the gradients do: a thousandth of the way that 40 to 70 steps of 0.003 go, measured 2e-5 to 2e-4 of it.
def assert_same_way(agent, other, first):
    (networks, adam), (others, other_adam) = state_of(agent), state_of(other)
    for x, y, start in zip(networks, others, first, strict=True):
        assert (y - start).norm() > 0.01
        assert (x - y).norm() <= 1e-3 * (y - start).norm()
    for name, x in adam.items():
        assert torch.allclose(x, other_adam[name], rtol=1e-2, atol=1e-3 * float(other_adam[name].abs().max()))


UPDATES = {
    "PPO": (PPO, {"n_epochs": 5}),
    "ragged": (PPO, {"n_epochs": 5, "batch_size": 27}),
    "norm limited": (PPO, {"n_epochs": 5, "max_grad_norm": 0.05}),
    "slow actor": (PPO, {"n_epochs": 5, "trust_region": All(Clip(), AdaptiveLearningRate(scale=0.1))}),
    "critic alone": (PPO, {"n_epochs": 5, "trust_region": KLConstraint(1e-4, on_exit="stop")}),
    "anew": (PPO, {"n_epochs": 5, "recompute_advantages": True}),
    "TRPO": (TRPO, {}),
    "NPG, ragged": (NPG, {"batch_size": 11}),
}


def updated(policy, update, level):
    """An agent after an update, its parameters before it, and the metrics."""
    agent_class, settings = UPDATES[update]
    settings = {"learning_rate": 3e-3, "fold_normalizer": False} | settings
    agent = agent_of(policy, level, agent_class, actor_hidden_sizes=(16, 8), **settings)
    first = [flatten(network.parameters()).clone() for network in agent.networks]
    return agent, first, agent.update(agent.collector().collect(agent.act, agent.config.n_steps))


in_numpy = cache(partial(updated, level=None))


@with_levels(("policy", "update"), POLICIES, UPDATES)
def test_updates_are_those_of_numpy(level, policy, update):
    (agent, first, metrics), (other, _, expected) = updated(policy, update, level), in_numpy(policy, update)
    assert agent.streams.minibatches.get_state().equal(other.streams.minibatches.get_state())
    assert_same_way(agent, other, first)
    for name in ("train/policy_gradient_loss", "train/value_loss", "train/clip_fraction", "drift/kl"):
        if name in metrics:
            assert metrics[name] == pytest.approx(expected[name], rel=1e-3, abs=1e-5)
    assert metrics["train/stop_reason"] == expected["train/stop_reason"]


@levels
@pytest.mark.parametrize(
    ("what", "value"),
    [(name, x) for name in ("advantage", "returns", "observations") for x in (np.nan, np.inf, -np.inf)]
    + [("log_prob", np.nan), ("log_prob", -np.inf)],  # a ratio of 0 has a gradient of 0
)
def test_a_gradient_that_is_not_finite_is_refused_in_the_words_of_numpy(level, what, value):
    said = []
    for at in (level, None):
        agent = agent_of("gaussian", at, batch_size=16, n_epochs=2, n_envs=2, n_steps=32)
        samples = samples_of(agent, 64)
        getattr(samples, what)[40] = value
        with np.errstate(all="ignore"), pytest.raises(FloatingPointError, match="gradient of") as error:
            agent.improve(None, samples, Callback())
        said.append((str(error.value), agent.networks.optimizer.states[0].steps, *map(flatten, ps(agent))))
    (words, steps, *moved), (in_numpy, numpy_steps, *moved_in_numpy) = said
    where = words.partition(" is ")[0]
    assert where == in_numpy.partition(" is ")[0]
    assert steps == numpy_steps
    assert 0 <= steps < 4
    for x, y in zip(moved, moved_in_numpy, strict=True):
        assert torch.allclose(x, y, atol=1e-6)


def ps(agent):
    return [list(network.parameters()) for network in agent.networks]


def test_without_memory_or_steps_numpy_takes_the_epoch(monkeypatch):
    agents = [agent_of("gaussian", at) for at in (available()[-1], None)]
    monkeypatch.setattr(Kernel, "epoch", lambda *_: np.empty((0, 3)))
    for agent in agents:
        agent.actor.trunk.kernel = agent.critic.trunk.kernel = None  # which rounds otherwise on the whole batch
        agent.update(random_batch(agent))
    assert all(map(torch.equal, *(state_of(agent)[0] for agent in agents)))


class Watching(Callback):
    def __init__(self):
        self.seen = []

    def on_minibatch_end(self, agent, metrics):
        self.seen.append((metrics, agent.networks.actor_parameters.clone()))


@pytest.mark.parametrize("agent_class", [PPO, TRPO])
def test_callbacks_see_every_step_and_change_no_bit(agent_class):
    agents = [agent_of("gaussian", available()[-1], agent_class, batch_size=24) for _ in range(2)]
    watching = Watching()
    updates = [
        agent.update(random_batch(agent), CallbackList([Callback(), watching]) if i else CallbackList([Callback()]))
        for i, agent in enumerate(agents)
    ]
    assert updates[0] == updates[1]
    assert all(map(torch.equal, *(state_of(agent)[0] for agent in agents)))
    assert len(watching.seen) == 10 * 3
    assert np.mean([m["train/value_loss"] for m, _ in watching.seen]) == updates[0]["train/value_loss"]
    between = [x for _, x in watching.seen]
    assert all(torch.equal(x, y) == (agent_class is TRPO) for x, y in pairwise(between))


def test_a_callback_may_take_the_rest_of_an_epoch_out_of_the_kernel():
    class Freezing(Callback):
        def on_minibatch_end(self, agent, metrics):
            seen.append(agent.critic.trunk[0].weight.clone())
            agent.critic.trunk[0].weight.requires_grad_(requires_grad=False)

    agent, seen = agent_of("gaussian", available()[-1]), []
    agent.update(random_batch(agent), Freezing())
    assert kernel_of(agent) is None
    assert len(seen) == 10 * 2
    # Adam goes on along the moments of the first step, by numpy and without a gradient.
    assert not torch.equal(seen[0], seen[1])
    ratios = (seen[2] - seen[1]).norm() / (seen[1] - seen[0]).norm()
    assert ratios < 1.0


def test_a_callback_may_change_settings_within_an_epoch():
    class Lowering(Callback):
        def on_minibatch_end(self, agent, metrics):
            nonlocal seen
            seen += 1
            agent.config = replace(agent.config, batch_size=8, vf_coef=0.01)

    ways = []
    for level in (available()[-1], None):
        agent, seen = agent_of("gaussian", level, batch_size=32, n_epochs=1), 0
        first = [flatten(network.parameters()).clone() for network in agent.networks]
        samples = samples_of(agent, 128, moved=0.0)
        agent.improve(None, samples, Lowering())
        assert seen == 4  # the epoch's minibatches are those that it began with
        ways.append([flatten(network.parameters()) - x for network, x in zip(agent.networks, first, strict=True)])
    for x, y in zip(*ways, strict=True):
        assert (x - y).norm() <= 1e-3 * y.norm()


class Mine(Clip):
    pass


class Lowering(PPO):
    def value_loss(self, samples):
        return super().value_loss(samples)


class Wrapped(PPO):
    @wraps(PPO.descend)
    def descend(self, loss):
        return super().descend(loss)


@dataclass(frozen=True)
class Repelling(Coefficient):
    beta: float = -0.5

    def update(self, kl):
        return self


def changed(how):
    """An agent on the kernel, and what was done to it."""
    special = {
        "subclass of PPO": (type("Own", (PPO,), {}), {}),
        "its own loss": (Lowering, {}),
        "its own loss, wrapped": (Wrapped, {}),
        "its own loss, a property": (type("Property", (PPO,), {"entropy": property(lambda self: None)}), {}),
        "subclass of a region": (PPO, {"trust_region": Mine()}),
        "mirror descent": (PPO, {"trust_region": "mdpo"}),
        "mirror descent, TRPO": (TRPO, {"trust_region": "mdpo"}),
        "beta": (PPO, {"action_distribution": "beta"}),
        "squashed": (PPO, {"action_distribution": "squashed-gaussian"}),
        "repelled": (PPO, {"trust_region": KLPenalty(Repelling())}),
        "three layers": (PPO, {"actor_hidden_sizes": (8, 8, 8)}),
        "shared weight": (PPO, {"actor_hidden_sizes": (8, 8, 8)}),
        "large, plain": (PPO, {"critic_hidden_sizes": (300, 300)}),
    }
    cls, settings = special.get(how, (PPO, {}))
    agent = agent_of("gaussian", "plain" if how == "large, plain" else available()[-1], cls, **settings)
    if how == "frozen weight":
        agent.critic.trunk[0].weight.requires_grad_(requires_grad=False)
    elif how == "frozen std":
        agent.actor.log_std.requires_grad_(requires_grad=False)
    elif how == "own network":
        agent.actor.trunk = nn.Sequential(*agent.actor.trunk)
    elif how == "method of its own":
        agent.descend = agent.descend
    elif how == "method of the policy":
        agent.actor.policy = agent.actor.policy
    elif how == "method of the networks":
        agent.networks.descend = agent.networks.descend
    elif how == "method of the region":
        object.__setattr__(agent.region, "penalty", agent.region.penalty)
    elif how == "shared weight":
        agent.actor.trunk[4].weight = agent.actor.trunk[2].weight
    elif how == "added parameter":
        agent.critic.scale = nn.Parameter(torch.ones(1))
    elif how == "added layer":
        agent.actor.auxiliary = nn.Linear(3, 2)
    agent.networks.repack()
    return agent


@pytest.mark.parametrize(
    ("how", "taken"),
    [
        ("as made", True),
        ("subclass of PPO", True),
        ("mirror descent, TRPO", True),
        ("three layers", True),
        ("its own loss", False),
        ("its own loss, wrapped", False),
        ("its own loss, a property", False),
        ("subclass of a region", False),
        ("mirror descent", False),
        ("beta", False),
        ("squashed", False),
        ("repelled", False),
        ("large, plain", False),
        ("frozen weight", False),
        ("frozen std", False),
        ("own network", False),
        ("method of its own", False),
        ("method of the policy", False),
        ("method of the networks", False),
        ("method of the region", False),
        ("shared weight", False),
        ("added parameter", False),
        ("added layer", False),
    ],
)
def test_which_agents_the_kernel_takes(how, taken):
    agent = changed(how)
    assert (kernel_of(agent) is not None) == taken
    said = agent.describe()["paths"]
    level = agent.networks.kernel.level
    assert (said["critic"] == f"kernel ({level}), derivatives written out") == taken
    assert (said["optimizer"], said["kernel"]) == (f"kernel ({level})" if taken else "numpy", level)
    whole = "torch" if level == "plain" else "kernel"
    assert said["policy"].startswith(whole if isinstance(agent, TRPO) else "kernel" if taken else "numpy")


def test_regions_that_are_known_in_numbers():
    known = {name for name, region in NAMED.items() if arithmetic(region()) is not None}
    unknown = {"truly-ppo", "mdpo", "projection", "w2-projection", "frobenius-projection", "reference-penalty"}
    unknown |= {"reference-forward-penalty", "dppo-kl", "dppo-tv", "r2vpo"}
    assert set(NAMED) - known == unknown


def test_actions_that_are_no_indices_are_left_to_numpy():
    agent = agent_of("categorical", available()[-1])
    samples = samples_of(agent, 64)
    samples.actions[3] = 5
    with pytest.raises(IndexError):
        agent.improve(None, samples, Callback())
