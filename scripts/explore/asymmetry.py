"""Asymmetry: KL is zero only for equal distributions, never negative, and different in its two directions."""

from __future__ import annotations

import torch
from torch import Tensor

from klrl.kl import kl_divergence, reverse_kl
from klrl.policy.distributions import Categorical
from klrl.scripts.explore.charts import BLUE, ORANGE, Block, Chart, Demo, Slider, level, points, series
from klrl.scripts.explore.coding import P, Q, categorical
from klrl.scripts.explore.contents import Section, identity, number, shown

PAIRS, DRAWN = 3000, 700
"""Random pairs, and how many of them are drawn."""
COIN = 0.3
SURE = (0.999, 0.001)
DETOUR = (0.5, 0.25, 0.1)
"""Coins that break the triangle inequality."""


def section(rng: torch.Generator) -> Section:
    """Show the two directions on coins and on random pairs."""
    p, q = categorical(P), categorical(Q)
    fair, sure = categorical((0.5, 0.5)), categorical(SURE)
    forward, backward = random_pairs(rng)
    surprised, careful = float(kl_divergence(fair, sure)), float(kl_divergence(sure, fair))
    least = min(float(forward.min()), float(backward.min()))
    direct, first, second = detour()
    identities = (
        identity("KL(P‖P) = 0", kl_divergence(p, p), 0.0, "nats", 0.0),
        identity("what the least KL of the random pairs lacks to 0 = nothing", min(least, 0.0), 0.0, "nats", 0.0),
    )
    numbers = (
        number("KL(P‖Q), commands of chapter 1", kl_divergence(p, q), "nats"),
        number("KL(Q‖P), commands of chapter 1", reverse_kl(p, q), "nats"),
        number("KL(fair‖nearly sure)", surprised, "nats"),
        number("KL(nearly sure‖fair)", careful, "nats"),
        number(f"least KL of {2 * PAIRS:,} between random pairs", least, "nats"),
        number("largest KL(P‖Q) / KL(Q‖P) of the random pairs", (forward / backward).max(), "1"),
        number("KL from the coin 0.5 to the coin 0.1", direct, "nats"),
        number("KL from the coin 0.5 to 0.25, plus that from 0.25 to 0.1", first + second, "nats"),
    )
    blocks = (*_text(surprised, careful), *_coin(), *_pairs(forward, backward), _triangle(direct, first, second))
    title = "Never negative, zero only if equal, and not symmetric"
    return Section("asymmetry", title, "Not a distance", blocks, numbers, identities)


def _text(surprised: float, careful: float) -> tuple[Block, ...]:
    return (
        f"""
        KL(P‖Q) is 0 if P = Q and positive otherwise, as no code beats the right one (*Gibbs' inequality*). But it is no
        distance: its two directions differ.

        Believing that heads is nearly sure ({SURE[0]:g}) while the coin is fair costs {shown(surprised)} nats per toss:
        tails, held almost impossible, comes half of the time. Believing in a fair coin while heads is nearly sure costs
        {shown(careful)}: tails, expected half of the time, hardly ever comes.
        """,
    )


def _coin() -> tuple[Block, ...]:
    chart = Chart(
        "Two coins, both directions", "q, the probability of heads under Q", "nats",
        (
            series("line", "KL(P‖Q)", BLUE, live="forward", x=[], y=[]),
            series("line", "KL(Q‖P)", ORANGE, 1, live="reverse", x=[], y=[]),
            series("points", "", None, live="here", x=[], y=[]),
            series("points", "Q = P", None, live="same", x=[], y=[], marker="diamond", size=12),
        ),
        x_range=(0.0, 1.0), y_range=(-0.05, 2.5),
    )  # fmt: skip
    sliders = (
        Slider("p", "p, heads under P", 0.02, 0.98, 0.01, COIN),
        Slider("q", "q, heads under Q", 0.02, 0.98, 0.01, 0.9),
    )
    see = """Both curves touch 0 at q = p and part from each other. Towards q = 0 and q = 1 only KL(P‖Q) grows without
        bound: there Q denies something that P does."""
    return (Demo((chart,), see, sliders, live="directions"),)


def _pairs(forward: Tensor, backward: Tensor) -> tuple[Block, ...]:
    size, ratio = 0.5 * (forward + backward)[:DRAWN], (forward / backward)[:DRAWN]
    chart = Chart(
        f"{DRAWN} random pairs of distributions over three outcomes",
        "mean of the two directions, nats", "KL(P‖Q) / KL(Q‖P)",
        (
            points("a pair", size, ratio, BLUE, size=5, alpha=0.55),
            level(1.0, (1e-5, 10.0), "directions equal", None),
        ),
        log_x=True, log=True, x_range=(1e-5, 10.0), y_range=(0.25, 4.0),
        y_at=(0.25, 0.5, 1.0, 2.0, 4.0),
    )  # fmt: skip
    return (
        "How much do the directions differ? That depends on how far P and Q are apart:",
        Demo(
            (chart,),
            """Close to each other (left) the directions agree; from about 0.01 nats on they part, and near one nat one
            is often twice the other, either way round.""",
        ),
    )


def _triangle(direct: float, first: float, second: float) -> str:
    a, b, c = DETOUR
    return f"""
        Nor does the *triangle inequality* hold, by which a detour is never shorter. From a coin of {a:g} to one of
        {c:g} the KL is {shown(direct)} nats; by way of {b:g} it is {shown(first)} + {shown(second)} =
        {shown(first + second)}. Many small steps add up to less KL than one large one; chapter 9 comes back to this.

        So always say which direction: `kl_divergence(p, q)` of klrl is KL(p‖q), data from p and code for q.
    """


def detour() -> tuple[float, float, float]:
    """Return KL from the first coin of DETOUR to the last, from the first to the second, from that to the last."""
    a, b, c = (categorical((x, 1.0 - x)) for x in DETOUR)
    return float(kl_divergence(a, c)), float(kl_divergence(a, b)), float(kl_divergence(b, c))


def random_pairs(rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return KL in both directions between random distributions over three outcomes, from alike to very different."""
    shape = (PAIRS, 3)
    middle, change = (torch.empty(shape, dtype=torch.float64).normal_(generator=rng) for _ in range(2))
    size = torch.empty(PAIRS, 1, dtype=torch.float64).uniform_(-5.0, 0.7, generator=rng).exp()
    p, q = Categorical(middle - size * change), Categorical(middle + size * change)
    return kl_divergence(p, q), reverse_kl(p, q)
