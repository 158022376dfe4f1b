"""How the figures of ``klrl explore-kl`` look: Okabe and Ito's colours, labels beside what they name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, ORANGE, GREEN, PURPLE, BLACK, GREY, SKY, YELLOW = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#777777", "#56B4E9", "#E69F00",
)  # fmt: skip


def finish(ax: Axes, title: str, x: str, y: str, *, legend: str | None = None) -> None:
    """Title, labels, a light grid, and a legend at the place named."""
    ax.set_title(title, fontsize=11)
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    ax.grid(alpha=0.25)
    ax.set_axisbelow(True)
    if legend:
        ax.legend(fontsize=9, loc=legend)


def note(ax: Axes, text: str, x: float, y: float, colour: str = BLACK, **more: Any) -> None:
    """Words at a place of the data."""
    ax.annotate(text, (x, y), color=colour, fontsize=9, **more)
