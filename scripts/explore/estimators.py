"""KL from samples: bias and spread of k1, k2, k3 and the optimal control variate."""

from __future__ import annotations

import warnings
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from klrl.kl import DoubtfulEstimateWarning, estimate_kl, kl_divergence
from klrl.kl.estimators import Estimator, SampleEstimator, kl_samples
from klrl.policy.distributions import DiagGaussian
from klrl.scripts.explore.report import Picture, Section, identity, number
from klrl.scripts.explore.style import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, finish, note

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHIFT = 0.5
SIZES = (10, 30, 100, 300, 1000, 3000)
DIMENSIONS = (1, 2, 4, 8, 16)
REPEATS = 200
FEW = 300
"""Number of samples per estimate where the dimension varies."""
STYLE: dict[Estimator, tuple[str, str]] = {
    "k1": (BLUE, "o"), "k2": (ORANGE, "s"), "k3": (GREEN, "^"), "optimal": (PURPLE, "D"),
}  # fmt: skip
Table = dict[Estimator, Tensor]
"""Estimates ``[points, REPEATS]`` over the KL."""
SEE = f"""above left, values of single samples: k1 on both sides of 0, k2 and k3 on one. Above right, the bias: k2
    stays {100 * SHIFT**2 / 4:.2f} % too high however many samples; bars are two standard errors of
    {REPEATS} repeats. Below left, the spread falls with the root of the sample size. Below right, the curves of
    k1 and k3 cross as dimensions are added."""


def section(rng: torch.Generator) -> Section:
    """Estimate the KL of normals whose means differ by SHIFT in every dimension."""
    by_size = collected([(1, n) for n in SIZES], rng)
    by_dimension = collected([(d, FEW) for d in DIMENSIONS], rng)
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
    return Section(
        "KL from samples: bias and spread of the estimators", _idea(negative), numbers, identities,
        (Picture("05-estimators.png", "Estimating KL(p‖q) from samples of p, two normals", SEE, (11.5, 8.6),
                 partial(_draw, one=one, by_size=by_size, by_dimension=by_dimension)),),
    )  # fmt: skip


def _idea(negative: float) -> str:
    return f"""
        Without a formula, KL(p‖q) is a mean over samples from p, of functions of the ratio r = q/p. k1 = -log r is
        unbiased but noisy: {100 * negative:.0f} % of its samples are negative here, though no KL is.
        k2 = (log r)²/2 is calmer and biased: more samples do not help. k3 = r - 1 - log r is unbiased and never
        negative: it is k1 plus r - 1, whose mean is 0; "optimal" adds the multiple of r - 1 that is best.

        Near p = q, k3 is close to the best. Farther apart (more dimensions, each with the same shift), rare large
        ratios spoil it, and the multiple that "optimal" has to estimate, and k1 is the better one. Where the closed
        form is known none of this is needed: klrl reports it.
    """


def pair(d: int) -> tuple[DiagGaussian, DiagGaussian]:
    """Return standard normals of d dimensions, SHIFT apart in each."""
    zero = torch.zeros(d, dtype=torch.float64)
    return DiagGaussian(zero, zero), DiagGaussian(zero + SHIFT, zero)


def collected(points: list[tuple[int, int]], rng: torch.Generator) -> Table:
    """Return REPEATS estimates over the KL, by dimensions and samples; all estimators see the same sample.

    Of doubtful ones nothing is said: what becomes of them is what is shown.
    """
    found: Table = {name: torch.empty(len(points), REPEATS, dtype=torch.float64) for name in STYLE}
    for i, (d, n) in enumerate(points):
        p, q = pair(d)
        kl = float(kl_divergence(p, q))
        log_p, log_q = log_probs(d, REPEATS * n, rng)
        for j, (a, b) in enumerate(zip(log_p.split(n), log_q.split(n), strict=True)):
            for name, table in found.items():
                table[i, j] = value_of(a, b, name) / kl
    return found


def value_of(log_p: Tensor, log_q: Tensor, name: Estimator) -> float:
    """Return an estimate of the KL, doubtful or not."""
    if name != "optimal":
        return kl_samples(log_q - log_p, name).mean().item()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DoubtfulEstimateWarning)
        return estimate_kl(log_p, log_q, name).value


def log_probs(d: int, n: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return log p and log q of n samples from p."""
    p, q = pair(d)
    x = torch.as_tensor(p.map(lambda y: y.expand(n, -1)).sample(rng))
    return torch.as_tensor(p.log_prob(x)), torch.as_tensor(q.log_prob(x))


def single(rng: torch.Generator) -> dict[SampleEstimator, Tensor]:
    """Return the values of the estimators at many samples, one dimension."""
    log_p, log_q = log_probs(1, 200_000, rng)
    names: tuple[SampleEstimator, ...] = ("k1", "k2", "k3")
    return {name: kl_samples(log_q - log_p, name) for name in names}


def _draw(figure: Figure, one: dict[SampleEstimator, Tensor], by_size: Table, by_dimension: Table) -> None:
    (values, bias), (size, dimension) = figure.subplots(2, 2)
    _draw_values(values, one)
    for i, (name, (colour, mark)) in enumerate(STYLE.items()):
        error = (200 * by_size[name].std(-1) / REPEATS**0.5).tolist()
        off = (100 * (by_size[name].mean(-1) - 1.0)).tolist()
        x = [n * (0.91 + 0.06 * i) for n in SIZES]
        bias.errorbar(x, off, error, color=colour, marker=mark, capsize=3, label=name,
                      linewidth=1)  # fmt: skip
        style = "--" if name == "optimal" else "-"
        size.loglog(SIZES, 100 * by_size[name].std(-1), style, color=colour, marker=mark, label=name)
        dimension.loglog(DIMENSIONS, 100 * by_dimension[name].std(-1), style, color=colour, marker=mark, label=name)
    bias.set_xscale("log")
    bias.axhline(0.0, color=BLACK, linewidth=1)
    finish(bias, "Bias: k2 keeps it", "number of samples", "mean of the estimates - KL, % of KL", legend="upper right")
    size.loglog(SIZES, [900.0 / n**0.5 for n in SIZES], ":", color=GREY)
    note(size, "slope 1/√n", SIZES[1], 900.0 / SIZES[1] ** 0.5 * 1.08, GREY)
    finish(size, "Spread against sample size, one dimension", "number of samples", "standard deviation, % of KL",
           legend="lower left")  # fmt: skip
    dimension.set_xticks(DIMENSIONS, [str(d) for d in DIMENSIONS])
    dimension.set_yticks([5, 10, 20, 30], ["5", "10", "20", "30"])
    dimension.minorticks_off()
    finish(dimension, f"Spread against dimension, {FEW} samples", f"dimensions, a shift of {SHIFT:g} in each",
           "standard deviation, % of KL", legend="upper center")  # fmt: skip


def _draw_values(ax: Axes, one: dict[SampleEstimator, Tensor]) -> None:
    edges = 0.04 * torch.arange(-50.0, 51.0, dtype=torch.float64)
    for name, x in one.items():
        ax.hist(x, edges.tolist(), histtype="step", density=True, color=STYLE[name][0], linewidth=1.5, label=name)
    kl = SHIFT**2 / 2.0
    ax.axvline(kl, color=BLACK, linestyle="--", linewidth=1)
    note(ax, f"KL = {kl:g}", kl + 0.04, 6.0)
    ax.set_yscale("log")
    finish(ax, "Single samples", "value of one sample, nats", "density, per nat", legend="upper left")
