"""Agents without environments, files or loops: act(observations) and update(batch) -> metrics."""

from __future__ import annotations

import abc
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import sub
from typing import Any, ClassVar, Generic, TypeVar

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from klrl import schedules
from klrl.agents.acted import Acted
from klrl.agents.actor_critic import ActorCritic
from klrl.agents.config import AgentConfig
from klrl.agents.drift import step_zero, update_report
from klrl.agents.predecessor import Predecessor
from klrl.agents.saved_policy import SavedPolicy
from klrl.agents.update_batch import UpdateBatch, overflow
from klrl.agents.whole_batch import in_pieces
from klrl.experience import Batch, gae
from klrl.kl.drift import PROBES, Drift, Probe, mean_kl, rows_evenly
from klrl.policy.actor import Actor
from klrl.policy.actors import make_actor
from klrl.policy.arrays import Array, numpy_as_torch
from klrl.policy.device import usable
from klrl.policy.distributions import Distribution
from klrl.policy.distributions.squashed import matching, remembering
from klrl.policy.linearization import Linearization, Objective, expectation
from klrl.policy.networks import Critic
from klrl.policy.normalizer import ReturnScaler
from klrl.policy.normalizer_folding import fold
from klrl.policy.observations import Encoding
from klrl.policy.paths import acts_in_numpy, learns_in_numpy
from klrl.policy.sampling import Sampler
from klrl.policy.shared_encoder import SharedCritic, evaluate_both
from klrl.policy.surroundings import ordinary, undisturbed
from klrl.policy.trunks import ImageTrunk
from klrl.renamed import adopt, attribute, keep_old_names
from klrl.run.callback import Callback, CallerContext, Metrics
from klrl.run.seeding import Streams
from klrl.text import warn_user
from klrl.trust_region import Change
from klrl.trust_region.all import redefines
from klrl.trust_region.scheduling import with_values

C = TypeVar("C", bound=AgentConfig)
RENAMED = {"surrogate": "objective", "judge": "penalized_surrogate", "samples": "prepare"}
"""Methods that had another name: old -> new."""
_STATES = 64
"""Images that metrics with a pass of their own are measured on by default, at most."""
_CHECKED = 16
"""Images where the policy that has acted is compared with the one to be updated."""


@dataclass(frozen=True, kw_only=True)
class Improvement:
    """Outcome of an algorithm's update."""

    value_loss: float
    """Mean of the critic's loss over its steps (metric ``train/value_loss``)."""
    stop_reason: str
    """Reason why the policy stopped moving (``train/stop_reason``)."""
    metrics: Mapping[str, float | str] = field(default_factory=dict)
    """Further metrics, by ``group/name``."""

    @classmethod
    def of(cls, result: Improvement | Mapping[str, Any]) -> Improvement:
        """Read what ``improve`` returned: for one version also a dict of metrics, as it was before."""
        if isinstance(result, Improvement):
            return result
        metrics = dict(result)
        value_loss, reason = float(metrics.pop("train/value_loss")), str(metrics.pop("train/stop_reason", ""))
        warn_user("improve() returned a dict; allowed: an Improvement; dicts go with klrl 0.2", DeprecationWarning)
        return cls(value_loss=value_loss, stop_reason=reason, metrics=metrics)

    def checked(self, when: str) -> Metrics:
        """Return everything as metrics.

        Raises:
            FloatingPointError: the value loss is infinite or NaN.
        """
        if not math.isfinite(self.value_loss):
            raise FloatingPointError(f"train/value_loss = {self.value_loss} in {when}; allowed: finite numbers")
        return {**self.metrics, "train/value_loss": self.value_loss, "train/stop_reason": self.stop_reason}


