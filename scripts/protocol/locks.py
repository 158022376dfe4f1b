"""To do."""

from klrl.scripts.protocol.case import Case


def cases(seed: int) -> list[Case]:
    """None yet."""
    return []
