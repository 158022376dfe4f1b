"""Contents of a section of ``klrl explore-kl``, and the text, table and figures made from them."""

from __future__ import annotations

import csv
import io
import math
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from klrl.studies.results import write as write_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BITS_PER_NAT = 1.0 / math.log(2.0)
WIDTH = 100


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
class Picture:
    """A figure: its file, what to see in it, its size in inches, and how to draw it."""

    file: str
    title: str
    see: str
    size: tuple[float, float]
    draw: Callable[[Figure], None]


@dataclass(frozen=True)
class Section:
    """One idea: plain sentences, the numbers behind them, what was checked, figures."""

    title: str
    idea: str
    numbers: tuple[Number, ...]
    identities: tuple[Identity, ...]
    pictures: tuple[Picture, ...]


def number(name: str, value: Tensor | float, unit: str) -> Number:
    """Make a number from a tensor of one element or a float."""
    return Number(name, float(value), unit)


def identity(name: str, left: Tensor | float, right: Tensor | float, unit: str, tolerance: float = 1e-9) -> Identity:
    """Make an identity of tensors of one element or floats; raises :class:`BrokenIdentity` if the sides differ."""
    return Identity(name, float(left), float(right), unit, tolerance)


def shown(value: float) -> str:
    """Write four digits after the point, or four significant ones if that would show little; infinity as a word."""
    if math.isinf(value):
        return "infinite" if value > 0 else "-infinite"
    if value == int(value) and abs(value) < 1e6:
        return f"{value:.0f}"
    return f"{value:.4f}" if 0.001 <= abs(value) < 1e5 else f"{value:.3e}"


def report(sections: Iterable[Section], lead: str) -> str:
    """Return the whole text, as Markdown that also reads well in a terminal."""
    sections = list(sections)
    parts = ["# The KL divergence, seen", filled(lead)]
    for i, section in enumerate(sections, 1):
        parts += [f"## {i}. {section.title}", filled(section.idea)]
        if section.identities:
            parts += [
                "Checked, or this command would have failed (left and right are the sides of the equation):",
                bullets(str(x) for x in section.identities),
            ]
        for picture in section.pictures:
            parts += [f"![{picture.title}]({picture.file})", filled(f"{picture.file}: {picture.see}")]
    return "\n\n".join([*parts, "## All numbers", markdown(sections)]) + "\n"


def filled(text: str) -> str:
    """Break paragraphs (blank lines between them) into lines; their own line breaks do not count."""
    paragraphs = textwrap.dedent(text).strip().split("\n\n")
    return "\n\n".join(textwrap.fill(" ".join(p.split()), WIDTH, break_long_words=False) for p in paragraphs)


def bullets(lines: Iterable[str]) -> str:
    """Return one line each."""
    return "\n".join(f"- {line}" for line in lines)


def rows(sections: Iterable[Section]) -> list[list[str]]:
    """Return section, quantity, value and unit of all numbers, and of identities' sides, in full precision."""
    found = []
    for i, section in enumerate(sections, 1):
        found += [[str(i), x.name, repr(x.value), x.unit] for x in section.numbers]
        for x in section.identities:
            found += [[str(i), f"{x.name}, {side}", repr(getattr(x, side)), x.unit] for side in ("left", "right")]
    return found


def markdown(sections: Iterable[Section]) -> str:
    """Return the numbers as a table, values with few digits; columns line up."""
    head = ["section", "quantity", "value", "unit"]
    body = [[str(i), x.name, shown(x.value), x.unit] for i, s in enumerate(sections, 1) for x in s.numbers]
    widths = [max(len(row[c]) for row in [head, *body]) for c in range(4)]
    lines = [head, ["-" * w for w in widths], *body]
    return "\n".join(f"| {' | '.join(x.ljust(w) for x, w in zip(row, widths, strict=True))} |" for row in lines)


def write(sections: list[Section], text: str, folder: Path) -> None:
    """Write README.md, numbers.csv and the figures into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for section in sections:
        for picture in section.pictures:
            _save(picture, folder)
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows([["section", "quantity", "value", "unit"], *rows(sections)])
    write_file(folder / "numbers.csv", table.getvalue())
    write_file(folder / "README.md", text)


def _save(picture: Picture, folder: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=picture.size, layout="constrained")
    picture.draw(figure)
    figure.suptitle(picture.title, fontsize=14)
    data = io.BytesIO()
    figure.savefig(data, dpi=110, format="png")
    write_file(folder / picture.file, data.getvalue())
