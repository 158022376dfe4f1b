"""Searches along a line: they shorten a step until there is no objection, or take it back to the bit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class LineSearch:
    """Outcome of a line search: the multiple of the step that was taken; 0 if it was rejected."""

    scale: float
    tries: int
    reason: str
    """``"accepted"``, or the objection to the last try."""

    @property
    def accepted(self) -> bool:
        """True if the parameters moved."""
        return self.scale > 0.0


def line_search(
    theta: Tensor,
    step: Tensor,
    objection: Callable[[], str | None],
    *,
    start: Tensor | None = None,
    shrinking_factor: float = 0.8,
    max_iter: int = 10,
) -> LineSearch:
    """Set theta to start + s * step with s = 1, c, c^2, ... until there is no objection.

    Args:
        theta: the parameters ``[P]``, moved in place.
        step: the full step ``[P]``.
        objection: judges the policy at theta; ``None`` accepts it, a text says what is wrong.
        start: where to start from ``[P]``; by default where theta is.
        shrinking_factor: c in (0, 1).
        max_iter: maximum number of tries; if all fail, theta is ``start`` again, bit for bit.
    """
    start = theta.detach().clone() if start is None else start
    return _first_accepted(theta, start, step, (shrinking_factor**n for n in range(max_iter)), objection)


def back_inside(
    theta: Tensor,
    start: Tensor,
    measure: Callable[[], float],
    *,
    violation: float,
    at_start: float,
    max_iter: int = 20,
) -> LineSearch:
    """Shorten the way from start to theta, where a bound is violated, until it holds.

    A divergence grows with the square of a short way. So each try is where the parabola through the violations at start
    and at the last try meets the bound, or half of the last one if that is more, in either case less 2 %. Mostly the
    first is inside; from the middle of the tries on they are halves, whatever the violation says.

    Args:
        theta: the parameters ``[P]``, moved in place.
        start: where the bound holds ``[P]``.
        measure: returns the violation at theta, at most 0 inside; NaN is outside.
        violation: what it is before the search.
        at_start: what it is at start.
        max_iter: maximum number of tries; if all fail, theta is ``start``, bit for bit.
    """

    def scales() -> Iterator[float]:
        scale = 1.0
        for tries in range(1, max_iter + 1):
            parabola = at_start < 0.0 and math.isfinite(at_start - violation) and tries <= max_iter // 2
            scale *= 0.98 * max(math.sqrt(at_start / (at_start - violation)) if parabola else 0.0, 0.5)
            yield scale

    def objection() -> str | None:
        nonlocal violation
        violation = measure()
        return None if violation <= 0.0 else "outside the trust region"

    return _first_accepted(theta, start, theta.detach() - start, scales(), objection)


def _first_accepted(
    theta: Tensor, start: Tensor, step: Tensor, scales: Iterable[float], objection: Callable[[], str | None]
) -> LineSearch:
    """Set theta to start + s * step for one scale after the other until there is no objection, else to start."""
    theta, tries, reason = theta.detach(), 0, "no tries"
    try:
        for scale in scales:
            theta.copy_(start + scale * step)
            tries, said = tries + 1, objection()
            if said is None:
                return LineSearch(scale, tries, "accepted")
            reason = said
    except BaseException:
        theta.copy_(start)
        raise
    theta.copy_(start)
    return LineSearch(0.0, tries, reason)
