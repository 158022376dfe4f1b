"""KL between distributions of which there are samples and no densities: the states that two policies visit, say.

Where log-probabilities are known, :func:`klrl.kl.estimate_kl` is better by far. Neither function here can be trusted
for large divergences or many dimensions: nearest neighbours are too far away there, and N samples from q cannot show a
KL much larger than log N (McAllester & Stratos 2020, "Formal Limitations on the Measurement of Mutual Information").
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from klrl.kl.estimators import Estimate
from klrl.kl.reliability import Doubt, DoubtfulEstimateWarning, pareto_k, skewness, tail
from klrl.policy.arrays import Array, tensor
from klrl.text import warn_user

CriticName = Literal["linear", "quadratic"]
Critic = Callable[[Tensor], Tensor]
_GROUPS = 10
"""Parts of the samples whose estimates give the standard error."""


def knn_kl(x: Array, y: Array, k: int = 5) -> Estimate:
    r"""Estimate KL(p||q) in nats from n samples of p and m of q, by distances to their k-th nearest neighbours.

    d/n sum_i log(nu_i / rho_i) + log(m / (n - 1)), rho_i the Euclidean distance of x_i to its k-th neighbour among the
    other x, nu_i that to its k-th neighbour among the y: k / (n - 1) and k / m over the volumes of these balls stand
    for p and q (Wang, Kulkarni & Verdú 2009, "Divergence Estimation for Multidimensional Densities Via k-Nearest-
    Neighbor Distances"; Pérez-Cruz 2008, "Kullback-Leibler Divergence Estimation of Continuous Distributions"). It is
    no bound: of samples that are far apart or have many dimensions it is too small, and it may be negative.

    The standard error is that of ten parts of the samples, and tells of their spread alone, not of the bias, which
    falls as slowly as n^(-1/d). Units matter: scale the dimensions of both samples alike, which leaves KL as it is.

    Args:
        x: independent samples of p, ``[n, d]``, or ``[n]`` for d = 1.
        y: independent samples of q, ``[m, d]`` or ``[m]``.
        k: the neighbour that counts: more have less spread and more bias.

    Raises:
        ValueError: different dimensions, numbers that are not finite, too few samples, or k of them alike, which
            densities never give.

    Warns:
        DoubtfulEstimateWarning: fewer samples give another number, by more than the spread can explain: there is a
            bias; or there are fewer than 10 (k + 1) samples, and no standard error (NaN).

    >>> g = torch.Generator().manual_seed(0)
    >>> x, y = torch.randn(2000, generator=g), 1.0 + torch.randn(2000, generator=g)
    >>> found = knn_kl(x, y)  # of normals with a KL of 1/2
    >>> abs(found.value - 0.5) < 3.0 * found.stderr
    True
    """
    a, b = _samples(x, y)
    fewest = min(len(a) - 1, len(b))
    if not 1 <= k <= fewest:
        raise ValueError(f"k = {k}; allowed: 1 to {fewest}, for {len(a)} samples of p and {len(b)} of q")
    value, n = _by_neighbours(a, b, k), len(a)
    if fewest < _GROUPS * (k + 1):
        text = f"{fewest} samples; allowed for a standard error: >= {_GROUPS * (k + 1)}"
        warn_user(f"knn_kl: the value cannot be trusted: {text}", DoubtfulEstimateWarning)
        return Estimate(value, math.nan, n)
    parts = torch.tensor([_by_neighbours(a[i::_GROUPS], b[i::_GROUPS], k) for i in range(_GROUPS)])
    stderr = parts.std().item() / _GROUPS**0.5
    if abs(parts.mean().item() - value) > 4.0 * stderr:
        text = f"{parts.mean():.3g} from tenths of the samples, {value:.3g} from all, standard error {stderr:.2g}"
        warn_user(f"knn_kl: the value has a bias in {a.shape[1]} dimensions: {text}", DoubtfulEstimateWarning)
    return Estimate(value, stderr, n, _GROUPS)


def _by_neighbours(x: Tensor, y: Tensor, k: int) -> float:
    own, other = (_distances(x, x, k + 1), _distances(x, y, k))  # the nearest of x to x is itself
    if not (bool((own > 0.0).all()) and bool((other > 0.0).all())):
        raise ValueError(f"{k} or more samples are at the same place; allowed: samples of densities, and a larger k")
    return x.shape[1] * (other / own).log().mean().item() + math.log(len(y) / (len(x) - 1))


def _distances(x: Tensor, y: Tensor, k: int) -> Tensor:
    """Return the distance of every x to the k-th nearest y."""
    from scipy.spatial import cKDTree

    return torch.from_numpy(cKDTree(y.numpy()).query(x.numpy(), [k])[0]).squeeze(-1)


def donsker_varadhan(x: Array, y: Array, critic: CriticName | Critic = "quadratic") -> Estimate:
    r"""Estimate a lower bound of KL(p||q) in nats from samples of p and of q: a number whose mean is at most the KL.

    KL(p||q) = sup_T E_p[T] - log E_q[e^T] (Donsker & Varadhan 1983), the supremum at T = log p/q. T is fitted to every
    second sample; on the others, which it has not seen, the value is mean_p T - c - (mean_q e^{T - c} - 1), with c the
    logarithm of mean e^T on the first half. A logarithm of the mean itself would be too small on the average, and the
    "bound" too large; its tangent is not, and is unbiased for a bound (Nguyen, Wainwright & Jordan 2010; Poole et al.
    2019, "On Variational Bounds of Mutual Information"). The standard error is that of the second half.

    Args:
        x: independent samples of p, ``[n, d]``, or ``[n]`` for d = 1.
        y: independent samples of q, ``[m, d]`` or ``[m]``.
        critic: family of T: "linear" or "quadratic" in x (between normals log p/q is one of these), kept within log m
            of 0, because m samples of q show no larger ratio; or a function of your own that maps samples ``[n, d]`` to
            ``[n]``, which is taken as it is: one that has seen the samples gives no bound.

    Raises:
        ValueError: an unknown critic, different dimensions, numbers that are not finite, fewer than 4 samples.

    Warns:
        DoubtfulEstimateWarning: mean_q e^T is one of a few samples (Pareto k-hat, skewness), or the value is above
            log(m / 2), what so many samples of q can show.

    >>> g = torch.Generator().manual_seed(0)
    >>> x, y = torch.randn(2000, generator=g), 0.5 + torch.randn(2000, generator=g)
    >>> found = donsker_varadhan(x, y, "linear")  # of normals with a KL of 1/8
    >>> abs(found.value - 0.125) < 3.0 * found.stderr
    True
    """
    if not callable(critic) and critic not in get_args(CriticName):
        raise ValueError(f"critic = {critic!r}; allowed: {', '.join(get_args(CriticName))}, or a function")
    a, b = _samples(x, y)
    if (fewest := min(len(a), len(b))) < 4:
        raise ValueError(f"{fewest} samples; allowed: >= 4, half of which are for the critic")
    first, second = (a[::2], b[::2]), (a[1::2], b[1::2])
    T = critic if callable(critic) else _fitted(critic == "quadratic", *first)
    with torch.no_grad():
        c = _log_mean_exp(_values(T, first[1]))
        gain, cost = _values(T, second[0]), (_values(T, second[1]) - c).exp()
    value = (gain.mean() - c - (cost.mean() - 1.0)).item()
    stderr = (gain.var() / len(gain) + cost.var() / len(cost)).sqrt().item()
    khat = max(_khat(z) for z in (cost, gain))
    skewed = torch.stack([skewness(cost), skewness(gain)]).abs().max()
    few = torch.tensor(float(min(len(gain), len(cost))))
    Doubt(few, skewed, torch.tensor(khat), torch.tensor(False)).warn("donsker_varadhan", len(cost))
    if value > math.log(len(cost)):
        text = f"value = {value:.3g} from {len(cost)} samples of q; they can show at most log {len(cost)}"
        warn_user(f"donsker_varadhan: {text} = {math.log(len(cost)):.3g} nats", DoubtfulEstimateWarning)
    return Estimate(value, stderr, len(gain), khat=khat)


def _fitted(quadratic: bool, x: Tensor, y: Tensor) -> Critic:
    """Return the critic that maximises mean_p T - log mean_q e^T, less a little weight decay; within +- log m of c."""
    both = torch.cat([x, y])
    middle, scale = both.mean(0), both.std(0).clamp_min(1e-300)
    rows, columns = torch.triu_indices(x.shape[1], x.shape[1])

    def features(z: Tensor) -> Tensor:
        z = (z - middle) / scale
        return torch.cat([z, z[:, rows] * z[:, columns]], 1) if quadratic else z

    f, g, most = features(x).mean(0), features(y), math.log(len(y))
    weights = _tilt(f, g, 1.0 / len(x))
    c = _log_mean_exp(g @ weights)
    return lambda z: (features(z) @ weights - c).clamp(-most, most)


def _tilt(f: Tensor, g: Tensor, decay: float) -> Tensor:
    """Return the w that minimises log mean e^(g w) - f w + decay |w|^2 / 2, which is convex, by Newton's method."""

    def loss(w: Tensor) -> Tensor:
        return _log_mean_exp(g @ w) - f @ w + 0.5 * decay * w.square().sum()

    w = torch.zeros_like(f)
    for _ in range(100):
        shares = (g @ w).softmax(0).unsqueeze(-1)
        mean = (shares * g).sum(0)
        slope, centred = mean - f + decay * w, g - mean
        step = torch.linalg.solve((shares * centred).mT @ centred + decay * torch.eye(len(w)).to(w), slope)
        expected, size = (slope @ step).item(), 1.0
        if expected < 1e-16:
            break
        while size > 1e-8 and loss(w - size * step) > loss(w) - 1e-4 * size * expected:
            size *= 0.5
        w = w - size * step
    return w


def _values(T: Critic, samples: Tensor) -> Tensor:
    values = T(samples).double()
    if values.shape != samples.shape[:1] or not bool(values.isfinite().all()):
        raise ValueError(f"critic gives {list(values.shape)}; allowed: finite numbers, [{len(samples)}]")
    return values


def _log_mean_exp(x: Tensor) -> Tensor:
    return x.logsumexp(0) - math.log(len(x))


def _khat(x: Tensor) -> float:
    """Return the index of the upper tail; 0 without one."""
    k = pareto_k(tail(x, len(x))).item()
    return 0.0 if math.isnan(k) else k


def _samples(x: Array, y: Array) -> tuple[Tensor, Tensor]:
    """Read both samples in float64, ``[n, d]``."""
    read = [tensor(z).detach().cpu().double() for z in (x, y)]
    a, b = (z.unsqueeze(-1) if z.ndim == 1 else z for z in read)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or a.shape[1] == 0:
        raise ValueError(f"samples have shapes {list(a.shape)} and {list(b.shape)}; allowed: [n, d] and [m, d]")
    for name, z in (("x", a), ("y", b)):
        if not bool(z.isfinite().all()):
            raise ValueError(f"{name} has {z[~z.isfinite()][0].item()}; allowed: finite numbers")
    return a, b
