"""KL between sequences: enumeration of all of them, over a vocabulary of 5 and 6 steps, is the truth."""

import math

import numpy as np
import pytest
import torch
from examples.enumerated import log_probs, rows, sequences, tables, until_end
from scipy.stats import binom
from torch.distributions import Categorical as TorchCategorical
from torch.distributions import Gamma

from klrl.kl import (
    DoubtfulEstimateWarning,
    estimate_kl,
    estimate_sequence_kl,
    sequence_kl,
    sequence_kl_loss,
    token_kl,
)
from klrl.policy.distributions import Categorical, DiagGaussian, NoClosedForm

V, T, END = 5, 6, 0
ALL = sequences(V, T)
P, Q = tables(V, T, apart=0.7, seed=0)
MASK = until_end(ALL, END)
# Where sequences end, those that differ after the end are one: it counts where only END follows.
ONCE = ((ALL == END) | MASK).all(-1)


def enumerated(p, q, ends):
    """Probabilities of all sequences under p, their log p/q, tokens, mask, and KL(p||q) by its definition."""
    tokens, mask = (ALL[ONCE], MASK[ONCE]) if ends else (ALL, torch.ones_like(MASK))
    log_p, log_q = (torch.where(mask, log_probs(x, tokens), 0.0) for x in (p, q))
    probability = log_p.sum(-1).exp()
    assert abs(probability.sum() - 1.0) < 1e-12
    return probability, log_p, log_q, tokens, mask, (probability * (log_p - log_q).sum(-1)).sum()


def mean_and_variance(probability, values):
    mean = probability @ values
    return mean.item(), (probability @ (values - mean).square()).item()


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
def test_the_mean_over_all_sequences_is_the_kl_of_the_sequences(ends, reverse):
    p, q = (Q, P) if reverse else (P, Q)
    probability, log_p, log_q, tokens, mask, kl = enumerated(p, q, ends)
    at = rows(tokens, V)
    found = sequence_kl(p[at], q[at], mask)
    exact, variance = mean_and_variance(probability, found.per_token.sum(-1))
    assert exact == pytest.approx(kl.item(), rel=1e-12)
    variances = {"exact": variance}
    for estimator in ("k1", "k3", "k2"):
        mean, variances[estimator] = mean_and_variance(
            probability, estimate_sequence_kl(log_p, log_q, mask, estimator).per_token.sum(-1)
        )
        assert (mean == pytest.approx(kl.item(), rel=1e-12)) == (estimator != "k2")
    # Each step's term is an expectation of k1's and k3's given the prefix; so is no sum, but here it is as if.
    assert variances["exact"] < 0.5 * min(variances["k1"], variances["k3"])
    for t in range(T):
        step = mean_and_variance(probability, found.per_token[:, t])
        k1 = mean_and_variance(probability, (log_p - log_q)[:, t])
        assert step[0] == pytest.approx(k1[0], rel=1e-9)
        assert step[1] <= k1[1]


def test_a_sum_of_exact_kls_may_vary_where_the_log_ratio_of_sequences_does_not():
    """p is q given that the last of three tokens is not 0: log p/q is one number on all sequences that p draws."""
    tokens = sequences(3, 3)
    q, _ = tables(3, 3, apart=0.0, seed=1)
    probability = log_probs(q, tokens).sum(-1).exp()
    given = probability * (tokens[:, -1] != 0)
    kl, given = -given.sum().log().item(), given / given.sum()

    def logits(t, prefix):
        inside = (tokens[:, :t] == prefix).all(-1)
        return torch.stack([given[inside & (tokens[:, t] == v)].sum() for v in range(3)]).log()

    p = torch.stack([logits(t, row[:t]) for row in tokens for t in range(3)]).reshape(27, 3, 3)
    drawn = given > 0.0
    kls = token_kl(p[drawn], q[rows(tokens, 3)][drawn]).sum(-1)
    mean, variance = mean_and_variance(given[drawn], kls)
    assert mean == pytest.approx(kl, rel=1e-12)
    assert variance > 1e-4


