"""Units of information: nats, or those that ``base`` asks for."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

from klrl.policy.arrays import Array
from klrl.text import warn_user

F = TypeVar("F", bound=Callable[..., Any])


def in_base(nats: Array, base: float | None) -> Array:
    """Nats in another unit: bits with base 2.

    Raises:
        ValueError: a base that is not > 1.
    """
    if base is None:
        return nats
    if not 1.0 < base < math.inf:
        raise ValueError(f"base = {base}; allowed: None (nats) or a number > 1 (2 gives bits)")
    return nats / math.log(base)


def base_by_keyword(position: int) -> Callable[[F], F]:
    """Let a function that takes more than policies still be given ``base`` by position, with a warning.

    Args:
        position: where it was: how many arguments came before it.
    """

    def decorate(function: F) -> F:
        @wraps(function)
        def either(*args: Any, **settings: Any) -> Any:
            if len(args) == position + 1 and "base" not in settings:
                said = f"{function.__name__}(..., {args[-1]!r}) without a name; allowed from the next version on: base="
                warn_user(said, DeprecationWarning)
                args, settings = args[:-1], settings | {"base": args[-1]}
            return function(*args, **settings)

        return cast("F", either)

    return decorate
