"""Settings of every algorithm, apart from what reads them: they are flags, and a help text needs no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from klrl.agents.config import AgentConfig, Passes, RegionArgument, StepSize
from klrl.schedules import During, Value
from klrl.shown import changed
from klrl.trust_region import REGIONS, TrustRegion
from klrl.trust_region.all import members, redefines
from klrl.validation import Bounds, Fraction, Positive, PositiveInt, Weight, validate

__all__ = ["DPOConfig", "DistillationConfig", "NPGConfig", "PPOConfig", "PreferencesConfig", "TRPOConfig"]

ScheduledWeight = Annotated[Value, During(0.0, 1e6)]
Direction = Literal["forward", "reverse"]


@dataclass(frozen=True, kw_only=True, repr=False)
class PPOConfig(AgentConfig):
    """Settings of PPO (Schulman et al. 2017, "Proximal Policy Optimization Algorithms")."""

    algorithm: ClassVar[str] = "ppo"

    trust_region: RegionArgument = "clip"
    """Trust region: everything that limits the step."""
    n_epochs: Passes = 10
    """Passes over the batch."""
    vf_coef: Weight = 0.5
    """Weight of the value loss."""
    ent_coef: ScheduledWeight = 0.0
    """Weight of the entropy bonus; may be scheduled."""
    recompute_advantages: bool = False
    """Estimate advantages and value targets anew, with the current critic, before every epoch."""


@dataclass(frozen=True, kw_only=True, repr=False)
class NaturalGradientConfig(AgentConfig):
    """Settings of agents whose policy moves by the natural gradient and whose critic moves by its own."""

    at_most_samples: ClassVar[tuple[str, ...]] = ("batch_size", "sub_sampling_factor")

    trust_region: RegionArgument = "constraint"
    """Trust region: everything that limits the step; one of them must give it a length (none and clip do not)."""
    batch_size: PositiveInt = 128
    """The critic's minibatch size; at most n_envs * n_steps."""
    learning_rate: StepSize = 1e-3
    """Adam's step size for the critic, a number or a schedule: linear:FROM:TO, cosine:FROM:TO, constant:X,
    piecewise:X:DONE:X:... with shares of the training that are done. Other settings that may be scheduled say so."""
    learning_rate_schedule: Literal["constant", "linear"] = "constant"
    """Keep the critic's learning rate if it is a number, or let it fall linearly to zero over the training."""
    cg_max_steps: Passes = 15
    """Maximum number of conjugate gradient steps (Fisher-vector products) per update."""
    cg_tolerance: Annotated[float, Bounds(0.0, 1.0, open_below=True)] = 1e-4
    """Relative residual ||g - F x|| / ||g|| below which conjugate gradient ends."""
    cg_damping: Weight = 0.1
    """Multiple of the identity added to the Fisher matrix, which is singular on few samples."""
    cg_preconditioner: Literal["none", "diagonal"] = "none"
    """Preconditioner of conjugate gradient: none, or (diagonal of the Fisher matrix + cg_damping)^0.75, which takes
    more steps to a small residual with the default networks, not fewer."""
    n_critic_updates: Passes = 10
    """Passes over the batch that fit the critic."""
    sub_sampling_factor: PositiveInt = 1
    """Fisher-vector products use every n-th sample; gradient and drift report always use all."""
    fisher_batch_size: PositiveInt | None = None
    """Maximum number of samples at a time in the policy's gradient and Fisher-vector products, to bound their memory
    (by default all)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sub_sampling_factor > self.n_envs * self.n_steps:
            whole = self.n_envs * self.n_steps
            raise ValueError(
                f"sub_sampling_factor = {self.sub_sampling_factor}; allowed: at most n_envs * n_steps = {whole}"
            )
        name = self.algorithm.upper()
        if not math.isfinite(self.region.step_length(1.0)):
            fitting = [name for name, region in REGIONS.items() if math.isfinite(region().step_length(1.0))]
            raise ValueError(
                f"trust_region = {self.trust_region!r}; allowed for {name}: {', '.join(fitting)}, "
                "alone or joined by '+', or a region with a step_length, such as All(KLConstraint(), yours)"
            )
        if redefines(self.region, "lr_scale"):
            raise ValueError(
                f"trust_region = {self.trust_region!r}; allowed for {name}: "
                f"nothing that scales the actor's learning rate, which {name} does not have"
            )
        if redefines(self.region, "project"):
            raise ValueError(f"trust_region = {self.trust_region!r}; allowed for {name}: no projection, it is for PPO")
        if self.cg_preconditioner != "none" and self.cg_damping == 0.0:
            raise ValueError(
                f"cg_preconditioner = {self.cg_preconditioner!r}; allowed: 'none' where cg_damping = 0, "
                "since elements of the diagonal may be 0"
            )


@dataclass(frozen=True, kw_only=True, repr=False)
class TRPOConfig(NaturalGradientConfig):
    """Settings of TRPO (Schulman et al. 2015, "Trust Region Policy Optimization")."""

    algorithm: ClassVar[str] = "trpo"

    line_search_shrinking_factor: Annotated[float, Bounds(0.0, 0.999, open_below=True)] = 0.8
    """Factor that a rejected step is multiplied by."""
    line_search_max_iter: Passes = 10
    """Maximum number of steps to try before the policy stays where it was."""
    accept_ratio: Fraction = 0.0
    """Share of the improvement that the gradient predicts for a step, below which the line search rejects it; 0 asks
    for any improvement, as the paper does."""


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


CONFIGS: Mapping[str, type[AgentConfig]] = {cls.algorithm: cls for cls in (PPOConfig, TRPOConfig, NPGConfig)}
"""Settings by the agents' names on the command line; :data:`~klrl.agents.names.AGENTS` has the agents."""