def draw(probability, n, repeats, seed):
    drawn = np.random.default_rng(seed).choice(len(probability), (repeats, n), p=probability / probability.sum())
    return torch.from_numpy(drawn)


@pytest.mark.filterwarnings("ignore::klrl.kl.DoubtfulEstimateWarning")
@pytest.mark.parametrize("estimator", ["exact", "k1"])
def test_intervals_hold_the_true_value_as_often_as_they_say(estimator):
    probability, log_p, log_q, tokens, mask, kl = enumerated(P, Q, ends=True)
    at, repeats = rows(tokens, V), 200
    held = 0
    for i in draw(probability.numpy(), 64, repeats, seed=0):
        if estimator == "exact":
            found = sequence_kl(P[at[i]], Q[at[i]], mask[i])
        else:
            found = estimate_sequence_kl(log_p[i], log_q[i], mask[i], estimator)
        low, high = found.interval(0.95)
        held += low <= kl <= high
    assert binom.ppf(1e-4, repeats, 0.94) <= held <= binom.ppf(1.0 - 1e-4, repeats, 0.96)


@pytest.mark.filterwarnings("ignore::klrl.kl.DoubtfulEstimateWarning")
def test_the_estimate_is_the_mean_over_sequences_with_its_standard_error():
    _, log_p, log_q, tokens, mask, _ = enumerated(P, Q, ends=True)
    i = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(0))[:40]
    at, mask, log_p, log_q = (x[i] for x in (rows(tokens, V), mask, log_p, log_q))
    found = sequence_kl(P[at], Q[at], mask)
    sums = torch.distributions.kl_divergence(TorchCategorical(logits=P[at]), TorchCategorical(logits=Q[at]))
    sums = np.where(mask, sums, 0.0).sum(-1)
    assert found.value == pytest.approx(sums.mean(), rel=1e-12)
    assert found.stderr == pytest.approx(sums.std(ddof=1) / 40**0.5, rel=1e-12)
    assert (found.n, found.groups) == (40, 40)
    assert repr(found).startswith("SequenceEstimate(")
    # Of k1, that of the log-ratios of whole sequences.
    k1 = estimate_sequence_kl(log_p, log_q, mask, "k1")
    whole = estimate_kl(log_p.sum(-1), log_q.sum(-1), "k1")
    assert (k1.value, k1.stderr) == pytest.approx((whole.value, whole.stderr), rel=1e-12)


def test_clusters_of_equal_sequences_count_once():
    at = rows(ALL[:40], V)
    once, twice = sequence_kl(P[at], Q[at]), sequence_kl(P[at.repeat(2, 1)], Q[at.repeat(2, 1)])
    clustered = sequence_kl(P[at.repeat(2, 1)], Q[at.repeat(2, 1)], clusters=torch.arange(40).repeat(2) * 7)
    assert clustered.interval() == pytest.approx(once.interval(), rel=1e-12)
    assert (clustered.n, clustered.groups) == (80, 40)
    assert twice.stderr < 0.8 * once.stderr


@pytest.mark.filterwarnings("ignore::klrl.kl.DoubtfulEstimateWarning")
def test_what_the_mask_leaves_out_may_be_anything():
    _, log_p, log_q, tokens, mask, _ = enumerated(P, Q, ends=True)
    at = rows(tokens, V)
    for junk in (math.nan, math.inf, -math.inf):
        p, q = (torch.where(mask.unsqueeze(-1), x[at], junk) for x in (P, Q))
        assert sequence_kl(p, q, mask.numpy()).value == sequence_kl(P[at], Q[at], mask).value
        a, b = (torch.where(mask, x, junk) for x in (log_p, log_q))
        assert estimate_sequence_kl(a, b, mask.int()).value == estimate_sequence_kl(log_p, log_q, mask).value
        record = sequence_kl(Categorical(p), Categorical(q), mask)
        assert record.value == pytest.approx(sequence_kl(P[at], Q[at], mask).value, rel=1e-12)


