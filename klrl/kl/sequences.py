r"""KL between autoregressive policies: of whole sequences of tokens, or of trajectories, from the steps of a sample.

A policy draws y = (y_1, ..., y_T) one step at a time, each given the prefix y_<t. By the chain rule

    KL(p||q) = E_{y ~ p} sum_t KL(p(.|y_<t) || q(.|y_<t)),

so that over sequences drawn from p the exact KLs of the steps, added up, have KL(p||q) as their mean:
:func:`sequence_kl`. That is the log-ratio of the sequence with every step's term replaced by its expectation given the
prefix (Amini, Vieira and Cotterell 2025, arXiv 2504.10637, "Rao-Blackwellized"): never negative, and step by step of
no more variance. Of the *sum* that is the rule, not a theorem, for terms of different steps may cancel in the
log-ratio alone: where p is q conditioned on an event, log p/q is one number for every sequence, and the sum of the
exact KLs varies. :func:`estimate_sequence_kl` needs the log-probabilities of the sampled tokens only.

The gradient of KL(policy||reference) by the policy has two parts, as the policy chooses the prefixes, too:

    E sum_t grad KL_t  +  E sum_t score_t sum_{u > t} KL_u.

The exact KLs as a loss have the first part alone, and so has every loss that looks at one token at a time, k2 among
them; the second is what a KL in the reward adds. :func:`sequence_kl_loss` has both (docs/sequences.md has the table).
In every function position t of the logits is the distribution that token t was drawn from: logits of a language model
are shifted by one before. A mask says which positions count; it must not depend on what comes after them, as is so for
"up to the end-of-sequence token, this included".
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from klrl.kl.estimators import Estimate, SampleEstimator, kl_samples, mean_estimate, tail_index
from klrl.kl.exact import kl_divergence
from klrl.kl.families import AnyDistribution, matched
from klrl.kl.reliability import Doubt, skewness
from klrl.kl.tokens import mask_of, per_token, token_kl
from klrl.policy.arrays import Array, tensor
from klrl.policy.distributions import NoClosedForm
from klrl.shown import array


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class SequenceEstimate(Estimate):
    """An :class:`Estimate` of the KL of whole sequences, nats, ``n`` being their number, and what it is the mean of."""

    per_token: Tensor
    """The terms, ``[B, T]``, 0 where the mask is not set; their sums over positions are what is averaged."""

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, per_token={array(self.per_token)})".replace(
            "Estimate", "SequenceEstimate", 1
        )


def sequence_kl(
    p: Array | AnyDistribution[Any],
    q: Array | AnyDistribution[Any],
    mask: Array | None = None,
    *,
    clusters: Array | None = None,
) -> SequenceEstimate:
    """Estimate KL(p||q) between sequences drawn from p, by the exact KL at every step of each; without gradients.

    For the other direction, KL(q||p), draw sequences from q and give q first.

    Args:
        p: the policy that drew the sequences: logits ``[B, T, V]`` at their prefixes, in memory as for
            :func:`klrl.kl.token_kl`; or, for trajectories, its distributions at their states, batch shape ``[B, T]``
            (the environment's transitions are the same under both policies and cancel).
        q: the other policy at the same prefixes or states, in the same form.
        mask: which positions count, bool or 0 and 1, ``[B, T]``; the others are not read.
        clusters: integer label of every sequence, ``[B]``: sequences with one label, such as the answers to one
            prompt, may be correlated, and the standard error allows for it.

    Raises:
        NoClosedForm: distributions of different families, or of one without a closed form.
        ValueError: shapes that do not fit, no sequence, a sequence without any position that counts.

    Warns:
        DoubtfulEstimateWarning: the interval cannot be trusted; the message says why.

    >>> heads = torch.tensor([0.5, 0.5]).log().expand(64, 3, 2)
    >>> print(sequence_kl(heads, torch.tensor([0.75, 0.25]).log().expand(64, 3, 2)))  # 3 tosses of 0.1438 nats each
    SequenceEstimate(0.431523 ± 0, n=64, per_token=float32[64, 3])
    """
    with torch.no_grad():
        if isinstance(p, (Tensor, np.ndarray)) is not isinstance(q, (Tensor, np.ndarray)):
            kinds = f"p is a {type(p).__name__}, q a {type(q).__name__}"
            raise ValueError(f"{kinds}; allowed: logits of both, or distributions of both")
        if isinstance(p, (Tensor, np.ndarray)):
            counted = _checked_mask(mask, tensor(p).shape[:-1], tensor(p).device)
            terms = token_kl(tensor(p), tensor(q), counted)
        else:
            terms, counted = _step_kl(p, q, mask)
        return _estimate("sequence_kl", terms, clusters, constant_is_doubtful=False)


def estimate_sequence_kl(
    log_p: Array,
    log_q: Array,
    mask: Array | None = None,
    estimator: SampleEstimator = "k3",
    *,
    clusters: Array | None = None,
) -> SequenceEstimate:
    """Estimate KL(p||q) between sequences drawn from p by k1, k2 or k3 of every token, added up; without gradients.

    k1 and k3 are unbiased (given the prefix, each term has the step's KL as its mean), k2 is not.
    :func:`klrl.kl.estimate_kl` has their definition. :func:`sequence_kl`, from logits, has less noise as a rule.

    Args:
        log_p: log p(y_t|y_<t) of the tokens, ``[B, T]``, finite where the mask is set.
        log_q: log q(y_t|y_<t) of the same tokens; -inf makes the estimate infinite.
        mask: as for :func:`sequence_kl`.
        estimator: ``"k1"``, ``"k2"`` or ``"k3"``.
        clusters: as for :func:`sequence_kl`.

    Raises:
        ValueError: an unknown estimator, shapes that do not fit, numbers that are no log-probabilities.

    Warns:
        DoubtfulEstimateWarning: the interval cannot be trusted; the message says why.
    """
    p, q = (tensor(x).detach().double() for x in (log_p, log_q))
    if p.shape != q.shape:
        raise ValueError(f"log_p has shape {list(p.shape)}, log_q {list(q.shape)}; allowed: one shape")
    counted = _checked_mask(mask, p.shape, p.device)
    for name, x, lowest in (("log_p", p, -math.inf), ("log_q", q, None)):
        fine = (x < math.inf) if lowest is None else (x < math.inf) & (x > lowest)
        if bool((counted & ~fine).any()):
            found, allowed = x[counted & ~fine][0].item(), "numbers < inf" if lowest is None else "finite numbers"
            raise ValueError(f"{name} = {found} at a position that counts; allowed: {allowed}")
    terms = torch.where(counted, kl_samples(torch.where(counted, q - p, 0.0), estimator), 0.0)
    return _estimate("estimate_sequence_kl", terms, clusters, constant_is_doubtful=bool((terms != 0.0).any()))


def sequence_kl_loss(
    policy: Tensor, reference: Tensor, tokens: Tensor, mask: Array | None = None, *, log_sampler: Tensor | None = None
) -> Tensor:
    """Return losses per token, ``[B, T]``, nats: their sum per sequence has KL(policy||reference) and its gradient.

    Both in expectation over sequences, so the loss of a batch is ``losses.sum(-1).mean()``. A token's loss is its exact
    KL times the ratio policy / sampler of the tokens before it, whose gradient is the second part of the module's
    formula. The ratio is 1 for the policy's own sequences. Only ``policy`` is differentiated (``reference``, too, if it
    asks for a gradient), in the memory of :func:`klrl.kl.token_kl`.

    Args:
        policy: logits ``[B, T, V]`` with their graph.
        reference: logits of the same shape.
        tokens: the tokens that were sampled, ``[B, T]``.
        mask: as for :func:`sequence_kl`.
        log_sampler: log-probabilities of the tokens under the policy that sampled them, ``[B, T]``, if that was
            another one: an earlier state of the policy, say, in all but the first step on a batch.

    Raises:
        ValueError: shapes that do not fit, tokens beyond the vocabulary, a log-probability > 0 or not finite.
    """
    counted = _checked_mask(mask, policy.shape[:-1], policy.device)
    kl, log_policy = per_token(policy, reference, tokens, counted)
    assert kl is not None
    assert log_policy is not None
    sampler = log_policy.detach() if log_sampler is None else log_sampler.detach()
    if sampler.shape != counted.shape:
        raise ValueError(f"log_sampler has shape {list(sampler.shape)}; allowed: {list(counted.shape)}")
    strange = counted & ~(sampler.isfinite() & (sampler <= 1e-3))
    if bool(strange.any()):
        raise ValueError(
            f"log_sampler = {sampler[strange][0].item():g} at a position that counts; allowed: numbers <= 0"
        )
    log_ratio = log_policy.double() - torch.where(counted, sampler, 0.0).double()
    before = torch.cat([torch.zeros_like(log_ratio[:, :1]), log_ratio.cumsum(-1)[:, :-1]], -1)
    return torch.where(counted, before.exp() * kl, 0.0).to(kl.dtype)


def _step_kl(p: AnyDistribution[Any], q: AnyDistribution[Any], mask: Array | None) -> tuple[Tensor, Tensor]:
    """Return the KL of distributions at the positions that count, 0 elsewhere, ``[B, T]``, and the mask."""
    counted = _checked_mask(mask, torch.Size(p.batch_shape), torch.device("cpu"))
    try:
        pair = matched(p, q)
    except NoClosedForm:  # a family of torch's without a record, or the message of why there is none
        kl = tensor(kl_divergence(p, q))
        return torch.where(counted.to(kl.device), kl, 0.0), counted
    if pair.p.batch_shape != pair.q.batch_shape:
        shapes = f"p has batch shape {list(pair.p.batch_shape)}, q {list(pair.q.batch_shape)}"
        raise ValueError(f"{shapes}; allowed: one shape, [B, T]")
    kl = tensor(kl_divergence(*(x.map(tensor)[counted] for x in (pair.p, pair.q))))
    return kl.new_zeros(counted.shape).masked_scatter(counted.to(kl.device), kl).to(pair.dtype), counted


def _checked_mask(mask: Array | None, shape: torch.Size, device: torch.device) -> Tensor:
    if len(shape) != 2 or 0 in shape:
        raise ValueError(f"the positions have shape {list(shape)}; allowed: sequences by steps, [B, T], not empty")
    counted = mask_of(mask, shape, device)
    if not bool(counted.any(-1).all()):
        i = int(counted.any(-1).long().argmin())
        raise ValueError(f"mask has no position that counts in sequence {i}; allowed: at least one in each")
    return counted


def _estimate(what: str, terms: Tensor, clusters: Array | None, *, constant_is_doubtful: bool) -> SequenceEstimate:
    """Return the mean over sequences of the terms' sums, and warn where its interval is doubtful."""
    values = terms.double().sum(-1)
    labels = torch.arange(len(values), device=values.device)
    if clusters is not None:
        labels = _labels(tensor(clusters), len(values), values.device)
    found = mean_estimate(values, None, labels)
    if math.isfinite(found.value):
        found = replace(found, khat=tail_index(values))
        groups = values.new_zeros(int(labels.max()) + 1).index_add(0, labels, values - found.value)
        constant = (values.max() - values.min() <= 1e-12 * values.abs().max()) & constant_is_doubtful
        skewed = torch.zeros(()) if constant else skewness(groups).abs()
        Doubt(torch.tensor(float(len(groups))), skewed, torch.tensor(found.khat), constant).warn(what, found.n)
    return SequenceEstimate(found.value, found.stderr, found.n, found.groups, khat=found.khat, per_token=terms)


def _labels(clusters: Tensor, n: int, device: torch.device) -> Tensor:
    if clusters.shape != (n,) or clusters.dtype.is_floating_point:
        found = f"type {clusters.dtype} and shape {list(clusters.shape)}"
        raise ValueError(f"clusters have {found}; allowed: integers, one per sequence, [{n}]")
    return torch.unique(clusters.to(device), return_inverse=True)[1]
