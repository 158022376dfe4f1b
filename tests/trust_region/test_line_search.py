"""Line search: which step it takes, why, and that a rejected one leaves no bit changed."""

import math

import pytest
import torch

from klrl.trust_region import LineSearch, line_search


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
