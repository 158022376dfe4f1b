"""Evaluate a trained agent: ``klrl evaluate runs/demo --episodes 20``."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from klrl.output import as_program, lost
from klrl.run.evaluation import ENOUGH
from klrl.run.options import LONGEST_VIDEO
from klrl.scripts.cli.command_line import bad_input, fail, parse
from klrl.scripts.cli.env_words import Wrappers
from klrl.text import printable
from klrl.validation import InfoKey, NonNegativeInt, PositiveInt

if TYPE_CHECKING:
    import gymnasium as gym

    from klrl.scripts.cli.saved_agents import LoadedAgent


@dataclass(frozen=True, kw_only=True)
class Evaluating:
    """Play whole episodes with a saved agent and report their undiscounted returns."""

    path: tyro.conf.Positional[Path]
    """A run directory (its newest checkpoint) or a saved agent."""
    best: tyro.conf.FlagCreatePairsOff[bool] = False
    """Take a run directory's best checkpoint: by evaluations during the training (--eval-every), without them by the
    training return."""
    env: str | None = None
    """Gymnasium id, for environments of your own: module:Id-v0; by default the environment of the training. That one
    keeps its keyword arguments and its time limit."""
    wrapper: Wrappers = ()
    """Wrappers of the environment, each again as MODULE:NAME, repeated for several: nothing that is saved is imported.
    They keep their arguments, unless key=value follows."""
    network: str | None = None
    """Function that made networks of your own, of which only the name is saved: MODULE:NAME again."""
    episodes: PositiveInt = 20
    """Number of episodes to play."""
    stochastic: tyro.conf.FlagCreatePairsOff[bool] = False
    """Sample actions instead of taking the most probable one."""
    max_steps: PositiveInt = ENOUGH
    """Most steps of an episode; longer ones are cut, which the result says."""
    seed: NonNegativeInt = 0
    """Seed of the episodes, which never share one with training."""
    info_keys: tuple[InfoKey, ...] = ()
    """Keys of numbers in info, separated by spaces; values in the episodes' last steps are averaged. is_success is
    reported where it is there, and so are the keys of the training."""
    video: Path | None = None
    """Folder for a video of every episode, step-10000-episode-0.mp4 and so on (pip install 'klrl[video]'); older ones
    of these names are replaced."""
    video_length: PositiveInt = LONGEST_VIDEO
    """Most steps of a video, whose pictures are in memory until it is written."""
    json: Path | None = None
    """File to which the result is also written."""


def main(argv: list[str] | None = None) -> None:
    """Run ``klrl evaluate``."""
    prog = "klrl evaluate"
    args = parse(Evaluating, sys.argv[1:] if argv is None else argv, prog)
    _evaluate(prog, args)


def _evaluate(prog: str, args: Evaluating) -> None:
    import torch

    from klrl.run import checkpoint, evaluate
    from klrl.scripts.cli.saved_agents import LoadedAgent, compare_versions, versions_of, working, write
    from klrl.studies.results import claim

    torch.set_num_threads(1)
    with bad_input(prog):
        path = checkpoint.best(args.path) if args.best else args.path
        loaded = LoadedAgent.load(path, args.env, args.wrapper, args.network)
        agent = loaded.agent
        env = loaded.make() if args.video is None else _recorded(args, loaded)
        if args.json:
            claim(args.json, "json")
    compare_versions(versions_of(path), "returns may differ from those of the training")
    with working(prog), env:
        deterministic = not args.stochastic
        result = evaluate(
            agent,
            env,
            args.episodes,
            deterministic=deterministic,
            seed=args.seed,
            max_steps=args.max_steps,
            info_keys=tuple(dict.fromkeys((*agent.config.info_keys, *args.info_keys))),
        )
    if args.json:
        record = {
            "path": str(path),
            "env": loaded.env_id,
            "agent": loaded.name,
            "num_timesteps": agent.num_timesteps,
            "deterministic": deterministic,
            "seed": args.seed,
            "mean_return": result.mean,
            "std_return": result.std,
            "returns": result.returns,
            "lengths": result.lengths,
            "cut": result.cut,
            "success_rate": result.success_rate,
            "info": result.info_means,
        }
        with bad_input(prog):
            write(args.json, record)
    how = "stochastic" if args.stochastic else "deterministic"
    print(
        f"{loaded.name.upper()} on {printable(loaded.env_id)} after {agent.num_timesteps:,} steps: "
        f"{printable(result)} over {len(result.returns)} {how} episodes"
    )
    if args.video is not None:
        print(printable(f"videos: {args.video}"))
    if args.json is None and (error := lost(sys.stdout)) is not None:
        fail(prog, f"stdout: {error.strerror}; the result is lost", status=1)


def _recorded(args: Evaluating, loaded: LoadedAgent) -> gym.Env:
    """Make an environment whose episodes become videos.

    Raises:
        ValueError: no video can be made of it.
        OSError: nothing can be written to the folder.
    """
    from klrl.run.video import check_extra, check_pictures, recorded, rendered

    assert args.video is not None
    check_extra()
    make = rendered(loaded.env)
    check_pictures(make, args.seed)
    args.video.mkdir(parents=True, exist_ok=True)
    prefix = f"step-{loaded.agent.num_timesteps}"
    return recorded(make, args.video, prefix, min(args.video_length, args.max_steps))


if __name__ == "__main__":
    as_program(main)
