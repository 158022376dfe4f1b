"""Searches along a line: which step they take, why, and that a rejected one leaves no bit changed."""

import math

import pytest
import torch

from klrl.trust_region import LineSearch, line_search
from klrl.trust_region.line_search import back_inside


def parameters(seed=0):
    return torch.nn.Parameter(torch.randn(12, generator=torch.Generator().manual_seed(seed)))


def longer_than(theta, start, limit):
    return lambda: "too far" if (theta - start).norm() > limit else None


STEP = torch.linspace(-1.0, 1.0, 12)


def test_an_exception_in_the_objection_leaves_no_bit_changed():
    theta = parameters()
    start = theta.detach().clone()

    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        line_search(theta, STEP, interrupted)
    assert torch.equal(theta.detach(), start)


@pytest.mark.parametrize(
    ("limit", "scale", "tries"), [(1e9, 1.0, 1), (0.99, 0.5, 2), (0.26, 0.25, 3), (0.24, 0.125, 4), (0.01, 1 / 128, 8)]
)
def test_the_longest_step_without_objection_is_taken(limit, scale, tries):
    theta = parameters()
    start = theta.detach().clone()
    objection = longer_than(theta, start, limit * STEP.norm())
    assert line_search(theta, STEP, objection, shrinking_factor=0.5) == LineSearch(scale, tries, "accepted")
    torch.testing.assert_close(theta.detach(), start + scale * STEP)


@pytest.mark.parametrize("factor", [0.1, 0.8])
def test_tries_are_powers_of_the_shrinking_factor(factor):
    theta, seen = parameters(), []
    start = theta.detach().clone()

    def objection():
        seen.append(((theta.detach() - start) @ STEP / (STEP @ STEP)).item())
        return "no"

    line_search(theta, STEP, objection, shrinking_factor=factor, max_iter=5)
    assert seen == pytest.approx([factor**i for i in range(5)], abs=1e-6)


@pytest.mark.parametrize("step", [STEP, 1e30 * STEP, torch.full((12,), math.nan), torch.full((12,), math.inf)])
def test_a_rejected_step_leaves_the_parameters_as_they_were_to_the_bit(step):
    theta = parameters()
    before = theta.detach().clone()
    search = line_search(theta, step, lambda: "never", max_iter=7)
    assert search == LineSearch(0.0, 7, "never")
    assert not search.accepted
    assert torch.equal(theta, before)


def test_the_reason_is_the_objection_to_the_last_try():
    reasons = iter(["outside", "outside", "no improvement"])
    assert line_search(parameters(), STEP, lambda: next(reasons), max_iter=3).reason == "no improvement"


def test_without_tries_nothing_moves():
    theta = parameters()
    before = theta.detach().clone()
    search = line_search(theta, STEP, lambda: None, max_iter=0)
    assert (search.accepted, search.tries) == (False, 0)
    assert torch.equal(theta.detach(), before)


@pytest.mark.parametrize("accept", [True, False])
def test_a_search_can_start_from_somewhere_else_and_returns_there(accept):
    theta, start = parameters(seed=0), parameters(seed=1).detach()
    search = line_search(theta, STEP, lambda: None if accept else "no", start=start)
    assert search.accepted is accept
    assert torch.equal(theta.detach(), start + STEP if accept else start)


def test_the_parameters_are_moved_where_they_are():
    theta = parameters()
    where = theta.data_ptr()
    line_search(theta, STEP, lambda: None)
    assert theta.data_ptr() == where
    assert theta.is_leaf
    assert theta.requires_grad


def search_back(theta, start, kl, bound):
    """Take theta back towards start, where the KL is 0, until it is at most the bound; with the places looked at."""
    seen = []

    def measure():
        seen.append(theta.detach().clone())
        return kl(theta.detach()) - bound

    violation = kl(theta.detach()) - bound
    return back_inside(theta, start, measure, violation=violation, at_start=kl(start) - bound), seen


