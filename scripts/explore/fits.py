"""One Gaussian fitted to two modes: forward KL takes the mean of both, reverse KL takes one of them."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

from klrl.kl import kl_divergence
from klrl.policy.distributions import Categorical, DiagGaussian, GaussianMixture
from klrl.scripts.explore.report import Picture, Section, identity, number, shown
from klrl.scripts.explore.style import BLACK, BLUE, GREEN, GREY, ORANGE, finish, note

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Direction = Literal["forward", "reverse"]
WEIGHTS, MEANS, STDS = (0.6, 0.4), (-2.0, 2.5), (0.6, 0.7)
GRID = torch.linspace(-16.0, 16.0, 801, dtype=torch.float64)
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


SEE = """above, the forward fit spans both modes and is high between them, the reverse fits cover one mode each.
    Below, the KL for every mean and standard deviation of q, in nats: one valley for the forward KL, several
    for the reverse; the marks are the minima."""


def section(rng: torch.Generator) -> Section:
    """Show both fits, checked against the mixture's moments."""
    mean, std = moments()
    forward = fit("forward", 0.0, 1.0)
    left, right = (fit("reverse", m, s) for m, s in zip(MEANS, STDS, strict=True))
    broad = fit("reverse", mean, std)
    best, other = sorted((left, right), key=lambda f: f.kl)
    identities = (
        identity("mean of the forward fit = mean of p", forward.mean, mean, "", 1e-6),
        identity("standard deviation of the forward fit = that of p", forward.std, std, "", 1e-6),
    )
    named = {"forward fit": forward, "reverse fit, left mode": left, "reverse fit, right mode": right,
             "reverse fit, spanning both": broad}  # fmt: skip
    numbers = tuple(
        number(f"{name}: {what}", value, unit)
        for name, found in named.items()
        for what, value, unit in zip(("mean", "standard deviation", "its KL"), found, ("1", "1", "nats"), strict=True)
    )
    fits: dict[Direction, list[Fit]] = {"forward": [forward], "reverse": [best, other, broad]}
    return Section(
        "Which direction to minimise: mean-seeking and mode-seeking",
        _idea(forward, left, right, broad), numbers, identities,
        (Picture("03-forward-reverse.png", "The same Gaussian, fitted by the two directions of KL",
                 SEE, (11.5, 8.6), partial(_draw, fits=fits)),),
    )  # fmt: skip


def _idea(forward: Fit, left: Fit, right: Fit, broad: Fit) -> str:
    best = min(left, right, key=lambda f: f.kl)
    return f"""
        Let p have two modes and q be one Gaussian, so that q cannot be right everywhere. Minimising the forward
        KL(p‖q) forbids q to miss anything that p does: q gets the mean and the spread of p as a whole, mean
        {shown(forward.mean)} and standard deviation {shown(forward.std)}, and is high in the valley where p has almost
        nothing ("mean-seeking"). Minimising the reverse KL(q‖p) forbids q to do anything that p does not: q sits
        on one mode ("mode-seeking"), mean {shown(best.mean)} and standard deviation {shown(best.std)}.

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
    cells_p, cells_q = Categorical(density(TARGET)), Categorical(q.log_prob(GRID[:, None]))
    return kl_divergence(cells_p, cells_q) if direction == "forward" else kl_divergence(cells_q, cells_p)


def density(p: GaussianMixture) -> Tensor:
    """Return the log-density on the grid."""
    wide = p.map(lambda x: x.expand(len(GRID), *x.shape))
    return torch.as_tensor(wide.log_prob(GRID[:, None]))


def fit(direction: Direction, mean: float, std: float) -> Fit:
    """Minimise the KL over mean and log standard deviation, from a start, by L-BFGS."""
    x = torch.tensor([mean, std], dtype=torch.float64)
    x[1].log_()
    x.requires_grad_()
    search = torch.optim.LBFGS([x], max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-14,
                               line_search_fn="strong_wolfe")  # fmt: skip

    def loss() -> Tensor:
        search.zero_grad()
        value = divergence(direction, x[0], x[1])
        value.backward()
        return value

    search.step(loss)
    return Fit(x[0].item(), x[1].exp().item(), loss().item())


def _draw(figure: Figure, fits: dict[Direction, list[Fit]]) -> None:
    axes = figure.subplot_mosaic([["fits", "fits"], ["forward", "reverse"]])
    _draw_fits(axes["fits"], fits)
    for direction, found in fits.items():
        _draw_landscape(axes[direction], direction, found)


def _draw_fits(ax: Axes, fits: dict[Direction, list[Fit]]) -> None:
    (forward,), (best, other, _) = fits["forward"], fits["reverse"]
    ax.fill_between(GRID, density(TARGET).exp(), color=GREY, alpha=0.35, label="p: two modes")
    for found, colour, style, label in (
        (forward, BLUE, "-", "q that minimises KL(p‖q): mean-seeking"),
        (best, ORANGE, "-", "q that minimises KL(q‖p): mode-seeking"),
        (other, ORANGE, ":", "q at another minimum of KL(q‖p)"),
    ):
        mean, std = torch.tensor([found.mean]), torch.tensor([found.std])
        q = DiagGaussian(mean, std.log())
        ax.plot(GRID, q.log_prob(GRID[:, None]).exp(), style, color=colour, label=label)
    ax.set_xlim(-7.0, 8.0)
    ax.set_ylim(0.0, 0.8)
    finish(ax, "", "action", "probability density", legend="upper right")


def _draw_landscape(ax: Axes, direction: Direction, fits: list[Fit]) -> None:
    means = torch.linspace(-4.5, 4.5, 55, dtype=torch.float64)
    stds = torch.linspace(0.3, 4.0, 45, dtype=torch.float64)
    values = torch.stack([divergence(direction, means, s.log().expand(len(means))) for s in stds])
    levels = [0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0]
    lines = ax.contour(means, stds, values, levels=levels, colors=GREEN, linewidths=1)
    ax.clabel(lines, fmt="%g", fontsize=8)
    colour, formula = (BLUE, "KL(p‖q)") if direction == "forward" else (ORANGE, "KL(q‖p)")
    for found, mark in zip(fits, ("o", "D", "s"), strict=False):
        ax.plot(found.mean, found.std, mark, color=colour, markersize=9, markeredgecolor=BLACK)
        note(ax, f"{found.kl:.3f}", found.mean, found.std, BLACK, xytext=(9, 5), textcoords="offset points",
             bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.0})  # fmt: skip
    count = "one minimum" if len(fits) == 1 else f"{len(fits)} minima, the circle is the best"
    finish(ax, f"{formula} in nats: {count}", "mean of q", "standard deviation of q")
