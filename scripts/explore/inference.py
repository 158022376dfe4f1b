"""Inference and information are KLs: the ELBO, a Bayesian update, mutual information."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from klrl.kl import entropy, kl_divergence, mutual_information
from klrl.policy.distributions import Beta, Categorical
from klrl.scripts.explore.report import Identity, Picture, Section, identity, number, shown
from klrl.scripts.explore.style import BLACK, BLUE, GREEN, GREY, ORANGE, finish, note

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CAUSES = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
LIKELIHOOD = torch.tensor([0.05, 0.2, 0.7, 0.4], dtype=torch.float64)
BLEND = torch.linspace(0.0, 1.0, 41, dtype=torch.float64)
PRIOR, HEADS, TAILS = (2.0, 2.0), 7, 3
POLICY = torch.tensor([[0.85, 0.1, 0.05], [0.1, 0.8, 0.1], [0.05, 0.15, 0.8], [0.34, 0.33, 0.33]], dtype=torch.float64)
SEE = """left, the guess goes from prior to posterior: the bound rises by what the KL falls, the sum stays. Middle,
    the belief before and after the tosses. Right, the policy at four states and its average; the KL of each row
    to the average stands beside it, the mean of these is the mutual information (the undecided last row adds
    little)."""


def section(rng: torch.Generator) -> Section:
    """Show each on a few numbers, with both sides of its identity computed independently."""
    del rng
    bound, gap = elbo()
    prior, posterior = beliefs()
    gain, log_evidence = kl_divergence(posterior, prior), log_beta(posterior) - log_beta(prior)
    policy = Categorical(POLICY.log())
    numbers = (
        number("log evidence of the hidden cause's trace", (CAUSES * LIKELIHOOD).sum().log(), "nats"),
        number("KL(prior‖posterior) of the cause", gap[0], "nats"),
        number("information gained from the tosses, KL(posterior‖prior)", gain, "nats"),
        number("log evidence of the tosses", log_evidence, "nats"),
        number("expected gain of the next toss", expected_gain()[0], "nats"),
        number("mutual information of state and action", mutual_information(policy), "nats"),
    )
    return Section(
        "Inference and information are KLs, too",
        _idea(float(gain), float(mutual_information(policy))), numbers, _identities(),
        (Picture("08-inference.png", "ELBO, Bayesian update and mutual information as KL", SEE, (14.0, 4.9),
                 partial(_draw, bound=bound, gap=gap)),),
    )  # fmt: skip


def _idea(gain: float, information: float) -> str:
    return f"""
        Variational inference: something was seen, and one of several hidden causes z made it. For any guess q of the
        cause, a bound, the ELBO
        E_q[log p(seen, z) - log q(z)], lies below the log evidence log p(seen) by exactly KL(q‖posterior). So raising
        the bound lowers that KL, and nothing is lost only at the posterior itself.

        Bayes: after {HEADS} heads and {TAILS} tails, a belief about a coin has gained KL(posterior‖prior) =
        {shown(gain)} nats. The posterior is also the belief of least free energy, the expected
        -log likelihood plus KL(q‖prior): moving a belief costs KL, explaining the data pays for it. The gain to expect
        from one more toss, before it falls, is the mutual information of coin and toss.

        Mutual information: how much a policy's action says about its state is the mean KL from the policy at each state
        to its average over states, here {shown(information)} nats; 0 would mean that the
        policy ignores the state.
    """


def _identities() -> tuple[Identity, ...]:
    evidence = (CAUSES * LIKELIHOOD).sum().log()
    bound, gap = elbo()
    (prior, posterior), fitted = beliefs(), least_free_energy()
    expected, told = expected_gain()
    policy, mean = Categorical(POLICY.log()), Categorical(POLICY.mean(0).log())
    joint = Categorical((POLICY / len(POLICY)).flatten().log())
    apart = Categorical((POLICY.mean(0) / len(POLICY)).repeat(len(POLICY)).log())
    return (
        identity("ELBO of the prior + KL(prior‖posterior) = log evidence", bound[0] + gap[0], evidence, "nats"),
        identity("ELBO of the posterior = log evidence", bound[-1], evidence, "nats"),
        identity("least free energy over beta distributions = -log evidence",
                 free_energy(fitted), log_beta(prior) - log_beta(posterior), "nats"),
        *(identity(f"its {name} = the posterior's by Bayes' rule", left, right, "", 1e-4)
          for name, left, right in zip("ab", fitted.parameters, posterior.parameters, strict=True)),
        identity("expected KL(posterior‖prior) of the next toss = H(toss) - expected H(toss given the coin)",
                 expected, told, "nats", 1e-7),
        identity("mutual information = H(mean policy) - mean H(policy)",
                 mutual_information(policy), entropy(mean) - entropy(policy).mean(), "nats"),
        identity("mutual information = KL(joint of state and action‖product of the two)",
                 mutual_information(policy), kl_divergence(joint, apart), "nats"),
    )  # fmt: skip


def beliefs() -> tuple[Beta, Beta]:
    """Return beliefs about a coin, before and after the tosses by Bayes' rule."""
    return beta(*PRIOR), beta(PRIOR[0] + HEADS, PRIOR[1] + TAILS)


def elbo() -> tuple[Tensor, Tensor]:
    """Return E_q[log p(seen, cause) - log q] and KL(q‖posterior) for guesses q from the prior to the posterior."""
    joint = CAUSES * LIKELIHOOD
    posterior = Categorical(joint.log().expand(len(BLEND), -1))
    q = Categorical((1.0 - BLEND[:, None]) * CAUSES.log() + BLEND[:, None] * joint.log())
    return (q.probs * (joint.log() - q.log_probs)).sum(-1), kl_divergence(q, posterior)


