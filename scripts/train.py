"""Train an agent: ``klrl train ppo --env CartPole-v1``, or ``python scripts/train.py ppo --env CartPole-v1``."""

from __future__ import annotations

import argparse
import signal
import sys
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import gymnasium as gym
import torch
import tyro
from rich.console import Console

from klrl.agents import AGENTS, AgentConfig
from klrl.agents.comparable import NETWORKS
from klrl.experience import BadStep
from klrl.run import Callback, KLBudget, checkpoint, evaluate
from klrl.run.directory import RunDirectory
from klrl.run.presets import preset
from klrl.run.progress import Progress
from klrl.scripts.command_line import bad_input, fail, parse
from klrl.validation import NonNegativeInt, Positive, PositiveInt


@dataclass(frozen=True, kw_only=True)
class Training:
    """Train an agent and keep everything about the run in one directory."""

    env: str
    """Gymnasium id, for example CartPole-v1 or HalfCheetah-v5."""
    agent: tyro.conf.OmitArgPrefixes[AgentConfig]
    total_timesteps: PositiveInt = 100_000
    """Environment steps to train for, over all environments; whole updates are run."""
    seed: NonNegativeInt = 0
    """Seed of the run; all its random streams come from it."""
    run_dir: Path | None = None
    """A new or empty directory; by default runs/ENV__AGENT__SEED__TIME."""
    start_from: Path | None = None
    """Begin with the networks and statistics of this saved agent or run directory, to fine-tune its policy; settings
    that these depend on are its own by default."""
    preset: Literal["auto", "none"] = "auto"
    """Start from the known settings for the environment (auto), or from the plain defaults (none)."""
    eval_episodes: NonNegativeInt = 20
    """Deterministic episodes to evaluate at the end."""
    checkpoint_every: PositiveInt = 100_000
    """Environment steps between checkpoints; the newest 3 and the best are kept."""
    kl_budget: Positive | None = None
    """Most nats that KL(old||new) may sum to over all updates (metric drift/kl_sum)."""
    initial_kl_budget: Positive | None = None
    """Most nats of KL(first policy||new) on the first batch's probe states (metric drift/kl_initial)."""
    over_budget: Literal["stop", "warn"] = "stop"
    """End the training after the update that exceeds a budget (stop), or say so once and go on (warn)."""
    torch_threads: PositiveInt = 1
    """Threads torch may use; small networks are fastest with one."""


class StopOnSignal(Callback):
    """Ends training after the current update on SIGINT or SIGTERM; a second signal ends it at once, nothing saved."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.received: int | None = None
        self._before = {number: signal.signal(number, self._remember) for number in (signal.SIGINT, signal.SIGTERM)}

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        signal.signal(number, signal.SIG_DFL)
        name = signal.Signals(number).name
        self.console.print(f"{name}: stopping after this update (again: at once, without a checkpoint)")

    def on_training_end(self, agent: Any) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def on_update_end(self, agent: Any, batch: Any, metrics: Any) -> bool | None:
        """Stop if a signal came."""
        return False if self.received else None


def main(argv: list[str] | None = None) -> None:
    """Run ``klrl train``."""
    name, options = _algorithm(sys.argv[1:] if argv is None else argv)
    prog = f"klrl train {name}"
    with bad_input(prog):
        default = _defaults(name, options)
    training = parse(Training, options, prog, default)
    run_dir = training.run_dir or _new_name(training.env, name, training.seed)
    torch.set_num_threads(training.torch_threads)
    with bad_input(prog):
        keep = RunDirectory(run_dir, checkpoint_every=training.checkpoint_every, notes=_notes(training))
        agent = AGENTS[name](training.env, training.agent, seed=training.seed)
        if training.start_from is not None:
            agent.start_from(training.start_from)
        run_dir.mkdir(parents=True, exist_ok=True)

    console = Console(highlight=False, soft_wrap=True)
    say = console.print
    known = {} if training.preset == "none" else preset(name, training.env)
    if known:
        agent.preset = training.env
        held = [f"{k} = {v}" for k, v in known.items() if getattr(training.agent, k) == v]
        say(f"preset for {training.env}: {', '.join(held)}")
    stop, budgets = StopOnSignal(console), _budgets(training)
    try:
        agent.learn(training.total_timesteps, [keep, Progress(console), stop, *budgets])
    except FloatingPointError as error:
        fail(prog, error, status=1)
    except BadStep as error:
        fail(prog, error)
    say(f"run directory: {run_dir}\nTensorBoard: tensorboard --logdir {run_dir}")
    for reason in (budget.reason for budget in budgets if budget.reason):
        say(f"{'stopped' if training.over_budget == 'stop' else 'over budget'}: {reason}")
    if stop.received:
        say(f"stopped by {signal.Signals(stop.received).name} after {agent.num_timesteps:,} steps; checkpoint written")
        sys.exit(128 + stop.received)
    if training.eval_episodes:
        try:
            with gym.make(training.env) as env:
                result = evaluate(agent, env, training.eval_episodes, seed=training.seed)
        except KeyboardInterrupt:
            say("evaluation interrupted; the trained agent is saved")
            sys.exit(130)
        say(f"evaluation: mean return {result.mean:.1f} ± {result.std:.1f} over {training.eval_episodes} episodes")


def _notes(training: Training) -> dict[str, Any]:
    """What decides the run beside the agent's settings, for ``config.json``."""
    names = ("kl_budget", "initial_kl_budget", "over_budget", "torch_threads")
    start = None if training.start_from is None else str(training.start_from.resolve())
    return {"start_from": start} | {name: getattr(training, name) for name in names}


