"""Places of a study's runs in its directory."""

from __future__ import annotations

from pathlib import Path

from klrl.text import file_name


def run_directory(runs: Path, env: str, variant: str, seed: int) -> Path:
    """Return the directory of a run below the folder of a study's runs."""
    return runs / file_name(env) / file_name(variant) / f"seed-{seed}"
