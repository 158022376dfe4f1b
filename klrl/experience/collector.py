"""Rollouts: a collector steps vector environments and returns time-major batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import Tensor

from klrl.experience.batch import Batch, Episode
from klrl.experience.cursors import EnvCursor
from klrl.experience.environments import diverged, is_seeded, spawn_env_seeds
from klrl.experience.infos import Infos, numbers
from klrl.experience.steps import BadStep
from klrl.experience.tape import MOST, Tape
from klrl.experience.vector import Vector, as_numpy
from klrl.policy.arrays import Array, stack
from klrl.policy.choices import MASK
from klrl.policy.distributions import Distribution, stack_records
from klrl.policy.observations import Encoding, flat_mask
from klrl.policy.surroundings import undisturbed
from klrl.text import warn_user

Act = Callable[[Tensor], tuple[Array, np.ndarray, Distribution]]


class NonFinite(FloatingPointError):
    """An environment or the policy produced NaN or infinity; the message says which, and where."""

    transition: Mapping[str, np.ndarray] = MappingProxyType({})
    """Arrays of the step, ``[N, ...]`` each: observation, action, executed, reward, next_observation, as far as known.

    A final_observation is that of one environment, ``[1, ...]``, and ``environment`` is its index.
    """


class ReplayMismatch(ValueError):
    """An episode that was played again led to another observation than before."""


class Collector:
    """Steps vector environments with a policy; episodes go on from one batch to the next.

    Args:
        envs: the environments.
        begin: seeds for new episodes, or a cursor at which to continue.
        encoding: encoding of their observations.
        total_timesteps: steps taken before.

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
    ) -> None:
        cursor = begin if isinstance(begin, EnvCursor) else EnvCursor.beginning(spawn_env_seeds(begin, envs.num_envs))
        self.envs, self.encoding = envs, encoding
        self._vector = Vector(envs)
        self.total_timesteps = total_timesteps
        self._env_seeds, self._episodes, self._lengths = cursor.env_seeds, cursor.episodes.copy(), cursor.lengths.copy()
        self._returns, self._tape = (
            cursor.returns.copy(),
            Tape(np.concatenate(cursor.actions) if cursor.actions else None),
        )
        self._told = False
        self._resetting = np.zeros(envs.num_envs, dtype=bool)
        self._seeded = is_seeded(envs)
        self.restarts = 0
        """Number of times a worker process was restarted and its episode lost."""
        observation, infos = self._vector.reset(cursor)
        self._episodes += self._lose(infos, _Rollout(()))
        self._observation = self._encoded(observation, infos, self._resetting, ahead=0)
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
            episodes=self._episodes.copy(),
            lengths=self._lengths.copy(),
            returns=self._returns.copy(),
            actions=(self._tape.actions,) if len(self._tape.actions) else (),
            observation=self._observation,
        )

    def _check_arrival(self, expected: Tensor) -> None:
        here = self._observation.to(expected.dtype)  # what was saved may have been rounded to float32
        each = zip(here.numpy(), expected.numpy(), diverged(self.envs), strict=True)
        for i, (one, other, lost) in enumerate(each):
            if lost or one.tobytes() != other.tobytes():
                where = f"{self._lengths[i]} steps into its episode {self._episodes[i]}"
                raise ReplayMismatch(f"environment {i} did not come back to where it was, {where}")

    @undisturbed
    def collect(self, act: Act, n_steps: int, info_keys: Sequence[str] = ()) -> Batch:
        """Take ``n_steps`` in every environment.

        Args:
            act: observations ``[N, *O]`` to (policy's actions, environment's actions, distributions).
            n_steps: T.
            info_keys: keys whose numbers in the info of an episode's last step are kept with the episode.

        Raises:
            BadStep: an environment gave what cannot be used.
            NonFinite: an action, a reward or an observation is NaN or infinite.
        """
        rollout = _Rollout(info_keys)
        for _ in range(n_steps):
            self._step(act, rollout)
        self._remember(rollout.executed)
        return self._batch(rollout)

    def _step(self, act: Act, rollout: _Rollout) -> None:
        """Take one step in every environment."""
        observation, valid = self._observation, ~self._resetting
        action, execute, behaviour = act(observation)
        seen: dict[str, Any] = {"observation": observation, "action": action, "executed": execute}
        try:
            self._check_finite("action", np.asarray(action))
            step, reward, terminated, truncated, infos = self._vector.step(execute)
            valid &= ~(lost := self._lose(infos, rollout))
            reward = np.where(valid, reward, 0.0)  # a step that only resets may have one, which belongs to no episode
            terminated, truncated = terminated & valid, truncated & valid & ~terminated
            ended = terminated | truncated
            seen["reward"] = rewards = _in_float32(reward)
            self._check_finite("reward", rewards)
            self._observation = self._encoded(step, infos, ended | lost)
            for i in truncated.nonzero()[0].tolist():
                if (final := self._final(i, infos)) is not None:
                    rollout.finals[len(rollout.rows), i] = final
                else:
                    terminated[i], truncated[i] = True, False
        except NonFinite as error:
            error.transition = {name: np.asarray(x).copy() for name, x in seen.items()} | {**error.transition}
            raise
        self._episodes += lost
        rollout.episodes += self._count(reward, ended, valid, infos, rollout.info_keys)
        rollout.executed.append(execute)
        rollout.infos.append(infos)
        rollout.rows.append((observation, action, behaviour, torch.from_numpy(rewards), terminated, truncated, valid))

    def _lose(self, infos: Infos, rollout: _Rollout) -> np.ndarray:
        """Find the environments whose workers were restarted; their episodes are over and not counted yet.

        The lost step does not count; the one before it ends the episode, in the last state that was seen.
        """
        lost = np.zeros(self.envs.num_envs, dtype=bool)
        if not (restarted := self._vector.restarted(infos)):
            return lost
        for i, episodes in restarted.items():
            lost[i], self._episodes[i] = True, episodes - 1
        self.restarts += len(restarted)
        self._lengths[lost] = 0
        self._returns[lost] = 0.0
        if rollout.rows:
            *_, terminated, truncated, valid = rollout.rows[-1]
            cut = lost & valid & ~terminated & ~truncated
            truncated |= cut
            t = len(rollout.rows) - 1
            rollout.finals |= {(t, i): self._observation[i] for i in np.flatnonzero(cut).tolist()}
        return lost

    def _remember(self, executed: list[np.ndarray]) -> None:
        """Keep the actions of the current episodes, if they can be used to play them again."""
        if not self._seeded:
            return
        actions, longest = np.array(executed), int(self._lengths.max())
        if longest * actions[0].nbytes <= MOST:
            self._tape.add(actions, longest)
            return
        self._tape = Tape()
        if not self._told:
            self._told = True
            text = (
                f"an episode of environment {self._lengths.argmax()} is {longest:,} steps long: its actions are no "
                "longer kept; a training resumed from here begins new episodes, and differs from an uninterrupted one"
            )
            warn_user(text)

    def _count(
        self, reward: np.ndarray, ended: np.ndarray, valid: np.ndarray, infos: Infos, info_keys: Sequence[str]
    ) -> list[Episode]:
        """Update returns and lengths, and return the episodes that ended in this step."""
        self.total_timesteps += int(np.count_nonzero(valid))
        self._returns += reward
        self._lengths += valid
        self._resetting = ended & (self.mode is AutoresetMode.NEXT_STEP)
        if not ended.any():
            return []
        done = []
        for i in np.flatnonzero(ended).tolist():
            where = f"environment {i} at the end of its episode {self._episodes[i]}"
            said = numbers(infos[i], info_keys, where) if info_keys else {}
            done.append(Episode(self.total_timesteps, float(self._returns[i]), int(self._lengths[i]), i, said))
        self._returns[ended] = 0.0
        self._lengths[ended] = 0
        self._episodes += ended
        return done

    def _final(self, i: int, infos: Infos) -> Tensor | None:
        """Return the last observation of the episode just truncated in environment ``i``, if that was given."""
        if self.mode is AutoresetMode.NEXT_STEP:
            return self._observation[i]
        if (told := self._vector.final_observation(i, infos)) is None:
            return None
        final = self._as_array(told)
        self._check_finite("final observation", final[None], self.encoding.locate, [i])
        return torch.from_numpy(final)

    def _batch(self, rollout: _Rollout) -> Batch:
        observations, actions, behaviour, rewards, terminated, truncated, valid = zip(*rollout.rows, strict=True)
        finals = [rollout.finals[where] for where in sorted(rollout.finals)]
        return Batch(
            observations=torch.stack(observations),
            actions=stack(actions),
            behaviour=stack_records(behaviour),
            rewards=torch.stack(rewards),
            terminated=torch.from_numpy(np.array(terminated)),
            truncated=torch.from_numpy(np.array(truncated)),
            valid=torch.from_numpy(np.array(valid)),
            next_observations=self._observation,
            final_observations=torch.stack(finals) if finals else self._observation[:0],
            episodes=tuple(rollout.episodes),
            infos=tuple(rollout.infos),
        )

    def _encoded(self, observation: Any, infos: Infos, ended: np.ndarray, ahead: int = 1) -> Tensor:
        """Return observations as the policy gets them, with masks, ``ahead`` steps after those that are counted."""
        same_step = self.mode is AutoresetMode.SAME_STEP
        over = ended & (not same_step)  # what is done in these states has no effect
        masks = self._masks(infos, over) if self.encoding.mask_in_info else None
        encoded = self._as_array(observation, masks)
        n, many = self.envs.num_envs, encoded.shape[: encoded.ndim - len(self.encoding.shape)]
        if many != (n,):
            raise BadStep(f"the vector environment gave {many} observations; allowed: ({n},), one for each environment")
        if self.encoding.n_mask:
            self.encoding.allowed(encoded)[over] = 1.0
            for i in np.flatnonzero(self.encoding.forbids_everything(encoded)):
                raise BadStep(
                    f"{MASK} of environment {i} allows no action after {self.total_timesteps} steps; "
                    "allowed: at least one action in every state"
                )
        begun = ended if same_step else self._resetting
        self._check_finite("observation", encoded, self.encoding.locate, begun=begun, ahead=ahead)
        return torch.from_numpy(encoded)

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
                f"info of environment {i} has no {MASK!r} after {self.total_timesteps} steps; "
                "allowed: one at every reset and step, or action_mask = 'none'"
            )
        n = self.encoding.n_mask
        flat = [flat_mask(masks[i]) if known[i] else np.ones(n) for i in range(len(ended))]
        for index, mask in enumerate(flat):
            if len(mask) != n:
                raise BadStep(f"{MASK} of environment {index} has {len(mask)} elements; allowed: {n}")
        return np.stack(flat)

    def _check_finite(
        self,
        name: str,
        array: np.ndarray,
        locate: Callable[[tuple[int, ...]], str] = lambda index: f", element {list(index)}," if index else "",
        environments: Sequence[int] | None = None,
        begun: np.ndarray | None = None,
        ahead: int = 1,
    ) -> None:
        """Raise for values that are not finite, where they enter.

        Args:
            name: name of the values, for the message.
            array: one row per environment.
            locate: words for an index inside of a row.
            environments: indices of the rows' environments, if not all.
            begun: mask of rows that belong to the episode after the one that is counted.
            ahead: number of steps after those that are counted.
        """
        if array.dtype.kind != "f" or np.isfinite(array).all():
            return
        row, *inside = (int(i) for i in np.argwhere(~np.isfinite(array))[0])
        index = row if environments is None else environments[row]
        new = begun is not None and begun[index]
        episode, step = self._episodes[index] + new, 0 if new else self._lengths[index] + ahead
        error = NonFinite(
            f"{name} of environment {index}{locate(tuple(inside))} is {array[row, *inside]} in step {step} of its "
            f"episode {episode}, after {self.total_timesteps} steps; allowed: finite numbers"
        )
        key = {"observation": "next_observation"}.get(name, name.replace(" ", "_"))
        error.transition = {key: array, "environment": np.array(index)}
        raise error


@dataclass(eq=False)
class _Rollout:
    """Steps that a rollout has gathered so far."""

    info_keys: Sequence[str]
    rows: list[tuple[Tensor, Array, Distribution, Tensor, np.ndarray, np.ndarray, np.ndarray]] = field(
        default_factory=list
    )
    finals: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    """The last observations of truncated episodes, by row and environment."""
    episodes: list[Episode] = field(default_factory=list)
    executed: list[np.ndarray] = field(default_factory=list)
    infos: list[Infos] = field(default_factory=list)


def _in_float32(reward: Any) -> np.ndarray:
    with np.errstate(over="ignore"):  # infinite is refused
        return np.array(reward, np.float32)
