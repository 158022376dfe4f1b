"""Objects of a user's own code by their names: ``MODULE:NAME``."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from klrl.text import one_line


def named(field: str, word: str, allowed: str) -> Any:
    """Return what ``MODULE:NAME`` names; the module is imported.

    Args:
        field: setting that the word is for, for the message.
        word: the name.
        allowed: what the message says is allowed.

    Raises:
        ValueError: it is not of that form, or nothing is there.
    """
    module, _, name = word.partition(":")
    if not (module and name) or module.startswith("."):
        raise ValueError(f"{field} = {word!r}; allowed: {allowed}")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{field} = {word!r}: {one_line(error)}; allowed: {allowed}") from error
