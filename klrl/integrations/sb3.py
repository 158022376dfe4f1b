"""Stable-Baselines3 and sb3-contrib: the true drift of their trainings, by ``callback=`` alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.envs.registration import EnvSpec

try:
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
    from stable_baselines3.common.policies import BasePolicy
except ImportError as error:
    raise ImportError(f"{error}; allowed: pip install 'klrl[sb3]'") from error

from klrl.experience.environments import describe
from klrl.integrations.sb3_normalizer import RawObservations, Statistics
from klrl.integrations.sb3_rollout import Rollout, before_tanh, distribution, of_torch
from klrl.kl.drift import mean_kl
from klrl.monitor import DriftMonitor
from klrl.monitor.states import States
from klrl.run.callback import NEXT_KL, STEP, Metrics, is_complete

LOGGED = ("train/approx_kl", "train/kl_divergence_loss")
"""Names under which the algorithms log what they take for the KL."""
_NO_SETTINGS = {"num_timesteps", "start_time"}
"""Attributes of a model that tell how far and when it trains."""
_MONITOR = "stable_baselines3.common.monitor:Monitor"
"""The wrapper that the library puts around every environment; it only writes down."""
_SHOWN = ("drift/kl", "drift/kl_max", "drift/kl_target")


class DriftCallback(BaseCallback):
    """Measures the exact KL of every update of PPO, A2C, TRPO, MaskablePPO or RecurrentPPO, on the whole rollout.

    ``model.learn(100_000, callback=DriftCallback("runs/sb3"))`` is all that a script needs; the training stays the same
    to the bit. All of klrl's ``drift/`` metrics go to ``history``, to the run directory and to the library's own
    logger, beside the ``train/`` metrics of the same update. At the end one line says which KL was asked for, logged
    and measured.

    Observations may be dicts or normalised by VecNormalize, noise may be state-dependent (gSDE). The sequences of
    RecurrentPPO are run again from the state of the LSTM at the rollout's start. The recomputed log-probabilities are
    compared with the buffer's (``drift/start_ratio_error``), with a warning if they differ by more than 1e-5.

    Args:
        run_dir: a new or empty directory for ``config.json``, ``metrics.csv`` and TensorBoard events; without it no
            files.
        target_kl: KL that was asked for, nats; by default the model's ``target_kl``.
        verbose: 0 leaves out the line at the end.

    Raises:
        ValueError: ``target_kl`` is not > 0.
        OSError: ``run_dir`` is not empty, or cannot be used.
    """

    def __init__(self, run_dir: str | Path | None = None, target_kl: float | None = None, *, verbose: int = 1) -> None:
        super().__init__(verbose)
        self.monitor = DriftMonitor(lambda given: of_torch(distribution(self.model.policy, given)), target_kl, run_dir)
        self._rollout: Rollout | None = None
        self._raw: RawObservations | None = None
        self._statistics: Statistics | None = None
        """Statistics of the policy before the last update."""
        self._offset = 0

    @property
    def history(self) -> Any:
        """One dict of metrics per update, as in ``metrics.csv``."""
        return self.monitor.history

    def summary(self) -> str:
        """Return one line: updates, the KL asked for, logged and measured."""
        logged = next((name for name in LOGGED if self.history and name in self.history[-1]), None)
        return f"{_named(self.model)}: {self.monitor.summary(logged)}"

    def _init_callback(self) -> None:
        model, policy = self.model, self.model.policy
        has_distribution = isinstance(policy, BasePolicy) and "get_distribution" in dir(policy)
        if not isinstance(model, OnPolicyAlgorithm) or not has_distribution:
            name = f"{_named(model)} with {type(policy).__name__}"
            allowed = "PPO, A2C, TRPO, MaskablePPO, RecurrentPPO with a policy of torch; for others klrl.DriftMonitor"
            raise ValueError(f"model = {name}; allowed: {allowed}")
        self.monitor.network = policy

    def _on_training_start(self) -> None:
        model = self.model
        self._rollout = None
        self._raw = RawObservations.of(self.training_env)
        if self.monitor.target_kl is None:
            self.monitor.target_kl = vars(model).get("target_kl")
        if self.monitor.files is not None:
            self.monitor.files.notes |= _notes(model, self.locals) | {"target_kl": self.monitor.target_kl}
        # learn() counts steps anew by default; the same policy moves on
        last = int(float(self.history[-1][STEP])) if self.history else 0
        self._offset = last if model.num_timesteps < last else 0

    def _on_rollout_start(self) -> None:
        self._measure()
        if self._raw is not None:
            self._raw.begin()

    def _on_step(self) -> bool:
        if self._raw is not None:
            self._raw.step()
        return True

    def _on_rollout_end(self) -> None:
        rollout = Rollout.of(self.model.rollout_buffer)
        actions, log_prob = rollout.rows(rollout.actions), rollout.rows(rollout.log_prob)
        actions, log_prob = before_tanh(self.model.policy.action_dist, actions, log_prob)
        self.monitor.before(rollout.states(rollout.observations), actions, log_prob, earlier=self._earlier(rollout))
        self._rollout = rollout
        if self.history and is_complete(self.history[-1]):
            self._log({NEXT_KL: self.history[-1][NEXT_KL]})
        self._timesteps = self._offset + self.model.num_timesteps
        self._episodes = _episodes(self.model)
        if self._raw is not None:
            self._statistics = self._raw.before
            before = rollout.states(self._raw.normalized(rollout.observations, self._raw.before))
            after = rollout.states(self._raw.normalized(rollout.observations, self._raw.statistics()))
            self._total = before, after, self.monitor.policy_at(before)

    def _earlier(self, rollout: Rollout) -> States | None:
        """Return the rollout's states as the policy before the last update would have been given them."""
        if self._raw is None or (statistics := self._statistics) is None:
            return None
        return rollout.states(self._raw.normalized(rollout.observations, statistics))

    def _on_training_end(self) -> None:
        self._measure()
        if self.verbose:
            print(f"klrl: {self.summary()}")

    def _measure(self) -> None:
        """Measure the update since the last rollout, if there was one."""
        if self._rollout is None:
            return
        self._rollout = None
        more: dict[str, Any] = {**self._episodes}
        if self._raw is not None:
            before, after, old = self._total
            new = self.monitor.policy_at(after)
            more["drift/kl_normalizer"] = mean_kl(self.monitor.policy_at(before), new)
            more["drift/kl_total"] = mean_kl(old, new)
        logged: dict[str, Any] = self.logger.name_to_value
        for name, value in logged.items():
            if name.startswith("train/") and isinstance(value, (int, float, np.floating, np.integer)):
                more[name] = float(value)
        self._log(self.monitor.after(self._timesteps, more))

    def _log(self, row: Metrics) -> None:
        """Record the drift for the library's next dump, which has the same update's ``train/`` metrics."""
        for name, value in row.items():
            if name.startswith("drift/"):
                self.logger.record(name, value, exclude=None if name in _SHOWN else "stdout")