class _Settings:
    """Settings that are checked when they are made, and shown where they differ from their defaults."""

    def __repr__(self) -> str:
        return changed(self)

    def __post_init__(self) -> None:
        validate(self)


@dataclass(frozen=True, kw_only=True, repr=False)
class DistillationConfig(_Settings):
    """Settings of policy distillation."""

    direction: Direction = "forward"
    """KL to minimise: KL(teacher||student), so that the student covers everything the teacher does (forward), or
    KL(student||teacher), so that it does nothing the teacher does not (reverse)."""
    temperature: Positive = 1.0
    """Temperature of the teacher: the student is fitted to its policy to the power 1 / temperature, normalised; that is
    more decided than the teacher below 1."""
    states: Literal["student", "teacher"] = "student"
    """Agent that visits the states: the student, as in DAgger, or the teacher."""
    n_rounds: PositiveInt = 20
    """Rounds of collecting states and fitting the student there."""
    n_envs: PositiveInt = 8
    """Parallel environments."""
    n_steps: PositiveInt = 128
    """Steps per environment and round."""
    n_epochs: PositiveInt = 10
    """Passes over a round's states."""
    batch_size: PositiveInt = 64
    """Minibatch size."""
    learning_rate: Positive = 1e-3
    """Adam's step size."""
    max_grad_norm: Positive = 0.5
    """Gradients longer than this are scaled down to it."""


@dataclass(frozen=True, kw_only=True, repr=False)
class PreferencesConfig(_Settings):
    """Settings of preferences made from play."""

    n_pairs: PositiveInt = 512
    """Pairs of segments to play."""
    segment_length: PositiveInt = 100
    """Steps per segment, fewer where the episode ends."""
    label: Literal["bradley-terry", "larger"] = "bradley-terry"
    """Rule of preference: by chance, with odds e^(difference of returns / temperature), or always the larger return
    (pairs with equal returns are left out)."""
    temperature: Positive = 1.0
    """Difference of returns that makes the better segment e times as likely to be preferred (bradley-terry)."""
    n_envs: PositiveInt = 16
    """Parallel environments."""


@dataclass(frozen=True, kw_only=True, repr=False)
class DPOConfig(_Settings):
    """Settings of DPO."""

    beta: Positive = 0.1
    """Price of KL(policy||reference), in units of the reward (return / temperature) per nat."""
    n_epochs: PositiveInt = 20
    """Passes over the preferences."""
    batch_size: PositiveInt = 64
    """Pairs per minibatch."""
    learning_rate: Positive = 1e-3
    """Adam's step size."""
    max_grad_norm: Positive = 0.5
    """Gradients longer than this are scaled down to it."""
