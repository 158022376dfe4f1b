"""KL and log-probabilities by position: values, gradients, precision, and memory."""

import math
import weakref

import mpmath
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from klrl.kl import (
    kl_divergence,
    sequence_kl_loss,
    token_kl,
    token_log_probs,
    tokens,
)
from klrl.policy.distributions import Categorical


def logits(*shape, apart=0.5, dtype=torch.float64, seed=0):
    p, noise = torch.randn(2, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return p.to(dtype), (p + apart * noise).to(dtype)


def textbook(p, q):
    log_p, log_q = p.log_softmax(-1), q.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


@pytest.mark.parametrize("chunk", [1, 40, 2**18])
def test_values_and_gradients_are_those_of_the_textbook_whatever_the_chunks(chunk, monkeypatch):
    monkeypatch.setattr(tokens, "CHUNK", chunk)
    p, q = (x.requires_grad_() for x in logits(3, 4, 11))
    mask = torch.rand(3, 4, generator=torch.Generator().manual_seed(1)) < 0.7
    chosen = torch.randint(11, (3, 4), generator=torch.Generator().manual_seed(2))
    weight = torch.arange(12.0, dtype=torch.float64).reshape(3, 4)

    def ours():
        return token_kl(p, q, mask), token_log_probs(p, chosen, mask)

    def others():
        log_p = p.log_softmax(-1).gather(-1, chosen.unsqueeze(-1)).squeeze(-1)
        return torch.where(mask, textbook(p, q), 0.0), torch.where(mask, log_p, 0.0)

    for found, right in zip(ours(), others(), strict=True):
        torch.testing.assert_close(found, right, rtol=1e-12, atol=0)
    (a, b), (c, d) = (torch.autograd.grad((weight * (x[0] + x[1].sin())).sum(), (p, q)) for x in (ours(), others()))
    torch.testing.assert_close(a, c, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(b, d, rtol=1e-10, atol=1e-14)
    assert (a[~mask] == 0.0).all()


def test_a_small_kl_in_float32_and_its_gradients_lose_nothing():
    p, q = (x.requires_grad_() for x in logits(1, 1, 300, apart=1e-4, dtype=torch.float32))
    mpmath.mp.dps = 40
    a, b = ([mpmath.exp(mpmath.mpf(x)) for x in row.flatten().tolist()] for row in (p, q))
    a, b = ([x / sum(row) for x in row] for row in (a, b))
    kl = sum(x * mpmath.log(x / y) for x, y in zip(a, b, strict=True))
    found = token_kl(p, q)
    assert found.item() == pytest.approx(float(kl), rel=1e-5)
    found.backward()
    by_p = torch.tensor([float(x * (mpmath.log(x / y) - kl)) for x, y in zip(a, b, strict=True)])
    by_q = torch.tensor([float(y - x) for x, y in zip(a, b, strict=True)])
    for x, right in ((p, by_p), (q, by_q)):
        torch.testing.assert_close(x.grad.flatten(), right, rtol=1e-4, atol=1e-5 * right.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_with_in_float32(dtype):
    p, q = logits(2, 3, 2000, apart=0.05, dtype=dtype)
    p.requires_grad_()
    found = token_kl(p, q)
    assert found.dtype == torch.float32
    right = textbook(p.detach().double(), q.double())
    torch.testing.assert_close(found.double(), right, rtol=1e-5, atol=0)
    found.sum().backward()
    wide = p.detach().double().requires_grad_()
    textbook(wide, q.double()).sum().backward()
    assert p.grad.dtype == dtype
    torch.testing.assert_close(p.grad.double(), wide.grad, rtol=0.01, atol=1e-7)
    assert token_log_probs(p, torch.zeros(2, 3, dtype=torch.long)).dtype == torch.float32


def test_far_apart_and_impossible_tokens():
    p = torch.tensor([[0.0, 0.0, -math.inf], [0.0, -math.inf, 1.0], [0.0, 900.0, 0.0]]).requires_grad_()
    q = torch.tensor([[1.0, 0.0, 3.0], [-math.inf, 0.0, 1.0], [900.0, 0.0, 0.0]]).requires_grad_()
    found = token_kl(p, q)
    expected = kl_divergence(Categorical(p), Categorical(q))
    torch.testing.assert_close(found, expected)
    assert found[1] == math.inf
    ours, autograd = (torch.autograd.grad(x.sum(), (p, q)) for x in (found, expected))
    for x, y in zip(ours, autograd, strict=True):
        torch.testing.assert_close(x, y)
        assert x.isfinite().all()


@pytest.mark.parametrize("junk", [math.nan, math.inf, -math.inf])
def test_padding_reaches_neither_value_nor_gradient(junk):
    p, q = logits(2, 5, 7)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0]])
    padded = [x.masked_fill((mask == 0).unsqueeze(-1), junk).requires_grad_() for x in (p, q)]
    chosen = torch.where(mask == 1, 3, -100)
    (token_kl(*padded, mask) + token_log_probs(padded[0], chosen, mask)).sum().backward()
    for x in padded:
        assert x.grad.isfinite().all()
        assert (x.grad[mask == 0] == 0.0).all()
        assert (x.grad[mask == 1] != 0.0).any()


