"""Measurements of ``klrl benchmark accuracy``: errors of every family's KL in float32, and its cost."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch import distributions as td
from torch.nn.functional import softplus

from klrl.kl import kl_divergence
from klrl.policy.distributions import (
    Bernoulli,
    Beta,
    Categorical,
    DiagGaussian,
    FullGaussian,
    MultiCategorical,
    SquashedGaussian,
)
from klrl.scripts.benchmarks.accuracy_of_torch import FAMILIES, UNCHECKED, Numbers, OfTorch

Fields = tuple[Tensor, ...]
LEVELS = tuple(10.0**k for k in range(-8, 3))
"""Levels of KL, nats."""
D = 6
CALLS = 20
"""Calls of one implementation in a row, as in training, per timing."""
SHARE = 10
"""Divisor of the number of pairs where the truth takes 40 digits."""
FEWEST = 5
"""Pairs at a level below which there is no row for it: of a Uniform, none is as near as 1e-8 in float32."""


@dataclass(frozen=True)
class Case:
    """A family: random coordinates, and their distributions in klrl and in torch."""

    name: str
    n: int
    """Number of coordinates of one distribution."""
    record: Callable[[Tensor], Any]
    """Record of coordinates ``[N, n]``, in their dtype."""
    oracle: Callable[[Any], td.Distribution]
    """The record as an object of torch.distributions, in the record's dtype."""
    exact: Callable[[Any, Any], Tensor] | None = None
    """KL of two records in float64, where torch's formula is wrong there, too."""
    of_torch: OfTorch | None = None
    """Family that klrl has no record of, and takes as torch's objects."""

    def kl(self, p: Any, q: Any) -> Tensor:
        """KL(p||q) by klrl."""
        return kl_divergence(p, q) if self.of_torch is None else kl_divergence(self.oracle(p), self.oracle(q))

    def usual(self, p: Any, q: Any) -> Tensor | None:
        """KL(p||q) by torch; ``None`` where it has no formula."""
        try:
            return td.kl_divergence(self.oracle(p), self.oracle(q)).detach()
        except NotImplementedError:
            return None

    def truth(self, p: Any, q: Any) -> Tensor:
        """KL(p||q) in float64; to 40 digits before it is rounded where klrl has no record."""
        if self.of_torch is not None:
            return self.of_torch.truth(p, q)
        p, q = p.map(Tensor.double), q.map(Tensor.double)
        return self.exact(p, q) if self.exact is not None else td.kl_divergence(self.oracle(p), self.oracle(q))

    def search(self, p: Any, q: Any) -> Tensor:
        """KL(p||q) in float64, only to find a level by: 40 digits would take too long."""
        return self.truth(p, q) if self.of_torch is None else self.kl(p, q)


def _gaussian(scale: float) -> Callable[[Tensor], DiagGaussian]:
    return lambda x: DiagGaussian(scale * x[:, :D], 0.5 * x[:, D:] + math.log(scale))


def _full(x: Tensor) -> FullGaussian:
    rows, columns = torch.tril_indices(D, D)
    L = x.new_zeros(len(x), D, D)
    L[:, rows, columns] = 0.3 * x[:, D:]
    diagonal = L.diagonal(dim1=-2, dim2=-1)
    return FullGaussian(x[:, :D], L - torch.diag_embed(diagonal) + torch.diag_embed(diagonal.exp()))


def _normal(p: Any) -> td.Distribution:
    return td.Independent(td.Normal(p.mean, p.log_std.exp(), UNCHECKED), 1, UNCHECKED)


def _two_choices(p: MultiCategorical) -> td.Distribution:
    return td.Independent(td.Categorical(None, p.logits.unflatten(-1, (2, 3)), UNCHECKED), 1, UNCHECKED)


def _bits(p: Bernoulli, q: Bernoulli) -> Tensor:
    """sigmoid(a) (a - b) - log(1 + e^a) + log(1 + e^b); torch's is infinite from logits of 37 on."""
    a, b = p.logits, q.logits
    return (a.sigmoid() * (a - b) - softplus(a) + softplus(b)).sum(-1)


def _torch_normal(mean: Tensor, log_std: Tensor) -> td.Distribution:
    return td.Independent(td.Normal(mean, log_std.exp()), 1)


def _masked(x: Tensor) -> Categorical:
    return Categorical.masked(2.0 * x, torch.arange(D) != 1)


def _without_the_masked(p: Categorical) -> td.Distribution:
    return td.Categorical(logits=p.logits[:, [0, *range(2, D)]], validate_args=UNCHECKED)


def _without_record(name: str, family: OfTorch) -> Case:
    return Case(name, family.n, lambda x: Numbers(family.numbers(x)), lambda p: family.made(*p.values), of_torch=family)


