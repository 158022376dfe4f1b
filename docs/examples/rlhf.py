"""RLHF on a character-level transformer: ``python docs/examples/rlhf.py --output scripts/results/rlhf.json``.

The reward is the share of vowels among a sentence's letters; the KL to the pre-trained model is a penalty whose
coefficient follows Ziegler et al. 2019. Where the KL stands differs: in the loss, exact and of whole sequences; in the
reward, k1; in the loss, k3 token by token, as GRPO has it. After every batch the KL is estimated in three ways.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import warnings
from pathlib import Path

import torch
from torch import Tensor

if str(Path(__file__).resolve().parents[1]) not in sys.path:  # when run as a program
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from examples.characters import LETTERS, VOWELS, Transformer, pretrained, sample, text, until_end
from klrl.kl import (
    DoubtfulEstimateWarning,
    Estimate,
    estimate_sequence_kl,
    kl_loss,
    sequence_kl,
    sequence_kl_loss,
    token_log_probs,
)
from klrl.run.directory import versions
from klrl.trust_region import Proportional

PLACES = ("loss", "reward", "grpo")
"""Where the KL stands: exact in the loss, k1 in the reward, k3 of every token in the loss."""


def share_of_vowels(tokens: Tensor) -> Tensor:
    """Return the share of vowels among each sentence's letters, ``[B]``, 0 without letters."""
    counted = until_end(tokens)
    return (VOWELS[tokens] & counted).sum(-1) / (LETTERS[tokens] & counted).sum(-1).clamp_min(1)


def loss(policy: Tensor, reference: Tensor, tokens: Tensor, reward: Tensor, beta: float, place: str) -> Tensor:
    """Return the loss of a batch: REINFORCE with the mean reward as a baseline, and beta times the KL."""
    mask = until_end(tokens)
    log_policy, log_reference = token_log_probs(policy, tokens, mask), token_log_probs(reference, tokens, mask)
    advantage = (reward - reward.mean()).unsqueeze(-1).expand_as(log_policy)
    penalty = torch.zeros(())
    if place == "loss":
        penalty = sequence_kl_loss(policy, reference, tokens, mask).sum(-1).mean()
    elif place == "reward":
        k1 = (log_policy - log_reference).detach()
        to_go = k1.flip(-1).cumsum(-1).flip(-1)
        advantage = advantage - beta * (to_go - to_go[mask].mean())
    else:
        with warnings.catch_warnings(action="ignore"):  # klrl says that the gradient is that of another KL
            penalty = kl_loss(log_policy, log_reference, estimator="k3", mask=mask).sum(-1).mean()
    return beta * penalty - (advantage * log_policy * mask).sum(-1).mean()


def of(estimate: Estimate) -> list[float]:
    """Return value and standard error."""
    return [round(estimate.value, 5), round(estimate.stderr, 5)]


@torch.no_grad()
def kl_of(policy: Tensor, reference: Tensor, tokens: Tensor) -> dict[str, list[float]]:
    """Estimate the KL of sequences in three ways."""
    mask = until_end(tokens)
    logs = token_log_probs(policy, tokens, mask), token_log_probs(reference, tokens, mask)
    found = {"exact": of(sequence_kl(policy, reference, mask))}
    return found | {k: of(estimate_sequence_kl(*logs, mask, k)) for k in ("k1", "k3")}


def tuned(start: Transformer, place: str, args: argparse.Namespace) -> tuple[Transformer, list[dict]]:
    """Tune a copy of the model; return it and one row per update."""
    model, generator = copy.deepcopy(start), torch.Generator().manual_seed(args.seed)
    optimizer = torch.optim.Adam(model.parameters(), args.learning_rate)
    coefficient, history = Proportional(target_kl=args.target_kl, beta=args.beta), []
    for _ in range(args.updates):
        tokens = sample(model, args.batch, generator)
        reward, policy = share_of_vowels(tokens), model(tokens)
        with torch.no_grad():
            reference = start(tokens)
        estimates = kl_of(policy, reference, tokens)
        history.append({"reward": round(reward.mean().item(), 5), "beta": round(coefficient.beta, 6), **estimates})
        optimizer.zero_grad()
        loss(policy, reference, tokens, reward, coefficient.beta, place).backward()
        optimizer.step()
        coefficient = coefficient.update(estimates["exact"][0])
    return model, history


@torch.no_grad()
def judged(model: Transformer, start: Transformer, n: int, seed: int) -> dict[str, object]:
    """Measure a tuned model on n sentences of its own, and KL(reference||policy) on n of the reference."""
    generator = torch.Generator().manual_seed(seed)
    own, others = sample(model, n, generator), sample(start, n, generator)
    reward = share_of_vowels(own)
    return {
        "reward": [round(reward.mean().item(), 5), round((reward.std() / n**0.5).item(), 5)],
        **kl_of(model(own), start(own), own),
        "reverse": of(sequence_kl(start(others), model(others), until_end(others))),
        "sentences": [text(x) for x in own[:3]],
    }


def main(words: list[str] | None = None) -> None:
    """Pre-train, tune with the KL in every place, write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    for name, value in {"seed": 0, "pretraining": 400, "updates": 40, "batch": 64, "judged": 512}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    for name, number in {"target-kl": 4.0, "beta": 0.05, "learning-rate": 2e-3}.items():
        parser.add_argument(f"--{name}", type=float, default=number)
    words = sys.argv[1:] if words is None else words
    args = parser.parse_args(words)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", DoubtfulEstimateWarning)
    start, nats = pretrained(args.seed, args.pretraining)
    record = {
        "command": " ".join(["python docs/examples/rlhf.py", *words]),
        "versions": versions(),
        "settings": {name: x for name, x in vars(args).items() if name != "output"},
        "pretraining_loss": round(nats, 4),
        "start": judged(start, start, args.judged, args.seed + 1),
    }
    for place in PLACES:
        model, history = tuned(start, place, args)
        record[place] = {"history": history, "end": judged(model, start, args.judged, args.seed + 1)}
        print(place, json.dumps(record[place]["end"]), flush=True)  # type: ignore[index]
    args.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
