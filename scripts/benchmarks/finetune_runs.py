"""Runs of ``klrl benchmark finetune``: the tasks, the ways to learn the new one, their measurements and the table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.envs.classic_control import CartPoleEnv

from klrl.agents import PPO, PPOConfig
from klrl.kl import kl_divergence
from klrl.run import checkpoint, evaluate
from klrl.scripts.cli.terminal import PlainConsole
from klrl.studies.measure import measure
from klrl.studies.work import SAVED as FOLDER
from klrl.studies.work import Work
from klrl.text import cell

if TYPE_CHECKING:
    from klrl.scripts.benchmarks.finetune import Finetune

ENV = "CartPole-v1"
old_task: Callable[[], gym.Env] = partial(gym.make, ENV)
HALF_LENGTH = 0.05
"""Length of the new task's pole, m; CartPole's own is 0.5. Chosen, with the flags' defaults, on seeds 100 and 101."""

SAVED = "saved policy"
EPISODES = 20
"""Episodes of every evaluation."""


def new_task() -> gym.Env:
    """Make CartPole with a pole a tenth as long, of the same mass: it falls faster and turns more with every push."""
    env = gym.make(ENV)
    cart = env.unwrapped
    assert isinstance(cart, CartPoleEnv)
    cart.length, cart.polemass_length = HALF_LENGTH, cart.masspole * HALF_LENGTH
    return env


@dataclass(frozen=True)
class Variant:
    """One way to learn the new task: a line of the table."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Changes to CartPole's preset."""
    from_saved: bool = True
    """True to start from the saved policy."""

    def train(self, saved: Path, total_timesteps: int, seed: int) -> tuple[PPO, dict[str, Any]]:
        """Return the trained agent, and facts about its training."""
        agent = PPO(new_task, PPOConfig.for_env(ENV, reference=str(saved), **self.settings), seed=seed)
        if self.from_saved:
            agent.start_from(PPO.load(saved))
        measured = measure(agent, total_timesteps, new_task)
        found = {key: measured[key] for key in ("updates", "kl_mean", "kl_largest", "steps_per_second")}
        for name, setting in (("kl_reference", "reference_kl"), ("kl_reference_forward", "reference_forward_kl")):
            kl, bound = [row[f"drift/{name}"] for row in agent.history], self.settings.get(setting)
            over = None if bound is None else int(sum(x > bound for x in kl))
            found |= {name: kl[-1], f"{name}_largest": max(kl), f"updates_over_{setting}": over}
        return agent, found


def variants_of(args: Finetune) -> tuple[Variant, ...]:
    """Return the lines of the table, except that of the saved policy."""
    return (
        Variant("new task only, from scratch", from_saved=False),
        Variant("clip"),
        *(
            Variant(f"{region} {x:g}", {"trust_region": region, setting: x})
            for region, setting, values in (
                ("clip+reference-penalty", "reference_coef", args.coefficients),
                ("clip+reference-constraint", "reference_kl", args.bounds),
                ("clip+reference-forward-penalty", "reference_forward_coef", args.forward_coefficients),
                ("clip+reference-forward-constraint", "reference_forward_kl", args.forward_bounds),
            )
            for x in dict.fromkeys(values)
        ),
    )


def prepare(seed: int, total_timesteps: int, folder: Path) -> dict[str, Any]:
    """Train a policy on the old task, save it, and measure it on both."""
    torch.set_num_threads(1)
    agent = PPO(ENV, seed=seed).learn(total_timesteps)
    agent.save(folder / str(seed))
    row = {"variant": SAVED, "settings": {}, "seed": seed, "total_timesteps": total_timesteps}
    return row | _returns(agent)


def fine_tune(variant: Variant, seed: int, total_timesteps: int, folder: Path) -> dict[str, Any]:
    """Train one variant on the new task, and measure it on both."""
    torch.set_num_threads(1)
    agent, way = variant.train(folder / str(seed), total_timesteps, seed)
    row = {
        "variant": variant.name,
        "settings": dict(variant.settings),
        "seed": seed,
        "total_timesteps": total_timesteps,
    }
    return row | _returns(agent) | way | kl_on_the_old_task(agent, PPO.load(folder / str(seed)))


def _returns(agent: PPO) -> dict[str, float]:
    """Return mean returns of :data:`EPISODES` episodes, by task and kind of action."""
    returns = {}
    for task, make in (("new", new_task), ("old", old_task)):
        for kind in ("deterministic", "sampled"):
            with make() as env:
                result = evaluate(agent, env, EPISODES, deterministic=kind == "deterministic", seed=agent.seed)
            returns[f"{task}_{kind}"] = result.mean
    return returns