def _algorithm(words: list[str]) -> tuple[str, list[str]]:
    allowed = f"{', '.join(AGENTS)}; klrl train ALGORITHM --help lists the options"
    if not words:
        fail("klrl train", f"algorithm missing; allowed: {allowed}")
    if words[0] in ("-h", "--help"):
        print(f"usage: klrl train ALGORITHM --env ID [OPTIONS]\n\nalgorithms: {allowed}")
        sys.exit(0)
    if words[0] not in AGENTS:
        fail("klrl train", f"algorithm = {words[0]!r}; allowed: {allowed}")
    return words[0], words[1:]


def _defaults(name: str, options: list[str]) -> Training:
    """The flags' defaults, which depend on the environment, the region and the size of the rollout."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for flag in ("env", "preset", "trust-region", "n-envs", "n-steps", "reference", "start-from"):
        first.add_argument(f"--{flag}", f"--{flag.replace('-', '_')}", nargs="?")
    known, _ = first.parse_known_args(options)
    given: dict[str, Any] = {k: int(v) for k in ("n_envs", "n_steps") if (v := getattr(known, k)) and v.isdecimal()}
    given |= {k: v for k in ("trust_region", "reference") if (v := getattr(known, k)) is not None}
    if known.start_from is not None:
        given |= inherited(known.start_from)
    config = AGENTS[name].config_class.for_env(None if known.preset == "none" else known.env, **given)
    return Training(env=tyro.MISSING, agent=config)


def _budgets(training: Training) -> list[KLBudget]:
    total, initial = training.kl_budget, training.initial_kl_budget
    if total is None and initial is None:
        return []
    return [KLBudget(total=total, initial=initial, on_exceed=training.over_budget)]


def inherited(path: str) -> dict[str, Any]:
    """Of a saved agent's settings, those of its networks and statistics.

    Raises:
        FileNotFoundError: nothing saved there.
        ValueError: damaged.
    """
    try:
        config = checkpoint.read(path)[1]["config"]
    except FileNotFoundError as error:
        raise FileNotFoundError(f"start_from = {path}: {str(error).partition(': ')[2]}") from error
    names = (*NETWORKS, "normalize_observations", "scale_rewards")
    return {name: tuple(v) if isinstance(v := config[name], list) else v for name in names}


def _new_name(env: str, agent: str, seed: int) -> Path:
    return Path("runs") / f"{env.replace('/', '_')}__{agent}__{seed}__{datetime.now():%Y%m%d-%H%M%S}"


if __name__ == "__main__":
    main()
