"""Modules of the current folder, for ``module:Id-v0`` on the command line."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

_MODULE = re.compile(r"(?:--[\w-]+=)?([^\W\d]\w*)(?:\.\w+)*:[^:\s]")
"""Begins a word that names something in a module; its first part."""


def find_in_this_folder(argv: Sequence[str]) -> None:
    """Let the modules that these words name be imported from the current folder, if they are nowhere else.

    An installed program's search begins in its own folder and not, as that of ``python -m klrl``, in the current one.
    That is searched last now, and only where a word needs it, so that no file there is taken for a package.
    """
    here = os.getcwd()
    for name in (match[1] for word in argv if (match := _MODULE.match(word))):
        if here not in sys.path and not _is_found(name) and _is_here(name):
            sys.path.append(here)


def _is_found(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ValueError:  # __main__, which nobody imports
        return True


def _is_here(name: str) -> bool:
    return Path(f"{name}.py").is_file() or Path(name).is_dir()
