"""JSON with a digest of itself: a changed file is refused."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def sealed(data: dict[str, Any]) -> bytes:
    """Return the canonical text of an object, with its digest as one more entry, ``sha256``."""
    digest = hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
    return json.dumps(data | {"sha256": digest}, indent=1, sort_keys=True).encode()


def unsealed(text: bytes) -> dict[str, Any]:
    """Restore the object from :func:`sealed` text.

    Raises:
        ValueError: the text is not the canonical one, or its digest differs.
    """
    try:
        data = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(data, dict):
        raise ValueError("it is not an object")
    data.pop("sha256", None)
    if sealed(data) != text:
        raise ValueError("its digest does not match its text")
    return data
