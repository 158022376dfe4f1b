"""KL from samples: bias and spread of k1, k2, k3 and the optimal control variate."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from klrl.kl import DoubtfulEstimateWarning, estimate_kl, kl_divergence
from klrl.kl.estimators import Estimator, SampleEstimator, kl_samples
from klrl.policy.distributions import DiagGaussian
from klrl.scripts.explore.charts import (
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    Chart,
    Demo,
    Formula,
    Series,
    Slider,
    line,
    points,
)
from klrl.scripts.explore.contents import Section, identity, number, shown

SHIFT = 0.5
SIZES = (10, 30, 100, 300, 1000, 3000)
DIMENSIONS = (1, 2, 4, 8, 16)
REPEATS = 200
OPTIMAL = 100
"""Repeats of the estimator that computes more."""
FEW = 300
"""Number of samples per estimate where the dimension varies."""
COLOURS: dict[Estimator, int] = {"k1": BLUE, "k2": ORANGE, "k3": GREEN, "optimal": PURPLE}
PLAIN: tuple[SampleEstimator, ...] = ("k1", "k2", "k3")
Table = dict[Estimator, Tensor]
"""Estimates ``[points, repeats]`` over the KL."""


def section(rng: torch.Generator) -> Section:
    """Estimate the KL of normals whose means differ by SHIFT in every dimension."""
    by_size = collected([(1, n) for n in SIZES], rng)
    by_dimension = collected([(d, FEW) for d in DIMENSIONS], rng) | {"optimal": optimal(rng)}
    one = single(rng)
    p, q = pair(1)
    kl = float(kl_divergence(p, q))
    negative = float((one["k1"] < 0).double().mean())
    predicted: dict[SampleEstimator, float]
    predicted = {"k1": 2.0 / SHIFT, "k2": (2.0 + SHIFT**2) ** 0.5,
                 "k3": 2.0 * (torch.tensor(SHIFT**2).double().expm1() - SHIFT**2).sqrt().item() / SHIFT**2}  # fmt: skip
    identities = tuple(
        identity(f"standard deviation of one {name}, divided by the KL = its closed form, within 5 %",
                 one[name].std() / kl, value, "", 0.05)
        for name, value in predicted.items()
    )  # fmt: skip
    numbers = (
        number("KL(p‖q), one dimension", kl, "nats"),
        number("share of negative samples of k1", negative, "1"),
        *(number(f"{name}, {SIZES[-1]:,} samples: bias divided by the KL", x[-1].mean() - 1.0, "1")
          for name, x in by_size.items()),
        *(number(f"{name}, {SIZES[-1]:,} samples: standard deviation divided by the KL", x[-1].std(), "1")
          for name, x in by_size.items()),
        *(number(f"{name}, {FEW} samples of {DIMENSIONS[-1]} dimensions: standard deviation divided by the KL",
                 x[-1].std(), "1") for name, x in by_dimension.items()),
    )  # fmt: skip
    blocks = (_text(), *_formulas(negative), _sizes(by_size, one), _far(), _dimensions(by_dimension))
    title = "KL from samples: bias and spread of the estimators"
    return Section("estimators", title, "KL from samples", blocks, numbers, identities)


def _text() -> str:
    return """
        Often there is no formula, only samples x from p and the log-probabilities that p and q give them. As KL(p‖q) is
        a mean over p, it can be estimated by a mean over samples. With the ratio r = q(x)/p(x), three values of a
        sample are in use; their names are those of John Schulman, who compared them:
    """


def _formulas(negative: float) -> tuple[Formula | str, ...]:
    return (
        Formula("k1 = −log r,   k2 = (log r)² / 2,   k3 = r − 1 − log r"),
        f"""
        k1 has the right mean but is noisy: {100 * negative:.0f} % of its samples are negative here, though no KL is.
        k2 is calmer and *biased*: its mean is another number, and more samples do not help. k3 is k1 plus r − 1, whose
        mean is 0: unbiased, and never negative. Take more samples and see what becomes of each. p and q are Gaussians
        of standard deviation 1 whose means are {SHIFT:g} apart:
        """,
    )


def _sizes(by_size: Table, one: dict[SampleEstimator, Tensor]) -> Demo:
    kl, start, edges = SHIFT**2 / 2.0, 2, torch.linspace(-0.06, 0.31, 38, dtype=torch.float64)
    shapes: list[Series] = []
    for i, name in enumerate(PLAIN):
        frames = [{"x": edges, "y": heights(by_size[name][n] * kl, edges)} for n in range(len(SIZES))]
        shapes.append(line(name, edges, frames[start]["y"], COLOURS[name], i).moved(frames))
    wide = torch.linspace(-2.0, 2.0, 81, dtype=torch.float64)
    charts = (
        Chart(
            f"{REPEATS} estimates, each from so many samples", "estimate, nats", f"how many of {REPEATS}",
            (*shapes, line("the true KL", [kl, kl], [0, REPEATS / 5], None, 2)),
            x_range=(-0.06, 0.31),
        ),
        Chart(
            "Values of single samples", "value of one sample, nats", "share per bar",
            tuple(line(name, wide, heights(x, wide) / len(x), COLOURS[name], i)
                  for i, (name, x) in enumerate(one.items())),
            x_range=(-2.0, 2.0), y_range=(0.0, 0.35),
        ),
        Chart(
            "Spread of the estimates", "number of samples", "standard deviation, % of the KL",
            tuple(line(name, SIZES, 100 * by_size[name].std(-1), COLOURS[name], i) for i, name in enumerate(PLAIN)),
            log_x=True, log=True, x_at=SIZES, y_at=(3, 10, 30, 100),
        ),
    )  # fmt: skip
    says = tuple(
        "mean of the estimates: " + "; ".join(f"{name} {shown(by_size[name][n].mean() * kl)}" for name in PLAIN)
        + f" nats; the KL is {shown(kl)}"
        for n in range(len(SIZES))
    )  # fmt: skip
    slider = Slider("n", "samples per estimate", 0, len(SIZES) - 1, 1, start, tuple(f"{n:,}" for n in SIZES))
    see = f"""All become narrower with the root of the number of samples: a hundred times as many for a tenth of the
        spread. k2 gathers around a place {100 * SHIFT**2 / 4:.2f} % too high. The closer p and q, the greater the lead
        of k3: at 0.01 nats, the size of a policy's update, k1 needs a hundred times as many samples for the same
        spread."""
    return Demo(charts, see, (slider,), says=says)


def _far() -> str:
    return """
        Farther apart, things turn. With more dimensions, each with the same shift, rare large ratios spoil k3, and k1
        becomes the better one. "optimal" adds the multiple of r − 1 that is best, estimated from the samples.
    """


def _dimensions(by_dimension: Table) -> Demo:
    chart = Chart(
        f"{FEW} samples", f"dimensions, a shift of {SHIFT:g} in each", "standard deviation, % of the KL",
        tuple(
            part
            for i, (name, x) in enumerate(by_dimension.items())
            for part in (line(name, DIMENSIONS, 100 * x.std(-1), COLOURS[name], i),
                         points("", DIMENSIONS, 100 * x.std(-1), COLOURS[name], size=6))
        ),
        log_x=True, log=True, x_at=DIMENSIONS, y_at=(5, 7, 10, 15, 20, 30),
    )  # fmt: skip
    see = """The KL grows with the dimensions, and the curves of k1 and k3 cross at about 0.6 nats. Where the closed
        form is known none of this is needed: klrl's agents report that."""
    return Demo((chart,), see)


