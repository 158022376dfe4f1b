"""The KL asked for, logged and measured, in other libraries and in klrl: ``klrl benchmark asked --peers``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from klrl.scripts.cli.command_line import bad_input, going_on, parse
from klrl.scripts.cli.terminal import PlainConsole
from klrl.text import cell
from klrl.validation import NonNegativeInt, Positive, PositiveInt

PROG = "klrl benchmark asked --peers"
ENVS = ("Hopper-v5", "HalfCheetah-v5", "Humanoid-v5", "CartPole-v1")
_NORMALIZED = ENVS[:3]
"""Environments with VecNormalize, as one trains them with Stable-Baselines3."""
_PACKAGES = ("stable_baselines3", "sb3_contrib")


@dataclass(frozen=True)
class Trained:
    """A library's algorithm with its defaults, asked for a KL."""

    name: str
    """Label in the table."""
    train: Callable[[Trained, str, int, int, float], Mapping[str, Any]]
    """Trains in an environment with a seed for so many steps, asked for so many nats, and returns the row's numbers."""
    algorithm: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Changes to the defaults."""
    envs: tuple[str, ...] = ENVS
    n_envs: int = 1


def _peer(trained: Trained, env: str, seed: int, total_timesteps: int, target_kl: float) -> dict[str, Any]:
    """Train another library's algorithm with the callback that measures it."""
    import sb3_contrib
    import stable_baselines3
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import VecNormalize

    from klrl.integrations.sb3 import LOGGED, DriftCallback

    library = stable_baselines3 if hasattr(stable_baselines3, trained.algorithm) else sb3_contrib
    envs: Any = make_vec_env(env, trained.n_envs, seed=seed)
    envs = VecNormalize(envs) if env in _NORMALIZED else envs
    policy = "MlpLstmPolicy" if trained.algorithm == "RecurrentPPO" else "MlpPolicy"
    make: Any = getattr(library, trained.algorithm)
    drift = DriftCallback(verbose=0)
    make(policy, envs, target_kl=target_kl, seed=seed, device="cpu", **trained.settings).learn(total_timesteps, drift)
    envs.close()
    (name,) = (name for name in LOGGED if name in drift.history[-1])
    return _numbers(drift.history, target_kl, name) | {"logged_as": name}


def _klrl(trained: Trained, env: str, seed: int, total_timesteps: int, target_kl: float) -> dict[str, Any]:
    """Train one of klrl's agents, which log what is measured."""
    from klrl.agents import AGENTS

    agent = AGENTS[trained.algorithm]
    config = agent.config_class(target_kl=target_kl, **trained.settings)
    return _numbers(agent(env, config, seed=seed).learn(total_timesteps).history, target_kl, "drift/kl")


def _numbers(history: Sequence[Mapping[str, Any]], target_kl: float, logged: str) -> dict[str, Any]:
    kl, said = ([_short(row[name]) for row in history] for name in ("drift/kl", logged))
    return {
        "updates": len(kl),
        "target_kl": target_kl,
        "kl": kl,
        "logged": said,
        "kl_total": [_short(row["drift/kl_total"]) for row in history if "drift/kl_total" in row],
        "start_ratio_error": max(_short(row["drift/start_ratio_error"]) for row in history),
    }


def _short(x: Any) -> float:
    return float(f"{float(x):.6g}")


_FAST = {"learning_rate": 1e-3}
TRAINED = (
    Trained("sb3-contrib TRPO", _peer, "TRPO"),
    Trained("Stable-Baselines3 PPO", _peer, "PPO"),
    Trained("Stable-Baselines3 PPO, learning rate 1e-3", _peer, "PPO", _FAST, ("CartPole-v1",)),
    Trained(
        "sb3-contrib RecurrentPPO, learning rate 1e-3",
        _peer,
        "RecurrentPPO",
        {**_FAST, "n_steps": 512},
        ("CartPole-v1",),
        n_envs=2,
    ),
    Trained("klrl TRPO", _klrl, "trpo"),
    Trained("klrl PPO, clip+constraint", _klrl, "ppo", {"trust_region": "clip+constraint"}),
)


@dataclass(frozen=True, kw_only=True)
class AskedPeers:
    """Train other libraries' algorithms and klrl's with their defaults, asked for the same KL; JSON and a table.

    Exact KL(old||new) on the whole batch after every update, measured alike in all (extra peers, and mujoco). Every
    update takes 2,048 steps (RecurrentPPO: 1,024); MuJoCo's tasks have VecNormalize, klrl's own normaliser in klrl.
    """

    peers: bool = True
    """True for this comparison."""
    seeds: tuple[NonNegativeInt, ...] = (0, 1, 2)
    """Run seeds."""
    envs: tuple[str, ...] = ENVS
    """Environments."""
    total_timesteps: PositiveInt = 50_000
    """Environment steps of each run."""
    target_kl: Positive = 0.01
    """KL that every algorithm is asked for, nats."""
    processes: PositiveInt = 2
    """Runs at a time, one torch thread each."""
    output: Path = Path("asked-peers.json")
    """File for the measurements (JSON)."""


