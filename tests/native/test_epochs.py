"""The kernel's steps against autograd in float64, and whole updates against those of the numpy path."""

from copy import deepcopy
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from environments import Sampling, small_agent
from torch import distributions as td
from torch import nn

from klrl.agents import PPO
from klrl.agents.epochs import Terms, begin
from klrl.agents.update_batch import UpdateBatch
from klrl.native import at_level, available
from klrl.policy.distributions import Categorical
from klrl.policy.linearization import flatten
from klrl.run import Callback
from klrl.trust_region import SPO, Adaptive, All, Clip, Fixed, KLPenalty, Rollback, TrustRegion

levels = pytest.mark.parametrize("level", available())
pytestmark = pytest.mark.skipif(not available(), reason="the kernel was not built")

BOX, CHOICES = gym.spaces.Box(-1.0, 1.0, (3,), np.float32), gym.spaces.Discrete(5)
POLICIES = {
    "gaussian": (BOX, None, {"log_std_init": -0.4}),
    "gaussian with a std of states": (BOX, None, {"state_dependent_std": True, "log_std_init": -0.4}),
    "categorical": (CHOICES, None, {}),
    "masked": (CHOICES, "info", {}),
}
policies = pytest.mark.parametrize("policy", POLICIES)
REGIONS = {
    "none": TrustRegion(),
    "clip": Clip(0.2),
    "spo": SPO(0.15),
    "rollback": Rollback(0.1, 0.4),
    "penalty": KLPenalty(Fixed(3.0)),
    "clip and penalties": All(Clip(0.2), KLPenalty(Fixed(1.0)), KLPenalty(Adaptive(beta=2.0))),
}


def agent_of(policy, level, agent_class=PPO, n_features=7, seed=0, **settings):
    """An agent on the kernel at a level, or on numpy."""
    space, masks, options = POLICIES[policy]
    observations = gym.spaces.Box(-np.inf, np.inf, (n_features,), np.float32)
    agent = small_agent(agent_class, partial(Sampling, observations, space, masks=masks), seed, **options, **settings)
    agent.networks.kernel = level and at_level(level)
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
    metrics, left = begin(agent, samples, terms, Callback())
    assert not list(left)
    return metrics


# A sum of n float32 products is off by at most n 6e-8 of the sum of their sizes, on average by sqrt(n) 6e-8; some
# hundred rows and weights make that 1e-6 of the norm.
@levels
@policies
@pytest.mark.parametrize("region", REGIONS.values(), ids=REGIONS)
@pytest.mark.parametrize("ent_coef", [0.0, 0.03])
def test_a_step_is_that_of_the_gradient_by_autograd(level, policy, region, ent_coef):
    settings = {"trust_region": region, "ent_coef": ent_coef, "vf_coef": 0.7, "max_grad_norm": 1e6}
    agent = agent_of(policy, level, batch_size=64, **settings)
    samples = samples_of(agent, 64)
    expected, gradients = by_autograd(agent, samples)
    (metrics,) = step(agent, samples)
    assert list(metrics.values()) == pytest.approx(expected, rel=2e-5, abs=2e-6)
    for g, e in zip(first_gradients(agent), gradients, strict=True):
        assert (g - e).norm() <= 3e-6 * e.norm()
