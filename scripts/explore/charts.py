"""Charts, controls that move them, and tables of a chapter, as plain data for the page's script."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor

BLUE, ORANGE, GREEN, PURPLE, BROWN, SKY, GREY = range(7)
"""Places in the page's list of colours; None is the colour of the text."""
Kind = Literal["line", "points", "bars", "area", "joined", "contours", "words"]
Values = Tensor | Sequence[Any] | range


@dataclass(frozen=True)
class Series:
    """Marks of one kind: what they are called in the legend ("" for nothing), and their columns by name.

    ``frames`` are further values of some columns, one set for every place of the demonstration's slider; ``live`` is
    the name under which the page's script computes them instead.
    """

    kind: Kind
    name: str
    columns: dict[str, list[Any]]
    colour: int | None = None
    dash: int = 0
    more: dict[str, Any] | None = None
    frames: tuple[dict[str, list[Any]], ...] = ()
    live: str = ""

    def moved(self, frames: Iterable[Mapping[str, Values]]) -> Series:
        """Return the series with columns for every place of a slider."""
        return replace(self, frames=tuple({k: plain(v) for k, v in frame.items()} for frame in frames))


@dataclass(frozen=True)
class Chart:
    """A chart: its title, axes, series; ranges and names of places where they are not automatic."""

    title: str
    x: str
    unit: str
    series: tuple[Series, ...]
    log_x: bool = False
    log: bool = False
    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None
    ticks: tuple[str, ...] = ()
    """Names of the places 0, 1, 2, ... of the x axis."""
    x_at: tuple[float, ...] = ()
    y_at: tuple[float, ...] = ()
    """Numbers that stand at the axes, where not the usual ones."""
    height: int = 300


@dataclass(frozen=True)
class Slider:
    """A control: what it sets, the ends and the step of its values, where it begins.

    ``values`` is what stands beside it where its values are the places 0, 1, 2, ... of something.
    """

    key: str
    label: str
    low: float
    high: float
    step: float
    start: float
    values: tuple[str, ...] = ()


@dataclass(frozen=True)
class Button:
    """A choice of values for the sliders."""

    label: str
    sets: dict[str, float]


@dataclass(frozen=True)
class Demo:
    """Charts beside each other, what to see in them, and what moves them."""

    charts: tuple[Chart, ...]
    see: str
    sliders: tuple[Slider, ...] = ()
    buttons: tuple[Button, ...] = ()
    live: str = ""
    """Name of the function of the page's script that computes what the sliders move, and the words below them."""
    given: dict[str, Any] | None = None
    """Constants for that function."""
    says: tuple[str, ...] = ()
    """Words for every place of the slider, where the series have frames."""


@dataclass(frozen=True)
class Table:
    """A table: caption, names of columns, rows; the first ``names`` cells of a row are its name."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    names: int = 1


@dataclass(frozen=True)
class Formula:
    """An equation on a line of its own, in Unicode."""

    text: str


Block = str | Formula | Table | Demo
"""A str is paragraphs of text, with blank lines between them; `x` is code and *x* is a term at its first use."""


def plain(x: Values) -> list[Any]:
    """Return numbers with six digits, None for what JSON has no number for; lists of lists and words as they are."""
    return [_plain(value) for value in (x.tolist() if isinstance(x, Tensor) else x)]


def _plain(value: Any) -> Any:
    value = value.tolist() if isinstance(value, Tensor) else value
    if isinstance(value, (list, tuple)):
        return plain(value)
    if not isinstance(value, float):
        return value
    return float(f"{value:.6g}") if math.isfinite(value) else None


def series(
    kind: Kind, name: str, colour: int | None = None, dash: int = 0, *, live: str = "", **columns: Any
) -> Series:
    """Make a series; columns are x, y and what else its kind has, all other words are settings of the script."""
    known = ("x", "y", "low", "high", "xs", "ys", "words")
    data = {key: plain(value) for key, value in columns.items() if key in known}
    more = {key: value for key, value in columns.items() if key not in known}
    return Series(kind, name, data, colour, dash, more or None, live=live)


def line(name: str, x: Values, y: Values, colour: int | None = None, dash: int = 0, **more: Any) -> Series:
    """Make a curve."""
    return series("line", name, colour, dash, x=x, y=y, **more)


def points(name: str, x: Values, y: Values, colour: int | None = None, **more: Any) -> Series:
    """Make points; ``size`` and ``marker`` are settings."""
    return series("points", name, colour, x=x, y=y, **more)


def words(x: Values, y: Values, text: Sequence[str], colour: int | None = None, **more: Any) -> Series:
    """Make words at places of the chart; ``align`` is a setting."""
    return series("words", "", colour, x=x, y=y, words=text, **more)


def bars(name: str, x: Values, low: Values, high: Values, colour: int, **more: Any) -> Series:
    """Make bars from low to high; ``width`` is a setting."""
    return series("bars", name, colour, x=x, low=low, high=high, **more)


def area(name: str, x: Values, low: Values, high: Values, colour: int, **more: Any) -> Series:
    """Make what lies between two curves."""
    return series("area", name, colour, x=x, low=low, high=high, **more)


def level(value: float, ends: Sequence[float], name: str, colour: int | None = None, dash: int = 1) -> Series:
    """Make a horizontal line."""
    return line(name, ends, [value, value], colour, dash, width=1.3)
