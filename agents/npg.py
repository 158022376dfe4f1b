"""NPG: the natural policy gradient, with any trust region that knows the length of a step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from klrl.agents.learner import Improvement
from klrl.agents.natural_gradient import NaturalGradient, NaturalGradientConfig
from klrl.agents.update_batch import UpdateBatch
from klrl.experience import Batch
from klrl.run.callback import Callback
from klrl.trust_region import TrustRegion
from klrl.trust_region.all import members, redefines


@dataclass(frozen=True, kw_only=True, repr=False)
class NPGConfig(NaturalGradientConfig):
    """Settings of NPG (Kakade 2002, "A Natural Policy Gradient").

    The region's bound is an aim here: it sets the length of the step by the quadratic model of the KL, and nothing
    checks afterwards where the step led.
    """

    algorithm: ClassVar[str] = "npg"

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(redefines(r, "surrogate") or (redefines(r, "violation") and _endless(r)) for r in members(self.region)):
            raise ValueError(
                f"trust_region = {self.trust_region!r}; allowed for NPG: no surrogate of its own and no bound without "
                "a step_length: other agents check these after a step, NPG does not"
            )


def _endless(region: TrustRegion) -> bool:
    return not math.isfinite(region.step_length(1.0))


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
        step = self.natural_step(samples, g)
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
