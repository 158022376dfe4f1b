"""Policies of any library as klrl's records in float64, and actions in the form that these take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch import distributions as td

from klrl.kl.families import family_of
from klrl.kl.families.family import no_closed_form
from klrl.policy.arrays import tensor
from klrl.policy.distributions import (
    Beta,
    Categorical,
    DiagGaussian,
    Distribution,
    MultiCategorical,
    NoClosedForm,
    as_record,
    concatenate_records,
)

ALLOWED = (
    "a record of klrl.policy.distributions, a torch.distributions object, a list of Categoricals, or a dict of arrays: "
    "logits, logits and nvec, mean and std or log_std, alpha and beta"
)
"""List of what a policy may return, for messages."""
_BY_DIMENSION = (td.Normal, td.Beta, td.Bernoulli)
"""Families whose last batch dimension is that of one action where there are several."""


class Taken(NamedTuple):
    """Actions that were taken."""

    actions: Tensor
    """Actions before the policy's maps, ``[n]`` or ``[n, d]``."""
    log_slope: Tensor
    """log |det| of the maps' derivative there, ``[n]``."""


@dataclass(frozen=True, eq=False)
class Reading:
    """A policy at n states."""

    record: Distribution
    """Batch shape ``[n]``, float64 on the CPU, a copy."""
    maps: tuple[td.Transform, ...] = ()
    """Bijections that follow the record's sample, where klrl has no record of the whole; they do not change the KL."""
    one_hot: bool = False
    """True if actions are one-hot vectors."""

    def log_prob(self, taken: Taken) -> Tensor:
        """Return the log-probability of actions from :meth:`fit`, ``[n]``."""
        return self.record.log_prob(taken.actions) - taken.log_slope

    def fit(self, actions: Any) -> Taken:
        """Return actions in the form of the record, a copy.

        Raises:
            ValueError: another shape than the policy's.
        """
        given = array(actions)
        x = given.double().clone()
        record, n = self.record, len(self.record.parameters[0])
        slope = torch.zeros(n, dtype=torch.float64, device="cpu")
        if self.one_hot and x.shape == record.parameters[0].shape:
            return Taken(x.argmax(-1), slope)
        shape = (n, *record.event_shape)
        if x.numel() != int(np.prod(shape)) or len(x) != n:
            raise ValueError(f"actions = shape {[*given.shape]}; allowed: {[*shape]}, as the policy has it")
        x = x.reshape(shape)
        for f in reversed(self.maps):
            x, y = f.inv(x), x
            slope += f.log_abs_det_jacobian(x, y).cpu().reshape(n, -1).sum(-1)
        return Taken(x.long() if isinstance(record, (Categorical, MultiCategorical)) else x, slope)


def array(x: Any) -> Tensor:
    """Return numbers of any library as a tensor on the CPU, on the same memory if they are there."""
    return (x if isinstance(x, Tensor) else tensor(np.asarray(x))).detach().cpu()


def read(given: Any, n: int, second: int | None = None) -> Reading:
    """Read what a policy returned for n states.

    Trailing batch dimensions belong to the action: a ``Normal`` with batch shape ``[n, d]`` is one action of d
    dimensions, as every library means it. Its KL has one number per state; a mean over ``[n, d]`` would be 1/d of it.

    Args:
        given: see :data:`ALLOWED`.
        n: number of states.
        second: size of the observations' second dimension, if they have three or more.

    Raises:
        TypeError: something else, or a family without a closed form of the KL.
        ValueError: another batch shape.
    """
    maps: tuple[td.Transform, ...] = ()
    one_hot = False
    if isinstance(given, Distribution):
        record = given.map(tensor)
    elif isinstance(given, td.Distribution):
        one_hot = isinstance(given, td.OneHotCategorical)
        record, maps = _of_torch(_one_action(given, n, second))
    elif isinstance(given, Mapping):
        record = _of_arrays(given)
    elif isinstance(given, Sequence) and given and all(isinstance(x, (td.Categorical, Categorical)) for x in given):
        record = _of_heads(given)
    else:
        raise TypeError(f"policy returned {_named(given)}; allowed: {ALLOWED}")
    if family_of(record) is None:
        raise no_closed_form("a KL", record, record)
    if tuple(record.batch_shape) != (n,):
        shape = [*record.batch_shape]
        raise ValueError(f"policy returned batch shape {shape} for {n} observations; allowed: [{n}]")
    return Reading(record.map(_held), maps, one_hot)


