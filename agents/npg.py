"""NPG: the natural policy gradient, with any trust region that knows the length of a step."""

from __future__ import annotations

from typing import ClassVar

from klrl.agents.improvement import Improvement
from klrl.agents.natural_gradient import NaturalGradient
from klrl.agents.settings import NPGConfig
from klrl.agents.update_batch import UpdateBatch
from klrl.experience import Batch
from klrl.run.callback import Callback


class NPG(NaturalGradient[NPGConfig]):
    """Natural gradient step of the length that the quadratic model of the KL allows, without a line search.

    So ``target_kl`` is an aim, not a bound: ``train/kl_predicted`` meets it, ``drift/kl`` is the measured KL.

    >>> agent = NPG("CartPole-v1", seed=0).learn(total_timesteps=2048)
    >>> round(agent.history[-1]["train/kl_predicted"] / agent.history[-1]["drift/kl_target"], 5)
    1.0
    """

    config_class: ClassVar[type[NPGConfig]] = NPGConfig

    def improve(self, batch: Batch, samples: UpdateBatch, callback: Callback) -> Improvement:
        """Move to theta + F^-1 g (Kakade 2002, section 2), with the step length of Schulman et al. 2015, appendix C."""
        _, g = self.policy_gradient(samples)
        step = self.natural_step(self.by_environment(batch, samples), g)
        taken = self.move(step, lambda: self._objection(samples), max_iter=1)
        return Improvement(
            value_loss=self.fit_critic(samples, callback),
            stop_reason=taken.reason,
            metrics=step.metrics(taken.scale),
        )

    def _objection(self, samples: UpdateBatch) -> str | None:
        """Object to a step whose KL or parameters are infinite or NaN."""
        finite = self.networks.actor_parameters.isfinite().all() and self.change(samples).kl.mean().isfinite()
        return None if finite else "rejected: KL or parameters not finite"
