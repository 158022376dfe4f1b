"""COMPARE TWO: how far saved policies, of any library, are from each other."""

from typing import TYPE_CHECKING

from klrl.lazy import exports

if TYPE_CHECKING:
    from klrl.audit.auditing import Audit, audit
    from klrl.audit.divergences import Divergence, divergence
    from klrl.audit.policy import AuditedPolicy
    from klrl.audit.visits import Visits, visit

__all__ = ["Audit", "AuditedPolicy", "Divergence", "Visits", "audit", "divergence", "visit"]
__getattr__, __dir__ = exports(
    __name__,
    {
        "Audit": "auditing",
        "AuditedPolicy": "policy",
        "Divergence": "divergences",
        "Visits": "visits",
        "audit": "auditing",
        "divergence": "divergences",
        "visit": "visits",
    },
)
