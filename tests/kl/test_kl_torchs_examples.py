"""The examples on which PyTorch tests its own KL, for every pair of classes that it registers: its values, or infinity.

The parameters are those of its test/distributions/test_distributions.py (class TestKL), rows of p against rows of q.
"""

import math

import pytest
import torch
from torch import distributions as td

from klrl.kl import kl_divergence

PLACES = ([-2.0, 4.0, -3.0, 6.0], [1.0, 2.5, 1.0, 2.5])
NORMALS = ([-2.0, 2.0, -3.0, 3.0], [1.0, 2.0, 1.0, 2.0])
SHAPES = ([1.0, 2.5, 1.0, 2.5], [1.5, 1.5, 3.5, 3.5])
CHANCES = [0.1, 0.2, 0.6, 0.9]
CLASSES = [[0.4, 0.3, 0.3], [0.2, 0.7, 0.1], [0.33, 0.33, 0.34], [0.2, 0.2, 0.6]]
FAMILIES = {
    "Bernoulli": (td.Bernoulli, CHANCES),
    "Binomial": (lambda p: td.Binomial(30, p), CHANCES),
    "Beta": (td.Beta, *SHAPES),
    "Categorical": (td.Categorical, CLASSES),
    "OneHotCategorical": (td.OneHotCategorical, CLASSES),
    "Cauchy": (td.Cauchy, *NORMALS),
    "Chi2": (td.Chi2, [1.0, 2.0, 2.5, 5.0]),
    "ContinuousBernoulli": (td.ContinuousBernoulli, [0.1, 0.2, 0.5, 0.9]),
    "Dirichlet": (td.Dirichlet, [[0.1, 0.2, 0.7], [0.5, 0.4, 0.1], [0.33, 0.33, 0.34], [0.2, 0.2, 0.4]]),
    "Exponential": (td.Exponential, [1.0, 2.5, 5.0, 10.0]),
    "Gamma": (td.Gamma, *SHAPES),
    "Geometric": (td.Geometric, CHANCES),
    "Gumbel": (td.Gumbel, *PLACES),
    "HalfNormal": (td.HalfNormal, NORMALS[1]),
    "InverseGamma": (td.InverseGamma, *SHAPES),
    "Laplace": (td.Laplace, *PLACES),
    "LogNormal": (td.LogNormal, *NORMALS),
    "Normal": (td.Normal, *NORMALS),
    "Pareto": (td.Pareto, [2.5, 4.0, 2.5, 4.0], [2.25, 3.75, 2.25, 3.75]),
    "Poisson": (td.Poisson, [0.3, 1.0, 5.0, 10.0]),
    "Uniform": (td.Uniform, [0.1, 0.9, 0.2, 0.75], [0.15, 0.95, 0.25, 0.8]),
    "Uniform of positive numbers": (td.Uniform, [1.0, 1.5, 2.0, 4.0], [1.2, 2.0, 3.0, 7.0]),
    "Uniform of a Pareto": (td.Uniform, [6.5, 7.5, 6.5, 8.5], [7.5, 8.5, 9.5, 9.5]),
    "Uniform of any numbers": (td.Uniform, [-2.0, -1.0, 0.0, 2.0], [-1.0, 1.0, 1.0, 4.0]),
}
FINITE = {
    "Beta": "Beta Chi2 ContinuousBernoulli Exponential Gamma Normal",
    "Chi2": "Chi2 Exponential Gamma Normal",
    "ContinuousBernoulli": "ContinuousBernoulli Exponential Normal",
    "Exponential": "Chi2 Exponential Gamma Gumbel Normal",
    "Gamma": "Chi2 Exponential Gamma Gumbel Normal",
    "Gumbel": "Gumbel Normal",
    "Laplace": "Laplace Normal",
    "Normal": "Gumbel Laplace Normal",
    "Pareto": "Chi2 Exponential Gamma",
    "Uniform": "Beta Uniform",  # the latter infinite but on the diagonal
    "Uniform of positive numbers": "Chi2 Exponential Gamma",
    "Uniform of a Pareto": "Pareto",
    "Uniform of any numbers": "Gumbel Normal",
}
FINITE["Bernoulli"] = "Bernoulli Poisson"
FINITE |= {name: name for name in FAMILIES if name not in FINITE and " of " not in name}
# By p: several q, all of which miss a part of its support.
INFINITE = {
    "Bernoulli(0)": ["Bernoulli(1)"],
    "Bernoulli(1)": ["Bernoulli(0)"],
    "Beta(1, 2)": ["Uniform(0.25, 1)", "Uniform(0, 0.75)", "Uniform(0.25, 0.75)", "Pareto(1, 2)"],
    "Binomial(31, 0.7)": ["Binomial(30, 0.3)"],
    "Chi2(1)": ["Beta(2, 3)", "Pareto(2, 3)", "Uniform(-2, 3)"],
    "ContinuousBernoulli(0.25)": ["Uniform(0.25, 1)", "Uniform(0, 0.75)", "Uniform(0.25, 0.75)", "Pareto(1, 2)"],
    "Exponential(1)": ["Beta(2, 3)", "ContinuousBernoulli(0.75)", "Pareto(2, 3)", "Uniform(-2, 3)"],
    "Gamma(1, 2)": ["Beta(3, 4)", "ContinuousBernoulli(0.75)", "Pareto(3, 4)", "Uniform(-3, 4)"],
    "Pareto(2, 1)": ["Chi2(3)", "Exponential(3)", "Gamma(3, 4)", "Beta(3, 4)", "Uniform(-3, 4)", "Pareto(3, 4)"],
    "Pareto(1, 2)": ["Normal(-3, 4)", "ContinuousBernoulli(0.75)"],
    "Poisson(2)": ["Bernoulli(0.5)", "Binomial(10, 0.2)"],
    "Uniform(-1, 2)": ["Beta(3, 4)", "Chi2(3)", "Exponential(3)", "Gamma(3, 4)", "Pareto(3, 4)"],
    "Uniform(-1, 1)": ["Beta(2, 2)", "ContinuousBernoulli(0.75)"],
    "Uniform(0, 2)": ["Beta(3, 4)", "ContinuousBernoulli(0.75)"],
}
EVERYWHERE = ["Beta(3, 4)", "Chi2(3)", "ContinuousBernoulli(0.75)", "Exponential(3)", "Gamma(3, 4)", "Pareto(3, 4)",
              "Uniform(-3, 4)"]  # fmt: skip
