"""Natural-gradient agents, the base of NPG and TRPO: the step, with the region's length, and the critic's fit."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from klrl.agents.base import Agent
from klrl.agents.epochs import Epochs, Terms
from klrl.agents.settings import NaturalGradientConfig
from klrl.agents.update_batch import UpdateBatch, mean_of
from klrl.experience import Batch
from klrl.policy.linearization import Linearization
from klrl.run.callback import Callback, Metrics
from klrl.trust_region import (
    ConjugateGradient,
    FisherVectorProduct,
    LineSearch,
    conjugate_gradient,
    fisher_diagonal,
    line_search,
)

N = TypeVar("N", bound=NaturalGradientConfig)
_EXPONENT = 0.75


@dataclass(frozen=True, eq=False)
class NaturalStep:
    """Step s = length x with x = (F + lambda)^-1 g, and how it was found."""

    cg: ConjugateGradient
    length: float
    curvature: float
    """Curvature x'F x, without damping."""
    damping: float
    """Damping's part of the curvature, lambda x'x."""

    @property
    def vector(self) -> Tensor:
        """The step, ``[P]``."""
        return self.length * self.cg.solution

    @property
    def problem(self) -> str | None:
        """Reason why there is no step to take, or ``None``."""
        if self.length > 0.0:
            return None
        return self.cg.reason if self.curvature == 0.0 else "curvature not positive"

    def metrics(self, scale: float) -> Metrics:
        """Return metrics of the step, of which the share ``scale`` was taken."""
        return {
            "train/cg_residual": self.cg.residual,
            "train/cg_steps": float(self.cg.iterations),
            "train/damping_share": self.damping / whole if (whole := self.curvature + self.damping) else math.nan,
            "train/kl_predicted": 0.5 * (scale * self.length) ** 2 * self.curvature,
        }


class NaturalGradient(Agent[N], abc.ABC):
    """An agent whose policy moves by the natural gradient; subclasses decide what to do with the step.

    The direction is (F + cg_damping)^-1 g, which damping steadies; the length comes from the KL itself, without
    damping, so that the step uses all that the region allows.
    """

    optimized: ClassVar[tuple[str, ...]] = ("critic",)

    def policy_gradient(self, samples: UpdateBatch) -> tuple[float, Tensor]:
        """Return L(theta) and its gradient at the old policy, ``fisher_batch_size`` samples at a time."""
        value, g = 0.0, torch.zeros_like(self.networks.actor_parameters)
        for part in samples.split(self.config.fisher_batch_size or len(samples)):
            policy = self._linearize(part.observations)
            objective = len(part) / len(samples) * self.objective(policy, part.change(policy.output))
            value += objective.value.item()
            g += objective.gradients()[self.actor]
        return value, g

    def _linearize(self, observations: Tensor) -> Linearization[Any]:
        """Return the policy at observations of samples, and its derivative."""
        return self.actor.linearize(self.inputs(observations))

    def by_environment(self, batch: Batch, samples: UpdateBatch) -> UpdateBatch:
        """Put one environment's samples after the other's, so that every n-th of them comes from all environments."""
        if self.config.sub_sampling_factor == 1:
            return samples
        environment = torch.arange(batch.valid.shape[1], device="cpu").expand_as(batch.valid)
        return samples[batch.flatten_valid(environment).argsort(stable=True).to(samples.log_prob.device)]

    def natural_step(self, samples: UpdateBatch, g: Tensor) -> NaturalStep:
        """Solve (F + lambda) x = g, with F over every ``sub_sampling_factor``-th sample; give x the region's length."""
        config, seen = self.config, samples[:: self.config.sub_sampling_factor]
        F = FisherVectorProduct(self._linearize, seen.observations, config.cg_damping, config.fisher_batch_size)
        cg = conjugate_gradient(
            F,
            g,
            max_steps=config.cg_max_steps,
            tolerance=config.cg_tolerance,
            preconditioner=self._preconditioner(seen),
        )
        x = cg.solution
        damping = config.cg_damping * (x @ x).item()
        curvature = cg.curvature - damping
        of_states = cache(lambda: F.of_states(x))
        length = self.region.step_within(curvature, of_states) if curvature > 0.0 else 0.0
        return NaturalStep(cg, length, curvature, damping)

    def _preconditioner(self, samples: UpdateBatch) -> Tensor | None:
        """Return (diag F + lambda)^0.75: Martens 2010 ("Deep learning via Hessian-free optimization"), section 4.7.

        It helps if the diagonal is what makes F badly conditioned. Plain conjugate gradient already profits from the
        many eigenvalues that are just lambda, and a diagonal pulls those apart.
        """
        if self.config.cg_preconditioner == "none":
            return None
        diagonal = fisher_diagonal(
            self._linearize, samples.observations, samples.taken, batch_size=self.config.fisher_batch_size
        )
        return (diagonal + self.config.cg_damping) ** _EXPONENT

    def move(self, step: NaturalStep, objection: Callable[[], str | None], **search: Any) -> LineSearch:
        """Move the policy by the step, shortened until there is no objection."""
        if step.problem is not None:
            return LineSearch(0.0, 0, f"rejected: {step.problem}")
        return line_search(self.networks.actor_parameters, step.vector, objection, **search)

    def fit_critic(self, samples: UpdateBatch, callback: Callback) -> float:
        """Fit the critic in passes of minibatch steps on the value loss; return the mean loss.

        With a shared encoder it is a head that is fitted, on what the encoder of the new policy says.
        """
        losses: list[Any] = []
        epochs = Epochs(self, self.for_critic(samples), callback)
        for epoch in range(self.config.n_critic_updates):
            losses += epochs.steps(self._critic_step, Terms(value=1.0))["train/value_loss"]
            callback.on_epoch_end(self, epoch)
        return mean_of(losses)

    def _critic_step(self, minibatch: UpdateBatch) -> dict[str, Any]:
        loss = self.value_loss(minibatch)
        self.descend(loss)
        return {"train/value_loss": loss.value}
