"""Distillation: fits a student's policy to a teacher's by the exact KL, state by state."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from klrl.agents.base import Agent
from klrl.agents.compatibility import check_comparable
from klrl.agents.config import AgentConfig
from klrl.agents.settings import Direction, DistillationConfig
from klrl.agents.supervised import ActorDescent, checked, closed_after, environments
from klrl.agents.update_batch import UpdateBatch, mean_of
from klrl.experience import Batch, Collector, EnvLike
from klrl.experience.collector import ReplayMismatch
from klrl.experience.cursors import EnvCursor
from klrl.experience.environments import is_seeded
from klrl.kl import kl_divergence, kl_gradient, reverse_kl, tempered
from klrl.policy.arrays import Array, average, numpy_as_torch, tensor
from klrl.policy.distributions import Distribution, derivative
from klrl.policy.linearization import Linearization, Objective, expectation
from klrl.policy.spaces import below
from klrl.policy.surroundings import undisturbed
from klrl.run.callback import Metrics
from klrl.run.seeding import environment_seeds
from klrl.text import warn_user

_INHERITED = (
    "gamma", "gae_lambda", "normalize_observations", "image_scale", "fold_normalizer", "scale_rewards",
    "fold_reward_scale", "actor_hidden_sizes", "critic_hidden_sizes", "activation", "layer_norm", "image_network",
    "network", "shared_encoder", "log_std_init", "action_distribution", "state_dependent_std", "scale_actions",
    "action_mask", "frame_stacks", "device",
)  # fmt: skip


def distill(
    teacher: Agent[Any],
    student: Agent[Any],
    env: EnvLike,
    config: DistillationConfig | None = None,
    *,
    seed: int = 0,
) -> Agent[Any]:
    """Fit the student's policy to the teacher's; return the student, with a row of metrics per round in its history.

    Rusu et al. 2016, "Policy Distillation", with the states of Ross et al. 2011, "A Reduction of Imitation Learning"
    (DAgger): the student acts, the teacher labels the states that it visits. The row of a round has
    ``distill/kl_forward``, KL(teacher||student), and ``distill/kl_reverse``, both exact and measured on the round's
    states before the student is fitted to them; one more row measures the finished student. The teacher there is the
    policy to be learned, at the setting ``temperature``.

    An untrained student takes the teacher's observation statistics, any other one keeps its own; either goes on
    absorbing observations if statistics are learned. The student's critic is fitted to the returns of the agent that
    visits the states, so that ``learn`` can go on from here; nothing is copied from the teacher's critic. The teacher
    does not change, except for its generator of actions if it acts.

    Args:
        teacher: any agent.
        student: another agent with the same spaces, masks and kind of policy; networks may differ.
        env: an environment, in any form that agents take.
        config: settings.
        seed: seed of the environments.

    Raises:
        ValueError: the agents or the environment do not go together.
        FloatingPointError: a KL or a loss is not finite.
    """
    student.history.extend(distillation_rounds(teacher, student, env, config, seed=seed))
    return student


def distillation_rounds(
    teacher: Agent[Any],
    student: Agent[Any],
    env: EnvLike,
    config: DistillationConfig | None = None,
    *,
    seed: int = 0,
    state: dict[str, Tensor] | None = None,
) -> Rounds:
    """Distill round by round, see :func:`distill`; yields the metrics of each round.

    Given ``state``, the :meth:`Rounds.state` of an interrupted distillation, and the student as it was then, the
    remaining rounds follow, to the bit if the environments' episodes can be played again.
    """
    if teacher is student:
        raise ValueError("student is the teacher; allowed: another agent, for example one loaded again")
    check_comparable("teacher", teacher, "student", student)
    config = config or DistillationConfig()
    envs = environments(env, config.n_envs, teacher)
    if student.untrained:
        student.normalizer, student.untrained = teacher.normalizer, False
    return Rounds(teacher, student, envs, env, config, seed, state)


class Rounds(Iterator[Metrics]):
    """Rounds of a distillation, made by :func:`distillation_rounds`; it can be interrupted after each."""

    def __init__(
        self,
        teacher: Agent[Any],
        student: Agent[Any],
        envs: VectorEnv,
        env: EnvLike,
        config: DistillationConfig,
        seed: int,
        state: dict[str, Tensor] | None,
    ) -> None:
        self._teacher, self._student, self._config, self._seed = teacher, student, config, seed
        self._done = 0 if state is None else int(state["done"])
        self._rounds = self._play(envs, env, state)

    def __next__(self) -> Metrics:
        return next(self._rounds)

    def state(self) -> dict[str, Tensor]:
        """Return the state that, with the student and the teacher's policy, decides the rounds that follow."""
        where = self._collector.cursor
        parts = {
            "descent": self._descent.state(),
            "teacher": self._teacher.streams.state(),
            "whereabouts": {} if where is None else where.tensors(),
        }
        numbers = {"done": self._done, "timesteps": self._collector.total_timesteps}
        tensors = {name: torch.tensor(number) for name, number in numbers.items()}
        return tensors | {f"{part}.{name}": x for part, named in parts.items() for name, x in named.items()}

    def _play(self, envs: VectorEnv, env: EnvLike, state: dict[str, Tensor] | None) -> Iterator[Metrics]:
        student, config = self._student, self._config
        limits = {"learning_rate": config.learning_rate, "max_grad_norm": config.max_grad_norm}
        self._descent = ActorDescent(student, **limits)
        student.networks.optimizer.learning_rate = config.learning_rate
        visitor = student if config.states == "student" else self._teacher
        with closed_after(envs, env):
            self._collector = self._begin(envs) if state is None else self._go_on(envs, state)
            for i in range(self._done, config.n_rounds + 1):
                batch = self._collector.collect(visitor.act, config.n_steps)
                metrics = _round(self._teacher, student, batch, self._descent if i < config.n_rounds else None, config)
                student.num_timesteps += batch.n_samples
                if visitor is student:
                    student.episodes.extend(batch.episodes)
                self._done = i + 1
                yield checked(metrics, f"in round {i + 1}")

    def _begin(self, envs: VectorEnv, timesteps: int = 0) -> Collector:
        """Begin new episodes."""
        self._student.return_scaler = self._student.return_scaler.restarted(envs.num_envs)
        seeds = environment_seeds(self._seed, self._student.num_timesteps)
        return Collector(envs, seeds, self._student.encoding, timesteps)

    def _go_on(self, envs: VectorEnv, state: dict[str, Tensor]) -> Collector:
        """Continue the interrupted episodes if they can be played again, else begin new ones."""
        self._descent.restore(below("descent.", state))
        self._teacher.streams.restore(below("teacher.", state))
        where, timesteps = below("whereabouts.", state), int(state["timesteps"])
        problem: object = "episodes of these environments cannot be played again"
        shapes = self._student.action_space.shape or (), self._student.encoding.shape
        if where and is_seeded(envs) and (cursor := EnvCursor.of(where, *shapes)).reachable:
            try:
                return Collector(envs, cursor, self._student.encoding, timesteps)
            except ReplayMismatch as error:
                problem = error
        text = f"{problem}: new episodes begin, and the rest differs from an uninterrupted distillation"
        warn_user(text)
        return self._begin(envs, timesteps)


