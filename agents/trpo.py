"""TRPO: trust region policy optimisation, with any trust region that knows the length of a step."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from klrl.agents.improvement import Improvement
from klrl.agents.natural_gradient import NaturalGradient
from klrl.agents.settings import TRPOConfig
from klrl.agents.update_batch import UpdateBatch
from klrl.experience import Batch
from klrl.run.callback import Callback


class TRPO(NaturalGradient[TRPOConfig]):
    """Natural gradient step, then a line search that enforces the region's bound on the whole batch.

    >>> agent = TRPO("CartPole-v1", seed=0).learn(total_timesteps=2048)
    >>> agent.history[-1]["drift/kl"] <= agent.history[-1]["drift/kl_target"]
    True
    """

    config_class: ClassVar[type[TRPOConfig]] = TRPOConfig

    def improve(self, batch: Batch, samples: UpdateBatch, callback: Callback) -> Improvement:
        """Maximise L(theta) subject to mean KL(old||theta) <= delta (TRPO, appendix C)."""
        before, g = self.policy_gradient(samples)
        start = self.networks.actor_parameters.clone()
        step = self.natural_step(self.by_environment(batch, samples), g)
        search = self.move(
            step,
            lambda: self._objection(samples, before, g @ (self.networks.actor_parameters - start)),
            shrinking_factor=self.config.line_search_shrinking_factor,
            max_iter=self.config.line_search_max_iter,
        )
        return Improvement(
            value_loss=self.fit_critic(samples, callback),
            stop_reason=search.reason,
            metrics={
                **step.metrics(search.scale),
                "train/line_search_scale": search.scale,
                "train/line_search_tries": float(search.tries),
            },
        )

    def _objection(self, samples: UpdateBatch, before: float, predicted: Tensor) -> str | None:
        """Return what is wrong with the current policy on the whole batch, or ``None``.

        Args:
            samples: the batch.
            before: L at the old policy.
            predicted: g's, the improvement of L that its gradient predicts.
        """
        change = self.change(samples)
        if not self.region.violation(change) <= 0.0:
            return "rejected: outside the trust region"
        now = (self.penalized_surrogate(change).sum() / len(samples)).item()
        if not now > before:
            return "rejected: the surrogate does not improve"
        if not now > before + self.config.accept_ratio * predicted.item():
            return "rejected: the surrogate improves by less than accept_ratio asks"
        return None
