"""Losses on samples and the KL whose gradient each has: klrl's table, enumerated."""

from __future__ import annotations

import warnings
from typing import NamedTuple, get_args

import torch
from torch import Tensor

from klrl.kl import BiasedGradientWarning, GradientVerdict, estimator_gradient, kl_divergence, kl_loss
from klrl.kl.estimator_gradients import Loss, Sampler, Target
from klrl.policy.distributions import Categorical
from klrl.scripts.explore.charts import BLUE, GREEN, ORANGE, PURPLE, Block, Chart, Demo, Table, line
from klrl.scripts.explore.contents import BrokenIdentity, Identity, Section, identity, number

ACTIONS = 5
DESCENT: tuple[Loss, ...] = ("w*k3", "k1", "k2", "k3")
STEPS, RATE = 60, 1.0


class Policies(NamedTuple):
    """Logits of the policy, of a fixed reference, and of the policy that drew samples."""

    policy: Tensor
    reference: Tensor
    old: Tensor


class Row(NamedTuple):
    """Verdict of klrl on a loss, and the error found by enumeration, over the size of the right gradient."""

    verdict: GradientVerdict
    error: float


def section(rng: torch.Generator) -> Section:
    """Show the table, checked row by row, and the effect of a wrong row."""
    policies = Policies(*torch.empty(3, ACTIONS, dtype=torch.float64).normal_(generator=rng))
    rows = table(policies)
    right = sum(row.verdict.right for row in rows)
    curves = {loss: descent(loss, policies) for loss in DESCENT}
    least_wrong = min(row.error for row in rows if not row.verdict.right)
    numbers = (
        number("combinations judged", len(rows), "1"),
        number("combinations that are right", right, "1"),
        number("least relative error of a gradient called wrong", least_wrong, "1"),
        *(number(f"KL(policy‖reference) after {STEPS} steps down the loss {loss}", curve[-1], "nats")
          for loss, curve in curves.items()),
    )  # fmt: skip
    blocks: tuple[Block, ...] = (*_text(len(rows), right), _verdicts(rows), _descent(curves))
    title = "For experts: which loss has the right gradient"
    return Section(
        "gradients", title, "For experts: losses", blocks, numbers, _identities(rows, policies, curves["k1"])
    )


def _text(judged: int, right: int) -> tuple[str, ...]:
    return (
        """
        This chapter is for those who write losses, for instance with a KL to a reference policy in the fine-tuning of a
        language model. All others can stop here. In short: as a loss take `w*k3`, or klrl's `kl_loss`, which takes it
        for you.

        The *policy* is what moves. The *reference* is what it is compared with and stays. Samples come from the policy
        itself or from an old one, and w is the probability of a sample now over what it was when drawn. k1, k2 and k3
        are those of chapter 5.

        A good estimate need not be a good loss. Minimising a KL needs the gradient of its mean, and where samples come
        from the policy itself, the gradient also has to count how the policy changes what is sampled. With samples from
        the policy, k1 as a loss has the expected gradient 0, and k3 that of the other direction of KL. With samples
        from the old policy and KL(old‖policy), the bound of trust regions, k1 and k3 are right and k2 is wrong.
        """,
        f"""
        Of the {judged} combinations that klrl's `estimator_gradient` judges, {right} are right. Each was enumerated
        here over all {ACTIONS} actions: the expected gradient of the loss against the gradient of the exact KL. `w*k3`
        is right everywhere; `kl_loss` warns of every wrong one.
        """,
    )


def _verdicts(rows: list[Row]) -> Table:
    columns = list(dict.fromkeys((row.verdict.sampler, row.verdict.target) for row in rows))
    found = {(x.verdict.estimator, x.verdict.sampler, x.verdict.target): x for x in rows}

    def cell(row: Row | None) -> str:
        return "–" if row is None else "right" if row.verdict.right else f"wrong by {100 * row.error:.0f} %"

    return Table(
        "Expected gradient against that of the exact KL: relative error. in_reward: the estimator as a reward of the "
        "policy gradient; sg(w): w as a constant; –: repeats another row, or makes no sense",
        ("loss", *(f"{target.replace('||', '‖')}, samples from {sampler}" for sampler, target in columns)),
        tuple((loss, *(cell(found.get((loss, *column))) for column in columns)) for loss in get_args(Loss)),
    )


