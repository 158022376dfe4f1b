"""Train an agent: ``klrl train ppo --env CartPole-v1``, or ``python scripts/train.py ppo --env CartPole-v1``."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from klrl.agents.config import OLDER, AgentConfig
from klrl.agents.own_networks import network_of_word, of_flag, saved_name
from klrl.agents.settings import CONFIGS
from klrl.output import as_program
from klrl.run.options import RunOptions
from klrl.run.presets import preset
from klrl.run.torchrun import is_rank, is_restarted
from klrl.schedules import functions_in
from klrl.scripts.cli import help_text, run_config
from klrl.scripts.cli.command_line import bad_input, fail, failed_worker, parse
from klrl.scripts.cli.env_words import KeyValue, Wrappers
from klrl.scripts.cli.flags import given, whole_number
from klrl.scripts.cli.own_modules import find_in_this_folder
from klrl.text import file_name, nearest, plain
from klrl.trust_region.codec import own_class
from klrl.trust_region.names import region_of_word
from klrl.validation import Bounds, NonNegativeInt

if TYPE_CHECKING:
    from klrl.experience.wrapped import Named
    from klrl.run import World


@dataclass(frozen=True, kw_only=True)
class Training:
    """Train an agent and keep everything about the run in one directory."""

    env: str
    """Gymnasium id, for example CartPole-v1 or HalfCheetah-v5; module:Id-v0 for one that a module registers."""
    env_kwargs: tuple[KeyValue, ...] = ()
    """Keyword arguments of the environment, key=value ..., over those it is registered with."""
    wrapper: Wrappers = ()
    """Wrapper of the environment, MODULE:NAME key=value ...; repeated for several, the first one innermost."""
    agent: tyro.conf.OmitArgPrefixes[AgentConfig]
    total_timesteps: Annotated[int, Bounds(1, 10**12)] = 100_000
    """Environment steps to train for, over all environments; whole updates are run."""
    seed: NonNegativeInt = 0
    """Seed of the run, from which all its random streams derive."""
    config: Path | None = None
    """A run directory or its config.json, whose settings are the defaults of all flags: the same run again. Own classes
    (module:Id-v0, wrappers, trust regions) are given again: nothing that is saved is imported. Or best.json of klrl
    tune, with the environment given again."""
    name: str | None = None
    """Name of the run, which is written to runs/NAME; a number follows if there is one of this name."""
    run_dir: Path | None = None
    """A new or empty directory; by default runs/NAME, without a name runs/ENV__AGENT__SEED__TIME."""
    resume: tyro.conf.FlagCreatePairsOff[bool] = False
    """Go on with the run in --run-dir if it was begun, with the same flags; so one command may be repeated until the
    run is finished."""
    start_from: Path | None = None
    """Begin with the networks and statistics of this saved agent or run directory, to fine-tune its policy; settings
    that these depend on are its own by default."""
    preset: Literal["auto", "none"] = "auto"
    """Start from the known settings for the environment (auto), or from the plain defaults (none)."""
    run: tyro.conf.OmitArgPrefixes[RunOptions] = field(default_factory=RunOptions)

    def __post_init__(self) -> None:
        if self.name is not None and self.run_dir is not None:
            raise ValueError(f"name = {self.name!r} with run_dir; allowed: one of the two")


def main(argv: list[str] | None = None) -> None:
    """Run ``klrl train``."""
    name, options = _algorithm(sys.argv[1:] if argv is None else argv)
    prog = f"klrl train {name}"
    with bad_input(prog):
        again = given(options, "config").get("config") or None  # an empty one is refused like other empty values
        run = None if again is None else run_config.read_to_repeat(again, name)
        default = _defaults(name, options) if run is None else _same(name, options, Path(str(again)), run)
        if (group := help_text.asked(options)) is not None:
            help_text.show(prog, Training, default, group)
            sys.exit(0)
    training = parse(Training, options, prog, default)
    env = partial(_environment, training, run, given(options, "env").get("env"))
    own = given(options, "trust_region", "network")
    resume = partial(_resume, prog, training, own.get("trust_region"), own.get("network"))
    if not is_rank():
        if training.resume and _is_begun(prog, training, env):
            resume(None)
        else:
            _train(prog, name, training, env)
        return
    from klrl.scripts.cli.ranks import together

    with together(prog) as world:
        goes_on = training.resume or (training.run_dir is not None and is_restarted())
        if goes_on and world.said_by_first(lambda: _is_begun(prog, training, env)):
            resume(world)
        else:
            _train(prog, name, training, env, world)


def _is_begun(prog: str, training: Training, make_env: Callable[[], Named]) -> bool:
    """Tell whether the run of these flags is there, to go on with; another run is bad input."""
    from klrl.studies.opening import difference

    with bad_input(prog):
        if training.run_dir is None:
            raise ValueError("resume = True without run_dir; allowed: with --run-dir")
        file = training.run_dir / "config.json"
        other = difference(training.run_dir, training.agent, training.env, training.seed, training.total_timesteps)
        if other is None and file.exists():
            other = _other_flags(training, run_config.read(file), make_env)
        if other is not None:
            raise ValueError(f"run_dir = {training.run_dir} holds another run: {other}; allowed: one of these flags")
        return file.exists()


def _other_flags(training: Training, run: Mapping[str, Any], make_env: Callable[[], Named]) -> str | None:
    """Return in what flags that are no settings of the agent differ from a run's, or ``None``."""
    from klrl.experience.environments import check_id, describe
    from klrl.keywords import decoded

    check_id(training.env)
    start = None if training.start_from is None else str(training.start_from.resolve())
    mine, theirs = asdict(training.run) | {"start_from": start}, dict(run)
    for flags, env in ((mine, describe(make_env())), (theirs, run["env"])):
        if env is not None:
            flags |= {"env_kwargs": decoded(env.get("kwargs")), "wrapper": decoded(env.get("wrappers", []))}
    changed = [name for name in mine if name in theirs and mine[name] != theirs[name]]
    return ", ".join(f"{name} = {plain(theirs[name], 80)}, not {plain(mine[name], 80)}" for name in changed) or None