CASES = (
    Case("Categorical(6)", D, lambda x: Categorical(2.0 * x), lambda p: td.Categorical(None, p.logits, UNCHECKED)),
    Case("masked Categorical(6)", D, _masked, _without_the_masked),
    Case("MultiCategorical(3, 3)", D, lambda x: MultiCategorical(2.0 * x, (3, 3)), _two_choices),
    Case("Bernoulli(6)", D, lambda x: Bernoulli(2.0 * x),
         lambda p: td.Independent(td.Bernoulli(None, p.logits, UNCHECKED), 1, UNCHECKED), _bits),
    Case("DiagGaussian(6), std ~ 0.001", 2 * D, _gaussian(1e-3), _normal),
    Case("DiagGaussian(6), std ~ 1", 2 * D, _gaussian(1.0), _normal),
    Case("DiagGaussian(6), std ~ 1000", 2 * D, _gaussian(1e3), _normal),
    Case("SquashedGaussian(6)", 2 * D, lambda x: SquashedGaussian(x[:, :D], 0.5 * x[:, D:]), _normal),
    Case("FullGaussian(6)", D + D * (D + 1) // 2, _full,
         lambda p: td.MultivariateNormal(p.mean, scale_tril=p.scale_tril, validate_args=UNCHECKED)),
    Case("Beta(6)", 2 * D, lambda x: Beta(x[:, :D].exp(), x[:, D:].exp()),
         lambda p: td.Independent(td.Beta(p.alpha, p.beta, UNCHECKED), 1, UNCHECKED)),
    *(_without_record(*item) for item in FAMILIES.items()),
)  # fmt: skip


def errors(case: Case, level: float, pairs: int, generator: torch.Generator) -> dict[str, Any] | None:
    """Return the worst relative error of both at a KL of about ``level``, unless too few pairs are there."""
    p, q = _at(case, level, pairs if case.of_torch is None else max(1, pairs // SHARE), generator)
    a, b = (case.record(x).map(lambda t: t.to(torch.float32)) for x in (p, q))
    exact = case.truth(a, b)
    near = (exact / level - 1.0).abs() < 0.5  # rounding to float32 may have moved the others
    if near.sum() < FEWEST:
        return None
    found = {"klrl": case.kl(a, b)} | ({} if (usual := case.usual(a, b)) is None else {"torch": usual})
    return {
        "family": case.name, "kl": level, "pairs": int(near.sum()),
        **{name: ((x.double() - exact).abs() / exact)[near].max().item() for name, x in found.items()},
        "negative": {name: int((x < 0).sum()) for name, x in found.items()},
    }  # fmt: skip


def _at(case: Case, level: float, pairs: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return the coordinates of pairs whose KL is about ``level``, ``[pairs, n]``."""
    p, direction = torch.empty(2, pairs, case.n, dtype=torch.float64).normal_(generator=generator)
    if case.of_torch is not None:
        direction = case.of_torch.direction(direction)
    return p, p + _step(case, p, direction, level).unsqueeze(-1) * direction


def _step(case: Case, p: Tensor, direction: Tensor, level: float) -> Tensor:
    """Return the distance in a direction at which the KL has this value, ``[N]``, by bisection in float64."""
    low, high = (torch.full((len(p),), x, dtype=torch.float64) for x in (-30.0, 6.0))
    first = case.record(p)
    for _ in range(60):
        middle = 0.5 * (low + high)
        moved = case.record(p + middle.exp().unsqueeze(-1) * direction)
        above = ~(case.search(first, moved) < level)
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return low.exp()


def cost(repeats: int) -> dict[str, float]:
    """Return median microseconds of CPU time of KL on 2048 x 6 Gaussians, from records, objects and tensors."""
    generator = torch.Generator().manual_seed(0)
    mean, log_std, other_mean, other_log_std = torch.empty(4, 2048, D).normal_(0.0, 0.3, generator=generator)
    p, q = DiagGaussian(mean, log_std), DiagGaussian(other_mean, other_log_std)
    a, b = _normal(p), _normal(q)

    def from_tensors(make: Callable[[Tensor, Tensor], Any], kl: Callable[[Any, Any], Tensor]) -> Tensor:
        return kl(make(mean, log_std), make(other_mean, other_log_std))

    ways: dict[str, Callable[[], Tensor]] = {
        "torch, objects": lambda: td.kl_divergence(a, b),
        "klrl, records": lambda: kl_divergence(p, q),
        "klrl, torch's objects": lambda: kl_divergence(a, b),
        "torch, from mean and log_std": lambda: from_tensors(_torch_normal, td.kl_divergence),
        "klrl, from mean and log_std": lambda: from_tensors(DiagGaussian, kl_divergence),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for i in range(repeats + 20):
        for name, way in ways.items():
            started = time.thread_time()
            for _ in range(CALLS):
                way()
            if i >= 20:
                seconds[name].append((time.thread_time() - started) / CALLS)
    return {name: 1e6 * median(times) for name, times in seconds.items()}


def tables(rows: list[dict[str, Any]], times: dict[str, float]) -> str:
    """Return Markdown: one line per family, one column per level of KL, then the costs."""
    header = "| family | formula | " + " | ".join(f"{level:.0e}" for level in LEVELS) + " |"
    lines = [header, "|---|---|" + "---|" * len(LEVELS)]
    for name in dict.fromkeys(row["family"] for row in rows):
        found = {row["kl"]: row for row in rows if row["family"] == name}
        for way in ("klrl", "torch"):
            cells = [f"{found[level][way]:.0e}" if way in found.get(level, {}) else "" for level in LEVELS]
            lines.append(f"| {name if way == 'klrl' else ''} | {way} | {' | '.join(cells)} |")
    first = next(iter(times.values()))
    lines += ["", "| KL of 2048 x 6 Gaussians | microseconds | of torch's |", "|---|---|---|"]
    lines += [f"| {name} | {value:.0f} | {value / first:.2f} |" for name, value in times.items()]
    return "\n".join(lines)
