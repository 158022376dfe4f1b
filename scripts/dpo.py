"""Tune a saved agent by preferences: ``klrl dpo runs/demo --beta 0.1 --output tuned``."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from klrl.agents.settings import DPOConfig, PreferencesConfig
from klrl.output import as_program
from klrl.run.evaluation import ENOUGH
from klrl.scripts.cli.command_line import parse
from klrl.validation import NonNegativeInt, PositiveInt


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """Fit a saved agent's policy to preferences between its own segments of play, by DPO, and save it."""

    reference: tyro.conf.Positional[Path]
    """A saved agent or a run directory: the start of tuning, and the policy that KL is measured from."""
    output: Path
    """A new or empty directory for the tuned agent."""
    preferences: tyro.conf.OmitArgPrefixes[PreferencesConfig] = field(default_factory=PreferencesConfig)
    config: tyro.conf.OmitArgPrefixes[DPOConfig] = field(default_factory=DPOConfig)
    env: str | None = None
    """Gymnasium id; by default the environment of the training."""
    network: str | None = None
    """Function that made networks of your own, of which only the name is saved: MODULE:NAME again."""
    episodes: PositiveInt = 20
    """Number of episodes that reference and tuned agent play at the end."""
    max_steps: PositiveInt = ENOUGH
    """Most steps of such an episode; longer ones are cut, which a line says."""
    seed: NonNegativeInt = 0
    """Seed of the environments and the labels."""
    json: Path | None = None
    """File to which the numbers are also written."""


def main(argv: list[str] | None = None) -> None:
    """Run ``klrl dpo``."""
    prog = "klrl dpo"
    args = parse(Tuning, sys.argv[1:] if argv is None else argv, prog)
    from klrl.scripts.cli.tuning import fit_policy

    fit_policy(prog, args)


if __name__ == "__main__":
    as_program(main)
