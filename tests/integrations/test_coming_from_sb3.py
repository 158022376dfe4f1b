"""What the page for users of Stable-Baselines3 says of it, checked with the packages themselves."""

import inspect
import math
from dataclasses import fields

import pytest
import sb3_contrib
import stable_baselines3
from sitegen.sb3_defaults import THEIRS, ours
from stable_baselines3.common.policies import ActorCriticPolicy

from klrl.agents import PPO, TRPO, PPOConfig, TRPOConfig

AGENTS = {"PPO": (stable_baselines3.PPO, PPO), "TRPO": (sb3_contrib.TRPO, TRPO)}
SIZES = {"n_steps": 64, "batch_size": 32, "seed": 0, "device": "cpu"}


@pytest.mark.parametrize("name", AGENTS)
def test_the_defaults_in_the_table_are_those_of_the_package(name):
    theirs, agent_class = AGENTS[name]
    settings = {f.name for f in fields(agent_class.config_class)}
    signature = {k: p.default for k, p in inspect.signature(theirs).parameters.items() if k in settings}
    model = theirs("MlpPolicy", "Pendulum-v1")
    policy = {k: p.default for k, p in inspect.signature(ActorCriticPolicy).parameters.items()}
    nets = model.policy.mlp_extractor
    widths = {
        part: tuple(layer.out_features for layer in net if hasattr(layer, "out_features"))
        for part, net in (("actor_hidden_sizes", nets.policy_net), ("critic_hidden_sizes", nets.value_net))
    }
    elsewhere = {
        "n_envs": model.n_envs,
        "learning_rate_schedule": "constant" if model.lr_schedule(0.0) == model.lr_schedule(1.0) else "linear",
        "activation": policy["activation_fn"].__name__.lower(),
        "log_std_init": policy["log_std_init"],
        "normalize_observations": model.get_vec_normalize_env() is not None,
        "scale_rewards": model.get_vec_normalize_env() is not None,
        "scale_actions": model.policy.squash_output,
    }
    assert THEIRS[name] == signature | elsewhere | widths
    assert {k for k in THEIRS[name] if ours(name, k) != THEIRS[name][k]} == {
        "n_envs", "n_steps", "normalize_observations", "scale_rewards", "scale_actions", "device",
        *(["learning_rate_schedule"] if name == "PPO" else []),
    }  # fmt: skip


def test_dashboards_find_the_tags_of_ppo_with_their_signs_and_counts():
    theirs = stable_baselines3.PPO("MlpPolicy", "CartPole-v1", n_epochs=3, ent_coef=0.01, clip_range=0.1, **SIZES)
    theirs.learn(128)
    logged = theirs.logger.name_to_value
    same = {"n_steps": 64, "batch_size": 32, "n_envs": 1, "learning_rate_schedule": "constant"}
    config = PPOConfig(n_epochs=3, ent_coef=0.01, clip_range=0.1, **same)
    row = PPO("CartPole-v1", config, seed=0).learn(128).history[-1]
    assert {tag for tag in logged if tag.startswith("train/")} <= row.keys()
    for tag in ("train/n_updates", "train/clip_range", "train/learning_rate"):
        assert float(logged[tag]) == pytest.approx(row[tag])
    assert row["train/n_updates"] == 2 * 3
    for metrics in (logged, row):
        assert -math.log(2) <= metrics["train/entropy_loss"] < -0.6
        assert 0.0 <= metrics["train/approx_kl"] < 0.1
        assert 0.0 <= metrics["train/clip_fraction"] <= 1.0
        assert metrics["train/value_loss"] > 0.0


def test_a_loss_is_made_of_the_same_parts():
    theirs = stable_baselines3.PPO("MlpPolicy", "CartPole-v1", n_epochs=1, ent_coef=0.01, **SIZES | {"batch_size": 64})
    theirs.learn(64)
    config = PPOConfig(n_epochs=1, ent_coef=0.01, n_steps=64, batch_size=64, n_envs=1)
    agent = PPO("CartPole-v1", config, seed=0)
    row = agent.learn(64).history[0]
    for metrics, error in ((theirs.logger.name_to_value, 1e-6), (row, 1e-3)):  # klrl's entropy is that after the step
        parts = metrics["train/policy_gradient_loss"] + 0.5 * metrics["train/value_loss"]
        assert metrics["train/loss"] == pytest.approx(parts + 0.01 * metrics["train/entropy_loss"], abs=error)


def test_dashboards_find_the_tags_of_trpo():
    theirs = sb3_contrib.TRPO("MlpPolicy", "CartPole-v1", **SIZES)
    theirs.learn(128)
    config = TRPOConfig(n_steps=64, batch_size=32, n_envs=1)
    row = TRPO("CartPole-v1", config, seed=0).learn(128).history[-1]
    logged = {tag for tag in theirs.logger.name_to_value if tag.startswith("train/")}
    assert logged - row.keys() == {"train/policy_objective", "train/kl_divergence_loss", "train/is_line_search_success"}
    assert theirs.logger.name_to_value["train/n_updates"] == row["train/n_updates"] == 2
