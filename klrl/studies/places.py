"""Names of files and folders for names of environments and variants."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

_MOST = 100
"""Longest name in characters; file systems take 255 bytes, and suffixes follow."""


def file_name(name: str) -> str:
    """Return a name that every file system takes for any text; most stay as they are.

    >>> file_name("ALE/Pong-v5"), file_name("clip+adaptive-penalty"), file_name("lr=1e-3"), file_name("..")
    ('ALE_Pong-v5', 'clip+adaptive-penalty', 'lr=1e-3', '_.')
    """
    short = re.sub(r"[^A-Za-z0-9_.,+=-]", "_", name)
    short = re.sub(r"^\.|\.$", "_", short) or "_"
    if len(short) <= _MOST:
        return short
    return f"{short[: _MOST - 17]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def run_directory(runs: Path, env: str, variant: str, seed: int) -> Path:
    """Return the directory of a run below the folder of a study's runs."""
    return runs / file_name(env) / file_name(variant) / f"seed-{seed}"
