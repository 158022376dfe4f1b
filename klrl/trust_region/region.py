"""Interface of all trust regions, which limit one policy update, and the region that limits nothing.

Immutable; ``adapt`` returns the region of the next update, ``adapt_within`` that of the rest of one. A new region
overrides the hooks it needs and nothing else;
:data:`klrl.trust_region.names.REGIONS` gives it a name on the command line.
"""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial, wraps
from typing import TYPE_CHECKING, Literal, Self, cast

from klrl.policy.arrays import Array
from klrl.policy.paths import brings_derivative
from klrl.renamed import adopt, keep_old_names, steps_to
from klrl.text import warn_user

if TYPE_CHECKING:
    from klrl.policy.distributions import Distribution, Gradient
    from klrl.trust_region.change import Change

OnExit = Literal["stop", "backtrack"]
DEFAULT_TARGET_KL = 0.01
"""Default bound or aim for the mean KL(old||new), nats: TRPO's."""
RENAMED = {"gain": "surrogate", "gain_gradient": "surrogate_gradient", "excess": "violation", "at": "scheduled"}
"""Hooks that had another name: old -> new."""


def _differentiate(cls: type, hook: str, function: Callable[[TrustRegion, Change], Array]) -> None:
    @wraps(function)
    def on_tensors(region: TrustRegion, change: Change) -> Array:
        return change.on_tensors(partial(function, region))

    def gradient(region: TrustRegion, change: Change) -> Gradient:
        return change.derivative(partial(function, region))

    setattr(cls, hook, on_tensors)
    setattr(cls, f"{hook}_gradient", gradient)


@dataclass(frozen=True)
class TrustRegion:
    """A region that limits nothing, since every hook is neutral, and the base class of all regions."""

    # Neutral values, no fields of the dataclass: a region overrides one with a field or a property.
    on_exit = cast("OnExit | None", None)
    """Action to take if ``violation`` > 0: stop there, or go back inside and continue; ``None``: no bound."""
    target_kl = cast("float | None", None)
    """Bound or aim in force for the mean KL(old||new), nats, if the region has one."""
    next_kl = cast("float | None", None)
    """Bound for the mean KL(old||new) on the states that the new policy visits, nats, if the region has one."""
    clip_range = cast("float | None", None)
    """Half-width of the ratio's clipping interval, if the region has one."""
    beta = cast("float | None", None)
    """Coefficient of the penalty, if the region has one."""
    lr_scale = 1.0
    """Factor of the actor's learning rate; the critic's is not scaled."""
    reads_reference = False
    """True if the region measures from a reference policy."""
    by_autograd = cast("frozenset[str]", frozenset())
    """Names of the hooks, "surrogate" and "penalty", that came without a derivative."""

    def surrogate(self, change: Change) -> Array:
        """Return the surrogate objective per state, ``[*B]``: ratio x advantage (TRPO eq. 14; PPO eq. 6)."""
        return change.ratio * change.advantage

    def penalty(self, change: Change) -> Array | float:
        """Return the penalty that is subtracted from the surrogate, ``[*B]``."""
        del change
        return 0.0

    def surrogate_gradient(self, change: Change) -> Gradient:
        """Return the derivative of the surrogate by the fields of ``change.new``, per state."""
        return weighted(change.ratio * change.advantage, change.new.score(change.action))

    def penalty_gradient(self, change: Change) -> Gradient | None:
        """Return the derivative of the penalty by the fields of ``change.new``, per state; ``None`` means 0."""
        del change
        return None

    def __init_subclass__(cls) -> None:
        """Let autograd differentiate a surrogate or penalty that comes without its derivative, and give it tensors."""
        super().__init_subclass__()
        _adopt_old_hooks(cls)
        for hook in ("surrogate", "penalty"):
            if not brings_derivative(cls, hook, f"{hook}_gradient"):
                _differentiate(cls, hook, getattr(cls, hook))
                cls.by_autograd |= {hook}
            elif f"{hook}_gradient" in vars(cls):
                cls.by_autograd -= {hook}
        keep_old_names(cls, RENAMED)
        _warn_of_lookalikes(cls)

    def violation(self, change: Change) -> float:
        """Return by how much the change, on the whole batch, violates the region's bound; <= 0 inside.

        PPO asks it of no change at all, too.
        """
        del change
        return -math.inf

    def project(self, new: Distribution, old: Distribution) -> Distribution:
        """Return the nearest policy that the region allows, state by state; new, bit for bit, where that is inside."""
        del old
        return new

    def check(self, policy: Distribution) -> None:
        """Refuse a policy that the region cannot judge.

        Raises:
            ValueError: the policy's family, and what is allowed.
        """
        self.project(policy, policy)

    def step_length(self, curvature: float) -> float:
        """Return the multiple of x = F^-1 g to try first, given the KL's curvature x'Fx; infinite if unlimited."""
        del curvature
        return math.inf

    def step_within(self, curvature: float, of_states: Callable[[], Array]) -> float:
        """Return :meth:`step_length`, where only the mean counts; a bound on single states asks for their own x'Fx.

        Args:
            curvature: x'Fx, the mean over the states.
            of_states: computes that of every state, ``[n]``.
        """
        del of_states
        return self.step_length(curvature)

    def report(self, change: Change) -> dict[str, float]:
        """Return the metrics of what the region bounds apart from the mean KL: measured values and their bounds."""
        del change
        return {}

    def scheduled(self, progress_remaining: float) -> Self:
        """Return the region for an update, given the share of the training still to come, from 1 down to 0."""
        del progress_remaining
        return self

    def at_rate(self, share: float) -> Self:
        """Return the region for an update whose step size, by its schedule, is this share of the training's first."""
        del share
        return self

    def adapt_within(self, change: Change, share: float) -> Self:
        """Return the region for the rest of an update of which a share, in (0, 1), has made the change so far (PPO)."""
        del change, share
        return self

    def adapt(self, change: Change) -> Self:
        """Return the region for the next update, given the change that this whole update made."""
        del change
        return self

    def adapt_to_next(self, kl: float) -> Self:
        """Return the region for the next update, given the last one's mean KL(old||new) on the states visited since."""
        del kl
        return self


