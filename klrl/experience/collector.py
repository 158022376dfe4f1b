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
from klrl.experience.environments import autoreset_mode, is_seeded, reset, streams
from klrl.experience.steps import BadStep
from klrl.experience.whereabouts import Whereabouts
from klrl.policy.arrays import Array, stack
from klrl.policy.distributions import Distribution, stack_records
from klrl.policy.observations import MASK, Encoding, flat_mask
from klrl.policy.surroundings import undisturbed

Act = Callable[[Tensor], tuple[Array, np.ndarray, Distribution]]


class NonFinite(FloatingPointError):
    """A number of an environment or of the policy is none; the message says which and where."""

    transition: Mapping[str, np.ndarray] = MappingProxyType({})
    """What is known of the step, ``[N, ...]`` each: observation, action, executed, reward, next_observation.

    A final_observation is the one environment's, ``[1, ...]``; ``environment`` says which one that is.
    """


class Elsewhere(ValueError):
    """An environment did not come back to where it had been."""


class Collector:
    """Steps vector environments with a policy; episodes go on from one batch to the next.

    Args:
        envs: the environments.
        begin: seeds for new episodes, or where the environments have been before.
        encoding: of their observations.
        total_timesteps: steps taken before.

    Raises:
        BadStep: the first observation cannot be used.
        Elsewhere: the same seeds and actions lead to another observation than before.
        NonFinite: the first observation is NaN or infinite.
    """

    @undisturbed
    def __init__(
        self,
        envs: VectorEnv,
        begin: np.random.SeedSequence | Whereabouts,
        encoding: Encoding,
        total_timesteps: int = 0,
    ) -> None:
        at = begin if isinstance(begin, Whereabouts) else Whereabouts.beginning(streams(begin, envs.num_envs))
        self.envs, self.encoding = envs, encoding
        self.mode = autoreset_mode(envs)
        self.total_timesteps = total_timesteps
        self._streams, self._episodes, self._lengths = at.streams, at.episodes.copy(), at.lengths.copy()
        self._returns, self._actions = at.returns.copy(), [*at.actions]
        self._resetting = np.zeros(envs.num_envs, dtype=bool)
        self._seeded = is_seeded(envs)
        self.restarts = 0
        """How often a worker process was made anew, its episode lost."""
        observation, info = reset(envs, at)
        self._episodes += self._lose(info, _Rollout())
        self._observation = self._encoded(observation, info, self._resetting, ahead=0)
        if at.observation is not None:
            self._check_arrival(at.observation)

    @property
    def whereabouts(self) -> Whereabouts | None:
        """Where the environments are; ``None`` for such as cannot be taken to a place."""
        if not self._seeded:
            return None
        return Whereabouts(
            streams=self._streams,
            episodes=self._episodes.copy(),
            lengths=self._lengths.copy(),
            returns=self._returns.copy(),
            actions=tuple(self._actions),
            observation=self._observation,
        )

    def _check_arrival(self, expected: Tensor) -> None:
        for i, (one, other) in enumerate(zip(self._observation.numpy(), expected.numpy(), strict=True)):
            if one.tobytes() != other.tobytes():
                where = f"{self._lengths[i]} steps into its episode {self._episodes[i]}"
                raise Elsewhere(f"environment {i} did not come back to where it was, {where}")

    @undisturbed
    def collect(self, act: Act, n_steps: int) -> Batch:
        """Take ``n_steps`` in every environment.

        Args:
            act: observations ``[N, *O]`` to (policy's actions, environment's actions, distributions).
            n_steps: T.

        Raises:
            BadStep: an environment gave what cannot be used.
            NonFinite: an action, a reward or an observation is NaN or infinite.
        """
        rollout = _Rollout()
        for _ in range(n_steps):
            self._step(act, rollout)
        self._remember(rollout.executed)
        return self._batch(rollout)

    def _step(self, act: Act, rollout: _Rollout) -> None:
        """One step everywhere."""
        observation, valid = self._observation, ~self._resetting
        action, execute, behaviour = act(observation)
        seen: dict[str, Any] = {"observation": observation, "action": action, "executed": execute}
        try:
            self._check_finite("action", np.asarray(action))
            step, reward, terminated, truncated, info = self.envs.step(execute)
            # Copies: an environment may use the same arrays again for its next step.
            terminated = np.array(terminated)
            truncated = truncated & ~terminated
            ended = terminated | truncated
            lost = self._lose(info, rollout)
            seen["reward"] = rewards = _in_float32(reward)
            self._check_finite("reward", rewards)
            self._observation = self._encoded(step, info, ended | lost)
            t, valid = len(rollout.rows), valid & ~lost
            rollout.finals |= {(t, i): self._final(i, info) for i in truncated.nonzero()[0].tolist()}
        except NonFinite as error:
            error.transition = {name: np.asarray(x).copy() for name, x in seen.items()} | {**error.transition}
            raise
        self._episodes += lost
        rollout.episodes += self._count(np.asarray(reward), ended, valid)
        rollout.executed.append(execute)
        rollout.rows.append((observation, action, behaviour, torch.from_numpy(rewards), terminated, truncated, valid))

    def _lose(self, info: dict[str, Any], rollout: _Rollout) -> np.ndarray:
        """Where workers were made anew; their episodes are over, and not counted yet.

        The step that was lost is none; the one before it ends the episode, in the state that was seen last.
        """
        lost = np.asarray(info.get("worker_restarted", np.zeros(self.envs.num_envs, dtype=bool)))
        if not lost.any():
            return lost
        self.restarts += int(np.count_nonzero(lost))
        self._episodes[lost] = info["worker_episode"][lost] - 1
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
        """Keep the actions of the current episodes, if they can be of use."""
        if not self._seeded:
            return
        self._actions.append(np.array(executed))
        while self._actions and sum(map(len, self._actions[1:])) >= self._lengths.max():
            self._actions.pop(0)

    def _count(self, reward: np.ndarray, ended: np.ndarray, valid: np.ndarray) -> list[Episode]:
        """Follow returns and lengths; the episodes that ended in this step."""
        self.total_timesteps += int(np.count_nonzero(valid))
        self._returns += reward * valid
        self._lengths += valid
        if self.mode is AutoresetMode.NEXT_STEP:
            self._resetting = ended
        if not ended.any():
            return []
        done = [
            Episode(self.total_timesteps, float(self._returns[i]), int(self._lengths[i]), int(i))
            for i in np.flatnonzero(ended)
        ]
        self._returns[ended] = 0.0
        self._lengths[ended] = 0
        self._episodes += ended
        return done

    def _final(self, i: int, info: dict[str, Any]) -> Tensor:
        """The last observation of the episode that just ended in environment ``i``."""
        if self.mode is AutoresetMode.NEXT_STEP:
            return self._observation[i]
        final = self._as_array(info["final_obs"][i])
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
        )

    def _encoded(self, observation: Any, info: dict[str, Any], ended: np.ndarray, ahead: int = 1) -> Tensor:
        """Observations as the policy gets them, with their masks; ``ahead`` of the steps that are counted."""
        same_step = self.mode is AutoresetMode.SAME_STEP
        over = ended & (not same_step)  # what is done in these states has no effect
        masks = self._masks(info, over) if self.encoding.mask_in_info else None
        encoded = self._as_array(observation, masks)
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

    def _masks(self, info: dict[str, Any], ended: np.ndarray) -> np.ndarray:
        """``info``'s masks ``[N, n]``; none is needed where an episode has just ended."""
        masks = info.get(MASK, [None] * len(ended))
        known = np.asarray(info.get(f"_{MASK}", [mask is not None for mask in masks]))
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
        """Refuse what is not finite where it enters.

        Args:
            name: what it is.
            array: one row per environment.
            locate: words for an index inside of a row.
            environments: which ones, if not all.
            begun: where it belongs to the episode after the one that is counted.
            ahead: by how many steps it is ahead of those that are counted.
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
    """What a rollout has gathered so far."""

    rows: list[tuple[Tensor, Array, Distribution, Tensor, np.ndarray, np.ndarray, np.ndarray]] = field(
        default_factory=list
    )
    finals: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    """The last observations of truncated episodes, by row and environment."""
    episodes: list[Episode] = field(default_factory=list)
    executed: list[np.ndarray] = field(default_factory=list)


def _in_float32(reward: Any) -> np.ndarray:
    with np.errstate(over="ignore"):  # infinite is refused
        return np.array(reward, np.float32)
