"""Whole batches by the kernel: outputs, gradient and Fisher products against autograd in float64."""

from copy import deepcopy

import pytest
import torch
from test_epochs import POLICIES, agent_of, in_torch, samples_of
from torch.func import functional_call

from klrl.agents import TRPO
from klrl.native import available
from klrl.policy.distributions import Categorical, DiagGaussian
from klrl.policy.linearization import flatten
from klrl.policy.paths import evaluates_in_kernel
from klrl.trust_region import FisherVectorProduct

LEVELS = [level for level in available() if level != "plain"]
levels = pytest.mark.parametrize("level", LEVELS)
policies = pytest.mark.parametrize("policy", POLICIES)
pytestmark = pytest.mark.skipif(not LEVELS, reason="the kernel was not built, or is slower than BLAS here")


def made(policy, level, rows):
    agent = agent_of(policy, level, TRPO, actor_hidden_sizes=(6, 5), n_features=4)
    return agent, samples_of(agent, rows, moved=0.0)


def policy_of(agent, x):
    """The policy at observations as a function of theta, in float64."""
    actor = deepcopy(agent.actor).double()
    names, shapes = zip(*((name, p.shape) for name, p in actor.named_parameters()), strict=True)

    def at(theta):
        parts = theta.split([shape.numel() for shape in shapes])
        values = {name: part.view(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
        return functional_call(actor, values, (x.double(),))

    return at, flatten(agent.actor.parameters()).detach().double()


def kl_in_torch(old, new):
    if isinstance(old, DiagGaussian):
        return torch.distributions.kl_divergence(in_torch(old), in_torch(new))
    possible = old.logits > -torch.inf
    log_p, log_q = (torch.where(possible, in_torch(x).logits, 0.0) for x in (old, new))
    return (in_torch(old).probs * (log_p - log_q)).sum(-1)


@levels
@policies
@pytest.mark.parametrize("rows", [16, 150])
def test_the_surrogates_gradient_is_that_of_autograd(level, policy, rows):
    agent, samples = made(policy, level, rows)
    at, theta = policy_of(agent, samples.observations)
    theta.requires_grad_()
    actions = samples.actions if isinstance(samples.old, Categorical) else samples.actions.double()
    ratio = (in_torch(at(theta)).log_prob(actions) - samples.log_prob.double()).exp()
    surrogate = (ratio * samples.advantage.double()).mean()
    (expected,) = torch.autograd.grad(surrogate, theta)
    with torch.no_grad():
        assert agent.actor.trunk.in_kernel(samples.observations[:, :4])
        value, g = agent.policy_gradient(samples)
    assert value == pytest.approx(surrogate.item(), abs=1e-6)
    assert (g - expected).norm() <= 3e-6 * expected.norm()


@levels
@policies
@pytest.mark.parametrize(("rows", "batch_size"), [(16, None), (150, None), (150, 64)])
def test_fisher_products_are_those_of_the_dense_matrix(level, policy, rows, batch_size):
    agent, samples = made(policy, level, rows)
    at, theta = policy_of(agent, samples.observations)
    old = at(theta).detach()
    F = torch.autograd.functional.hessian(lambda v: kl_in_torch(old, at(v)).mean(), theta)
    v = torch.randn(3, len(theta), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        product = FisherVectorProduct(agent.actor.linearize, samples.observations, 0.1, batch_size)
        for x in v:
            expected = F @ x.double() + 0.1 * x.double()
            assert (product(x) - expected).norm() <= 3e-6 * expected.norm()


@levels
def test_only_whole_batches_without_a_graph_are_the_kernels(level):
    agent, samples = made("gaussian", level, 64)
    trunk, x = agent.critic.trunk, samples.observations
    assert not trunk.in_kernel(x)
    with_graph = trunk(x)
    assert with_graph.requires_grad
    with torch.no_grad():
        assert trunk.in_kernel(x)
        assert torch.allclose(trunk(x), with_graph, rtol=1e-5, atol=1e-6)
        assert torch.equal(trunk(x.reshape(4, 16, 4)), trunk(x).reshape(4, 16, 1))
        for other in (x[:15], x.double(), x.numpy()):
            assert not trunk.in_kernel(other)
        copied = deepcopy(trunk)
        assert copied.kernel is None
        assert torch.allclose(copied(x), trunk(x), rtol=1e-5, atol=1e-6)
        agent.networks.kernel = None
        assert not trunk.in_kernel(x)


@levels
def test_outputs_follow_the_parameters_wherever_they_are(level):
    agent, samples = made("gaussian", level, 64)
    trunk, x = agent.critic.trunk, samples.observations
    with torch.no_grad():
        first = trunk(x)
        trunk[-1].bias += 1.0
        assert torch.allclose(trunk(x), first + 1.0, atol=1e-6)
        trunk[-1].bias.data = trunk[-1].bias + 1.0  # memory of its own
        assert not trunk.in_kernel(x)
        assert torch.allclose(trunk(x), first + 2.0, atol=1e-6)
        agent.networks.repack()
        assert trunk.in_kernel(x)
        assert torch.allclose(trunk(x), first + 2.0, atol=1e-6)


def test_wide_layers_and_large_batches_for_several_threads_are_left_to_torch(monkeypatch):
    class At:
        level = LEVELS[-1]

    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert evaluates_in_kernel(At, 10**6, 2**16)
    assert not evaluates_in_kernel(At, 10**6, 2**16 + 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert evaluates_in_kernel(At, 2**12, 2**12)
    assert not evaluates_in_kernel(At, 2**12 + 1, 2**12)
