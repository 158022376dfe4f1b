"""Coding: KL is the number of extra bits of coding P with a code made for Q."""

from __future__ import annotations

import heapq
import math
from itertools import product
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from klrl.kl import cross_entropy, entropy, kl_divergence
from klrl.policy.distributions import Categorical
from klrl.scripts.explore.report import BITS_PER_NAT, Picture, Section, identity, number, shown
from klrl.scripts.explore.style import BLACK, BLUE, GREY, ORANGE, finish, note

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COMMANDS = ("forward", "left", "right", "back", "stop")
P = (1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 16)
Q = (1 / 16, 1 / 2, 1 / 4, 1 / 8, 1 / 16)
COIN_P, COIN_Q = (0.7, 0.3), (0.4, 0.6)
MESSAGE = 10_000
BLOCKS = range(1, 11)
SEE = """the words of both codes; the bars on the right are the ideal lengths, the crosses the measured message.
    Where probabilities are no powers of 1/2, a word has a whole number of bits and some are wasted; coding n
    symbols at a time (lower panel: a biased coin, Shannon's code) wastes less than 1/n bit per symbol, so the cost
    goes down towards the cross-entropy itself."""


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
    return Section(
        "KL is a price in bits", _idea(H, H_pq, kl, own, foreign), numbers, identities,
        (Picture("01-coding-cost.png", "KL(P‖Q): extra bits of coding P with the code made for Q", SEE,
                 (11.5, 8.2), lambda figure: _draw(figure, own, foreign)),),
    )  # fmt: skip


def _idea(H: float, H_pq: float, kl: float, own: float, foreign: float) -> str:
    return f"""
        A robot is sent one of five commands at a time, with probabilities P = ({_listed(P)}). A good
        code gives frequent commands short words: with Huffman's code for P a command costs {shown(H)} bits on average,
        the entropy H(P), and no code does better. Who believes in Q = ({_listed(Q)}) makes the code
        for Q; the commands still come from P, and now cost {shown(H_pq)} bits, the cross-entropy H(P, Q). The
        difference, {shown(kl)} bits per command, is the price of the wrong belief: the Kullback-Leibler divergence
        KL(P‖Q), the sum of P log(P/Q).

        A message of {MESSAGE:,} commands, really encoded, took {shown(own)} bits per command with the code for P and
        {shown(foreign)} with the code for Q. With natural logarithms the unit is the nat, {shown(BITS_PER_NAT)} bits;
        from here on everything is in nats unless bits are named.
    """


def _listed(values: tuple[float, ...]) -> str:
    return ", ".join(f"1/{1 / x:.0f}" for x in values)


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


def _draw(figure: Figure, own: float, foreign: float) -> None:
    axes = figure.subplot_mosaic([["p", "bits"], ["blocks", "blocks"]], width_ratios=(1.5, 1.0))
    _draw_words(axes["p"])
    _draw_bits(axes["bits"], own, foreign)
    _draw_blocks(axes["blocks"])


def _draw_words(ax: Axes) -> None:
    for shift, values, colour, name in ((-0.2, P, BLUE, "P"), (0.2, Q, ORANGE, "Q")):
        places = [i + shift for i in range(len(values))]
        ax.bar(places, values, 0.38, color=colour, label=f"{name}, with the words of the code for {name}")
        for x, y, word in zip(places, values, huffman(values), strict=True):
            note(ax, word, x, y, colour, ha="center", va="bottom", family="monospace")
    ax.set_xticks(range(len(COMMANDS)), COMMANDS)
    ax.set_ylim(0.0, 0.58)
    finish(ax, "Two beliefs and their codes", "command", "probability", legend="upper right")


def _draw_bits(ax: Axes, own: float, foreign: float) -> None:
    p, q = categorical(P), categorical(Q)
    H, kl = float(entropy(p, 2)), float(kl_divergence(p, q, 2))
    ax.bar([0, 1], [H, H], 0.8, color=BLUE)
    ax.bar([1], [kl], 0.8, bottom=[H], color=ORANGE)
    ax.plot([0, 1], [own, foreign], "x", color=BLACK, markersize=11, markeredgewidth=2, label="measured message")
    for x in (0, 1):
        note(ax, f"H(P) = {shown(H)}", x, H / 2, "white", ha="center", va="center")
    note(ax, f"KL(P‖Q) = {shown(kl)}", 1, H + kl / 2, "white", ha="center", va="center")
    ax.set_xticks([0, 1], ["code for P", "code for Q"])
    ax.set_xlim(-0.6, 1.6)
    ax.set_ylim(0.0, 3.6)
    finish(ax, "Cost of commands that come from P", "", "bits per command", legend="upper left")


def _draw_blocks(ax: Axes) -> None:
    p, q = categorical(COIN_P), categorical(COIN_Q)
    lengths = [block_lengths(n) for n in BLOCKS]
    for column, limit, colour, name in ((1, cross_entropy(p, q, 2), ORANGE, "Q"), (0, entropy(p, 2), BLUE, "P")):
        ax.plot(BLOCKS, [x[column] for x in lengths], "o-", color=colour, label=f"Shannon's code for {name}")
        ax.axhline(float(limit), color=colour, linestyle="--", linewidth=1)
        text = f"H(P, Q) = {float(limit):.3f}" if column else f"H(P) = {float(limit):.3f}"
        note(ax, text, BLOCKS[-1] + 0.15, float(limit) - 0.015, colour, va="top")
    low, high = float(entropy(p, 2)), float(cross_entropy(p, q, 2))
    ax.annotate("", (7.5, low), (7.5, high), arrowprops={"arrowstyle": "<->", "color": GREY})
    note(ax, f"KL(P‖Q) = {high - low:.3f}", 7.58, low + 0.72 * (high - low), GREY, ha="left", va="center")
    ax.set_xlim(0.7, 11.4)
    ax.set_ylim(0.8, 2.0)
    ax.set_xticks(list(BLOCKS))
    title = f"A coin, P = {COIN_P[0]:g} heads, Q = {COIN_Q[0]:g} heads: longer blocks waste less"
    finish(ax, title, "tosses per word, n", "bits per toss", legend="upper right")
