"""Coding: KL is the number of extra bits of coding P with a code made for Q."""

from __future__ import annotations

import heapq
import math
from itertools import product

import torch
from torch import Tensor

from klrl.kl import cross_entropy, entropy, kl_divergence
from klrl.policy.distributions import Categorical
from klrl.scripts.explore.charts import (
    BLUE,
    GREY,
    ORANGE,
    Block,
    Chart,
    Demo,
    Formula,
    Slider,
    Table,
    bars,
    level,
    line,
    points,
    series,
    words,
)
from klrl.scripts.explore.contents import BITS_PER_NAT, Section, identity, number, shown

COMMANDS = ("forward", "left", "right", "back", "stop")
P = (1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 16)
Q = (1 / 16, 1 / 2, 1 / 4, 1 / 8, 1 / 16)
COIN_P, COIN_Q = (0.7, 0.3), (0.4, 0.6)
MESSAGE = 10_000
BLOCKS = range(1, 11)


def section(rng: torch.Generator) -> Section:
    """Show entropy, cross-entropy and KL as lengths of real messages."""
    p, q = categorical(P), categorical(Q)
    code_p, code_q = huffman(P), huffman(Q)
    message = p.map(lambda x: x.expand(MESSAGE, -1)).sample(rng).tolist()
    own, foreign = (len(encode(message, code)) / MESSAGE for code in (code_p, code_q))
    H, H_pq, kl = (float(f) for f in (entropy(p, 2), cross_entropy(p, q, 2), kl_divergence(p, q, 2)))
    spread = float(per_symbol_sd(P, code_q)) / math.sqrt(MESSAGE)
    identities = (
        identity("cross-entropy -sum P log2 Q = H(P) + KL(P‖Q)", -(prob(P) * prob(Q).log2()).sum(), H + kl, "bits"),
        identity("expected length of a word of the code for Q = H(P, Q)", expected_length(P, code_q), H_pq, "bits"),
        identity("expected length of a word of the code for P = H(P)", expected_length(P, code_p), H, "bits"),
        identity("measured length with the code for Q = H(P, Q), within 5 standard errors",
                 foreign, H_pq, "bits", 5 * spread / H_pq),
    )  # fmt: skip
    numbers = (
        number("H(P)", H, "bits"),
        number("H(P, Q)", H_pq, "bits"),
        number("KL(P‖Q)", kl, "bits"),
        number("KL(P‖Q) in nats", kl_divergence(p, q), "nats"),
        number("measured length, code for P", own, "bits"),
        number("measured length, code for Q", foreign, "bits"),
    )
    blocks = (*_story(H, H_pq, kl), *_measured(own, foreign, H, kl), *_coin(), *_blocks())
    return Section("coding", "KL is a price in bits", "A price in bits", blocks, numbers, identities)


def _story(H: float, H_pq: float, kl: float) -> tuple[Block, ...]:
    code_p, code_q = huffman(P), huffman(Q)
    table = Table(
        "A robot's commands: how often each is sent (P), how often somebody believes so (Q), and a code for each",
        ("command", "P", "Q", "word of the code for P", "word of the code for Q"),
        tuple(
            (name, _part(a), _part(b), u, v) for name, a, b, u, v in zip(COMMANDS, P, Q, code_p, code_q, strict=True)
        ),
    )
    return (
        """
        A robot is sent one of five commands at a time. P is the distribution that they come from: half of them are
        "forward". To send them with few bits, frequent commands get short words, such as those of Huffman's code. No
        word begins another, so that a row of words can be read without gaps.
        """,
        table,
        f"""
        With the code for P a command costs {shown(H)} bits on average. This is the *entropy* H(P), and no code for P
        does better. Somebody who believes in Q builds the code for Q. The commands still come from P, and now they cost
        {shown(H_pq)} bits: the *cross-entropy* H(P, Q).

        The difference, {shown(kl)} bits per command, is the price of the wrong belief. It is the *Kullback-Leibler
        divergence* of Q from P, also called *relative entropy*:
        """,
        Formula("KL(P‖Q) = H(P, Q) − H(P) = Σ P(x) log( P(x) / Q(x) )"),
        f"""
        The sum runs over all outcomes x, here the commands. The first distribution is where data come from, the second
        what is believed. Logarithms to base 2 give bits, natural ones *nats*; a nat is {shown(BITS_PER_NAT)} bits. From
        the next chapter on everything is in nats, and log is the natural logarithm.
        """,
    )


def _measured(own: float, foreign: float, H: float, kl: float) -> tuple[Block, ...]:
    chart = Chart(
        f"{MESSAGE:,} commands from P, really encoded", "", "bits per command",
        (
            bars("H(P)", (0, 1), (0.0, 0.0), (H, H), BLUE),
            bars("KL(P‖Q)", (1,), (H,), (H + kl,), ORANGE, hatch="right_diagonal_line"),
            points("the message", (0, 1), (own, foreign), marker="x", size=14, width=2.5),
            words((0, 1, 1), (H / 2, H / 2, H + kl / 2), (f"{H:.3f}", f"{H:.3f}", f"{kl:.3f}")),
        ),
        x_range=(-0.7, 1.7), y_range=(0.0, 3.0), ticks=("code for P", "code for Q"),
    )  # fmt: skip
    see = f"Bars are the formulas, crosses the measured message: {shown(own)} and {shown(foreign)} bits per command."
    return (Demo((chart,), see),)


