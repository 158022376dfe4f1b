"""Reproduce the tables and figures of results: ``klrl benchmark WHAT``."""

from __future__ import annotations

import sys
from importlib import import_module

from klrl.output import as_program

WHAT = {
    "learning": "train every task with its preset: returns, measured KL, steps/s",
    "speed": "steps/s and peak memory at equal work, next to other libraries; where klrl's time goes",
    "seeds": "how long many seeds take, some at a time, beside one run of Stable-Baselines3",
    "atari": "games on the same actions by Gymnasium, ale-py's vector and EnvPool (extras atari, envpool)",
    "accuracy": "float32 errors of every family's KL next to torch's formulas, and the cost of a KL",
    "pixels": "DoorKey of MiniGrid and Pong: when they are solved, KL (extras pixels, atari, envpool)",
    "spaces": "PPO and TRPO in every action space: returns, KL asked for and measured",
    "asked": "the KL asked for and the KL measured, in action spaces of every kind and size",
    "critic": "critics that keep their values, or do not, when the scale of rewards changes",
    "finetune": "a saved policy adapted to a changed task: how much KL to it preserves of the old one",
    "ranks": "one training on one and more ranks under torchrun: steps/s, the bound, the cost of gathering",
    "gather": "runs of a study that have ended, from one directory or several, in one small file",
    "scaling": "klrl's cost per step against environments, network width and batch: figures (extra plots)",
}


def main(argv: list[str] | None = None) -> None:
    """Run ``klrl benchmark WHAT``."""
    words = sys.argv[1:] if argv is None else argv
    if words[:1] in (["-h"], ["--help"]):
        lines = ["usage: klrl benchmark WHAT [OPTIONS]    (klrl benchmark WHAT --help lists them)", ""]
        print("\n".join([*lines, *(f"  {name:<10}{text}" for name, text in WHAT.items())]))
        sys.exit(0)
    if not words or words[0] not in WHAT:
        allowed = f"{', '.join(WHAT)} (klrl benchmark WHAT --help lists the options)"
        print(f"klrl benchmark: what = {' '.join(words[:1])!r}; allowed: {allowed}", file=sys.stderr)
        sys.exit(2)
    import_module(f"klrl.scripts.benchmarks.{words[0]}").main(words[1:])


if __name__ == "__main__":
    as_program(main)
