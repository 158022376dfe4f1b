"""A character-level transformer, a text for it, and what is done with both: pre-training and sampling.

The text is drawn from a small grammar. A sentence ends with a newline, the END token, which also stands before its
first character. Nothing here uses klrl.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ADJECTIVES = ["old", "quiet", "small", "warm", "grey", "bold", "early", "eager", "open", "idle"]
NOUNS = ["owl", "boat", "river", "stone", "aunt", "lamp", "idea", "oboe", "cloud", "piano", "horse", "canoe"]
VERBS = ["sees", "follows", "hears", "avoids", "paints", "owes", "carries", "guides"]
CHARACTERS = "\n abcdefghijklmnopqrstuvwxyz"
END, LONGEST = 0, 32
VOWELS = torch.tensor([c in "aeiou" for c in CHARACTERS])
LETTERS = torch.tensor([c.isalpha() for c in CHARACTERS])


def sentences(n: int, generator: torch.Generator) -> Tensor:
    """Return n sentences of the grammar as tokens, ``[n, LONGEST]``, padded with END after their own END."""

    def one(words: list[str]) -> str:
        return words[int(torch.randint(len(words), (), generator=generator))]

    found = torch.full((n, LONGEST), END)
    for row in found:
        noun = [f"{one(ADJECTIVES)} {one(NOUNS)}", one(NOUNS)][int(torch.randint(2, (), generator=generator))]
        text = f"the {noun} {one(VERBS)} a {one(NOUNS)}"
        row[: len(text)] = torch.tensor([CHARACTERS.index(c) for c in text])
    return found


def until_end(tokens: Tensor) -> Tensor:
    """Return the mask of the positions up to the first END, this included, ``[B, T]``."""
    ended = (tokens == END).cumsum(-1)
    return (ended == 0) | ((ended == 1) & (tokens == END))


def text(tokens: Tensor) -> str:
    """Return one sentence's characters."""
    return "".join(CHARACTERS[i] for i in tokens[until_end(tokens)].tolist()).rstrip("\n")


class Block(nn.Module):
    """Causal attention and a feed-forward layer, each behind a layer norm and added to what comes in."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_layers = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.layers = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, T, width]`` to itself."""
        q, k, v = self.qkv(self.before_attention(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.layers(self.before_layers(x))


class Transformer(nn.Module):
    """Logits of every token given those before it."""

    def __init__(self, width: int = 32, heads: int = 4, blocks: int = 2) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(len(CHARACTERS), width), nn.Embedding(LONGEST, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(blocks)), nn.LayerNorm(width))
        self.logits = nn.Linear(width, len(CHARACTERS))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits ``[B, T, V]``; those at position t are of token t, and know the tokens before it."""
        before = F.pad(tokens, (1, -1), value=END)
        x = self.token(before) + self.position.weight[: tokens.shape[1]]
        found: Tensor = self.logits(self.blocks(x))
        return found


@torch.no_grad()
def sample(model: Transformer, n: int, generator: torch.Generator) -> Tensor:
    """Draw n sentences, ``[n, T]``, END from their end on; T is the length of the longest, at most LONGEST."""
    tokens = torch.full((n, 1), END)
    for t in range(LONGEST):
        drawn = torch.multinomial(model(tokens)[:, -1].softmax(-1), 1, generator=generator)
        tokens[:, t:] = torch.where((tokens[:, :t] == END).any(-1, keepdim=True), END, drawn)
        if (tokens == END).any(-1).all() or t == LONGEST - 1:
            break
        tokens = F.pad(tokens, (0, 1), value=END)
    return tokens


def pretrained(seed: int, steps: int = 400, batch: int = 32) -> tuple[Transformer, float]:
    """Train a model on sentences of the grammar; return it and the mean loss of the last 50 steps, nats per token."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Transformer()
    generator = torch.Generator().manual_seed(seed)
    corpus = sentences(2_000, generator)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    losses = []
    for _ in range(steps):
        tokens = corpus[torch.randint(len(corpus), (batch,), generator=generator)]
        tokens = tokens[:, : int(until_end(tokens).sum(-1).max())]
        loss = F.cross_entropy(model(tokens)[until_end(tokens)], tokens[until_end(tokens)])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return model, sum(losses[-50:]) / 50
