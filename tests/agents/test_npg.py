"""NPG takes the natural gradient's step as it is; and what it shares with TRPO: damping, tolerance, preconditioner."""

import copy
import math
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
from environments import Noise, box, random_batch, small_agent
from support import every_space, exactly, parameters, policy, same
from torch.func import functional_call

import klrl.agents.natural_gradient
from klrl.agents import NPG, TRPO, NPGConfig, TRPOConfig
from klrl.trust_region import REGIONS, All, KLConstraint, TrustRegion

family = pytest.mark.parametrize("agent_class", [TRPO, NPG])
envs = pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
TO_THE_END = {"cg_max_steps": 200, "cg_tolerance": 1e-6}


def update(agent, **options):
    """The metrics of one update with a batch made by hand, and how the policy's parameters moved."""
    (before,) = policy(agent)
    metrics = agent.update(random_batch(agent, **options))
    return metrics, agent.networks.actor_parameters.detach() - before


def fisher_and_gradient(agent, samples):
    """Both dense, in float64, by autograd through torch.distributions: F = E[J' M J], g = E[A d log pi]."""
    names, shapes = zip(*((n, p.shape) for n, p in agent.actor.named_parameters()), strict=True)
    actor, x = copy.deepcopy(agent.actor).double(), samples.observations.double()

    def record(theta):
        parts = theta.split([s.numel() for s in shapes])
        values = {n: v.view(s) for n, v, s in zip(names, parts, shapes, strict=True)}
        return functional_call(actor, values, (x,))

    theta = agent.networks.actor_parameters.detach().double()
    old = exactly(record(theta))
    hessian = torch.autograd.functional.hessian(
        lambda v: torch.distributions.kl_divergence(old, exactly(record(v))).mean(), theta
    )
    surrogate = lambda v: (exactly(record(v)).log_prob(samples.actions) * samples.advantage).mean()  # noqa: E731
    return hessian, torch.autograd.functional.jacobian(surrogate, theta)


@envs
@pytest.mark.parametrize("damping", [0.1, 1.0])
@pytest.mark.parametrize("preconditioner", ["none", "diagonal"])
def test_the_step_is_the_dense_natural_gradient_with_the_length_of_the_kl(env, damping, preconditioner):
    settings = TO_THE_END | {
        "cg_damping": damping,
        "cg_preconditioner": preconditioner,
        "target_kl": 0.02,
        "scale_rewards": False,
        "normalize_observations": False,
    }
    agent = small_agent(NPG, env, **settings)
    F, g = fisher_and_gradient(agent, agent.prepare(random_batch(agent)))
    agent = small_agent(NPG, env, **settings)
    x = torch.linalg.solve(F + damping * torch.eye(len(g)), g)
    metrics, step = update(agent)
    expected = (2 * 0.02 / (x @ F @ x)).sqrt() * x
    assert (step - expected).norm() < 1e-3 * expected.norm()
    assert metrics["train/kl_predicted"] == pytest.approx(0.02, rel=1e-3)
    share = damping * x @ x / (x @ F @ x + damping * x @ x)
    assert metrics["train/damping_share"] == pytest.approx(share.item(), rel=1e-3)
    assert metrics["train/stop_reason"] == "accepted"


@every_space
def test_npg_predicts_the_kl_of_a_small_step(space):
    metrics, _ = update(small_agent(NPG, partial(Noise, space), target_kl=1e-6, cg_damping=1e-3), n_steps=128)
    assert metrics["train/kl_predicted"] == pytest.approx(1e-6, rel=1e-4)
    assert metrics["drift/kl"] == pytest.approx(1e-6, rel=0.1)


def test_a_target_is_an_aim_of_npg_and_a_bound_of_trpo():
    beyond, inside = (update(small_agent(cls, "Pendulum-v1", target_kl=1.0))[0] for cls in (NPG, TRPO))
    assert inside["drift/kl"] <= 1.0 < beyond["drift/kl"]
    assert beyond["train/kl_predicted"] == pytest.approx(1.0, rel=1e-4)


def test_where_trpo_takes_the_whole_step_npg_takes_the_same():
    pairs = ([update(small_agent(cls, target_kl=1e-5, seed=seed)) for cls in (TRPO, NPG)] for seed in range(9))
    equal = [torch.equal(step, other) for (m, step), (_, other) in pairs if m["train/line_search_scale"] == 1.0]
    assert len(equal) > 2
    assert all(equal)


def test_a_penalty_gives_npg_the_length_one_over_beta():
    steps = [update(small_agent(NPG, trust_region="fixed-penalty", kl_coef=beta))[1] for beta in (10.0, 40.0)]
    assert steps[0].norm() > 0.0
    torch.testing.assert_close(steps[0], 4.0 * steps[1], rtol=1e-3, atol=1e-6)


def test_only_trpo_reports_a_line_search():
    ours, theirs = (set(update(small_agent(cls))[0]) for cls in (NPG, TRPO))
    assert theirs - ours == {"train/line_search_scale", "train/line_search_tries"}
    assert ours < theirs


@dataclass(frozen=True)
class Far(TrustRegion):
    """A region that asks for a step to where there are no numbers."""

    length: float

    def step_length(self, curvature):
        return self.length


@pytest.mark.parametrize("length", [1e30, 1e60], ids=["KL", "parameters"])
def test_npg_takes_no_step_to_where_there_are_no_numbers_and_says_so(length):
    agent = small_agent(NPG, "Pendulum-v1", trust_region=Far(length))
    before = parameters(agent)
    metrics, step = update(agent)
    assert not step.any()
    assert not same(parameters(agent), before)  # the critic learns
    assert metrics["train/stop_reason"] == "rejected: KL or parameters not finite"
    assert metrics["train/kl_predicted"] == metrics["drift/kl"] == 0.0