def _resume(prog: str, training: Training, region: str | None, network: str | None, world: World | None) -> None:
    """Go on as ``klrl resume`` does; what a file may not name, code of one's own, the flags have."""
    from klrl.run import Signals
    from klrl.scripts.cli.resuming import resume
    from klrl.scripts.resume import Resuming

    assert training.run_dir is not None
    own_env = training.env if ":" in training.env else None
    own_region = region if region is not None and ":" in region else None
    args = Resuming(
        path=training.run_dir, env=own_env, wrapper=training.wrapper, trust_region=own_region, network=network
    )
    with Signals() as signals:
        resume(prog, args, signals, world)


def _train(prog: str, name: str, training: Training, make_env: Callable[[], Named], world: World | None = None) -> None:
    import torch

    from klrl.agents import AGENTS
    from klrl.run import Signals, World
    from klrl.run.directory import check_new
    from klrl.scripts.cli.ranks import follow, named
    from klrl.scripts.cli.training import run_training, tracking

    torch.set_num_threads(training.run.torch_threads)
    world = World() if world is None else world
    world.settle(rank_timeout=training.run.rank_timeout, on_divergence=training.run.on_divergence)
    prog = named(prog, world)
    with bad_input(prog), failed_worker(prog):
        if training.run_dir is not None and world.rank == 0:
            check_new(training.run_dir)
        world.any(False)
        env = make_env()
        training.run.videos(env, Path()), tracking(training.run, Path())  # what these need is installed
        agent = AGENTS[name](env, training.agent, seed=training.seed, trial=True)
        if training.start_from is not None:
            agent.start_from(training.start_from)
        notes = {
            "start_from": None if training.start_from is None else str(training.start_from.resolve()),
            "name": training.name,
        }
        if world.rank == 0:
            run_dir = training.run_dir or _new_directory(training, name)
            keep = training.run.directory(run_dir, notes)
    known = {} if training.preset == "none" else preset(name, training.env)
    held = [f"{k} = {v}" for k, v in known.items() if getattr(training.agent, k) == v]
    if known:
        agent.preset = training.env
    learn = partial(agent.learn, training.total_timesteps)
    with Signals() as signals:
        if world.rank > 0:
            follow(prog, agent, learn, training.run, signals)
            return
        run_training(prog, agent, learn, env, keep, training.run, signals, preset=held)


def _algorithm(words: list[str]) -> tuple[str, list[str]]:
    allowed = f"{', '.join(CONFIGS)}; klrl train ALGORITHM --help lists the options"
    if not words:
        fail("klrl train", f"algorithm missing; for example: klrl train ppo --env CartPole-v1; allowed: {allowed}")
    if words[0] in ("-h", "--help"):
        print(f"usage: klrl train ALGORITHM --env ID [OPTIONS]\n\nalgorithms: {allowed}")
        sys.exit(0)
    if words[0] not in CONFIGS:
        fail("klrl train", f"algorithm = {words[0]!r}; allowed: {allowed}{nearest(words[0], CONFIGS)}")
    return words[0], words[1:]


