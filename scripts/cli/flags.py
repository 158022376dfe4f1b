"""Command-line words before tyro parses them: values needed early, and errors as one short line instead of boxes.

By hand because tyro has no words before it has a whole command line, and its defaults depend on some of them.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import is_dataclass
from decimal import Decimal
from itertools import pairwise
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from klrl.text import nearest
from klrl.validation import Pattern, describe, hints


def objection(cls: type, argv: list[str], default: object = None) -> str | None:
    """Return what is wrong with the flags of a dataclass, judged by names and types, or ``None``.

    >>> from dataclasses import dataclass
    >>> @dataclass
    ... class Settings:
    ...     gamma: float = 0.99
    >>> objection(Settings, ["--gama", "0.9"])
    '--gama is not an option; did you mean --gamma?'
    >>> objection(Settings, ["--gamma", "high"])
    "gamma = 'high'; allowed: a number"
    """
    types = dict(_types(cls, default))
    known = dict(_flags(types))
    for flag, values in _given(argv):
        if flag in ("--help", "-h"):
            continue
        if flag not in known:
            return f"{flag} is not an option{nearest(flag, [f for f in known if '_' not in f])}"
        name = known[flag]
        if (problem := _problem(name, types[name], values)) is not None:
            return problem
    return None


def given(argv: list[str], *names: str) -> dict[str, str]:
    """Return the words that a command line gives these settings, before it is parsed; the last one counts.

    >>> given(["--env", "CartPole-v1", "--n_envs=2", "--n-envs", "4", "--preset"], "env", "n_envs", "preset")
    {'env': 'CartPole-v1', 'n_envs': '4'}
    """
    words = {flag.removeprefix("--").replace("-", "_"): values for flag, values in _given(argv)}
    return {name: words[name][0] for name in names if words.get(name)}


def flags_in(argv: list[str], *names: str) -> list[str]:
    """Return those of these settings whose flags are on a command line, with a value or without.

    >>> flags_in(["--env", "CartPole-v1", "--no-resume", "--n_envs=2"], "env", "n_envs", "resume", "seed")
    ['env', 'n_envs', 'resume']
    """
    flags = {flag.removeprefix("--").replace("-", "_").removeprefix("no_") for flag, _ in _given(argv)}
    return [name for name in names if name in flags]


def whole_number(text: str) -> int | None:
    """Return the integer that a word stands for, also as 1e6, 2.5e3 or 1_000_000; ``None`` if it is none.

    >>> whole_number("1e6"), whole_number("1_000"), whole_number("1.5"), whole_number("1e-3"), whole_number("many")
    (1000000, 1000, None, None, None)
    """
    if re.fullmatch(r"[+-]?[0-9][0-9_]*(\.[0-9]+)?[eE][+]?[0-9]{1,2}", text):
        exact = Decimal(text)
        return int(exact) if exact == exact.to_integral_value() else None
    with contextlib.suppress(ValueError):
        return int(text)
    return None


def with_whole_numbers(cls: type, argv: list[str], default: object = None) -> list[str]:
    """Return the words with integers written out, where a flag takes integers."""
    types = dict(_types(cls, default))
    known, takes, words = dict(_flags(types)), False, []
    for word in argv:
        flag, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        if flag:
            takes = flag in known and _takes_integers(types[known[flag]])
        number = whole_number(value) if takes else None
        words.append(word if number is None else f"{flag}{equals}{number}")
    return words


def _takes_integers(hint: Any) -> bool:
    """Tell whether the numbers that a type allows are integers."""
    if get_origin(hint) is Annotated:
        return _takes_integers(get_args(hint)[0])
    parts = [part for part in get_args(hint) if part not in (type(None), Ellipsis)]
    return all(map(_takes_integers, parts)) if parts else hint is int


def has_empty_value(argv: list[str]) -> bool:
    """Return True if a flag has an empty value, which no setting means."""
    return any(word == "" or (word.startswith("--") and word.endswith("=")) for word in argv)


def _types(cls: Any, default: object) -> Iterator[tuple[str, Any]]:
    """Yield every field's type by name, also those of nested settings."""
    for name, hint in hints(cls).items():
        value = getattr(default, name, None)
        inner = type(value) if is_dataclass(value) else _plain(hint)
        if is_dataclass(inner) and isinstance(inner, type):
            yield from _types(inner, value)
        else:
            yield name, hint


def _plain(hint: Any) -> Any:
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def _flags(types: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield every spelling of a flag, and its field."""
    for name, hint in types.items():
        for prefix in ("--", "--no-") if _plain(hint) is bool or _is_undecided(hint) else ("--",):
            yield prefix + name.replace("_", "-"), name
            yield prefix.replace("no-", "no_") + name, name


def _given(argv: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield flags and the words after them."""
    found: list[tuple[str, list[str]]] = []
    for word in argv:
        if word.startswith("--"):
            flag, equals, value = word.partition("=")
            found.append((flag, [value] if equals else []))
        elif found:
            found[-1][1].append(word)
    yield from found


def _is_undecided(hint: Any) -> bool:
    """Tell whether a flag says yes or no, and the environment decides where it is not given."""
    return {*get_args(_plain(hint))} == {bool, type(None)}


def with_decisions(cls: type, argv: list[str], default: object = None) -> list[str]:
    """Return the words with True or False after flags that may be undecided: tyro knows no such pair of flags."""
    undecided = [name.replace("_", "-") for name, hint in _types(cls, default) if _is_undecided(hint)]
    words: list[str] = []
    for word, after in pairwise([*argv, "--"]):
        flag = word.replace("_", "-")
        if flag.removeprefix("--no-") in undecided and flag.startswith("--no-"):
            words += [f"--{flag.removeprefix('--no-')}", "False"]
        elif flag.removeprefix("--") in undecided and after.startswith("--"):
            words += [word, "True"]
        else:
            words.append(word)
    return words


def _problem(name: str, hint: Any, values: list[str]) -> str | None:
    if _plain(hint) is bool or (_is_undecided(hint) and (not values or values[0] not in ("True", "False", "None"))):
        flag = name.replace("_", "-")
        return f"{name} = {values[0]!r}; allowed: --{flag} or --no-{flag}, and no value" if values else None
    several = get_origin(_plain(hint)) is tuple
    item = get_args(_plain(hint))[0] if several else hint
    allowed = f"allowed: {describe(item)}{', several separated by spaces' if several else ''}"
    if not values and not several:
        return f"{name} has no value; {allowed}"
    for value in values if several else values[:1]:
        if not _reads(value, item):
            return f"{name} = {value!r}; {allowed}{', not empty' if value == '' else ''}"
    return None


def _reads(text: str, hint: Any) -> bool:
    """Return True for a word that has the form of one of a type's values."""
    args = get_args(hint)
    match get_origin(hint):
        case origin if origin is Annotated:
            return _reads(text, args[0]) and all(text in p for p in args[1:] if isinstance(p, Pattern))
        case origin if origin in (Union, UnionType):
            return any(_reads(text, option) for option in args)
        case origin if origin is Literal:
            return text in map(str, args)
    if hint in (int, float):
        with contextlib.suppress(ValueError):
            hint(text)
            return True
        return False
    return text == "None" if hint is type(None) else text != ""
