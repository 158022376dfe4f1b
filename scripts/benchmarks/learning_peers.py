"""Other libraries' agents on MuJoCo's tasks, trained as their makers say: ``klrl benchmark learning --peers``."""

from __future__ import annotations

import contextlib
import json
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from klrl.scripts.cli.command_line import bad_input, going_on, parse
from klrl.scripts.cli.terminal import PlainConsole
from klrl.text import plain
from klrl.validation import NonNegativeInt, PositiveInt

PROG = "klrl benchmark learning --peers"
EPISODES = 20
"""Episodes of the evaluation after the training."""
_PACKAGES = ("stable_baselines3", "sb3_contrib")
Settings = Mapping[str, Any]

_WIDE: Settings = {"log_std_init": -2.0, "ortho_init": False, "activation_fn": "ReLU", "net_arch": [256, 256]}
_TUNED: Settings = {"n_envs": 1, "n_steps": 512, "policy_kwargs": _WIDE}
_TRPO: Settings = {
    "n_envs": 2, "n_steps": 1024, "batch_size": 128, "n_critic_updates": 20, "cg_max_steps": 25, "cg_damping": 0.1,
    "learning_rate": 1e-3, "gamma": 0.99, "gae_lambda": 0.95, "target_kl": 0.01,
}  # fmt: skip
SETTINGS: dict[str, dict[str, Settings]] = {
    "PPO": {
        "HalfCheetah": {
            **_TUNED, "batch_size": 64, "n_epochs": 20, "gamma": 0.98, "gae_lambda": 0.92, "learning_rate": 2.0633e-5,
            "ent_coef": 0.000401762, "clip_range": 0.1, "max_grad_norm": 0.8, "vf_coef": 0.58096,
        },
        "Hopper": {
            **_TUNED, "batch_size": 32, "n_epochs": 5, "gamma": 0.999, "gae_lambda": 0.99, "learning_rate": 9.80828e-5,
            "ent_coef": 0.00229519, "clip_range": 0.2, "max_grad_norm": 0.7, "vf_coef": 0.835671,
        },
        "Walker2d": {
            **_TUNED, "batch_size": 32, "n_epochs": 20, "gamma": 0.99, "gae_lambda": 0.95, "learning_rate": 5.05041e-5,
            "ent_coef": 0.000585045, "clip_range": 0.1, "max_grad_norm": 1.0, "vf_coef": 0.871923, "policy_kwargs": {},
        },
        "Ant": {"n_envs": 1},
        "Swimmer": {
            "n_envs": 4, "n_steps": 1024, "batch_size": 256, "gamma": 0.9999, "gae_lambda": 0.98, "learning_rate": 6e-4,
        },
    },
    "TRPO": {
        "HalfCheetah": {**_TRPO, "target_kl": 0.04},
        "Hopper": _TRPO,
        "Walker2d": _TRPO,
        "Ant": _TRPO,
        "Swimmer": {**_TRPO, "gamma": 0.9999},
    },
}  # fmt: skip
"""Settings of RL Baselines3 Zoo (hyperparams/ppo.yml, trpo.yml) by algorithm and task; all have VecNormalize."""
NAMES = {"PPO": "Stable-Baselines3 PPO", "TRPO": "sb3-contrib TRPO"}
"""Lines of the table."""


@dataclass(frozen=True, kw_only=True)
class LearningPeers:
    """Train Stable-Baselines3's PPO and sb3-contrib's TRPO with the settings of RL Baselines3 Zoo; JSON and a table.

    Exact KL(old||new) after every update, returns and learning curves as klrl's own studies have them (extras peers,
    mujoco). Runs that are in OUTPUT are not made again, and klrl benchmark gather reads it.
    """

    peers: bool = True
    """True for these libraries."""
    algorithms: tuple[str, ...] = tuple(SETTINGS)
    """Algorithms."""
    envs: tuple[str, ...] = tuple(f"{task}-v4" for task in SETTINGS["PPO"])
    """Environments."""
    seeds: tuple[NonNegativeInt, ...] = (0, 1, 2)
    """Run seeds; the first of everything comes before any second one."""
    total_timesteps: PositiveInt = 1_000_000
    """Environment steps of each run."""
    processes: PositiveInt = 2
    """Runs at a time, one torch thread each."""
    output: Path = Path("learning-peers.json")
    """File for the record (JSON)."""


