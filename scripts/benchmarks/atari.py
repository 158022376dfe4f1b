"""Games on the same actions by Gymnasium, ale-py's vector and EnvPool: ``klrl benchmark atari``."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from klrl.output import as_program
from klrl.scripts.benchmarks.speed_report import machine, markdown
from klrl.scripts.cli.command_line import bad_input, ended_early, parse
from klrl.validation import NonNegativeInt, PositiveInt, validate

ENGINES = {"vector_entry_point": "ale-py's vector", "envpool": "EnvPool"}
"""Engines that are compared with Gymnasium's wrappers."""
NO_OPS = {"vector_entry_point": 0, "envpool": 1}
"""No-ops after the reset: EnvPool makes at least one."""


@dataclass(frozen=True, kw_only=True)
class Atari:
    """Play games on the same random actions, without actions that stick, in Gymnasium's wrappers and the other engines.

    Reports in how far images, rewards, lives and ends of games agree. Prints Markdown, writes JSON.
    """

    games: tuple[str, ...] = ("Pong", "Breakout", "Qbert", "SpaceInvaders")
    """Games, as in ALE/NAME-v5."""
    steps: PositiveInt = 1_000
    """Most steps of each; a game is played to its end at most."""
    seed: NonNegativeInt = 0
    """Seed of the actions."""
    output: Path = Path("atari.json")
    """File for the comparisons (JSON)."""

    def __post_init__(self) -> None:
        validate(self)


def compare(game: str, mode: str, steps: int, seed: int) -> dict[str, Any]:
    """Play a game in Gymnasium's wrappers and in another engine until it ends in one of them."""
    from klrl.experience import make_vector_env
    from klrl.experience.atari import spec_of

    spec = spec_of(f"ALE/{game}-v5")
    spec.kwargs |= {"repeat_action_probability": 0.0, "noop_max": NO_OPS[mode]}
    ours, theirs = make_vector_env(spec, 1), make_vector_env(spec, 1, mode)  # type: ignore[arg-type]
    rng = np.random.default_rng(seed)
    actions = rng.integers(0, ours.single_action_space.n, steps)  # type: ignore[attr-defined]
    one, other = ours.reset(seed=seed)[0], theirs.reset(seed=seed)[0]
    pixels, largest, equal = [_differing(one, other)], 0, 0
    returns, seconds = [0.0, 0.0], [0.0, 0.0]
    first: dict[str, int | None] = {"pixels": None, "reward": None, "lives": None, "end": None}
    for t, action in enumerate(actions.tolist()):
        answers = []
        for i, envs in enumerate((ours, theirs)):
            begin = time.process_time()
            answers.append(envs.step(np.array([action])))
            seconds[i] += time.process_time() - begin
        ended = [bool(a[2][0] or a[3][0]) for a in answers]
        rewards = [float(a[1][0]) for a in answers]
        returns = [total + reward for total, reward in zip(returns, rewards, strict=True)]
        lives = [_lives(answers[0][4]), _lives(answers[1][4])]
        if not any(ended):
            share = _differing(answers[0][0], answers[1][0])
            pixels.append(share)
            largest = max(largest, int(np.abs(answers[0][0].astype(int) - answers[1][0]).max()))
            equal += share == 0.0
        seen = {"pixels": pixels[-1] > 0.0, "reward": rewards[0] != rewards[1], "end": ended[0] != ended[1]}
        seen["lives"] = lives[0] != lives[1] and not any(ended)
        for name, differs in seen.items():
            if differs and first[name] is None:
                first[name] = t
        if any(ended):
            break
    ours.close()
    theirs.close()
    return {
        "game": game, "engine": mode, "no_ops": NO_OPS[mode], "steps": t + 1, "equal_images": equal,
        "images": len(pixels) - 1, "mean_share_of_pixels": float(np.mean(pixels)), "largest_difference": largest,
        "first_difference": first, "returns": returns, "ended": ended,
        "cpu_microseconds_per_step": [1e6 * s / (t + 1) for s in seconds],
    }  # fmt: skip


def _differing(a: np.ndarray, b: np.ndarray) -> float:
    return float((a != b).mean())


def _lives(infos: Any) -> int:
    """Lives in the infos of one environment, of any engine."""
    return int(infos[0]["lives"] if not isinstance(infos, dict) else infos["lives"][0])


def table(rows: list[dict[str, Any]]) -> str:
    """Return the comparisons as Markdown."""
    head = ["game", "engine", "equal images", "pixels that differ", "first reward that differs"]
    head += ["return: Gymnasium, engine", "ended: Gymnasium, engine", "CPU microseconds per step: Gymnasium, engine"]
    body = [
        [
            row["game"],
            ENGINES[row["engine"]],
            f"{row['equal_images']:,} of {row['images']:,}",
            f"{row['mean_share_of_pixels']:.2%}",
            "none" if (t := row["first_difference"]["reward"]) is None else f"step {t:,}",
            "{:g}, {:g}".format(*row["returns"]),
            ", ".join("yes" if x else "no" for x in row["ended"]),
            "{:,.0f}, {:,.0f}".format(*row["cpu_microseconds_per_step"]),
        ]
        for row in rows
    ]
    return markdown([head, *body])


def main(argv: list[str] | None = None) -> None:
    """Run ``klrl benchmark atari``."""
    words = sys.argv[1:] if argv is None else argv
    prog = "klrl benchmark atari"
    args = parse(Atari, words, prog)
    from klrl.experience.environments import check_id
    from klrl.run.directory import versions
    from klrl.studies import results

    with bad_input(prog):
        for game in args.games:
            check_id(f"ALE/{game}-v5")
        results.claim(args.output, "json")
    with bad_input(prog), ended_early(prog):
        rows = [compare(game, mode, args.steps, args.seed) for game in args.games for mode in ENGINES]
    record = {
        "command": " ".join([prog, *words]),
        "settings": asdict(args) | {"output": str(args.output)},
        "versions": versions(("opencv-python-headless",)),
        "machine": machine(),
        "rows": rows,
    }
    results.write(args.output, json.dumps(record, indent=1) + "\n")
    print(f"\n{table(rows)}")


if __name__ == "__main__":
    as_program(main)
