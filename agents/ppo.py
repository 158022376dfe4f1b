"""PPO: proximal policy optimisation, with any trust region."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from klrl.agents.actor_critic import ActorState
from klrl.agents.base import Agent
from klrl.agents.epochs import Epochs, Terms
from klrl.agents.improvement import Improvement
from klrl.agents.settings import PPOConfig
from klrl.agents.update_batch import UpdateBatch, mean_of
from klrl.experience import Batch
from klrl.policy.arrays import Array, share
from klrl.policy.shared_encoder import together
from klrl.run.callback import Callback
from klrl.trust_region import Change, Clip
from klrl.trust_region.all import redefines
from klrl.trust_region.line_search import back_inside, line_search


@dataclass(frozen=True)
class _Outcome:
    """State of the policy after an epoch: still moving or stopped, at a share of the way from the old policy."""

    moving: bool = True
    scale: float = 1.0
    reason: str = "all epochs done"


class PPO(Agent[PPOConfig]):
    """Algorithm 1 of the PPO paper; the trust region keeps the update proximal.

    >>> agent = PPO("CartPole-v1", seed=0).learn(total_timesteps=2048)
    >>> agent.history[-1]["drift/kl"] >= 0.0
    True
    """

    config_class: ClassVar[type[PPOConfig]] = PPOConfig

    @property
    def ent_coef(self) -> float:
        """Weight of the entropy bonus in this update."""
        return self.values["ent_coef"]

    def improve(self, batch: Batch, samples: UpdateBatch, callback: Callback) -> Improvement:
        """Take epochs of minibatch steps, after each of which the policy stays inside a bounded region.

        A policy that left a constraint goes back towards the old one until it is inside, and on from there: projected
        gradient ascent, with a search along the line between them in place of the projection. Where the region stops
        the policy, the critic goes on alone.
        """
        losses: dict[str, list[Array]] = defaultdict(list)
        outcome, policy_epochs = _Outcome(), 0
        goes_back = self.region.on_exit == "backtrack" or redefines(self.region, "project")
        old = self.networks.actor_state() if goes_back or redefines(self.region, "adapt_within") else None
        inside = old
        epochs, rate = Epochs(self, samples, callback), self.networks.optimizer.learning_rate * self.region.lr_scale
        for epoch in range(self.config.n_epochs):
            if epoch > 0 and self.config.recompute_advantages:
                advantage, returns = self.advantages(batch)
                samples = replace(samples, advantage=advantage, returns=returns)
                epochs = Epochs(self, samples if outcome.moving else self.for_critic(samples), callback)
            terms = Terms(self.config.vf_coef, outcome.moving, self.ent_coef if outcome.moving else 0.0)
            for name, values in epochs.steps(self._step if outcome.moving else self._critic_step, terms).items():
                losses[name] += values
            if outcome.moving:
                outcome, policy_epochs = self._stay_inside(samples, old, inside), policy_epochs + 1
                if not outcome.moving and self.networks.share_encoder:
                    epochs = Epochs(self, self.for_critic(samples), callback)
            if outcome.moving and epoch + 1 < self.config.n_epochs:
                self._adapt(samples, (epoch + 1) / self.config.n_epochs)
                inside = self.networks.actor_state() if self.region.on_exit == "backtrack" else None
            callback.on_epoch_end(self, epoch)
        fitted = outcome.scale == 1.0 or policy_epochs < self.config.n_epochs
        if old is not None and redefines(self.region, "project"):
            settled = self._settle(samples, old, outcome)
            outcome, fitted = settled, fitted and settled is outcome
        if self.networks.share_encoder and not fitted:  # the encoder went back after the critic's last pass
            epochs, terms = Epochs(self, self.for_critic(samples), callback), Terms(self.config.vf_coef)
            losses["train/value_loss"] += epochs.steps(self._critic_step, terms)["train/value_loss"]
        means = {name: mean_of(values) for name, values in losses.items()}
        bonus = self.ent_coef * samples.old.entropy().mean().item() if self.ent_coef > 0.0 else 0.0
        loss = means["train/policy_gradient_loss"] + self.config.vf_coef * means["train/value_loss"] - bonus
        return Improvement(
            value_loss=means["train/value_loss"],
            stop_reason=outcome.reason,
            metrics={
                **means,
                "train/actor_learning_rate": rate,
                "train/loss": loss,
                "train/ent_coef": self.ent_coef,
                "train/n_updates": float((self.n_updates + 1) * self.config.n_epochs),
                "train/policy_epochs": float(policy_epochs),
                "train/backtrack_scale": outcome.scale,
            },
        )

    def _step(self, minibatch: UpdateBatch) -> dict[str, Array]:
        """Ascend L(theta) = E[surrogate - penalty] - vf_coef E[(V - V_target)^2] + ent_coef E[H] (PPO eq. 9)."""
        with together(self.actor, self.critic, minibatch.observations) as policy:
            change = minibatch.change(policy.output)
            objective, value_loss = self.objective(policy, change), self.value_loss(minibatch)
        loss = self.config.vf_coef * value_loss - objective
        if self.ent_coef > 0.0:
            loss -= self.ent_coef * self.entropy(policy)
        self.descend(loss)
        return {
            "train/policy_gradient_loss": -objective.value,
            "train/value_loss": value_loss.value,
            "train/clip_fraction": self._clip_fraction(change),
        }

    def _clip_fraction(self, change: Change) -> Array:
        """Return the share of ratios outside the clipping interval, or PPO's default one if nothing clips."""
        return share(abs(change.ratio - 1.0) > (self.region.clip_range or Clip().clip_range))

    def _critic_step(self, minibatch: UpdateBatch) -> dict[str, Array]:
        """Take a step of the critic alone, after the policy has stopped."""
        value_loss = self.value_loss(minibatch)
        self.descend(self.config.vf_coef * value_loss)
        return {"train/value_loss": value_loss.value}

    def _stay_inside(self, samples: UpdateBatch, old: ActorState | None, inside: ActorState | None) -> _Outcome:
        """Check the policy on the whole batch after an epoch; outside, stop it or take it back towards the old one.

        Where nothing on the way to the old policy is inside, it is what it was before the epoch, and stops.
        """
        if self.region.on_exit is None or (violation := self._violation(samples)) <= 0.0:
            return _Outcome()
        if self.region.on_exit == "stop" or old is None or inside is None:
            return _Outcome(moving=False, reason="stopped: outside the trust region")
        found = back_inside(
            self.networks.actor_parameters,
            old.parameters,
            lambda: self._violation(samples),
            violation=violation,
            at_start=self.region.violation(samples.change(samples.old)),
        )
        if found.accepted:  # most of the way is kept, and so are Adam's moments
            return _Outcome(scale=found.scale, reason="all epochs done, back inside the trust region")
        self.networks.actor_parameters.copy_(inside.parameters)
        self.networks.put_back_moments(inside)
        return _Outcome(moving=False, scale=0.0, reason="stopped: no step stays inside")

    def _settle(self, samples: UpdateBatch, old: ActorState, outcome: _Outcome) -> _Outcome:
        """Go back towards the policy before the update until the policy is its own projection."""
        if self._is_projection(samples):
            return outcome
        scale = line_search(
            self.networks.actor_parameters,
            self.networks.actor_parameters - old.parameters,
            lambda: None if self._is_projection(samples) else "not its own projection",
            start=old.parameters,
            shrinking_factor=0.9,
            max_iter=40,
        ).scale
        if scale == 0.0:
            self.networks.put_back_moments(old)
        reason = "projected: back inside in every state" if scale > 0.0 else "stopped: no step stays inside"
        return _Outcome(moving=False, scale=scale * outcome.scale, reason=reason)

    def _adapt(self, samples: UpdateBatch, share: float) -> None:
        """Let the region adapt to the share of the update that is done."""
        if redefines(self.region, "adapt_within"):
            self.region = self.region.adapt_within(self.change(samples), share)
            self.anneal()

    def _violation(self, samples: UpdateBatch) -> float:
        return self.region.violation(self.change(samples))

    def _is_projection(self, samples: UpdateBatch) -> bool:
        """Tell whether the region's projection changes nothing, and a constraint beside it holds."""
        change = self.change(samples)
        pairs = zip(self.region.project(change.new, change.old).parameters, change.new.parameters, strict=True)
        return all(map(torch.equal, *zip(*pairs, strict=True))) and (
            self.region.on_exit != "backtrack" or self.region.violation(change) <= 0.0
        )