INFINITE |= {f"{name}(-1, 2)": EVERYWHERE for name in ("Gumbel", "Laplace", "Normal")}
KNOWN_ELSEWHERE = {"ExponentialFamily", "Independent", "LowRankMultivariateNormal", "MultivariateNormal",
                   "TransformedDistribution"}  # fmt: skip


def made(name, dim):
    """Rows of distributions along one of two batch dimensions, in float64."""
    cls, *numbers = FAMILIES[name]
    return cls(*(torch.tensor(x, dtype=torch.float64).unsqueeze(dim) for x in numbers))


def called(text):
    """The object of "Class(numbers)", counts as they are and all else in float64."""
    name, _, numbers = text.rstrip(")").partition("(")
    values = [float(x) for x in numbers.split(", ")]
    count = [int(values.pop(0))] if name == "Binomial" else []
    return getattr(td, name)(*count, *(torch.tensor(x, dtype=torch.float64) for x in values))


@pytest.mark.parametrize("name", FINITE)
def test_where_the_kl_is_finite_it_is_torchs(name):
    for other in FINITE[name].split():
        p, q = made(name, 1), made(other, 0)
        whole = [x.expand((4, 4)) for x in (p, q)]  # torch does not broadcast all of its pairs
        expected = td.kl_divergence(*whole)
        for pair in ((p, q), whole):
            torch.testing.assert_close(kl_divergence(*pair), expected, rtol=1e-10, atol=1e-13)
        assert expected.shape == (4, 4)


def test_independent_parts_are_added():
    p, q = (td.Independent(made("Normal", dim).expand((4, 4)), 1) for dim in (0, 1))
    torch.testing.assert_close(kl_divergence(p, q), td.kl_divergence(p, q), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("name", INFINITE)
def test_where_the_support_is_missed_it_is_infinite(name):
    for other in INFINITE[name]:
        assert kl_divergence(called(name), called(other)).item() == math.inf, other


def test_every_pair_that_torch_registers_is_an_example():
    pairs = {(FAMILIES[name][0], FAMILIES[x][0]) for name, others in FINITE.items() for x in others.split()}
    pairs |= {(type(called(name)), type(called(x))) for name, others in INFINITE.items() for x in others}
    examples = {tuple(getattr(x, "__name__", "").replace("<lambda>", "Binomial") for x in pair) for pair in pairs}
    registered = {(a.__name__, b.__name__) for a, b in td.kl._KL_REGISTRY}
    missing = {pair for pair in registered - examples if not {*pair} <= KNOWN_ELSEWHERE}
    assert missing == set()


def test_where_torch_forgets_a_border_the_kl_is_right():
    zero, rate = torch.tensor(0.0, dtype=torch.float64), torch.tensor(2.0, dtype=torch.float64)
    fifth = torch.tensor(0.2, dtype=torch.float64)
    assert td.kl_divergence(td.Poisson(zero), td.Bernoulli(fifth)).item() == math.inf  # no success in one trial
    assert kl_divergence(td.Poisson(zero), td.Bernoulli(fifth)).item() == pytest.approx(-math.log(0.8), rel=1e-14)
    assert kl_divergence(td.Poisson(zero), td.Binomial(3, fifth)).item() == pytest.approx(-3 * math.log(0.8), rel=1e-14)
    for s in (0.0, 0.2, 1.0):  # by enumeration of no success and one
        terms = [(1 - s, math.exp(-2.0)), (s, 2.0 * math.exp(-2.0))]
        expected = sum(a * math.log(a / b) for a, b in terms if a > 0.0)
        p = td.Bernoulli(torch.tensor(s, dtype=torch.float64))
        assert kl_divergence(p, td.Poisson(rate)).item() == pytest.approx(expected, rel=1e-13)
    assert kl_divergence(td.Bernoulli(fifth), td.Poisson(zero)).item() == math.inf
    assert kl_divergence(td.Bernoulli(zero), td.Poisson(zero)).item() == 0.0


def test_wisharts_of_a_batch_have_the_kl_of_each():
    """Torch's generic formula adds the terms of the degrees of freedom up over a batch; one by one it is right."""
    df = torch.tensor([[5.0, 3.5, 6.0], [4.0, 4.5, 2.5]], dtype=torch.float64)
    scale = torch.randn(2, 3, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scale = scale.tril(-1) + torch.diag_embed(scale.diagonal(dim1=-2, dim2=-1).exp())
    each = [td.kl_divergence(*(td.Wishart(df[j, i], scale_tril=scale[j, i]) for j in (0, 1))) for i in range(3)]
    found = kl_divergence(*(td.Wishart(df[j], scale_tril=scale[j]) for j in (0, 1)))
    torch.testing.assert_close(found, torch.stack(each).detach(), rtol=1e-10, atol=0.0)
