"""Text for messages: on one line, harmless to a terminal, with suggestions for misspelt words; warnings."""

from __future__ import annotations

import difflib
import hashlib
import re
import sys
import warnings
from collections.abc import Iterable

_COLOURS = re.compile(r"\x1b\[[0-9;:]*m")
_RESERVED = re.compile(r"(?i)con|prn|aux|nul|(com|lpt)[0-9]")
"""Names of devices on Windows, with any suffix."""
_MANY = 24
"""Most words that a message lists; there are about as many trust regions."""
_BETWEEN = {"klrl", "torch", "gymnasium", "contextlib", "abc", "dataclasses"}
"""Packages between the user's code and a warning; contextlib because of decorators, abc because of classes."""


def colourless(text: object) -> str:
    r"""Remove the sequences that colour text on a terminal (Gymnasium's warnings have some).

    >>> colourless("\x1b[1;33mWARN: 1\x1b[0m")
    'WARN: 1'
    """
    return _COLOURS.sub("", str(text))


def one_line(text: object) -> str:
    """Join lines: the text of a space with multi-dimensional arrays has several."""
    return " ".join(str(text).split())


def printable(text: object) -> str:
    r"""Write control and invisible characters as escapes; lines stay lines.

    >>> print(printable("runs/\x1b[31mred\u202e"))
    runs/\x1b[31mred\u202e
    """
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in str(text))


def plain(text: object, most: int = 1000) -> str:
    r"""Return one line of printable characters, for text from a file: a terminal would obey others.

    >>> plain("red: \x1b[31m,\nnext line")
    'red: \\x1b[31m, next line'
    """
    words = one_line(text)
    words = words if len(words) <= most else f"{words[: most - 3]}..."
    return printable(words)


def nearest(word: str, words: Iterable[str]) -> str:
    """Return a question with the words that were probably meant, to end a message; empty if none is near.

    >>> nearest("gama", ["gamma", "gae_lambda"])
    '; did you mean gamma?'
    >>> nearest("xyz", ["gamma"])
    ''
    """
    near = difflib.get_close_matches(word, words, n=3, cutoff=0.6)
    return f"; did you mean {', '.join(near)}?" if near else ""


def allowed(word: str, words: Iterable[str]) -> str:
    """Return the words of which one is allowed in the place of another, to end a message: of many, the nearest.

    >>> allowed("gama", ["gamma", "gae_lambda"])
    'gamma, gae_lambda; did you mean gamma?'
    >>> allowed("gama", ["seed", "gamma", "gae_lambda", *map(str, range(40))])
    'gamma, gae_lambda, seed, ... (43 in all)'
    """
    known = [*words]
    if len(known) <= _MANY:
        return f"{', '.join(known)}{nearest(word, known)}"
    return f"{', '.join(difflib.get_close_matches(word, known, n=3, cutoff=0.0))}, ... ({len(known)} in all)"


def file_name(text: object, most: int = 100) -> str:
    r"""Return a name that every file system takes: letters, digits and any of ``.,_+=-`` of the text, others as "_".

    >>> file_name("ALE/Pong-v5"), file_name("my_envs:Id-v0"), file_name("clip+constraint"), file_name("lr=1e-3")
    ('ALE_Pong-v5', 'my_envs_Id-v0', 'clip+constraint', 'lr=1e-3')
    >>> file_name("../x. "), file_name("con"), file_name("")
    ('_._x_', 'con_', '_')

    Args:
        text: the text.
        most: most characters; of a longer name the end is a hash of the whole text.
    """
    name = re.sub(r"[^A-Za-z0-9.,_+=-]", "_", str(text).strip())
    name = re.sub(r"^\.|\.$", "_", name) or "_"
    if len(name) > most:
        name = f"{name[: most - 17]}-{hashlib.sha256(str(text).encode()).hexdigest()[:16]}"
    return f"{name}_" if _RESERVED.fullmatch(name.partition(".")[0]) else name


def warn_user(text: str, category: type[Warning] = RuntimeWarning) -> None:
    """Warn with the line that called klrl, through any number of klrl's own calls."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _BETWEEN:
        frame, level = frame.f_back, level + 1
    warnings.warn(text, category, stacklevel=level)


def cell(text: object) -> str:
    r"""Return one cell of a Markdown table; no character ends the cell or is read as HTML.

    >>> cell("a|b <script>")
    'a\\|b &lt;script&gt;'
    """
    line = printable(one_line(text)).replace("\\", "\\\\").replace("|", "\\|")
    return line.replace("<", "&lt;").replace(">", "&gt;")