def _adopt_old_hooks(cls: type[TrustRegion]) -> None:
    """Give a region the hooks that it defines under old names; a derivative of what it has redefined is not one."""
    outdated = steps_to(cls, "gain", "surrogate") < steps_to(cls, "gain_gradient", "surrogate_gradient")
    adopt(cls, {old: new for old, new in RENAMED.items() if not (outdated and old == "gain_gradient")})


def _warn_of_lookalikes(cls: type[TrustRegion]) -> None:
    """Warn about a method that is probably a hook with a slip in its name."""
    methods = {name: x for name, x in vars(cls).items() if inspect.isfunction(x) and not name.startswith("_")}
    used = {name for method in methods.values() for name in method.__code__.co_names}
    hooks = [name for name, x in vars(TrustRegion).items() if inspect.isfunction(x) and name not in RENAMED]
    for name in methods.keys() - used:
        if not hasattr(TrustRegion, name) and (near := difflib.get_close_matches(name, hooks, n=1, cutoff=0.9)):
            warn_user(f"{cls.__name__}.{name} is not a hook: klrl never calls it; did you mean {near[0]}?")


def check_fields(region: TrustRegion) -> None:
    """Refuse a hook in a field with an old name: nobody would call it.

    Raises:
        ValueError: naming the field.
    """
    for field in fields(region):
        if field.name in RENAMED and callable(getattr(region, field.name)):
            raise ValueError(f"{type(region).__name__} has a hook {field.name}; allowed: {RENAMED[field.name]}")


keep_old_names(TrustRegion, RENAMED)


def weighted(weight: Array, gradient: Gradient) -> Gradient:
    """Multiply each state's gradient by its weight ``[*B]``."""
    weight = weight.reshape(*weight.shape, 1)
    return tuple([weight * x for x in gradient])
