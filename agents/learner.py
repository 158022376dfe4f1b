"""Agents without environments, files or loops: act(observations) and update(batch) -> metrics."""

from __future__ import annotations

import abc
import math
from collections.abc import Iterator
from dataclasses import replace
from operator import sub
from typing import Any, TypeVar

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from klrl import schedules
from klrl.agents.acting import act
from klrl.agents.config import AgentConfig
from klrl.agents.drift import first_probe, measured_rows, statistics_report, step_zero, update_report
from klrl.agents.image_passes import ImagePasses, encoded_images, minibatches_of_images, values_of_images
from klrl.agents.improvement import Improvement as Improvement  # agents of one's own import it from here, too
from klrl.agents.predecessor import Predecessor
from klrl.agents.predictor import Predictor
from klrl.agents.saved_policy import SavedPolicy
from klrl.agents.update_batch import UpdateBatch, overflow
from klrl.experience import Batch, gae
from klrl.kl.drift import Drift, mean_kl
from klrl.policy.arrays import Array, numpy_as_torch
from klrl.policy.distributions import Distribution
from klrl.policy.distributions.squashed import matching, remembering
from klrl.policy.linearization import Linearization, Objective, expectation
from klrl.policy.normalizer import ReturnScaler
from klrl.policy.normalizer_folding import fold
from klrl.policy.paths import learns_in_numpy
from klrl.policy.sampling import Sampler
from klrl.policy.shared_encoder import SharedCritic
from klrl.policy.surroundings import undisturbed
from klrl.renamed import adopt, attribute, keep_old_names
from klrl.run.callback import Callback, CallerContext, Metrics
from klrl.text import warn_user
from klrl.trust_region import Change
from klrl.trust_region.all import redefines
from klrl.trust_region.scheduling import with_values

C = TypeVar("C", bound=AgentConfig)
RENAMED = {"surrogate": "objective", "judge": "penalized_surrogate", "samples": "prepare"}
"""Methods that had another name: old -> new."""