def join(readings: Sequence[Reading]) -> Reading:
    """Join the readings of consecutive pieces."""
    if len(readings) == 1:
        return readings[0]
    first = readings[0]
    return Reading(concatenate_records([reading.record for reading in readings]), first.maps, first.one_hot)


def _held(x: Tensor) -> Tensor:
    """Copy to the CPU in float64: optimisers change parameters in place, and a distribution may be made of them."""
    return x.detach().cpu().to(torch.float64, copy=True)


def _one_action(x: td.Distribution, n: int, second: int | None) -> td.Distribution:
    """Make the batch dimensions behind the first part of the action.

    Raises:
        ValueError: the observations seem to have batch dimensions themselves.
    """
    extra = x.batch_shape[1:]
    unexplained = len(extra) - isinstance(x, _BY_DIMENSION)
    if second is not None and unexplained > 0 and extra[0] == second:
        shape = [*x.batch_shape]
        raise ValueError(
            f"policy returned batch shape {shape}, and observations begin with [{n}, {second}]; "
            "allowed: one row per state, as in x.reshape(-1, *x.shape[2:]); Independent makes one action of several"
        )
    return td.Independent(x, len(extra)) if extra else x


def _of_torch(x: td.Distribution) -> tuple[Distribution, tuple[td.Transform, ...]]:
    """Read the numbers in float64; of a bijection that klrl has no record of, what it is applied to."""
    try:
        return as_record(x, Tensor.double), ()
    except NoClosedForm:
        base, maps = _before_maps(x)
    return as_record(base, Tensor.double), maps


def _before_maps(x: td.Distribution) -> tuple[td.Distribution, tuple[td.Transform, ...]]:
    if isinstance(x, td.Independent):
        base, maps = _before_maps(x.base_dist)
        return td.Independent(base, x.reinterpreted_batch_ndims), maps
    if isinstance(x, td.TransformedDistribution) and all(f.bijective for f in x.transforms):
        base, maps = _before_maps(x.base_dist)
        return base, (*maps, *x.transforms)
    return x, ()


def _of_heads(heads: Sequence[Any]) -> Distribution:
    """Read one choice per head."""
    logits = [as_record(head, Tensor.double).map(tensor).parameters[0] for head in heads]
    return MultiCategorical(torch.cat(logits, -1), tuple(x.shape[-1] for x in logits))


def _of_arrays(given: Mapping[str, Any]) -> Distribution:
    """Read parameters by their names.

    Raises:
        TypeError: other names, or no numbers.
    """
    x = {name: _numbers(name, value) for name, value in given.items() if name != "nvec"}
    match sorted(given):
        case ["logits"]:
            return Categorical(x["logits"])
        case ["logits", "nvec"]:
            return MultiCategorical(x["logits"], tuple(np.asarray(given["nvec"]).tolist()))
        case ["mean", "std"]:
            return DiagGaussian(x["mean"], x["std"].log().expand_as(x["mean"]))
        case ["log_std", "mean"]:
            return DiagGaussian(x["mean"], x["log_std"].expand_as(x["mean"]))
        case ["alpha", "beta"]:
            return Beta(x["alpha"], x["beta"])
    raise TypeError(f"policy returned a dict of {', '.join(map(str, given)) or 'nothing'}; allowed: {ALLOWED}")


def _numbers(name: str, value: Any) -> Tensor:
    try:
        return value.detach().double() if isinstance(value, Tensor) else tensor(np.array(value, np.float64))
    except (TypeError, ValueError) as error:
        raise TypeError(f"policy returned {name} = {_named(value)}; allowed: an array of numbers") from error


def _named(x: object) -> str:
    shape = getattr(x, "shape", None)
    return type(x).__name__ if shape is None else f"{type(x).__name__} of shape {[*shape]}"
