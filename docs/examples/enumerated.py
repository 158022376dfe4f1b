"""Policies over sequences so short that all of them can be enumerated: the truth that estimates are compared with.

A policy is a table of logits, one row per prefix, ``[P, V]``; nothing here uses klrl.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor


def sequences(vocabulary: int, horizon: int) -> Tensor:
    """Return all sequences of tokens, ``[V^T, T]``."""
    return torch.tensor([*itertools.product(range(vocabulary), repeat=horizon)])


def until_end(tokens: Tensor, end: int) -> Tensor:
    """Return the mask of the positions up to the first ``end`` token, this included."""
    ended = (tokens == end).cumsum(-1)
    return (ended == 0) | ((ended == 1) & (tokens == end))


def rows(tokens: Tensor, vocabulary: int) -> Tensor:
    """Return the row of the prefix before every position: prefixes in the order of their length, ``[*B, T]``."""
    code, found = torch.zeros_like(tokens[..., 0]), []
    for t in range(tokens.shape[-1]):
        found.append(sum(vocabulary**k for k in range(t)) + code)
        code = code * vocabulary + tokens[..., t]
    return torch.stack(found, -1)


def tables(vocabulary: int, horizon: int, apart: float, seed: int) -> tuple[Tensor, Tensor]:
    """Return two policies' logits in float64, the second ``apart`` from the first by random numbers of that size."""
    generator = torch.Generator().manual_seed(seed)
    size = (2, sum(vocabulary**k for k in range(horizon)), vocabulary)
    first, noise = torch.randn(size, generator=generator, dtype=torch.float64)
    return first, first + apart * noise


def log_probs(table: Tensor, tokens: Tensor) -> Tensor:
    """Return the log-probability of every token given those before it, ``[*B, T]``."""
    logits = table[rows(tokens, table.shape[-1])]
    return logits.log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
