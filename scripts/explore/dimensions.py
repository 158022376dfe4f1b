"""KL adds over action dimensions, so that a mean over them hides it; near its minimum it is a quadratic form."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from klrl.kl import effective_sample_size, fisher_product, kl_divergence, kl_per_dimension, reverse_kl
from klrl.policy.distributions import Categorical, DiagGaussian
from klrl.scripts.explore.report import Picture, Section, identity, number, shown
from klrl.scripts.explore.style import BLACK, BLUE, GREEN, ORANGE, finish, note

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DIMENSIONS = {1: "Pendulum", 6: "HalfCheetah", 17: "Humanoid"}
TARGET = 0.01
STEPS = torch.logspace(-3.0, 0.0, 31, dtype=torch.float64)
ACTIONS, STATES, LINES = 6, 64, 10
SEE = """left, the summed KL grows with the number of dimensions while the mean over them stays put; middle, the
    worth of old samples falls with the sum. Right, KL over the quadratic form, at states of a softmax policy
    whose logits are moved by ever larger changes: 1 in both directions for small changes; larger ones leave it,
    the reverse KL about twice as far, as its third-order term is twice that of the other."""


def section(rng: torch.Generator) -> Section:
    """Show the same change in every dimension, and small changes of a policy at many states."""
    kl, mean, share = by_dimension()
    logits, tangent = (torch.empty(STATES, ACTIONS, dtype=torch.float64).normal_(generator=rng) for _ in range(2))
    forward, reverse, quadratic = second_order(logits, tangent)
    worst = float(((forward[0] - quadratic[0]) / quadratic[0]).abs().max())
    identities = (
        *(identity(f"d = {d}: KL of the whole action = {d} times that of one dimension", kl[i], d * TARGET, "nats")
          for i, d in enumerate(DIMENSIONS)),
        identity(f"KL(θ‖θ + δ) / (1/2 δ'F δ) = 1 at δ of size {STEPS[0]:g}, worst of {STATES} states",
                 1.0 + worst, 1.0, "", 10 * float(STEPS[0])),
        identity("deviation of the reverse KL from 1/2 δ'F δ = twice that of the forward KL, there",
                 (reverse[0] - quadratic[0]).abs().sum() / (forward[0] - quadratic[0]).abs().sum(), 2.0, "", 0.01),
    )  # fmt: skip
    numbers = (
        *(number(f"d = {d}: KL, summed", kl[i], "nats") for i, d in enumerate(DIMENSIONS)),
        *(number(f"d = {d}: mean over dimensions", mean[i], "nats") for i, d in enumerate(DIMENSIONS)),
        *(number(f"d = {d}: effective sample size over sample size", share[i], "1") for i, d in enumerate(DIMENSIONS)),
        *(number(f"relative error of 1/2 δ'F δ at size {STEPS[i]:.3g}, mean over states",
                 (forward[i] / quadratic[i] - 1.0).abs().mean(), "1") for i in (0, len(STEPS) // 2)),
    )  # fmt: skip
    return Section(
        "A policy's KL is summed over action dimensions, and quadratic up close", _idea(kl, share), numbers, identities,
        (Picture("09-dimensions.png", "What a mean over action dimensions hides; what a small change costs", SEE,
                 (13.0, 4.8), partial(_draw, curves=(forward, reverse, quadratic))),),
    )  # fmt: skip


def _idea(kl: Tensor, share: Tensor) -> str:
    return f"""
        The KL of independent action dimensions is the sum of theirs. A mean over dimensions divides it by their
        number d, and a bound on the mean admits d times the change: where every dimension moves by a KL of {TARGET:g},
        the mean says {TARGET:g} in every task, but the policy of a {max(DIMENSIONS)}-dimensional action has moved by
        {shown(float(kl[-1]))} nats, and samples of the old policy are worth {100 * float(share[-1]):.0f} % of their
        number for the new one (with one dimension {100 * float(share[0]):.0f} %). So
        klrl's target_kl bounds the sum.

        Close to each other, both directions of KL are one quadratic form: for a change δ of the parameters,
        KL ≈ 1/2 δ'F δ with the Fisher matrix F, state by state. That is how TRPO measures its step.
    """


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
    """Return KL(θ‖θ + δ), KL(θ + δ‖θ) and 1/2 δ'F δ for δ = size * tangent, ``[sizes, states]``."""
    old = Categorical(logits.expand(len(STEPS), -1, -1))
    change = STEPS[:, None, None] * tangent
    new = Categorical(old.logits + change)
    (product,) = fisher_product(old, (change,))
    return kl_divergence(old, new), reverse_kl(old, new), 0.5 * (change * torch.as_tensor(product)).sum(-1)


def _draw(figure: Figure, curves: tuple[Tensor, Tensor, Tensor]) -> None:
    left, middle, right = figure.subplots(1, 3)
    kl, mean, share = by_dimension()
    _draw_bars(left, kl, mean)
    _draw_share(middle, share)
    _draw_order(right, *(x[:, :LINES] for x in curves))


def _draw_bars(ax: Axes, kl: Tensor, mean: Tensor) -> None:
    bars = ((-0.2, kl, BLUE, "sum over dimensions"), (0.2, mean, ORANGE, "mean over dimensions"))
    for shift, values, colour, label in bars:
        places = [i + shift for i in range(len(values))]
        ax.bar(places, values.tolist(), 0.38, color=colour, label=label)
        for x, y in zip(places, values.tolist(), strict=True):
            note(ax, f"{y:.2f}", x, y, colour, ha="center", va="bottom")
    ax.set_xticks(range(len(kl)), [f"d = {d}\n({name})" for d, name in DIMENSIONS.items()])
    finish(ax, f"Every dimension moves by {TARGET:g} nats", "", "KL(old‖new), nats", legend="upper left")


def _draw_share(ax: Axes, share: Tensor) -> None:
    ax.bar(range(len(share)), (100 * share).tolist(), 0.6, color=GREEN)
    for x, y in enumerate((100 * share).tolist()):
        note(ax, f"{y:.0f} %", x, y, GREEN, ha="center", va="bottom")
    ax.set_xticks(range(len(share)), [f"d = {d}" for d in DIMENSIONS])
    ax.set_ylim(0.0, 112.0)
    finish(ax, "What old samples are worth for the new policy", "number of action dimensions",
           "effective sample size, % of the sample")  # fmt: skip


def _draw_order(ax: Axes, forward: Tensor, reverse: Tensor, quadratic: Tensor) -> None:
    for values, colour, label in ((forward, BLUE, "KL(θ‖θ + δ)"), (reverse, ORANGE, "KL(θ + δ‖θ)")):
        lines = ax.semilogx(STEPS, values / quadratic, color=colour, linewidth=1.2, alpha=0.6)
        lines[0].set_label(label)
    ax.axhline(1.0, color=BLACK, linewidth=1)
    note(ax, "1/2 δ'F δ", float(STEPS[0]), 1.03)
    title = f"Softmax policy, a line per state ({LINES} of {STATES})"
    finish(ax, title, "size of the change δ of the logits", "KL / (1/2 δ'F δ)", legend="lower left")
