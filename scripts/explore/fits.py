"""One Gaussian fitted to two modes: forward KL takes the mean of both, reverse KL takes one of them."""

from __future__ import annotations

import math
from functools import cache
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from klrl.kl import kl_divergence
from klrl.policy.distributions import Categorical, DiagGaussian, GaussianMixture
from klrl.scripts.explore.charts import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    Block,
    Button,
    Chart,
    Demo,
    Series,
    Slider,
    area,
    points,
    series,
    words,
)
from klrl.scripts.explore.contents import Section, identity, number, shown
from klrl.scripts.explore.search import least

Direction = Literal["forward", "reverse"]
WEIGHTS, MEANS, STDS = (0.6, 0.4), (-2.0, 2.5), (0.6, 0.7)
GRID = torch.linspace(-16.0, 16.0, 401, dtype=torch.float64)
TARGET = GaussianMixture(
    torch.tensor(WEIGHTS, dtype=torch.float64).log(),
    torch.tensor(MEANS, dtype=torch.float64)[:, None],
    torch.tensor(STDS, dtype=torch.float64)[:, None].log(),
)


class Fit(NamedTuple):
    """A Gaussian, and the KL that it minimises, in nats."""

    mean: float
    std: float
    kl: float


def section(rng: torch.Generator) -> Section:
    """Show both fits, checked against the mixture's moments."""
    del rng
    mean, std = moments()
    forward = fit("forward", 0.0, 1.0)
    identities = (
        identity("mean of the forward fit = mean of p", forward.mean, mean, "", 1e-6),
        identity("standard deviation of the forward fit = that of p", forward.std, std, "", 1e-6),
    )
    left, right = (fit("reverse", m, s) for m, s in zip(MEANS, STDS, strict=True))
    broad = fit("reverse", mean, std)
    named = {"forward fit": forward, "reverse fit, left mode": left, "reverse fit, right mode": right,
             "reverse fit, spanning both": broad}  # fmt: skip
    numbers = tuple(
        number(f"{name}: {what}", value, unit)
        for name, found in named.items()
        for what, value, unit in zip(("mean", "standard deviation", "its KL"), found, ("1", "1", "nats"), strict=True)
    )
    blocks = (*_text(), _demo(named), _outcome(forward, left, right, broad))
    title = "Which direction to minimise: mean-seeking and mode-seeking"
    return Section("fits", title, "Two ways to fit", blocks, numbers, identities)


def _text() -> tuple[Block, ...]:
    return (
        """
        From here on p and q are whole distributions. For densities the sum over outcomes becomes an integral, and all
        else stays. Let p have two *modes* (bumps), and let q be one Gaussian with a mean and a standard deviation of
        your choice: it cannot be right everywhere. What is the best q? That depends on the direction of KL that you
        minimise. Try to make each of the two small:
        """,
    )


def _demo(named: dict[str, Fit]) -> Demo:
    shape = Chart(
        "p and your q", "action", "probability density",
        (
            area("p", GRID[_inside()], torch.zeros(int(_inside().sum())), density().exp()[_inside()], GREY, alpha=0.4),
            series("line", "q", ORANGE, live="q", x=[], y=[]),
        ),
        x_range=(-7.0, 8.0), y_range=(0.0, 0.75),
    )  # fmt: skip
    found = [*named.values()]
    maps = (
        _landscape("forward", "Forward KL(p‖q): one minimum", found[:1], BLUE),
        _landscape("reverse", "Reverse KL(q‖p): three minima", found[1:], ORANGE),
    )
    buttons = tuple(
        Button(name, {"mean": round(x.mean, 2), "std": round(x.std, 2)})
        for name, x in zip(("least forward KL", "left mode", "right mode", "spanning both"), found, strict=True)
    )
    sliders = (
        Slider("mean", "mean of q", -4.5, 4.5, 0.01, 1.0),
        Slider("std", "standard deviation of q", 0.3, 4.0, 0.01, 1.0),
    )
    given = {"grid": GRID.tolist(), "log_p": density().clamp_min(-1e4).tolist()}
    see = """Maps of the KL for every mean and standard deviation of q: lines of equal KL in nats, like heights on a
        hiking map. The black point is your q, marks are minima. The third minimum of the reverse KL lies in a shallow
        bowl between the two deep ones."""
    return Demo((shape, *maps), see, sliders, buttons, live="fits", given=given)


