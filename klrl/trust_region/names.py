"""Trust regions by name, for command lines and configs, and the settings that come with them.

A new region gets a name in :data:`REGIONS` and a line in :data:`SUMMARIES`; a new setting is a parameter there and a
field of :class:`RegionSettings`, with its help text and its range. Nothing outside this package lists either.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Annotated, Any

from klrl.own import named
from klrl.schedules import During, Value, scheduled, values_at
from klrl.text import nearest, one_line
from klrl.trust_region.all import All, members
from klrl.trust_region.bounds import (
    CVaRConstraint,
    KLConstraint,
    Level,
    MaxConstraint,
    NextStateConstraint,
    QuantileConstraint,
    RatioDeviation,
    ReferenceConstraint,
    ReferenceForwardConstraint,
)
from klrl.trust_region.coefficients import SCHEDULES, Coefficient
from klrl.trust_region.learning_rate import AdaptiveLearningRate
from klrl.trust_region.penalties import (
    KLPenalty,
    MirrorDescent,
    RatioVariancePenalty,
    ReferenceForwardPenalty,
    ReferencePenalty,
)
from klrl.trust_region.projection import FrobeniusProjection, KLProjection, WassersteinProjection
from klrl.trust_region.region import DEFAULT_TARGET_KL, TrustRegion, check_fields
from klrl.trust_region.scheduling import takes
from klrl.trust_region.surrogates import SPO, Clip, KLMask, Rollback, TotalVariationMask, TrulyPPO
from klrl.validation import Fraction, Limit, PositiveWeight, Weight, validate

ScheduledLimit = Annotated[Value, During(0.0, 1e6, open_below=True)]


def _early_stop(target_kl: float = DEFAULT_TARGET_KL) -> TrustRegion:
    return KLConstraint(target_kl, on_exit="stop")


def _constraint(target_kl: float = DEFAULT_TARGET_KL) -> TrustRegion:
    return KLConstraint(target_kl)


def _next_state_constraint(next_kl: float = DEFAULT_TARGET_KL) -> TrustRegion:
    return NextStateConstraint(next_kl=next_kl)


def _penalty(schedule: Any) -> Callable[..., TrustRegion]:
    def at_will(kl_coef: float = 1.0) -> TrustRegion:
        return KLPenalty(schedule(beta=kl_coef))

    def aiming(target_kl: float = DEFAULT_TARGET_KL, kl_coef: float = 1.0) -> TrustRegion:
        return KLPenalty(schedule(target_kl=target_kl, beta=kl_coef))

    return at_will if schedule.target_kl is None else aiming


def _adaptive_lr(target_kl: float = DEFAULT_TARGET_KL) -> TrustRegion:
    return AdaptiveLearningRate(target_kl=target_kl)


def _mdpo(kl_coef: float = 1.0) -> TrustRegion:
    return MirrorDescent(kl_coef=kl_coef)


def _r2vpo(ratio_variance: float = 0.02) -> TrustRegion:
    return RatioVariancePenalty(ratio_variance=ratio_variance)


def _moves(schedule: type[Coefficient]) -> str:
    """Return how a schedule moves beta: the first line of its docstring, without the formula."""
    first = (schedule.__doc__ or "").partition("\n")[0].partition(":")[0].rstrip(".")
    return f"{first[:1].lower()}{first[1:]}".replace("beta", "β").replace("<=", "≤")


REGIONS: dict[str, Callable[..., TrustRegion]] = {
    "none": TrustRegion,
    "clip": Clip,
    "spo": SPO,
    "rollback": Rollback,
    "truly-ppo": TrulyPPO,
    "dppo-kl": KLMask,
    "dppo-tv": TotalVariationMask,
    "projection": KLProjection,
    "w2-projection": WassersteinProjection,
    "frobenius-projection": FrobeniusProjection,
    "early-stop": _early_stop,
    "constraint": _constraint,
    "next-state-constraint": _next_state_constraint,
    "quantile-constraint": QuantileConstraint,
    "cvar-constraint": CVaRConstraint,
    "max-constraint": MaxConstraint,
    "espo": RatioDeviation,
    **{f"{name}-penalty": _penalty(schedule) for name, schedule in SCHEDULES.items()},
    "mdpo": _mdpo,
    "r2vpo": _r2vpo,
    "adaptive-lr": _adaptive_lr,
    "reference-penalty": ReferencePenalty,
    "reference-constraint": ReferenceConstraint,
    "reference-forward-penalty": ReferenceForwardPenalty,
    "reference-forward-constraint": ReferenceForwardConstraint,
}
"""Names that ``--trust-region`` accepts; the parameters of the function are the settings it reads."""

SUMMARIES: dict[str, str] = {
    "none": "nothing",
    "clip": "clips the probability ratio",
    "spo": "takes a parabola from the surrogate, whose best ratio is where PPO's interval ends",
    "rollback": "clips the ratio, and beyond the interval lets the surrogate fall",
    "truly-ppo": "takes α KL from the surrogate in states whose own KL reaches a bound, where the surrogate improved",
    "dppo-kl": "drops samples that drive a state farther out whose KL(old‖new) is over a bound",
    "dppo-tv": "the same by the total variation (discrete actions, and Gaussians of one dimension)",
    "projection": (
        "moves every state's new distribution into KL(new‖old) ≤ a bound and lets the surrogate judge that (PPO)"
    ),
    "w2-projection": "the same for Gaussians, in the Wasserstein-2 distance (PPO)",
    "frobenius-projection": "the same for Gaussians, in the distance of means and variances (PPO)",
    "early-stop": "ends the policy's epochs once the whole-batch KL is over the target; keeps the step that was",
    "constraint": "mean KL(old‖new) ≤ target after every update",
    "next-state-constraint": (
        "the same with a target that moves so that, on the states that the new policy visits, mean KL(old‖new) ≤ a "
        "bound after all but 5 % of the updates"
    ),
    "quantile-constraint": "KL(old‖new) ≤ a bound in a share of the states, after every update",
    "cvar-constraint": "mean KL(old‖new) of the states with the largest ≤ a bound, after every update",
    "max-constraint": "KL(old‖new) ≤ a bound in every state of the batch, after every update",
    "espo": "ends the policy's epochs once the batch's mean |ratio − 1| is over a bound; keeps the step that was",
    **{f"{name}-penalty": f"subtracts β KL(old‖new); {_moves(schedule)}" for name, schedule in SCHEDULES.items()},
    "mdpo": "subtracts KL(new‖old) / t, where t falls to 0 over the training; aims at no KL",
    "r2vpo": "subtracts β (ratio − 1)²; multiplier of the constraint χ²(new‖old) ≤ an aim, by ascent on its dual",
    "adaptive-lr": "scales the actor's learning rate by the measured KL; aims, does not bound (PPO)",
    "reference-penalty": (
        "subtracts a multiple of KL(new‖reference): fine-tuning without forgetting; limits no single update"
    ),
    "reference-constraint": "mean KL(new‖reference) ≤ a bound, by backtracking",
    "reference-forward-penalty": "subtracts a multiple of KL(reference‖new), which forgetting follows",
    "reference-forward-constraint": "mean KL(reference‖new) ≤ a bound, by backtracking",
}
"""Effect of each on an update, for tables of them all."""

PARAMETERS = tuple(dict.fromkeys(name for region in REGIONS.values() for name in inspect.signature(region).parameters))
"""Settings that some region reads."""


def parameters_of(region: Any) -> frozenset[str]:
    """Return the settings that a region reads, given its name ``A`` or ``A+B``; an object has its own and reads none.

    Raises:
        ValueError: an unknown name.
    """
    if not isinstance(region, str):
        return frozenset()
    names = region.split("+")
    for name in names:
        if name not in REGIONS:
            known = f"{', '.join(REGIONS)}, or several joined by '+'{nearest(name, REGIONS)}"
            raise ValueError(f"trust_region = {region!r}; allowed: {known}")
    return frozenset().union(*(inspect.signature(REGIONS[name]).parameters for name in names))


def readers_of(setting: str) -> str:
    """Return the names of the regions that read a setting, separated by commas."""
    return ", ".join(name for name in REGIONS if setting in parameters_of(name))


def with_region(settings: Mapping[str, Any], region: Any) -> dict[str, Any]:
    """Return settings with this region, a name or an object, in the place of their own.

    Settings of other regions, those that it does not read, are dropped; whatever is no region's is kept.
    """
    unread = {*PARAMETERS} - parameters_of(region)
    return {name: value for name, value in settings.items() if name not in unread} | {"trust_region": region}


def region_from_name(name: str, **settings: float) -> TrustRegion:
    """Build ``A`` or ``A+B``; each region takes the settings that it reads and defaults for the rest.

    Raises:
        ValueError: an unknown name, or a setting that none of the regions reads.
    """
    known = parameters_of(name)
    for setting, value in settings.items():
        if setting not in known:
            readers = readers_of(setting)
            raise ValueError(f"{setting} = {value}; allowed: only with a trust region that reads it ({readers})")
    regions = [REGIONS[x](**{k: v for k, v in settings.items() if k in parameters_of(x)}) for x in name.split("+")]
    return regions[0] if len(regions) == 1 else All(*regions)


def region_of_word(word: str) -> str | TrustRegion:
    """Return what a word on a command line stands for: a name as it is, or the region ``MODULE:NAME`` of one's own.

    Names in files are never imported: this is for words that the user gives.

    Raises:
        ValueError: ``MODULE:NAME`` names neither a region nor what makes one.
    """
    if ":" not in word:
        return word
    if "+" in word:
        raise ValueError(f"trust_region = {word!r}; allowed: MODULE:NAME alone, of All(...) where there are several")
    allowed = "MODULE:NAME of a TrustRegion, or of what makes one"
    found = named("trust_region", word, allowed)
    try:
        region = found if isinstance(found, TrustRegion) else found()
    except (ValueError, TypeError) as error:
        raise ValueError(f"trust_region = {word!r}: {one_line(error)}; allowed: {allowed}") from error
    if not isinstance(region, TrustRegion):
        raise ValueError(f"trust_region = {word!r} is a {type(region).__name__}; allowed: {allowed}")
    return region


@dataclass(frozen=True, kw_only=True)
class RegionSettings:
    """A trust region by its name with its settings, or as an object that has its own.

    Part of every agent's config, where each field is a flag. ``None`` stands for the region's default, which the help
    text names.
    """

    trust_region: str | TrustRegion
    """Trust region: everything that limits the step."""
    target_kl: ScheduledLimit | None = None
    """Bound for an update's mean KL(old||new), nats (constraint, early-stop: 0.01), or aim
    (adaptive-lr, penalties that aim: 0.01); may be scheduled."""
    clip_range: ScheduledLimit | None = None
    """Half-width of the ratio's interval around 1 (clip, spo, rollback: 0.2); may be scheduled."""
    rollback_slope: PositiveWeight | None = None
    """Slope of the surrogate outside: multiple of the ratio's slope (rollback: 0.3) or of the state's KL
    (truly-ppo: 5.0)."""
    state_kl: Limit | None = None
    """KL of a single state, nats: KL(old||new) beyond which the surrogate falls (truly-ppo: 0.03) or samples that drive
    the state farther out are dropped (dppo-kl: 0.05), or bound for KL(new||old) (projection: 0.03)."""
    state_distance: Limit | None = None
    """Bound for a single state's distance from the old Gaussian, in old standard deviations (w2-projection,
    frobenius-projection: 0.25)."""
    regression_coef: Weight | None = None
    """Weight of KL(new||projection), which draws the network towards its projection (all projections: 10.0)."""
    ratio_deviation: Limit | None = None
    """Mean |ratio - 1| over the batch beyond which the policy stops (espo: 0.25)."""
    kl_coef: Annotated[Value, During(1e-4, 1e4)] | None = None
    """Penalty coefficient beta, or its first value where it moves (mdpo, all penalties with a schedule: 1.0); may be
    scheduled for mdpo and fixed-penalty."""
    reference_coef: PositiveWeight | None = None
    """Weight of KL(new||reference) in the objective (reference-penalty: 0.1)."""
    reference_kl: Limit | None = None
    """Bound for the mean KL(new||reference), nats (reference-constraint: 0.1)."""
    reference_forward_coef: PositiveWeight | None = None
    """Weight of KL(reference||new) in the objective (reference-forward-penalty: 0.1)."""
    reference_forward_kl: Limit | None = None
    """Bound for the mean KL(reference||new), nats (reference-forward-constraint: 0.1)."""
    quantile_kl: Limit | None = None
    """Bound for a quantile of the states' KL(old||new), nats (quantile-constraint: 0.03)."""
    quantile_level: Level | None = None
    """Share of the batch's states below the quantile; the others are the tail (quantile-constraint, cvar-constraint:
    0.95)."""
    cvar_kl: Limit | None = None
    """Bound for the mean KL(old||new) of the tail, nats (cvar-constraint: 0.04)."""
    max_state_kl: Limit | None = None
    """Bound for the largest KL(old||new) of a state, nats (max-constraint: 0.06)."""
    state_tv: Fraction | None = None
    """Total variation of a single state, old to new, beyond which samples that drive it farther out are dropped
    (dppo-tv: 0.15)."""
    ratio_variance: Limit | None = None
    """Aim for the mean over the states of chi^2(new||old), the variance of the ratio (r2vpo: 0.02)."""
    next_kl: Limit | None = None
    """Bound for the mean KL(old||new) on the states that the new policy visits, nats (next-state-constraint: 0.01)."""

    def __post_init__(self) -> None:
        validate(self)

    @cached_property
    def region(self) -> TrustRegion:
        """The trust region that the settings describe.

        Raises:
            ValueError: a setting that it does not read, or a hook under an old name where it cannot be found.
        """
        names = [field.name for field in fields(RegionSettings) if field.name != "trust_region"]
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        if isinstance(self.trust_region, str):
            first = {name: value for name, value in values_at(self, 1.0).items() if name in given}
            region = region_from_name(self.trust_region, **(given | first))
            for name in (name for name in scheduled(self) if name in given and not takes(region, name)):
                said = f"{name} = {given[name]!r} with {self.trust_region!r}, which moves it by itself"
                raise ValueError(f"{said}; allowed: a number, its first value")
            return region
        for name, value in given.items():
            raise ValueError(f"{name} = {value}; allowed: only beside the name of a trust region, not an object")
        for region in members(self.trust_region):
            check_fields(region)
        return self.trust_region
