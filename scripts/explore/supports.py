"""Disjoint supports: KL is infinite, the Jensen-Shannon divergence ends at log 2, Wasserstein measures the way."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from klrl.kl import estimate_divergence, jensen_shannon, kl_divergence, wasserstein
from klrl.policy.distributions import Categorical, DiagGaussian
from klrl.scripts.explore.report import Picture, Section, identity, number, shown
from klrl.scripts.explore.style import BLUE, GREEN, GREY, ORANGE, bars, finish, note

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CELLS, WIDE = 30, 10
SHIFTS = torch.arange(CELLS - WIDE + 1)
STD = 0.1
WAYS = torch.linspace(0.0, 2.0, 81, dtype=torch.float64)
SAMPLES = 20_000
SEE = """above left, the two blocks at one shift; above right, the KL jumps to infinity at the first shift (arrows),
    Jensen-Shannon rises and saturates, the Wasserstein distance (right-hand scale) is a straight line. Below, the
    same for normals: a parabola, a saturating curve, a line."""


def section(rng: torch.Generator) -> Section:
    """Show blocks of equally likely actions, and narrow normals, moved apart."""
    p, q = blocks()
    kl, js, way = kl_divergence(p, q), jensen_shannon(p, q), wasserstein(p, q)
    smooth = kl_divergence(p[-1], q[-1], support="smooth")
    narrow, moved = normals()
    normal_kl, normal_way = kl_divergence(narrow, moved), wasserstein(narrow, moved)
    sampled = estimate_divergence(narrow, moved, "jensen_shannon", n=SAMPLES, generator=rng)
    identities = (
        identity("Jensen-Shannon of disjoint blocks = log 2", js[-1], math.log(2.0), "nats"),
        identity("Wasserstein distance at the largest shift = that shift", way[-1], float(SHIFTS[-1]), "cells"),
        identity("KL of the normals = (distance / standard deviation)^2 / 2",
                 normal_kl[-1], 0.5 * (float(WAYS[-1]) / STD) ** 2, "nats"),
        identity("Wasserstein distance of the normals = their distance", normal_way[-1], WAYS[-1], ""),
    )  # fmt: skip
    numbers = (
        number("KL(P‖Q) at shift 0", kl[0], "nats"),
        number("KL(P‖Q) at shift 1", kl[1], "nats"),
        number("Jensen-Shannon at shift 1", js[1], "nats"),
        number(f"Jensen-Shannon at shift {WIDE}", js[WIDE], "nats"),
        number(f"Wasserstein distance at shift {WIDE}", way[WIDE], "cells"),
        number('KL(P‖Q) of disjoint blocks with support="smooth"', smooth, "nats"),
        number(f"KL of the normals at distance {WAYS[-1]:g}", normal_kl[-1], "nats"),
        number(f"Jensen-Shannon of the normals at distance {WAYS[-1]:g}, from samples", sampled.value[-1], "nats"),
    )
    return Section(
        "Nothing in common: infinite KL, and what stays finite", _idea(float(normal_kl[-1])), numbers, identities,
        (Picture("04-disjoint-supports.png", "Moving two distributions apart", SEE, (11.5, 8.2),
                 lambda figure: _draw(figure, sampled.value)),),
    )  # fmt: skip


def _idea(apart: float) -> str:
    return f"""
        Where Q gives probability 0 to something that P does, the code for Q has no word for it and KL(P‖Q) is
        infinite. Take {WIDE} equally likely actions of {CELLS} and move them along: a shift of one already makes the KL
        infinite, in both directions, and it stays so however far apart the two are. Masked actions do this to policies.

        Two divergences stay finite. Jensen-Shannon, the mean KL to the mixture (P + Q)/2, rises to
        log 2 = {shown(math.log(2.0))} and then says no more than "disjoint". The Wasserstein distance, how far
        probability has to be carried, goes on growing with the way. Narrow normals behave alike, only that their KL is
        huge instead of infinite: {shown(apart)} nats at a distance of {WAYS[-1]:g}.
    """


def blocks() -> tuple[Categorical, Categorical]:
    """Return P and, for every shift, Q: equally likely actions among masked ones."""
    cell = torch.arange(CELLS)
    allowed = (cell >= SHIFTS[:, None]) & (cell < SHIFTS[:, None] + WIDE)
    q = Categorical.masked(torch.zeros(len(SHIFTS), CELLS, dtype=torch.float64), allowed)
    return q[:1].map(lambda x: x.expand(len(SHIFTS), -1)), q


def normals() -> tuple[DiagGaussian, DiagGaussian]:
    """Return N(0, STD^2) and, for every distance, the same moved by it."""
    log_std = torch.full((len(WAYS), 1), math.log(STD), dtype=torch.float64)
    return DiagGaussian(torch.zeros_like(log_std), log_std), DiagGaussian(WAYS[:, None], log_std)


def _draw(figure: Figure, sampled: Tensor) -> None:
    (picture, discrete), (bottom, continuous) = figure.subplots(2, 2)
    p, q = blocks()
    _draw_blocks(picture, p, q)
    infinite = kl_divergence(p, q).isinf()
    _draw_finite(discrete, SHIFTS, jensen_shannon(p, q), wasserstein(p, q), "cells")
    for shift in SHIFTS[infinite][::2].tolist():
        note(discrete, "", shift, 0.83, xytext=(shift, 0.75), arrowprops={"arrowstyle": "->", "color": BLUE})
    discrete.plot(SHIFTS[~infinite], kl_divergence(p, q)[~infinite], "o", color=BLUE)
    note(discrete, "KL is infinite for every shift > 0", 1.0, 0.86, BLUE)
    discrete.set_xticks(range(0, len(SHIFTS), 5))
    finish(discrete, "Blocks", "shift in cells", "nats")
    narrow, moved = normals()
    bottom.plot(WAYS, kl_divergence(narrow, moved), color=BLUE)
    finish(bottom, f"Normals of standard deviation {STD:g}: KL", "distance of the means", "KL(P‖Q), nats")
    _draw_finite(continuous, WAYS, sampled, wasserstein(narrow, moved), "units of the action")
    finish(continuous, "Normals: what stays small", "distance of the means", "nats")


def _draw_blocks(ax: Axes, p: Categorical, q: Categorical) -> None:
    shift = 6
    bars(ax, torch.arange(CELLS), p.probs[0], 0.9, color=BLUE, alpha=0.55, label="P")
    bars(ax, torch.arange(CELLS), q.probs[shift], 0.9, color=ORANGE, alpha=0.55, label=f"Q at shift {shift}")
    ax.set_ylim(0.0, 0.13)
    finish(ax, f"{WIDE} equally likely actions, the others masked", "action", "probability", legend="upper right")


def _draw_finite(ax: Axes, x: Tensor, js: Tensor, way: Tensor, unit: str) -> None:
    """Draw Jensen-Shannon on the left-hand scale, Wasserstein on the right-hand one."""
    ax.plot(x, js, color=GREEN)
    ax.axhline(math.log(2.0), color=GREY, linestyle="--", linewidth=1)
    note(ax, "log 2", float(x[-1]), math.log(2.0) - 0.01, GREY, ha="right", va="top")
    note(ax, "Jensen-Shannon", float(x[-1]) * 0.51, 0.63, GREEN)
    ax.set_ylim(-0.03, 0.93)
    right = ax.twinx()
    right.plot(x, way, color=ORANGE)
    right.set_ylabel(f"Wasserstein distance, {unit}", color=ORANGE)
    right.set_ylim(-0.03 * float(way[-1]) / 0.8, 0.93 * float(way[-1]) / 0.8)
    right.tick_params(axis="y", colors=ORANGE)