def _descent(curves: dict[Loss, Tensor]) -> Demo:
    looks = {"w*k3": (GREEN, 0, 6.0), "k1": (BLUE, 0, 2.0), "k2": (ORANGE, 1, 2.0), "k3": (PURPLE, 2, 2.0)}
    chart = Chart(
        "Descent with samples from the policy", "gradient step", "KL(policy‖reference), nats",
        tuple(line(loss, range(STEPS + 1), curve.clamp_min(1e-7), looks[loss][0], looks[loss][1], width=looks[loss][2])
              for loss, curve in curves.items()),
        log=True, x_range=(0.0, STEPS), y_range=(1e-6, 5.0),
    )  # fmt: skip
    see = """k1 does not move; w*k3 and k2 go down the same way. k3 goes down the other KL: here to the same end, as
        this policy can become the reference; a smaller one would end elsewhere, as in chapter 3."""
    return Demo((chart,), see)


def _identities(rows: list[Row], policies: Policies, curve: Tensor) -> tuple[Identity, ...]:
    worst_right = max(row.error for row in rows if row.verdict.right)
    target: Target = "KL(policy||reference)"
    k1, k3 = (expected_gradient(loss, "policy", target, policies) for loss in ("k1", "k3"))
    other = exact_gradient("KL(reference||policy)", policies)
    return (
        identity("largest relative error of the gradients called right = 0", worst_right, 0.0, "", 1e-10),
        identity("size of the gradient of k1 on the policy's own samples = 0", k1.norm(), 0.0, "", 1e-12),
        identity("size of the gradient of k3 there = of that of KL(reference‖policy)", k3.norm(), other.norm(), ""),
        identity("size of the difference of these two gradients = 0", (k3 - other).norm(), 0.0, "", 1e-12),
        identity("k1 as a loss on the policy's own samples: KL at the end = KL at the start",
                 curve[-1], curve[0], "nats"),
    )  # fmt: skip


def table(policies: Policies) -> list[Row]:
    """Return a row for every loss that klrl judges, for every sampler and target.

    Raises:
        BrokenIdentity: a verdict that enumeration does not bear out.
    """
    found = []
    for sampler in get_args(Sampler):
        for target in get_args(Target):
            for loss in get_args(Loss):
                try:
                    verdict = estimator_gradient(loss, sampler=sampler, target=target)
                except ValueError:  # such a combination is another one in disguise, or has no samples
                    continue
                error = gradient_error(verdict, policies)
                if verdict.right is not (error < 1e-10):
                    raise BrokenIdentity(f"{verdict}: but its relative error is {error:.3g}")
                found.append(Row(verdict, error))
    return found


def gradient_error(verdict: GradientVerdict, policies: Policies) -> float:
    """Return |E[grad loss] - grad KL| / |grad KL|, by the logits of the policy."""
    exact = exact_gradient(verdict.target, policies)
    expected = expected_gradient(verdict.estimator, verdict.sampler, verdict.target, policies)
    return float((expected - exact).norm() / exact.norm())


def exact_gradient(target: Target, policies: Policies) -> Tensor:
    """Return the gradient of the target in closed form, by the logits of the policy."""
    logits = policies.policy.clone().requires_grad_()
    (found,) = torch.autograd.grad(exact_kl(logits, target, policies), logits)
    return found


def exact_kl(logits: Tensor, target: Target, policies: Policies) -> Tensor:
    """Return the target in closed form."""
    named = {"policy": logits, "reference": policies.reference, "old": policies.old}
    p, q = target.removeprefix("KL(").removesuffix(")").split("||")
    return kl_divergence(Categorical(named[p]), Categorical(named[q]))


def expected_gradient(loss: Loss, sampler: Sampler, target: Target, policies: Policies) -> Tensor:
    """Return E[grad loss], the sum over all actions with the sampler's probabilities."""
    logits = policies.policy.clone().requires_grad_()
    log_policy, log_reference, log_old = (x.log_softmax(-1) for x in (logits, policies.reference, policies.old))
    other = log_old if target == "KL(old||policy)" else log_reference
    given = log_old if sampler == "old" and other is not log_old else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BiasedGradientWarning)
        losses = kl_loss(log_policy, other, sampler=sampler, target=target, estimator=loss, log_sampler=given)
    weight = (log_policy if sampler == "policy" else log_old).detach().exp()
    (found,) = torch.autograd.grad((weight * losses).sum(), logits)
    return found


def descent(loss: Loss, policies: Policies) -> Tensor:
    """Return KL(policy||reference) along gradient descent on the loss's expected gradient, samples from the policy."""
    target: Target = "KL(policy||reference)"
    values = []
    for _ in range(STEPS + 1):
        values.append(exact_kl(policies.policy, target, policies))
        gradient = expected_gradient(loss, "policy", target, policies)
        policies = policies._replace(policy=policies.policy - RATE * gradient)
    return torch.stack(values)