# The gradient of the KL of sequences, and what losses on single tokens have instead: 27 sequences of 3 tokens.
SHORT = sequences(3, 3)
POLICY, REFERENCE = tables(3, 3, apart=1.0, seed=2)
OLD, _ = tables(3, 3, apart=0.0, seed=3)


def gradient(objective, policy=POLICY):
    theta = policy.clone().requires_grad_()
    (found,) = torch.autograd.grad(objective(theta), theta)
    return found


def sequence_objective(theta, forward=False):
    """KL of sequences by its definition, KL(policy||reference), or forward KL(reference||policy)."""
    p, q = (log_probs(x, SHORT).sum(-1) for x in ((REFERENCE, theta) if forward else (theta, REFERENCE)))
    return (p.exp() * (p - q)).sum()


def step_objective(theta, forward=False):
    """The sum of the steps' KLs at the policy's prefixes, which are held fixed."""
    at = rows(SHORT, 3)
    p, q = (x[at].log_softmax(-1) for x in ((REFERENCE, theta) if forward else (theta, REFERENCE)))
    kl = (p.exp() * (p - q)).sum(-1).sum(-1)
    return (log_probs(POLICY, SHORT).sum(-1).exp() * kl).sum()


def expected(loss, sampler=POLICY):
    """Objective with a loss per sequence, ``[27]``, on sequences that are data."""

    def objective(theta):
        losses = loss(log_probs(theta, SHORT), log_probs(REFERENCE, SHORT))
        return (log_probs(sampler, SHORT).sum(-1).exp() * losses).sum()

    return objective


def to_go(x, after=0):
    """Sum over the steps from this one on, or from the next one."""
    sums = x.flip(-1).cumsum(-1).flip(-1)
    return sums if after == 0 else sums - x


def k3(log_ratio):
    return log_ratio.exp() - 1.0 - log_ratio


def exact_steps(theta):
    at = rows(SHORT, 3)
    return token_kl(theta[at], REFERENCE[at])


LOSSES = {
    # in the loss, token by token
    "k1": (lambda p, q: (p - q).sum(-1), None),
    "k2": (lambda p, q: ((p - q) ** 2 / 2).sum(-1), "step"),
    "k3": (lambda p, q: k3(q - p).sum(-1), "forward step"),
    "w*k3": (lambda p, q: ((p - p.detach()).exp() * k3(q - p)).sum(-1), "step"),
    # in the loss, of whole sequences
    "k2 of sequences": (lambda p, q: (p - q).sum(-1) ** 2 / 2, "sequence"),
    "k3 of sequences": (lambda p, q: k3((q - p).sum(-1)), "forward sequence"),
    # in the reward
    "k1 in the reward of its token": (lambda p, q: (p * (p - q).detach()).sum(-1), "step"),
    "k1 in the reward": (lambda p, q: (p * to_go((p - q).detach())).sum(-1), "sequence"),
    "k3 in the reward": (lambda p, q: (p * to_go(k3(q - p).detach())).sum(-1), "neither"),
}
OBJECTIVES = {
    "sequence": sequence_objective,
    "step": step_objective,
    "forward sequence": lambda theta: sequence_objective(theta, forward=True),
    "forward step": lambda theta: step_objective(theta, forward=True),
}


@pytest.mark.parametrize("name", LOSSES)
def test_each_loss_has_the_gradient_of_one_kl_and_of_no_other(name):
    loss, right = LOSSES[name]
    found = gradient(expected(loss))
    if right is None:
        torch.testing.assert_close(found, torch.zeros_like(found), rtol=0, atol=1e-12)
        return
    agree = {x for x, f in OBJECTIVES.items() if (found - gradient(f)).abs().max() < 1e-12}
    assert agree == ({right} if right != "neither" else set())


