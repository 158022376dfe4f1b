"""One measurement of speed in a process of its own: reads a job as JSON from its first argument, prints the result.

``klrl benchmark speed`` starts one such process after the other; what a library imports, it imports here.
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
    """Something whose steps/s are measured."""

    run: Callable[[Job, Clock], None]
    package: str = "klrl"
    """What must be installed, by its name in Python."""
    algorithms: tuple[str, ...] = ("ppo", "trpo")
    engines: tuple[str, ...] = ("sync",)
    differs: str = ""
    """What is not the same work as klrl's."""


def klrl(job: Job, clock: Clock) -> None:
    """Klrl's own agents, drift report and all metrics included."""
    train(make_agent(job, job.env), clock)


def environments_alone(job: Job, clock: Clock) -> None:
    """The bound: nothing but stepping, with random actions that are drawn before; steps to reset do not count."""
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
    """Gymnasium's synchronous vector environment in the mode that klrl uses, or EnvPool's."""
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
    "cleanrl": Library(
        peers.cleanrl, "tyro", ("ppo",), differs="normalises advantages per minibatch; writes TensorBoard events"
    ),
    "tianshou": Library(
        peers.tianshou,
        "tianshou",
        differs="PPO normalises advantages per minibatch; TRPO's critic takes one step per pass, on the whole batch",
    ),
}
"""Every library by the name of its row; the last ones can be left out of an installation."""


def peak_mib() -> float:
    """The most memory this process has held, MiB.

    Linux's getrusage also counts what the process was before ``exec``, a copy of the one that started it.
    """
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def measure(job: Job) -> dict[str, Any]:
    """Run the job in this process."""
    if sys.platform == "linux":  # EnvPool starts a thread for every core it may run on
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-job.workload.threads :])
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
    result = {"steps": clock.steps, "seconds": clock.seconds, "steps_per_second": clock.steps / clock.seconds}
    return result | {"peak_mib": peak_mib()} | ({"shares": shares} if job.profile else {})


def main(argv: list[str] | None = None) -> None:
    """Measure the job in the first argument; the result is the last line of output."""
    (text,) = sys.argv[1:] if argv is None else argv
    print(json.dumps(measure(Job.from_json(json.loads(text)))))


if __name__ == "__main__":
    main()
