"""Learning from data lowers a KL: maximum likelihood, the cross-entropy loss, distillation."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from klrl.kl import cross_entropy, entropy, kl_divergence
from klrl.policy.distributions import Categorical
from klrl.scripts.explore.charts import BLUE, GREEN, GREY, ORANGE, Block, Chart, Demo, bars, line, points, series, words
from klrl.scripts.explore.contents import Identity, Section, identity, number, shown
from klrl.scripts.explore.search import least

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
    blocks: tuple[Block, ...] = (
        _likelihood_text(best), _likelihood(found, best), _loss_text(), _losses(), _teacher_text(wasted),
        _distillation(students),
    )  # fmt: skip
    identities = _identities(data, best, students["forward"])
    return Section("learning", "Learning from data lowers a KL", "Learning", blocks, numbers, identities)


def _likelihood_text(best: float) -> str:
    return f"""
        *Maximum likelihood* chooses the model under which the data are most probable. The mean of −log likelihood over
        the data is the cross-entropy of the observed frequencies with the model: their entropy, plus KL(data‖model).
        The entropy does not depend on the model. So the likeliest model is the one with the least KL: of {DRAWS} times
        {TRIALS} tosses of a coin it is {shown(best)} heads, the observed mean.
    """


def _loss_text() -> str:
    return """
        The loss of classification, named cross-entropy for this reason, is KL(label‖prediction) plus the label's
        entropy. A hard label ("this is a cat") has none, so all of the loss can be learned away. A soft label, which
        gives several classes a probability, keeps its own.
    """


def _teacher_text(wasted: dict[str, float]) -> str:
    return f"""
        *Distillation* teaches a student to do what a teacher does. A student too small to copy its teacher's two habits
        shows chapter 3 again. With KL(teacher‖student) it averages them, and does what the teacher almost never does
        (under {100 * RARE:g} % each) {100 * wasted["forward"]:.0f} % of the time. With KL(student‖teacher) it takes one
        habit, and does so {100 * wasted["reverse"]:.1f} % of the time.
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
    """Return the student with one bump, logits -(a - m)^2 e^s, of least KL, from the best of some starts."""

    def policy(x: Tensor) -> Categorical:
        return Categorical(-((ACTIONS - x[..., :1]) ** 2) * x[..., 1:].exp())

    def divergence(x: Tensor) -> Tensor:
        pair = teacher().map(lambda y: y.expand(*x.shape[:-1], -1)), policy(x)
        return kl_divergence(*pair) if direction == "forward" else kl_divergence(*pair[::-1])

    starts = torch.cartesian_prod(torch.arange(2.0, 19.0), torch.linspace(-4.0, -1.0, 7)).double()
    x = least(divergence, starts[divergence(starts).argmin()])
    return Student(policy(x).probs, float(divergence(x)))


def _likelihood(found: Categorical, best: float) -> Demo:
    heads = torch.linspace(0.1, 0.7, 61, dtype=torch.float64)
    kl = kl_divergence(found.map(lambda x: x.expand(len(heads), -1)), model(heads))
    nll, least = kl + entropy(found), float(kl_divergence(found, model(torch.tensor(best, dtype=torch.float64))))
    chart = Chart(
        f"{DRAWS} times {TRIALS} tosses", "the model's probability of heads", "nats per observation",
        (
            line("mean −log likelihood", heads, nll, ORANGE, 1),
            line("KL(data‖model)", heads, kl, BLUE),
            points("least", [best, best], [least, least + float(entropy(found))]),
            series("joined", "H(data)", GREY, x=[0.12], low=[kl[2].item()], high=[nll[2].item()]),
        ),
        x_range=(0.1, 0.7), y_range=(0.0, 1.05 * float(nll.max())),
    )  # fmt: skip
    return Demo((chart,), f"Two curves a constant apart, {shown(entropy(found))} nats, with one minimum.")


def _losses() -> Demo:
    one_hot, predicted, soft = pictures()
    places = torch.arange(len(LABELS)).double()
    hard_kl, soft_kl = kl_divergence(one_hot, predicted), kl_divergence(soft, predicted)
    totals = torch.cat([hard_kl, soft_kl + entropy(soft)])
    chart = Chart(
        "Cross-entropy loss of three pictures", "", "nats",
        (
            bars("KL(label‖prediction)", torch.cat([places - 0.2, places + 0.2]), torch.zeros(6),
                 torch.cat([hard_kl, soft_kl]), BLUE, width=0.36),
            bars("H(label)", places + 0.2, soft_kl, soft_kl + entropy(soft), GREEN, width=0.36,
                 hatch="right_diagonal_line"),
            words(torch.cat([places - 0.2, places + 0.2]), totals, ["hard"] * 3 + ["soft"] * 3, down=-9),
        ),
        x_range=(-0.6, 2.6), y_range=(0.0, 1.15 * float(totals.max())),
        ticks=tuple(f"a {CLASSES[i]}" for i in LABELS.tolist()),
    )  # fmt: skip
    return Demo((chart,), "Bars beside each other: the same picture with a hard and with a soft label.")


def _distillation(students: dict[str, Student]) -> Demo:
    chart = Chart(
        "A teacher with two habits, students with one bump", "action", "probability",
        (
            bars("teacher", ACTIONS, torch.zeros(len(ACTIONS)), teacher().probs, GREY, alpha=0.45),
            line("least KL(teacher‖student)", ACTIONS, students["forward"].probs, BLUE),
            line("least KL(student‖teacher)", ACTIONS, students["reverse"].probs, ORANGE, 1),
        ),
        x_range=(-0.7, 20.7), y_range=(0.0, 0.33),
    )  # fmt: skip
    return Demo((chart,), "Each direction of the KL gives a student of its own.")
