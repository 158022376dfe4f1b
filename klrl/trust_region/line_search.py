"""Backtracking line search: shortens a step until there is no objection, or takes it back to the bit."""

from __future__ import annotations

from collections.abc import Callable
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
    theta = theta.detach()
    start = theta.clone() if start is None else start
    reason: str | None = "no tries"
    try:
        for tries in range(max_iter):
            scale = shrinking_factor**tries
            theta.copy_(start + scale * step)
            reason = objection()
            if reason is None:
                return LineSearch(scale, tries + 1, "accepted")
    except BaseException:
        theta.copy_(start)
        raise
    theta.copy_(start)
    return LineSearch(0.0, max_iter, str(reason))
