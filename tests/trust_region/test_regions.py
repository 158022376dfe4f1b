"""Trust regions: each hook against numpy, and the rules by which regions are combined."""

import dataclasses
import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support import GAUSSIAN_ONLY, NEEDS_REFERENCE

from klrl.policy.distributions import Categorical
from klrl.trust_region import REGIONS as NAMES
from klrl.trust_region import (
    SPO,
    Adaptive,
    AdaptiveLearningRate,
    All,
    Change,
    Clip,
    Dual,
    Fixed,
    KLConstraint,
    KLMask,
    KLPenalty,
    KLProjection,
    MirrorDescent,
    NextStateConstraint,
    Proportional,
    RatioDeviation,
    RatioVariancePenalty,
    ReferenceConstraint,
    ReferenceForwardConstraint,
    ReferenceForwardPenalty,
    ReferencePenalty,
    Rollback,
    TotalVariationMask,
    TrulyPPO,
    TrustRegion,
    region_from_name,
)

N = 50


def change(step=0.5, n=N):
    """A real change of a categorical policy, with actions drawn from the old one, in float64."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, n, 4, generator=g, dtype=torch.float64)
    old, new = Categorical(x[0]), Categorical(x[0] + step * x[1])
    action = old.sample(g)
    advantage = torch.randn(n, generator=g, dtype=torch.float64)
    return Change(old, new, action, old.log_prob(action), advantage)


def ratios(log_ratio, advantage):
    """A change of which only the ratio and the advantage matter."""
    here = Categorical(torch.zeros(len(log_ratio), 2, dtype=torch.float64))
    action = torch.zeros(len(log_ratio), dtype=torch.int64)
    return Change(here, here, action, here.log_prob(action) - log_ratio, advantage)


def numpy_kl(c):
    p, q = (np.exp(z) / np.exp(z).sum(-1, keepdims=True) for z in (c.old.logits.numpy(), c.new.logits.numpy()))
    return (p * np.log(p / q)).sum(-1), (q * np.log(q / p)).sum(-1)


REGIONS = [
    *(region_from_name(name) for name in NAMES if name not in GAUSSIAN_ONLY | NEEDS_REFERENCE),
    SPO(0.1),
    Rollback(0.1, 2.0),
    TrulyPPO(0.001, 2.0),
    RatioDeviation(0.1),
    KLPenalty(Fixed(3.0)),
    KLProjection(state_kl=0.001),
    KLMask(0.001),
    TotalVariationMask(0.01),
    RatioVariancePenalty(beta=3.0),
    MirrorDescent(kl_coef=2.0, progress_remaining=0.5),
    NextStateConstraint(next_kl=0.1, scale=0.25),
    All(Clip(0.2), KLPenalty(Adaptive(target_kl=0.01)), KLConstraint(0.1)),
    All(AdaptiveLearningRate(target_kl=0.01), SPO(0.2), RatioDeviation(0.1)),
    All(),
]
every_region = pytest.mark.parametrize("region", REGIONS, ids=repr)


def test_a_change_knows_its_ratio_and_both_directions_of_its_kl():
    c = change()
    forward, reverse = numpy_kl(c)
    np.testing.assert_allclose(c.ratio, np.exp(c.log_ratio.numpy()), rtol=1e-12)
    np.testing.assert_allclose(c.kl, forward, rtol=1e-10)
    np.testing.assert_allclose(c.kl_reverse, reverse, rtol=1e-10)
    assert c.kl is c.kl


def test_the_plain_trust_region_limits_nothing():
    c, region = change(), TrustRegion()
    np.testing.assert_allclose(region.surrogate(c), np.exp(c.log_ratio.numpy()) * c.advantage.numpy(), rtol=1e-12)
    assert (region.penalty(c), region.violation(c), region.step_length(1.0)) == (0.0, -math.inf, math.inf)
    assert (region.on_exit, region.target_kl, region.clip_range, region.beta) == (None, None, None, None)
    assert region.adapt(c) is region


@every_region
def test_hooks_are_pure(region):
    c, before = change(), repr(region)
    first, second = ((region.surrogate(c), region.penalty(c), region.violation(c), region.adapt(c)) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(torch.as_tensor(first[1]), torch.as_tensor(second[1]))
    assert first[2:] == second[2:]
    assert repr(region) == before


@every_region
def test_regions_cannot_be_changed(region):
    for f in dataclasses.fields(region):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(region, f.name, 1.0)


@every_region
def test_before_the_first_step_the_gain_is_the_advantage_and_nothing_else_acts(region):
    c = change(step=0.0)
    assert torch.equal(region.surrogate(c), c.advantage)
    assert not torch.as_tensor(region.penalty(c)).any()
    assert region.violation(c) < 0.0


@every_region
def test_the_gain_of_every_region_starts_with_the_policy_gradient(region):
    log_ratio = torch.zeros(N, dtype=torch.float64, requires_grad=True)
    c = ratios(log_ratio, change().advantage)
    region.surrogate(c).sum().backward()
    torch.testing.assert_close(log_ratio.grad, c.advantage)  # d (r A) / d log r = A at r = 1


# Clip.
@pytest.mark.parametrize("eps", [0.05, 0.2, 0.5, 2.0])
def test_clip_is_the_smaller_of_the_plain_and_the_clipped_surrogate(eps):
    c = change(step=1.0)
    by_hand = []
    for r, A in zip(np.exp(c.log_ratio.numpy()), c.advantage.numpy(), strict=True):
        clipped = 1 - eps if r < 1 - eps else 1 + eps if r > 1 + eps else r
        by_hand.append(min(r * A, clipped * A))
    np.testing.assert_allclose(Clip(eps).surrogate(c), by_hand, rtol=1e-12)
    assert Clip(eps).clip_range == eps


def test_the_clipped_gradient_is_zero_exactly_where_the_ratio_is_out_on_the_side_the_advantage_pushes_to():
    pairs = list(itertools.product([0.5, 0.79, 0.81, 1.0, 1.19, 1.21, 3.0], [-2.0, 2.0]))
    r, A = (np.array(x) for x in zip(*pairs, strict=True))
    log_ratio = torch.tensor(np.log(r), requires_grad=True)
    Clip(0.2).surrogate(ratios(log_ratio, torch.tensor(A))).sum().backward()
    stopped = ((r > 1.2) & (A > 0)) | ((r < 0.8) & (A < 0))
    assert stopped.sum() == 4
    np.testing.assert_allclose(log_ratio.grad, np.where(stopped, 0.0, r * A), rtol=1e-12)
    assert (log_ratio.grad.numpy()[stopped] == 0.0).all()


def test_clip_bounds_no_divergence():
    assert (Clip().violation(change(9.0)), Clip().step_length(1.0), Clip().on_exit) == (-math.inf, math.inf, None)
    assert (Clip().target_kl, Clip().beta) == (None, None)


# Constraint.
@pytest.mark.parametrize("on_exit", ["stop", "backtrack"])
def test_the_excess_of_a_constraint_is_the_mean_kl_minus_its_bound(on_exit):
    c, region = change(), KLConstraint(0.02, on_exit)
    assert region.violation(c) == pytest.approx(numpy_kl(c)[0].mean() - 0.02, rel=1e-9)
    assert region.violation(change(step=1e-3)) < 0 < region.violation(change(step=1.0))
    assert (region.target_kl, region.on_exit) == (0.02, on_exit)


@pytest.mark.parametrize("curvature", [1e-6, 0.3, 50.0])
def test_the_step_of_a_constraint_uses_the_quadratic_model_up_to_its_bound(curvature):
    s = KLConstraint(0.02).step_length(curvature)
    assert 0.5 * s**2 * curvature == pytest.approx(0.02)


# ESPO.
def test_the_excess_of_espo_is_the_mean_distance_of_the_ratios_from_one_minus_its_bound():
    c, region = change(), RatioDeviation(0.1)
    assert region.violation(c) == pytest.approx(np.abs(np.exp(c.log_ratio.numpy()) - 1.0).mean() - 0.1, rel=1e-9)
    assert region.violation(change(step=1e-3)) < 0 < region.violation(change(step=1.0))
    assert (region.on_exit, region.target_kl, region.clip_range) == ("stop", None, None)
    assert region.step_length(1.0) == math.inf
    assert torch.equal(region.surrogate(c), TrustRegion().surrogate(c))


def test_the_mean_distance_of_ratios_is_twice_the_total_variation_and_bounds_the_kl_from_below():
    c = change(n=20_000)
    found = RatioDeviation(0.25).violation(c) + 0.25
    p, q = c.old.probs.numpy(), c.new.probs.numpy()
    spread = np.abs(np.exp(c.log_ratio.numpy()) - 1.0).std() / math.sqrt(20_000)
    assert abs(found - np.abs(p - q).sum(-1).mean()) < 3.0 * spread
    assert numpy_kl(c)[0].mean() >= found**2 / 2.0


# Penalty.
def test_the_penalty_is_beta_times_the_kl_of_every_state():
    c = change()
    np.testing.assert_allclose(KLPenalty(Fixed(3.0)).penalty(c), 3.0 * numpy_kl(c)[0], rtol=1e-10)


@pytest.mark.parametrize("beta", [0.1, 1.0, 20.0])
def test_the_step_of_a_penalty_maximises_the_penalised_quadratic_model(beta):
    # x = F^-1 g: the model's gain along s x is s c - beta/2 s^2 c with c = x'Fx = g'x.
    s, c = KLPenalty(Fixed(beta)).step_length(0.7), 0.7
    candidates = s * np.linspace(0.5, 1.5, 101)
    assert np.argmax(candidates * c - beta / 2 * candidates**2 * c) == 50


@pytest.mark.parametrize(("step", "factor"), [(0.0, 0.5), (1.0, 2.0)])
def test_a_penalty_adapts_to_the_mean_kl_of_the_whole_update(step, factor):
    region = KLPenalty(Adaptive(target_kl=0.01, beta=4.0))
    adapted = region.adapt(change(step))
    assert (region.beta, adapted.beta, adapted.target_kl) == (4.0, 4.0 * factor, 0.01)
    assert KLPenalty(Fixed(4.0)).adapt(change(step)) == KLPenalty(Fixed(4.0))
    assert KLPenalty(Fixed(4.0)).target_kl is None


@pytest.mark.parametrize(("progress", "beta"), [(1.0, 2.0), (0.5, 4.0), (0.1, 20.0), (0.01, 200.0), (0.0, 200.0)])
def test_mirror_descent_pays_for_the_reverse_kl_ever_more(progress, beta):
    c, region = change(), MirrorDescent(kl_coef=2.0).scheduled(progress)
    assert region.beta == pytest.approx(beta)
    np.testing.assert_allclose(region.penalty(c), beta * numpy_kl(c)[1], rtol=1e-10)
    assert (region.step_length(0.3), region.target_kl, region.on_exit) == (1.0 / region.beta, None, None)
    assert All(Clip(), MirrorDescent(kl_coef=2.0)).scheduled(progress).beta == region.beta
    assert Clip().scheduled(progress) == Clip()


@pytest.mark.parametrize("step", [0.02, 0.3, 1.0])
def test_the_multiplier_of_the_ratios_variance_follows_the_exact_one_of_the_whole_update(step):
    c, region = change(step), RatioVariancePenalty(ratio_variance=0.05, beta=3.0)
    p, q = c.old.probs.numpy(), c.new.probs.numpy()
    exact = ((q - p) ** 2 / p).sum(-1)
    np.testing.assert_allclose(c.ratio_variance, exact, rtol=1e-9)
    np.testing.assert_allclose(region.penalty(c), 3.0 * (np.exp(c.log_ratio.numpy()) - 1.0) ** 2, rtol=1e-12)
    found = region.report(c)
    assert found["drift/ratio_variance"] == pytest.approx(exact.mean())
    assert found["drift/ratio_variance_target"] == 0.05
    assert region.adapt(c).beta == pytest.approx(3.0 * math.exp(0.2 * min(exact.mean() / 0.05 - 1.0, 1.0)))
    assert (region.target_kl, region.on_exit, region.violation(c)) == (None, None, -math.inf)


def test_the_samples_of_the_ratios_variance_have_its_gradient_without_bias():
    c = change(n=1)
    logits = c.new.logits.clone().requires_grad_()
    ((torch.softmax(logits, -1) - c.old.probs).square() / c.old.probs).sum().backward()
    by_action = []
    for a in range(4):
        action = torch.tensor([a])
        taken = dataclasses.replace(c, action=action, log_prob=c.old.log_prob(action))
        by_action.append(RatioVariancePenalty(ratio_variance=1.0, beta=1.0).penalty_gradient(taken)[0])
    expected = (c.old.probs.T * torch.cat(by_action)).sum(0)
    torch.testing.assert_close(expected[None], logits.grad, rtol=1e-9, atol=1e-12)


def test_the_step_under_the_ratios_variance_is_half_that_under_the_kl():
    beta, s = 4.0, RatioVariancePenalty(ratio_variance=0.1, beta=4.0).step_length(0.7)
    candidates = s * np.linspace(0.5, 1.5, 101)
    chi2 = candidates**2 * 0.7  # twice the KL's quadratic model
    assert np.argmax(candidates * 0.7 - beta * chi2) == 50


# Reference.
def referred(c, reference):
    return dataclasses.replace(c, reference=reference)


def test_the_reference_penalty_is_the_kl_from_the_new_policy_to_the_reference():
    c = change()
    reference = Categorical(torch.zeros(N, 4, dtype=torch.float64))
    p = np.exp(c.new.log_probs.numpy())
    expected = np.log(4.0) + (p * np.log(p)).sum(-1)
    np.testing.assert_allclose(ReferencePenalty(3.0).penalty(referred(c, reference)), 3.0 * expected, rtol=1e-9)
    assert not ReferencePenalty(3.0).penalty(referred(c, c.new)).any()
    assert ReferencePenalty().reads_reference
    assert All(Clip(), ReferencePenalty()).reads_reference
    assert not All(Clip(), KLPenalty()).reads_reference


def test_the_reference_constraint_bounds_where_the_policy_is_and_beyond_it_lets_it_only_come_nearer():
    c = change(step=0.5)
    forward, reverse = numpy_kl(c)
    region = ReferenceConstraint(0.02)
    assert region.violation(referred(c, c.new)) == pytest.approx(-max(0.02, forward.mean()), rel=1e-6)
    assert region.violation(referred(c, c.old)) == pytest.approx(reverse.mean() - 0.02, rel=1e-6)
    assert region.on_exit == "backtrack"
    far = Categorical(c.old.logits - 3.0 * (c.new.logits - c.old.logits))  # new moves away from it, old is beyond
    assert region.violation(referred(dataclasses.replace(c, new=c.old), far)) == pytest.approx(0.0, abs=1e-12)
    assert region.violation(referred(c, far)) > 0.0


def test_forward_the_kl_is_that_from_the_reference_to_the_new_policy():
    c, p = change(step=0.5), np.array([0.1, 0.2, 0.3, 0.4])
    reference = Categorical(torch.tensor(np.log(p)).expand(N, 4))
    to_new, to_old = ((p * (np.log(p) - x.log_probs.numpy())).sum(-1) for x in (c.new, c.old))
    for coef in (0.5, 3.0):
        found = ReferenceForwardPenalty(coef).penalty(referred(c, reference))
        np.testing.assert_allclose(found, coef * to_new, rtol=1e-9)
    (gradient,) = ReferenceForwardPenalty(2.0).penalty_gradient(referred(c, reference))
    np.testing.assert_allclose(gradient, 2.0 * (c.new.probs.numpy() - p), rtol=1e-9, atol=1e-12)
    inside, beyond = max(to_new.mean(), to_old.mean()) + 0.1, 0.01
    assert ReferenceForwardConstraint(inside).violation(referred(c, reference)) == pytest.approx(to_new.mean() - inside)
    found = ReferenceForwardConstraint(beyond).violation(referred(c, reference))
    assert found == pytest.approx(to_new.mean() - to_old.mean())
    for bound, force in ((inside, inside), (beyond, to_old.mean())):
        report = ReferenceForwardConstraint(bound).report(referred(c, reference))
        assert report == {"drift/kl_reference_forward_bound": pytest.approx(force)}
    (force,) = ReferenceConstraint(100.0).report(referred(c, reference)).items()
    assert force == ("drift/kl_reference_bound", 100.0)
    assert ReferenceForwardConstraint().on_exit == "backtrack"
    never = Categorical(torch.tensor([0.0, -math.inf, 0.0, 0.0], dtype=torch.float64).expand(N, 4))
    gone = dataclasses.replace(referred(c, reference), new=never)
    assert ReferenceForwardPenalty().penalty(gone).isinf().all()  # at a finite price in the other direction
    assert ReferencePenalty().penalty(gone).isfinite().all()


def test_without_a_reference_its_regions_say_so():
    penalties, bounds = (
        (ReferencePenalty(), ReferenceForwardPenalty()),
        (ReferenceConstraint(), ReferenceForwardConstraint()),
    )
    for region in (*penalties, *bounds):
        assert region.reads_reference
        with pytest.raises(ValueError, match=r"^reference = None; allowed: a saved agent"):
            (region.penalty if region in penalties else region.violation)(change())


# Learning rate.
@pytest.mark.parametrize("target", [0.01, 0.1])
@pytest.mark.parametrize("step", [0.0, 0.05, 0.1, 0.2, 0.5, 2.0])
def test_the_learning_rate_falls_where_the_kl_is_over_twice_its_aim_and_rises_under_half(step, target):
    c, region = change(step), AdaptiveLearningRate(target_kl=target, scale=0.9)
    kl = numpy_kl(c)[0].mean()
    expected = 0.9 / 1.5 if kl > 2 * target else 0.9 * 1.5 if 1e-12 < kl < target / 2 else 0.9
    assert region.adapt(c).lr_scale == pytest.approx(expected)
    assert (region.lr_scale, region.target_kl, region.on_exit) == (0.9, target, None)
    assert torch.equal(region.surrogate(c), TrustRegion().surrogate(c))


def test_within_an_update_the_kl_counts_as_what_the_whole_would_reach_at_the_same_pace():
    c, scaled = change(0.3), AdaptiveLearningRate(scale=2.0)
    kl = numpy_kl(c)[0].mean()
    for aim, share, expected in (
        (0.6 * kl, 1.0, 1.0),
        (0.6 * kl, 0.9, 1 / 1.5),
        (4.1 * kl, 1.0, 1.5),
        (4.1 * kl, 0.5, 1),
    ):
        region = dataclasses.replace(scaled, target_kl=aim).adapt_within(c, share)
        assert (region.scale, region.lr_scale) == pytest.approx((2.0, 2.0 * expected)), (aim, share)
        assert region.adapt(c).pace == 1.0
    slow = dataclasses.replace(scaled, target_kl=kl / 100.0)
    for _ in range(20):
        slow = slow.adapt_within(c, 0.5)
    assert slow.lr_scale == pytest.approx(0.01)
    assert slow.adapt(c).lr_scale == pytest.approx(2.0 / 1.5)


@pytest.mark.parametrize(("epochs", "near"), [(1, False), (10, True)])
def test_a_rate_that_is_adapted_on_the_way_holds_its_aim_where_the_same_rate_goes_near_and_far(epochs, near):
    """A policy that moves in a straight line: its distance is rate x time x a factor of each update."""
    rng, region, found = np.random.default_rng(0), All(Clip(), AdaptiveLearningRate(target_kl=0.01, scale=0.1)), []
    for speed in rng.lognormal(0.0, 0.6, size=300):
        distance = 0.0
        for epoch in range(1, epochs + 1):
            distance += region.lr_scale * speed / epochs
            moved = SimpleNamespace(kl=torch.tensor([distance**2]))
            region = region.adapt_within(moved, epoch / epochs) if epoch < epochs else region.adapt(moved)
        found.append(distance**2 / 0.01)
    off = np.abs(np.log(found[20:]))
    assert (np.quantile(off, 0.9) < math.log(2.0)) == near
    assert np.median(found[20:]) == pytest.approx(1.0, rel=0.5)


@pytest.mark.parametrize(("step", "bound"), [(0.01, 10.0), (3.0, 0.01)])
def test_the_scale_of_the_learning_rate_stays_inside_its_bounds_and_comes_back(step, bound):
    region = AdaptiveLearningRate()
    for _ in range(30):
        region = region.adapt(change(step))
        assert 0.01 <= region.lr_scale <= 10.0
    assert region.lr_scale == bound
    assert region.adapt(change(3.0 if step < 1.0 else 0.01)).lr_scale != bound


def test_no_scale_follows_from_a_kl_that_is_not_a_number():
    c = change()
    broken = dataclasses.replace(c, new=Categorical(torch.full_like(c.new.logits, math.nan)))
    assert AdaptiveLearningRate().adapt(broken) == AdaptiveLearningRate()


def test_in_all_the_scales_of_the_learning_rate_multiply():
    slow, fast = (AdaptiveLearningRate(scale=s) for s in (0.5, 3.0))
    assert All(Clip(), slow, All(fast)).lr_scale == 1.5
    assert All().lr_scale == TrustRegion().lr_scale == Clip().lr_scale == 1.0


# All.
def test_in_all_penalties_add_the_largest_excess_and_the_shortest_step_count():
    c = change()
    kl, _ = numpy_kl(c)
    region = All(KLPenalty(Fixed(2.0)), KLPenalty(Fixed(3.0)), KLConstraint(0.1), KLConstraint(0.02))
    np.testing.assert_allclose(region.penalty(c), 5.0 * kl, rtol=1e-10)
    assert region.violation(c) == pytest.approx(kl.mean() - 0.02, rel=1e-9)
    assert region.beta == 5.0
    assert region.target_kl == 0.02
    assert region.step_length(1e-4) == pytest.approx(1 / 5)  # sqrt(2 * 0.02 / 1e-4) = 20 is longer
    steps = np.linspace(0.0, 1.0, 1001)  # of the model's gain s c - (2 + 3)/2 s^2 c along F^-1 g
    assert steps[np.argmax(steps * 1e-4 - 5.0 / 2 * steps**2 * 1e-4)] == pytest.approx(1 / 5)
    assert region.step_length(4.0) == pytest.approx(0.1)  # sqrt(2 * 0.02 / 4)


@pytest.mark.parametrize("clip_first", [True, False])
def test_in_all_the_one_special_gain_is_used_wherever_it_stands(clip_first):
    c, parts = change(step=1.0), (Clip(0.1), KLConstraint(0.02))
    region = All(*(parts if clip_first else parts[::-1]))
    assert torch.equal(region.surrogate(c), Clip(0.1).surrogate(c))
    assert torch.equal(All(region, TrustRegion()).surrogate(c), Clip(0.1).surrogate(c))
    assert region.clip_range == 0.1
    assert torch.equal(All(KLConstraint()).surrogate(c), TrustRegion().surrogate(c))


@pytest.mark.parametrize("regions", [(Clip(0.1), Clip(0.2)), (All(Clip(0.1)), KLConstraint(), Clip(0.2))])
def test_two_gains_are_refused(regions):
    with pytest.raises(ValueError, match="at most one region with a surrogate of its own"):
        All(*regions)


@pytest.mark.parametrize(
    ("wishes", "result"),
    [((), None), (("stop",), "stop"), (("backtrack", "stop"), "backtrack"), (("stop", "backtrack"), "backtrack")],
)
def test_in_all_going_back_is_stricter_than_stopping(wishes, result):
    assert All(Clip(), *(KLConstraint(0.01, wish) for wish in wishes)).on_exit == result


def test_in_all_every_region_adapts_for_itself():
    slow, fast = Adaptive(target_kl=1e3, beta=1.0), Adaptive(target_kl=1e-6, beta=1.0)
    region = All(Clip(0.3), KLPenalty(slow), KLPenalty(fast))
    adapted = region.adapt(change())
    assert adapted.regions[0] == Clip(0.3)
    assert [r.beta for r in adapted.regions[1:]] == [0.5, 2.0]
    assert region.beta == 2.0


def test_an_excess_that_is_not_a_number_is_never_taken_for_inside():
    c = change()
    broken = dataclasses.replace(c, new=Categorical(torch.full_like(c.new.logits, math.nan)))
    for region in (KLConstraint(), All(KLConstraint(), Clip()), All(Clip(), KLConstraint())):
        assert not region.violation(broken) <= 0.0


def test_all_of_nothing_limits_nothing():
    c, region = change(), All()
    assert torch.equal(region.surrogate(c), TrustRegion().surrogate(c))
    assert (region.penalty(c), region.violation(c), region.step_length(1.0)) == (0.0, -math.inf, math.inf)
    assert (region.on_exit, region.target_kl, region.clip_range, region.beta) == (None, None, None, None)


@pytest.mark.parametrize(
    ("scale", "kl", "expected"),
    [
        (0.5, 0.02, 0.5 * math.exp(0.5 * 0.03 / 0.97)),  # on the bound is within it
        (0.5, 0.0, 0.5 * math.exp(0.5 * 0.03 / 0.97)),
        (0.5, 0.06, 0.5 * math.exp(-0.5) / 3.0),
        (0.999, 0.01, 1.0),
        (0.02, 1.0, 0.01),
        (0.02, math.inf, 0.01),
        (0.3, math.nan, 0.3),
    ],
)
def test_the_bound_on_the_batch_follows_what_the_next_states_have_shown(scale, kl, expected):
    region = All(Clip(0.2), NextStateConstraint(next_kl=0.02, scale=scale)).adapt_to_next(kl)
    assert (region.next_kl, region.target_kl) == (0.02, pytest.approx(0.02 * expected))
    assert region.violation(change()) == pytest.approx(change().kl.mean().item() - 0.02 * expected)
    assert region.step_length(4.0) == pytest.approx(math.sqrt(0.02 * expected / 2.0))
    assert region.adapt(change()) == region


@pytest.mark.parametrize("share", [0.03, 0.2])
def test_few_updates_are_over_their_bound_on_the_next_states_whatever_these_are(share):
    """The KL there is that on the batch, which uses its whole bound, times a factor that nobody knows."""
    draw, n = np.random.default_rng(0), 2000
    for spread in (0.1, 0.5, 1.0):
        region, over, first = NextStateConstraint(share=share), 0, 0.5
        factors = np.exp(spread * draw.normal(size=n) + np.sin(np.arange(n) / 300.0))
        for factor in factors:
            over += factor * region.target_kl > 0.01
            region = region.adapt_to_next(factor * region.target_kl)
            assert region.minimum < region.scale
        assert 0 < over / n <= share + (1.0 - share) * math.log(first / region.scale) / (0.5 * n)


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: Clip(0.0), "^clip_range = 0.0; allowed: a number > 0$"),
        (lambda: RatioDeviation(-1.0), "^ratio_deviation = -1.0; allowed: a number > 0$"),
        (lambda: AdaptiveLearningRate(scale=20.0), r"^scale = 20.0; allowed: a number in \[0.01, 10\]$"),
        (lambda: AdaptiveLearningRate(target_kl=0.0), "^target_kl = 0.0; allowed: a number > 0$"),
        (lambda: KLConstraint(math.nan), "^target_kl = nan; allowed: a number > 0$"),
        (lambda: NextStateConstraint(next_kl=0.0), "^next_kl = 0.0; allowed: a number > 0$"),
        (lambda: NextStateConstraint(scale=2.0), r"^scale = 2.0; allowed: a number in \[0.01, 1\]$"),
        (lambda: NextStateConstraint(share=0.6), r"^share = 0.6; allowed: a number in \(0, 0.5\]$"),
        (lambda: KLConstraint(0.01, "leave"), "^on_exit = 'leave'; allowed: stop, backtrack$"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(build, text):
    with pytest.raises(ValueError, match=text):
        build()


def test_a_penalty_that_has_lost_its_derivative_is_refused():
    @dataclasses.dataclass(frozen=True)
    class Lost(TrustRegion):
        def penalty(self, change):
            return change.kl.detach().numpy()

    with pytest.raises(ValueError, match=r"^a surrogate or penalty is a ndarray; allowed: a number, or a tensor"):
        Lost().penalty_gradient(change())


@pytest.mark.parametrize(
    ("name", "hook"), [("penality", "penalty"), ("violations", "violation"), ("step_lenght", "step_length")]
)
def test_a_method_that_only_looks_like_a_hook_is_named(name, hook):
    with pytest.warns(
        RuntimeWarning, match=rf"^Mine\.{name} is not a hook: klrl never calls it; did you mean {hook}\?$"
    ):
        type("Mine", (TrustRegion,), {name: lambda self, change: 0.0})


def test_other_methods_of_a_region_are_its_own_affair():
    type(
        "Mine",
        (TrustRegion,),
        {"kl_bound": lambda self: 0.0, "_penality": lambda self: 0.0, "projected": lambda self: 0.0},
    )


def test_adaptive_lr_cancels_a_schedule_and_begins_from_the_scheduled_rate():
    region = AdaptiveLearningRate(target_kl=0.01, scale=2.0)
    for share in (1.0, 0.5, 0.05):  # of one training, and then of the next
        region = All(Clip(), region).at_rate(share).regions[1]
        assert share * region.lr_scale == pytest.approx(2.0)
    assert region.at_rate(1.0).lr_scale == pytest.approx(2.0)
    resumed = AdaptiveLearningRate(target_kl=0.01, scale=2.0).at_rate(0.25)  # from a checkpoint that has no share
    assert (resumed.lr_scale, resumed.at_rate(1.0).lr_scale) == pytest.approx((2.0, 0.5))


@pytest.mark.parametrize("schedule", [Adaptive, Proportional, Dual])
def test_a_penalty_does_not_fall_because_the_learning_rate_has(schedule):
    beta = schedule(target_kl=0.01, beta=1.0)
    slow = beta.at_rate(0.1)
    assert beta.update(0.001).beta < 1.0  # a tenth of the aim at the first rate
    assert slow.update(0.001).beta == 1.0  # at the first rate it would be the aim
    assert slow.update(0.0004).beta < 1.0  # 0.004
    assert slow.update(0.02).beta == beta.update(0.02).beta > 1.0
    assert slow.at_rate(1.0) == beta == beta.at_rate(3.0)
    assert KLPenalty(slow).at_rate(1.0) == KLPenalty(beta)
    assert Fixed(2.0).at_rate(0.1) == Fixed(2.0)
