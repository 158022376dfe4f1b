"""Compare saved policies, of klrl or Stable-Baselines3: ``klrl audit runs/a model.zip``."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from klrl.output import as_program, lost
from klrl.run.evaluation import ENOUGH
from klrl.scripts.cli.command_line import bad_input, fail, parse
from klrl.text import printable
from klrl.validation import NonNegativeInt, PositiveInt


@dataclass(frozen=True, kw_only=True)
class Auditing:
    """Measure how far saved policies are from each other: exact KL both ways, on the states that each visits."""

    paths: tyro.conf.Positional[tuple[Path, ...]]
    """Two policies, each a saved agent, run directory or checkpoint of klrl or a zip of Stable-Baselines3; or one
    directory, a run or one of zips, whose checkpoints are compared in order, each with the next and with the first."""
    env: str | None = None
    """Gymnasium id, for environments of your own: module:Id-v0; by default that of a klrl agent's training. Zips name
    none."""
    network: str | None = None
    """Function that made networks of your own, of which only the name is saved: MODULE:NAME again."""
    vecnormalize: tuple[str, ...] = ()
    """Files that VecNormalize.save wrote, one for each zip in order, separated by spaces; none for a zip whose training
    did not normalise observations."""
    episodes: PositiveInt = 20
    """Number of episodes that each policy plays, with sampled actions."""
    max_steps: PositiveInt = ENOUGH
    """Most steps of an episode; longer ones are cut."""
    seed: NonNegativeInt = 0
    """Seed of the episodes."""
    trust: tyro.conf.FlagCreatePairsOff[bool] = False
    """Let Stable-Baselines3 itself load a zip that reading is not enough for (own policies, images): that executes what
    is in the file."""
    json: Path | None = None
    """File to which the result is also written."""
    report: Path | None = None
    """Page, NAME.html, to which the result is also written; extra report."""


def main(argv: list[str] | None = None) -> None:
    """Run ``klrl audit``."""
    prog = "klrl audit"
    words = sys.argv[1:] if argv is None else argv
    args = parse(Auditing, words, prog)
    if not args.paths:
        fail(prog, "paths missing; for example: klrl audit runs/a model.zip")
    if args.report is not None and args.report.suffix.lower() not in (".html", ".htm"):
        fail(prog, f"report = {args.report}; allowed: a name that ends in .html")
    if len(args.paths) > 2:
        fail(prog, f"paths = {' '.join(map(str, args.paths))}; allowed: two policies, or one directory of checkpoints")
    _audit(prog, args, f"{prog} {shlex.join(words)}")


def _audit(prog: str, args: Auditing, command: str) -> None:
    import torch

    from klrl.audit import audit
    from klrl.audit.policy import check_comparable, check_space
    from klrl.experience.environments import env_id, factory
    from klrl.report.page import check_extra, write_audit
    from klrl.scripts.cli.audited import Opened
    from klrl.scripts.cli.saved_agents import working, write
    from klrl.studies.results import claim

    torch.set_num_threads(1)
    with bad_input(prog):
        opened = Opened(args.paths, args.env, args.vecnormalize, args.trust, args.network)
        make_env = factory(opened.env)
        first, *others = opened.policies
        with make_env() as one:
            check_space(first, f"env = {env_id(opened.env)}", one.observation_space, one.action_space)
        for other in others:
            check_comparable(first, other)
        if args.json:
            claim(args.json, "json")
        if args.report:
            check_extra()
            claim(args.report, "report")
    with working(prog):
        result = audit(opened.policies, make_env, args.episodes, seed=args.seed, max_steps=args.max_steps)
    settings = {"env": env_id(opened.env), "seed": args.seed, "max_steps": args.max_steps}
    record = settings | result.to_json()
    with bad_input(prog):
        write(args.json, record)
    print(f"{printable(env_id(opened.env))}; KL in nats, ± is the standard error over episodes")
    print(printable(result))
    if args.report:
        with bad_input(prog):
            write_audit(record, args.report, command)
    if args.json is args.report is None and (error := lost(sys.stdout)) is not None:
        fail(prog, f"stdout: {error.strerror}; the result is lost", status=1)


if __name__ == "__main__":
    as_program(main)
