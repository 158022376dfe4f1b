"""Surrogates of single states against their papers' formulas, written out case by case."""

import itertools
import math

import numpy as np
import pytest
import torch
from environments import Noise, box, small_agent
from torch import distributions as td

from klrl.agents import PPO
from klrl.policy.distributions import Categorical
from klrl.trust_region import (
    SPO,
    All,
    Change,
    Clip,
    KLConstraint,
    KLMask,
    Rollback,
    TotalVariationMask,
    TrulyPPO,
    TrustRegion,
)

PAIRS = list(itertools.product([0.3, 0.79, 0.81, 0.999, 1.001, 1.19, 1.21, 1.4, 3.0], [-2.0, -0.5, 0.5, 2.0]))


def change(pairs=PAIRS):
    """Two actions, the first of them taken with probability 0.3 before and 0.3 r after; p and r by hand."""
    r, A = (np.array(x) for x in zip(*pairs, strict=True))
    old, new = np.full_like(r, 0.3), 0.3 * r
    records = [Categorical(torch.tensor(np.log(np.stack([p, 1.0 - p], -1)))) for p in (old, new)]
    action = torch.zeros(len(r), dtype=torch.int64)
    kl = old * np.log(old / new) + (1.0 - old) * np.log((1.0 - old) / (1.0 - new))
    return Change(*records, action, records[0].log_prob(action), torch.tensor(A)), r, A, kl


def slopes(region, pairs=PAIRS, h=1e-6):
    """d surrogate / d r by central differences, and as the region has it."""
    c, r, _, _ = change(pairs)
    up, down = (region.surrogate(change([(x + s * h, A) for x, A in pairs])[0]).numpy() for s in (1, -1))
    # The logits' gradient (z0, z1) times their derivative by r: z0 = log(0.3 r), z1 = log(1 - 0.3 r).
    (g,) = region.surrogate_gradient(c)
    return (up - down) / (2.0 * h), g[:, 0].numpy() / r - g[:, 1].numpy() * 0.3 / (1.0 - 0.3 * r)


def test_the_clipped_gradient_is_that_of_a_kl_penalty_sample_by_sample():
    """r A + beta log pi(a|s), beta = -r A where the clip acts and 0 elsewhere: a KL(old||new) of its own per sample."""
    for seed in range(20):
        g = torch.Generator().manual_seed(seed)
        old, new = (Categorical(torch.randn(40, 4, generator=g, dtype=torch.float64)) for _ in range(2))
        action = old.sample(g)
        advantage = torch.randn(40, generator=g, dtype=torch.float64)
        c = Change(old, new, action, old.log_prob(action), advantage)
        logits = c.new.logits.clone().requires_grad_()
        log_pi = td.Categorical(logits=logits).log_prob(c.action)
        r, A = (log_pi - c.log_prob).exp(), c.advantage
        acts = ((r > 1.2) & (A > 0)) | ((r < 0.8) & (A < 0))
        beta = torch.where(acts, -r * A, 0.0).detach()
        (expected,) = torch.autograd.grad((r * A + beta * log_pi).sum(), logits)
        (found,) = Clip(0.2).surrogate_gradient(c)
        assert acts.any()
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("eps", [0.1, 0.2])
def test_spo_subtracts_a_parabola_around_the_ratio_one(eps):
    c, r, A, _ = change()
    by_hand = [x * a - abs(a) / (2.0 * eps) * (x - 1.0) * (x - 1.0) for x, a in zip(r, A, strict=True)]
    np.testing.assert_allclose(SPO(eps).surrogate(c), by_hand, rtol=1e-12)


@pytest.mark.parametrize("eps", [0.1, 0.2])
@pytest.mark.parametrize("A", [-2.0, 0.5])
def test_spo_is_largest_at_the_end_of_ppos_interval(eps, A):
    r = np.linspace(0.5, 1.5, 1001)
    best = r[SPO(eps).surrogate(change([(x, A) for x in r])[0]).argmax().item()]
    assert best == pytest.approx(1.0 + math.copysign(eps, A), abs=1e-9)


@pytest.mark.parametrize(("eps", "alpha"), [(0.2, 0.3), (0.1, 2.0)])
def test_rollback_is_the_papers_piecewise_line(eps, alpha):
    c, r, A, _ = change()
    by_hand = []
    for x, a in zip(r, A, strict=True):
        f = x
        if x <= 1.0 - eps:
            f = -alpha * x + (1.0 + alpha) * (1.0 - eps)
        elif x >= 1.0 + eps:
            f = -alpha * x + (1.0 + alpha) * (1.0 + eps)
        by_hand.append(min(x * a, f * a))
    np.testing.assert_allclose(Rollback(eps, alpha).surrogate(c), by_hand, rtol=1e-12)


