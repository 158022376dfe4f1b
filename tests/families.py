"""Every family of policies: random records, the same as torch objects, and integrals that need none of our formulas."""

import itertools

import numpy as np
import pytest
import torch
from scipy import special, stats
from torch import distributions as td

from klrl.policy.distributions import (
    Bernoulli,
    Beta,
    Categorical,
    DiagGaussian,
    FullGaussian,
    GaussianMixture,
    MultiCategorical,
    SquashedGaussian,
)

NVEC = (3, 2, 4)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def lower(x):
    """A lower triangle with a positive diagonal."""
    return x.tril(-1) + torch.diag_embed(x.diagonal(dim1=-2, dim2=-1).exp())


MAKE = {
    Categorical: lambda *b, seed=0: Categorical(1.5 * randn(*b, 5, seed=seed)),
    MultiCategorical: lambda *b, seed=0: MultiCategorical(1.5 * randn(*b, sum(NVEC), seed=seed), NVEC),
    Bernoulli: lambda *b, seed=0: Bernoulli(1.5 * randn(*b, 3, seed=seed)),
    DiagGaussian: lambda *b, seed=0: DiagGaussian(0.7 * randn(*b, 2, seed=seed), 0.3 * randn(*b, 2, seed=seed + 50)),
    SquashedGaussian: lambda *b, seed=0: SquashedGaussian(
        0.4 * randn(*b, 2, seed=seed), 0.15 * randn(*b, 2, seed=seed + 50) - 0.7
    ),
    FullGaussian: lambda *b, seed=0: FullGaussian(
        0.7 * randn(*b, 2, seed=seed), lower(0.3 * randn(*b, 2, 2, seed=seed + 50))
    ),
    Beta: lambda *b, seed=0: Beta(*(0.7 + randn(*b, 2, seed=seed + i).exp() for i in (0, 50))),
}
DISCRETE = (Categorical, MultiCategorical, Bernoulli)
GAUSSIAN = (DiagGaussian, SquashedGaussian, FullGaussian)
every_family = pytest.mark.parametrize("family", MAKE, ids=lambda f: f.__name__)
discrete_families = pytest.mark.parametrize("family", DISCRETE, ids=lambda f: f.__name__)


def mixture(*b, K=3, d=2, seed=0):
    mean, log_std = 1.5 * randn(*b, K, d, seed=seed), 0.3 * randn(*b, K, d, seed=seed + 50)
    return GaussianMixture(randn(*b, K, seed=seed + 99), mean, log_std)


def normal(mean, std):
    return DiagGaussian(torch.tensor([mean], dtype=torch.float64), torch.tensor([std], dtype=torch.float64).log())


def leaves(record):
    return record.map(lambda x: x.detach().clone().requires_grad_())


def heads_of(p):
    """One softmax per head, as numpy arrays ``[k]``."""
    match p:
        case Categorical(logits=z):
            rows = [z.numpy()]
        case MultiCategorical(logits=z, nvec=nvec):
            rows = np.split(z.numpy(), np.cumsum(nvec)[:-1])
        case Bernoulli(logits=z):
            rows = [np.array([0.0, x]) for x in z.numpy()]
    return [np.exp(x - x.max()) / np.exp(x - x.max()).sum() for x in rows]


def line(family):
    """Points in one dimension and their weights, for the trapezoidal rule in a variable where densities are smooth.

    For a Beta the points are those of log x / (1 - x).
    """
    if family is Beta:
        t = np.arange(-80.0, 80.0, 0.25)
        return t, 0.25 * special.expit(t) * special.expit(-t)
    if family is SquashedGaussian:
        t = np.arange(-8.0, 8.0, 0.05)
        return np.tanh(t), 0.05 / np.cosh(t) ** 2
    return np.arange(-14.0, 14.0, 0.15), np.full(187, 0.15)


