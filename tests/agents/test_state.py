"""Saved and loaded agents: every bit, every setting, no other environment."""

import json
import shutil
from dataclasses import dataclass
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from environments import Counting, Noise, Sampling, random_batch, small_agent
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from support import Nowhere, both, parameters, same, slots, without_time
from test_every_space import CASES, train

from klrl.agents import NPG, PPO, TRPO, PPOConfig
from klrl.agents.saving import episode
from klrl.experience import Episode
from klrl.run import checkpoint
from klrl.run.sealed import sealed
from klrl.trust_region import Adaptive, All, Clip, KLConstraint, KLPenalty, TrustRegion


@pytest.fixture(params=["PPO-Discrete", "PPO-Box", "TRPO-Discrete", "TRPO-Box", "NPG-Box"])
def trained(request):
    """An agent in the middle of its training."""
    agent_class, env = {
        "PPO-Discrete": (PPO, "CartPole-v1"), "PPO-Box": (PPO, "Pendulum-v1"),
        "TRPO-Discrete": (TRPO, "CartPole-v1"), "TRPO-Box": (TRPO, "Pendulum-v1"),
        "NPG-Box": (NPG, "Pendulum-v1"),
    }[request.param]  # fmt: skip
    settings = {"trust_region": "clip+adaptive-penalty"} if agent_class is PPO else {}
    return small_agent(agent_class, env, seed=3, **settings).learn(192)


def test_a_loaded_agent_is_the_saved_one_to_the_bit(trained, tmp_path):
    loaded = type(trained).load(trained.save(tmp_path / "agent"))
    assert same(parameters(loaded), parameters(trained))
    assert same(slots(loaded), slots(trained))
    for ours, theirs in ((loaded.normalizer, trained.normalizer), (loaded.return_scaler, trained.return_scaler)):
        assert same((ours.moments.mean, ours.moments.variance), (theirs.moments.mean, theirs.moments.variance))
        assert ours.moments.count == theirs.moments.count > 0
    assert torch.equal(loaded.return_scaler.running, trained.return_scaler.running)
    assert same(loaded.streams.state().values(), trained.streams.state().values())
    for name in (
        "config",
        "region",
        "seed",
        "num_timesteps",
        "n_updates",
        "observation_space",
        "action_space",
    ):
        assert getattr(loaded, name) == getattr(trained, name), name
    assert loaded.drift.kl_sum == trained.drift.kl_sum > 0.0


def test_the_path_of_an_agent_saved_without_its_length_is_unknown(tmp_path):
    path = small_agent(PPO).save(tmp_path / "agent")
    tensors, state = checkpoint.read(path)
    del state["kl_sum"]
    checkpoint.write(path, tensors, state)
    assert np.isnan(PPO.load(path).learn(64).history[-1]["drift/kl_sum"])


@pytest.mark.parametrize("deterministic", [True, False])
def test_a_loaded_agent_predicts_the_same_bits(trained, tmp_path, deterministic):
    loaded = type(trained).load(trained.save(tmp_path / "agent"))
    observations = np.random.default_rng(0).normal(size=(20, *trained.observation_space.shape))
    for _ in range(2):
        ours, theirs = (agent.predict(observations, deterministic=deterministic)[0] for agent in (loaded, trained))
        np.testing.assert_array_equal(ours, theirs)


def test_the_next_updates_of_a_loaded_agent_are_the_same_bits(trained, tmp_path):
    loaded = type(trained).load(trained.save(tmp_path / "agent"))
    for i in range(2):
        assert repr(loaded.update(random_batch(loaded, seed=i))) == repr(trained.update(random_batch(trained, seed=i)))
    assert same(parameters(loaded), parameters(trained))


@pytest.mark.parametrize("fold", [True, False])
def test_statistics_go_on_folded_or_not_as_the_saved_agents_do(fold, tmp_path):
    agent = small_agent(PPO, fold_normalizer=fold).learn(128)
    loaded = PPO.load(agent.save(tmp_path / "agent"))
    for i in range(2):
        assert repr(loaded.update(random_batch(loaded, seed=i))) == repr(agent.update(random_batch(agent, seed=i)))
    assert same(parameters(loaded), parameters(agent))
    assert (agent.update(random_batch(agent))["drift/kl_normalizer"] < 1e-10) == fold


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
@pytest.mark.parametrize(
    "space", [gym.spaces.Discrete(3, start=5), gym.spaces.Box(np.float32([-2, 0]), np.float32([1, np.inf]))]
)
def test_spaces_are_saved_with_start_bounds_shape_and_type(space, shape, tmp_path):
    agent = small_agent(PPO, partial(Noise, space, shape))
    loaded = PPO.load(agent.save(tmp_path / "agent"))
    assert (loaded.observation_space, loaded.action_space) == (agent.observation_space, space)
    one, other = (a.predict(np.ones(shape), deterministic=True)[0] for a in (agent, loaded))
    np.testing.assert_array_equal(one, other)