def test_second_derivatives_are_those_of_the_textbook():
    p, q = (x.requires_grad_() for x in logits(2, 2, 4))
    mask, chosen = torch.tensor([[1, 1], [1, 0]]), torch.tensor([[0, 1], [2, 3]])

    def ours():
        return (token_kl(p, q, mask).sin() + token_log_probs(p, chosen, mask)).sum() + p.square().sum()

    def others():
        log_p = p.log_softmax(-1).gather(-1, chosen.unsqueeze(-1)).squeeze(-1)
        return torch.where(mask == 1, textbook(p, q).sin() + log_p, 0.0).sum() + p.square().sum()

    seconds = []
    for function in (ours, others):
        first = torch.autograd.grad(function(), (p, q), create_graph=True)
        seconds.append(torch.autograd.grad(sum((x * x.detach().cos()).sum() for x in first), (p, q)))
    for x, right in zip(*seconds, strict=True):
        torch.testing.assert_close(x, right, rtol=1e-9, atol=1e-12)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of what operations make, while it lives: the largest sum is what they need at a time."""

    def __init__(self):
        super().__init__()
        self.live = {}
        self.most = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for x in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(x, torch.Tensor):
                storage = x.untyped_storage()
                key = storage.data_ptr()
                if key not in self.live:
                    self.live[key] = storage.nbytes()
                    weakref.finalize(storage, self.live.pop, key, None)
        self.most = max(self.most, sum(self.live.values()))
        return made


def needed(function, *given):
    with LiveBytes() as live:
        live.live |= {x.untyped_storage().data_ptr(): 0 for x in given}  # what is there before
        function()
    return live.most


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_is_that_of_a_chunk_and_of_the_gradient(dtype, monkeypatch):
    monkeypatch.setattr(tokens, "CHUNK", 2**15)
    p, q = (torch.zeros(8, 64, 4000, dtype=dtype) for _ in range(2))
    p[0, 0, 0] = 1.0
    chosen, mask = torch.zeros(8, 64, dtype=torch.long), torch.ones(8, 64, dtype=torch.bool)
    size, few = p.nbytes, 80 * tokens.CHUNK  # twenty numbers of four bytes for each in work
    assert few < size
    given = (p, q, chosen, mask)
    assert needed(lambda: token_kl(p, q, mask), *given) <= few
    assert needed(lambda: (token_log_probs(p, chosen), token_log_probs(q, chosen)), *given) <= few
    p.requires_grad_()
    assert needed(lambda: sequence_kl_loss(p, q, chosen, mask).sum(-1).mean().backward(), *given) <= size + few
    assert needed(lambda: textbook(p, q), *given) > 3 * size  # the count sees what it is to see