class Learner(Predictor[C], abc.ABC):
    """A policy that learns: acting in a rollout, and the frame of an update; subclasses define :meth:`improve`."""

    def __init_subclass__(cls) -> None:
        """Adopt methods that an agent of the user's own defines under old names."""
        super().__init_subclass__()
        if "networks_to_optimize" in vars(cls):  # nobody would call it, and Adam would move what it is not to
            raise TypeError(f'{cls.__name__}.networks_to_optimize(); allowed: optimized = ("critic",) and the like')
        adopt(cls, RENAMED)
        keep_old_names(cls, RENAMED)

    @undisturbed
    def __init__(self, observation_space: gym.Space, action_space: gym.Space, config: C, seed: int) -> None:
        super().__init__(observation_space, action_space, config, seed)
        self.sampler = Sampler(self.streams.actions)
        """Draws the actions of :meth:`act`."""
        self.region = config.region
        self.values = config.values_at(1.0)
        """Numbers of the settings that may be scheduled, at the last update."""
        self.return_scaler = ReturnScaler.for_environments(config.n_envs)
        self.reference: SavedPolicy | None = None
        """Reference policy, from which the region's reference terms and drift/kl_reference are measured."""
        self.drift = Drift()
        self.predecessor: Predecessor | None = None
        """Policy before the last update, until :meth:`kl_on_next_states` has compared it."""
        self.image_passes = ImagePasses() if self.encoding.images else None
        """Passes over whole batches, where these are of images."""
        self.num_timesteps = 0
        self.n_updates = 0
        self.progress_remaining = 1.0
        self.untrained = True
        """True until the agent learns, or takes over another's networks or statistics."""

    actor_parameters = attribute("agent", "actor_parameters", "networks.actor_parameters")
    kl_sum = attribute("agent", "kl_sum", "drift.kl_sum")

    @property
    def ent_coef(self) -> float:
        """Weight of the entropy bonus in the algorithm's objective."""
        return 0.0

    def __reduce_ex__(self, protocol: object) -> Any:
        """Refuse copies: parameters would no longer be views of the vector that the optimiser moves."""
        raise TypeError(f"{type(self).__name__} cannot be copied or pickled; allowed: save() and load()")

    @abc.abstractmethod
    def improve(self, batch: Batch, samples: UpdateBatch, callback: Callback) -> Improvement:
        """Move the policy inside the trust region and fit the critic: the algorithm of the paper.

        Args:
            batch: the rollout as it was collected.
            samples: its valid steps, with the old policy, advantages and the critic's targets.
            callback: is told of minibatches and epochs.
        """

    @undisturbed
    @torch.no_grad()
    def act(self, observations: Tensor) -> tuple[Array, np.ndarray, Distribution]:
        """Sample one action per raw observation: (policy's actions, environment's actions, distributions).

        They are arrays where numpy is faster, else tensors in the CPU's memory.
        """
        return act(self, observations)

    def keeps(self, *methods: str) -> bool:
        """Tell whether neither the agent's class nor the agent itself has redefined these methods of ``Learner``."""
        own = not vars(self).keys() & {*methods}
        return own and all(getattr(type(self), name) is getattr(Learner, name) for name in methods)

    # -- updating -------------------------------------------------------------------------------

    @undisturbed
    def update(self, batch: Batch, callback: Callback | None = None) -> Metrics:
        """Learn from one batch that the current policy collected; return metrics with the drift report.

        The observation statistics stay frozen until the policy's change has been measured. The batch also judges the
        update before (:meth:`kl_on_next_states`), if it has not yet.

        Raises:
            ValueError: the batch has no valid steps, or actor and critic share parameters.
            FloatingPointError: a loss or a parameter is not finite.
        """
        if batch.n_samples == 0:
            raise ValueError("the batch has no valid steps; allowed: n_steps >= 2 in NEXT_STEP environments")
        self.networks.repack()
        callback = CallerContext(callback) if callback is not None else Callback()
        with torch.no_grad(), numpy_as_torch():
            return self._update(batch, callback)

    def _update(self, batch: Batch, callback: Callback) -> Metrics:
        self.kl_on_next_states(batch)
        self._schedule()
        if self.config.scale_rewards:
            self.absorb_rewards(batch)
        samples, behaviour = self.prepare(batch), batch.flatten_valid(batch.behaviour).map(self.on_device)
        images = self.image_passes
        compared = (behaviour, samples) if images is None else images.where_compared(self, behaviour, samples)
        metrics = step_zero(*compared)
        begins = self.untrained and self._take_scale(batch.flatten_valid(batch.observations))
        if begins:  # an untrained policy starts with normalised inputs; later changes of statistics must not move it
            samples = self.prepare(batch)
            metrics = step_zero(behaviour, samples, warn=False)
        self.untrained = False
        metrics["train/explained_variance"] = samples.explained_variance(self.critic)
        theta = self.networks.actor_parameters
        before = theta.clone() if images is None else images.copy_of(theta), self.normalizer
        try:
            metrics["train/learning_rate"] = self.anneal()
            improvement = Improvement.of(self.improve(batch, samples, callback))
            self.networks.check_finite(self._when)
            metrics |= improvement.checked(self._when)
        except FloatingPointError as error:
            if why := overflow(self.change(samples).new, self.ent_coef):
                raise FloatingPointError(f"{error}: {why}") from error
            raise
        metrics |= self._measure(batch, samples, absorb=self._normalizes and not begins)
        if images is not None:
            images.forget()
        self.predecessor = Predecessor(*before, self.networks.actor_parameters.clone())
        self.num_timesteps += batch.n_samples
        self.n_updates += 1
        metrics.setdefault("train/n_updates", float(self.n_updates))
        return metrics

    def _schedule(self) -> None:
        """Settle the numbers of this update, here and nowhere else: all that computes sees plain numbers."""
        self.values = self.config.values_at(self.progress_remaining)
        scheduled = {name: self.values[name] for name in schedules.scheduled(self.config)}
        region = with_values(self.region.scheduled(self.progress_remaining), scheduled)
        if redefines(region, "at_rate") and "actor" in self.optimized:
            region = region.at_rate(self.values["learning_rate"] / self.config.values_at(1.0)["learning_rate"])
        self.region = region

    @torch.no_grad()
    def prepare(self, batch: Batch) -> UpdateBatch:
        """Flatten the batch's valid steps and evaluate the current policy and critic on them, once."""
        raw = batch.flatten_valid(batch.observations)
        observations = self.on_device(raw) if raw.dtype == torch.uint8 else self.normalized(raw)
        reference = None if self.reference is None else self.reference.distribution(raw).map(self.on_device)
        actions = self.on_device(batch.flatten_valid(batch.actions))
        u = matching(batch.actions, batch.before_tanh)
        before_tanh = None if u is None else self.on_device(batch.flatten_valid(u))
        if self.image_passes is None:
            old, values, estimates = self.actor(observations), None, self.advantages(batch)
        else:
            old, values = self.image_passes.policy_and_values(self, batch)
            estimates, values = self.advantages(batch, values.cpu()), batch.flatten_valid(values)
        log_prob = old.log_prob_inside(actions if before_tanh is None else remembering(actions, before_tanh))
        return UpdateBatch(observations, actions, old, log_prob, *estimates, reference, before_tanh, values=values)

    def inputs(self, observations: Array) -> Array:
        """Return what networks are given for the observations of an update's samples: images are scaled only here."""
        return self.normalizer(observations) if observations.itemsize == 1 else observations

    @torch.no_grad()
    def advantages(self, batch: Batch, values: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return advantages (normalised if so configured) and the critic's targets of the valid steps, ``[n]`` each.

        Args:
            batch: the rollout.
            values: the critic's ``[T, N]``, if they are known, in the CPU's memory.
        """
        values = self._values(batch.observations) if values is None else values
        next_values = batch.next_values(values, self._values)
        rewards = self.return_scaler(batch.rewards) if self.config.scale_rewards else batch.rewards
        advantage = gae(
            rewards, values, next_values, batch.terminated, batch.ended, self.config.gamma, self.config.gae_lambda
        )
        returns = batch.flatten_valid(advantage + values)
        advantage = batch.flatten_valid(advantage)
        if not returns.isfinite().all():
            largest = rewards.abs().max().item()
            raise FloatingPointError(
                f"returns in {self._when} are not finite with rewards up to {largest:g}; allowed: finite numbers"
            )
        if self.config.normalize_advantage:
            advantage = (advantage - advantage.mean()) / (advantage.std(correction=0) + 1e-8)
        return self.on_device(advantage), self.on_device(returns)

    def _values(self, observations: Tensor) -> Tensor:
        """Return the critic's values ``[*B]`` at raw observations ``[*B, *O]``, in the CPU's memory."""
        if self.image_passes is not None:
            return values_of_images(self, observations)
        return self.critic(self.normalized(observations)).cpu()

    @torch.no_grad()
    def change(self, samples: UpdateBatch) -> Change:
        """Return the change from the old policy to the current one on these samples."""
        images = self.image_passes
        return samples.change(self.actor(samples.observations) if images is None else images.policy(self, samples))

    def minibatches(
        self, samples: UpdateBatch, batch_size: int | None = None, order: Tensor | None = None
    ) -> Iterator[UpdateBatch]:
        """Iterate over minibatches of the samples in a new random order; ``batch_size`` is the setting by default."""
        batch_size = batch_size or self.config.batch_size
        if order is None:
            order = torch.randperm(len(samples), generator=self.streams.minibatches, device="cpu")
        order = self.on_device(order)
        arrays = learns_in_numpy(batch_size, self.networks.numpy_rows)
        if self.image_passes is not None:
            return minibatches_of_images(self, samples, order.split(batch_size), arrays=arrays)
        shuffled = samples[order]
        return (shuffled.numpy() if arrays else shuffled).split(batch_size)

    def objective(self, policy: Linearization[Distribution], change: Change) -> Objective:
        """Return L(theta) = E[surrogate - penalty] (TRPO eq. 14 without penalty), given the change to the policy."""
        gradient, penalty = self.region.surrogate_gradient(change), self.region.penalty_gradient(change)
        if penalty is not None:
            gradient = tuple(map(sub, gradient, penalty))
        return expectation(self.penalized_surrogate(change), policy, gradient)

    def penalized_surrogate(self, change: Change) -> Array:
        """Return surrogate minus penalty, ``[*B]``."""
        return self.region.surrogate(change) - self.region.penalty(change)

    def value_loss(self, samples: UpdateBatch) -> Objective:
        """Return E[(V(s) - V_target)^2]."""
        if samples.encoded is not None and isinstance(self.critic, SharedCritic):
            critic = self.critic.linearize_head(samples.encoded)
        else:
            critic = self.critic.linearize(samples.observations)
        error = critic.output - samples.returns
        return expectation(error * error, critic, (2.0 * error,))

    @torch.no_grad()
    def for_critic(self, samples: UpdateBatch) -> UpdateBatch:
        """Return samples for a critic that is fitted while the policy stands still: a shared encoder speaks once."""
        critic = self.critic
        if not isinstance(critic, SharedCritic) or not critic.shares:
            return samples
        if self.image_passes is not None:
            return encoded_images(self, samples, critic)
        return replace(samples, encoded=critic.inputs(samples.observations))

    def entropy(self, policy: Linearization[Distribution]) -> Objective:
        """Return E[H(pi(.|s))]."""
        return expectation(policy.output.entropy(), policy, policy.output.entropy_gradient())

    def descend(self, loss: Objective) -> None:
        """Take one step of Adam on the networks that the loss depends on.

        Raises:
            FloatingPointError: the gradient is not finite; no parameter has moved.
        """
        self.networks.descend(loss, self._when)

    @property
    def _when(self) -> str:
        return f"update {self.n_updates} at {self.num_timesteps} steps"

    def anneal(self) -> float:
        """Set the learning rate for this update and return it; the actor's is also scaled by the region."""
        rate = self.values["learning_rate"]
        self.networks.set_learning_rate(rate, actor_factor=self.region.lr_scale)
        return rate

    # -- measuring ------------------------------------------------------------------------------

    @undisturbed
    @torch.no_grad()
    def kl_on_next_states(self, batch: Batch) -> float:
        """Return the mean KL(old||new), nats, of the last update on the states that its policy visited since.

        The region adapts to it. Each policy has the observation statistics of its time, so the number includes what a
        change of these did. It is NaN if there is no update to judge: one has been judged already, it was one of
        another training's environments, or something else has changed the policy since.

        Args:
            batch: the rollout of the policy that the update led to.
        """
        last, self.predecessor = self.predecessor, None
        if last is None or batch.n_samples == 0 or not last.leads_to(self.networks.actor_parameters):
            return math.nan
        every = redefines(self.region, "adapt_to_next")
        rows = slice(None) if every else measured_rows(self, batch.n_samples)
        observations = batch.flatten_valid(batch.observations)[rows]
        with numpy_as_torch():
            old = last.distribution(self.networks, observations, pieces=self.image_passes is not None)
        kl = mean_kl(old, batch.flatten_valid(batch.behaviour)[rows].map(self.on_device))
        self.region = self.region.adapt_to_next(kl)
        return kl

    def _measure(self, batch: Batch, samples: UpdateBatch, *, absorb: bool) -> Metrics:
        """Return the drift report; then, and only then, adapt the region and update the observation statistics."""
        change = self.change(samples)
        if why := overflow(change.new, self.ent_coef):
            raise FloatingPointError(f"after {self._when} {why}")
        observations = batch.flatten_valid(batch.observations)
        if self.drift.probe is None:
            self.drift.probe = first_probe(self, observations, change.old)
        metrics = update_report(self.drift, change, self.region) | self.drift.since_first(self.distribution)
        metrics |= {"drift/kl_normalizer": 0.0, "drift/kl_total": metrics["drift/kl"]}
        if isinstance(rows := measured_rows(self, len(observations)), Tensor):
            metrics["drift/states"] = float(len(rows))
        if absorb:
            self.absorb(observations)
            metrics |= statistics_report(change, rows, self.distribution(observations[rows]))
        self.region = self.region.adapt(change)
        return metrics

    def _take_scale(self, observations: Tensor) -> bool:
        """Take image scales and statistics from the first observations ``[n, *O]``; tell whether that changed any."""
        before = self.normalizer
        if self.encoding.images and self.config.image_scale == "seen":
            self.normalizer = replace(before, fixed_scale=self.encoding.scale_seen(observations))
        elif dark := self.encoding.dark_images(observations):
            text = f"{dark}: a network learns little from numbers so small; image_scale = 'seen' divides by the largest"
            warn_user(text)
        if self._normalizes and before.moments.count == 0:
            self.absorb(observations)
        return self.normalizer is not before

    @property
    def _normalizes(self) -> bool:
        """True if there are observation statistics to learn."""
        return self.config.normalize_observations and self.normalizer.learns

    def absorb(self, observations: Tensor) -> None:
        """Update the observation statistics; with ``fold_normalizer``, trained networks keep their function."""
        old, self.normalizer = self.normalizer, self.normalizer.absorb(observations)
        if self.config.fold_normalizer and not self.untrained:
            fold((self.actor, self.critic), self.encoding, old, self.normalizer)

    @torch.no_grad()
    def absorb_rewards(self, batch: Batch) -> None:
        """Update the scale of rewards; with ``fold_reward_scale`` the critic's values in units of the reward stay."""
        old = self.return_scaler
        self.return_scaler = old.absorb(batch.rewards, batch.ended, batch.valid, self.config.gamma)
        if self.config.fold_reward_scale and old.moments.count > 0 and old.scale > 0.0 < self.return_scaler.scale:
            first = self.normalized(batch.flatten_valid(batch.observations)[:1])
            self.networks.rescale_values(self.return_scaler.scale / old.scale, first)


keep_old_names(Learner, RENAMED)
