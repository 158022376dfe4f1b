"""Geometric mixtures and temperatures: densities p^t q^(1 - t) and p^(1 / T) up to a constant, in every family."""

import math

import pytest
import torch
from families import MAKE, every_family, mixture

from klrl.kl import geometric_mixture, kl_divergence, tempered
from klrl.policy.distributions import Bernoulli, Beta, Categorical, DiagGaussian, NoClosedForm, SquashedGaussian


@every_family
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_the_log_density_is_the_weighted_mean_of_the_two_up_to_a_constant(family, share):
    p, q = MAKE[family](4, seed=1), MAKE[family](4, seed=2)
    m = geometric_mixture(p, q, share)
    assert type(m) is family
    action = p.map(lambda x: x.expand(50, *x.shape)).sample(torch.Generator().manual_seed(0))
    log_m, log_p, log_q = (d.map(lambda x: x.expand(50, *x.shape)).log_prob(action) for d in (m, p, q))
    constant = log_m - (share * log_p + (1 - share) * log_q)
    torch.testing.assert_close(constant, constant[:1].expand_as(constant), rtol=1e-9, atol=1e-9)
    assert (constant >= -1e-9).all()  # Hölder: the normalising integral is at most 1


@every_family
def test_every_state_has_its_own_share_and_the_kl_from_q_grows_with_it(family):
    p, q = MAKE[family](1, seed=3), MAKE[family](1, seed=4)
    shares = torch.linspace(0.0, 1.0, 21, dtype=torch.float64)
    path = geometric_mixture(p.map(lambda x: x.expand(21, *x.shape[1:])), q, shares)
    kl = kl_divergence(path, q)
    assert kl[0] == pytest.approx(0.0, abs=1e-12)
    assert (kl.diff() > 0.0).all()
    assert kl[-1].item() == pytest.approx(kl_divergence(p, q).item(), rel=1e-9)


def test_what_is_impossible_in_one_of_them_is_impossible_on_the_way():
    p = Categorical(torch.tensor([0.0, -math.inf, 1.0, 2.0]))
    q = Categorical(torch.tensor([0.0, -math.inf, -math.inf, 1.0]))
    m = geometric_mixture(p, q, 0.5)
    torch.testing.assert_close(m.probs, torch.softmax(torch.tensor([0.0, -math.inf, -math.inf, 1.5]), -1))
    always = Bernoulli(torch.tensor([math.inf, 0.0]))
    torch.testing.assert_close(geometric_mixture(always, always, 0.3).probs, always.probs)


def test_shares_outside_of_the_interval_and_other_families_are_refused():
    p = Categorical(torch.zeros(2))
    with pytest.raises(ValueError, match=r"^share = 1.5; allowed: numbers in \[0, 1\]$"):
        geometric_mixture(p, p, 1.5)
    with pytest.raises(NoClosedForm, match="geometric mixture"):
        geometric_mixture(mixture(2), mixture(2), 0.5)


@every_family
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_log_density_at_a_temperature_is_its_part_up_to_a_constant(family, temperature):
    p = MAKE[family](4, seed=1)
    if family is Beta:
        p = Beta(*(1.0 + x for x in p.parameters))  # else a power need not have an integral
    m = tempered(p, temperature)
    assert type(m) is family
    if family is SquashedGaussian:  # tempered before its tanh
        p, m = (DiagGaussian(*x.parameters) for x in (p, m))
    action = p.map(lambda x: x.expand(50, *x.shape)).sample(torch.Generator().manual_seed(0))
    log_m, log_p = (d.map(lambda x: x.expand(50, *x.shape)).log_prob(action) for d in (m, p))
    constant = log_m - log_p / temperature
    torch.testing.assert_close(constant, constant[:1].expand_as(constant), rtol=1e-9, atol=1e-9)
    assert ((m.entropy() - p.entropy()).sign() == math.copysign(temperature != 1.0, temperature - 1.0)).all()


def test_temperatures_that_there_are_not_are_refused():
    for wrong in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match=r"^temperature = .*; allowed: a finite number > 0$"):
            tempered(Categorical(torch.zeros(2)), wrong)
    with pytest.raises(
        ValueError, match=r"^temperature = 0.1; allowed: one for which p\^\(1 / temperature\) has an integral"
    ):
        tempered(Beta(torch.tensor([0.5]), torch.tensor([2.0])), 0.1)
    with pytest.raises(NoClosedForm, match="tempered"):
        tempered(mixture(2), 0.5)
    impossible = tempered(Categorical(torch.tensor([0.0, -math.inf, 1.0])), 0.5)
    torch.testing.assert_close(impossible.probs, torch.softmax(torch.tensor([0.0, -math.inf, 2.0]), -1))
