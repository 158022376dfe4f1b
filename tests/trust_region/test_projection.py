"""Projections: inside nothing changes, outside the nearest point of the ball, with the derivative of just that."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
from environments import Noise, box, random_batch, small_agent
from families import MAKE, every_family
from scipy import optimize
from support import BeforeAndAfter, every_space, exactly
from torch import distributions as td

from klrl.agents import PPO, PPOConfig
from klrl.kl import kl_divergence, wasserstein
from klrl.policy.distributions import Categorical, DiagGaussian, SquashedGaussian
from klrl.trust_region import (
    All,
    Change,
    FrobeniusProjection,
    KLConstraint,
    KLProjection,
    TrustRegion,
    WassersteinProjection,
)

STRAIGHT = [WassersteinProjection, FrobeniusProjection]
straight = pytest.mark.parametrize("projection", STRAIGHT, ids=lambda c: c.__name__)


def coordinates(p, old, projection):
    """Where a Gaussian is, seen from the old one, in the space where the ball is one."""
    power = 1 if projection is WassersteinProjection else 2
    shift = (p.mean - old.mean).numpy() / np.exp(old.log_std.numpy())
    return np.concatenate([shift, np.exp(power * (p.log_std - old.log_std).numpy()) - 1.0], -1)


@every_family
@pytest.mark.parametrize("bound", [1e-4, 0.03, 0.5])
def test_a_kl_projection_is_inside_and_is_the_identity_there(family, bound):
    region = KLProjection(state_kl=bound)
    for seed in range(10):
        old, far = MAKE[family](50, seed=2 * seed), MAKE[family](50, seed=2 * seed + 1)
        for step in (1e-3, 0.3, 1.0):
            new = far.with_parameters(
                *(x + step * (y - x) for x, y in zip(old.parameters, far.parameters, strict=True))
            )
            projected = region.project(new, old)
            before, after = kl_divergence(new, old), kl_divergence(projected, old)
            inside = before <= bound
            assert (after <= bound * (1 + 1e-9)).all()
            assert (after[~inside] >= bound * (1 - 1e-6)).all()
            for x, y in zip(projected.parameters, new.parameters, strict=True):
                assert torch.equal(x[inside], y[inside])


@pytest.mark.filterwarnings("ignore:Values in x were outside bounds:RuntimeWarning")  # scipy 1.15, of its own steps
def test_the_kl_projection_of_a_categorical_is_the_nearest_policy_by_a_general_solver():
    for seed in range(5):
        old, new = MAKE[Categorical](1, seed=seed)[0], MAKE[Categorical](1, seed=seed + 20)[0]
        q, p = old.probs.numpy(), new.probs.numpy()

        def kl(x, y):
            return (x * np.log(x / y)).sum()

        found = optimize.minimize(
            lambda x: kl(x, p),  # noqa: B023
            q,
            bounds=[(1e-9, 1.0)] * len(q),
            constraints=[
                {"type": "eq", "fun": lambda x: x.sum() - 1.0},
                {"type": "ineq", "fun": lambda x: 0.05 - kl(x, q)},  # noqa: B023
            ],
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 1000},
        )
        projected = KLProjection(state_kl=0.05).project(*(x.map(lambda z: z[None]) for x in (new, old)))[0]
        np.testing.assert_allclose(projected.probs, found.x, atol=2e-4)
        assert kl(projected.probs.numpy(), p) <= found.fun + 1e-9


def test_the_kl_projection_of_a_gaussian_is_the_nearest_policy_by_a_general_solver():
    for seed in range(5):
        old, new = MAKE[DiagGaussian](1, seed=seed)[0], MAKE[DiagGaussian](1, seed=seed + 20)[0]

        def kl(x, other):
            policy = td.Independent(td.Normal(torch.tensor(x[:2]), torch.tensor(x[2:]).exp()), 1)
            return td.kl_divergence(policy, exactly(other)).item()

        found = optimize.minimize(
            lambda x: kl(x, new),  # noqa: B023
            np.concatenate([old.mean.numpy(), old.log_std.numpy()]),
            constraints=[{"type": "ineq", "fun": lambda x: 0.05 - kl(x, old)}],  # noqa: B023
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 1000},
        )
        projected = KLProjection(state_kl=0.05).project(*(x.map(lambda z: z[None]) for x in (new, old)))[0]
        at = np.concatenate([x.numpy() for x in projected.parameters])
        np.testing.assert_allclose(at, found.x, atol=1e-3)
        assert kl(at, new) <= found.fun + 1e-8


@straight
@pytest.mark.parametrize("squashed", [False, True])
def test_a_straight_projection_is_radial_and_the_identity_inside(projection, squashed):
    region = projection(state_distance=0.3)
    for seed in range(10):
        old, far = MAKE[DiagGaussian](50, seed=2 * seed), MAKE[DiagGaussian](50, seed=2 * seed + 1)
        new = DiagGaussian(old.mean + 0.15 * (far.mean - old.mean), old.log_std + 0.15 * (far.log_std - old.log_std))
        pair = [SquashedGaussian(*r.parameters) if squashed else r for r in (new, old)]
        projected = region.project(*pair)
        assert type(projected) is type(pair[0])
        x, y = (coordinates(DiagGaussian(*r.parameters), old, projection) for r in (new, projected))
        length = np.linalg.norm(x, axis=-1)
        outside = length > 0.3
        assert 0 < outside.sum() < 50
        np.testing.assert_allclose(y[outside], 0.3 * x[outside] / length[outside, None], rtol=1e-9, atol=1e-12)
        for a, b in zip(projected.parameters, new.parameters, strict=True):
            assert torch.equal(a[~outside], b[~outside])


def test_the_wasserstein_ball_is_that_of_the_standardised_normals():
    old, new = MAKE[DiagGaussian](20, seed=0), MAKE[DiagGaussian](20, seed=1)
    projected = WassersteinProjection(state_distance=0.2).project(new, old)
    seen = DiagGaussian((projected.mean - old.mean) / old.std, projected.log_std - old.log_std)
    here = DiagGaussian(torch.zeros_like(old.mean), torch.zeros_like(old.mean))
    torch.testing.assert_close(wasserstein(seen, here), torch.full((20,), 0.2, dtype=torch.float64))


@pytest.mark.parametrize(
    ("region", "family"),
    [(KLProjection(state_kl=0.03), f) for f in MAKE]
    + [
        (WassersteinProjection(state_distance=0.2), DiagGaussian),
        (FrobeniusProjection(state_distance=0.2), DiagGaussian),
    ],
    ids=lambda x: getattr(x, "__name__", type(x).__name__),
)
def test_the_derivative_through_the_projection_is_that_of_finite_differences(region, family):
    old, new = MAKE[family](3, seed=1), MAKE[family](3, seed=2)
    weights = [torch.randn(x.shape, generator=torch.Generator().manual_seed(9), dtype=x.dtype) for x in new.parameters]

    def value(*parameters):
        projected = region.project(new.with_parameters(*parameters), old)
        return sum((w * x).sum() for w, x in zip(weights, projected.parameters, strict=True))

    assert (region.share(new, old) < 1.0).all()
    leaves = [x.clone().requires_grad_() for x in new.parameters]
    gradients = torch.autograd.grad(value(*leaves), leaves)
    h = 1e-4
    for i, (x, g) in enumerate(zip(new.parameters, gradients, strict=True)):
        for k in range(x.numel()):
            bump = torch.zeros_like(x).flatten()
            bump[k] = h
            shifted = [
                value(*(y + s * bump.view_as(y) if j == i else y for j, y in enumerate(new.parameters)))
                for s in (1.0, -1.0)
            ]
            assert g.flatten()[k].item() == pytest.approx(((shifted[0] - shifted[1]) / (2 * h)).item(), abs=2e-4)


@pytest.mark.parametrize("region", [KLProjection(), WassersteinProjection(), FrobeniusProjection()], ids=repr)
def test_the_gain_is_the_surrogate_of_the_projection_less_the_regression(region):
    old, new = MAKE[DiagGaussian](30, seed=1), MAKE[DiagGaussian](30, seed=2)
    action = old.sample(torch.Generator().manual_seed(0))
    advantage = torch.linspace(-1.0, 1.0, 30, dtype=torch.float64)
    change = Change(old, new, action, old.log_prob(action), advantage)
    projected = region.project(new, old)
    ratio = (exactly(projected).log_prob(action) - exactly(old).log_prob(action)).exp()
    expected = ratio * advantage - 10.0 * td.kl_divergence(exactly(new), exactly(projected))
    torch.testing.assert_close(region.surrogate(change), expected)
    (by_mean, _) = region.surrogate_gradient(change)
    assert by_mean.isfinite().all()
    assert by_mean.any()


@pytest.mark.parametrize("region", [KLProjection(), WassersteinProjection(), FrobeniusProjection()], ids=repr)
def test_the_regression_draws_the_network_to_its_projection_and_not_the_projection_to_the_network(region):
    # Without advantages the surrogate is the regression alone: its derivative is that of KL(new||m), m fixed.
    old, new = MAKE[DiagGaussian](30, seed=1), MAKE[DiagGaussian](30, seed=2)
    action = old.sample(torch.Generator().manual_seed(0))
    change = Change(old, new, action, old.log_prob(action), torch.zeros(30, dtype=torch.float64))
    target = region.project(new, old)
    by_mean, by_log_std = region.surrogate_gradient(change)
    variance = (2.0 * target.log_std).exp()
    assert by_mean.abs().max() > 1.0
    torch.testing.assert_close(by_mean, -10.0 * (new.mean - target.mean) / variance)
    torch.testing.assert_close(by_log_std, -10.0 * ((2.0 * new.log_std).exp() / variance - 1.0))


def test_so_does_that_of_a_categorical():
    old, new = MAKE[Categorical](30, seed=1), MAKE[Categorical](30, seed=2)
    action = old.sample(torch.Generator().manual_seed(0))
    change = Change(old, new, action, old.log_prob(action), torch.zeros(30, dtype=torch.float64))
    p, q = new.probs.numpy(), KLProjection().project(new, old).probs.numpy()
    (by_logits,) = KLProjection().surrogate_gradient(change)
    kl = (p * np.log(p / q)).sum(-1, keepdims=True)
    np.testing.assert_allclose(by_logits, -10.0 * p * (np.log(p / q) - kl), rtol=1e-7, atol=1e-9)


FAST = {"learning_rate": 2e-2, "n_epochs": 3, "normalize_observations": False}


@every_space
@pytest.mark.parametrize("region", [KLProjection(state_kl=0.02), All(KLConstraint(1e-3), KLProjection(state_kl=0.02))])
def test_the_policy_that_acts_is_inside_in_every_state_after_every_update(space, region):
    kls, means = [], []
    for seed in range(5):
        measure = BeforeAndAfter(lambda old, new: td.kl_divergence(new, old).max())
        agent = small_agent(PPO, partial(Noise, space), seed, trust_region=region, **FAST).learn(128, callback=measure)
        kls += measure.kls
        means += [m["drift/kl"] for m in agent.history]
    assert max(kls) <= 0.02 * (1 + 1e-4)
    assert isinstance(region, All) or max(kls) > 0.01
    assert isinstance(region, KLProjection) or max(means) <= 1e-3


@straight
def test_straight_projections_hold_on_the_batch_too(projection):
    agent = small_agent(PPO, partial(Noise, box(3)), trust_region=projection(state_distance=0.1), **FAST)
    batch = random_batch(agent)
    old = agent.distribution(batch.observations.flatten(0, 1)).map(torch.Tensor.double)
    metrics = agent.update(batch)
    new = agent.distribution(batch.observations.flatten(0, 1)).map(torch.Tensor.double)
    distance = np.linalg.norm(coordinates(new, old, projection), axis=-1)
    assert 0.05 < distance.max() <= 0.1 * (1 + 1e-4)
    assert metrics["train/stop_reason"] == "projected: back inside in every state"
    assert 0.0 < metrics["train/backtrack_scale"] < 1.0


def test_a_step_inside_is_left_alone():
    metrics = small_agent(PPO, trust_region="projection", learning_rate=1e-6).update(random_batch(small_agent(PPO)))
    assert (metrics["train/backtrack_scale"], metrics["train/stop_reason"]) == (1.0, "all epochs done")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_policies_are_projected_into_the_ball_too(dtype):
    region = KLProjection()
    old = DiagGaussian(torch.zeros(4, 1, dtype=dtype), torch.zeros(4, 1, dtype=dtype))
    mean, log_std = torch.tensor([5e6, 0.0, 0.0, -3.0], dtype=dtype), torch.tensor([0.0, -8.0, 8.0, 20.0], dtype=dtype)
    logits = torch.tensor([[1e8, 0.0], [0.0, 1e5], [-1e8, 1e8]], dtype=dtype)
    pairs = [(DiagGaussian(mean.unsqueeze(-1), log_std.unsqueeze(-1)), old)]
    pairs.append((Categorical(logits), Categorical(torch.zeros_like(logits))))
    for new, before in pairs:
        leaves = new.map(lambda x: x.clone().requires_grad_())
        projected = region.project(leaves, before)
        assert (kl_divergence(projected, before) <= 0.03 * (1 + 1e-5)).all()
        total = sum(x.sum() for x in projected.parameters)
        assert all(g.isfinite().all() for g in torch.autograd.grad(total, leaves.parameters))


@dataclass(frozen=True)
class Hasty(TrustRegion):
    """Lets the actor run away."""

    lr_scale: float = 1e12


@pytest.mark.parametrize("region", [KLProjection(), WassersteinProjection()])
def test_a_policy_that_is_no_number_any_more_is_taken_back(region):
    agent = small_agent(PPO, partial(Noise, box(2)), trust_region=All(region, Hasty()), n_epochs=1, batch_size=64)
    before = agent.networks.actor_parameters.detach().clone()
    metrics = agent.update(random_batch(agent))
    assert torch.equal(agent.networks.actor_parameters, before)
    assert metrics["train/stop_reason"] == "stopped: no step stays inside"


@straight
def test_a_projection_that_does_not_fit_the_policy_is_refused_before_training(projection):
    with pytest.raises(ValueError, match=r"projects a Categorical; allowed: Gaussian policies"):
        PPO("CartPole-v1", PPOConfig(trust_region=projection()))


def test_without_a_projection_the_new_policy_acts():
    new = MAKE[DiagGaussian](3)
    assert TrustRegion().project(new, MAKE[DiagGaussian](3, seed=1)) is new
    assert All(KLConstraint()).project(new, new) is new