def beta(a: float, b: float) -> Beta:
    """Return a belief about a coin."""
    return Beta(*(torch.tensor([x], dtype=torch.float64) for x in (a, b)))


def log_beta(q: Beta) -> Tensor:
    """log B(a, b), the logarithm of the integral of x^(a-1) (1-x)^(b-1)."""
    a, b = (torch.as_tensor(x) for x in q.parameters)
    return (torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)).squeeze()


def free_energy(q: Beta) -> Tensor:
    """-E_q[log likelihood of the tosses] + KL(q‖prior), with E_q[log x] = psi(a) - psi(a + b)."""
    a, b = (torch.as_tensor(x) for x in q.parameters)
    psi = torch.digamma
    expected = HEADS * (psi(a) - psi(a + b)) + TAILS * (psi(b) - psi(a + b))
    return kl_divergence(q, beta(*PRIOR)) - expected.squeeze()


def least_free_energy() -> Beta:
    """Minimise over both parameters, by L-BFGS from the prior."""
    x = torch.tensor(PRIOR, dtype=torch.float64).log().requires_grad_()
    search = torch.optim.LBFGS([x], max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-15,
                               line_search_fn="strong_wolfe")  # fmt: skip

    def loss() -> Tensor:
        search.zero_grad()
        value = free_energy(Beta(x[:1].exp(), x[1:].exp()))
        value.backward()
        return value

    search.step(loss)
    a, b = x.detach().exp().tolist()
    return beta(a, b)


def expected_gain() -> tuple[Tensor, Tensor]:
    """Return E KL(posterior‖prior) for one toss of the prior's coin, and H(toss) - E H(toss | coin) by quadrature."""
    a, b = PRIOR
    heads = a / (a + b)
    gain = heads * kl_divergence(beta(a + 1, b), beta(a, b)) + (1 - heads) * kl_divergence(beta(a, b + 1), beta(a, b))
    n = 20_000
    x = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    weight = Categorical(torch.as_tensor(beta(a, b).map(lambda y: y.expand(n, 1)).log_prob(x[:, None]))).probs
    given = entropy(Categorical(torch.stack([x, 1 - x], -1).log()))
    blind = entropy(Categorical(torch.tensor([heads, 1 - heads], dtype=torch.float64).log()))
    return gain, blind - (weight * given).sum()


def _draw(figure: Figure, bound: Tensor, gap: Tensor) -> None:
    left, middle, right = figure.subplots(1, 3)
    left.plot(BLEND, bound, color=BLUE)
    left.plot(BLEND, bound + gap, color=BLACK)
    left.fill_between(BLEND, bound, bound + gap, color=ORANGE, alpha=0.35)
    note(left, "log evidence", 0.55, float(bound[-1]) + 0.01, va="bottom")
    note(left, "KL(q‖posterior)", 0.03, float(bound[-1]) - 0.07, ORANGE)
    note(left, "ELBO", 0.43, float(bound[16]) - 0.03, BLUE, va="top")
    left.set_ylim(float(bound.min()) - 0.08, float(bound[-1]) + 0.08)
    finish(left, "A guess q of the hidden cause", "q: from prior (0) to posterior (1)", "nats")
    _draw_update(middle)
    _draw_policy(right)


def _draw_update(ax: Axes) -> None:
    x = torch.linspace(0.001, 0.999, 400, dtype=torch.float64)
    prior, posterior = beliefs()
    for belief, colour, name in ((prior, GREY, "prior"), (posterior, BLUE, f"after {HEADS} heads, {TAILS} tails")):
        wide = belief.map(lambda y: y.expand(len(x), 1))
        ax.plot(x, torch.as_tensor(wide.log_prob(x[:, None])).exp(), color=colour, label=name)
    gain = float(kl_divergence(posterior, prior))
    note(ax, f"KL(posterior‖prior)\n= {gain:.3f} nats", 0.03, 2.5)
    ax.set_ylim(0.0, 3.9)
    finish(ax, "A belief about a coin", "probability of heads", "probability density", legend="upper left")


def _draw_policy(ax: Axes) -> None:
    policy, mean = Categorical(POLICY.log()), Categorical(POLICY.mean(0).log())
    rows = torch.cat([POLICY, POLICY.mean(0, keepdim=True)])
    ax.imshow(rows.tolist(), cmap="Greens", vmin=0.0, vmax=1.0, aspect="auto")
    for i, row in enumerate(rows.tolist()):
        for j, value in enumerate(row):
            note(ax, f"{value:.2f}", j, i, "white" if value > 0.6 else BLACK, ha="center", va="center")
    each = kl_divergence(policy, mean.map(lambda x: x.expand(len(POLICY), -1)))
    for i, value in enumerate([*each.tolist()]):
        note(ax, f"KL = {value:.3f}", 2.6, i, GREEN, va="center", annotation_clip=False)
    note(ax, f"mean KL\n= {float(each.mean()):.3f}", 2.6, len(POLICY), BLACK, va="center", annotation_clip=False)
    ax.set_yticks(range(len(rows)), [*(f"state {i + 1}" for i in range(len(POLICY))), "average"])
    ax.set_xticks(range(3), ["left", "stay", "right"])
    ax.axhline(len(POLICY) - 0.5, color=BLACK, linewidth=2)
    finish(ax, "Probability of each action, KL in nats", "action", "")
    ax.grid(False)
