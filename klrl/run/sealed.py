"""JSON that carries its own digest: it is read only as it was written."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def sealed(data: dict[str, Any]) -> bytes:
    """The one text of an object, with its digest as one more entry, ``sha256``."""
    digest = hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
    return json.dumps(data | {"sha256": digest}, indent=1, sort_keys=True).encode()


def unsealed(text: bytes) -> dict[str, Any]:
    """The inverse of :func:`sealed`.

    Raises:
        ValueError: another text.
    """
    try:
        data = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(data, dict):
        raise ValueError("it is no object")
    data.pop("sha256", None)
    if sealed(data) != text:
        raise ValueError("its text and its digest do not belong together")
    return data
