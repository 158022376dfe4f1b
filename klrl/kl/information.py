"""Mutual information of states and actions."""

from __future__ import annotations

import math
from typing import Any, TypeVar

import torch
from torch import Tensor

from klrl.kl.families import AnyDistribution, read
from klrl.kl.families.categorical import categorical_kl
from klrl.kl.families.joint import MAX_OUTCOMES, joint, outcomes
from klrl.kl.sampled import CHUNK, StateEstimate, moments
from klrl.kl.samplers import RecordSampler, unbounded
from klrl.kl.units import in_base
from klrl.policy.arrays import A, like, tensor
from klrl.policy.distributions import Categorical, Distribution, Factored, NoClosedForm

D = TypeVar("D", bound=Distribution)


def mutual_information(p: AnyDistribution[A], base: float | None = None) -> A:
    r"""I(S; A) = mean_s KL(p_s || m) with m = mean_s p_s, over a batch of states ``[*B]`` that count alike: a number.

    = H(m) - mean_s H(p_s), at most the logarithm of the number of states; 0 if the policy does the same in all of them.
    For Categorical, MultiCategorical and Bernoulli, these over their joint outcomes up to 4096.

    Args:
        p: the policy at every state.
        base: unit of information, as in :func:`klrl.kl.kl_divergence`.

    Raises:
        NoClosedForm: another family, or more outcomes.
        ValueError: no states.
    """
    record, dtype = read(p)
    if not isinstance(record, (Categorical, Factored)):
        raise _refused(type(record).__name__)
    if isinstance(record, Factored) and (n := outcomes(record)) > MAX_OUTCOMES:
        raise _refused(f"{type(record).__name__} with {n} > {MAX_OUTCOMES} joint outcomes")
    wide = _one_batch_dimension(record.map(lambda x: tensor(x).double()))
    choices = joint(wide) if isinstance(wide, Factored) else wide
    log_probs = choices.log_probs
    never = (log_probs == -math.inf).all(0)  # the logarithm of a sum of nothing has no derivative
    log_sum = torch.where(never, 0.0, log_probs).logsumexp(0)
    mean = Categorical(torch.where(never, -math.inf, log_sum).unsqueeze(0))
    nats = categorical_kl(choices, mean).mean().clamp_max(math.log(len(log_probs)))
    return in_base(like(nats.to(dtype), record.parameters[0]), base)


def estimate_mutual_information(
    p: AnyDistribution[Any], n: int = 16, generator: torch.Generator | None = None
) -> StateEstimate:
    r"""Estimate I(S; A) over a batch of S states ``[*B]``, nats: a value and a standard error of shape ``()``.

    The mean over n actions from every state of log S - H(s | a), with p(s | a) = p_s(a) / sum_s' p_s'(a): every action
    is judged by all states, so that every term is in [0, log S] and the mean is unbiased. It costs n S^2 d operations.

    Args:
        p: the policy at every state, of any family with a record.
        n: number of actions per state, >= 2.
        generator: generator of the actions.

    Raises:
        TypeError: a family without a record.
        ValueError: n < 2, or no states.
    """
    record, dtype = read(p)
    (flat,) = unbounded(RecordSampler(_one_batch_dimension(record), dtype))
    states = flat.batch_shape[0]
    size = max(1, CHUNK // (states * flat.width))

    def information(action: Tensor) -> Tensor:
        rows = action.reshape(-1, 1, *flat.event_shape).split(size)
        return torch.cat([_of_actions(flat, row) for row in rows]).reshape(action.shape[:2])

    found = moments(flat, information, n, generator)
    stderr = found.variance.sum().sqrt() / states
    return StateEstimate(found.mean.mean().to(flat.dtype), stderr.to(flat.dtype), n)


def _of_actions(states: RecordSampler, action: Tensor) -> Tensor:
    """log S - H(s | a) = sum_s p(s | a) (log p(s | a) + log S) of every action ``[m, 1, *k]``."""
    count = states.batch_shape[0]
    log_posterior = states.log_prob(action.expand(-1, count, *states.event_shape)).log_softmax(-1)
    terms = log_posterior.exp() * log_posterior.clamp_min(-1e300)  # 0 log 0 = 0
    return (terms.sum(-1) + math.log(count)).clamp(0.0, math.log(count))


def _one_batch_dimension(record: D) -> D:
    if not math.prod(record.batch_shape):
        raise ValueError(f"a policy at {list(record.batch_shape)} states; allowed: at least one state")
    return record.map(lambda x: x.reshape(-1, *x.shape[len(record.batch_shape) :]))


def _refused(what: str) -> NoClosedForm:
    return NoClosedForm(f"no closed form for the mutual information of {what}; allowed: estimate_mutual_information(p)")