@pytest.mark.parametrize(
    "violation",
    [
        lambda way: math.log(way**2 / 0.01 + 1e-30),
        lambda way: 1.0 if way > 0.1 else -1.0,
        lambda way: 1e-3 if way > 0.1 else -1.0,
        lambda way: math.tanh(way) - 0.0997,
        lambda way: way - 0.1,
    ],
    ids=["logarithm", "one or the other", "hardly outside", "saturated", "linear"],
)
def test_violations_that_are_no_parabola_are_left_behind_as_well(violation):
    theta, start = torch.nn.Parameter(torch.tensor([5.0])), torch.zeros(1)
    search = back_inside(
        theta, start, lambda: violation(theta.item()), violation=violation(5.0), at_start=violation(0.0)
    )
    assert search.accepted
    assert 0.02 < theta.item() <= 0.1


@pytest.mark.parametrize("excess", [1.0001, 1.5, 3.9])
def test_where_kl_is_the_square_of_the_way_one_try_meets_the_bound_less_two_percent_of_the_way(excess):
    theta, start = parameters(0), parameters(1).detach()
    step, where = theta.detach() - start, theta.data_ptr()

    def kl(at):
        return 0.5 * (at - start).double().square().sum().item()

    bound = kl(theta.detach()) / excess
    search, _ = search_back(theta, start, kl, bound)
    assert (search.tries, search.reason, search.scale) == (1, "accepted", pytest.approx(0.98 / math.sqrt(excess)))
    assert kl(theta.detach()) == pytest.approx(0.98**2 * bound, rel=1e-5)
    torch.testing.assert_close(theta.detach(), start + search.scale * step)
    assert (theta.data_ptr(), theta.is_leaf) == (where, True)


@pytest.mark.parametrize(("far", "tries"), [(0.2, 2), (0.5, 3), (3.0, 6), (20.0, 9)])
@pytest.mark.parametrize(
    "kl",
    [
        lambda a: math.exp(-2.0 * a) / 2.0 + a - 0.5,  # a Gaussian whose log std moves up by a: linear in the end
        lambda a: math.expm1(min(2.0 * a, 700.0)) / 2.0 - a,  # down: exponential
        lambda a: a + math.log1p(math.exp(-2.0 * a)) - math.log(2.0),  # log cosh a: a coin, logit 0 to 2 a
    ],
    ids=["wider", "narrower", "coin"],
)
def test_other_kls_are_met_in_a_few_tries_and_most_of_the_bound_is_used(kl, far, tries):
    theta, start = torch.nn.Parameter(torch.full((1,), far, dtype=torch.float64)), torch.zeros(1, dtype=torch.float64)
    search, seen = search_back(theta, start, lambda at: kl(at.item()), 0.01)
    assert 0.7 * 0.01 < kl(theta.item()) <= 0.01
    assert len(seen) == search.tries <= tries
    assert [x.item() for x in seen] == sorted((x.item() for x in seen), reverse=True)
    assert search.scale == pytest.approx(theta.item() / far)


@pytest.mark.parametrize("violation", [math.nan, math.inf, 1.0])
@pytest.mark.parametrize("at_start", [-0.01, 0.0, 1.0])
def test_where_no_try_is_inside_not_a_bit_of_the_start_is_changed(violation, at_start):
    theta, start = parameters(0), parameters(1).detach()
    search = back_inside(theta, start, lambda: violation, violation=violation, at_start=at_start, max_iter=6)
    assert search == LineSearch(0.0, 6, "outside the trust region")
    assert torch.equal(theta.detach(), start)


def test_a_kl_that_is_no_number_far_away_is_left_behind():
    theta, start = torch.nn.Parameter(torch.full((3,), 1e3)), torch.zeros(3)
    search, _ = search_back(theta, start, lambda at: math.nan if at[0] > 5.0 else at[0].item() ** 2, 0.01)
    assert search.accepted
    assert 0.09 < theta[0].item() <= 0.1


def test_an_exception_on_the_way_back_leaves_no_bit_of_the_start_changed():
    theta, start = parameters(0), parameters(1).detach()

    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        back_inside(theta, start, interrupted, violation=1.0, at_start=-1.0)
    assert torch.equal(theta.detach(), start)
