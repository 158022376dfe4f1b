"""Policies to be asked: distributions and actions at observations, after Stable-Baselines3's protocol."""

from __future__ import annotations

import abc
from typing import Any, ClassVar, Generic, TypeVar

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from klrl.agents.config import AgentConfig
from klrl.agents.misuse import explained
from klrl.agents.new_networks import new_networks
from klrl.policy.actor import Actor
from klrl.policy.device import usable
from klrl.policy.distributions import Distribution
from klrl.policy.networks import Critic
from klrl.policy.observations import Encoding
from klrl.policy.surroundings import ordinary, undisturbed
from klrl.run.seeding import Streams
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


class Predictor(abc.ABC, Generic[C]):
    """Networks with the statistics of their observations; ``predict`` takes and returns what the environment does."""

    config_class: ClassVar[type[AgentConfig]]
    optimized: ClassVar[tuple[str, ...]] = ("actor", "critic")
    """Networks that Adam moves; the algorithm moves the others by a rule of its own."""

    def __init__(self, observation_space: gym.Space, action_space: gym.Space, config: C, seed: int) -> None:
        self.observation_space, self.action_space = observation_space, action_space
        self.encoding = Encoding(observation_space, action_space, config.action_mask, config.frame_stacks)
        config.check_observations(self.encoding)
        self.config, self.seed = config, seed
        self.streams = Streams.from_seed(seed)
        self.device = usable(config.device)
        self.shares_encoder = config.shares_encoder(self.encoding)
        """True if the critic was made to read the policy's encoder."""
        made_by = config, self.encoding, action_space, self.streams.networks
        self.networks = new_networks(*made_by, device=self.device, optimized=self.optimized)
        self.normalizer = self.encoding.normalizer()

    @property
    def actor(self) -> Actor:
        """Policy network; a network of your own goes into ``actor.trunk`` before training."""
        return self.networks.actor

    @actor.setter
    def actor(self, actor: Actor) -> None:
        self.networks.actor = actor

    @property
    def critic(self) -> Critic:
        """Value network; a network of your own goes into ``critic.trunk`` before training."""
        return self.networks.critic

    @critic.setter
    def critic(self, critic: Critic) -> None:
        self.networks.critic = critic

    @undisturbed
    @torch.no_grad()
    def distribution(self, observations: Any, action_masks: Any = None) -> Distribution:
        """Return the policy's distribution at observations ``[*B]`` of the environment, normalisation included.

        Actions are the policy's own: a squashed Gaussian's lie in (-1, 1), a Beta's in (0, 1), those of a Discrete
        space start at 0, and a Gaussian's are in units of the box (``scale_actions``) and not clipped;
        ``actor.to_environment`` stretches, shifts and clips them for the environment, :meth:`from_environment` converts
        the environment's.

        Args:
            observations: nested as the observation space is, or a tensor as in a batch.
            action_masks: ``[*B, n]``, if masks come by ``info``; without them everything is allowed.
        """
        if not isinstance(observations, Tensor):
            observations = torch.from_numpy(self.encoding(observations, action_masks))
        return self.actor(self.normalized(observations))

    def from_environment(self, action: Any) -> np.ndarray:
        """Return the policy's actions ``[*B, *A]`` for the environment's, ``[*B]`` of the action space's shape.

        The inverse of ``actor.to_environment``, but for what that clips: see :meth:`distribution` for the policy's
        units. An action that the environment does not have becomes one that the policy cannot take, if there are any.

        Raises:
            ValueError: an array of another shape.
        """
        return self.actor.from_environment(np.asarray(action))

    def normalized(self, observations: Tensor) -> Tensor:
        """Normalise raw observations for the networks, on their device."""
        return self.on_device(self.normalizer(observations))

    def on_device(self, x: Tensor) -> Tensor:
        """Return a tensor on the networks' device."""
        return ordinary(x).to(self.device)

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
