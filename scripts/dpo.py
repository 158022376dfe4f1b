"""Tune a saved agent by preferences: ``klrl dpo runs/demo --beta 0.1 --output tuned``."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import tyro

from klrl.agents import DPOConfig, PreferencesConfig, collect_preferences, load_agent
from klrl.agents.dpo import dpo_epochs, trajectory_kl
from klrl.experience.environments import describe
from klrl.output import as_program
from klrl.run.callback import Metrics
from klrl.run.evaluation import ENOUGH
from klrl.scripts.cli.command_line import bad_input, parse
from klrl.scripts.cli.halfway import Halfway, fingerprint
from klrl.scripts.cli.saved_agents import LoadedAgent, claim, working, write
from klrl.text import printable
from klrl.validation import NonNegativeInt, PositiveInt

_SAID = {
    "loss": "loss",
    "accuracy": "accuracy",
    "margin": "reward margin",
    "kl_policy_reference": "KL(π‖ref)",
    "kl_reference_policy": "KL(ref‖π)",
    "trajectory_kl_reference_policy": "along a segment",
}


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
    torch.set_num_threads(1)
    with bad_input(prog):
        reference, policy = LoadedAgent.load(args.reference, args.env), load_agent(args.reference)
        halfway = Halfway(args.output, _decided(args, reference))
        found = halfway.find()
        history: list[Metrics] = []
        state = None
        if found is not None:
            policy, state, history = found.agent, found.state, found.history
        claim(args.output, args.json, again=found is not None)
    with working(prog, halfway.goes_on):
        with bad_input(prog):
            data = collect_preferences(reference.agent, reference.env, args.preferences, seed=args.seed)
        print(f"{len(data)} pairs of segments, {int(data.valid.sum()):,} steps")
        epochs = dpo_epochs(policy, reference.agent, data, args.config, state=state)
        for metrics in epochs:
            history.append(metrics)
            halfway.keep(policy, epochs.state(), history, last=len(history) > args.config.n_epochs)
            _say(len(history) - 1, metrics)
        policy.save(args.output)
        print(printable(f"tuned: {args.output}"))
        length = args.preferences.segment_length
        kl, error = trajectory_kl(policy, reference.agent, reference.env, length=length, seed=args.seed)
        print(f"KL(tuned‖reference) of the tuned policy's first {length} steps: {kl:.3f} ± {error:.3f} nats")
        returns = reference.returns(
            {"reference": reference.agent, "tuned": policy}, args.episodes, args.seed, args.max_steps
        )
    record: dict[str, Any] = {"reference": str(args.reference), "tuned": str(args.output), "env": reference.env_id}
    record |= {"seed": args.seed, "preferences": asdict(args.preferences), "config": asdict(args.config)}
    record |= {"n_pairs": len(data), "trajectory_kl_policy_reference": kl, "trajectory_kl_stderr": error}
    with bad_input(prog):
        write(args.json, record | {"history": history, "evaluation": returns})
    halfway.forget()


def _decided(args: Tuning, reference: LoadedAgent) -> dict[str, Any]:
    """Return everything that decides the tuned agent."""
    settings = {"preferences": asdict(args.preferences), "config": asdict(args.config), "seed": args.seed}
    return settings | {"reference": fingerprint(reference.agent), "env": describe(reference.env)}


def _say(epoch: int, metrics: Metrics) -> None:
    """Print one line per epoch."""
    said = [f"{text} {metrics[f'dpo/{name}']:.4f}" for name, text in _SAID.items()]
    print(f"epoch {epoch:>2}: {'  '.join(said)} nats", flush=True)


if __name__ == "__main__":
    as_program(main)
