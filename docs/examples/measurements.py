"""Sequence KL against enumeration: ``python docs/examples/measurements.py --output scripts/results/sequences.json``.

Variances, the coverage of 95 % intervals and the gradients of losses, on policies whose every sequence is enumerated;
and the peak memory of a minibatch of 64 x 128 tokens over 32,000 words.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

if str(Path(__file__).resolve().parents[1]) not in sys.path:  # when run as a program
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from examples.enumerated import log_probs, rows, sequences, tables, until_end
from klrl.kl import sequence_kl_loss, token_kl
from klrl.kl.reliability import student
from klrl.run.directory import versions

APART = 0.7
"""Standard deviation of the difference of the two policies' logits."""


def variances(vocabulary: int, horizon: int, end: int) -> tuple[dict[str, Tensor], Tensor, float]:
    """Return every estimator's value for each sequence, the sequences' probabilities, and KL(p||q), enumerated."""
    p, q = tables(vocabulary, horizon, APART, seed=0)
    tokens = sequences(vocabulary, horizon)
    mask = until_end(tokens, end)
    once = ((tokens == end) | mask).all(-1)
    tokens, mask = tokens[once], mask[once]
    at = rows(tokens, vocabulary)
    log_p, log_q = (torch.where(mask, log_probs(x, tokens), 0.0) for x in (p, q))
    log_ratio, probability = log_q - log_p, log_p.sum(-1).exp()
    values = {
        "exact": token_kl(p[at], q[at], mask).sum(-1),
        "k1": -log_ratio.sum(-1),
        "k2": (log_ratio**2 / 2).sum(-1),
        "k3": (log_ratio.exp() - 1 - log_ratio).sum(-1),
    }
    return values, probability, (probability * -log_ratio.sum(-1)).sum().item()


def coverage(values: Tensor, probability: Tensor, kl: float, n: int, repeats: int, seed: int) -> float:
    """Return the share of repeats whose 95 % interval, from n sequences, holds the KL."""
    generator = torch.Generator().manual_seed(seed)
    drawn = values[torch.multinomial(probability, repeats * n, True, generator=generator)].reshape(repeats, n)
    half = student(0.95, n) * drawn.std(-1) / n**0.5
    return ((drawn.mean(-1) - kl).abs() <= half).double().mean().item()


def gradients() -> dict[str, dict[str, float]]:
    """Return, for each loss, how its expected gradient lies to that of the KL of sequences, and its noise."""
    tokens = sequences(3, 4)
    policy, reference = tables(3, 4, APART, seed=0)
    at, log_q = rows(tokens, 3), log_probs(reference, tokens)
    probability = log_probs(policy, tokens).sum(-1).exp()

    def to_go(x: Tensor) -> Tensor:
        return x.flip(-1).cumsum(-1).flip(-1)

    losses: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "sequence_kl_loss": lambda x, p: sequence_kl_loss(x[at], reference[at], tokens).sum(-1),
        "k1 in the reward": lambda x, p: (p * to_go((p - log_q).detach())).sum(-1),
        "k2 of the sequence": lambda x, p: (p - log_q).sum(-1) ** 2 / 2,
        "token_kl": lambda x, p: token_kl(x[at], reference[at]).sum(-1),
        "k2 of every token": lambda x, p: ((p - log_q) ** 2 / 2).sum(-1),
        "k3 of every token (GRPO)": lambda x, p: ((log_q - p).exp() - 1 - (log_q - p)).sum(-1),
        "k1 of every token": lambda x, p: (p - log_q).sum(-1),
    }

    def each(loss: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        x = policy.clone().requires_grad_()
        values = loss(x, log_probs(x, tokens))
        return torch.stack([torch.autograd.grad(v, x, retain_graph=True)[0].flatten() for v in values])

    x = policy.clone().requires_grad_()
    p = log_probs(x, tokens).sum(-1)
    (right,) = torch.autograd.grad((p.exp() * (p - log_q.sum(-1))).sum(), x)
    right, found = right.flatten(), {}
    for name, loss in losses.items():
        of_each = each(loss)
        mean = probability @ of_each
        noise = (probability @ (of_each - mean).square().sum(-1)).sqrt()
        cosine = (mean @ right / (mean.norm() * right.norm()).clamp_min(1e-12)).item()
        found[name] = {
            "cosine": round(cosine, 4),
            "error": round(((mean - right).norm() / right.norm()).item(), 4),
            "noise": round((noise / right.norm()).item(), 3),
        }
    return found


def peak() -> int:
    """Return the most memory that the process has had, bytes (Linux)."""
    (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM:"))
    return 1024 * int(line.split()[1])


def memory(batch: int, horizon: int, vocabulary: int, every: int) -> dict[str, float]:
    """Return, in the size of one policy's logits, what the loss and its gradient need beside both policies' logits.

    One position in ``every`` counts: that saves time, and no memory, for positions are computed a few at a time.
    """
    torch.set_num_threads(1)
    pattern = torch.linspace(-3.0, 3.0, vocabulary)
    policy, reference = (torch.empty(batch, horizon, vocabulary).copy_(x) for x in (pattern, pattern.cos()))
    policy.requires_grad_()
    tokens, mask = torch.zeros(batch, horizon, dtype=torch.long), torch.arange(horizon) % every == 0
    size, before = policy.nbytes, peak()
    loss = sequence_kl_loss(policy, reference, tokens, mask.expand(batch, -1)).sum(-1).mean()
    forward = peak()
    loss.backward()
    found = {"loss": (forward - before) / size, "loss and gradient": (peak() - before) / size}
    return {"logits_gb": size / 1e9, **{name: round(x, 3) for name, x in found.items()}}


def main(words: list[str] | None = None) -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=2_000)
    parser.add_argument("--shape", type=int, nargs=4, default=[64, 128, 32_000, 8], metavar="N")
    parser.add_argument("--only-memory", action="store_true")
    words = sys.argv[1:] if words is None else words
    args = parser.parse_args(words)
    if args.only_memory:  # in a process of its own
        print(json.dumps(memory(*args.shape)))
        return
    values, probability, kl = variances(5, 6, 0)
    estimators = {}
    for name, x in values.items():
        mean = (probability @ x).item()
        estimators[name] = {"mean": mean, "deviation": (probability @ (x - mean).square()).sqrt().item()} | {
            f"coverage_{n}": coverage(x, probability, kl, n, args.repeats, seed=n) for n in (64, 256)
        }
    program = [sys.executable, __file__, "--only-memory", "--output", "-", "--shape", *map(str, args.shape)]
    record = {
        "command": " ".join(["python docs/examples/measurements.py", *words]),
        "versions": versions(),
        "kl": kl,
        "repeats": args.repeats,
        "estimators": estimators,
        "gradients": gradients(),
        "memory": json.loads(subprocess.run(program, capture_output=True, text=True, check=True).stdout),
    }
    args.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