class Learner(abc.ABC, Generic[C]):
    """Policy, critic, their statistics, and the frame of an update; subclasses define :meth:`improve`."""

    config_class: ClassVar[type[AgentConfig]]
    optimized: ClassVar[tuple[str, ...]] = ("actor", "critic")
    """Networks that Adam moves; the algorithm moves the others by a rule of its own."""

    def __init_subclass__(cls) -> None:
        """Adopt methods that an agent of the user's own defines under old names."""
        super().__init_subclass__()
        if "networks_to_optimize" in vars(cls):  # nobody would call it, and Adam would move what it is not to
            raise TypeError(f'{cls.__name__}.networks_to_optimize(); allowed: optimized = ("critic",) and the like')
        adopt(cls, RENAMED)
        keep_old_names(cls, RENAMED)

    @undisturbed
    def __init__(self, observation_space: gym.Space, action_space: gym.Space, config: C, seed: int) -> None:
        self.observation_space, self.action_space = observation_space, action_space
        self.encoding = Encoding(observation_space, action_space, config.action_mask, config.frame_stacks)
        config.check_observations(self.encoding)
        self.config, self.seed = config, seed
        self.region = config.region
        self.values = config.values_at(1.0)
        """Numbers of the settings that may be scheduled, at the last update."""
        self.streams = Streams.from_seed(seed)
        self.sampler = Sampler(self.streams.actions)
        """Draws the actions of :meth:`act`."""
        style: dict[str, Any] = {
            "activation": config.activation, "layer_norm": config.layer_norm, "network": config.network,
            "image_network": config.image_network, "generator": self.streams.networks,
        }  # fmt: skip
        self.device = usable(config.device)
        self.shares_encoder = config.shares_encoder(self.encoding)
        """True if the critic was made to read the policy's encoder."""
        actor = make_actor(
            self.encoding,
            action_space,
            config.actor_hidden_sizes,
            log_std_init=config.log_std_init,
            action_distribution=config.action_distribution,
            state_dependent_std=config.state_dependent_std,
            scale_actions=config.scale_actions,
            **style,
        ).to(self.device)
        anything = torch.ones(1, *self.encoding.shape, dtype=torch.float32, device=self.device)
        self.region.check(actor(anything))
        critic = self._make_critic(actor, style).to(self.device)
        self.networks = ActorCritic(
            actor,
            critic,
            optimized=self.optimized,
            learning_rate=self.values["learning_rate"],
            max_grad_norm=config.max_grad_norm,
        )
        self.normalizer = self.encoding.normalizer()
        self.return_scaler = ReturnScaler.for_environments(config.n_envs)
        self.reference: SavedPolicy | None = None
        """Reference policy, from which the region's reference terms and drift/kl_reference are measured."""
        self.drift = Drift()
        self._last_change: tuple[Distribution, Tensor, Distribution] | None = None
        """Old policy, parameters and new policy of what :meth:`change` measured last."""
        self._taken_over: Distribution | None = None
        """Old policy of an update that acting has computed."""
        self.predecessor: Predecessor | None = None
        """Policy before the last update, until :meth:`kl_on_next_states` has compared it."""
        self.acted: Acted | None = None
        """Results of acting on images, in the rollout that is next to learn from."""
        self.num_timesteps = 0
        self.n_updates = 0
        self.progress_remaining = 1.0
        self.untrained = True
        """True until the agent learns, or takes over another's networks or statistics."""

    def _make_critic(self, actor: Actor, style: dict[str, Any]) -> Critic:
        hidden = self.config.critic_hidden_sizes
        if not self.shares_encoder:
            return Critic(self.encoding, hidden, **style)
        del style["network"], style["image_network"]
        return SharedCritic(actor, self.encoding, hidden, **style)

    @property
    def actor(self) -> Actor:
        """Policy network; a network of your own goes into ``actor.trunk`` before training."""
        return self.networks.actor

    @actor.setter
    def actor(self, actor: Actor) -> None:
        self.networks.actor = actor

    @property
    def critic(self) -> Critic:
        """Value network; a network of your own goes into ``critic.trunk`` before training."""
        return self.networks.critic

    @critic.setter
    def critic(self, critic: Critic) -> None:
        self.networks.critic = critic

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

    # -- acting ---------------------------------------------------------------------------------

    @undisturbed
    @torch.no_grad()
    def distribution(self, observations: Any, action_masks: Any = None) -> Distribution:
        """Return the policy's distribution at observations ``[*B]`` of the environment, normalisation included.

        Actions are the policy's own: a squashed Gaussian's lie in (-1, 1), a Beta's in (0, 1), those of a Discrete
        space start at 0, and a Gaussian's are in units of the box (``scale_actions``) and not clipped;
        ``actor.to_environment`` stretches, shifts and clips them for the environment, :meth:`from_environment` converts
        the environment's.

        Args:
            observations: nested as the observation space is, or a tensor as in a batch.
            action_masks: ``[*B, n]``, if masks come by ``info``; without them everything is allowed.
        """
        if not isinstance(observations, Tensor):
            observations = torch.from_numpy(self.encoding(observations, action_masks))
        return self.actor(self.normalized(observations))

    def from_environment(self, action: Any) -> np.ndarray:
        """Return the policy's actions ``[*B, *A]`` for the environment's, ``[*B]`` of the action space's shape.

        The inverse of ``actor.to_environment``, but for what that clips: see :meth:`distribution` for the policy's
        units. An action that the environment does not have becomes one that the policy cannot take, if there are any.

        Raises:
            ValueError: an array of another shape.
        """
        return self.actor.from_environment(np.asarray(action))

    def normalized(self, observations: Tensor) -> Tensor:
        """Normalise raw observations for the networks, on their device."""
        return self._on_device(self.normalizer(observations))

    @undisturbed
    @torch.no_grad()
    def act(self, observations: Tensor) -> tuple[Array, np.ndarray, Distribution]:
        """Sample one action per raw observation: (policy's actions, environment's actions, distributions).

        They are arrays where numpy is faster, else tensors in the CPU's memory.
        """
        with np.errstate(all="ignore"):
            share = self.sampler.share
            if acts_in_numpy(len(observations) if share is None else share.total, self.networks.numpy_rows):
                x = self.normalizer(observations.numpy())
                policy = self.actor(x) if share is None else share.in_blocks(self.actor, x)
            elif self.acted is not None and self.networks.share_encoder:
                found = self._both(observations) if share is None else share.in_blocks(self._both, observations)
                policy = found[0].cpu()
                self.acted.add(found[1].cpu())
            elif share is None:
                policy = self.distribution(observations).cpu()
            else:
                policy = share.in_blocks(self.distribution, observations).cpu()
            actions = self.sampler(policy)
        return actions, self.actor.to_environment(actions), policy

    def _both(self, observations: Tensor) -> tuple[Distribution, Tensor]:
        """Return policy and values at raw observations."""
        return evaluate_both(self.actor, self.critic, self.normalized(observations))

    def begin_to_act(self) -> Acted | None:
        """Keep what acting in the next rollout computes, and return what keeps it.

        ``None`` where an update computes it anew: where there are no images, and where acting or its networks are not
        klrl's own.
        """
        self.acted, last = None, self.predecessor
        if self.encoding.images and is_klrls(self):
            known = last is not None and last.leads_to(self.networks.actor_parameters)
            theta = last.successor if last is not None and known else None
            self.acted = Acted(self.networks, self.normalizer, theta)
        return self.acted

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
        samples, behaviour = self.prepare(batch), batch.flatten_valid(batch.behaviour).map(self._on_device)
        metrics = step_zero(*self._where_compared(behaviour, samples))
        begins = self.untrained and self._take_scale(batch.flatten_valid(batch.observations))
        if begins:  # an untrained policy starts with normalised inputs; later changes of statistics must not move it
            samples = self.prepare(batch)
            metrics = step_zero(behaviour, samples, warn=False)
        self.untrained = False
        metrics["train/explained_variance"] = self._explained_variance(samples)
        before = self._copy_of_parameters(), self.normalizer
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
        self._last_change = self._taken_over = self.acted = None
        self.predecessor = Predecessor(*before, self.networks.actor_parameters.clone())
        self.num_timesteps += batch.n_samples
        self.n_updates += 1
        metrics.setdefault("train/n_updates", float(self.n_updates))
        return metrics

    def _copy_of_parameters(self) -> Tensor:
        """Return the policy's parameters, in the copy that :meth:`change` has if it is of these."""
        theta, last = self.networks.actor_parameters, self._last_change
        return last[1] if last is not None and torch.equal(last[1], theta) else theta.clone()

    def _where_compared(self, behaviour: Distribution, samples: UpdateBatch) -> tuple[Distribution, UpdateBatch]:
        """Return what has acted and what is updated where they are compared: on few images if these are the same."""
        if self._taken_over is not samples.old:
            return behaviour, samples
        rows = rows_evenly(len(samples), _CHECKED)
        some = samples[rows]
        old = self._policy_at(some.observations)
        return behaviour[rows], replace(some, old=old, log_prob=old.log_prob_inside(some.taken))

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
        observations = self._on_device(raw) if raw.dtype == torch.uint8 else self.normalized(raw)
        reference = None if self.reference is None else self.reference.distribution(raw).map(self._on_device)
        actions = self._on_device(batch.flatten_valid(batch.actions))
        u = matching(batch.actions, batch.before_tanh)
        before_tanh = None if u is None else self._on_device(batch.flatten_valid(u))
        if not self.encoding.images:
            old, values, estimates = self.actor(observations), None, self.advantages(batch)
        else:
            acted = self.acted is not None and self.acted.holds(batch, self.networks, self.normalizer)
            old, values = self._acted_policy_and_values(batch) if acted else self._policy_and_values(batch)
            estimates = self.advantages(batch, values.cpu())
            old, values = old[batch.valid.flatten()], batch.flatten_valid(values)
            self._taken_over = old if acted else None
            self._last_change = old, self.networks.actor_parameters.clone(), old
        log_prob = old.log_prob_inside(actions if before_tanh is None else remembering(actions, before_tanh))
        return UpdateBatch(observations, actions, old, log_prob, *estimates, reference, before_tanh, values=values)

    def _policy_and_values(self, batch: Batch) -> tuple[Distribution, Tensor]:
        """Return the policy ``[T * N]`` and values ``[T, N]`` at all steps of a batch, in one pass over its images."""
        policy, values = in_pieces(self._both, batch.observations.flatten(0, 1))
        return policy, values.reshape(batch.valid.shape)

    def _acted_policy_and_values(self, batch: Batch) -> tuple[Distribution, Tensor]:
        """Return the same where acting has computed the policy, and the values of a critic that reads its encoder."""
        policy = batch.behaviour.map(lambda x: self._on_device(x.flatten(0, 1)))
        if self.networks.share_encoder and batch.values is not None:
            return policy, self._on_device(batch.values)
        values = in_pieces(lambda x: self.critic(self.normalized(x)), batch.observations.flatten(0, 1))
        return policy, values.reshape(batch.valid.shape)

    def inputs(self, observations: Array) -> Array:
        """Return what networks are given for the observations of an update's samples: images are scaled only here."""
        return self.normalizer(observations) if observations.itemsize == 1 else observations

    def _policy_at(self, observations: Tensor) -> Distribution:
        """Return the policy at the observations of samples, ``[n, *O]``; images are taken in pieces."""
        if not self.encoding.images:
            return self.actor(observations)
        return in_pieces(lambda x: self.actor(self.inputs(x)), observations)

    def _on_device(self, x: Tensor) -> Tensor:
        return ordinary(x).to(self.device)

    @torch.no_grad()
    def advantages(self, batch: Batch, values: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return advantages (normalised if so configured) and the critic's targets of the valid steps, ``[n]`` each.

        Args:
            batch: the rollout.
            values: the critic's ``[T, N]``, if they are known, in the CPU's memory.
        """

        def value(observations: Tensor) -> Tensor:
            if not self.encoding.images:
                return self.critic(self.normalized(observations)).cpu()
            states = observations.flatten(0, -1 - len(self.encoding.shape))
            values = in_pieces(lambda x: self.critic(self.normalized(x)).cpu(), states)
            return values.reshape(observations.shape[: -len(self.encoding.shape)])

        values = value(batch.observations) if values is None else values
        next_values = batch.next_values(values, value)
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
        return self._on_device(advantage), self._on_device(returns)

    @torch.no_grad()
    def change(self, samples: UpdateBatch) -> Change:
        """Return the change from the old policy to the current one on these samples.

        On images it is kept until the policy moves, since what judges an update and what reports it ask for the same.
        """
        if not self.encoding.images:
            return samples.change(self.actor(samples.observations))
        theta, last = self.networks.actor_parameters, self._last_change
        if last is None or last[0] is not samples.old or not torch.equal(last[1], theta):
            last = self._last_change = samples.old, theta.clone(), self._policy_at(samples.observations)
        return samples.change(last[2])

    def minibatches(
        self, samples: UpdateBatch, batch_size: int | None = None, order: Tensor | None = None
    ) -> Iterator[UpdateBatch]:
        """Iterate over minibatches of the samples in a new random order; ``batch_size`` is the setting by default."""
        batch_size = batch_size or self.config.batch_size
        if order is None:
            order = torch.randperm(len(samples), generator=self.streams.minibatches, device="cpu")
        order = self._on_device(order)
        arrays = learns_in_numpy(batch_size, self.networks.numpy_rows)
        if self.encoding.images:
            arrays = arrays and self.config.minibatch_dtype == "float32"  # numpy has no bfloat16
            return self._minibatches_of_images(samples, order.split(batch_size), arrays=arrays)
        shuffled = samples[order]
        return (shuffled.numpy() if arrays else shuffled).split(batch_size)

    def _minibatches_of_images(
        self, samples: UpdateBatch, parts: Sequence[Tensor], *, arrays: bool
    ) -> Iterator[UpdateBatch]:
        """Yield minibatches, each copied, scaled and put in its type when it is needed."""
        half = self.config.minibatch_dtype == "bfloat16"
        for rows in parts:
            minibatch = samples[rows].numpy() if arrays else samples[rows]
            x = minibatch.observations  # of no columns for a critic that is given what an encoder says
            if 0 not in x.shape:
                x = self.inputs(x)
                minibatch = replace(minibatch, observations=x.to(torch.bfloat16) if half else x)
            yield minibatch

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
        critic, observations = self.critic, samples.observations
        if not isinstance(critic, SharedCritic) or not critic.shares:
            return samples
        if not self.encoding.images:
            return replace(samples, encoded=critic.inputs(observations))
        encoded = in_pieces(lambda x: critic.inputs(self.inputs(x)), observations)
        known = type(self).value_loss is Learner.value_loss and "value_loss" not in vars(self)
        return replace(samples, encoded=encoded, observations=observations[:, :0] if known else observations)

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
        rows = slice(None) if every else self._measured_rows(batch.n_samples)
        observations = batch.flatten_valid(batch.observations)[rows]
        with numpy_as_torch(), self.networks.actor_at(last.parameters) as actor:

            def policy(x: Tensor) -> Distribution:
                return actor(self._on_device(last.normalizer(x)))

            old = in_pieces(policy, observations) if self.encoding.images else policy(observations)
        kl = mean_kl(old, batch.flatten_valid(batch.behaviour)[rows].map(self._on_device))
        self.region = self.region.adapt_to_next(kl)
        return kl

    def _explained_variance(self, samples: UpdateBatch) -> float:
        """Return 1 - Var(V_target - V) / Var(V_target) before the critic is fitted; NaN if the target is constant."""
        values = self.critic(samples.observations) if samples.values is None else samples.values
        residual = samples.returns - values
        total = samples.returns.var(correction=0)
        return (1.0 - residual.var(correction=0) / total).item() if total > 0.0 else math.nan

    def _measured_rows(self, n: int) -> Tensor | slice:
        """Return the rows of n states for metrics with a pass of their own: all, or some evenly over the batch."""
        most = self._most(n)
        return slice(None) if n <= most else rows_evenly(n, most)

    def _most(self, n: int) -> int:
        return self.config.drift_states or (_STATES if self.encoding.images else n)

    def _measure(self, batch: Batch, samples: UpdateBatch, *, absorb: bool) -> Metrics:
        """Return the drift report; then, and only then, adapt the region and update the observation statistics."""
        change = self.change(samples)
        if why := overflow(change.new, self.ent_coef):
            raise FloatingPointError(f"after {self._when} {why}")
        metrics = update_report(self.drift, change, self.region)
        observations = batch.flatten_valid(batch.observations)
        if self.drift.probe is None:
            most = min(PROBES, self._most(PROBES)) if self.encoding.images else PROBES
            self.drift.probe = Probe.choose(observations, change.old.cpu(), most)
        metrics |= self.drift.since_first(self.distribution)
        metrics |= {"drift/kl_normalizer": 0.0, "drift/kl_total": metrics["drift/kl"]}
        if isinstance(rows := self._measured_rows(len(observations)), Tensor):
            metrics["drift/states"] = float(len(rows))
        if absorb:
            self.absorb(observations)
            after = self.distribution(observations[rows])
            metrics["drift/kl_normalizer"] = mean_kl(change.new[rows], after)
            metrics["drift/kl_total"] = mean_kl(change.old[rows], after)
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


def is_klrls(agent: Learner[Any]) -> bool:
    """Tell whether acting does nothing but ask the policy, whose network for images is klrl's own."""
    own = [agent.actor, agent.actor.trunk]
    return (
        (type(agent).act, type(agent).distribution) == (Learner.act, Learner.distribution)
        and not vars(agent).keys() & {"act", "distribution"}
        and type(agent.actor).forward is Actor.forward
        and type(agent.actor).__module__.startswith("klrl.")
        and type(agent.actor.trunk) is ImageTrunk
        and not any("forward" in vars(network) for network in own)
    )


keep_old_names(Learner, RENAMED)
