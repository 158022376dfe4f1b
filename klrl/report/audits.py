"""Audits as a report sees them: the JSON that ``klrl audit --json`` writes, every value checked."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from klrl.run.disk import read_regular_file
from klrl.text import plain

FORMAT = 1
"""Number of the JSON's format that is read."""
QUANTILES = ("0.5", "0.9", "0.95", "0.99")
_LARGEST = 2**26
"""Largest file that is read, in bytes."""
_WORDS = 200
"""Most characters of a name."""


class Mean(NamedTuple):
    """A mean with its standard error over episodes, in nats; NaN where one episode gives none."""

    value: float
    stderr: float


@dataclass(frozen=True, kw_only=True)
class Compared:
    """KL(p‖q) on the states of one of the two."""

    p: str
    q: str
    states_of: str
    kl: Mean
    quantiles: tuple[float, ...]
    """Over the states: :data:`QUANTILES`."""
    largest: float
    per_dimension: tuple[Mean, ...]


@dataclass(frozen=True, kw_only=True)
class Played:
    """A policy, and the episodes whose states were taken."""

    name: str
    origin: Mapping[str, str]
    """Path, library, algorithm and statistics, as far as they are known."""
    steps: int | None
    """Environment steps of its training."""
    states: int
    episodes: int
    cut: int
    """Number of episodes that were cut."""
    mean_return: float


@dataclass(frozen=True, kw_only=True)
class SavedAudit:
    """The result of an audit."""

    path: Path | None
    """The file; none for one that was not written."""
    env: str
    seed: int | None
    versions: Mapping[str, str]
    policies: tuple[Played, ...]
    compared: tuple[Compared, ...]

    def __post_init__(self) -> None:
        """Check what belongs together.

        Raises:
            ValueError: a name is there twice, or is none of the policies'.
        """
        names = [policy.name for policy in self.policies]
        if len(names) < 2 or len({*names}) < len(names):
            raise ValueError(f"policies = {', '.join(names)}; allowed: two or more, each with a name of its own")
        if not self.compared:
            raise ValueError("divergences = []; allowed: at least one")
        for x in self.compared:
            if not {x.p, x.q} <= {*names} or x.p == x.q or x.states_of not in (x.p, x.q):
                raise ValueError(
                    f"divergences: KL({x.p}‖{x.q}) on {x.states_of}'s states; allowed: two of the policies, and the "
                    "states of one of them"
                )
        if len({len(x.per_dimension) for x in self.compared}) > 1:
            raise ValueError("divergences: per_dimension of several lengths; allowed: one number of dimensions")

    def between(self, p: str, q: str, states_of: str) -> Compared | None:
        """Return KL(p‖q) on the states of one of the two, if it was measured."""
        return self._found.get((p, q, states_of))

    @cached_property
    def _found(self) -> Mapping[tuple[str, str, str], Compared]:
        return {(x.p, x.q, x.states_of): x for x in self.compared}


def read_audit(path: str | Path) -> SavedAudit:
    """Read a file that ``klrl audit --json`` wrote.

    Raises:
        ValueError: it is another file, or damaged; the message names the value.
        OSError: it cannot be read.
    """
    path = Path(path)
    try:
        record = json.loads(read_regular_file(path.resolve(), _LARGEST))
        return audit_of(record, path)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"path = {path} is not as klrl audit --json writes it: {plain(error, 300)}") from error


def audit_of(record: Any, path: Path | None = None) -> SavedAudit:
    """Return the audit in plain JSON, such as :meth:`klrl.audit.Audit.to_json` returns.

    Raises:
        ValueError: a value is missing, or is not what the format has there.
    """
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        said = record.get("format") if isinstance(record, dict) else record
        raise ValueError(f"format = {plain(said, 80)}; allowed: {FORMAT}")
    found = _Fields(record)
    return SavedAudit(
        path=path,
        env=found.text("env", "environment without a name"),
        seed=found.whole("seed", optional=True),
        versions={plain(k, 80): plain(v, 80) for k, v in found.mapping("versions").items()},
        policies=tuple(map(_policy, found.records("policies"))),
        compared=tuple(map(_compared, found.records("divergences"))),
    )


def _policy(found: _Fields) -> Played:
    known = ("path", "library", "algorithm", "statistics")
    return Played(
        name=found.text("name"),
        origin={name: text for name in known if (text := found.text(name, ""))},
        steps=found.whole("num_timesteps", optional=True),
        states=found.whole("states"),
        episodes=found.whole("episodes"),
        cut=len(found.items("cut")),
        mean_return=found.number("mean_return", finite=False),
    )


def _compared(found: _Fields) -> Compared:
    quantiles = found.inside("quantiles")
    parts = found.records("per_dimension")
    if not parts:
        raise ValueError(f"{found.where}per_dimension = []; allowed: at least one")
    return Compared(
        p=found.text("p"),
        q=found.text("q"),
        states_of=found.text("states_of"),
        kl=_mean(found),
        quantiles=tuple(quantiles.number(name) for name in QUANTILES),
        largest=found.number("largest"),
        per_dimension=tuple(map(_mean, parts)),
    )


def _mean(found: _Fields) -> Mean:
    return Mean(found.number("mean"), math.nan if found.get("stderr") is None else found.number("stderr"))


class _Fields:
    """Values of a record by name; what has another type is refused by its whole name."""

    def __init__(self, record: Mapping[str, Any], where: str = "") -> None:
        self._record, self.where = record, where

    def get(self, name: str) -> Any:
        return self._record.get(name)

    def _refuse(self, name: str, allowed: str) -> ValueError:
        said = plain(self.get(name), 80) if name in self._record else "missing"
        return ValueError(f"{self.where}{name} = {said}; allowed: {allowed}")

    def text(self, name: str, default: str | None = None) -> str:
        value = self.get(name)
        value = default if value is None else value
        if not isinstance(value, str):
            raise self._refuse(name, "text")
        return plain(value, _WORDS)

    def number(self, name: str, *, finite: bool = True) -> float:
        value = self.get(name)
        try:
            known = not isinstance(value, bool) and isinstance(value, (int, float))
            if known and (math.isfinite(value) or not finite):
                return float(value)
        except OverflowError:
            pass
        raise self._refuse(name, "a finite number" if finite else "a number")

    def whole(self, name: str, *, optional: bool = False) -> Any:
        value = self.get(name)
        if optional and value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
            raise self._refuse(name, "an integer >= 0")
        return value

    def mapping(self, name: str) -> dict[str, Any]:
        value = self._record.get(name, {})
        if not isinstance(value, dict):
            raise self._refuse(name, "an object")
        return value

    def inside(self, name: str) -> _Fields:
        return _Fields(self.mapping(name), f"{self.where}{name}.")

    def items(self, name: str) -> Sequence[Any]:
        value = self._record.get(name, [])
        if not isinstance(value, (list, tuple)):
            raise self._refuse(name, "a list")
        return value

    def records(self, name: str) -> list[_Fields]:
        found = self.items(name)
        if not all(isinstance(x, dict) for x in found):
            raise self._refuse(name, "a list of objects")
        return [_Fields(x, f"{self.where}{name}[{i}].") for i, x in enumerate(found)]