def run(name: str, env: str, seed: int, total_timesteps: int, target_kl: float) -> dict[str, Any]:
    """Train one line of the table in an environment with a seed, and return its row."""
    import torch

    torch.set_num_threads(1)
    (trained,) = (trained for trained in TRAINED if trained.name == name)
    row = {"trained": name, "settings": dict(trained.settings), "env": env, "seed": seed}
    return {**row, "total_timesteps": total_timesteps, **trained.train(trained, env, seed, total_timesteps, target_kl)}


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what the runs of one line did: means, largest, and shares of updates over what was asked for."""
    kl, logged = ([x for row in rows for x in row[name]] for name in ("kl", "logged"))
    target = rows[0]["target_kl"]
    both = [(x, y) for x, y in zip(kl, logged, strict=True) if y > 0.0]
    return {
        "updates": len(kl),
        "logged_mean": float(np.mean(logged)),
        "logged_largest": max(logged),
        "kl_mean": float(np.mean(kl)),
        "kl_largest": max(kl),
        "times_logged": float(np.median([x / y for x, y in both])),
        "over": float(np.mean([x > target for x in kl])),
        "logged_over": float(np.mean([x > target for x in logged])),
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a Markdown table with one line per environment and algorithm, over all seeds."""
    head = ["environment", "trained with", "updates", "logged KL, mean (largest)", "measured KL, mean (largest)"]
    head += ["measured / logged, median", "updates over what was asked for"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for env, trained in dict.fromkeys((row["env"], row["trained"]) for row in rows):
        group = [row for row in rows if (row["env"], row["trained"]) == (env, trained)]
        x = summary(group)
        cells = [
            env,
            trained,
            f"{x['updates']:,}",
            f"{x['logged_mean']:.4f} ({x['logged_largest']:.4f})",
            f"{x['kl_mean']:.4f} ({x['kl_largest']:.4f})",
            f"{x['times_logged']:.2f}",
            f"{x['over']:.0%} over {group[0]['target_kl']:g}",
        ]
        lines.append(f"| {' | '.join(map(cell, cells))} |")
    return "\n".join(lines)


def main(words: list[str]) -> None:
    """Run ``klrl benchmark asked --peers``."""
    args = parse(AskedPeers, words, PROG)
    from klrl.run.directory import versions
    from klrl.studies.results import text
    from klrl.studies.work import Work

    console = PlainConsole()
    command = " ".join(["klrl benchmark asked", *words])
    work = Work(args.output, command, versions(_PACKAGES), console.print)
    with bad_input(PROG):
        for env in (env for env in args.envs if env not in ENVS):
            raise ValueError(f"envs = {env!r}; allowed: {', '.join(ENVS)}")
        _check_installed()
        work.claim()
    with going_on(PROG, work.folder):
        if (record := work.finished()) is None:
            record = work.save(text(work.command, _all(args, console, work), _PACKAGES))
    console.print(table(record["rows"]))


def _check_installed() -> None:
    from importlib.util import find_spec

    for package in (package for package in _PACKAGES if find_spec(package) is None):
        raise ValueError(f"peers = True, and {package} is not installed; allowed: pip install 'klrl[peers]'")


def _all(args: AskedPeers, console: PlainConsole, work: Any) -> list[dict[str, Any]]:
    """Run everything that is not finished already, and return the rows in the order of the table."""
    jobs = []
    for env in args.envs:
        for trained in (trained for trained in TRAINED if env in trained.envs):
            for seed in args.seeds:
                call = (trained.name, env, seed, args.total_timesteps, args.target_kl)
                of = {"call": [*call], "settings": dict(trained.settings), "n_envs": trained.n_envs}
                jobs.append((f"{trained.name} {env} seed {seed}", of, call))
    rows: list[dict[str, Any]] = []
    for row in work.all(run, jobs, args.processes):
        rows.append(row)
        said = f"logged {np.mean(row['logged']):.4f}, measured {np.mean(row['kl']):.4f} largest {max(row['kl']):.4f}"
        console.print(f"{len(rows)}/{len(jobs)}  {row['trained']} {row['env']} seed {row['seed']}: {said}")
    order = {call[:3]: i for i, (_, _, call) in enumerate(jobs)}
    return sorted(rows, key=lambda row: order[row["trained"], row["env"], row["seed"]])
