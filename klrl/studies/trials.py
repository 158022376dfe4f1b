"""The runs of a design: a variant, an environment and a seed each, with everything that decides the result."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from klrl.agents import AgentConfig
from klrl.agents.names import agent_class
from klrl.run.options import RunOptions
from klrl.run.presets import preset
from klrl.studies.design import Design, Variant, names_of
from klrl.studies.opening import difference
from klrl.studies.places import run_directory
from klrl.studies.results import Row
from klrl.trust_region import RegionSettings

NAMED = ("env", "variant", "agent", "seed", "total_timesteps")
"""Names of a run in tables."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A variant on an environment with a seed, with everything that decides its result."""

    env: str
    variant: str
    agent: str
    seed: int
    total_timesteps: int
    config: AgentConfig
    options: RunOptions
    preset: str | None
    """Environment whose preset the configuration begins with, if there is one."""

    @property
    def name(self) -> str:
        """Name of the run in messages."""
        return f"{self.env} {self.variant} seed {self.seed}"

    def directory(self, runs: Path) -> Path:
        """Return its run directory below the folder of all runs."""
        return run_directory(runs, self.env, self.variant, self.seed)

    def identity(self) -> Row:
        """Return what decides its result, as plain JSON."""
        named = {name: getattr(self, name) for name in NAMED}
        return json.loads(json.dumps(named | {"config": self.config.to_json()}))

    def check_ranks(self, ranks: int) -> None:
        """Refuse more ranks than there are environments.

        Raises:
            ValueError: names the run.
        """
        if self.config.n_envs < ranks:
            few = f"ranks_per_run = {ranks}, and {self.name} has n_envs = {self.config.n_envs}"
            raise ValueError(f"{few}; allowed: at least one environment on every rank")

    def difference(self, runs: Path) -> str | None:
        """Return in what the run that is in place of this one is another, or ``None``.

        Raises:
            OSError: its file cannot be read now.
        """
        return difference(self.directory(runs), self.config, self.env, self.seed, self.total_timesteps)


def fitting(design: Design, say: Callable[[str], object]) -> Design:
    """Return the design with every variant tried on every environment, so that training finds nothing wrong with it.

    Args:
        design: the design.
        say: prints a line about each variant that does not fit an environment, and is left out there.

    Raises:
        ValueError: a setting does not fit the others or the environment, or an environment is unknown.
    """
    left_out = list(design.left_out)
    for env, variant in design.cells():
        try:
            agent_class(variant.agent)(env, design.config(variant, env).with_envs(1)).close()
        except ValueError as error:
            if not design.only_fitting:
                raise ValueError(f"{env}, {variant.name}: {error}") from error
            say(f"left out: {env}, {variant.name}: {error}")
            left_out.append((env, variant.name))
    return replace(design, only_fitting=False, left_out=tuple(left_out))


def trials_of(design: Design) -> list[Trial]:
    """Return every run, in the order of the table.

    Raises:
        ValueError: a setting does not fit the others, two variants are the same, or no variant fits an environment.
    """
    trials = []
    known: dict[Any, str] = {}
    for env, variant in design.cells():
        config, algorithm = design.config(variant, env), agent_class(variant.agent).config_class.algorithm
        other = known.setdefault((env, *_same(variant, config)), variant.name)
        if other != variant.name:
            raise ValueError(f"variants = {other!r}, {variant.name!r} are the same on {env}; allowed: different ones")
        trials += [
            Trial(
                env=env,
                variant=variant.name,
                agent=variant.agent,
                seed=seed,
                total_timesteps=design.environments[env],
                config=config,
                options=design.options,
                preset=env if design.presets and preset(algorithm, env) else None,
            )
            for seed in design.seeds
        ]
    if not trials:
        raise ValueError("variants: none fits an environment; allowed: at least one run")
    return trials


def _same(variant: Variant, config: AgentConfig) -> tuple[Any, ...]:
    """Return what two variants share exactly if they are the same; of a region's settings, the region they make."""
    rest = {name: value for name, value in config.to_json().items() if name not in names_of(RegionSettings)}
    return variant.agent, variant.region if ":" in variant.region else config.region, tuple(rest.items())
