"""Rollouts: a collector steps vector environments and returns time-major batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import Tensor

from klrl.experience.batch import Batch, Episode
from klrl.experience.cursors import EnvCursor
from klrl.experience.environments import diverged, is_seeded, spawn_env_seeds
from klrl.experience.infos import Infos, numbers
from klrl.experience.rollout import NonFinite, Rollout, not_finite
from klrl.experience.steps import BadStep
from klrl.experience.tape import Tape
from klrl.experience.told import Told
from klrl.experience.vector import Vector, as_numpy
from klrl.policy.arrays import Array
from klrl.policy.choices import MASK
from klrl.policy.distributions import Distribution
from klrl.policy.observations import Encoding, flat_mask
from klrl.policy.surroundings import undisturbed

Acted = tuple[Array, np.ndarray, Distribution]
"""The policy's actions, the environment's actions, and the distributions."""
Act = Callable[[Tensor], Acted]


@dataclass(frozen=True)
class OnArrays:
    """A way to act that is given arrays: a small network takes less time than the way to a tensor and back."""

    act: Callable[[np.ndarray], Acted]

    def __call__(self, observations: np.ndarray) -> Acted:
        """Act on observations ``[N, *O]``."""
        return self.act(observations)


class ReplayMismatch(ValueError):
    """An episode that was played again led to another observation than before."""


class Collector:
    """Steps vector environments with a policy; episodes go on from one batch to the next.

    Args:
        envs: the environments.
        begin: seeds for new episodes, or a cursor at which to continue.
        encoding: encoding of their observations.
        total_timesteps: steps taken before.
        first_number: number of the first environment, for messages.
        told: what batches say of rewards and lives.

    Raises:
        BadStep: the first observation cannot be used.
        ReplayMismatch: the same seeds and actions lead to another observation than before.
        NonFinite: the first observation is NaN or infinite.
    """

    @undisturbed
    def __init__(
        self,
        envs: VectorEnv,
        begin: np.random.SeedSequence | EnvCursor,
        encoding: Encoding,
        total_timesteps: int = 0,
        first_number: int = 0,
        told: Told = Told(),  # noqa: B008
    ) -> None:
        self._at = first_number
        cursor = begin if isinstance(begin, EnvCursor) else EnvCursor.beginning(spawn_env_seeds(begin, envs.num_envs))
        self.envs, self.encoding, self._told_of = envs, encoding, told
        self._vector = Vector(envs)
        self.total_timesteps = total_timesteps
        self._env_seeds, self._episodes, self._lengths = cursor.env_seeds, cursor.episodes.copy(), cursor.lengths.copy()
        self._returns = cursor.returns.copy()
        self._tape = Tape(np.concatenate(cursor.actions) if cursor.actions else None)
        self._resetting = self._nowhere = np.zeros(envs.num_envs, dtype=bool)
        self._seeded = is_seeded(envs)
        self.restarts = 0
        """Number of times a worker process was restarted and its episode lost."""
        self.executed: list[np.ndarray] = []
        """The environment's actions of the last rollout, ``[N, *A]`` each."""
        observation, infos = self._vector.reset(cursor)
        if (lost := self._lose(infos)) is not None:
            self._episodes += lost
        self._observation = self._first(observation, infos)
        self._lives = told.lives(infos, total_timesteps)
        if cursor.observation is not None:
            self._check_arrival(cursor.observation)

    @property
    def mode(self) -> AutoresetMode:
        """Autoreset mode of the environments, as far as it is known."""
        return self._vector.mode

    @property
    def cursor(self) -> EnvCursor | None:
        """Cursor of the environments; ``None`` if their episodes cannot be played again."""
        if not self._seeded:
            return None
        return EnvCursor(
            env_seeds=self._env_seeds,
            **self.counters,
            actions=(self._tape.actions,) if len(self._tape.actions) else (),
            observation=torch.from_numpy(self._observation),
        )

    @property
    def counters(self) -> dict[str, np.ndarray]:
        """Fields ``episodes``, ``lengths`` and ``returns`` of the cursor."""
        return {"episodes": self._episodes.copy(), "lengths": self._lengths.copy(), "returns": self._returns.copy()}

    def _first(self, observation: Any, infos: Infos) -> np.ndarray:
        """Return the observations that environments were reset to, or have come back to."""
        encoded = self._encoded(observation, infos, self._nowhere)
        for i, *inside in not_finite(encoded):
            error = NonFinite.at(
                f"observation of environment {self._at + i}{self.encoding.locate(tuple(inside))}",
                encoded[i, *inside], self._lengths[i], self._episodes[i], self.total_timesteps,
            )  # fmt: skip
            error.transition = {"next_observation": encoded, "environment": np.array(i)}
            raise error
        return encoded

    def _check_arrival(self, expected: Tensor) -> None:
        here = torch.from_numpy(self._observation).to(expected.dtype)  # what was saved may have been rounded to float32
        each = zip(here.numpy(), expected.numpy(), diverged(self.envs), strict=True)
        for i, (one, other, lost) in enumerate(each):
            if lost or one.tobytes() != other.tobytes():
                where = f"{self._lengths[i]} steps into its episode {self._episodes[i]}"
                raise ReplayMismatch(f"environment {self._at + i} did not come back to where it was, {where}")

    @undisturbed
    def collect(self, act: Act | OnArrays, n_steps: int, info_keys: Sequence[str] = ()) -> Batch:
        """Take ``n_steps`` in every environment.

        What is not finite ends a rollout where an action is not, else when all steps are taken; the error is that of
        the first such number.

        Args:
            act: observations ``[N, *O]`` to (policy's actions, environment's actions, distributions).
            n_steps: T.
            info_keys: keys whose numbers in the info of an episode's last step are kept with the episode.

        Raises:
            BadStep: an environment gave what cannot be used.
            NonFinite: an action, a reward or an observation is NaN or infinite.
        """
        first = self._observation
        rollout = Rollout(first, n_steps, self.total_timesteps, self._at)
        on_arrays = act if isinstance(act, OnArrays) else _on_tensors(act)
        try:
            for t in range(n_steps):
                self._step(t, rollout, on_arrays, info_keys)
        finally:  # what was not finite came before any other error
            if (error := rollout.non_finite(self.encoding.locate)) is not None:
                self._observation = first
                raise error from None
        self.executed = rollout.executed
        self._remember(rollout.executed)
        batch = rollout.batch(self._told_of)
        self._observation = batch.next_observations.numpy()
        return batch

    def _step(self, t: int, rollout: Rollout, act: Callable[[np.ndarray], Acted], info_keys: Sequence[str]) -> None:
        """Take one step in every environment."""
        rollout.episode[t], rollout.length[t] = self._episodes, self._lengths
        action, executed, behaviour = act(self._observation)
        rollout.actions.append(action)
        rollout.executed.append(executed)
        if not_finite(action):
            raise NonFinite  # says where, and because of what, when the rollout ends
        observation, reward, terminated, truncated, infos = self._vector.step(executed)
        rollout.behaviour.append(behaviour)
        rollout.infos.append(infos)
        valid, same_step = rollout.valid[t], self.mode is AutoresetMode.SAME_STEP
        np.logical_not(self._resetting, out=valid)
        lost = self._lose(infos)
        if lost is not None:
            rollout.cut(t, lost)
            rollout.episode[t], rollout.length[t] = self._episodes, self._lengths
            valid &= ~lost
        np.copyto(rollout.rewards[t], reward, where=valid)  # a step that only resets may have one, of no episode
        terminated = np.logical_and(terminated, valid, out=rollout.terminated[t])
        truncated = np.greater(truncated & valid, terminated, out=rollout.truncated[t])
        ended = terminated | truncated
        over = ended if lost is None else ended | lost
        rollout.begun[t] = over if same_step else self._resetting
        rollout.observations[t + 1] = self._encoded(observation, infos, over)
        self._observation = rollout.observations[t + 1]
        any_ended = np.count_nonzero(ended) > 0
        if any_ended:
            self._find_finals(t, rollout, infos)
        lives = self._told_of.lives(infos, self.total_timesteps)
        if lives is not None and self._lives is not None:
            np.copyto(rollout.life_lost[t], (lives < self._lives) & valid & ~over)
        self._lives = lives
        if lost is not None:
            self._episodes += lost
        self.total_timesteps += int(np.count_nonzero(valid))
        self._returns += rollout.rewards[t]
        self._lengths += valid
        self._resetting = self._nowhere if same_step else ended
        if any_ended:
            rollout.episodes += self._ended(ended, infos, info_keys)

    def _lose(self, infos: Infos) -> np.ndarray | None:
        """Find the environments whose workers were restarted; their episodes are over and not counted yet.

        The lost step does not count; the one before it ends the episode, in the last state that was seen.
        """
        if not (restarted := self._vector.restarted(infos)):
            return None
        lost = np.zeros(self.envs.num_envs, dtype=bool)
        for i, episodes in restarted.items():
            lost[i], self._episodes[i] = True, episodes - 1
        self.restarts += len(restarted)
        self._lengths[lost] = 0
        self._returns[lost] = 0.0
        return lost

    def _remember(self, executed: list[np.ndarray]) -> None:
        """Keep the actions of the current episodes, if they can be used to play them again."""
        if self._seeded:
            self._tape.follow(np.array(executed), self._lengths)

    def _ended(self, ended: np.ndarray, infos: Infos, info_keys: Sequence[str]) -> list[Episode]:
        """Return the episodes that ended in the step just counted, and begin to count the next ones."""
        done = []
        for i in np.flatnonzero(ended).tolist():
            where = f"environment {self._at + i} at the end of its episode {self._episodes[i]}"
            said = numbers(infos[i], info_keys, where) if info_keys else {}
            done.append(Episode(self.total_timesteps, float(self._returns[i]), int(self._lengths[i]), i, said))
        self._returns[ended] = 0.0
        self._lengths[ended] = 0
        self._episodes += ended
        return done

    def _find_finals(self, t: int, rollout: Rollout, infos: Infos) -> None:
        """Keep the last observations of the episodes just truncated; an episode without one counts as terminated."""
        for i in np.flatnonzero(rollout.truncated[t]).tolist():
            if (final := self._final(i, infos)) is not None:
                rollout.finals[t, i] = final
            else:
                rollout.terminated[t, i], rollout.truncated[t, i] = True, False

    def _final(self, i: int, infos: Infos) -> Tensor | None:
        """Return the last observation of the episode just truncated in environment ``i``, if that was given."""
        if self.mode is AutoresetMode.NEXT_STEP:
            return torch.from_numpy(self._observation)[i]
        if (told := self._vector.final_observation(i, infos)) is None:
            return None
        return torch.from_numpy(self._as_array(told))

    def _encoded(self, observation: Any, infos: Infos, ended: np.ndarray) -> np.ndarray:
        """Return observations as the policy gets them, with masks."""
        over = self._nowhere if self.mode is AutoresetMode.SAME_STEP else ended  # what is done there has no effect
        masks = self._masks(infos, over) if self.encoding.mask_in_info else None
        encoded = self._as_array(observation, masks)
        n, many = self.envs.num_envs, encoded.shape[: encoded.ndim - len(self.encoding.shape)]
        if many != (n,):
            raise BadStep(f"the vector environment gave {many} observations; allowed: ({n},), one for each environment")
        if self.encoding.n_mask:
            self.encoding.allowed(encoded)[over] = 1.0
            for i in np.flatnonzero(self.encoding.forbids_everything(encoded)):
                raise BadStep(
                    f"{MASK} of environment {self._at + i} allows no action after {self.total_timesteps} steps; "
                    "allowed: at least one action in every state"
                )
        return encoded

    def _as_array(self, observation: Any, masks: np.ndarray | None = None) -> np.ndarray:
        try:
            return self.encoding(observation, masks)
        except ValueError as error:
            raise BadStep(f"{error} (after {self.total_timesteps} steps)") from error

    def _masks(self, infos: Infos, ended: np.ndarray) -> np.ndarray:
        """Return the masks in infos, ``[N, n]``; an environment whose episode has just ended needs no mask."""
        masks = as_numpy(infos.gathered(MASK))
        known = np.array([mask is not None for mask in masks])
        for i in np.flatnonzero(~known & ~ended):
            raise BadStep(
                f"info of environment {self._at + i} has no {MASK!r} after {self.total_timesteps} steps; "
                "allowed: one at every reset and step, or action_mask = 'none'"
            )
        n = self.encoding.n_mask
        flat = [flat_mask(masks[i]) if known[i] else np.ones(n) for i in range(len(ended))]
        for index, mask in enumerate(flat):
            if len(mask) != n:
                raise BadStep(f"{MASK} of environment {self._at + index} has {len(mask)} elements; allowed: {n}")
        return np.stack(flat)


def _on_tensors(act: Act) -> Callable[[np.ndarray], Acted]:
    return lambda observations: act(torch.from_numpy(observations))
