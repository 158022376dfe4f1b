"""Acting outside of training, after Stable-Baselines3's protocol."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import torch

from klrl.agents.config import AgentConfig
from klrl.agents.learner import Learner
from klrl.agents.misuse import explained
from klrl.policy.surroundings import undisturbed
from klrl.text import warn_user

C = TypeVar("C", bound=AgentConfig)


class Choice(np.ndarray):
    """One number as an array ``[]``, as Stable-Baselines3 returns it, that also works as a key of a dict.

    Gymnasium's FrozenLake, Taxi and CliffWalking look up their transitions in dicts, and arrays cannot be hashed.
    """

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(self.item())

    def __repr__(self) -> str:
        return repr(np.asarray(self))

    def __array_wrap__(self, array: np.ndarray, *_: Any) -> Any:  # results computed from it are plain numbers
        return array[()]


def one_or_many(actions: np.ndarray) -> np.ndarray:
    """Return actions as an array, a single number as a :class:`Choice`."""
    x = np.asarray(actions)
    return x if x.ndim else x.view(Choice)


class Predictor(Learner[C]):
    """A learner whose ``predict`` takes an environment's observations and returns the environment's actions."""

    @explained
    @undisturbed
    @torch.no_grad()
    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: np.ndarray | None = None,
    ) -> tuple[np.ndarray, Any]:
        """Return actions for one observation ``[*O]`` or many ``[n, *O]``, ready for the environment, and ``state``.

        Sampling uses a random generator of its own, so predicting never changes the course of training.

        Args:
            observation: nested as the observation space is.
            state: returned as it is; these policies have no recurrent state.
            episode_start: not used.
            deterministic: return the mode of the distribution instead of a sample.
            action_masks: the allowed actions, if training took masks from ``info``; without it all are allowed, and a
                ``RuntimeWarning`` says so.

        Raises:
            ValueError: the observation does not fit the observation space, or the mask allows no action.
        """
        del episode_start
        if self.takes_action_masks and action_masks is None:
            warn_user("predict without action_masks: training took masks from info, and now every action is allowed")
        if self.actor.training:  # replaced, or switched to training mode
            self.networks.repack()
        encoded = self.encoding(observation, action_masks)
        if encoded.ndim - len(self.encoding.shape) not in (0, 1):
            batch = encoded.shape[: encoded.ndim - len(self.encoding.shape)]
            raise ValueError(f"observation has batch shape {batch}; allowed: () for one, ('n',) for n of them")
        if not np.isfinite(encoded).all():
            raise ValueError("observation has NaN or infinite elements; allowed: finite numbers")
        if (forbidden := self.encoding.forbids_everything(encoded)).any():
            mask = self.encoding.allowed(encoded)[forbidden][0].tolist()
            raise ValueError(f"action_mask = {mask}; allowed: at least one action in every state")
        policy = self.distribution(torch.from_numpy(encoded)).cpu()
        action = policy.mode() if deterministic else policy.sample(self.streams.predictions)
        return one_or_many(self.actor.to_environment(action)), state

    @property
    def takes_action_masks(self) -> bool:
        """True if ``predict`` needs the environment's ``info["action_mask"]``."""
        return self.encoding.mask_in_info
