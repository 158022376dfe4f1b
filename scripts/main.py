"""The ``klrl`` command: runs the script of the verb, and imports nothing heavy before."""

from __future__ import annotations

import sys
from importlib import import_module

import klrl
from klrl.output import as_program
from klrl.run.torchrun import ranks

VERBS = {
    "train": "train an agent on a Gymnasium environment and log how far its policy moves",
    "resume": "finish an interrupted training, as if it had not been interrupted",
    "evaluate": "play episodes with a trained agent and report its return",
    "distill": "fit a student's policy to a trained teacher's, by forward or reverse KL",
    "dpo": "tune a trained agent by preferences (DPO), and show what it costs in KL",
    "doctor": "check whether an environment meets klrl's assumptions: spaces, finite numbers, repeatable episodes",
    "benchmark": "reproduce the tables of results: learning curves, measured KL, steps/s",
    "explore-kl": "show what the KL divergence is: one HTML page with charts to move",
    "study": "train variants on environments and seeds, so that nothing is lost; a table, a report",
    "compare": "train variants that differ in one thing: trust regions, agents, any setting",
    "tune": "search over settings with Optuna, for return, KL, or both",
    "report": "write one HTML file about runs and studies: results, learning curves, drift, failures",
    "plot": "draw metrics of runs for a paper: PNG, SVG or PDF",
    "audit": "measure how far saved policies are from each other, klrl's and Stable-Baselines3's",
    "export": "write a trained policy as one graph (ONNX, torch.export), from observations to actions",
    "import-sb3": "make a klrl agent of a policy that Stable-Baselines3 saved",
    "torture": "run the protocol of reliability: kill, damage and deceive klrl (in a checkout)",
}
_ON_RANKS = ("train", "resume")
"""Verbs that several processes under torchrun do together."""


def usage() -> str:
    """Return the text of ``klrl --help``."""
    lines = ["usage: klrl VERB ...    (klrl VERB --help for the options of a verb)", "", "verbs:"]
    lines += [f"  {verb:<12}{text}" for verb, text in VERBS.items()]
    lines += ["", "for example:", "  klrl train ppo --env CartPole-v1 --total-timesteps 50000 --run-dir runs/demo"]
    return "\n".join(
        [*lines, "  klrl resume runs/demo", "  klrl evaluate runs/demo --episodes 20", "  tensorboard --logdir runs"]
    )


def main(argv: list[str] | None = None) -> None:
    """Run ``klrl VERB ...``."""
    words = sys.argv[1:] if argv is None else argv
    if not words or words[0] in ("-h", "--help"):
        print(usage())
        sys.exit(0 if words else 2)
    if words[0] == "--version":
        print(f"klrl {klrl.__version__}")
        sys.exit(0)
    if words[0] not in VERBS:
        print(f"klrl: verb = {words[0]!r}; allowed: {', '.join(VERBS)}", file=sys.stderr)
        sys.exit(2)
    if ranks() > 1 and words[0] not in _ON_RANKS and "--help" not in words:
        print(f"klrl: verb = {words[0]!r} on {ranks()} ranks; allowed: {', '.join(_ON_RANKS)}", file=sys.stderr)
        sys.exit(2)
    try:
        import_module(f"klrl.scripts.{words[0].replace('-', '_')}").main(words[1:])
    except KeyboardInterrupt as error:  # nothing to keep
        print(f"klrl {words[0]}: interrupted", file=sys.stderr)
        sys.exit(128 + getattr(error, "number", 2))  # SIGINT, without its number


def command() -> None:
    """Run ``klrl`` as a program."""
    as_program(main)


if __name__ == "__main__":
    as_program(main)
