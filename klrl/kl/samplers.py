"""Samplers: records and ``torch.distributions`` objects behind one interface of samples and log-probabilities.

Densities count only inside the support: a record's ``log_prob`` and a torch object's validation treat actions outside
as mistakes, here they have probability 0.
"""

from __future__ import annotations

import abc
import math
from typing import Any

import torch
from torch import Tensor
from torch import distributions as td
from torch.nn.functional import softplus

from klrl.kl.families import AnyDistribution, broadcast, read
from klrl.kl.precision import in_float64
from klrl.policy.arrays import tensor
from klrl.policy.distributions import (
    Beta,
    Categorical,
    DiagGaussian,
    Distribution,
    Factored,
    MultiCategorical,
    NoClosedForm,
    SquashedGaussian,
)
from klrl.policy.distributions.beta import log_beta


class Sampler(abc.ABC):
    """Samples and log-probabilities of a batch of distributions."""

    batch_shape: torch.Size
    event_shape: tuple[int, ...]
    dtype: torch.dtype
    discrete: bool
    width: int
    """Numbers needed per action during computation."""

    @abc.abstractmethod
    def expand(self, batch_shape: torch.Size) -> Sampler:
        """Return the same distributions, expanded to a larger batch."""

    @abc.abstractmethod
    def sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        """Draw actions ``[n, *B, *event]``."""

    @abc.abstractmethod
    def log_prob(self, action: Tensor) -> Tensor:
        """Return log-probabilities ``[n, *B]``, -inf outside the support."""


class RecordSampler(Sampler):
    """Sampler of a record, in float64."""

    def __init__(self, record: Distribution, dtype: torch.dtype) -> None:
        self.record = record.map(lambda x: tensor(x).detach().double())
        self.batch_shape, self.event_shape = self.record.batch_shape, tuple(self.record.event_shape)
        self.dtype, self.discrete = dtype, isinstance(record, (Categorical, Factored))
        self.width = max(math.prod(x.shape[len(self.batch_shape) :]) for x in self.record.parameters)

    def expand(self, batch_shape: torch.Size) -> RecordSampler:
        """Expand the record."""
        return RecordSampler(self._as(batch_shape), self.dtype)

    def sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        """Draw from the record."""
        return self._as((n, *self.batch_shape)).sample(generator)

    def log_prob(self, action: Tensor) -> Tensor:
        """Return the record's log-probabilities, -inf outside the support."""
        record = self._as((len(action), *self.batch_shape))
        action = action.long() if isinstance(record, (Categorical, MultiCategorical)) else action
        supported = record.supports(action)
        events = supported.reshape(*supported.shape, *[1] * len(self.event_shape))
        inside = torch.where(events, action, record.mode())
        return record.log_prob_inside(inside).masked_fill(~supported, -math.inf)

    def _as(self, batch_shape: Any) -> Distribution:
        old = len(self.batch_shape)
        return self.record.map(lambda x: x.expand(*batch_shape, *x.shape[old:]))


class LogOddsSampler(RecordSampler):
    """Sampler of log x / (1 - x) for x of a Beta: float64 has numbers near 0 that are smaller than any gap to 1.

    x = G / (G + H) with gamma variates G and H of shapes a and b; log G = log G' - E / a with G' of shape a + 1 and
    E exponential, which does not underflow where a is small.
    """

    @classmethod
    def of(cls, sampler: RecordSampler) -> LogOddsSampler:
        """Return a sampler of the same distribution."""
        return cls(sampler.record, sampler.dtype)

    def expand(self, batch_shape: torch.Size) -> LogOddsSampler:
        """Expand the record."""
        return LogOddsSampler(self._as(batch_shape), self.dtype)

    def sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        """Draw log-odds ``[n, *B, d]``."""
        log_g, log_h = (self._log_gamma(shape, generator) for shape in self._as((n, *self.batch_shape)).parameters)
        return log_g - log_h

    def log_prob(self, action: Tensor) -> Tensor:
        """Log-density of the log-odds: that of x times x (1 - x)."""
        a, b = self._as((len(action), *self.batch_shape)).parameters
        return (-a * softplus(-action) - b * softplus(action) - log_beta(a, b)).sum(-1)

    @staticmethod
    def _log_gamma(shape: Tensor, generator: torch.Generator | None) -> Tensor:
        larger = torch._standard_gamma(shape.cpu() + 1.0, generator=generator).log()
        exponential = torch.empty_like(larger).exponential_(generator=generator)
        return (larger - exponential / shape.cpu()).to(shape.device)


