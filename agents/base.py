"""Public interface of all agents: learn, predict, save, load, after Stable-Baselines3's protocol."""

from __future__ import annotations

import abc
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

import numpy as np
from gymnasium.vector import VectorEnv

from klrl.agents import saving, shown
from klrl.agents.classes import by_algorithm
from klrl.agents.compatibility import check_comparable, check_same_spaces, copy_networks
from klrl.agents.config import AgentConfig
from klrl.agents.learner import Learner
from klrl.agents.making import envs_made, number_of_envs, split_of, try_env
from klrl.agents.misuse import check_arguments, check_config, explain_attribute, explained
from klrl.agents.own_networks import Network, shared_with
from klrl.agents.paths import paths_of, reward_scale_of
from klrl.agents.saved_policy import SavedPolicy
from klrl.agents.saving import Training
from klrl.agents.training import TrainingRun
from klrl.agents.turns import Turn, Turns
from klrl.experience import Collector, EnvLike, Episode
from klrl.experience.cursors import EnvCursor
from klrl.experience.environments import describe, env_id, number_of
from klrl.experience.reproducibility import EnvTrial, Repeatable
from klrl.experience.told import Told
from klrl.experience.training_envs import TrainingEnvs
from klrl.policy.device import usable
from klrl.policy.surroundings import undisturbed
from klrl.renamed import attribute
from klrl.run import checkpoint
from klrl.run.callback import Callback
from klrl.run.callback_list import make_callbacks
from klrl.run.history import History
from klrl.run.presets import preset
from klrl.run.seeding import environment_seeds
from klrl.schedules import Value
from klrl.text import plain
from klrl.trust_region import TrustRegion, region_to_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

C = TypeVar("C", bound=AgentConfig)


