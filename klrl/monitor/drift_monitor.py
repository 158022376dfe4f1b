"""The drift report for any training loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from klrl.kl.drift import Drift, Probe, mean_kl
from klrl.monitor.parameters import Parameters
from klrl.monitor.reading import Reading, Taken, array, join, read
from klrl.monitor.states import Rows, States
from klrl.policy.distributions import Categorical, Distribution, Factored
from klrl.policy.surroundings import undisturbed
from klrl.run.callback import NEXT_KL, STEP, Metrics
from klrl.run.history import History
from klrl.run.metrics import settle
from klrl.run.metrics_directory import MetricsDirectory
from klrl.text import warn_user
from klrl.trust_region import DEFAULT_TARGET_KL

LARGEST_ERROR = 1e-5
"""Largest difference, nats, between recomputed log-probabilities and the given ones that their rounding explains."""
_ROUNDED = 1.0 - 2.0**-22
"""Factor that changes float32 actions as their rounding may have: near a tanh's border that changes probabilities."""
_REPEATED = 1e-6
"""Largest KL, nats, between two calls of a policy that is a function of its observations."""
START_ERROR = "drift/start_ratio_error"


@dataclass(frozen=True, eq=False)
class _Before:
    """Copies for an update that has not ended."""

    states: States
    old: Reading
    taken: Taken | None
    start_error: float | None
    network: Parameters | None