@family
def test_without_any_advantage_the_policy_stays_and_says_why(agent_class):
    agent = small_agent(agent_class, partial(Noise, box(2)), normalize_advantage=False, gamma=0.0)
    before = policy(agent)
    for parameter in agent.critic.parameters():
        parameter.data.zero_()
    metrics = agent.update(replace(random_batch(agent), rewards=torch.zeros(32, 2)))
    assert same(policy(agent), before)
    assert metrics["train/stop_reason"] == "rejected: right-hand side is zero or not finite"
    assert metrics["train/kl_predicted"] == 0.0
    assert math.isnan(metrics["train/damping_share"])


@family
@envs
def test_more_damping_has_more_of_a_share_and_none_has_none(agent_class, env):
    shares = [update(small_agent(agent_class, env, cg_damping=d))[0]["train/damping_share"] for d in (0.0, 0.01, 1.0)]
    assert 0.0 == shares[0] < shares[1] < shares[2] < 1.0


@family
@envs
def test_conjugate_gradient_ends_at_the_tolerance(agent_class, env):
    steps, residuals = [], []
    for tolerance in (0.5, 0.1, 1e-3):
        metrics, _ = update(small_agent(agent_class, env, cg_tolerance=tolerance))
        assert metrics["train/cg_residual"] < tolerance
        steps.append(metrics["train/cg_steps"])
        residuals.append(metrics["train/cg_residual"])
    assert steps[0] < steps[1] < steps[2]
    assert residuals[0] > residuals[1] > residuals[2]


@family
@envs
def test_the_preconditioner_changes_the_way_and_not_the_step(agent_class, env):
    (plain, step), (other, same_step) = (
        update(small_agent(agent_class, env, cg_preconditioner=choice, cg_max_steps=100, cg_tolerance=1e-5))
        for choice in ("none", "diagonal")
    )
    assert (step - same_step).norm() < 1e-3 * step.norm()
    assert other["train/cg_residual"] != plain["train/cg_residual"]
    assert other["train/cg_residual"] < 1e-5


@pytest.mark.parametrize(("every", "batch_size"), [(1, None), (3, None), (3, 5)])
def test_the_diagonal_is_that_of_the_samples_that_the_fisher_products_see(monkeypatch, every, batch_size):
    calls, original = [], klrl.agents.natural_gradient.fisher_diagonal

    def watched(linearize, observations, actions, **options):
        calls.append((len(observations), len(actions), options))
        return original(linearize, observations, actions, **options)

    monkeypatch.setattr(klrl.agents.natural_gradient, "fisher_diagonal", watched)
    settings = {"sub_sampling_factor": every, "fisher_batch_size": batch_size}
    update(small_agent(NPG, **settings))
    assert calls == []
    update(small_agent(NPG, cg_preconditioner="diagonal", **settings))
    n = math.ceil(64 / every)
    assert calls == [(n, n, {"batch_size": batch_size})]


@every_space
def test_preconditioned_training_in_every_space_converges(space):
    agent = small_agent(NPG, partial(Noise, space), cg_preconditioner="diagonal", cg_max_steps=50, cg_tolerance=0.01)
    agent.learn(256)
    assert all(metrics["train/cg_residual"] < 0.01 for metrics in agent.history)
    assert all(metrics["train/stop_reason"] == "accepted" for metrics in agent.history)


@pytest.mark.parametrize("config_class", [TRPOConfig, NPGConfig])
def test_a_preconditioner_needs_damping(config_class):
    with pytest.raises(ValueError, match=r"^cg_preconditioner = 'diagonal'; allowed: 'none' where cg_damping = 0"):
        config_class(cg_preconditioner="diagonal", cg_damping=0.0)
    with pytest.raises(ValueError, match=r"^cg_preconditioner = 'jacobi'; allowed: "):
        config_class(cg_preconditioner="jacobi")


@pytest.mark.parametrize("region", ["constraint+espo", "clip+constraint", All(KLConstraint(), REGIONS["rollback"]())])
def test_npg_refuses_regions_that_would_change_nothing(region):
    with pytest.raises(ValueError, match=r"^trust_region = .*; allowed for NPG: no surrogate of its own and no bound "):
        NPGConfig(trust_region=region)
    assert TRPOConfig(trust_region=region).region


@pytest.mark.parametrize("region", ["none", "clip", "espo", "adaptive-lr"])
def test_npg_refuses_regions_that_give_no_length(region):
    with pytest.raises(
        ValueError, match=r"^trust_region = .*; allowed for NPG: early-stop, constraint, .*fixed-penalty"
    ):
        NPGConfig(trust_region=region)


@pytest.mark.parametrize("agent_class", [NPG, TRPO])
def test_the_fisher_matrix_sees_every_environment_whatever_its_thinning(monkeypatch, agent_class):
    seen, original = [], klrl.agents.natural_gradient.FisherVectorProduct

    def watched(linearize, observations, *settings):
        seen.append(observations)
        return original(linearize, observations, *settings)

    monkeypatch.setattr(klrl.agents.natural_gradient, "FisherVectorProduct", watched)
    for every in (1, 2, 4, 8):
        agent = small_agent(agent_class, n_envs=4, n_steps=16, sub_sampling_factor=every, normalize_observations=False)
        batch = random_batch(agent, n_steps=16)
        numbered = torch.arange(4.0).reshape(1, 4, 1).expand_as(batch.observations).contiguous()
        agent.update(replace(batch, observations=numbered, behaviour=agent.distribution(numbered)))
        states = seen.pop()[:, 0].long()
        assert torch.bincount(states, minlength=4).tolist() == [16 // every] * 4