def in_parts(theta, loss, reward):
    """Exact KLs in the loss and, or, in the reward of what comes before them."""
    kl = exact_steps(theta)
    prefix = (log_probs(theta, SHORT) * to_go(kl.detach(), after=1)).sum(-1)
    return (log_probs(POLICY, SHORT).sum(-1).exp() * (loss * kl.sum(-1) + reward * prefix)).sum()


def test_exact_kls_in_the_loss_are_one_part_of_the_gradient_and_in_the_reward_the_other():
    whole, step = gradient(sequence_objective), gradient(step_objective)
    torch.testing.assert_close(gradient(lambda x: in_parts(x, 1, 0)), step, rtol=0, atol=1e-12)
    torch.testing.assert_close(gradient(lambda x: in_parts(x, 0, 1)), whole - step, rtol=0, atol=1e-12)
    assert (whole - step).norm() > 0.1 * whole.norm()


@pytest.mark.parametrize("sampler", ["policy", "old"])
def test_the_loss_of_sequences_has_the_value_and_the_gradient_of_their_kl(sampler):
    at, old = rows(SHORT, 3), {"policy": POLICY, "old": OLD}[sampler]
    log_sampler = None if sampler == "policy" else log_probs(OLD, SHORT)
    probability = log_probs(old, SHORT).sum(-1).exp()

    def objective(theta):
        losses = sequence_kl_loss(theta[at], REFERENCE[at], SHORT, log_sampler=log_sampler)
        return (probability * losses.sum(-1)).sum()

    torch.testing.assert_close(objective(POLICY), sequence_objective(POLICY), rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient(objective), gradient(sequence_objective), rtol=0, atol=1e-12)


def test_the_loss_reads_nothing_beyond_the_end():
    mask, at = until_end(SHORT, 0), rows(SHORT, 3)
    junk = torch.where(mask.unsqueeze(-1), POLICY[at], math.nan).requires_grad_()
    tokens = SHORT.masked_fill(~mask, -100)
    log_old = torch.where(mask, log_probs(OLD, SHORT), math.nan)
    sequence_kl_loss(junk, REFERENCE[at], tokens, mask, log_sampler=log_old).sum().backward()
    fine = POLICY[at].requires_grad_()
    sequence_kl_loss(fine, REFERENCE[at], SHORT, mask, log_sampler=log_probs(OLD, SHORT)).sum().backward()
    torch.testing.assert_close(junk.grad, fine.grad, rtol=0, atol=0)
    assert (junk.grad[~mask] == 0.0).all()


def test_trajectories_are_sequences_of_distributions_at_their_states():
    generator = torch.Generator().manual_seed(0)
    mean, change = torch.randn(2, 200, 7, 2, generator=generator)
    p, q = DiagGaussian(mean, torch.zeros_like(mean)), DiagGaussian(mean + change, torch.zeros_like(mean))
    mask = torch.arange(7) < torch.randint(1, 8, (200, 1), generator=generator)
    found = sequence_kl(p, q, mask)
    assert found.value == pytest.approx((mask * change.square().sum(-1) / 2).sum(-1).mean().item(), rel=1e-5)
    of_torch = sequence_kl(Gamma(torch.full((200, 7), 2.0), 1.0), Gamma(torch.full((200, 7), 2.0), 2.0), mask)
    assert of_torch.value == pytest.approx((mask.sum(-1) * (2.0 - 2.0 * math.log(2.0))).mean().item(), rel=1e-5)
    with pytest.raises(NoClosedForm):
        sequence_kl(p, Categorical(mean), mask)


def test_few_sequences_and_log_ratios_that_never_vary_are_doubtful():
    at = rows(ALL[:8], V)
    with pytest.warns(DoubtfulEstimateWarning, match="^sequence_kl: .* 8 independent samples"):
        sequence_kl(P[at], Q[at])
    with pytest.warns(DoubtfulEstimateWarning, match="^estimate_sequence_kl: .* all samples have one value"):
        estimate_sequence_kl(torch.zeros(64, 2), torch.full((64, 2), -0.5))
    assert estimate_sequence_kl(torch.zeros(64, 2), torch.zeros(64, 2)).value == 0.0
    assert sequence_kl(P[at[:1]].repeat(64, 1, 1), Q[at[:1]].repeat(64, 1, 1)).stderr == 0.0  # exact: nothing to doubt