class DriftMonitor:
    """Measures how far each update of any training loop moves its policy: exact KL on the whole batch.

    Say what the policy is, and when an update begins and ends. The metrics are klrl's ``drift/`` metrics (glossary),
    under klrl's names.

    Args:
        policy: function of observations that returns the policy's distribution at each: a record of
            :mod:`klrl.policy.distributions`, an object of ``torch.distributions``, a list of Categoricals, or a dict of
            arrays of any kind (logits; logits and nvec; mean and std or log_std; alpha and beta). It is called without
            gradients, and torch's random state is put back after it. Networks with dropout or batch normalisation
            belong in evaluation mode there.
        target_kl: the KL that the training was asked for, nats; reported as ``drift/kl_target``.
        run_dir: a new or empty directory for ``config.json``, ``metrics.csv`` and TensorBoard events; without it no
            files.
        notes: entries of ``config.json``, as plain JSON: ``agent``, ``env``, ``seed``, ``config`` as klrl's runs have
            them, ``library`` (a distribution package, whose version is noted), and others.
        states_at_once: most states with which the policy is called.
        network: the torch module that the policy computes with, and that only updates change. With it the next batch
            judges each update (``drift/kl_next``): a copy of what the network was before the update is lent back to it
            for one call.

    Raises:
        ValueError: ``target_kl`` or ``states_at_once`` is not > 0.
        BlockingIOError: another process writes to ``run_dir``.
        OSError: ``run_dir`` is not empty, or cannot be used.
    """

    def __init__(
        self,
        policy: Callable[[Any], Any],
        target_kl: float | None = None,
        run_dir: str | Path | None = None,
        *,
        notes: Mapping[str, Any] | None = None,
        states_at_once: int = 8192,
        network: nn.Module | None = None,
    ) -> None:
        if target_kl is not None and not 0.0 < target_kl < math.inf:
            raise ValueError(f"target_kl = {target_kl!r}; allowed: a number > 0, or None")
        if states_at_once < 1:
            raise ValueError(f"states_at_once = {states_at_once!r}; allowed: an integer >= 1")
        self.policy, self.target_kl, self.states_at_once = policy, target_kl, states_at_once
        self.network = network
        self.history = History()
        """One dict of metrics per update, as in ``metrics.csv``."""
        self.files = None if run_dir is None else MetricsDirectory(run_dir, {"target_kl": target_kl, **(notes or {})})
        self._drift = Drift()
        self._before: _Before | None = None
        self._predecessor: Parameters | None = None
        """Network before the last update, until a batch has judged that."""
        self._told: set[str] = set()

    # -- an update ------------------------------------------------------------------------------

    @contextmanager
    def update(
        self, observations: Any, actions: Any = None, *, timesteps: int, log_prob: Any = None
    ) -> Iterator[dict[str, Any]]:
        """Measure what is done within ``with``; after an exception nothing.

        Args:
            observations: the batch's, see :meth:`before`.
            actions: the batch's, see :meth:`before`.
            timesteps: environment steps so far, see :meth:`after`.
            log_prob: the collector's, see :meth:`before`.

        Yields:
            A dict: further metrics of the update can be put there.
        """
        self.before(observations, actions, log_prob)
        metrics: dict[str, Any] = {}
        try:
            yield metrics
        except BaseException:
            self._before = None
            raise
        self.after(timesteps, metrics)

    @undisturbed
    def before(self, observations: Any, actions: Any = None, log_prob: Any = None, *, earlier: Any = None) -> None:
        """Note the policy at a batch, which is complete, before the first step is taken; judge the last update by it.

        Everything is copied: rollout buffers are overwritten.

        Args:
            observations: what the policy was given, one row per state: an array or tensor ``[n, ...]``, a dict or a
                tuple of such, a TensorDict, a Batch, or :class:`~klrl.monitor.States`. Several environments and times
                are flattened to rows first.
            actions: those taken there, drawn from the policy, ``[n, ...]``. Without them there are no estimates of KL
                from samples, no ratios and no effective sample size.
            log_prob: their log-probabilities as the collector has them, ``[n]``: the monitor checks that it computes
                the same (``drift/start_ratio_error``), and warns if not.
            earlier: the same states as the policy before the last update would have been given them, where statistics
                that normalise them have changed since then.

        Raises:
            TypeError: the policy returns something else, or a family without a closed form of the KL.
            ValueError: shapes that do not fit.
        """
        states = observations if isinstance(observations, States) else Rows.copied(observations)
        old = self._read(states)
        self._judge(states if earlier is None else earlier, old.record)
        if self._drift.probe is None:
            self._choose_probe(states, old.record)
        fitted = None if actions is None else old.fit(actions)
        error = None
        if log_prob is not None:
            if fitted is None:
                raise ValueError("log_prob is given without actions; allowed: both")
            choices = isinstance(old.record, (Categorical, Factored))
            rounded = fitted if choices else old.fit(array(actions).double() * _ROUNDED)
            error = self._start_error(old.log_prob(fitted), old.log_prob(rounded), log_prob)
        network = None if self.network is None else Parameters(self.network)
        self._before = _Before(states, old, fitted, error, network)

    @undisturbed
    def after(self, timesteps: int, metrics: Mapping[str, Any] | None = None) -> Metrics:
        """Measure the update that began with the last :meth:`before`, log it and return its metrics.

        Args:
            timesteps: environment steps so far, over all environments.
            metrics: further metrics of the update, numbers or lines of text; their names are other than the monitor's.

        Raises:
            ValueError: no update has begun, or ``timesteps`` is no integer, or less than before.
        """
        if self._before is None:
            raise ValueError("after() without before(); allowed: each update's before() first")
        last = float(self.history[-1][STEP]) if self.history else 0.0
        if not isinstance(timesteps, (int, np.integer)) or timesteps < last:
            raise ValueError(f"timesteps = {timesteps!r}; allowed: an integer >= {last:.0f}, the last update's")
        before, self._before = self._before, None
        self._predecessor = before.network
        row: Metrics = {STEP: float(timesteps), **self._report(before)}
        if before.network is not None:
            row[NEXT_KL] = math.nan
        own = {**row}
        row |= metrics or {}
        try:
            settle(row, own, "metrics")
        except ValueError as error:
            self._warn_once("metrics", f"left out: {error}")
        self.history.append(row)
        if self.files is not None:
            self.files.add(row)
        return row

    def close(self) -> None:
        """Close the files; rows are written through as they come, so none is lost without."""
        if self.files is not None:
            self.files.close()

    def summary(self, logged: str | None = None) -> str:
        """Return one line: updates, the KL asked for, logged and measured.

        Args:
            logged: name of the metric, among those given to :meth:`after`, that the library logs as its KL.
        """
        if not self.history:
            return "no update was measured"
        kl = self._column("drift/kl") or [math.nan]
        parts = [f"{len(self.history):,} update{'s' * (len(self.history) > 1)}"]
        if self.target_kl is not None:
            parts.append(f"KL asked for {self.target_kl:g}")
        if logged is not None and (said := self._column(logged)):
            parts.append(f"logged {_mean_and_largest(said)} as {logged}")
        parts.append(f"measured {_mean_and_largest(kl)}")
        if self.target_kl is not None:
            parts.append(f"{np.mean([x > self.target_kl for x in kl]):.0%} of the updates over what was asked for")
        return ", ".join(parts)

    # -- measuring ------------------------------------------------------------------------------

    @undisturbed
    def policy_at(self, states: States) -> Distribution:
        """Return the policy's distributions at states, batch shape ``[n]``, in float64."""
        return self._read(states).record

    def _read(self, states: States) -> Reading:
        cuda = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
        with torch.no_grad(), torch.random.fork_rng(devices=cuda):
            pieces = states.pieces(self.states_at_once)
            return join([read(self.policy(piece), n, states.second_dimension) for n, piece in pieces])

    def _judge(self, earlier: Any, new: Distribution) -> None:
        """Complete the last row by the KL of its update on the states of the batch that its policy collected."""
        last, self._predecessor = self._predecessor, None
        if last is None:
            return
        with last.lent():
            old = self._read(earlier if isinstance(earlier, States) else Rows(earlier)).record
        self.history[-1][NEXT_KL] = mean_kl(old, new)
        if self.files is not None:
            self.files.amend(self.history[-1])

    def _report(self, before: _Before) -> dict[str, float]:
        old, new = before.old, self._read(before.states)
        if old.maps != new.maps:
            raise ValueError("the policy's transforms changed during the update; allowed: the same before and after")
        ratio = None if before.taken is None else new.log_prob(before.taken) - old.log_prob(before.taken)
        over = self.target_kl or DEFAULT_TARGET_KL
        report = self._drift.report(old.record, new.record, ratio, over)
        report |= self._drift.since_first(self.policy_at)
        if self.target_kl is not None:
            report["drift/kl_target"] = self.target_kl
        if before.start_error is not None:
            report[START_ERROR] = before.start_error
        if not new.maps:
            report["train/entropy"] = new.record.entropy().mean().item()
        return report

    def _choose_probe(self, states: States, old: Distribution) -> None:
        """Choose the states of ``drift/kl_initial``; say so if the policy is no function of its observations."""
        some, rows = states.probe()
        first = self.policy_at(some)
        self._drift.probe = Probe(some, first)
        if not (kl := mean_kl(old[rows], first)) <= _REPEATED:
            self._warn_once(
                "function",
                f"the policy gives other distributions when it is called again: KL = {kl:.3g} nats without an update; "
                "allowed: a function of one state's observation (evaluation mode, no state of its own)",
            )

    def _start_error(self, ours: Tensor, rounded: Tensor, log_prob: Any) -> float:
        """Return the largest |ratio - 1| before the first step; warn if rounding does not explain it."""
        given = array(log_prob).double().reshape(-1)
        if len(given) != len(ours):
            raise ValueError(f"log_prob = {len(given)} numbers; allowed: {len(ours)}, one per action")
        difference = (ours - given).abs()
        if not bool((difference <= LARGEST_ERROR + (rounded - ours).abs()).all()):
            self._warn_once(
                "log_prob",
                f"log-probabilities differ from the collector's by up to {difference.max().item():.3g} nats before the "
                "first step, more than by rounding: not the policy that acted is measured, or not where it acted",
            )
        return difference.expm1().max().item()

    def _column(self, name: str) -> list[float]:
        return [x for row in self.history if (x := float(row.get(name, math.nan))) == x]

    def _warn_once(self, kind: str, text: str) -> None:
        if kind not in self._told:
            self._told.add(kind)
            warn_user(text)


def _mean_and_largest(kl: list[float]) -> str:
    return f"{np.mean(kl):.4f} on average (largest {max(kl):.4f})"