@dataclass(frozen=True)
class Job:
    """One run."""

    algorithm: str
    env: str
    seed: int
    total_timesteps: int

    @property
    def settings(self) -> Settings:
        """Settings of its task."""
        return SETTINGS[self.algorithm][self.env.rpartition("-v")[0]]

    def identity(self) -> dict[str, Any]:
        """Return what decides its result, as rows of studies have it."""
        return {
            "env": self.env,
            "variant": NAMES[self.algorithm],
            "agent": self.algorithm.lower(),
            "seed": self.seed,
            "total_timesteps": self.total_timesteps,
            "config": json.loads(json.dumps(dict(self.settings))),
        }


def run(job: Job) -> dict[str, Any]:
    """Train with the callbacks that measure, evaluate, and return the row."""
    import torch

    from klrl.integrations.sb3 import DriftCallback
    from klrl.run.directory import versions
    from klrl.studies.gathered import compact
    from klrl.studies.outcomes import movement_of, peak_memory

    torch.set_num_threads(1)
    envs, model = _made(job)
    drift, episodes = DriftCallback(verbose=0), _episodes()
    began = time.perf_counter()
    model.learn(job.total_timesteps, [drift, episodes])
    seconds = time.perf_counter() - began
    last = [x for steps, x in episodes.returns if steps > 0.9 * model.num_timesteps]
    found = {
        **movement_of([{"rollout/ep_rew_mean": float("nan"), **row} for row in drift.history]),
        **_evaluated(job, model, envs),
        "last_tenth_return": float(np.mean(last)) if last else None,
        "last_tenth_episodes": len(last),
        "num_timesteps": model.num_timesteps,
        "steps_per_second": model.num_timesteps / seconds,
        "peak_memory_mib": peak_memory(),
    }
    envs.close()
    return compact(job.identity() | {"versions": versions(_PACKAGES), "status": "done", "error": None, **found})


def _made(job: Job) -> tuple[Any, Any]:
    """Return normalised environments and the untrained model."""
    import sb3_contrib
    import stable_baselines3
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import VecNormalize
    from torch import nn

    settings = dict(job.settings)
    policy = dict(settings.pop("policy_kwargs", {}))
    if "activation_fn" in policy:
        policy["activation_fn"] = getattr(nn, policy["activation_fn"])
    envs = make_vec_env(job.env, settings.pop("n_envs"), seed=job.seed)
    envs = VecNormalize(envs, gamma=settings.get("gamma", 0.99))
    make: Any = getattr(stable_baselines3 if job.algorithm == "PPO" else sb3_contrib, job.algorithm)
    return envs, make("MlpPolicy", envs, policy_kwargs=policy, seed=job.seed, device="cpu", **settings)


def _episodes() -> Any:
    """Return a callback that keeps the return of every episode, by the step at which it ended."""
    from stable_baselines3.common.callbacks import BaseCallback

    class Episodes(BaseCallback):
        def __init__(self) -> None:
            super().__init__()
            self.returns: list[tuple[int, float]] = []

        def _on_step(self) -> bool:
            ended = [info["episode"]["r"] for info in self.locals["infos"] if "episode" in info]
            self.returns += [(self.num_timesteps, float(x)) for x in ended]
            return True

    return Episodes()


def _evaluated(job: Job, model: Any, envs: Any) -> dict[str, float]:
    """Return what the trained policy's most probable actions reach, with the training's statistics."""
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.evaluation import evaluate_policy
    from stable_baselines3.common.vec_env import VecNormalize

    one = VecNormalize(make_vec_env(job.env, 1, seed=10_000 + job.seed), training=False, norm_reward=False)
    one.obs_rms = envs.obs_rms
    found, _ = evaluate_policy(model, one, EPISODES, deterministic=True, return_episode_rewards=True)
    one.close()
    return {"mean_return": float(np.mean(found)), "std_return": float(np.std(found))}