def kl_on_the_old_task(agent: PPO, saved: PPO) -> dict[str, float]:
    """Return the mean KL(agent||saved), and the other way, in the states of five episodes of the saved policy there.

    No region sees these states; training measures on those of the new task.
    """
    seen: list[np.ndarray] = []

    def keep(observation: np.ndarray) -> np.ndarray:
        seen.append(observation)
        return observation

    with gym.wrappers.TransformObservation(old_task(), keep, None) as env:
        evaluate(saved, env, 5, deterministic=False, seed=saved.seed)
    states = torch.from_numpy(np.stack(seen))
    with torch.no_grad():
        new, old = agent.distribution(states), saved.distribution(states)
        back, forward = (float(kl_divergence(p, q).mean()) for p, q in ((new, old), (old, new)))
    return {"kl_reference_old_task": back, "kl_reference_forward_old_task": forward}


def run(args: Finetune, console: PlainConsole, work: Work) -> list[dict[str, Any]]:
    """Train all saved policies, then all that starts from them; ``processes`` at a time."""
    variants, rows = variants_of(args), []
    folder, seeds = work.folder / FOLDER, tuple(dict.fromkeys(args.seeds))
    old: dict[str, Any] = {"old_timesteps": args.old_timesteps, "old_config": PPOConfig.for_env(ENV).to_json()}
    for seed in seeds:
        work.forget_unless(_is_saved(folder / str(seed)), f"{SAVED} seed {seed}", old | {"seed": seed})
    first = [(f"{SAVED} seed {seed}", old | {"seed": seed}, (seed, args.old_timesteps, folder)) for seed in seeds]
    then = [
        (
            f"{variant.name} seed {seed}",
            old | {"seed": seed, "settings": dict(variant.settings), "new_timesteps": args.new_timesteps},
            (variant, seed, args.new_timesteps, folder),
        )
        for variant in variants
        for seed in seeds
    ]
    for function, calls in ((prepare, first), (fine_tune, then)):
        for row in work.all(function, calls, args.processes):
            rows.append(row)
            console.print(_line(row, len(rows), len(first) + len(then)))
    order = {name: i for i, name in enumerate([SAVED, *(v.name for v in variants)])}
    return sorted(rows, key=lambda r: (order[r["variant"]], r["seed"]))


def _is_saved(path: Path) -> bool:
    try:
        checkpoint.read(path)
    except (OSError, ValueError):
        return False
    return True


def _line(row: Mapping[str, Any], done: int, total: int) -> str:
    line = f"{done}/{total}  {row['variant']} seed {row['seed']}: "
    line += ", ".join(f"{task} task {row[f'{task}_deterministic']:.1f}" for task in ("new", "old"))
    return line + (f", KL to the saved policy {row['kl_reference']:.4f}" if "kl_reference" in row else "")


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a Markdown table with one line per variant: means over seeds, of returns also every seed's."""
    head = ["", "new task", "new task, sampled", "old task", "old task, sampled"]
    both = any("kl_reference_forward" in r for r in rows)
    head += _kl_head("new‖saved") + (_kl_head("saved‖new") if both else []) + ["mean KL of an update"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name in dict.fromkeys(r["variant"] for r in rows):
        group = [r for r in rows if r["variant"] == name]
        cells = [
            _with_seeds([r[f"{t}_{k}"] for r in group]) for t in ("new", "old") for k in ("deterministic", "sampled")
        ]
        kl = _kl_cells(group, "reference_kl") + (_kl_cells(group, "reference_forward_kl") if both else [])
        update = f"{np.mean([r['kl_mean'] for r in group]):.4f}" if "kl_mean" in group[0] else ""
        lines.append(f"| {' | '.join([cell(name), *cells, *kl, update])} |")
    return "\n".join(lines)


def _kl_head(direction: str) -> list[str]:
    return [f"KL({direction})", "largest", "over the bound", "on the old task"]


def _with_seeds(values: Sequence[float]) -> str:
    return f"{np.mean(values):.0f}" + (f" ({', '.join(f'{x:.0f}' for x in values)})" if len(values) > 1 else "")


def _kl_cells(group: Sequence[Mapping[str, Any]], bound: str) -> list[str]:
    """Return cells about a KL from the saved policy: final, largest, number of updates over its bound, on the old task.

    Args:
        group: rows of a variant.
        bound: the setting that bounds this KL.
    """
    name = "kl_reference_forward" if bound == "reference_forward_kl" else "kl_reference"
    if name not in group[0]:
        return [""] * 4
    last, elsewhere = (float(np.mean([r[key] for r in group])) for key in (name, f"{name}_old_task"))
    largest, updates = max(r[f"{name}_largest"] for r in group), sum(r["updates"] for r in group)
    over = [r[f"updates_over_{bound}"] for r in group if r[f"updates_over_{bound}"] is not None]
    outside = f"{sum(over)} of {updates}" if over else ""
    return [f"{last:.3f}", f"{largest:.3f}", outside, f"{elsewhere:.3f}"]
