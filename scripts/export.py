"""Write a trained policy as one graph: ``klrl export runs/demo --format onnx``."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from klrl.output import as_program
from klrl.scripts.cli.command_line import bad_input, parse
from klrl.text import printable


@dataclass(frozen=True, kw_only=True)
class Exporting:
    """Write a saved policy as one graph from the environment's raw observations to its actions, normaliser inside.

    Inputs and output have the types of the environment's spaces, with any number of observations at once; a Dict has an
    input for each part. What it computes is compared with predict on 1,000 observations.
    """

    path: tyro.conf.Positional[Path]
    """A run directory (its newest checkpoint) or a saved agent."""
    format: Literal["onnx", "torch"] = "onnx"
    """ONNX, for onnxruntime and others (extra export), or torch, for torch.export.load."""
    best: tyro.conf.FlagCreatePairsOff[bool] = False
    """Take a run directory's best checkpoint, as klrl evaluate does."""
    stochastic: tyro.conf.FlagCreatePairsOff[bool] = False
    """Draw samples inside the graph instead of taking the most probable action."""
    output: Path | None = None
    """File; by default PATH/export/policy.onnx, or policy.pt2."""
    network: str | None = None
    """Function that made networks of your own, of which only the name is saved: MODULE:NAME again."""


def main(argv: list[str] | None = None) -> None:
    """Run ``klrl export``."""
    prog = "klrl export"
    args = parse(Exporting, sys.argv[1:] if argv is None else argv, prog)
    _export(prog, args)


def _export(prog: str, args: Exporting) -> None:
    import torch

    from klrl.agents.export import export_policy
    from klrl.run import checkpoint
    from klrl.scripts.cli.exporting import CLOSE, largest_difference, number_of_observations, runner
    from klrl.scripts.cli.saved_agents import to_act

    torch.set_num_threads(1)
    with bad_input(prog):
        path = checkpoint.best(args.path) if args.best else args.path
        agent = to_act(path, checkpoint.read(path), args.network)
        suffix = {"onnx": ".onnx", "torch": ".pt2"}[args.format]
        output = args.output or args.path / checkpoint.EXPORT / f"policy{suffix}"
        if output.suffix != suffix:
            raise ValueError(f"output = {output}; allowed for {args.format}: a name that ends in {suffix}")
        policy = export_policy(agent, output, args.format, deterministic=not args.stochastic)
        said = f"{output}: from {', '.join(policy.names)} to action, after {agent.num_timesteps:,} steps"
        if not args.stochastic:
            difference = largest_difference(agent, policy, runner(output, policy))
            if not difference <= CLOSE:
                output.unlink()
                raise ValueError(f"the graph differs from predict by {difference:g}; allowed: at most {CLOSE:g}")
            said += f"; at most {difference:.1e} from predict on {number_of_observations(agent):,} observations"
    print(printable(said))


if __name__ == "__main__":
    as_program(main)
