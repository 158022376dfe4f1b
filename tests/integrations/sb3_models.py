"""Small models of Stable-Baselines3, trained for a moment and saved, and what their own library computes."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from sb3_contrib import TRPO, MaskablePPO
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize


class Choosing(gym.Env):
    """Random observations of a space, any action; masks as both libraries ask for them."""

    def __init__(self, action_space=None, observation_space=None):
        self.action_space = action_space or gym.spaces.Discrete(4)
        self.observation_space = observation_space or gym.spaces.Box(-1.0, 1.0, (3,), np.float32)
        self.steps = 0

    def action_masks(self):
        n = gym.spaces.flatdim(self.action_space)
        return np.arange(n) % 4 != (self.steps % 4)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(int(self.np_random.integers(2**31)))
        self.steps = 0
        return self.observation_space.sample(), {"action_mask": self.action_masks()}

    def step(self, action):
        self.steps += 1
        info = {"action_mask": self.action_masks()}
        return self.observation_space.sample(), float(np.sum(action)), self.steps == 9, False, info


gym.register("AuditChoosing-v0", entry_point=Choosing)
MULTI = gym.spaces.MultiDiscrete([3, 2, 4])
SETTINGS: dict[str, Any] = {"n_steps": 32, "seed": 0, "device": "cpu"}


@dataclass
class Saved:
    """A model, its files, and its environment's id."""

    model: Any
    path: Path
    env: str
    env_kwargs: dict[str, Any]
    vec_normalize: Path | None = None

    def own(self, observations: np.ndarray, masks: np.ndarray | None = None) -> list[torch.Tensor]:
        """Return what the library computes with the network's outputs: means and standard deviations, or logits."""
        if (env := self.model.get_vec_normalize_env()) is not None:
            observations = env.normalize_obs(observations)
        x = self.model.policy.obs_to_tensor(observations)[0]
        with torch.no_grad():
            more = {} if masks is None else {"action_masks": masks}
            found = self.model.policy.get_distribution(x, **more)
        inner = getattr(found, "distribution", None) or found.distributions
        if isinstance(inner, list):
            return [torch.cat([head.logits for head in inner], -1)]
        return [inner.mean, inner.stddev] if isinstance(inner, torch.distributions.Normal) else [inner.logits]

    def own_values(self, observations: np.ndarray) -> torch.Tensor:
        if (env := self.model.get_vec_normalize_env()) is not None:
            observations = env.normalize_obs(observations)
        with torch.no_grad():
            return self.model.policy.predict_values(self.model.policy.obs_to_tensor(observations)[0]).squeeze(-1)


def _wide(model):
    """Make the policy no longer nearly uniform, as a training would."""
    with torch.no_grad():
        model.policy.action_net.weight.mul_(30.0)
        if hasattr(model.policy, "log_std"):
            model.policy.log_std.add_(torch.linspace(-0.5, 0.3, len(model.policy.log_std)))
    return model


MAKERS = {
    "cartpole": (PPO, "CartPole-v1", {}, {"batch_size": 32, "n_epochs": 1}, False),
    "relu": (
        PPO, "CartPole-v1", {}, {
            "batch_size": 32, "n_epochs": 1,
            "policy_kwargs": {"activation_fn": torch.nn.ReLU, "net_arch": {"pi": [32], "vf": [16, 8]}},
        }, False,
    ),
    "pendulum": (TRPO, "Pendulum-v1", {}, {"batch_size": 32, "learning_rate": 1e-3, "n_steps": 256}, True),
    "hopper": (TRPO, "Hopper-v5", {}, {"batch_size": 32}, True),
    "a2c": (A2C, "Pendulum-v1", {}, {}, False),
    "linear": (PPO, "CartPole-v1", {}, {"batch_size": 32, "n_epochs": 1, "policy_kwargs": {"net_arch": []}}, False),
    "elu": (A2C, "CartPole-v1", {}, {"policy_kwargs": {"activation_fn": torch.nn.ELU}}, False),
    "multi": (PPO, "AuditChoosing-v0", {"action_space": MULTI}, {"batch_size": 32, "n_epochs": 1}, False),
    "bits": (PPO, "AuditChoosing-v0", {"action_space": gym.spaces.MultiBinary(3)}, {"batch_size": 32}, False),
    "choices": (PPO, "AuditChoosing-v0", {"observation_space": MULTI}, {"batch_size": 32, "n_epochs": 1}, False),
    "number": (PPO, "AuditChoosing-v0", {"observation_space": gym.spaces.Discrete(5)}, {"batch_size": 32}, False),
    "masked": (MaskablePPO, "AuditChoosing-v0", {}, {"batch_size": 32, "n_epochs": 1}, False),
    "masked heads": (MaskablePPO, "AuditChoosing-v0", {"action_space": MULTI}, {"batch_size": 32}, False),
}  # fmt: skip


def save_model(name: str, folder: Path, steps: int = 32, seed: int = 0) -> Saved:
    """Train a model for one rollout and save it."""
    make, env, env_kwargs, settings, normalized = MAKERS[name]
    file = folder / f"{name.replace(' ', '-')}_{steps}_steps.zip"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        envs: Any = DummyVecEnv([lambda: gym.make(env, disable_env_checker=True, **env_kwargs)])
        envs = VecNormalize(envs) if normalized else envs
        model = make("MlpPolicy", envs, **{**SETTINGS, **settings, "seed": seed}).learn(steps)
        if name != "relu":  # spaces that were sampled have a random generator in their pickle
            model.action_space.seed(0)
            model.observation_space.seed(0)
        _wide(model).save(file)
    saved = Saved(model, file, env, env_kwargs)
    if normalized:
        saved.vec_normalize = folder / f"{file.stem}.pkl"
        envs.training = False
        envs.save(saved.vec_normalize)
    return saved
