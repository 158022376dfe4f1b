"""Tuning of a saved agent by preferences (``klrl dpo``)."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch

from klrl.agents import collect_preferences, load_agent
from klrl.agents.dpo import dpo_epochs, trajectory_kl
from klrl.experience.environments import describe
from klrl.run.callback import Metrics
from klrl.scripts.cli.command_line import bad_input
from klrl.scripts.cli.halfway import Halfway, fingerprint
from klrl.scripts.cli.saved_agents import LoadedAgent, claim, working, write
from klrl.text import printable

if TYPE_CHECKING:
    from klrl.scripts.dpo import Tuning

_SAID = {
    "loss": "loss",
    "accuracy": "accuracy",
    "margin": "reward margin",
    "reward_preferred": "of the preferred",
    "reward_other": "of the other",
    "kl_policy_reference": "KL(π‖ref)",
    "kl_reference_policy": "KL(ref‖π)",
    "trajectory_kl_reference_policy": "along a segment",
}


def fit_policy(prog: str, args: Tuning) -> None:
    """Fit the policy to preferences, save it, and let it and its reference play."""
    torch.set_num_threads(1)
    with bad_input(prog):
        reference = LoadedAgent.load(args.reference, args.env, network=args.network)
        network = reference.agent.config.network
        policy = load_agent(args.reference, network=network)
        halfway = Halfway(args.output, _decided(args, reference), network)
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
