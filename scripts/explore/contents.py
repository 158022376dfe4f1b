"""Contents of a chapter of ``klrl explore-kl``: its blocks, the numbers behind them, and what was checked."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from klrl.scripts.explore.charts import Block

BITS_PER_NAT = 1.0 / math.log(2.0)


class BrokenIdentity(ArithmeticError):
    """Two sides of an identity came out different."""


@dataclass(frozen=True)
class Number:
    """One computed quantity."""

    name: str
    value: float
    unit: str


@dataclass(frozen=True)
class Identity:
    """Two ways to one number, which agree.

    Raises:
        BrokenIdentity: the sides differ by more than ``tolerance`` times the larger of them and 1.
    """

    name: str
    left: float
    right: float
    unit: str
    tolerance: float = 1e-9

    def __post_init__(self) -> None:
        if not abs(self.left - self.right) <= self.tolerance * max(1.0, abs(self.left), abs(self.right)):
            raise BrokenIdentity(f"{self.name}: left {self.left!r}, right {self.right!r} {self.unit}; they must agree")

    def __str__(self) -> str:
        return f"{self.name}: left {shown(self.left)}, right {shown(self.right)} {self.unit}".rstrip()


@dataclass(frozen=True)
class Section:
    """One idea: its place in the page's address, its title, a short one, blocks, numbers, what was checked."""

    key: str
    title: str
    short: str
    blocks: tuple[Block, ...]
    numbers: tuple[Number, ...]
    identities: tuple[Identity, ...]


def number(name: str, value: Tensor | float, unit: str) -> Number:
    """Make a number from a tensor of one element or a float."""
    return Number(name, float(value), unit)


def identity(name: str, left: Tensor | float, right: Tensor | float, unit: str, tolerance: float = 1e-9) -> Identity:
    """Make an identity of tensors of one element or floats; raises :class:`BrokenIdentity` if the sides differ."""
    return Identity(name, float(left), float(right), unit, tolerance)


def shown(value: Tensor | float) -> str:
    """Write four digits after the point, or four significant ones if that would show little; infinity as a word."""
    value = float(value)
    if math.isinf(value):
        return "infinite" if value > 0 else "-infinite"
    if value == int(value) and abs(value) < 1e6:
        return f"{value:.0f}"
    return f"{value:.4f}" if 0.001 <= abs(value) < 1e5 else f"{value:.3e}"


def rows(sections: Iterable[Section]) -> list[tuple[str, str, str, str]]:
    """Return chapter, quantity, value and unit of all numbers, with few digits."""
    return [(str(i), x.name, shown(x.value), x.unit) for i, section in enumerate(sections, 1) for x in section.numbers]
