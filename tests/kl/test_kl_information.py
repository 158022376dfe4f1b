"""Mutual information of states and actions: by enumeration, quadrature, at its bounds."""

import math

import numpy as np
import pytest
import torch
from families import DISCRETE, MAKE, discrete_families, heads_of, leaves, normal, randn, seeded
from scipy import stats
from torch import distributions as td

import klrl.kl.information
from klrl.kl import estimate_mutual_information, mutual_information
from klrl.policy.distributions import (
    Bernoulli,
    Beta,
    Categorical,
    DiagGaussian,
    GaussianMixture,
    MultiCategorical,
    NoClosedForm,
    SquashedGaussian,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*the standard error cannot be trusted:RuntimeWarning")

INF, LOG2 = math.inf, math.log(2.0)


def by_enumeration(p):
    """H(mean policy) - mean H(policy) over joint outcomes."""
    joints = []
    for i in np.ndindex(*p.batch_shape):
        joint = np.ones(1)
        for head in heads_of(p[i]):
            joint = np.outer(joint, head).ravel()
        joints.append(joint)
    joints = np.array(joints)
    return stats.entropy(joints.mean(0)) - stats.entropy(joints, axis=-1).mean()


@discrete_families
@pytest.mark.parametrize("batch", [(), (4,), (2, 3)])
def test_it_is_the_entropy_of_the_mean_policy_less_the_mean_entropy(family, batch):
    p = MAKE[family](*batch, seed=1)
    information = mutual_information(p)
    assert information.shape == ()
    assert information.item() == pytest.approx(by_enumeration(p), rel=1e-10, abs=1e-14)
    assert mutual_information(p, base=2).item() == pytest.approx(by_enumeration(p) / LOG2, rel=1e-10, abs=1e-14)
    as_numpy = mutual_information(p.map(lambda x: x.numpy()))
    assert float(as_numpy) == pytest.approx(information.item(), rel=1e-12, abs=1e-14)


def test_the_same_policy_everywhere_says_nothing_and_one_action_per_state_everything():
    same = Categorical(randn(5).expand(7, 5))
    assert mutual_information(same).item() == pytest.approx(0.0, abs=1e-12)
    apart = Categorical(torch.where(torch.eye(4, dtype=torch.bool), 0.0, -INF))
    assert mutual_information(apart).item() == pytest.approx(math.log(4.0))
    assert mutual_information(apart, base=2).item() == pytest.approx(2.0)
    assert mutual_information(td.Categorical(probs=torch.eye(4))).item() == pytest.approx(math.log(4.0))


def test_impossible_actions_give_no_nan_to_values_or_gradients():
    z = torch.tensor([[0.0, -INF, 1.0], [2.0, -INF, -INF], [0.0, -INF, 900.0]])
    p = leaves(Categorical(z))
    information = mutual_information(p)
    information.backward()
    probs = np.exp(z.numpy() - z.numpy().max(-1, keepdims=True))
    probs = probs / probs.sum(-1, keepdims=True)
    expected = stats.entropy(probs.mean(0)) - stats.entropy(probs, axis=-1).mean()
    assert information.item() == pytest.approx(expected, rel=1e-6)
    assert information.dtype == torch.float32
    assert p.logits.grad.isfinite().all()
    bits = leaves(Bernoulli(torch.tensor([[INF, 0.0], [-INF, 0.0]])))
    information = mutual_information(bits)
    information.backward()
    assert information.item() == pytest.approx(LOG2)
    assert bits.logits.grad.isfinite().all()


@discrete_families
def test_gradients_are_those_of_finite_differences(family):
    p = MAKE[family](4, seed=1)
    leaf = p.parameters[0].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: mutual_information(p.with_parameters(x)), (leaf,))


# From samples.
@discrete_families
def test_estimates_are_within_three_standard_errors_of_enumeration(family):
    p = MAKE[family](2, 4, seed=1)
    estimate = estimate_mutual_information(p, 2000, seeded(0))
    assert estimate.value.shape == estimate.stderr.shape == ()
    assert abs(estimate.value.item() - by_enumeration(p)) <= 3.0 * estimate.stderr.item()