class TorchSampler(Sampler):
    """Sampler of a torch object.

    Its ``sample`` draws from torch's global generator, whose state is set to one seeded by ours, and restored
    afterwards. On a GPU, draws come from the GPU's global generator.
    """

    def __init__(self, distribution: td.Distribution, dtype: torch.dtype, column: bool = False) -> None:
        self.distribution, self.dtype, self.column = distribution, dtype, column
        self.batch_shape = distribution.batch_shape
        self.event_shape = (1,) if column else tuple(distribution.event_shape)
        self.width = max(1, math.prod(distribution.event_shape))
        support = _support(distribution)
        self.discrete = bool(support.is_discrete) if support else not _example(distribution).is_floating_point()

    def expand(self, batch_shape: torch.Size) -> TorchSampler:
        """Expand the torch object."""
        same = batch_shape == self.batch_shape
        return self if same else TorchSampler(self.distribution.expand(batch_shape), self.dtype, self.column)

    def sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        """Draw from the torch object."""
        action = _draw(self.distribution, n, generator)
        return action.unsqueeze(-1) if self.column else action

    def log_prob(self, action: Tensor) -> Tensor:
        """Return the torch object's log-probabilities, -inf outside the support."""
        action = action.squeeze(-1) if self.column else action
        support, events = _support(self.distribution), len(self.distribution.event_shape)
        with torch.no_grad():
            if support is None:
                return self.distribution.log_prob(action).double()
            inside = support.check(action)
            possible = _draw(self.distribution, len(action), torch.Generator().manual_seed(0)).to(action.dtype)
            action = torch.where(inside.reshape(*inside.shape, *[1] * events), action, possible)
            return self.distribution.log_prob(action).double().masked_fill(~inside, -math.inf)


def _draw(distribution: td.Distribution, n: int, generator: torch.Generator | None) -> Tensor:
    seed = int(torch.randint(2**62, (), generator=generator, device="cpu"))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.set_rng_state(torch.Generator().manual_seed(seed).get_state())
        return distribution.sample(torch.Size([n]))


def _support(distribution: td.Distribution) -> Any:
    """Return the support; ``None`` (everywhere) if the class does not say."""
    try:
        return distribution.support
    except NotImplementedError:
        return None


def _example(distribution: td.Distribution) -> Tensor:
    return _draw(distribution, 1, torch.Generator().manual_seed(0))


def unbounded(*of: RecordSampler) -> tuple[RecordSampler, ...]:
    """Return samplers of the normals if all are squashed, of log-odds if all are betas, else the same ones.

    Divergences are the same, and nothing saturates at the border.
    """
    if all(isinstance(x.record, SquashedGaussian) for x in of):
        return tuple(RecordSampler(DiagGaussian(*x.record.parameters), x.dtype) for x in of)
    return tuple(map(LogOddsSampler.of, of)) if all(isinstance(x.record, Beta) for x in of) else of


def sampler(p: AnyDistribution[Any], column: bool = False) -> Sampler:
    """One distribution.

    Args:
        p: a record or a torch object; read as a record if there is one.
        column: whether the action of a torch object without a record is a vector of one number instead of a number.
    """
    try:
        return RecordSampler(*read(p))
    except NoClosedForm:
        assert isinstance(p, td.Distribution)
        return _torch_sampler(p, column)


def _torch_sampler(p: td.Distribution, column: bool) -> TorchSampler:
    dtype = p.log_prob(_example(p)).dtype
    return TorchSampler(in_float64(p), dtype, column and not p.event_shape)


def samplers(p: AnyDistribution[Any], q: AnyDistribution[Any]) -> tuple[Sampler, Sampler]:
    """Two distributions over the same actions, with one batch shape.

    Raises:
        ValueError: different shapes of actions, one discrete and one with a density, batches that do not broadcast.
    """
    a, b = sampler(p), sampler(q)
    if isinstance(a, RecordSampler) and isinstance(b, RecordSampler):
        a, b = unbounded(a, b)
    if isinstance(p, td.Distribution) and isinstance(q, td.Distribution):
        if isinstance(a, TorchSampler) or isinstance(b, TorchSampler):
            a, b = _torch_sampler(p, False), _torch_sampler(q, False)
    elif a.event_shape != b.event_shape:
        a, b = sampler(p, b.event_shape == (1,)), sampler(q, a.event_shape == (1,))
    if a.event_shape != b.event_shape or a.discrete != b.discrete:
        described = " and q ".join(
            f"{'discrete' if x.discrete else 'continuous'} {list(x.event_shape)}" for x in (a, b)
        )
        raise ValueError(f"p has actions {described}; allowed: one shape, both discrete or both continuous")
    batch_shape = broadcast(a.batch_shape, b.batch_shape)
    return a.expand(batch_shape), b.expand(batch_shape)