def main(words: list[str]) -> None:
    """Run ``klrl benchmark learning --peers``."""
    args = parse(LearningPeers, words, PROG)
    from klrl.studies.gathered import gather
    from klrl.studies.report import table
    from klrl.studies.results import claim

    console = PlainConsole()
    with bad_input(PROG):
        jobs = _jobs(args)
        args.output.parent.mkdir(parents=True, exist_ok=True)
        claim(args.output)
        rows = gather([args.output]) if args.output.exists() else []
        left = _left(args.output, jobs, rows)
    if len(left) < len(jobs):
        console.print(f"{len(jobs) - len(left)} of {len(jobs)} runs are in {args.output} already")
    with going_on(PROG, args.output, "runs"):
        rows = _all(args, left, rows, f"klrl benchmark learning {shlex.join(words)}", console)
    console.print(table(rows))


def _jobs(args: LearningPeers) -> list[Job]:
    """Return all runs, seed by seed.

    Raises:
        ValueError: an unknown algorithm or environment, or a library is not installed.
    """
    from importlib.util import find_spec

    for algorithm in (x for x in args.algorithms if x not in SETTINGS):
        raise ValueError(f"algorithms = {algorithm!r}; allowed: {', '.join(SETTINGS)}")
    tasks = [*dict.fromkeys(task for of in SETTINGS.values() for task in of)]
    for env in (env for env in args.envs if env.rpartition("-v")[0] not in tasks):
        raise ValueError(f"envs = {env!r}; allowed: versions of {', '.join(tasks)}")
    for package in (package for package in _PACKAGES if find_spec(package) is None):
        raise ValueError(f"peers = True, and {package} is not installed; allowed: pip install 'klrl[peers]'")
    return [
        Job(algorithm, env, seed, args.total_timesteps)
        for seed in args.seeds
        for env in args.envs
        for algorithm in args.algorithms
    ]


def _name(row: Mapping[str, Any]) -> tuple[str, str, int]:
    return row["env"], row["variant"], row["seed"]


def _left(output: Path, jobs: Sequence[Job], rows: Sequence[Mapping[str, Any]]) -> list[Job]:
    """Return the runs that the record lacks.

    Raises:
        ValueError: it has runs of other settings.
    """
    done = {_name(row): row for row in rows}
    wanted = {(job.env, NAMES[job.algorithm]): job.identity() for job in jobs}
    for row in rows:
        mine = wanted.get((row["env"], row["variant"]), row)
        for name in (name for name in ("total_timesteps", "config") if row[name] != mine[name]):
            said = f"{name} = {plain(row[name], 80)}, not {plain(mine[name], 80)}"
            raise ValueError(f"output = {output} has {row['env']} {row['variant']} with {said}; allowed: a new file")
    return [job for job in jobs if _name(job.identity()) not in done]


def _all(
    args: LearningPeers, jobs: Sequence[Job], rows: list[dict[str, Any]], command: str, console: PlainConsole
) -> list[dict[str, Any]]:
    """Make the runs; the record is written anew, in one step, after each."""
    from klrl.studies.gathered import text
    from klrl.studies.parallel import in_parallel
    from klrl.studies.results import write

    with contextlib.closing(in_parallel(run, [(job,) for job in jobs], args.processes)) as results:
        for n, row in enumerate(results, 1):
            rows = sorted([*rows, row], key=_name)
            write(args.output, text(command, rows))
            said = f"return {row['mean_return']:.1f}, KL mean {row['kl_mean']:.4f} largest {row['kl_largest']:.4f}"
            console.print(f"{n}/{len(jobs)}  {row['env']} {row['variant']} seed {row['seed']}: {said}")
    return rows
