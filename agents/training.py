"""Training run: rollouts and updates until its last step, and the way back to the last complete update."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from klrl.agents import saving, shown
from klrl.agents.acting import acting
from klrl.agents.saving import Training
from klrl.agents.turns import Turn
from klrl.agents.update_batch import overflow
from klrl.experience import Batch
from klrl.experience.batch import warn_of_absent
from klrl.experience.collector import Act, OnArrays
from klrl.experience.rollout import NonFinite
from klrl.interrupts import held
from klrl.run.callback import NEXT_KL, STEP, Callback, Metrics, info_metric
from klrl.run.world import World
from klrl.text import warn_user

if TYPE_CHECKING:
    from klrl.agents.base import Agent

RANKS = "train/ranks_differing"
"""Metric of a training on several ranks that goes on when these differ."""


class TrainingRun:
    """One call of ``learn`` or ``resume``.

    Args:
        agent: the agent that learns.
        training: its first and last step.
        callback: is told of every event.
        turn: records when the agent is between updates.
    """

    def __init__(self, agent: Agent[Any], training: Training, callback: Callback, turn: Turn) -> None:
        self._agent, self._training, self._callback, self._turn = agent, training, callback, turn
        self._first, self._started = agent.num_timesteps, time.monotonic()
        self._world = World.current()

    def finish(self) -> None:
        """Run whole updates until the last step, or until a callback stops.

        If an exception ends it, Ctrl-C included, the agent returns to its state after the last complete update.
        """
        agent, callback, turn, world = self._agent, self._callback, self._turn, self._world
        failed: BaseException | None = None
        if agent.num_timesteps == 0 and agent.actor.caution:
            warn_user(agent.actor.caution)
        try:
            agent.collector()
            agent.training = self._training
            agent.networks.repack()
            agent.sampler.share = world.acting_share(agent.config.n_envs)
            self._agree()
            agent.last_update = agent.snapshot()
            goes_on = not world.any(callback.on_training_start(agent, self._training.last) is False)
            while goes_on and agent.num_timesteps < self._training.last:
                turn.whole = False
                agent.progress_remaining = self._training.remaining(agent.num_timesteps)
                batch = self._rollout()
                self._judge(batch)
                callback.on_update_start(agent, batch)
                metrics = agent.update(batch, callback) | self._agree()
                if batch.episodes and not agent.episodes:
                    warn_of_absent(agent.config.info_keys, batch)
                agent.episodes.extend(batch.episodes)
                metrics = self._rollout_metrics() | metrics | {NEXT_KL: math.nan}
                agent.history.append(metrics)
                turn.whole = True
                agent.last_update = agent.snapshot()
                goes_on = not world.any(callback.on_update_end(agent, batch, metrics) is False)
        except BaseException as error:
            failed = error
            world.fail(error)
            try:
                self._take_back()
            except Exception as problem:  # the first error is the one to report
                error.add_note(f"the agent could not be taken back to its last complete update: {problem}")
            else:
                if isinstance(error, KeyboardInterrupt):
                    shown.in_one_line(error, agent)
            turn.whole = turn.last = True
            if isinstance(error, Exception):
                callback.on_error(agent, error)
            raise
        finally:
            turn.last = True
            agent.sampler.share = None
            with held():  # a signal ends no callback before it has closed its files
                callback.on_training_end(agent)
                world.leave(failed)

    def _agree(self) -> Metrics:
        """Compare parameters, statistics and generators on all ranks, and return what is to be logged of it.

        Raises:
            Diverged: they differ, and are not to be rank 0's from now on.
        """
        agent, world = self._agent, self._world
        when = f"after update {agent.n_updates} at {agent.num_timesteps} steps"
        others = world.differing(saving.essence(agent), when)
        if others:
            tensors, state = world.saved_by_first(lambda: saving.dump(agent))
            if world.rank > 0:
                saving.become(agent, tensors, state)
        return {RANKS: float(len(others))} if world.size > 1 and world.on_divergence == "broadcast" else {}

    def _rollout(self) -> Batch:
        """Collect the next batch, from where the last one left the environments.

        If the policy's action is not finite, the exception also says why.
        """
        agent = self._agent
        agent.networks.repack()
        agent.training_envs.undo_others()
        agent.collector()
        try:
            with agent.sampler.ahead(agent.config.n_steps):
                act = self._world.watched(acting(agent))
                return self._collected(act)
        except NonFinite as error:
            seen = error.transition
            if "action" in seen and not np.isfinite(seen["action"]).all():
                policy = agent.distribution(torch.from_numpy(seen["observation"]))
                error.args = (": ".join(filter(None, [str(error), overflow(policy, agent.ent_coef)])),)
            raise

    def _collected(self, act: Act | OnArrays) -> Batch:
        agent = self._agent
        settings = agent.config.n_steps, agent.config.info_keys
        acted = None if agent.image_passes is None else agent.image_passes.begin_to_act(agent)
        if acted is None:
            return agent.training_envs.collect(act, *settings)
        batch = agent.training_envs.collect(act, *settings, acted.values)
        acted.collected(batch)
        return batch

    def _judge(self, batch: Batch) -> None:
        """Complete the row of the last update by what the rollout tells of it."""
        agent, kl = self._agent, self._agent.kl_on_next_states(batch)
        if kl == kl and agent.history and agent.history[-1].get(STEP) == agent.num_timesteps:
            assert agent.last_update is not None
            agent.last_update.state["history"].keep_newest()
            agent.history[-1][NEXT_KL] = kl

    def _take_back(self) -> None:
        """Return the agent to its state after the last complete update."""
        agent, done = self._agent, self._agent.last_update
        if done is None:  # no update was begun
            return
        saving.restore(agent, done.tensors, done.state)
        agent.region = done.region
        agent.history.become(done.state["history"])
        agent.episodes.clear()
        agent.episodes.extend(map(saving.episode, done.state["episodes"]))
        agent.training_envs.go_back(done.cursor)

    def _rollout_metrics(self) -> Metrics:
        agent, episodes = self._agent, self._agent.episodes
        metrics: Metrics = {
            STEP: float(agent.num_timesteps),
            "time/fps": (agent.num_timesteps - self._first) / (time.monotonic() - self._started),
            "rollout/ep_rew_mean": float(np.mean([e.episode_return for e in episodes])) if episodes else float("nan"),
            "rollout/ep_len_mean": float(np.mean([e.length for e in episodes])) if episodes else float("nan"),
        }
        for key in agent.config.info_keys:
            said = [e.info[key] for e in episodes if key in e.info]
            metrics[info_metric(key)] = float(np.mean(said)) if said else float("nan")
        if agent.config.on_worker_failure == "restart":
            metrics["rollout/worker_restarts"] = float(agent.training_envs.restarts)
        return metrics