@undisturbed
@torch.no_grad()
def _round(
    teacher: Agent[Any], student: Agent[Any], batch: Batch, descent: ActorDescent | None, config: DistillationConfig
) -> Metrics:
    """Measure the student, then fit it, except after the last round, which has no ``descent``."""
    with numpy_as_torch():
        lesson, metrics = _lesson(teacher, student, batch, config.temperature, absorb=descent is not None)
        return metrics | (_study(student, lesson, descent, config) if descent else {})


def _lesson(
    teacher: Agent[Any], student: Agent[Any], batch: Batch, temperature: float, *, absorb: bool
) -> tuple[UpdateBatch, Metrics]:
    """Return the batch with the teacher's distributions as its old policy, and both KL on its states."""
    states = batch.flatten_valid(batch.observations)
    if absorb and student.config.normalize_observations:
        student.absorb(states)
    if absorb and student.config.scale_rewards:
        student.absorb_rewards(batch)
    samples = student.prepare(batch)
    asked = teacher.distribution(states).map(lambda x: x.to(student.device))
    if temperature != 1.0:
        asked = tempered(asked, temperature)
    forward, reverse = kl_divergence(asked, samples.old), reverse_kl(asked, samples.old)
    metrics: Metrics = {"distill/kl_forward": average(forward), "distill/kl_reverse": average(reverse)}
    return replace(samples, old=asked), metrics


def _study(student: Agent[Any], lesson: UpdateBatch, descent: ActorDescent, config: DistillationConfig) -> Metrics:
    """Fit the policy by the KL and the critic by its squared error, in epochs of minibatches."""
    losses: list[Array] = []
    value_losses: list[Array] = []
    for _ in range(config.n_epochs):
        for minibatch in student.minibatches(lesson, config.batch_size):
            loss = distillation_loss(minibatch.old, student.actor.linearize(minibatch.observations), config.direction)
            descent.step(loss)
            value_loss = student.value_loss(minibatch)
            student.descend(value_loss)
            losses.append(loss.value)
            value_losses.append(value_loss.value)
    return {"distill/loss": mean_of(losses), "distill/value_loss": mean_of(value_losses)}


def distillation_loss(teacher: Distribution, student: Linearization[Distribution], direction: Direction) -> Objective:
    """Return E[KL(teacher||student)] or E[KL(student||teacher)] over states ``[n]``, for the student to minimise."""
    policy = student.output
    if direction == "forward":
        return expectation(kl_divergence(teacher, policy), student, kl_gradient(teacher, policy))
    fixed = teacher.map(tensor)
    return expectation(reverse_kl(teacher, policy), student, derivative(lambda s: kl_divergence(s, fixed), policy))


def student_config(config_class: type[AgentConfig], teacher: Agent[Any], env_id: str | None, **own: Any) -> AgentConfig:
    """Return settings of a new student: its algorithm's for the environment, over them the teacher's, then ``own``.

    It takes over the teacher's networks, normalisation of observations and rewards, discount and device.
    """
    inherited = {name: getattr(teacher.config, name) for name in _INHERITED}
    return config_class.for_env(env_id, **(inherited | own))
