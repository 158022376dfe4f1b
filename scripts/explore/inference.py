"""Inference and information are KLs: the ELBO, a Bayesian update, mutual information."""

from __future__ import annotations

import torch
from torch import Tensor

from klrl.kl import entropy, kl_divergence, mutual_information
from klrl.policy.distributions import Beta, Categorical
from klrl.scripts.explore.charts import (
    BLUE,
    GREY,
    ORANGE,
    Block,
    Chart,
    Demo,
    Formula,
    Slider,
    Table,
    area,
    level,
    line,
    points,
)
from klrl.scripts.explore.contents import Identity, Section, identity, number, shown
from klrl.scripts.explore.search import least

CAUSES = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
LIKELIHOOD = torch.tensor([0.05, 0.2, 0.7, 0.4], dtype=torch.float64)
BLEND = torch.linspace(0.0, 1.0, 41, dtype=torch.float64)
PRIOR, HEADS, TAILS = (2.0, 2.0), 7, 3
POLICY = torch.tensor([[0.85, 0.1, 0.05], [0.1, 0.8, 0.1], [0.05, 0.15, 0.8], [0.34, 0.33, 0.33]], dtype=torch.float64)


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
    blocks = (*_bound(bound, gap), _update_text(float(gain)), _update(), *_information(policy))
    title = "Inference and information are KLs, too"
    return Section("inference", title, "Inference and information", blocks, numbers, _identities())


def _bound(bound: Tensor, gap: Tensor) -> tuple[Block, ...]:
    evidence, n = float(bound[0] + gap[0]), len(BLEND)
    low, at = float(bound.min()) - 0.06, points("your guess", BLEND[:1], bound[:1])
    chart = Chart(
        "A guess q of the hidden cause", "q: from prior (0) to posterior (1)", "nats",
        (
            level(evidence, (0.0, 1.0), "log evidence", None, 0),
            area("KL(q‖posterior)", BLEND, bound, bound + gap, ORANGE),
            line("ELBO", BLEND, bound, BLUE),
            at.moved({"x": BLEND[i : i + 1], "y": bound[i : i + 1]} for i in range(n)),
        ),
        x_range=(0.0, 1.0), y_range=(low, evidence + 0.06),
    )  # fmt: skip
    says = tuple(
        f"ELBO {shown(b)} + KL(q‖posterior) {shown(g)} = {shown(evidence)} nats, the log evidence"
        for b, g in zip(bound.tolist(), gap.tolist(), strict=True)
    )
    slider = Slider("blend", "q, from prior to posterior", 0, n - 1, 1, 0, tuple(f"{x:.3g}" for x in BLEND.tolist()))
    return (
        """
        Something was seen, and one of several hidden causes z made it. Before, z had the probabilities of the *prior*;
        given what was seen it has those of the *posterior*, by Bayes' rule. *Variational inference* makes a guess q of
        the posterior and improves it by a bound that needs no posterior:
        """,
        Formula("ELBO(q) = E_q[ log p(seen, z) − log q(z) ] = log p(seen) − KL(q‖posterior)"),
        """
        E_q is the mean over z from q, and log p(seen) is the *log evidence*. As that is fixed, raising the bound lowers
        the KL, and nothing is lost only at the posterior itself. The loss of a variational autoencoder is −ELBO.
        """,
        Demo((chart,), "The bound rises by what the KL falls; the sum stays.", (slider,), says=says),
    )  # fmt: skip


def _update_text(gain: float) -> str:
    return f"""
        After {HEADS} heads and {TAILS} tails, a belief about a coin has gained KL(posterior‖prior) = {shown(gain)}
        nats of information. The posterior is also the belief of least *free energy*, the expected −log likelihood plus
        KL(q‖prior): moving a belief costs KL, explaining the data pays for it.
    """


def _update() -> Demo:
    x = torch.linspace(0.001, 0.999, 101, dtype=torch.float64)
    prior, posterior = (
        torch.as_tensor(belief.map(lambda y: y.expand(len(x), 1)).log_prob(x[:, None])).exp() for belief in beliefs()
    )
    chart = Chart(
        "A belief about a coin", "probability of heads", "probability density",
        (
            line("prior", x, prior, GREY, 1),
            line(f"after {HEADS} heads and {TAILS} tails", x, posterior, BLUE),
        ),
        x_range=(0.0, 1.0), y_range=(0.0, 3.5),
    )  # fmt: skip
    gain = shown(expected_gain()[0])
    return Demo(
        (chart,), f"One more toss, before it falls, can be expected to bring a believer in the prior {gain} nats."
    )


def _information(policy: Categorical) -> tuple[Block, ...]:
    mean = POLICY.mean(0)
    each = kl_divergence(policy, Categorical(mean.log().expand(len(POLICY), -1)))
    rows = [
        (f"state {i + 1}", *(f"{x:.2f}" for x in row), f"{kl:.3f}")
        for i, (row, kl) in enumerate(zip(POLICY.tolist(), each.tolist(), strict=True))
    ]
    rows.append(("average", *(f"{x:.2f}" for x in mean.tolist()), f"mean: {float(each.mean()):.3f}"))
    table = Table(
        "A policy at four states: probability of each action, and KL from the row to the average row, in nats",
        ("", "left", "stay", "right", "KL(row‖average)"),
        tuple(rows),
    )
    return (
        f"""
        A *policy* gives every action a probability in every state. How much does its action say about the state? That
        is their *mutual information*: the mean KL from the policy at each state to its average over the states, here
        {shown(float(mutual_information(policy)))} nats. 0 would mean that the policy ignores the state. The undecided
        last row adds little.
        """,
        table,
    )


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
    """Minimise over both parameters, from the prior."""
    start = torch.tensor(PRIOR, dtype=torch.float64).log()
    a, b = least(lambda x: free_energy(Beta(x[:1].exp(), x[1:].exp())), start).exp().tolist()
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