def logpdf_of(p, x):
    """Of one state, dimension by dimension ``[d][points]``."""
    match p:
        case Beta():
            log_x, log_rest = special.log_expit(x), special.log_expit(-x)
            pairs = zip(p.alpha.numpy(), p.beta.numpy(), strict=True)
            return [(a - 1) * log_x + (b - 1) * log_rest - special.betaln(a, b) for a, b in pairs]
        case SquashedGaussian():
            u, slope = np.arctanh(x), np.log1p(-x) + np.log1p(x)
            pairs = zip(p.mean.numpy(), p.log_std.exp().numpy(), strict=True)
            return [stats.norm.logpdf(u, m, s) - slope for m, s in pairs]
        case DiagGaussian():
            return [stats.norm.logpdf(x, m, s) for m, s in zip(p.mean.numpy(), p.log_std.exp().numpy(), strict=True)]


def integral(p, q, function):
    """sum or int f(log p(x), log q(x)) over all actions x of one state, of the joint distribution."""
    if isinstance(p, DISCRETE):
        joints = [[np.prod(c) for c in itertools.product(*heads_of(x))] for x in (p, q)]
        with np.errstate(divide="ignore"):
            return function(*(np.log(np.array(x)) for x in joints)).sum()
    x, w = line(type(p))
    weights = np.multiply.outer(w, w) if p.event_shape == (2,) else w
    if isinstance(p, FullGaussian):
        grid = np.stack(np.meshgrid(x, x, indexing="ij"), -1)
        logs = [
            stats.multivariate_normal.logpdf(grid, r.mean.numpy(), (r.scale_tril @ r.scale_tril.mT).numpy())
            for r in (p, q)
        ]
    else:
        by_dimension = [logpdf_of(r, x) for r in (p, q)]
        logs = [np.add.outer(*y) if len(y) == 2 else y[0] for y in by_dimension]
    return (weights * function(*logs)).sum()


def integrals(p, q, function):
    """For every state of two records with batch dimensions that broadcast."""
    shape = torch.broadcast_shapes(p.batch_shape, q.batch_shape)
    p, q = (r.map(lambda x, r=r: x.expand(*shape, *x.shape[len(r.batch_shape) :])) for r in (p, q))
    values = [integral(p[i], q[i], function) for i in np.ndindex(*shape)]
    return torch.tensor(np.array(values).reshape(tuple(shape)))


def to_torch(p):
    """The same distribution as a torch object."""
    match p:
        case Categorical():
            return td.Categorical(logits=p.logits)
        case Bernoulli():
            return td.Independent(td.Bernoulli(logits=p.logits), 1)
        case DiagGaussian():
            return td.Independent(td.Normal(p.mean, p.log_std.exp()), 1)
        case SquashedGaussian():
            return td.Independent(to_torch_dimensions(p), 1)
        case FullGaussian():
            return td.MultivariateNormal(p.mean, scale_tril=p.scale_tril.tril())
        case Beta():
            return td.Independent(td.Beta(p.alpha, p.beta), 1)


def to_torch_dimensions(p):
    return td.TransformedDistribution(td.Normal(p.mean, p.log_std.exp()), [td.TanhTransform()])


def torch_kl(p, q):
    """By torch's formulas, some of which do not broadcast."""
    shape = torch.broadcast_shapes(p.batch_shape, q.batch_shape)
    p, q = (r.map(lambda x, r=r: x.expand(*shape, *x.shape[len(r.batch_shape) :])) for r in (p, q))
    match p:
        case MultiCategorical():
            pairs = zip(p.logits.split(p.nvec, -1), q.logits.split(q.nvec, -1), strict=True)
            return sum(td.kl_divergence(td.Categorical(logits=a), td.Categorical(logits=b)) for a, b in pairs)
        case SquashedGaussian():
            return td.kl_divergence(to_torch(p.base), to_torch(q.base))
    return td.kl_divergence(to_torch(p), to_torch(q))
