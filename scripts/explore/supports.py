"""Disjoint supports: KL is infinite, the Jensen-Shannon divergence ends at log 2, Wasserstein measures the way."""

from __future__ import annotations

import math

import torch

from klrl.kl import estimate_divergence, jensen_shannon, kl_divergence, wasserstein
from klrl.policy.distributions import Categorical, DiagGaussian
from klrl.scripts.explore.charts import BLUE, GREEN, ORANGE, Chart, Demo, Slider, bars, level, line, points
from klrl.scripts.explore.contents import Section, identity, number, shown

CELLS, WIDE = 30, 10
SHIFTS = torch.arange(CELLS - WIDE + 1)
STD = 0.1
WAYS = torch.linspace(0.0, 2.0, 41, dtype=torch.float64)
SAMPLES = 10_000
START = 6
"""Shift at which the slider begins."""


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
    found = (_text(), _demo(), _normal_text(float(normal_kl[-1])), _normals(sampled.value))
    title = "Nothing in common: infinite KL, and what stays finite"
    return Section("supports", title, "Nothing in common", found, numbers, identities)


def _text() -> str:
    return f"""
        Where Q gives probability 0 to something that P does, the code for Q has no word for it and KL(P‖Q) is
        infinite. Take {WIDE} equally likely actions of {CELLS} and move them along: a shift of one already makes the KL
        infinite, in both directions, and it stays so however far apart the two are. Policies meet this where actions
        are masked.
    """


def _demo() -> Demo:
    p, q = blocks()
    js, way, cell = jensen_shannon(p, q), wasserstein(p, q), torch.arange(CELLS)
    zero = torch.zeros(CELLS)
    moving = bars("Q", cell, zero, q.probs[START], ORANGE, alpha=0.5, hatch="right_diagonal_line")
    at_js, at_way = points("", [START], [js[START]], size=10), points("", [START], [way[START]], size=10)
    charts = (
        Chart(
            f"{WIDE} equally likely actions of {CELLS}", "action", "probability",
            (
                bars("P", cell, zero, p.probs[0], BLUE, alpha=0.6),
                moving.moved({"high": q.probs[i]} for i in range(len(SHIFTS))),
            ),
            x_range=(-1.0, CELLS), y_range=(0.0, 0.13),
        ),
        Chart(
            "Jensen-Shannon", "shift in actions", "nats",
            (
                line("Jensen-Shannon", SHIFTS, js, GREEN),
                level(math.log(2.0), (0, len(SHIFTS) - 1), "log 2", None, 2),
                at_js.moved({"x": [i], "y": js[i : i + 1]} for i in range(len(SHIFTS))),
            ),
            x_range=(-0.5, len(SHIFTS) - 0.5), y_range=(0.0, 0.8),
        ),
        Chart(
            "Wasserstein distance", "shift in actions", "actions",
            (
                line("Wasserstein", SHIFTS, way, ORANGE),
                at_way.moved({"x": [i], "y": way[i : i + 1]} for i in range(len(SHIFTS))),
            ),
            x_range=(-0.5, len(SHIFTS) - 0.5), y_range=(0.0, float(way[-1]) + 1.0),
        ),
    )  # fmt: skip
    kl = kl_divergence(p, q)
    says = tuple(
        f"KL(P‖Q) = {shown(kl[i])}{' nats' if kl[i].isfinite() else ''}; Jensen-Shannon = {shown(js[i])} nats; "
        f"Wasserstein distance = {shown(round(float(way[i]), 9))} actions"
        for i in range(len(SHIFTS))
    )
    slider = Slider("shift", "shift of Q", 0, len(SHIFTS) - 1, 1, START, tuple(map(str, SHIFTS.tolist())))
    see = f"""Two divergences stay finite. *Jensen-Shannon*, the mean of KL(P‖M) and KL(Q‖M) to the middle M = (P +
        Q)/2, rises to log 2 = {shown(math.log(2.0))} and then says no more than "disjoint". The *Wasserstein
        distance*, how far probability has to be carried, goes on growing with the way."""
    return Demo(charts, see, (slider,), says=says)


def _normal_text(apart: float) -> str:
    return f"""
        Other ways out are to give Q a little of everything (`support="smooth"` in klrl), or to be told:
        `support="raise"`.

        Gaussians deny nothing, but narrow ones that are moved apart come close to it: at a distance of {WAYS[-1]:g},
        with standard deviations of {STD:g}, their KL is {apart:.6g} nats. Jensen-Shannon saturates here, too, and the
        Wasserstein distance is the distance of the means itself.
    """


def _normals(sampled: torch.Tensor) -> Demo:
    narrow, moved = normals()
    kl = kl_divergence(narrow, moved)
    chart = Chart(
        f"Gaussians of standard deviation {STD:g}, moved apart", "distance of the means", "nats",
        (
            line("KL(P‖Q)", WAYS[1:], kl[1:], BLUE),
            line("Jensen-Shannon, from samples", WAYS[1:], sampled[1:], GREEN, 1),
        ),
        log=True, x_range=(0.0, float(WAYS[-1])),
    )  # fmt: skip
    return Demo((chart,), "Each step of the logarithmic axis is a factor of ten.")


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
