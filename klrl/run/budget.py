"""A limit on how far a policy moves over its whole training, in addition to the trust region's limit per update."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from klrl.run.callback import Callback, Metrics
from klrl.text import warn_user
from klrl.validation import Positive, validate

if TYPE_CHECKING:
    from klrl.experience import Batch


@dataclass(kw_only=True, eq=False)
class KLBudget(Callback):
    """Ends training, or warns, after the first update that leaves the policy over a budget.

    The update is not undone: a sum exceeds its budget by at most one update's share.

    Args:
        total: largest ``drift/kl_sum``, the sum of KL(old||new) over the agent's updates, in nats. It is no distance:
            the same way in smaller steps costs less.
        initial: largest ``drift/kl_initial``, KL(first policy||new) on the probe states, in nats.
        length: largest ``drift/path_length``, the sum of sqrt(2 KL(old||new)) over the agent's updates, in sqrt(nats).
        on_exceed: end the training ("stop"), or continue after one ``RuntimeWarning`` ("warn").

    Raises:
        ValueError: a budget is not positive, or no budget is given.
    """

    total: Positive | None = None
    initial: Positive | None = None
    length: Positive | None = None
    on_exceed: Literal["stop", "warn"] = "stop"
    reason: str | None = field(default=None, init=False)
    """The budget exceeded, and the step; ``None`` while no budget is."""

    def __post_init__(self) -> None:
        validate(self)
        if self.total is None and self.initial is None and self.length is None:
            none = "total = None, initial = None, length = None"
            raise ValueError(f"{none}; allowed: a number > 0 for at least one of them")

    def on_training_start(self, agent: Any, total_timesteps: int) -> None:
        """Forget what an earlier training exceeded."""
        self.reason = None

    def spent(self, metrics: Metrics) -> str | None:
        """Return the budget that an update's metrics exceed, and by how much, or ``None``."""
        budgets = (
            ("drift/kl_sum", self.total, "nats"),
            ("drift/kl_initial", self.initial, "nats"),
            ("drift/path_length", self.length, "sqrt(nats)"),
        )
        sizes = [(name, float(metrics[name]), limit, unit) for name, limit, unit in budgets if limit is not None]
        over = [f"{name} = {x:.6g} {unit}, over {limit:g}" for name, x, limit, unit in sizes if not x <= limit]
        return " and ".join(over) or None

    def on_update_end(self, agent: Any, batch: Batch, metrics: Metrics) -> bool | None:
        """Compare the update's metrics with the budgets."""
        spent = self.spent(metrics)
        if spent and self.reason is None:
            self.reason = f"{spent}, after {agent.num_timesteps:,} steps"
            if self.on_exceed == "warn":
                warn_user(self.reason)
        return False if spent and self.on_exceed == "stop" else None
