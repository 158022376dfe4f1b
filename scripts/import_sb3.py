"""Make a klrl agent of a Stable-Baselines3 policy: ``klrl import-sb3 model.zip -o agent``."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from klrl.output import as_program
from klrl.scripts.cli.command_line import bad_input, parse
from klrl.text import printable


@dataclass(frozen=True, kw_only=True)
class Importing:
    """Make a klrl agent with the parameters, statistics and outputs of a policy that Stable-Baselines3 saved.

    For fully connected policies of PPO, A2C, TRPO and MaskablePPO. Nothing in the zip is executed.
    """

    path: tyro.conf.Positional[Path]
    """A zip, as the model's save() wrote it."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """A new directory for the agent."""
    env: str | None = None
    """Gymnasium id of the environment to learn on in, module:Id-v0 for your own; it can be given later, too."""
    vecnormalize: str | None = None
    """File that VecNormalize.save wrote, if the model was trained on one; none if that left observations alone."""


def main(argv: list[str] | None = None) -> None:
    """Run ``klrl import-sb3``."""
    prog = "klrl import-sb3"
    args = parse(Importing, sys.argv[1:] if argv is None else argv, prog)
    _import(prog, args)


def _import(prog: str, args: Importing) -> None:
    from klrl.experience.environments import check_id, factory
    from klrl.integrations.sb3_policy import read_policy
    from klrl.run.directory import check_new
    from klrl.scripts.cli.importing import CLOSE, agent_of, largest_difference
    from klrl.text import one_line

    with bad_input(prog):
        check_new(args.output, "output")
        found = read_policy(args.path, args.vecnormalize)
        if args.env is not None:
            check_id(args.env)
            with factory(args.env)() as one:
                spaces = found.model.observation_space, found.model.action_space
                if (one.observation_space, one.action_space) != spaces:
                    raise ValueError(f"env = {args.env}: its spaces differ; allowed: {one_line(spaces)}")
        agent = agent_of(found, args.env)
        if (difference := largest_difference(found, agent)) > CLOSE:
            raise ValueError(f"path = {args.path}: its outputs differ by {difference:g}; allowed: at most {CLOSE:g}")
        agent.save(args.output)
    before = f"{found.algorithm} of Stable-Baselines3 {found.model.version} after {agent.num_timesteps:,} steps"
    after = f"klrl {agent.config.algorithm.upper()} in {args.output}"
    print(f"{printable(before)} -> {printable(after)}; their outputs in 256 states differ by at most {difference:.1e}")


if __name__ == "__main__":
    as_program(main)