class Agent(Learner[C], abc.ABC):
    """An algorithm with a policy, on the environments it learns from.

    Args:
        env: a Gymnasium id, an ``EnvSpec``, a function that makes an ``Env``, an ``Env`` or a ``VectorEnv``.
        config: settings; by default the environment's preset if there is one, else the defaults.
        seed: the run's seed; environments, networks, actions and minibatches get independent generators from it.
        trial: try out an environment before the training environments are made, so that ``reproducibility`` is known.

    Raises:
        ValueError: an unknown id, an unsupported space, a setting out of range.
        TypeError: a config of another class, or other arguments.
    """

    def __new__(cls, *args: Any, **settings: Any) -> Self:
        """Explain klrl's interface if the arguments are another library's.

        Raises:
            TypeError: one line that shows the right call.
        """
        check_arguments(cls, args, settings)
        return super().__new__(cls)

    def __init__(self, env: EnvLike, config: C | None = None, *, seed: int = 0, trial: bool = False) -> None:
        _check_seed(seed)
        check_config(config, self.config_class)
        applied = config is None and bool(preset(self.config_class.algorithm, env_id(env)))
        if config is None:
            given = {"n_envs": n} if (n := number_of(env)) is not None else {}
            config = cast("C", self.config_class.for_env(env_id(env), **given))
        usable(config.device)
        reference = None if config.reference is None else SavedPolicy.referred_to(config.reference, config.network)
        found = try_env(env, config) if trial else None
        with envs_made(env, config) as envs:  # settings or a reference may not fit the spaces
            config = config.with_envs(number_of_envs(envs, config))
            super().__init__(envs.single_observation_space, envs.single_action_space, config, int(seed))
            if reference is not None:
                self._refer_to(reference)
        training_envs = TrainingEnvs(env, envs, trial=found, split=split_of(config))
        self.begin(training_envs, env_id(env) if applied else None)

    def begin(self, training_envs: TrainingEnvs, preset: str | None) -> None:
        """Start untrained on these environments.

        Args:
            training_envs: the environments to learn from.
            preset: id of the environment whose preset was applied, if one was.
        """
        self.training_envs, self._turns = training_envs, Turns()
        self.rebuilds_if_needed = False
        """True for agents saved before the setting ``rebuild_envs``: they rebuild if a trial finds that it helps."""
        self.preset = preset
        self.training: Training | None = None
        """Training that was begun last."""
        self.saved_paths: dict[str, str] = {}
        """Paths of computation when a loaded agent was saved: on others, the same steps round differently."""
        self.last_update: saving.Snapshot | None = None
        """State after the last complete update, during a training."""
        self.history = History()
        self.episodes: deque[Episode] = deque(maxlen=100)

    def __repr__(self) -> str:
        return shown.line(self)

    if not TYPE_CHECKING:  # type checkers know which attributes there are

        def __getattr__(self, name: str) -> Any:
            explain_attribute(self, name)
            return object.__getattribute__(self, name)

    def _repr_html_(self) -> str:
        """Return a table for notebooks."""
        return shown.as_html(self)

    # -- learning -------------------------------------------------------------------------------

    @explained
    def learn(
        self,
        total_timesteps: int,
        callback: Callback | Sequence[Callback] | None = None,
        *,
        progress_bar: bool = False,
        run_dir: str | Path | None = None,
    ) -> Self:
        """Run whole updates until ``total_timesteps`` more environment steps are taken.

        If an exception ends it, Ctrl-C included, the agent returns to its state after the last complete update.

        Args:
            total_timesteps: steps over all environments; the learning rate's schedule spans them.
            callback: one or several :class:`klrl.run.Callback`.
            progress_bar: show steps/s, time left, return and KL, on the terminal or in the notebook.
            run_dir: a new directory for config, metrics, TensorBoard events and checkpoints; without it no files.

        Raises:
            ValueError: ``total_timesteps`` is not a positive integer, there is no environment, a callback has a hook
                that cannot be called, or the agent is learning already.
            FileExistsError: ``run_dir`` is not empty.
        """
        self._turns.check("learn()")
        if not _is_count(total_timesteps) or total_timesteps < 1:
            raise ValueError(f"total_timesteps = {total_timesteps!r}; allowed: an integer >= 1")
        callbacks = make_callbacks(callback, progress_bar, run_dir)
        return self._train(Training(self.num_timesteps, self.num_timesteps + int(total_timesteps)), callbacks)

    @explained
    def resume(
        self,
        callback: Callback | Sequence[Callback] | None = None,
        *,
        progress_bar: bool = False,
        run_dir: str | Path | None = None,
    ) -> Self:
        """Finish the training that an interrupted :meth:`learn` began, as if it had never been interrupted.

        Args:
            callback: one or several callbacks, see :meth:`learn`.
            progress_bar: show progress, see :meth:`learn`.
            run_dir: the directory of that training; rows after this agent's last update are dropped.

        Raises:
            ValueError: as for :meth:`learn`, or there is no training to finish.
        """
        self._turns.check("resume()")
        if self.training is None:
            raise ValueError("the agent has no training to resume; allowed: learn(total_timesteps)")
        return self._train(self.training, make_callbacks(callback, progress_bar, run_dir, resume=True))

    @undisturbed
    def _train(self, training: Training, callback: Callback) -> Self:
        turn = Turn()
        try:
            self._turns.begin(turn)
            TrainingRun(self, training, callback, turn).finish()
        finally:
            turn.over = True
            self.last_update = None
        return self

    def collector(self) -> Collector:
        """Return the collector of the current environments, made when first needed."""
        self._make_envs()
        if self.training_envs.collector is None:
            seeds = environment_seeds(self.seed, self.num_timesteps)
            told = Told(self.config.sign_of_rewards, self.config.life_is_episode)
            where = self.encoding, seeds, self.num_timesteps, self.config.rebuild_envs
            if not self.training_envs.begin(*where, told):
                self.return_scaler = self.return_scaler.restarted(self.config.n_envs)
        assert self.training_envs.collector is not None
        return self.training_envs.collector

    # -- environments ---------------------------------------------------------------------------

    @property
    def envs(self) -> VectorEnv:
        """Training environments, with Gymnasium's ``call(name, ...)``, ``get_attr`` and ``set_attr``.

        Names are looked up in the environments and their wrappers, never in klrl's own wrappers. A worker process that
        is restarted sets the attributes that were set last again.

        Raises:
            ValueError: there is no environment.
        """
        return self._make_envs()

    def _make_envs(self) -> VectorEnv:
        if self.training_envs.envs is None:
            if self.training_envs.env is None:
                raise ValueError("env = None; allowed: an environment, given to load() or set_env()")
            self._put_in(self.training_envs.env, self.training_envs.cursor)
        assert self.training_envs.envs is not None
        return self.training_envs.envs

    @property
    def trial(self) -> EnvTrial | None:
        """Result of trying out one of the environments; ``None`` if none was tried.

        ``klrl train`` tries one, and so does an agent that is to continue the episodes of a saved one.
        """
        return self.training_envs.trial

    @property
    def reproducibility(self) -> Repeatable | None:
        """Environments in which episodes can be played again: "used", "new", ..., or ``None`` if none was tried."""
        return None if self.trial is None else self.trial.reproducibility

    replay = attribute("agent", "replay", "reproducibility")

    @explained
    def set_env(self, env: EnvLike) -> None:
        """Learn from other environments from now on, in new episodes; their spaces must be the same.

        If there are fewer, minibatches are capped at the rollout. Environments that the agent had made are closed.

        Raises:
            ValueError: the spaces differ, and the agent has kept its environments; or the agent is learning.
        """
        self._turns.check("set_env()", after_last_update=True)
        before = self.training_envs
        self._put_in(env)
        self.predecessor = None  # its states are those of the environments before
        if before.envs is not self.training_envs.envs and number_of(before.env) is None:
            before.close()

    def _put_in(self, env: EnvLike, cursor: EnvCursor | None = None) -> None:
        """Make the environments, after a trial if they are to continue at the cursor, which needs as many of them."""
        config, trial = self.config, None
        if cursor is not None and len(cursor.lengths) == (number_of(env) or config.n_envs):
            trial = try_env(env, config)
            if trial.reproducibility == "new" and self.rebuilds_if_needed:
                config = replace(config, rebuild_envs=True)
        else:
            cursor = None
        with envs_made(env, config) as envs:
            check_same_spaces("the agent", self, "env", envs.single_observation_space, envs.single_action_space)
            self.config = config.with_envs(number_of_envs(envs, config))
        self.training_envs = TrainingEnvs(env, envs, cursor, trial, split_of(self.config))

    def close(self) -> None:
        """Close the environments; worker processes end.

        Raises:
            ValueError: the agent is learning from them.
        """
        self._turns.check("close()", after_last_update=True)
        self.training_envs.close()

    # -- other policies -------------------------------------------------------------------------

    def refer_to(self, path: str | Path) -> None:
        """Measure from the policy of a saved agent or run directory, as the setting ``reference`` does.

        The policy is saved with the agent, so the path is not needed later. If its networks are of your own, so are the
        agent's, and by the same function.

        Raises:
            FileNotFoundError: nothing saved there.
            ValueError: damaged, or a policy that has no KL to this one.
        """
        self._refer_to(SavedPolicy.referred_to(path, self.config.network))

    def _refer_to(self, other: SavedPolicy) -> None:
        check_comparable("agent", self, "reference", other)
        self.reference = other

    def start_from(self, other: Agent[Any] | str | Path) -> Self:
        """Copy another agent's networks and statistics, and nothing else; its policy becomes the first policy.

        Args:
            other: an agent, or the path of a saved one.

        Raises:
            FileNotFoundError: nothing saved there.
            ValueError: spaces, policies or networks differ, or this agent is learning or has learned already.
        """
        self._turns.check("start_from()", after_last_update=True)
        if not isinstance(other, Agent):
            saved = checkpoint.read(other)
            shared = shared_with(f"other = {other}", saved[1].get("config"), self.config.network)
            other = load_agent(other, network=shared, saved=saved)
        check_comparable("agent", self, "other", other)
        copy_networks(other, self)
        self.normalizer, self.drift.probe = other.normalizer, None
        self.return_scaler = replace(other.return_scaler, running=self.return_scaler.running)
        return self

    # -- keeping --------------------------------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        """Return a description of the agent as plain JSON, as in a run's ``config.json``."""
        return {
            "agent": self.config.algorithm,
            "env": describe(self.training_envs.env),
            "seed": self.seed,
            "preset": self.preset,
            "replay": self.reproducibility,
            "paths": paths_of(self),
            "reward_scale": reward_scale_of(self),
            "config": self.config.to_json(),
            "region": region_to_json(self.region),
            "observation_space": str(self.observation_space),
            "action_space": str(self.action_space),
        }

    @explained
    def save(self, path: str | Path) -> Path:
        """Write the whole state to a directory of safetensors and JSON; an older saved agent there is replaced.

        Called within an update, or from another thread than the one that learns, it writes the state after the last
        complete update.

        Raises:
            FileExistsError: something else is there.
        """
        return self.snapshot().write(path)

    def plot(self, *metrics: str) -> Figure:
        """Draw metrics of every update below each other, in a notebook or for ``savefig`` (extra ``plots``).

        Args:
            metrics: names as in :attr:`history`; by default the return, and the measured KL with its target.

        Raises:
            ValueError: no update was done, no such metric, or matplotlib is not installed.
        """
        return shown.figure(self, metrics)

    def snapshot(self) -> saving.Snapshot:
        """Copy the whole state, to be written at any time; within an update, the state before it."""
        if self.last_update is not None and not self._turns.between_updates:
            return self.last_update
        return saving.snapshot(self)

    @classmethod
    @explained
    def load(
        cls,
        path: str | Path,
        env: EnvLike | None = None,
        *,
        trust_region: TrustRegion | None = None,
        device: str | None = None,
        schedules: Mapping[str, Value] | None = None,
        network: Network | str | None = None,
    ) -> Self:
        """Read an agent that :meth:`save` wrote, or a run directory's newest good checkpoint.

        Without ``env``, learning continues on the registered environment that was saved, if there was one. It
        continues the interrupted episodes if there are as many environments as were saved and their episodes can be
        played again; a trial on two environments, made one after the other, finds that out. A trust region of your own
        class is not saved; give it again as ``trust_region``, functions that schedule settings as ``schedules``, by the
        settings' names, and what made networks of your own as ``network``, itself or as ``MODULE:NAME``. By default the
        agent returns to the device it was saved on, or to the CPU if this machine has no such device.

        Raises:
            FileNotFoundError: nothing saved there.
            ValueError: damaged, or another agent's.
        """
        return cls._of(path, checkpoint.read(path), env, trust_region, device, schedules, network)

    @classmethod
    @undisturbed
    def _of(
        cls,
        path: str | Path,
        saved: tuple[saving.Tensors, dict[str, Any]],
        env: EnvLike | None,
        trust_region: TrustRegion | None = None,
        device: str | None = None,
        schedules: Mapping[str, Value] | None = None,
        network: Network | str | None = None,
    ) -> Self:
        """Build the agent from what was read at ``path``."""
        with checkpoint.as_damage(path):
            agent = saving.restored(cls, *saved, trust_region, device, schedules or {}, network)
        if env is not None:
            agent._put_in(env, agent.training_envs.cursor)
        return agent


