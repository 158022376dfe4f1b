"""PPO: proximal policy optimisation, with any trust region."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor, nn

from klrl.agents.base import Agent
from klrl.agents.config import AgentConfig, RegionArgument
from klrl.agents.samples import Samples, mean_of
from klrl.experience import Batch
from klrl.policy.arrays import Array
from klrl.run.callback import Callback, Metrics
from klrl.trust_region import Change, Clip
from klrl.trust_region.line_search import line_search
from klrl.validation import NonNegative, PositiveInt


@dataclass(frozen=True, kw_only=True)
class PPOConfig(AgentConfig):
    """Settings of PPO (Schulman et al. 2017, "Proximal Policy Optimization Algorithms")."""

    algorithm: ClassVar[str] = "ppo"

    trust_region: RegionArgument = "clip"
    """What limits the step."""
    n_epochs: PositiveInt = 10
    """Passes over the batch."""
    vf_coef: NonNegative = 0.5
    """Weight of the value loss."""
    ent_coef: NonNegative = 0.0
    """Weight of the entropy bonus."""
    recompute_advantages: bool = False
    """Estimate advantages and value targets anew, with the current critic, before every epoch."""


@dataclass(frozen=True)
class _Outcome:
    """Where an epoch left the policy: still moving, or stopped at a fraction of the epoch's step."""

    moving: bool = True
    scale: float = 1.0
    reason: str = "all epochs done"


@dataclass(frozen=True, eq=False)
class _ActorState:
    """The policy's parameters and Adam's moments of them at an epoch's start."""

    parameters: Tensor
    moments: dict[str, Tensor]


class PPO(Agent[PPOConfig]):
    """Algorithm 1 of the PPO paper; the trust region says what keeps the update proximal.

    >>> agent = PPO("CartPole-v1", seed=0).learn(total_timesteps=2048)
    >>> agent.history[-1]["drift/kl"] >= 0.0
    True
    """

    config_class: ClassVar[type[PPOConfig]] = PPOConfig

    def networks_to_optimize(self) -> tuple[nn.Module, ...]:
        """Actor and critic, which share no parameters, in one step."""
        return self.actor, self.critic

    def improve(self, batch: Batch, samples: Samples, callback: Callback) -> Metrics:
        """Epochs of minibatch steps; once outside a bounded region the policy stops and the critic goes on."""
        rate = self.anneal()
        metrics: Metrics = {"train/learning_rate": rate, "train/actor_learning_rate": rate * self.region.lr_scale}
        losses: dict[str, list[Array]] = defaultdict(list)
        outcome, epochs = _Outcome(), 0
        for epoch in range(self.config.n_epochs):
            if epoch > 0 and self.config.recompute_advantages:
                advantage, returns = self.advantages(batch)
                samples = replace(samples, advantage=advantage, returns=returns)
            start = self._actor_state()
            for minibatch in self.minibatches(samples):
                step = self._step(minibatch) if outcome.moving else self._critic_step(minibatch)
                for name, value in step.items():
                    losses[name].append(value)
                callback.on_minibatch_end(self, step)
            if outcome.moving:
                outcome, epochs = self._stay_inside(samples, start), epochs + 1
            callback.on_epoch_end(self, epoch)
        metrics |= {name: mean_of(values) for name, values in losses.items()}
        metrics |= {"train/policy_epochs": float(epochs), "train/backtrack_scale": outcome.scale}
        return metrics | {"train/stop_reason": outcome.reason}

    def _step(self, minibatch: Samples) -> dict[str, Array]:
        """Ascend L(theta) = E[gain - penalty] - vf_coef E[(V - V_target)^2] + ent_coef E[H] (PPO eq. 9)."""
        policy = self.actor.linearize(minibatch.observations)
        change = minibatch.change(policy.output)
        surrogate, value_loss = self.surrogate(policy, change), self.value_loss(minibatch)
        loss = self.config.vf_coef * value_loss - surrogate
        if self.config.ent_coef > 0.0:
            loss -= self.config.ent_coef * self.entropy(policy)
        self.descend(loss)
        return {
            "train/policy_gradient_loss": -surrogate.value,
            "train/value_loss": value_loss.value,
            "train/clip_fraction": self._clip_fraction(change),
        }

    def _clip_fraction(self, change: Change) -> Array:
        """Share of ratios outside the clipping interval, PPO's default one where nothing clips."""
        outside = abs(change.ratio - 1.0) > (self.region.clip_range or Clip().clip_range)
        return outside.sum() / len(outside)

    def _critic_step(self, minibatch: Samples) -> dict[str, Array]:
        """The policy has stopped, the critic has not."""
        value_loss = self.value_loss(minibatch)
        self.descend(self.config.vf_coef * value_loss)
        return {"train/value_loss": value_loss.value}

    def _actor_state(self) -> _ActorState:
        return _ActorState(self.actor_parameters.clone(), self.optimizer.moments(self.optimized.index(self.actor)))

    def _stay_inside(self, samples: Samples, start: _ActorState) -> _Outcome:
        """Judge the policy on the whole batch after an epoch that began at ``start``."""
        if self.region.on_exit is None or self._inside(samples):
            return _Outcome()
        if self.region.on_exit == "stop":
            return _Outcome(moving=False, reason="stopped: outside the trust region")
        search = line_search(
            self.actor_parameters,
            self.actor_parameters - start.parameters,
            lambda: None if self._inside(samples) else "outside the trust region",
            start=start.parameters,
            shrinking_factor=0.5,
        )
        # Adam's moments tell of steps that were taken back; the next update must not go on with them.
        self.optimizer.put_back(self.optimized.index(self.actor), start.moments)
        reason = "stopped: back inside the trust region" if search.accepted else "stopped: no step stays inside"
        return _Outcome(moving=False, scale=search.scale, reason=reason)

    def _inside(self, samples: Samples) -> bool:
        return self.region.excess(self.change(samples)) <= 0.0
