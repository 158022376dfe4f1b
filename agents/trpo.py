"""TRPO: trust region policy optimisation, with any trust region that knows the length of a step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor, nn

from klrl.agents.base import Agent
from klrl.agents.config import AgentConfig, RegionArgument
from klrl.agents.samples import Samples, mean_of
from klrl.experience import Batch
from klrl.run.callback import Callback, Metrics
from klrl.trust_region import REGIONS, FisherVectorProduct, LineSearch, conjugate_gradient, line_search
from klrl.trust_region.all import redefines
from klrl.validation import Bounds, NonNegative, Positive, PositiveInt


@dataclass(frozen=True, kw_only=True)
class TRPOConfig(AgentConfig):
    """Settings of TRPO (Schulman et al. 2015, "Trust Region Policy Optimization")."""

    algorithm: ClassVar[str] = "trpo"

    trust_region: RegionArgument = "constraint"
    """What limits the step; one of them must give it a length (none and clip do not)."""
    batch_size: PositiveInt = 128
    """The critic's minibatch size; at most n_envs * n_steps."""
    learning_rate: Positive = 1e-3
    """Adam's step size for the critic."""
    learning_rate_schedule: Literal["constant", "linear"] = "constant"
    """Keep the critic's learning rate, or let it fall linearly to zero over the training."""
    cg_max_steps: PositiveInt = 15
    """Most conjugate gradient steps (Fisher-vector products) per update."""
    cg_damping: NonNegative = 0.1
    """Multiple of the identity added to the Fisher matrix, which few samples leave singular."""
    line_search_shrinking_factor: Annotated[float, Bounds(0.0, 0.999, open_below=True)] = 0.8
    """What a rejected step is multiplied by."""
    line_search_max_iter: PositiveInt = 10
    """Most steps to try before the policy stays where it was."""
    n_critic_updates: PositiveInt = 10
    """Passes over the batch that fit the critic."""
    sub_sampling_factor: PositiveInt = 1
    """Fisher-vector products use every n-th sample; gradient and line search always use all."""
    fisher_batch_size: PositiveInt | None = None
    """Most samples at a time in the policy's gradient and Fisher-vector products, to bound their memory (all)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not math.isfinite(self.region.step_length(1.0)):
            fitting = [name for name, region in REGIONS.items() if math.isfinite(region().step_length(1.0))]
            raise ValueError(
                f"trust_region = {self.trust_region!r}; allowed for TRPO: {', '.join(fitting)}, "
                "alone or joined by '+', or a region with a step_length, such as All(KLConstraint(), yours)"
            )
        if redefines(self.region, "lr_scale"):
            raise ValueError(
                f"trust_region = {self.trust_region!r}; allowed for TRPO: "
                "nothing that scales the actor's learning rate, which TRPO does not have"
            )


class TRPO(Agent[TRPOConfig]):
    """Natural gradient, then a line search that holds the region's bound on the whole batch.

    >>> agent = TRPO("CartPole-v1", seed=0).learn(total_timesteps=2048)
    >>> agent.history[-1]["drift/kl"] <= agent.history[-1]["drift/kl_target"]
    True
    """

    config_class: ClassVar[type[TRPOConfig]] = TRPOConfig

    def networks_to_optimize(self) -> tuple[nn.Module, ...]:
        """The critic; the policy moves by the natural gradient."""
        return (self.critic,)

    def improve(self, batch: Batch, samples: Samples, callback: Callback) -> Metrics:
        """TRPO, appendix C: maximise L(theta) subject to mean KL(old||theta) <= delta."""
        config, theta = self.config, self.actor_parameters
        surrogate, g = self._policy_gradient(samples)
        states = samples.observations[:: config.sub_sampling_factor]
        F = FisherVectorProduct(self.actor.linearize, states, config.cg_damping, config.fisher_batch_size)
        cg = conjugate_gradient(F, g, max_steps=config.cg_max_steps)
        x = cg.solution
        # Damping steadies the direction; the length is that of the KL itself, so that the bound asked for is used.
        curvature = (x @ F(x)).item() - config.cg_damping * (x @ x).item()
        length = self.region.step_length(curvature) if curvature > 0.0 else 0.0
        search = LineSearch(0.0, 0, f"rejected: {cg.reason if curvature == 0.0 else 'curvature not positive'}")
        if length > 0.0:
            search = line_search(
                theta,
                length * x,
                lambda: self._objection(samples, surrogate),
                shrinking_factor=config.line_search_shrinking_factor,
                max_iter=config.line_search_max_iter,
            )
        return {
            **self._fit_critic(samples, callback),
            "train/cg_residual": cg.residual,
            "train/cg_steps": float(cg.iterations),
            "train/line_search_scale": search.scale,
            "train/line_search_tries": float(search.tries),
            "train/kl_predicted": 0.5 * (search.scale * length) ** 2 * curvature,
            "train/stop_reason": search.reason,
        }

    def _policy_gradient(self, samples: Samples) -> tuple[float, Tensor]:
        """L(theta) and its gradient at the old policy, ``fisher_batch_size`` samples at a time."""
        value, g = 0.0, torch.zeros_like(self.actor_parameters)
        for part in samples.split(self.config.fisher_batch_size or len(samples)):
            policy = self.actor.linearize(part.observations)
            surrogate = len(part) / len(samples) * self.surrogate(policy, part.change(policy.output))
            value += surrogate.value.item()
            g += surrogate.gradients()[self.actor]
        return value, g

    def _objection(self, samples: Samples, before: float) -> str | None:
        """What is wrong with the current policy, judged on the whole batch."""
        change = self.change(samples)
        if not self.region.excess(change) <= 0.0:
            return "rejected: outside the trust region"
        if not (self.judge(change).sum() / len(samples)).item() > before:
            return "rejected: the surrogate does not improve"
        return None

    def _fit_critic(self, samples: Samples, callback: Callback) -> Metrics:
        rate, losses = self.anneal(), []
        for epoch in range(self.config.n_critic_updates):
            for minibatch in self.minibatches(samples):
                loss = self.value_loss(minibatch)
                self.descend(loss)
                losses.append(loss.value)
                callback.on_minibatch_end(self, {"train/value_loss": losses[-1]})
            callback.on_epoch_end(self, epoch)
        return {"train/learning_rate": rate, "train/value_loss": mean_of(losses)}
