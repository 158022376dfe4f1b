"""Test klrl's promises under hostile conditions: ``klrl torture``, in a checkout of the repository."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

from klrl.output import as_program
from klrl.scripts.cli.command_line import fail

TESTS = Path(__file__).resolve().parent.parent / "tests"
"""Folder of the protocol, which is not part of the installed package."""


def main(argv: list[str] | None = None) -> None:
    """Run ``klrl torture``: exit status 1 if a case failed."""
    if not (TESTS / "torture" / "main.py").is_file():
        fail("klrl torture", "the protocol is in tests/torture; allowed: a checkout of klrl's repository")
    sys.path.insert(0, str(TESTS))
    import_module("torture.main").main(argv)


if __name__ == "__main__":
    as_program(main)
