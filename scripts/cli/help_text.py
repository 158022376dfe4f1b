"""Help of ``klrl train``, which has more options than fit a screen: in groups, of which ``--help GROUP`` shows one."""

from __future__ import annotations

import argparse
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from inspect import cleandoc, getdoc
from itertools import pairwise
from typing import Any

import tyro

from klrl.agents.config import AgentConfig
from klrl.text import nearest

SCREEN = 40
"""Most lines of a group: one that has more is divided."""
_NAMES = 32
"""Width of the column of names."""
GROUPS = {
    "run": "env",
    "trust region": "trust_region",
    "environments": "n_envs",
    "update": "gamma",
    "observations and rewards": "normalize_observations",
    "networks and actions": "actor_hidden_sizes",
    "evaluation and videos": "eval_every",
    "checkpoints and trackers": "checkpoint_every",
}
"""First setting of every group, by its title; those that only one algorithm has are a group of its name."""


@dataclass(frozen=True)
class Option:
    """One flag or positional argument, as the parser has it."""

    group: str
    names: tuple[str, ...]
    values: str
    text: str
    default: str | None

    @property
    def signature(self) -> str:
        """The line that names it: every spelling with its values."""
        return ", ".join(self.names) + (f" {self.values}" if self.values else "")


def options(cls: type, default: Any = None) -> Iterator[Option]:
    """Yield the options of a dataclass's parser, but for ``--help``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # tyro has no other public way to a parser
        warnings.filterwarnings("ignore", ".* does not match any type in Union")  # as parse() does
        parser: Any = tyro.extras.get_parser(cls, default=default)
    for group in parser._action_groups:
        for action in group._group_actions:
            if "--help" in action.option_strings:
                continue
            text, _, said = " ".join((action.help or "").split()).partition(" (default: ")
            if action.nargs == 0 or isinstance(action, argparse.BooleanOptionalAction):
                values = ""
            else:
                metavar = action.metavar or ""
                values = str(metavar if isinstance(metavar, str) else metavar[0])
                values = values.replace("{None}|", "").replace("{None,", "{")
            names = tuple(action.option_strings) or (values,)
            yield Option(
                group.title or "",
                names,
                values if action.option_strings else "",
                text.replace(" (required)", ""),
                said.removesuffix(")") if said else None,
            )


def asked(words: Sequence[str]) -> str | None:
    """Return the group whose help a command line asks for, "" for that of all, or ``None``.

    >>> asked(["--env", "CartPole-v1", "--help", "networks"]), asked(["--help"]), asked(["--seed", "1"]), asked([])
    ('networks', '', None, None)
    """
    for word, after in pairwise([*words, ""]):
        if word in ("-h", "--help"):
            return "" if after.startswith("-") else after
    return None


def grouped(found: Sequence[Option], config: AgentConfig) -> dict[str, list[Option]]:
    """Return options, in the order of their fields, by the title of their group."""
    shared = {field.name for field in fields(AgentConfig)}
    own = next(field.name for field in fields(config) if field.name not in shared)
    first = GROUPS | {config.algorithm.upper(): own}
    titles = {f"--{name.replace('_', '-')}": title for title, name in first.items()}
    groups: dict[str, list[Option]] = {}
    for option in found:
        if option.names[0] in titles:
            title = titles[option.names[0]]
        groups.setdefault(title, []).append(option)
    return groups


def show(prog: str, cls: type, default: Any, wanted: str = "") -> None:
    """Print the options in groups of at most a screen each, or one of the groups.

    Args:
        prog: name of the command.
        cls: dataclass of the options, whose ``agent`` is the agent's settings.
        default: their defaults.
        wanted: a group, by the beginning of its title.

    Raises:
        ValueError: there is no such group.
    """
    groups = grouped([*options(cls, default)], default.agent)
    names = {title.replace(" ", "-").lower(): title for title in groups}
    chosen = [title for name, title in names.items() if name.startswith(wanted.lower())]
    if not chosen:
        raise ValueError(f"help = {wanted!r}; allowed: {', '.join(names)}{nearest(wanted, names)}")
    if not wanted:
        print(f"usage: {prog} [OPTIONS]\n\n{cleandoc(getdoc(cls) or '')}\n")
        print(f"--help GROUP shows one group: {', '.join(names)}")
    _draw({title: groups[title] for title in chosen})


def _draw(groups: Mapping[str, Sequence[Option]]) -> None:
    from rich.console import Console
    from rich.panel import Panel
    from rich.table import Table

    console = Console(highlight=False, markup=False, emoji=False)
    width = min(console.width, 120)
    inner = console.options.update(width=width - 4)

    def table(rows: Sequence[Option]) -> Table:
        grid = Table.grid(padding=(0, 1), expand=True)
        grid.add_column(width=_NAMES, overflow="fold")
        grid.add_column(ratio=1)
        for row in rows:
            grid.add_row(_signature(row), f"{row.text}{_default(row)}")
        return grid

    for title, rows in groups.items():
        heights = [len(console.render_lines(table([row]), inner)) for row in rows]
        screens = _screens(rows, heights)
        for i, screen in enumerate(screens):
            part = title if len(screens) == 1 else f"{title}, {i + 1} of {len(screens)}"
            console.print(Panel(table(screen), title=part, title_align="left", width=width))


def _screens(rows: Sequence[Option], heights: Sequence[int]) -> list[list[Option]]:
    """Divide a group into as few screens as it needs, of about the same height."""
    number = -(-sum(heights) // (SCREEN - 4))  # beside the border, an option is not divided
    parts: list[list[Option]] = [[]]
    above = 0
    for row, height in zip(rows, heights, strict=True):
        if parts[-1] and above + height > len(parts) * sum(heights) / number + 1:
            parts.append([])
        parts[-1].append(row)
        above += height
    return parts


def _signature(option: Option) -> str:
    if len(option.names) == 2 and option.names[1] == f"--no-{option.names[0][2:]}":
        return f"--[no-]{option.names[0][2:]}"
    if len(option.signature) <= _NAMES:
        return option.signature
    return re.sub(r",(?=\S)", ", ", option.signature).replace("|", " | ")


def _default(option: Option) -> str:
    return "" if option.default in (None, "", "None") else f" (default: {option.default})"