def _named(model: Any) -> str:
    return f"{type(model).__name__} of {type(model).__module__.partition('.')[0]}"


def _episodes(model: Any) -> dict[str, float]:
    """Return the library's means over the last 100 episodes, if it knows of any."""
    episodes = [*(model.ep_info_buffer or ())]
    means = {"rollout/ep_rew_mean": "r", "rollout/ep_len_mean": "l"}
    return {name: float(np.mean([e[key] for e in episodes])) for name, key in means.items()} if episodes else {}


def _notes(model: Any, local: dict[str, Any]) -> dict[str, Any]:
    """Describe the training for ``config.json``."""
    plain = (bool, int, float, str)
    kept = {k: x for k, x in vars(model).items() if not k.startswith("_") and isinstance(x, plain)}
    settings = {name: x for name, x in kept.items() if name not in _NO_SETTINGS}
    return {
        "agent": _named(model),
        "library": type(model).__module__.partition(".")[0],
        "env": _environment(model.get_env()),
        "seed": model.seed,
        "total_timesteps": local.get("total_timesteps"),
        "config": settings,
        "policy": type(model.policy).__name__,
        "observation_space": str(model.observation_space),
        "action_space": str(model.action_space),
    }


def _environment(envs: Any) -> dict[str, Any] | str | None:
    """Describe the environment as JSON; by its id alone where more is around it than names and plain settings tell."""
    spec = envs.get_attr("spec")[0] if envs.has_attr("spec") else None
    if not isinstance(spec, EnvSpec):
        return None
    around = tuple(wrapper for wrapper in spec.additional_wrappers if wrapper.entry_point != _MONITOR)
    settings = {name: x for name, x in spec.kwargs.items() if name != "render_mode"}  # the library's own addition
    return describe(replace(spec, kwargs=settings, additional_wrappers=around)) or spec.id
