"""Style of the figures of ``klrl explore-kl``: Okabe and Ito's colours, labels next to what they name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, ORANGE, GREEN, PURPLE, BLACK, GREY, SKY, YELLOW = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#777777", "#56B4E9", "#E69F00",
)  # fmt: skip


Place = Literal["upper left", "upper center", "upper right", "lower left"]


def finish(ax: Axes, title: str, x: str, y: str, *, legend: Place | None = None) -> None:
    """Set title, labels, a light grid, and a legend at the place named."""
    ax.set_title(title, fontsize=11)
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    ax.grid(alpha=0.25)
    ax.set_axisbelow(True)
    if legend:
        ax.legend(fontsize=9, loc=legend)


def bars(ax: Axes, x: Tensor, heights: Tensor, width: float, **more: Any) -> None:
    """Draw a bar chart of tensors, which matplotlib's own would treat as arrays."""
    lists: dict[str, Any]
    lists = {name: value.tolist() if isinstance(value, Tensor) else value for name, value in more.items()}
    ax.bar(x.tolist(), heights.tolist(), width, **lists)


def note(ax: Axes, text: str, x: float, y: float, colour: str = BLACK, **more: Any) -> None:
    """Write words at a position of the data."""
    ax.annotate(text, (x, y), color=colour, fontsize=9, **more)