def heights(x: Tensor, edges: Tensor) -> Tensor:
    """Return how many values lie nearest to each of evenly spaced places; those outside are left out."""
    step = edges[1] - edges[0]
    place = ((x - edges[0]) / step).round().long()
    inside = (place >= 0) & (place < len(edges))
    return torch.bincount(place[inside], minlength=len(edges)).double()


def pair(d: int) -> tuple[DiagGaussian, DiagGaussian]:
    """Return standard normals of d dimensions, SHIFT apart in each."""
    zero = torch.zeros(d, dtype=torch.float64)
    return DiagGaussian(zero, zero), DiagGaussian(zero + SHIFT, zero)


def collected(points: list[tuple[int, int]], rng: torch.Generator) -> Table:
    """Return REPEATS estimates over the KL, by dimensions and samples; all estimators see the same sample."""
    found: dict[SampleEstimator, list[Tensor]] = {name: [] for name in PLAIN}
    for d, n in points:
        p, q = pair(d)
        log_p, log_q = log_probs(d, REPEATS * n, rng)
        for name, values in found.items():
            values.append(kl_samples(log_q - log_p, name).view(REPEATS, n).mean(-1) / kl_divergence(p, q))
    return {name: torch.stack(values) for name, values in found.items()}


def optimal(rng: torch.Generator) -> Tensor:
    """Return estimates by the best multiple of r - 1 over the KL, ``[DIMENSIONS, OPTIMAL]``.

    Of doubtful ones nothing is said: what becomes of them is what is shown.
    """
    found = torch.empty(len(DIMENSIONS), OPTIMAL, dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DoubtfulEstimateWarning)
        for i, d in enumerate(DIMENSIONS):
            log_p, log_q = log_probs(d, OPTIMAL * FEW, rng)
            kl = float(kl_divergence(*pair(d)))
            for j, (a, b) in enumerate(zip(log_p.split(FEW), log_q.split(FEW), strict=True)):
                found[i, j] = estimate_kl(a, b, "optimal").value / kl
    return found


def log_probs(d: int, n: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return log p and log q of n samples from p."""
    p, q = pair(d)
    x = torch.as_tensor(p.map(lambda y: y.expand(n, -1)).sample(rng))
    return torch.as_tensor(p.log_prob(x)), torch.as_tensor(q.log_prob(x))


def single(rng: torch.Generator) -> dict[SampleEstimator, Tensor]:
    """Return the values of the estimators at many samples, one dimension."""
    log_p, log_q = log_probs(1, 100_000, rng)
    return {name: kl_samples(log_q - log_p, name) for name in PLAIN}