def test_a_loaded_agent_learns_on_without_being_given_an_environment(trained, tmp_path):
    loaded = type(trained).load(trained.save(tmp_path / "agent"))
    assert loaded.learn(64).num_timesteps == 192 + 64
    assert loaded.config == trained.config


@both
def test_saving_twice_replaces(agent_class, tmp_path):
    agent = small_agent(agent_class)
    agent.save(tmp_path / "agent")
    agent.learn(64).save(tmp_path / "agent")
    assert agent_class.load(tmp_path / "agent").num_timesteps == 64
    assert [p.name for p in tmp_path.iterdir()] == ["agent"]


@both
def test_saving_over_something_else_is_refused(agent_class, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="is not a saved agent"):
        small_agent(agent_class).save(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(("saved", "wanted"), [(PPO, TRPO), (TRPO, PPO), (TRPO, NPG), (NPG, TRPO)])
def test_loading_as_another_class_is_refused(saved, wanted, tmp_path):
    path = small_agent(saved).save(tmp_path / "agent")
    with pytest.raises(ValueError, match=r"holds agent .*; allowed: .*"):
        wanted.load(path)


@both
def test_a_region_of_ones_own_is_named_in_saved_state_and_given_again_to_load(agent_class, tmp_path):
    path = small_agent(agent_class, trust_region=Nowhere()).learn(64).save(tmp_path / "agent")
    with pytest.raises(ValueError, match=r"saved trust region 'Nowhere' is not klrl's; allowed: one given to load"):
        agent_class.load(path)
    assert agent_class.load(path, trust_region=Nowhere()).learn(64).region == Nowhere()


def test_a_region_may_give_a_setting_without_a_default():
    @dataclass(frozen=True)
    class Bound(TrustRegion):
        target_kl: float

    assert (Bound(0.1).target_kl, Bound(0.1).on_exit) == (0.1, None)


@both
def test_the_settings_of_another_agent_are_refused(agent_class):
    other = (TRPO if agent_class is PPO else PPO).config_class()
    with pytest.raises(TypeError, match=f"config = .*; allowed: a {agent_class.config_class.__name__}"):
        agent_class("CartPole-v1", config=other)


@pytest.mark.parametrize("x", [10**19, -(10**19), 10**400, True, "1", None, [1.0]])
@pytest.mark.parametrize("place", range(4))
def test_an_episode_that_cannot_have_been_is_refused(place, x):
    data = [64, 1.0, 32, 0, {}]
    assert episode(data) == Episode(*data)
    data[place] = x
    with pytest.raises(ValueError, match=r"^episode \[[^\n]*; allowed: numbers, integers up to \d+$"):
        episode(data)


@both
def test_recent_episodes_are_the_last_hundred_and_are_saved(agent_class, tmp_path):
    agent = small_agent(agent_class, partial(Counting, length=1)).learn(128)
    assert [e.total_timesteps for e in agent.episodes][-1] == 128
    assert len(agent.episodes) == 100
    loaded = agent_class.load(agent.save(tmp_path / "agent"), env=partial(Counting, length=1))
    assert loaded.episodes == agent.episodes


@both
@pytest.mark.filterwarnings("ignore:.*settotalmass.*")
def test_mujoco_tasks_train_with_their_presets(agent_class):
    config = agent_class.config_class.for_env("HalfCheetah-v5", n_envs=2, n_steps=16)
    agent = agent_class("HalfCheetah-v5", config=config).learn(32)
    assert agent.config.log_std_init == -0.5
    assert agent.history[-1]["drift/kl_covariance_part"] >= 0.0


@both
def test_an_agent_of_an_unnamed_environment_predicts_and_asks_for_one_before_learning(agent_class, tmp_path):
    loaded = agent_class.load(small_agent(agent_class, Counting).save(tmp_path / "agent"))
    assert loaded.action_space.contains(loaded.predict(np.zeros(4))[0])
    with pytest.raises(ValueError, match="env = None; allowed: an environment"):
        loaded.learn(64)
    loaded.set_env(Counting)
    assert loaded.learn(64).num_timesteps == 64


@both
def test_a_loaded_agent_takes_the_environments_it_is_given(agent_class, tmp_path):
    path = small_agent(agent_class, Counting).save(tmp_path / "agent")
    loaded = agent_class.load(path, SyncVectorEnv([Counting] * 3))
    assert loaded.config.n_envs == 3
    assert loaded.learn(64).num_timesteps >= 64


@both
@pytest.mark.parametrize("n", [1, 2, 5])
def test_another_number_of_environments_learns_on_with_minibatches_no_larger_than_the_rollout(agent_class, n, tmp_path):
    def envs():
        return SyncVectorEnv([lambda: gym.make("CartPole-v1")] * n, autoreset_mode=AutoresetMode.SAME_STEP)

    path = small_agent(agent_class, n_envs=4, n_steps=16, batch_size=64).learn(64).save(tmp_path / "agent")
    loaded, put_in = agent_class.load(path, envs()), agent_class.load(path)
    put_in.set_env(envs())
    for a in (loaded, put_in):
        assert (a.config.n_envs, a.config.n_steps, a.config.batch_size) == (n, 16, min(64, 16 * n))
        assert a.learn(1).num_timesteps == 64 + 16 * n
    assert same(parameters(loaded), parameters(put_in))
    again = agent_class.load(loaded.save(tmp_path / "other"), envs())
    assert again.learn(1).config.n_envs == n


def test_a_vector_of_fewer_environments_than_the_settings_have_caps_minibatches():
    agent = PPO(SyncVectorEnv([Counting] * 2), PPOConfig(n_steps=32, batch_size=256))
    assert (agent.config.n_envs, agent.config.batch_size) == (2, 64)
    with pytest.raises(ValueError, match="batch_size = 256; allowed: at most n_envs"):
        PPO(Counting, PPOConfig(n_envs=2, n_steps=32, batch_size=256))


def test_what_thins_the_fisher_matrix_is_capped_as_well():
    agent = small_agent(TRPO, sub_sampling_factor=64)
    agent.set_env(gym.make("CartPole-v1"))
    assert agent.learn(32).config.sub_sampling_factor == 32


def test_environments_that_are_refused_leave_the_agent_learning_in_its_own(tmp_path):
    def agent():
        return small_agent(PPO, Counting, scale_rewards=False).learn(64)

    refusing, other = agent(), agent()
    with pytest.raises(ValueError, match="env has observation_space"):
        refusing.set_env("Pendulum-v1")
    assert without_time(refusing.learn(64)) == without_time(other.learn(64))


def test_environments_that_were_made_are_closed_when_others_take_their_place_and_a_users_own_are_not():
    made = []

    def make():
        made.append(Counting())
        return made[-1]

    agent, own = small_agent(PPO, make), Counting()
    agent.set_env(own)
    assert all(env.closed for env in made)
    agent.set_env(make)
    assert not own.closed
    agent.set_env(agent.training_envs.envs)
    assert not made[-1].closed


def test_arguments_of_a_registered_environment_are_saved_and_stay_with_the_agent(tmp_path):
    spec = gym.make("Pendulum-v1", g=5.0).spec
    loaded = PPO.load(small_agent(PPO, spec).save(tmp_path / "agent"))
    assert loaded.describe()["env"]["kwargs"]["g"] == 5.0
    assert "g" not in gym.spec("Pendulum-v1").kwargs


def test_a_time_limit_of_a_registered_environment_stays_with_the_agent(tmp_path):
    spec = gym.make("Pendulum-v1", max_episode_steps=7).spec
    loaded = PPO.load(small_agent(PPO, spec).save(tmp_path / "agent"))
    assert loaded.learn(64).history[-1]["rollout/ep_len_mean"] == 7.0


def test_a_numpy_integer_is_a_seed_that_can_be_saved(tmp_path):
    agent = small_agent(PPO, seed=np.int64(7))
    assert PPO.load(agent.save(tmp_path / "agent")).seed == 7
    assert same(parameters(agent), parameters(small_agent(PPO, seed=7)))


@pytest.mark.parametrize("env", ["Pendulum-v1", partial(Noise, gym.spaces.Discrete(2), (4,))])
def test_environments_with_other_spaces_are_refused(env):
    with pytest.raises(ValueError, match=r"env has (observation|action)_space .*; allowed: the agent's"):
        small_agent(PPO).set_env(env)


def test_a_discrete_space_that_starts_elsewhere_is_another_space():
    agent = small_agent(PPO, partial(Noise, gym.spaces.Discrete(3)))
    with pytest.raises(ValueError, match="env has action_space"):
        agent.set_env(partial(Noise, gym.spaces.Discrete(3, start=1)))


@pytest.mark.parametrize(
    "region", [Clip(0.1), KLConstraint(0.02), All(Clip(0.3), KLPenalty(Adaptive(target_kl=0.02))), TrustRegion()]
)
def test_a_region_given_as_an_object_is_saved_with_its_state(region, tmp_path):
    agent = small_agent(PPO, trust_region=region).learn(64)
    loaded = PPO.load(agent.save(tmp_path / "agent"))
    assert (loaded.config.trust_region, loaded.region) == (region, agent.region)


@pytest.mark.parametrize("name", CASES)
@both
def test_every_kind_of_policy_comes_back_with_its_spaces_probe_and_predictions(agent_class, name, tmp_path):
    agent, _ = train(agent_class, CASES[name], seed=0, target_kl=0.01, n_updates=1)
    loaded = agent_class.load(agent.save(tmp_path / "agent"))
    for space, saved in (
        (loaded.observation_space, agent.observation_space),
        (loaded.action_space, agent.action_space),
    ):
        assert space == saved
        assert repr(space) == repr(saved)
    assert same(parameters(loaded), parameters(agent))
    assert torch.equal(loaded.drift.probe.observations, agent.drift.probe.observations)
    assert loaded.drift.probe.observations.dtype == agent.drift.probe.observations.dtype
    assert type(loaded.drift.probe.first) is type(agent.drift.probe.first)
    assert same(loaded.drift.probe.first.parameters, agent.drift.probe.first.parameters)
    agent.observation_space.seed(0)
    everything = None if not agent.takes_action_masks else np.ones(agent.encoding.n_mask)
    for deterministic in (True, False):
        x = agent.observation_space.sample()
        if agent.encoding.n_mask and everything is None:
            x["action_mask"][:] = 1
        one, other = (a.predict(x, deterministic=deterministic, action_masks=everything)[0] for a in (agent, loaded))
        np.testing.assert_array_equal(one, other)
        assert agent.action_space.contains(one)
    batch = agent.training_envs.collector.collect(agent.act, 32)
    assert repr(loaded.update(batch)) == repr(agent.update(batch))
    assert same(parameters(loaded), parameters(agent))


def test_a_dict_in_an_order_of_its_own_is_read_in_that_order_after_loading(tmp_path):
    space = gym.spaces.Dict([("z", gym.spaces.Discrete(2)), ("a", gym.spaces.Box(-1.0, 1.0, (2,)))])
    agent = small_agent(PPO, partial(Sampling, space, gym.spaces.Box(-9.0, 9.0, (3,)))).learn(64)
    loaded = PPO.load(agent.save(tmp_path / "agent"))
    x = {"a": np.array([0.9, -0.9]), "z": 1}
    one, other = (a.distribution(x).mean for a in (agent, loaded))
    assert torch.equal(one, other)
    assert not torch.equal(one, agent.distribution(x | {"z": 0}).mean)


def in_format_3(path):
    """A saved agent as it was written before history had parts: groups of rows with the same names."""
    tensors, state = checkpoint.read(path)
    rows = [*PPO.load(path).history]
    state["history"] = []
    for i, row in enumerate(rows):  # a group each: their names may have been the same
        texts = {name: [x] for name, x in row.items() if isinstance(x, str)}
        state["history"].append({"names": list(row), "texts": texts})
        numbers = [0.0 if isinstance(x, str) else x for x in row.values()]
        tensors = {name: x for name, x in tensors.items() if not name.startswith("history.")}
        tensors |= {f"old.{i}": torch.tensor([numbers], dtype=torch.float64)}
    tensors = {name.replace("old.", "history."): x for name, x in tensors.items()}
    checkpoint.write(path, tensors, state)
    manifest = json.loads((path / "MANIFEST.json").read_text())
    del manifest["sha256"]
    (path / "MANIFEST.json").write_bytes(sealed(manifest | {"format": 3}))
    return path


def test_agents_of_format_3_are_read_and_learn_on_as_those_of_today(tmp_path):
    agent = small_agent(PPO, seed=3).learn(192)
    old = PPO.load(in_format_3(agent.save(tmp_path / "old")))
    assert same(parameters(old), parameters(agent))
    assert without_time(old) == without_time(agent)
    assert old.history[0]["train/stop_reason"] == agent.history[0]["train/stop_reason"]
    assert without_time(PPO.load(old.save(tmp_path / "again")).learn(64)) == without_time(agent.learn(64))


def test_a_long_history_is_whole_in_every_checkpoint_and_written_once_or_twice(tmp_path):
    agent = small_agent(PPO)
    written = []
    for i in range(40):
        agent.history.extend({"time/total_timesteps": float(64 * i + k), "eval/return": 1.0} for k in range(64))
        agent.num_timesteps += 1
        path = agent.snapshot().write(tmp_path / f"{i}", tmp_path / f"{i - 2}" if i > 1 else None)
        written.append(sum(p.stat().st_size for p in path.glob("history*") if p.stat().st_nlink == 1))
        assert len(PPO.load(path).history) == 64 * (i + 1)
    size = sum(p.stat().st_size for p in path.glob("history*"))
    assert sum(written) < 10 * size  # and not 20, as if it was written anew every time
    assert PPO.load(shutil.copytree(path, tmp_path / "copied")).history == agent.history
