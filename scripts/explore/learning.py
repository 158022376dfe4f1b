"""Learning from data lowers a KL: maximum likelihood, the cross-entropy loss, distillation."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from klrl.kl import cross_entropy, entropy, kl_divergence
from klrl.policy.distributions import Categorical
from klrl.scripts.explore.report import Identity, Picture, Section, identity, number, shown
from klrl.scripts.explore.style import BLACK, BLUE, GREEN, GREY, ORANGE, bars, finish, note

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DRAWS, TRIALS, TRUTH = 40, 3, 0.35
HEADS = torch.arange(TRIALS + 1, dtype=torch.float64)
CLASSES = ("cat", "dog", "bird")
LOGITS = torch.tensor([[2.0, 0.5, -1.0], [0.2, 0.1, 0.4], [-0.5, 1.5, 1.0]], dtype=torch.float64)
LABELS = torch.tensor([0, 2, 1])
SOFT = torch.tensor([[0.5, 0.2, 0.3], [0.05, 0.15, 0.8], [0.05, 0.85, 0.1]], dtype=torch.float64)
ACTIONS = torch.arange(21, dtype=torch.float64)
RARE = 0.01


class Student(NamedTuple):
    """A policy with one bump: its probabilities, and the KL that it minimises, in nats."""

    probs: Tensor
    kl: float


SEE = """left, two curves a constant apart, with one minimum. Middle, the loss of three pictures: for hard labels
    all of it is KL; a soft label's own entropy cannot be learned away. Right, the teacher's two bumps, and the
    students that each direction of KL gives."""


def section(rng: torch.Generator) -> Section:
    """Show each on small data, with both sides of its identity computed independently."""
    data = tosses(rng)
    best = likeliest(data)
    found, fitted = frequencies(data), model(torch.tensor(best, dtype=torch.float64))
    students = {"forward": distilled("forward"), "reverse": distilled("reverse")}
    wasted = {name: float(x.probs[teacher().probs < RARE].sum()) for name, x in students.items()}
    one_hot, predicted, soft = pictures()
    numbers = (
        number("likeliest probability of heads", best, "1"),
        number("KL(data‖likeliest model)", kl_divergence(found, fitted), "nats"),
        number("mean cross-entropy loss, hard labels", cross_entropy(one_hot, predicted).mean(), "nats"),
        number("mean KL(label‖prediction), soft labels", kl_divergence(soft, predicted).mean(), "nats"),
        *(number(f"{name} student: its KL", x.kl, "nats") for name, x in students.items()),
        *(number(f"{name} student: share of actions rare for the teacher", x, "1") for name, x in wasted.items()),
    )  # fmt: skip
    return Section(
        "Learning from data lowers a KL", _idea(best, wasted), numbers, _identities(data, best, students["forward"]),
        (Picture("07-learning.png", "Maximum likelihood, cross-entropy and distillation as KL", SEE, (14.0, 4.9),
                 partial(_draw, found=found, best=best, students=students)),),
    )  # fmt: skip


def _idea(best: float, wasted: dict[str, float]) -> str:
    return f"""
        Maximum likelihood: the mean of -log likelihood over data is the cross-entropy of the observed frequencies
        with the model, their entropy plus KL(data‖model). The entropy does not depend on the model, so the likeliest
        model is the one with the least KL: of {DRAWS} times {TRIALS} tosses of a coin it is {shown(best)} heads,
        the observed mean.

        Classification: the cross-entropy loss is KL(label‖prediction) plus the label's entropy, which is 0 for hard
        labels. Distillation: a student too small to copy its teacher's two habits averages them with
        KL(teacher‖student), doing what the teacher almost never does (under {100 * RARE:g} % each)
        {100 * wasted["forward"]:.0f} % of the time; with KL(student‖teacher) it takes one habit, and does so
        {100 * wasted["reverse"]:.1f} % of the time.
    """


def _identities(data: Tensor, best: float, student: Student) -> tuple[Identity, ...]:
    found, fitted = frequencies(data), model(torch.tensor(best, dtype=torch.float64))
    one_hot, predicted, soft = pictures()
    forward = Categorical(student.probs.log())
    return (
        identity("mean -log likelihood = H(data) + KL(data‖model)",
                 -fitted.log_probs[data].mean(), entropy(found) + kl_divergence(found, fitted), "nats"),
        identity("the model of least KL = the observed mean (the likeliest)",
                 best, data.double().mean() / TRIALS, "", 1e-6),
        identity("torch's cross_entropy of hard labels = mean KL(label‖prediction)",
                 functional.cross_entropy(LOGITS, LABELS), kl_divergence(one_hot, predicted).mean(), "nats"),
        identity("torch's cross_entropy of soft labels = mean H(label) + KL(label‖prediction)",
                 functional.cross_entropy(LOGITS, SOFT), (entropy(soft) + kl_divergence(soft, predicted)).mean(),
                 "nats"),
        identity("distillation loss -sum teacher log student - H(teacher) = KL(teacher‖student)",
                 -(teacher().probs * forward.log_probs).sum() - entropy(teacher()), student.kl, "nats"),
        identity("mean action of the forward student = mean action of the teacher",
                 (ACTIONS * forward.probs).sum(), (ACTIONS * teacher().probs).sum(), "", 1e-6),
    )  # fmt: skip


def pictures() -> tuple[Categorical, Categorical, Categorical]:
    """Return hard labels, predictions and soft labels."""
    one_hot = functional.one_hot(LABELS, len(CLASSES)).double()
    return Categorical(one_hot.log()), Categorical(LOGITS), Categorical(SOFT.log())


def tosses(rng: torch.Generator) -> Tensor:
    """Return numbers of heads, ``[DRAWS]``."""
    return torch.as_tensor(model(torch.full((DRAWS,), TRUTH, dtype=torch.float64)).sample(rng))


def frequencies(data: Tensor) -> Categorical:
    """Return the data as a distribution."""
    return Categorical((torch.bincount(data, minlength=TRIALS + 1).double() / DRAWS).log())


def model(heads: Tensor) -> Categorical:
    """Return the binomial distribution of TRIALS tosses with a probability of heads, ``[*B]``."""
    n = torch.tensor(float(TRIALS), dtype=torch.float64)
    ways = torch.lgamma(n + 1) - torch.lgamma(HEADS + 1) - torch.lgamma(n - HEADS + 1)
    x = heads.double().unsqueeze(-1)
    return Categorical(ways + HEADS * x.log() + (n - HEADS) * (-x).log1p())


def likeliest(data: Tensor) -> float:
    """Return the probability of heads with the least KL(data‖model), by golden-section search."""
    found = frequencies(data)

    def kl(x: float) -> float:
        return float(kl_divergence(found, model(torch.tensor(x, dtype=torch.float64))))

    low, high, shrink = 1e-3, 1.0 - 1e-3, (5**0.5 - 1) / 2
    while high - low > 1e-9:
        a, b = high - shrink * (high - low), low + shrink * (high - low)
        low, high = (low, b) if kl(a) < kl(b) else (a, high)
    return (low + high) / 2


def teacher() -> Categorical:
    """Return a policy with two habits."""
    bumps = 0.55 * (-0.5 * ((ACTIONS - 5.0) / 1.3) ** 2).exp() + 0.45 * (-0.5 * ((ACTIONS - 15.0) / 1.5) ** 2).exp()
    return Categorical((bumps + 1e-5).log())


def distilled(direction: str) -> Student:
    """Return the student with one bump, logits -(a - m)^2 e^s, of least KL, by L-BFGS from the best of some starts."""

    def policy(x: Tensor) -> Categorical:
        return Categorical(-((ACTIONS - x[..., :1]) ** 2) * x[..., 1:].exp())

    def divergence(x: Tensor) -> Tensor:
        pair = teacher().map(lambda y: y.expand(*x.shape[:-1], -1)), policy(x)
        return kl_divergence(*pair) if direction == "forward" else kl_divergence(*pair[::-1])

    starts = torch.cartesian_prod(torch.arange(2.0, 19.0), torch.linspace(-4.0, -1.0, 7)).double()
    x = starts[divergence(starts).argmin()].clone().requires_grad_()
    search = torch.optim.LBFGS([x], max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-15,
                               line_search_fn="strong_wolfe")  # fmt: skip

    def loss() -> Tensor:
        search.zero_grad()
        value = divergence(x)
        value.backward()
        return value

    search.step(loss)
    return Student(policy(x.detach()).probs, float(divergence(x.detach())))


def _draw(figure: Figure, found: Categorical, best: float, students: dict[str, Student]) -> None:
    left, middle, right = figure.subplots(1, 3)
    _draw_likelihood(left, found, best)
    _draw_losses(middle)
    bars(right, ACTIONS, teacher().probs, 0.9, color=GREY, alpha=0.45, label="teacher")
    for name, colour, label in (
        ("forward", BLUE, "least KL(teacher‖student)"),
        ("reverse", ORANGE, "least KL(student‖teacher)"),
    ):
        right.plot(ACTIONS, students[name].probs, "o-", color=colour, markersize=4, label=label)
    right.set_ylim(0.0, 0.42)
    finish(right, "Distillation into one bump", "action", "probability", legend="upper right")


def _draw_likelihood(ax: Axes, found: Categorical, best: float) -> None:
    heads = torch.linspace(0.1, 0.7, 121, dtype=torch.float64)
    kl = kl_divergence(found.map(lambda x: x.expand(len(heads), -1)), model(heads))
    nll = kl + float(entropy(found))
    ax.plot(heads, nll, color=ORANGE, label="mean -log likelihood")
    ax.plot(heads, kl, color=BLUE, label="KL(data‖model)")
    ax.set_ylim(-0.08, 1.22 * float(nll.max()))
    ax.axvline(best, color=BLACK, linestyle="--", linewidth=1)
    note(ax, f"both least at {best:.3f}", best + 0.01, 0.65)
    ax.annotate("", (0.12, float(kl[4])), (0.12, float(nll[4])), arrowprops={"arrowstyle": "<->", "color": GREY})
    note(ax, f"H(data) = {float(entropy(found)):.3f}", 0.13, float(kl[4] + nll[4]) / 2, GREY, va="center")
    finish(ax, f"{DRAWS} times {TRIALS} tosses", "the model's probability of heads", "nats per observation",
           legend="upper right")  # fmt: skip


def _draw_losses(ax: Axes) -> None:
    one_hot, predicted, soft = pictures()
    places = torch.arange(len(LABELS))
    bars(ax, places - 0.2, kl_divergence(one_hot, predicted), 0.36, color=BLUE, label="KL(label‖prediction)")
    bars(ax, places + 0.2, kl_divergence(soft, predicted), 0.36, color=BLUE)
    bars(ax, places + 0.2, entropy(soft), 0.36, bottom=kl_divergence(soft, predicted), color=GREEN, label="H(label)")
    for labels, shift, text in ((one_hot, -0.2, "hard"), (soft, 0.2, "soft")):
        for x, y in zip((places + shift).tolist(), cross_entropy(labels, predicted).tolist(), strict=True):
            note(ax, text, x, y, GREY, ha="center", va="bottom")
    ax.set_xticks(places, [f"picture of a {CLASSES[i]}" for i in LABELS.tolist()], fontsize=9)
    ax.set_ylim(0.0, 2.1)
    finish(ax, "Cross-entropy loss = H + KL", "", "nats", legend="upper left")