def test_rollback_falls_only_outside_and_on_the_side_the_advantage_pushes_to():
    _, r, A, _ = change()
    outside = ((r > 1.2) & (A > 0)) | ((r < 0.8) & (A < 0))
    for slope in slopes(Rollback(0.2, 0.3)):
        np.testing.assert_allclose(slope, np.where(outside, -0.3 * A, A), rtol=1e-6)


@pytest.mark.parametrize(("delta", "alpha"), [(0.03, 5.0), (0.001, 0.4)])
def test_truly_ppo_takes_the_kl_beyond_its_bound_where_the_surrogate_gained(delta, alpha):
    c, r, A, kl = change()
    paper = [
        x * a - alpha * (d if d >= delta and x * a >= a else delta) for x, a, d in zip(r, A, kl, strict=True)
    ]  # shifted by a constant
    np.testing.assert_allclose(
        TrulyPPO(delta, alpha).surrogate(c), np.array(paper) + alpha * delta, rtol=1e-9, atol=1e-12
    )
    counts = (kl >= delta) & (r * A >= A)
    assert counts.any()
    assert (~counts & (kl >= delta)).any()
    d_kl = 0.3 * (-1.0 / r + 0.7 / (1.0 - 0.3 * r))  # d KL / d r, with new = 0.3 r
    for slope in slopes(TrulyPPO(delta, alpha)):
        np.testing.assert_allclose(slope, A - np.where(counts, alpha * d_kl, 0.0), rtol=1e-5, atol=1e-8)


def test_truly_ppo_stays_continuous_where_a_state_leaves_its_bound():
    _, r, _, kl = change([(x, 1.0) for x in np.linspace(1.0, 1.8, 8001)])
    (at,) = np.flatnonzero(np.diff(kl >= 0.03))
    near = TrulyPPO().surrogate(change([(r[at], 1.0), (r[at + 1], 1.0)])[0])
    assert abs(float(near[1] - near[0])) < 1e-3


@pytest.mark.parametrize("region", [SPO(), Rollback(), TrulyPPO()], ids=repr)
def test_a_gain_bounds_nothing_and_can_be_joined_with_what_does(region):
    c, *_ = change()
    assert (region.violation(c), region.step_length(1.0), region.on_exit) == (-math.inf, math.inf, None)
    assert (region.penalty(c), region.target_kl, region.beta, region.lr_scale) == (0.0, None, None, 1.0)
    joined = All(KLConstraint(0.01), region, TrustRegion())
    assert torch.equal(joined.surrogate(c), region.surrogate(c))
    for other in (Clip(), region):
        with pytest.raises(ValueError, match=r"at most one region with a surrogate of its own, as"):
            All(region, other)


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: SPO(0.0), "^clip_range = 0.0; allowed: a number > 0$"),
        (lambda: Rollback(0.2, -0.3), "^rollback_slope = -0.3; allowed: a number > 0$"),
        (lambda: TrulyPPO(math.nan), "^state_kl = nan; allowed: a number > 0$"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(build, text):
    with pytest.raises(ValueError, match=text):
        build()


def test_dppo_drops_the_samples_that_drive_a_state_out_of_its_divergence_and_keeps_those_that_lead_back():
    c, r, A, kl = change()
    tv = np.abs(0.3 - 0.3 * r)
    for region, distance, bound in ((KLMask(0.02), kl, 0.02), (TotalVariationMask(0.05), tv, 0.05)):
        by_hand, expected = [], []
        for x, a, d in zip(r, A, distance, strict=True):
            outwards = (x > 1.0 and a > 0.0) or (x < 1.0 and a < 0.0)
            dropped = outwards and d > bound
            by_hand.append(a if dropped else x * a)
            expected.append(0.0 if dropped else a)
        assert 0.0 in expected
        assert ((distance > bound) & (np.array(expected) != 0.0)).any()
        np.testing.assert_allclose(region.surrogate(c), by_hand, rtol=1e-12)
        differences, derivative = slopes(region)
        np.testing.assert_allclose(derivative, expected, rtol=1e-9)
        np.testing.assert_allclose(differences, expected, rtol=1e-6, atol=1e-6)


def test_total_variation_is_refused_in_one_line_where_it_has_no_closed_form():
    with pytest.raises(ValueError, match=r"^trust_region = 'dppo-tv' with a .* DiagGaussian; allowed: ") as error:
        small_agent(PPO, lambda: Noise(box(2)), trust_region="dppo-tv+constraint")
    assert "\n" not in str(error.value)
