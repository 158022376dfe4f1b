"""Search over settings with Optuna: ``klrl tune ppo --env CartPole-v1 --search learning_rate=1e-4:1e-2:log``."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from klrl.output import as_program
from klrl.scripts.cli.command_line import parse
from klrl.validation import Bounds, NonNegativeInt, Positive, PositiveInt

PROG = "klrl tune"


@dataclass(frozen=True, kw_only=True)
class Tune:
    """Search for settings of an agent that reach a high return, for little KL if that is asked for.

    The same command continues an interrupted search; started several times at once, the processes share it.
    """

    agent: tyro.conf.Positional[str]
    """The algorithm: ppo, trpo, npg."""
    env: str
    """Gymnasium id, for example CartPole-v1."""
    search: tuple[str, ...]
    """NAME=LOW:HIGH, NAME=LOW:HIGH:log or NAME=VALUE,VALUE,... of each setting that is searched, trust_region too.
    Values that are several numbers are separated by slashes: actor_hidden_sizes=64,64/256,256."""
    set: tuple[str, ...] = ()
    """NAME=VALUE ...: settings that are the same in all trials."""
    total_timesteps: Annotated[int, Bounds(1, 10**12)] = 100_000
    """Environment steps of every run."""
    trials: PositiveInt = 50
    """Trials of the whole search, by all processes and calls; failed and pruned ones count."""
    seeds: tuple[NonNegativeInt, ...] = (100, 101, 102)
    """Seeds of every trial, which is worth its mean over them; results are reported on other seeds: 0, 1, 2, ..."""
    objective: Literal["return", "return-and-kl"] = "return"
    """The return, or two objectives: the return, and the KL spent for it."""
    kl_budget: Positive | None = None
    """Largest sum of KL(old||new) over a run's updates that the best trial may have, in nats (metric drift/kl_sum)."""
    measure: Literal["training", "evaluation"] = "training"
    """Return of the episodes in the last tenth of the training, or of 20 deterministic ones afterwards."""
    sampler: str = "TPESampler"
    """Class of optuna.samplers: TPESampler, GPSampler, NSGAIISampler, RandomSampler, ..."""
    pruner: str | None = None
    """Class of optuna.pruners: NopPruner, HyperbandPruner, ...; by default MedianPruner, with two objectives none."""
    sampler_seed: NonNegativeInt = 0
    """Seed of the sampler."""
    storage: str | None = None
    """Optuna storage URL, for example of a database that several machines reach; by default study.db in the output, by
    SQLite. The study has the name of the output directory."""
    preset: Literal["auto", "none"] = "auto"
    """Start from the known settings for the environment (auto), or from the plain defaults (none)."""
    checkpoint_every: PositiveInt | None = None
    """Environment steps between checkpoints, by default a tenth of the training, at most 100,000."""
    output: Path = Path("tune")
    """Directory of trials.csv, best.json, study.db and trials/, with a run directory for every trial and seed."""


def main(argv: list[str] | None = None) -> None:
    """Run ``klrl tune``."""
    args = parse(Tune, sys.argv[1:] if argv is None else argv, PROG)
    from klrl.scripts.cli.searching import search

    search(PROG, args)


if __name__ == "__main__":
    as_program(main)