def _defaults(name: str, options: list[str]) -> Training:
    """The flags' defaults, which depend on the environment, the region and the size of the rollout."""
    words = given(options, "env", "preset", "trust_region", "n_envs", "n_steps", "reference", "start_from", "network")
    own: dict[str, Any] = _sizes(words) | {k: v for k, v in words.items() if k == "reference"}
    if "trust_region" in words:
        find_in_this_folder(options)
        own["trust_region"] = region_of_word(words["trust_region"])
    if "network" in words:
        find_in_this_folder(options)
        own["network"] = None if words["network"] == "None" else network_of_word(words["network"])
    if words.get("start_from"):
        find_in_this_folder(options)
        own |= inherited(words["start_from"], words.get("network"))
    config = CONFIGS[name].for_env(None if words.get("preset") == "none" else words.get("env"), **own)
    return Training(env=tyro.MISSING, agent=config)


def _sizes(words: Mapping[str, str]) -> dict[str, int]:
    """Return the sizes of the rollout among these words."""
    found = {name: whole_number(words[name]) for name in ("n_envs", "n_steps") if name in words}
    return {name: size for name, size in found.items() if size is not None}


def _same(name: str, options: list[str], config: Path, run: dict[str, Any]) -> Training:
    """The flags' defaults for the same run again; a region and a size of the rollout decide others, as always."""
    words = given(options, "trust_region", "n_envs", "n_steps")
    find_in_this_folder(options)
    region: Any = None
    if "trust_region" in words:
        region = region_of_word(words["trust_region"])
    elif own_class(run["config"].get("trust_region")) is not None:
        region = run_config.saved_region(config, run, None)  # says what to give
    sizes = _sizes(words)
    if sizes:
        whole = math.prod(sizes.get(k, run["config"].get(k, 1)) for k in ("n_envs", "n_steps"))
        capped = [k for k in CONFIGS[name].at_most_samples if isinstance(run["config"].get(k), int)]
        sizes |= {k: min(run["config"][k], whole) for k in capped}
    options_of_run, agent = run_config.settings(config, run, region, **sizes, **_in_place(run["config"], options))
    return Training(
        env=run["env"]["id"] if run["env"] is not None else tyro.MISSING,
        agent=agent,
        total_timesteps=run.get("total_timesteps", Training.total_timesteps),
        seed=run.get("seed", Training.seed),
        start_from=None if run["start_from"] is None else Path(run["start_from"]),
        preset="none" if run.get("preset") is None else "auto",
        run=options_of_run,
    )


def _in_place(config: Mapping[str, Any], options: list[str]) -> dict[str, Any]:
    """Return what stands in place of functions, which are not saved, until flags give them anew.

    Raises:
        ValueError: a flag is missing.
    """
    functions = functions_in(config)
    words = given(options, *functions)
    if missing := [name for name in functions if name not in words]:
        said = plain(", ".join(f"{name} = {functions[name]}" for name in missing), 200)
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in missing if name != "network")
        network = [f"--network {saved_name(config)}"] if "network" in missing else []
        raise ValueError(f"{said}: functions are not saved; allowed: {', '.join([*filter(None, [flags]), *network])}")
    own = {"network": network_of_word(words["network"])} if "network" in functions else {}
    return dict.fromkeys(functions, 0.1) | own


def _environment(training: Training, run: Mapping[str, Any] | None, env: str | None) -> Named:
    """Make what makes the environments: as the words say, or as they were in the run that is made again."""
    from klrl.scripts.cli.environments import environment, in_words, with_kwargs

    if run is None:
        return in_words(training.env, training.env_kwargs, training.wrapper)
    found = environment(run["env"], env, training.wrapper)
    return with_kwargs(found, training.env_kwargs) if training.env_kwargs else found


def inherited(path: str, network: str | None = None) -> dict[str, Any]:
    """Return the settings of a saved agent on which its networks and statistics depend.

    ``network`` is ``MODULE:NAME`` of what made networks of one's own.

    Raises:
        FileNotFoundError: nothing is saved there.
        ValueError: the saved agent is damaged.
    """
    from klrl.agents.compatibility import NETWORKS
    from klrl.run import checkpoint

    try:
        config = {**OLDER, **checkpoint.read(path)[1]["config"]}
    except FileNotFoundError as error:
        raise FileNotFoundError(f"start_from = {path}: {str(error).partition(': ')[2]}") from error
    config["network"] = of_flag(path, config, network)
    names = (*NETWORKS, "shared_encoder", "scale_actions", "normalize_observations", "scale_rewards")
    return {name: tuple(v) if isinstance(v := config[name], list) else v for name in names}


def _new_directory(training: Training, agent: str) -> Path:
    """Make a directory that nobody else has: the first to make it gets it."""
    unnamed = f"{file_name(training.env)}__{agent}__{training.seed}__{datetime.now():%Y%m%d-%H%M%S}"
    name = unnamed if training.name is None else file_name(training.name)
    for i in count(1):
        path = Path("runs") / (name if i == 1 else f"{name}-{i}")
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        return path
    raise AssertionError


if __name__ == "__main__":
    as_program(main)
