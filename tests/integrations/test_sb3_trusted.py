"""``--trust``: Stable-Baselines3 loads what reading is not enough for; klrl says so, and computes the same."""

import json
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from sb3_models import Choosing
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import distributions as td

from klrl.integrations.sb3_policy import read_policy
from klrl.integrations.sb3_reader import NotEnough
from klrl.integrations.sb3_trusted import TrustedPolicy
from klrl.policy.distributions import SquashedGaussian
from klrl.scripts.audit import main as audit

pytestmark = pytest.mark.usefixtures("one_reader")
PARTS = gym.spaces.Dict(
    {
        "speed": gym.spaces.Box(-1.0, 1.0, (2, 2), np.float32),
        "gear": gym.spaces.Discrete(3),
        "on": gym.spaces.MultiBinary(2),
    }
)
IMAGES = gym.spaces.Box(0, 255, (3, 36, 36), np.uint8)
CHANNELS_LAST = gym.spaces.Box(0, 255, (36, 36, 3), np.uint8)


class Mine(ActorCriticPolicy):
    """A class of a user's own, which is pickled as its name."""


def model(kind, policy, env, path, **settings):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = kind(policy, env, seed=0, device="cpu", **settings).learn(8 if kind is A2C else 16)
    with torch.no_grad():
        made.policy.action_net.weight.mul_(30.0)
    made.save(path)
    return made


@pytest.mark.parametrize(
    ("policy", "space"), [("MultiInputPolicy", PARTS), ("CnnPolicy", IMAGES), ("CnnPolicy", CHANNELS_LAST)]
)
def test_observations_of_other_kinds_reach_the_policy_as_the_environment_gives_them(policy, space, tmp_path, reader):
    path = tmp_path / "model.zip"
    small = {"n_steps": 16, "batch_size": 16, "n_epochs": 1}
    made = model(PPO, policy, Choosing(observation_space=space), path, **small)
    with pytest.raises(NotEnough, match="allowed: policies of layers alone, or --trust, which"):
        read_policy(path, None, reader)
    found = TrustedPolicy(path, None, space)
    space.seed(0)
    observations = [space.sample() for _ in range(5)]
    encoded = torch.from_numpy(np.stack([found.encoding(x) for x in observations]))
    logits = found.distribution(encoded).logits
    for x, mine in zip(observations, logits, strict=True):
        with torch.no_grad():
            own = made.policy.get_distribution(made.policy.obs_to_tensor(x)[0]).distribution
        torch.testing.assert_close(mine, own.logits[0])
    assert logits.std(0).max() > 1e-3  # they differ by observation, so that the test can fail


def test_a_squashed_gaussian_is_that_of_its_library(tmp_path):
    made = model(
        A2C, "MlpPolicy", "Pendulum-v1", tmp_path / "model.zip", use_sde=True, policy_kwargs={"squash_output": True}
    )
    found = TrustedPolicy(tmp_path / "model.zip")
    states = torch.tensor([[0.5, -0.5, 2.0], [1.0, 0.0, -7.0]])
    record = found.distribution(states)
    assert isinstance(record, SquashedGaussian)
    with torch.no_grad():
        own = made.policy.get_distribution(states).distribution
    assert td.kl_divergence(own, td.Normal(record.mean, record.log_std.exp())).abs().max() < 1e-6
    actions = record.mode()
    deterministic, _ = made.predict(states.numpy(), deterministic=True)
    np.testing.assert_allclose(found.to_environment(actions), deterministic, rtol=1e-5)


def test_the_command_says_what_it_executes_and_without_trust_refuses(saved, tmp_path, capsys):
    path, plain = tmp_path / "mine.zip", saved("a2c").path
    made = model(A2C, Mine, "Pendulum-v1", path)
    made.policy.load_state_dict(saved("a2c").model.policy.state_dict())
    made.save(path)
    words = [str(path), str(plain), "--env", "Pendulum-v1", "--episodes", "1"]
    with pytest.raises(SystemExit) as stop:
        audit(words)
    said = capsys.readouterr().err
    assert (stop.value.code, said.count("\n")) == (2, 1)
    assert "its policy is a test_sb3_trusted.Mine; allowed: policies of layers alone, or --trust" in said
    audit([*words, "--trust", "--json", str(tmp_path / "audit.json")])
    said = capsys.readouterr()
    assert said.err == f"{path}: Stable-Baselines3 loads it and executes what is in it (--trust)\n"
    found = json.loads((tmp_path / "audit.json").read_text())  # of the same parameters, read and loaded
    assert max(x["largest"] for x in found["divergences"]) < 1e-12