def load_agent(
    path: str | Path,
    env: EnvLike | None = None,
    *,
    trust_region: TrustRegion | None = None,
    schedules: Mapping[str, Value] | None = None,
    network: Network | str | None = None,
    saved: tuple[saving.Tensors, dict[str, Any]] | None = None,
) -> Agent[Any]:
    """Read a saved agent, or a run directory's newest good checkpoint, of any algorithm.

    Args:
        path: a saved agent or a run directory.
        env: environments to learn from, see :meth:`Agent.load`.
        trust_region: a region of your own, see :meth:`Agent.load`.
        schedules: functions that schedule settings, see :meth:`Agent.load`.
        network: what made networks of your own, see :meth:`Agent.load`.
        saved: contents, if they have been read already.

    Raises:
        FileNotFoundError: nothing saved there.
        ValueError: damaged, or of an algorithm whose class has not been imported.
    """
    saved = saved or checkpoint.read(path)
    name = saved[1].get("agent")
    known: dict[str, type[Agent[Any]]] = by_algorithm(Agent)
    if not isinstance(name, str) or name not in known:
        raise ValueError(f"path = {path} holds agent {plain(repr(name), 80)}; allowed: {', '.join(sorted(known))}")
    return known[name]._of(path, saved, env, trust_region, schedules=schedules, network=network)


def _is_count(x: object) -> bool:
    return isinstance(x, (int, np.integer)) and not isinstance(x, bool)


def _check_seed(seed: int) -> None:
    if not _is_count(seed) or seed < 0:
        raise ValueError(f"seed = {seed!r}; allowed: an integer >= 0")