def test_a_token_that_q_never_chooses_makes_the_kl_infinite():
    p, q = torch.zeros(40, 2, 3), torch.zeros(40, 2, 3)
    q[3, 1, 0] = -math.inf
    assert sequence_kl(p, q).value == math.inf
    log_q = torch.full((40, 2), -1.0)
    log_q[3, 1] = -math.inf
    assert estimate_sequence_kl(torch.full((40, 2), -1.0), log_q).value == math.inf


LOGITS, TOKENS = torch.zeros(4, 3, 2), torch.zeros(4, 3, dtype=torch.long)
LOG = torch.zeros(4, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sequence_kl(LOGITS[0], LOGITS[0]), r"positions have shape \[3\]; allowed: .* \[B, T\]"),
        (lambda: sequence_kl(LOGITS[:0], LOGITS[:0]), r"positions have shape \[0, 3\]; .* not empty"),
        (lambda: sequence_kl(LOGITS, LOGITS[:, :2]), r"p has shape \[4, 3, 2\], q \[4, 2, 2\]; allowed: one shape"),
        (lambda: sequence_kl(LOGITS, LOGITS, TOKENS[:, :2]), r"mask has shape \[4, 2\]; allowed: .* \[4, 3\]"),
        (lambda: sequence_kl(LOGITS, LOGITS, TOKENS + 2), r"mask = 2 at a place; allowed: bool, or 0 and 1"),
        (lambda: sequence_kl(LOGITS, LOGITS, TOKENS), r"no position that counts in sequence 0; allowed: at least"),
        (lambda: sequence_kl(LOGITS, LOGITS, clusters=TOKENS), r"clusters have .* \[4, 3\]; allowed: integers, "),
        (lambda: sequence_kl(LOGITS, Categorical(LOGITS)), r"p is a Tensor, q a Categorical; allowed: logits of"),
        (lambda: sequence_kl(Categorical(LOGITS), Categorical(LOGITS[:1])), r"p has batch shape .*; allowed: one"),
        (lambda: sequence_kl(LOGITS * math.nan, LOGITS), r"no distribution at 12 positions; allowed: numbers < inf"),
        (lambda: sequence_kl(TOKENS[..., None], LOGITS), r"p has logits of type torch.int64; allowed: floating"),
        (lambda: estimate_sequence_kl(LOG, LOG[:2]), r"log_p has shape \[4, 3\], log_q \[2, 3\]; allowed: one shape"),
        (lambda: estimate_sequence_kl(LOG - math.inf, LOG), r"log_p = -inf at .*; allowed: finite numbers"),
        (lambda: estimate_sequence_kl(LOG, LOG * math.nan), r"log_q = nan at .*; allowed: numbers < inf"),
        (lambda: estimate_sequence_kl(LOG, LOG, None, "k4"), r"estimator = 'k4'; allowed: k1, k2, k3"),
        (lambda: sequence_kl_loss(LOGITS, LOGITS, TOKENS + 2), r"tokens = 2 at a position .*; allowed: 0 to 1"),
        (lambda: sequence_kl_loss(LOGITS, LOGITS, TOKENS[:2]), r"tokens have .* \[2, 3\]; allowed: .* \[4, 3\]"),
        (lambda: sequence_kl_loss(LOGITS, LOGITS, TOKENS, log_sampler=LOGITS), r"log_sampler has shape \[4, 3, 2\]; "),
        (lambda: sequence_kl_loss(LOGITS, LOGITS, TOKENS, log_sampler=LOG + 0.5), r"log_sampler = 0.5 at .* numbers <"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_with_one_line(call, message):
    with pytest.raises(ValueError, match=message) as refused:
        call()
    assert "\n" not in str(refused.value)
