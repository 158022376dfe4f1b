"""The command line's reference, read from the parsers of the verbs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from inspect import cleandoc, getdoc
from typing import Any
from unittest import mock

from klrl.agents import AGENTS
from klrl.scripts.benchmark import WHAT
from klrl.scripts.cli.help_text import Option, options
from klrl.scripts.main import VERBS


class _Parsed(Exception):
    """Interrupts a verb's main, and holds what it gave to tyro."""


@dataclass(frozen=True)
class Command:
    """A verb with its options."""

    name: str
    text: str
    options: tuple[Option, ...]


def read(module: str, name: str, *words: str) -> Command:
    """Ask a verb's ``main`` for its parser, without running anything.

    Raises:
        RuntimeError: it did not parse a dataclass.
    """

    def parsed(cls: type, *, default: Any = None, **_: Any) -> None:
        raise _Parsed(cls, default)

    with mock.patch("tyro.cli", parsed):
        try:
            import_module(module).main(list(words))
        except _Parsed as found:
            cls, default = found.args
        else:
            raise RuntimeError(f"klrl {name} parses no dataclass")
    return Command(f"klrl {name}", cleandoc(getdoc(cls) or ""), tuple(options(cls, default)))


def _plain(text: str) -> str:
    """Text in which Markdown sees no markup."""
    return re.sub(r"([\\`*_\[\]<>$|#])", r"\\\1", text)


def _shown(option: Option, note: str = "") -> str:
    lines = ["```{option} " + option.signature, _plain(option.text)]
    if option.default not in (None, "", "None"):
        lines += ["", f"Default: `{option.default}`{note}."]
    return "\n".join([*lines, "```"])


def _all(command: Command) -> Iterator[str]:
    yield "```{program} " + command.name + "\n```"
    yield from (_shown(option) for option in command.options)


def _training() -> Iterator[str]:
    """``klrl train``: what all algorithms share, once, then what each has of its own."""
    read_ = {name: read("klrl.scripts.train", f"train {name}", name) for name in AGENTS}
    by_name = {name: {o.names: o for o in command.options} for name, command in read_.items()}
    shared = [key for key in by_name["ppo"] if all(key in options for options in by_name.values())]
    yield "```{program} klrl train\n```"
    for key in shared:
        defaults = {name: options[key].default for name, options in by_name.items()}
        first = by_name["ppo"][key]
        others = [f"`{value}` for {name}" for name, value in defaults.items() if value != first.default]
        yield _shown(first, f" for ppo, {', '.join(others)}" if others else "")
    for name, command in read_.items():
        yield f"### klrl train {name}"
        yield "```{program} " + command.name + "\n```"
        yield from (_shown(o) for key, o in by_name[name].items() if key not in shared)


def reference() -> str:
    """Write one section per verb, and one per benchmark."""
    parts: list[str] = []
    for verb, line in VERBS.items():
        parts += [f"## klrl {verb}", f"{_plain(line[0].upper() + line[1:])}."]
        if verb == "train":
            parts += [f"`klrl train ALGORITHM --env ID [OPTIONS]`, ALGORITHM one of {', '.join(AGENTS)}.", *_training()]
        elif verb == "benchmark":
            for what, about in WHAT.items():
                command = read(f"klrl.scripts.benchmarks.{what}", f"benchmark {what}")
                parts += [f"### {command.name}", f"{_plain(about[0].upper() + about[1:])}.", *_all(command)]
        else:
            command = read(f"klrl.scripts.{verb.replace('-', '_')}", verb)
            parts += [_plain(command.text), *_all(command)]
    return "\n\n".join(parts)
