"""One measurement of speed in its own process: reads a job as JSON from its first argument, prints the result.

``klrl benchmark speed`` starts one such process after another; each library is imported only here.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from klrl.scripts.benchmarks import peers
from klrl.scripts.benchmarks.ours import make_agent, train
from klrl.scripts.benchmarks.workload import Clock, Job


@dataclass(frozen=True)
class Library:
    """A library whose steps/s are measured."""

    run: Callable[[Job, Clock], None]
    package: str = "klrl"
    """Package that must be installed, by its import name."""
    algorithms: tuple[str, ...] = ("ppo", "trpo")
    engines: tuple[str, ...] = ("sync",)
    differs: str = ""
    """Differences from klrl's work."""


def klrl(job: Job, clock: Clock) -> None:
    """Run klrl's own agents, with the drift report and all metrics."""
    train(make_agent(job, job.env), clock)


def environments_alone(job: Job, clock: Clock) -> None:
    """Step the environments only, with random actions drawn before: the bound. Steps that reset do not count."""
    import gymnasium as gym
    import numpy as np

    envs = vector_env(job)
    space = envs.single_action_space
    space.seed(job.seed)
    w = job.workload
    actions = np.array([[space.sample() for _ in range(w.n_envs)] for _ in range(w.n_steps)])
    envs.reset(seed=job.seed)
    resets_by_step = envs.metadata["autoreset_mode"] is gym.vector.AutoresetMode.NEXT_STEP
    for _ in range(w.warm_up + w.updates):
        lost = 0
        for action in actions:
            _, _, terminated, truncated, _ = envs.step(action)
            lost += int(np.count_nonzero(terminated | truncated))
        clock(w.steps_per_update - lost * resets_by_step)
    envs.close()


def vector_env(job: Job) -> Any:
    """Make Gymnasium's synchronous vector environment in klrl's mode, or EnvPool's."""
    if job.engine == "envpool":
        return peers.envpool(job)
    import gymnasium as gym

    mode = {"autoreset_mode": gym.vector.AutoresetMode.SAME_STEP}
    return gym.make_vec(job.env, job.workload.n_envs, vectorization_mode=job.engine, vector_kwargs=mode)


BOUND = "environments alone"
LIBRARIES = {
    BOUND: Library(environments_alone, "gymnasium", ("",), ("sync", "envpool")),
    "klrl": Library(klrl, engines=("sync", "envpool")),
    "stable-baselines3": Library(
        peers.stable_baselines3, "stable_baselines3", ("ppo",), differs="normalises advantages per minibatch; Monitor"
    ),
    "sb3-contrib": Library(
        peers.sb3_contrib, "sb3_contrib", ("trpo",), differs="absolute tolerance of CG; critic's gradients not limited"
    ),
    "sbx": Library(peers.sbx, "sbx", ("ppo",), differs="in JAX, float32; normalises advantages per minibatch; Monitor"),
    "cleanrl": Library(
        peers.cleanrl, "tyro", ("ppo",), differs="normalises advantages per minibatch; writes TensorBoard events"
    ),
    "tianshou": Library(
        peers.tianshou,
        "tianshou",
        differs="PPO normalises advantages per minibatch; TRPO's critic takes one step per pass, on the whole batch",
    ),
}
"""Libraries by the names of their rows; the last ones are optional."""


def peak_mib() -> float:
    """Return the most memory that this process has held, MiB.

    Linux's getrusage also counts what the process was before ``exec``, a copy of the one that started it.
    """
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def rates(result: dict[str, Any]) -> dict[str, float]:
    """Return steps per second of wall time and of CPU time."""
    per = {"steps_per_second": "seconds", "steps_per_cpu_second": "cpu_seconds"}
    return {name: result["steps"] / result[time] for name, time in per.items()}


def measure(job: Job) -> dict[str, Any]:
    """Run a job in this process."""
    if sys.platform == "linux":  # EnvPool starts a thread for every core it may run on
        cores = sorted(os.sched_getaffinity(0), reverse=True)[job.workload.threads * job.place :]
        os.sched_setaffinity(0, cores[: job.workload.threads])
    clock = Clock(job.workload)
    shares: dict[str, float] = {}
    if job.library != BOUND:
        import torch

        torch.set_num_threads(job.workload.threads)
    if job.profile:
        from klrl.scripts.benchmarks.timers import profile

        shares = profile(job, clock)
    else:
        LIBRARIES[job.library].run(job, clock)
    result = {"steps": clock.steps, "seconds": clock.seconds, "cpu_seconds": clock.cpu_seconds}
    return result | rates(result) | {"peak_mib": peak_mib()} | ({"shares": shares} if job.profile else {})


def main(argv: list[str] | None = None) -> None:
    """Measure the job in the first argument; the result is the last line of output."""
    (text,) = sys.argv[1:] if argv is None else argv
    print(json.dumps(measure(Job.from_json(json.loads(text)))))


if __name__ == "__main__":
    main()
