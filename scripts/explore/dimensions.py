"""KL adds over action dimensions, so that a mean over them hides it; near its minimum it is a quadratic form."""

from __future__ import annotations

import torch
from torch import Tensor

from klrl.kl import effective_sample_size, fisher_product, kl_divergence, kl_per_dimension, reverse_kl
from klrl.policy.distributions import Categorical, DiagGaussian
from klrl.scripts.explore.charts import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    Chart,
    Demo,
    Formula,
    Slider,
    bars,
    level,
    points,
    series,
    words,
)
from klrl.scripts.explore.contents import Section, identity, number

DIMENSIONS = {1: "Pendulum", 6: "HalfCheetah", 17: "Humanoid"}
TARGET = 0.01
STEPS = torch.logspace(-3.0, 0.0, 31, dtype=torch.float64)
ACTIONS, STATES, LINES = 6, 64, 16


def section(rng: torch.Generator) -> Section:
    """Show the same change in every dimension, and small changes of a policy at many states."""
    kl, mean, share = by_dimension()
    logits, tangent = (torch.empty(STATES, ACTIONS, dtype=torch.float64).normal_(generator=rng) for _ in range(2))
    forward, reverse, quadratic = second_order(logits, tangent)
    worst = float(((forward[0] - quadratic[0]) / quadratic[0]).abs().max())
    identities = (
        *(identity(f"d = {d}: KL of the whole action = {d} times that of one dimension", kl[i], d * TARGET, "nats")
          for i, d in enumerate(DIMENSIONS)),
        identity(f"KL(θ‖θ + Δ) / (1/2 Δ'F Δ) = 1 at Δ of size {STEPS[0]:g}, worst of {STATES} states",
                 1.0 + worst, 1.0, "", 10 * float(STEPS[0])),
        identity("deviation of the reverse KL from 1/2 Δ'F Δ = twice that of the forward KL, there",
                 (reverse[0] - quadratic[0]).abs().sum() / (forward[0] - quadratic[0]).abs().sum(), 2.0, "", 0.01),
    )  # fmt: skip
    numbers = (
        *(number(f"d = {d}: KL, summed", kl[i], "nats") for i, d in enumerate(DIMENSIONS)),
        *(number(f"d = {d}: mean over dimensions", mean[i], "nats") for i, d in enumerate(DIMENSIONS)),
        *(number(f"d = {d}: effective sample size over sample size", share[i], "1") for i, d in enumerate(DIMENSIONS)),
        *(number(f"relative error of 1/2 Δ'F Δ at size {STEPS[i]:.3g}, mean over states",
                 (forward[i] / quadratic[i] - 1.0).abs().mean(), "1") for i in (0, len(STEPS) // 2)),
    )  # fmt: skip
    blocks = (
        _sum_text(kl, share), _bars(kl, mean, share), *_near_text(), _pairs(forward, reverse, quadratic),
    )  # fmt: skip
    title = "A policy's KL is summed over action dimensions, and quadratic up close"
    return Section("dimensions", title, "Dimensions and small steps", blocks, numbers, identities)


def _sum_text(kl: Tensor, share: Tensor) -> str:
    return f"""
        A robot's action has several dimensions, one per joint. If they are drawn independently, the KL of the whole
        action is the *sum* of theirs. Some libraries report the mean over dimensions instead. Let every dimension move
        by {TARGET:g} nats: the mean says {TARGET:g} in every task, but the policy of a {max(DIMENSIONS)}-dimensional
        action has moved by {float(kl[-1]):.2f} nats.

        What that means shows in data. Samples of the old policy can stand for samples of the new one, if each is
        weighted by the ratio of its probabilities; the more uneven the weights, the fewer samples they are worth (the
        *effective sample size*). Here they are worth {100 * float(share[-1]):.0f} % of their number, with one dimension
        {100 * float(share[0]):.0f} %. So klrl's `target_kl` bounds the sum.
    """


def _bars(kl: Tensor, mean: Tensor, share: Tensor) -> Demo:
    place, zero = torch.arange(len(kl)).double(), torch.zeros(len(kl))
    ticks = tuple(f"{d} ({name})" for d, name in DIMENSIONS.items())
    charts = (
        Chart(
            f"Every dimension moves by {TARGET:g} nats", "dimensions", "KL(old‖new), nats",
            (
                bars("sum", place - 0.2, zero, kl, BLUE, width=0.36),
                bars("mean", place + 0.2, zero, mean, ORANGE, width=0.36, hatch="right_diagonal_line"),
                words(place - 0.2, kl, [f"{x:.2f}" for x in kl.tolist()], down=-9),
                words(place + 0.2, mean, [f"{x:.2f}" for x in mean.tolist()], down=-9),
            ),
            x_range=(-0.6, 2.6), y_range=(0.0, 0.2), ticks=ticks,
        ),
        Chart(
            "What old samples are worth", "dimensions", "effective sample size, %",
            (
                bars("effective sample size", place, zero, 100 * share, GREEN, width=0.6),
                words(place, 100 * share, [f"{100 * x:.0f} %" for x in share.tolist()], down=-9),
            ),
            x_range=(-0.6, 2.6), y_range=(0.0, 112.0), ticks=ticks,
        ),
    )  # fmt: skip
    return Demo(charts, "The sum grows with the dimensions, and the samples lose by it; the mean hides both.")


def _near_text() -> tuple[str, Formula, str]:
    return (
        """
        The second fact is about small steps. A policy has parameters θ, and an update adds a small change Δ to them.
        Near its minimum every smooth function looks like a parabola, so the KL does, too:
        """,
        Formula("KL(θ‖θ + Δ) ≈ ½ Δᵀ F Δ ≈ KL(θ + Δ‖θ)"),
        """
        F is the *Fisher matrix*: it says how much each direction of change costs. Up close the two directions of KL are
        one. TRPO and the natural gradient (next chapter) measure their steps by it. How small is small enough?
        """,
    )


def _pairs(forward: Tensor, reverse: Tensor, quadratic: Tensor) -> Demo:
    order = (forward[-1] / quadratic[-1])[:LINES].argsort()
    there, back = ((x / quadratic)[:, :LINES][:, order] for x in (forward, reverse))
    place, start = torch.arange(1, LINES + 1), len(STEPS) - 5
    pairs = (
        series("joined", "one state", GREY, x=place, low=there[start], high=back[start]).moved(
            {"low": there[i], "high": back[i]} for i in range(len(STEPS))
        ),
        points("KL(θ‖θ + Δ)", place, there[start], BLUE).moved({"y": there[i]} for i in range(len(STEPS))),
        points("KL(θ + Δ‖θ)", place, back[start], ORANGE, marker="square").moved(
            {"y": back[i]} for i in range(len(STEPS))
        ),
    )
    chart = Chart(
        f"A policy of {ACTIONS} actions at {LINES} states", "state, in order", "KL / (½ Δᵀ F Δ)",
        (level(1.0, (0.4, LINES + 0.6), "½ Δᵀ F Δ", None, 2), *pairs),
        x_range=(0.4, LINES + 0.6), y_range=(0.4, 1.8),
    )  # fmt: skip
    sizes = tuple(f"{x:.2g}" for x in STEPS.tolist())
    says = tuple(
        f"KL(θ‖θ + Δ) between {float(forward[i, :LINES].min()):.2g} and {float(forward[i, :LINES].max()):.2g} nats; "
        f"the parabola is wrong by {100 * float((there[i] - 1.0).abs().mean()):.2g} % on average"
        for i in range(len(STEPS))
    )
    slider = Slider("size", "size of the change Δ", 0, len(STEPS) - 1, 1, start, sizes)
    see = """The two directions at one state are joined. Where they differ from the parabola, the reverse KL does so
        about twice as far, and to the same side: its term of third order is twice that of the other."""
    return Demo((chart,), see, (slider,), says=says)


def by_dimension() -> tuple[Tensor, Tensor, Tensor]:
    """Return KL, its mean over dimensions, effective sample size, by number of dimensions; TARGET nats in each."""
    found = []
    for d in DIMENSIONS:
        old = DiagGaussian(torch.zeros(d, dtype=torch.float64), torch.zeros(d, dtype=torch.float64))
        new = DiagGaussian(old.mean + (2.0 * TARGET) ** 0.5, old.log_std)
        found.append([kl_divergence(old, new), kl_per_dimension(old, new).mean(), effective_sample_size(new, old)])
    kl, mean, share = torch.tensor(found).T
    return kl, mean, share


def second_order(logits: Tensor, tangent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return KL(θ‖θ + Δ), KL(θ + Δ‖θ) and 1/2 Δ'F Δ for Δ = size * tangent, ``[sizes, states]``."""
    old = Categorical(logits.expand(len(STEPS), -1, -1))
    change = STEPS[:, None, None] * tangent
    new = Categorical(old.logits + change)
    (product,) = fisher_product(old, (change,))
    return kl_divergence(old, new), reverse_kl(old, new), 0.5 * (change * torch.as_tensor(product)).sum(-1)