def _coin() -> tuple[Block, ...]:
    chart = Chart(
        "What a toss costs by the belief q", "q, the believed probability of heads", "bits per toss",
        (
            series("line", "H(P, Q), the cost", ORANGE, live="cost", x=[], y=[]),
            series("line", "H(P), the least cost", BLUE, 1, live="entropy", x=[], y=[]),
            series("joined", "KL(P‖Q)", None, live="gap", x=[], low=[], high=[]),
            series("points", "", None, live="here", x=[], y=[]),
        ),
        x_range=(0.0, 1.0), y_range=(0.0, 3.0),
    )  # fmt: skip
    sliders = (
        Slider("p", "p, how often the coin really shows heads", 0.02, 0.98, 0.01, COIN_P[0]),
        Slider("q", "q, what the code believes", 0.02, 0.98, 0.01, COIN_Q[0]),
    )
    see = """The cost touches its least value at q = p alone. Being wrong by a little costs little; believing that
        something is almost impossible, and being wrong, costs most."""
    return ("The same with a coin, P = (p, 1 − p), that you can bend:", Demo((chart,), see, sliders, live="code"))


def _blocks() -> tuple[Block, ...]:
    p, q = categorical(COIN_P), categorical(COIN_Q)
    lengths = [block_lengths(n) for n in BLOCKS]
    low, high, ends = float(entropy(p, 2)), float(cross_entropy(p, q, 2)), (1, BLOCKS[-1])
    chart = Chart(
        f"p = {COIN_P[0]:g}, q = {COIN_Q[0]:g}: longer words waste less", "tosses per word, n", "bits per toss",
        (
            line("Shannon's code for Q", BLOCKS, [x[1] for x in lengths], ORANGE),
            level(high, ends, f"H(P, Q) = {high:.3f}", ORANGE),
            line("Shannon's code for P", BLOCKS, [x[0] for x in lengths], BLUE),
            level(low, ends, f"H(P) = {low:.3f}", BLUE),
            series("joined", "", GREY, x=[8], low=[low], high=[high]),
            words((8.2,), ((low + high) / 2,), (f"KL(P‖Q) = {high - low:.3f}",), align="left"),
        ),
        x_range=(0.5, 10.5), y_range=(0.8, 2.05),
    )  # fmt: skip
    return (
        """
        A word has a whole number of bits, and a toss of this coin is worth less than one. Coding n tosses with one word
        wastes less than 1/n bit per toss, so the cost comes down to the entropy, or to the cross-entropy with the code
        for Q. The gap between the two stays.
        """,
        Demo((chart,), "Every message of n tosses is counted, with its probability; words have ⌈−log₂⌉ of it bits."),
    )


def _part(value: float) -> str:
    return f"1/{1 / value:.0f}"


def prob(values: tuple[float, ...]) -> Tensor:
    """Return probabilities in float64."""
    return torch.tensor(values, dtype=torch.float64)


def categorical(values: tuple[float, ...]) -> Categorical:
    """Return a record of probabilities."""
    return Categorical(prob(values).log())


def huffman(probabilities: tuple[float, ...]) -> list[str]:
    """Return words of 0s and 1s of least expected length, none the beginning of another (Huffman 1952)."""
    words = [""] * len(probabilities)
    heap = [(p, i, [i]) for i, p in enumerate(probabilities)]
    heapq.heapify(heap)
    while len(heap) > 1:
        (p, _, zeros), (q, last, ones) = heapq.heappop(heap), heapq.heappop(heap)
        for bit, symbols in (("0", zeros), ("1", ones)):
            for i in symbols:
                words[i] = bit + words[i]
        heapq.heappush(heap, (p + q, last, zeros + ones))
    return words


def encode(message: list[int], code: list[str]) -> str:
    """The words one after the other; decoding gives the message back, or this raises.

    Raises:
        ValueError: the code cannot be decoded.
    """
    bits = "".join(code[i] for i in message)
    symbols, found, word = {w: i for i, w in enumerate(code)}, [], ""
    for bit in bits:
        word += bit
        if word in symbols:
            found.append(symbols[word])
            word = ""
    if found != message:
        raise ValueError(f"code = {code} cannot be decoded; allowed: no word that begins another")
    return bits


def expected_length(probabilities: tuple[float, ...], code: list[str]) -> float:
    """Return bits per symbol."""
    return sum(p * len(word) for p, word in zip(probabilities, code, strict=True))


def per_symbol_sd(probabilities: tuple[float, ...], code: list[str]) -> float:
    """Return the standard deviation of the length of a word."""
    mean = expected_length(probabilities, code)
    return math.sqrt(sum(p * (len(word) - mean) ** 2 for p, word in zip(probabilities, code, strict=True)))


def block_lengths(n: int) -> tuple[float, float]:
    """Return bits per toss of the coin P, n tosses per word, with Shannon's codes (ceil(-log2) bits) for P and Q."""
    total_p = total_q = 0.0
    for block in product((0, 1), repeat=n):
        p, q = (math.prod(coin[i] for i in block) for coin in (COIN_P, COIN_Q))
        total_p += p * math.ceil(-math.log2(p))
        total_q += p * math.ceil(-math.log2(q))
    return total_p / n, total_q / n
