"""Outcome of the rule by which an algorithm improves its policy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from klrl.run.callback import Metrics
from klrl.text import warn_user


@dataclass(frozen=True, kw_only=True)
class Improvement:
    """Outcome of an algorithm's update."""

    value_loss: float
    """Mean of the critic's loss over its steps (metric ``train/value_loss``)."""
    stop_reason: str
    """Reason why the policy's update ended where it did (``train/stop_reason``)."""
    metrics: Mapping[str, float | str] = field(default_factory=dict)
    """Further metrics, by ``group/name``."""

    @classmethod
    def of(cls, result: Improvement | Mapping[str, Any]) -> Improvement:
        """Read what ``improve`` returned: for one version also a dict of metrics, as it was before."""
        if isinstance(result, Improvement):
            return result
        metrics = dict(result)
        value_loss, reason = float(metrics.pop("train/value_loss")), str(metrics.pop("train/stop_reason", ""))
        warn_user("improve() returned a dict; allowed: an Improvement; dicts go with klrl 0.2", DeprecationWarning)
        return cls(value_loss=value_loss, stop_reason=reason, metrics=metrics)

    def checked(self, when: str) -> Metrics:
        """Return everything as metrics.

        Raises:
            FloatingPointError: the value loss is infinite or NaN.
        """
        if not math.isfinite(self.value_loss):
            raise FloatingPointError(f"train/value_loss = {self.value_loss} in {when}; allowed: finite numbers")
        return {**self.metrics, "train/value_loss": self.value_loss, "train/stop_reason": self.stop_reason}
