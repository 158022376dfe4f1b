"""Profile of klrl's time: timers put around its functions from outside, so that the library contains none."""

from __future__ import annotations

import functools
import gc
import time
from collections import defaultdict
from collections.abc import Callable
from importlib import import_module
from typing import Any

from klrl.scripts.benchmarks.ours import make_agent, train
from klrl.scripts.benchmarks.workload import Clock, Job

ENVIRONMENTS = "environments"
# Part of the profile, and what is timed for it: module, then attribute (a method with its class). A function that a
# module imports by name is replaced where it is used. What none of them covers is "other".
TIMED = (
    ("acting", "klrl.agents.learner", "Learner.act"),
    ("acting", "klrl.experience.collector", "OnArrays.__call__"),
    ("storing steps", "klrl.experience", "Collector.collect"),
    ("advantages", "klrl.agents.learner", "Learner.prepare"),
    ("advantages", "klrl.agents.learner", "Learner.advantages"),
    ("minibatch steps", "klrl.agents", "PPO.improve"),
    ("policy gradient, CG", "klrl.agents", "TRPO.improve"),
    ("Fisher products", "klrl.trust_region", "FisherVectorProduct.__call__"),
    ("line search", "klrl.agents.natural_gradient", "line_search"),
    ("critic", "klrl.agents", "TRPO.fit_critic"),
    ("drift, logging", "klrl.agents.learner", "step_zero"),
    ("drift, logging", "klrl.agents.update_batch", "UpdateBatch.explained_variance"),
    ("drift, logging", "klrl.agents.actor_critic", "ActorCritic.check_finite"),
    ("drift, logging", "klrl.agents.learner", "Learner._measure"),
    ("drift, logging", "klrl.agents.training", "TrainingRun._rollout_metrics"),
)
PARTS = tuple(dict.fromkeys([ENVIRONMENTS, *(part for part, _, _ in TIMED), "other"]))


class Timers:
    """Exclusive wall time by part: time in a timed call inside another one counts for the inner one only."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inner: list[float] = []

    def around(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the same function, timed."""

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._inner.append(0.0)
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                total = time.perf_counter() - started
                self.seconds[part] += total - self._inner.pop()
                if self._inner:
                    self._inner[-1] += total

        return timed

    def install(self) -> None:
        """Replace everything in :data:`TIMED`, for the rest of the process."""
        for part, module, path in TIMED:
            *outer, name = path.split(".")
            owner = functools.reduce(getattr, outer, import_module(module))
            setattr(owner, name, self.around(part, getattr(owner, name)))


def profile(job: Job, clock: Clock) -> dict[str, float]:
    """Return shares of wall time by part, over the updates after the warm-up; they add up to 1."""
    from klrl.experience import make_vector_env

    timers = Timers()
    timers.install()
    envs: Any = make_vector_env(job.env, job.workload.n_envs, job.engine)  # type: ignore[arg-type]
    envs.step = timers.around(ENVIRONMENTS, envs.step)

    def update_ended() -> None:
        if clock.warm:
            timers.seconds.clear()

    agent = make_agent(job, envs)
    gc.freeze()  # otherwise torch's occasional 0.1 s of searching all modules would count for any running part
    train(agent, clock, update_ended)
    seconds = timers.seconds | {"other": clock.seconds - sum(timers.seconds.values())}
    return {part: seconds.get(part, 0.0) / clock.seconds for part in PARTS}
