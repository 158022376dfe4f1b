"""Wasserstein distances: the cost of moving one policy's probability onto another's."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from klrl.kl.divergences import measured, numbers
from klrl.kl.families import AnyDistribution, read
from klrl.kl.families.family import Family, no_closed_form
from klrl.policy.arrays import A, Array
from klrl.policy.distributions import Categorical, Factored


def wasserstein(
    p: AnyDistribution[A], q: AnyDistribution[A], order: Literal[1, 2] | None = None, ground_metric: Array | None = None
) -> A:
    r"""W_r(p, q) = (min E[d(x, y)^r])^{1/r} over all pairs with x ~ p and y ~ q: the distance itself, ``[*B]``.

    Order 2 between Gaussians, d the Euclidean distance: W_2^2 = \|mu_p - mu_q\|^2 + tr(S_p + S_q -
    2 (S_q^{1/2} S_p S_q^{1/2})^{1/2}) (Givens & Shortt 1984). Order 1 between Categoricals: sum over the line of
    \|CDF_p - CDF_q\|, or a linear program, in units of an action or of ``ground_metric``; between MultiCategoricals or
    Bernoullis, d the number of heads or bits that differ: the sum of their total variations.

    Args:
        p: DiagGaussian, FullGaussian (2), Categorical, MultiCategorical or Bernoulli (1).
        q: the same family.
        order: 1 or 2; ``None`` for the order that the family has.
        ground_metric: for a Categorical, positions of the actions on a line, ``[k]`` (default 0, 1, ..., k - 1), or the
            distances d(x, y) between them, ``[k, k]``, >= 0 with zeros on the diagonal; all 1 off the diagonal give the
            total variation. Distances need SciPy, and one linear program per state.

    Raises:
        NoClosedForm: another family, or another order than its own.
        ValueError: an order, positions or distances are not allowed; or SciPy is missing.
    """
    if not (order is None or (isinstance(order, int) and order in (1, 2))):
        raise ValueError(f"order = {order!r}; allowed: 1, 2 or None")
    first, second = read(p)[0], read(q)[0]
    discrete = isinstance(first, Categorical) and isinstance(second, Categorical)
    own = 1 if all(isinstance(x, (Categorical, Factored)) for x in (first, second)) else 2
    if ground_metric is not None and not discrete:
        raise ValueError(f"ground_metric with {type(first).__name__}; allowed: only with Categorical")
    if order not in (None, own):
        raise no_closed_form(f"W_{order}", first, second)

    def distance(family: Family[Any], a: Any, b: Any) -> Tensor:
        return _between_categoricals(a, b, ground_metric) if discrete else family.wasserstein(a, b)

    return measured(f"W_{own}", p, q, distance, invariant=False)


def _between_categoricals(p: Categorical, q: Categorical, ground_metric: Array | None) -> Tensor:
    prob_p, prob_q = torch.broadcast_tensors(p.probs, q.probs)
    k = prob_p.shape[-1]
    ground = torch.arange(k, dtype=torch.float64, device="cpu") if ground_metric is None else numbers(ground_metric)
    if list(ground.shape) not in ([k], [k, k]) or not bool(ground.isfinite().all()):
        shape = list(ground.shape)
        raise ValueError(f"ground_metric of shape {shape}; allowed: finite positions [{k}] or distances [{k}, {k}]")
    if ground.ndim == 2:
        if bool((ground < 0.0).any()) or bool(ground.diagonal().any()):
            least, diagonal = ground.min().item(), ground.diagonal().abs().max().item()
            raise ValueError(
                f"ground_metric with least element {least:g} and {diagonal:g} on the diagonal; "
                "allowed: distances >= 0, 0 on the diagonal"
            )
        return _Transport.apply(prob_p, prob_q, ground)  # type: ignore[no-untyped-call]
    place, order = ground.to(prob_p.device).sort()
    excess = (prob_p - prob_q)[..., order].cumsum(-1)[..., :-1]
    return (excess.abs() * place.diff()).sum(-1)


class _Transport(torch.autograd.Function):
    """min sum_ij m_ij d_ij over m >= 0 with row sums p and column sums q; its derivatives are the dual variables."""

    @staticmethod
    def forward(ctx: Any, p: Tensor, q: Tensor, distances: Tensor) -> Tensor:
        rows, columns = (x.reshape(-1, x.shape[-1]).numpy(force=True) for x in (p, q))
        solved = [_cheapest(a, b, distances.numpy(force=True)) for a, b in zip(rows, columns, strict=True)]
        if not solved:
            ctx.save_for_backward(p, q)
            return p.new_zeros(p.shape[:-1])
        values, *duals = (torch.from_numpy(np.stack(x)).to(p) for x in zip(*solved, strict=True))
        ctx.save_for_backward(*(x.reshape(p.shape) for x in duals))
        return values.reshape(p.shape[:-1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        by_p, by_q = ctx.saved_tensors
        return gradient.unsqueeze(-1) * by_p, gradient.unsqueeze(-1) * by_q, None


def _cheapest(p: np.ndarray, q: np.ndarray, distances: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the cost, and its derivatives by p and by q."""
    from scipy.optimize import linprog
    from scipy.sparse import eye_array, kron, vstack

    k = len(p)
    if np.array_equal(p, q):
        return np.zeros(()), np.zeros(k), np.zeros(k)
    row, one = np.ones((1, k)), eye_array(k)
    sums = vstack([kron(one, row), kron(row, one)]).tocsr()
    plan = linprog(distances.ravel(), A_eq=sums, b_eq=np.concatenate([p, q * (p.sum() / q.sum())]), method="highs")
    if plan.status != 0:
        raise ValueError(f"no transport plan: {plan.message}; allowed: probabilities that are numbers")
    duals = plan.eqlin.marginals
    return np.asarray(max(plan.fun, 0.0)), duals[:k], duals[k:]