def _inside() -> Tensor:
    return (GRID >= -7.0) & (GRID <= 8.0)


def _outcome(forward: Fit, left: Fit, right: Fit, broad: Fit) -> str:
    best = min(left, right, key=lambda f: f.kl)
    return f"""
        Minimising the *forward* KL(p‖q) forbids q to miss anything that p does: q gets the mean and the spread of p as
        a whole, mean {shown(forward.mean)} and standard deviation {shown(forward.std)}, and is high in the valley
        where p has almost nothing ("mean-seeking"). Minimising the *reverse* KL(q‖p) forbids q to do anything that p
        does not: q sits on one mode ("mode-seeking"), mean {shown(best.mean)} and standard deviation {shown(best.std)}.

        The forward KL has one minimum. The reverse KL has one on each mode ({shown(left.kl)} nats on the left one,
        {shown(right.kl)} on the right one) and here a third that spans both ({shown(broad.kl)}, the worst): where the
        search starts decides where it ends.
    """


def moments() -> tuple[float, float]:
    """Return mean and standard deviation of the mixture, from its parameters."""
    mean = sum(w * m for w, m in zip(WEIGHTS, MEANS, strict=True))
    second = sum(w * (s * s + m * m) for w, m, s in zip(WEIGHTS, MEANS, STDS, strict=True))
    return mean, (second - mean * mean) ** 0.5


def divergence(direction: Direction, mean: Tensor, log_std: Tensor) -> Tensor:
    """Return KL between the mixture and Gaussians ``[*B]`` by quadrature over the cells of a fine grid."""
    q = DiagGaussian(mean.unsqueeze(-1), log_std.unsqueeze(-1)).map(lambda x: x.unsqueeze(-2))
    cells_p, cells_q = Categorical(density()), Categorical(q.log_prob(GRID[:, None]))
    return kl_divergence(cells_p, cells_q) if direction == "forward" else kl_divergence(cells_q, cells_p)


@cache
def density() -> Tensor:
    """Return the mixture's log-density on the grid."""
    wide = TARGET.map(lambda x: x.expand(len(GRID), *x.shape))
    return torch.as_tensor(wide.log_prob(GRID[:, None]))


def fit(direction: Direction, mean: float, std: float) -> Fit:
    """Minimise the KL over mean and log standard deviation, from a start."""
    start = torch.tensor([mean, math.log(std)], dtype=torch.float64)
    x = least(lambda x: divergence(direction, x[0], x[1]), start)
    return Fit(x[0].item(), x[1].exp().item(), float(divergence(direction, x[0], x[1])))


LEVELS = {
    "forward": (0.65, 0.8, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0),
    "reverse": (0.6, 0.8, 1.0, 1.2, 1.32, 1.35, 1.38, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0),
}
"""Lines of the maps, in nats; those near 1.35 are in the bowl of the third minimum."""


def _landscape(direction: Direction, title: str, fits: list[Fit], colour: int) -> Chart:
    from contourpy import contour_generator

    means = torch.linspace(-4.5, 4.5, 46, dtype=torch.float64)
    stds = torch.linspace(0.3, 4.0, 38, dtype=torch.float64)
    values = divergence(direction, means.expand(len(stds), -1), stds.log()[:, None].expand(-1, len(means)))
    lines = contour_generator(means.numpy(), stds.numpy(), values.numpy())
    levels: list[Series] = []
    for i, height in enumerate(LEVELS[direction]):
        found = [np.asarray(part) for part in lines.lines(height)]
        xs, ys = ([[float(f"{v:.3g}") for v in part[:, c]] for part in found] for c in (0, 1))
        name = "" if i else "equal KL"
        levels.append(series("contours", name, GREEN, xs=xs, ys=ys, width=1.8 if 1.3 < height < 1.4 else 1.1))
    marks = points("minimum", [x.mean for x in fits], [x.std for x in fits], colour, size=11, marker="diamond")
    text = words(
        [x.mean for x in fits], [x.std for x in fits], [f"{x.kl:.3f}" for x in fits], right=8, down=-12, align="left"
    )
    here = series("points", "your q", None, live="here", x=[], y=[], size=9)
    return Chart(
        title,
        "mean of q",
        "standard deviation of q",
        (*levels, marks, here, text),
        x_range=(-4.5, 4.5),
        y_range=(0.3, 4.0),
    )
