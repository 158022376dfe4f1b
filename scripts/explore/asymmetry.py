"""Asymmetry: KL is zero only for equal distributions, never negative, and different in its two directions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from klrl.kl import kl_divergence, reverse_kl
from klrl.policy.distributions import Categorical
from klrl.scripts.explore.coding import P, Q, categorical
from klrl.scripts.explore.report import Picture, Section, identity, number, shown
from klrl.scripts.explore.style import BLACK, BLUE, GREY, ORANGE, finish, note

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PAIRS = 3000
COIN = 0.3
SURE = (0.999, 0.001)
SEE = f"""left, both curves touch 0 at Q = P, stay above it, and part from each other; towards 0 and 1 only
    KL(P‖Q) grows without bound. Right, {PAIRS:,} random pairs over three outcomes: small values lie near the
    diagonal (close to each other, the two directions agree), large ones leave it to both
    sides."""


def section(rng: torch.Generator) -> Section:
    """Show the two directions on coins and on random pairs."""
    p, q = categorical(P), categorical(Q)
    fair, sure = categorical((0.5, 0.5)), categorical(SURE)
    forward, backward = random_pairs(rng)
    surprised, careful = float(kl_divergence(fair, sure)), float(kl_divergence(sure, fair))
    least = min(float(forward.min()), float(backward.min()))
    identities = (
        identity("KL(P‖P) = 0", kl_divergence(p, p), 0.0, "nats", 0.0),
        identity("what the least KL of the random pairs lacks to 0 = nothing", min(least, 0.0), 0.0, "nats", 0.0),
    )
    numbers = (
        number("KL(P‖Q), commands of section 1", kl_divergence(p, q), "nats"),
        number("KL(Q‖P), commands of section 1", reverse_kl(p, q), "nats"),
        number("KL(fair‖nearly sure)", surprised, "nats"),
        number("KL(nearly sure‖fair)", careful, "nats"),
        number(f"least KL of {2 * PAIRS:,} between random pairs", least, "nats"),
        number("largest KL(P‖Q) / KL(Q‖P) of the random pairs", (forward / backward).max(), "1"),
    )
    return Section(
        "Never negative, zero only if equal, and not symmetric", _idea(surprised, careful), numbers, identities,
        (Picture("02-asymmetry.png", "KL is 0 only at Q = P, and its two directions differ", SEE,
                 (11.5, 5.0), lambda figure: _draw(figure, forward, backward)),),
    )  # fmt: skip


def _idea(surprised: float, careful: float) -> str:
    return f"""
        KL(P‖Q) is 0 if P = Q and positive otherwise: no code beats the right one. But it is no distance, as its two
        directions differ. Believing that heads is nearly sure ({SURE[0]:g}) while the coin is fair costs
        {shown(surprised)} nats per toss: tails, held almost impossible, comes half of the time. Believing in a fair
        coin while heads is nearly sure costs {shown(careful)}: tails, expected half of the time, hardly ever comes.

        So always say which one: klrl's kl_divergence(p, q) is KL(p‖q), data from p and code for q. On policies
        klrl bounds and reports KL(old‖new).
    """


def random_pairs(rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return KL in both directions between random distributions over three outcomes, from alike to very different."""
    shape = (PAIRS, 3)
    middle, change = (torch.empty(shape, dtype=torch.float64).normal_(generator=rng) for _ in range(2))
    size = torch.empty(PAIRS, 1, dtype=torch.float64).uniform_(-5.0, 0.7, generator=rng).exp()
    p, q = Categorical(middle - size * change), Categorical(middle + size * change)
    return kl_divergence(p, q), reverse_kl(p, q)


def _draw(figure: Figure, forward: Tensor, backward: Tensor) -> None:
    left, right = figure.subplots(1, 2)
    _draw_coin(left)
    _draw_pairs(right, forward, backward)


def _draw_coin(ax: Axes) -> None:
    heads = torch.linspace(0.002, 0.998, 499, dtype=torch.float64)
    q = Categorical(torch.stack([heads, 1.0 - heads], -1).log())
    p = categorical((COIN, 1.0 - COIN))
    ax.plot(heads, kl_divergence(p, q), color=BLUE, label="KL(P‖Q)")
    ax.plot(heads, reverse_kl(p, q), color=ORANGE, label="KL(Q‖P)")
    ax.plot([COIN], [0.0], "o", color=BLACK)
    note(ax, "Q = P: both are 0", COIN, 0.0, xytext=(0.36, 0.55), arrowprops={"arrowstyle": "->", "color": GREY})
    ax.set_ylim(-0.06, 2.5)
    finish(ax, f"Coins: P shows heads with probability {COIN:g}", "probability of heads under Q", "nats",
           legend="upper center")  # fmt: skip


def _draw_pairs(ax: Axes, forward: Tensor, backward: Tensor) -> None:
    ax.loglog(forward, backward, ".", color=BLUE, markersize=3, alpha=0.5)
    ends = [1e-6, 20.0]
    ax.plot(ends, ends, color=GREY, linewidth=1)
    note(ax, "KL(P‖Q) = KL(Q‖P)", 1.2e-4, 4e-5, GREY)
    ax.set_xlim(*ends)
    ax.set_ylim(*ends)
    finish(ax, f"{PAIRS:,} random pairs P, Q over three outcomes", "KL(P‖Q), nats", "KL(Q‖P), nats")