@pytest.mark.parametrize("family", [DiagGaussian, SquashedGaussian])
def test_estimates_of_densities_are_within_three_standard_errors_of_quadrature(family):
    """One dimension: H of the mean density less the mean of the normals' entropies; tanh changes nothing."""
    mean, log_std = 1.5 * randn(6, 1, seed=1), 0.3 * randn(6, 1, seed=2)
    x = np.arange(-30.0, 30.0, 0.01)
    mixed = stats.norm.pdf(x[:, None], mean[:, 0], log_std[:, 0].exp()).mean(-1)
    exact = -(mixed * np.log(mixed + 1e-300)).sum() * 0.01 - stats.norm(0, log_std[:, 0].exp()).entropy().mean()
    estimate = estimate_mutual_information(family(mean, log_std), 2000, seeded(0))
    assert 0.0 < estimate.stderr.item() < 0.02
    assert abs(estimate.value.item() - exact) <= 3.0 * estimate.stderr.item()


def test_estimates_stay_within_their_bounds():
    apart = DiagGaussian(1e4 * torch.arange(8.0).unsqueeze(-1), torch.zeros(8, 1))
    assert estimate_mutual_information(apart, 2, seeded(0)).value.item() == pytest.approx(math.log(8.0), rel=1e-6)
    same = DiagGaussian(torch.zeros(8, 3), torch.zeros(8, 3))
    assert estimate_mutual_information(same, 2, seeded(0)).value.item() == pytest.approx(0.0, abs=1e-12)
    mix = GaussianMixture(torch.zeros(8, 2), randn(8, 2, 1), torch.zeros(8, 2, 1, dtype=torch.float64).float().double())
    assert 0.0 <= estimate_mutual_information(mix, 16, seeded(0)).value.item() <= math.log(8.0)


def test_standard_errors_are_the_spread_of_estimates():
    p = MAKE[Beta](10, seed=1)
    runs = [estimate_mutual_information(p, 8, seeded(i)) for i in range(300)]
    spread = torch.stack([r.value for r in runs]).std().item()
    assert torch.stack([r.stderr for r in runs]).mean().item() == pytest.approx(spread, rel=0.15)


def test_chunks_change_nothing(monkeypatch):
    p = MAKE[DiagGaussian](20, seed=1)
    whole = estimate_mutual_information(p, 10, seeded(0))
    monkeypatch.setattr(klrl.kl.information, "CHUNK", 100)
    in_pieces = estimate_mutual_information(p, 10, seeded(0))
    torch.testing.assert_close(in_pieces.value, whole.value, rtol=1e-12, atol=0.0)
    torch.testing.assert_close(in_pieces.stderr, whole.stderr, rtol=1e-12, atol=0.0)


# Refused.
@pytest.mark.parametrize("family", [f for f in MAKE if f not in DISCRETE])
def test_densities_have_no_closed_form(family):
    with pytest.raises(
        NoClosedForm, match=rf"^no closed form .* of {family.__name__}; allowed: estimate_mutual_information"
    ):
        mutual_information(MAKE[family](3))


def test_too_many_outcomes_and_too_few_states_are_refused():
    with pytest.raises(NoClosedForm, match=r"^no closed form .* of Bernoulli with 8192 > 4096 joint outcomes; allowed"):
        mutual_information(Bernoulli(torch.zeros(3, 13)))
    with pytest.raises(NoClosedForm, match=r"MultiCategorical with 4225 > 4096"):
        mutual_information(MultiCategorical(torch.zeros(3, 130), (65, 65)))
    for measure in (mutual_information, estimate_mutual_information):
        with pytest.raises(ValueError, match=r"^a policy at \[0\] states; allowed: at least one state$"):
            measure(Categorical(torch.zeros(0, 3)))
    with pytest.raises(ValueError, match=r"^n = 1; allowed: >= 2 samples$"):
        estimate_mutual_information(normal(0.0, 1.0), 1)
