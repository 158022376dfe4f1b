"""KL and log-probabilities position by position from logits, over any vocabulary in memory for a few positions.

Logits of 64 x 128 tokens over 32,000 words have a gigabyte in float32, and a formula written for all of them at once
makes a dozen arrays of that size, with autograd two dozen. Here chunks of positions are computed one after the other,
forward and backward; what is kept between the two are the logits themselves, and their gradient is the one new array
of their size. Logits in half precision are computed with in float32, chunk by chunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from klrl.kl.families.categorical import categorical_kl, categorical_kl_gradients
from klrl.policy.arrays import Array, as_mask, tensor
from klrl.policy.distributions import SHORT, Categorical

CHUNK = 2**18
"""Most logits of one policy that are computed with at a time."""


class PerToken(NamedTuple):
    """Numbers per position, ``[*B]``, 0 where the mask is not set; None where they were not asked for."""

    kl: Tensor | None
    """KL(p||q) between the distributions over the vocabulary, nats."""
    log_prob: Tensor | None
    """log p(token)."""


def token_kl(p: Array, q: Array, mask: Array | None = None) -> Tensor:
    r"""KL(p||q) over the whole vocabulary at every position, nats, ``[*B]``; exact and differentiable.

    Values and gradients are those of :func:`klrl.kl.kl_divergence` of two Categoricals (infinite where q misses p's
    support), in memory for some 2**18 logits and, backward, for the gradient (second derivatives are autograd's, in the
    memory that it takes).

    Args:
        p: logits ``[*B, V]``, ``[B, T, V]`` for sequences; they need no normalisation, -inf is probability zero.
        q: logits of the same shape, such as the reference policy's at the same prefixes.
        mask: which positions count, bool or 0 and 1, ``[*B]``. The others (prompt, padding) are not read: they have KL
            and gradient 0 whatever stands there, NaN included.

    Raises:
        ValueError: shapes that differ, a mask of other numbers than 0 and 1, logits that are no distribution at a
            position that counts (NaN, +inf, or -inf for every token).

    >>> logits = torch.tensor([[[0.0, 0.0], [3.0, 1.0], [float("nan"), 0.0]]])
    >>> token_kl(logits, torch.zeros(1, 3, 2), mask=torch.tensor([[1, 1, 0]]))
    tensor([[0.0000, 0.3278, 0.0000]])
    """
    kl = per_token(tensor(p), tensor(q), None, mask).kl
    assert kl is not None
    return kl


def token_log_probs(logits: Array, tokens: Array, mask: Array | None = None) -> Tensor:
    """log p(token) at every position, nats, ``[*B]``; differentiable, in the memory of :func:`token_kl`.

    Args:
        logits: ``[*B, V]``; those at position t belong to the token at position t: shift them before.
        tokens: indices of the vocabulary, ``[*B]``.
        mask: as for :func:`token_kl`; tokens elsewhere may be any number, -100 for example.

    Raises:
        ValueError: shapes that differ, a mask of other numbers than 0 and 1, a token beyond the vocabulary.
    """
    log_prob = per_token(tensor(logits), None, tensor(tokens), mask).log_prob
    assert log_prob is not None
    return log_prob


def per_token(p: Tensor, q: Tensor | None, tokens: Tensor | None, mask: Array | None) -> PerToken:
    """Return KL(p||q) and log p(token) in one pass, whichever there is a q and are tokens for."""
    _check_logits(p, q)
    counted = mask_of(mask, p.shape[:-1], p.device)
    if tokens is not None:
        _check_tokens(tokens, counted, p.shape[-1])
    kl, log_prob = _PerToken.apply(p, q, tokens, counted)  # type: ignore[no-untyped-call]
    if n := int((kl.isnan() | log_prob.isnan()).sum()):
        raise ValueError(
            f"the logits are no distribution at {n} positions; allowed: numbers < inf, not all of them -inf"
        )
    return PerToken(None if q is None else kl, None if tokens is None else log_prob)


def mask_of(mask: Array | None, shape: torch.Size, device: torch.device) -> Tensor:
    """Return which positions count, bool, of this shape: all of them without a mask.

    Raises:
        ValueError: a mask of another shape or of other numbers than 0 and 1.
    """
    if mask is None:
        return torch.ones(shape, dtype=torch.bool, device=device)
    counted = as_mask("mask", mask).to(device)
    if counted.shape != shape:
        raise ValueError(f"mask has shape {list(counted.shape)}; allowed: one number per position, {list(shape)}")
    return counted


def _check_logits(p: Tensor, q: Tensor | None) -> None:
    for name, x in (("p", p), ("q", q)):
        if x is not None and not x.is_floating_point():
            raise ValueError(f"{name} has logits of type {x.dtype}; allowed: floating-point numbers")
    if p.ndim < 2 or (q is not None and q.shape != p.shape):
        shapes = f"p has shape {list(p.shape)}" + ("" if q is None else f", q {list(q.shape)}")
        raise ValueError(f"{shapes}; allowed: one shape, positions by vocabulary")


def _check_tokens(tokens: Tensor, counted: Tensor, size: int) -> None:
    if tokens.shape != counted.shape or tokens.dtype.is_floating_point:
        found = f"type {tokens.dtype} and shape {list(tokens.shape)}"
        raise ValueError(f"tokens have {found}; allowed: integers, one per position, {list(counted.shape)}")
    strange = counted & ((tokens < 0) | (tokens >= size))
    if bool(strange.any()):
        raise ValueError(f"tokens = {int(tokens[strange][0])} at a position that counts; allowed: 0 to {size - 1}")


class _PerToken(torch.autograd.Function):
    """Chunks of positions, forward and backward."""

    @staticmethod
    def forward(ctx: Any, p: Tensor, q: Tensor | None, tokens: Tensor | None, counted: Tensor) -> tuple[Tensor, Tensor]:
        dtype = p.dtype if q is None else torch.promote_types(p.dtype, q.dtype)
        kl = p.new_zeros(counted.shape, dtype=torch.float32 if dtype in SHORT else dtype)
        log_prob = torch.zeros_like(kl)
        for at in _chunks(counted, p.shape[-1]):
            logits = _widened(p[at])
            if q is not None:
                kl[at] = categorical_kl(Categorical(logits), Categorical(_widened(q[at]))).to(kl.dtype)
            if tokens is not None:
                chosen = logits.gather(-1, tokens[at].long().unsqueeze(-1)).squeeze(-1)
                log_prob[at] = (chosen - logits.logsumexp(-1)).to(kl.dtype)
        ctx.save_for_backward(p, q, tokens, counted, kl)
        return kl, log_prob

    @staticmethod
    def backward(ctx: Any, by_kl: Tensor, by_log_prob: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        p, q, tokens, counted, kl = ctx.saved_tensors
        if torch.is_grad_enabled():
            return *_recorded(p, q, tokens, counted, (by_kl, by_log_prob), ctx.needs_input_grad), None, None
        by_p, by_q = (torch.zeros_like(x) if n else None for x, n in zip((p, q), ctx.needs_input_grad, strict=False))
        for at in _chunks(counted, p.shape[-1]):
            policy = Categorical(_widened(p[at]))
            slope = torch.zeros_like(policy.logits)
            if q is not None:
                first, second = categorical_kl_gradients(policy, Categorical(_widened(q[at])), kl[at])
                slope = (first * by_kl[at].unsqueeze(-1)).to(slope.dtype)
                if by_q is not None:
                    by_q[at] = (second * by_kl[at].unsqueeze(-1)).to(by_q.dtype)
            if tokens is not None and by_p is not None:
                weight = by_log_prob[at].unsqueeze(-1).to(slope.dtype)
                slope.addcmul_(policy.probs, weight, value=-1.0)
                slope.scatter_add_(-1, tokens[at].long().unsqueeze(-1), weight)
            if by_p is not None:
                by_p[at] = slope.to(by_p.dtype)
        return by_p, by_q, None, None


def _recorded(
    p: Tensor, q: Tensor | None, tokens: Tensor | None, counted: Tensor, by: tuple[Tensor, ...], needed: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients with a graph of their own, for second derivatives: all positions at once, by autograd."""
    policy, values, weights = Categorical(_widened(p[counted])), [], []
    if q is not None:
        values.append(categorical_kl(policy, Categorical(_widened(q[counted]))))
        weights.append(by[0][counted])
    if tokens is not None:
        values.append(policy.log_probs.gather(-1, tokens[counted].long().unsqueeze(-1)).squeeze(-1))
        weights.append(by[1][counted])
    wanted = [x for x, n in zip((p, q), needed, strict=False) if n and x is not None]
    # As grad_outputs, the weights are not differentiated here, though they may depend on the KL themselves.
    found = iter(torch.autograd.grad(values, wanted, weights, create_graph=True, materialize_grads=True))
    return next(found) if needed[0] else None, next(found) if needed[1] else None


def _chunks(counted: Tensor, size: int) -> Iterator[tuple[Tensor, ...]]:
    """Indices of the positions that count, a chunk of positions at a time."""
    n = max(1, CHUNK // size)
    return zip(*(index.split(n) for index in counted.nonzero(as_tuple=True)), strict=True)


def _widened(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in SHORT else logits
