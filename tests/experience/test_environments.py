"""Everything that can be an environment, and what is refused."""

import sys

import gymnasium as gym
import numpy as np
import pytest
from environments import Counting, Noise, box
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import RecordEpisodeStatistics, TimeLimit

from klrl.agents import PPO
from klrl.experience import make_vector_env
from klrl.experience.cursors import EnvCursor
from klrl.experience.environments import declared_mode, describe, described, env_id, reset, spawn_env_seeds
from klrl.experience.workers import WorkerVectorEnv
from klrl.run.seeding import environment_seeds


@pytest.mark.parametrize(
    "env",
    [
        "CartPole-v1",
        "gymnasium.envs.classic_control:CartPole-v1",
        gym.spec("CartPole-v1"),
        lambda: gym.make("CartPole-v1"),
        Counting,
    ],
    ids=["id", "id with module", "EnvSpec", "function", "class"],
)
@pytest.mark.parametrize(("mode", "cls"), [("sync", SyncVectorEnv), ("async", WorkerVectorEnv)])
def test_ids_specs_and_functions_become_vectors_that_reset_in_the_same_step(env, mode, cls):
    envs = make_vector_env(env, 3, mode)
    assert isinstance(envs, cls)
    assert envs.num_envs == 3
    assert declared_mode(envs) is AutoresetMode.SAME_STEP
    envs.close()


def test_one_instance_becomes_a_vector_of_one_with_that_instance_inside():
    env = Counting()
    envs = make_vector_env(env, 8)
    assert envs.num_envs == 1
    assert envs.envs[0].unwrapped is env


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_a_vector_env_passes_through_with_its_own_size_and_mode(mode):
    envs = SyncVectorEnv([Counting] * 3, autoreset_mode=mode)
    wrapped = gym.wrappers.vector.RecordEpisodeStatistics(envs)
    assert make_vector_env(envs, 8) is envs
    assert make_vector_env(wrapped, 8) is wrapped
    assert declared_mode(envs) is declared_mode(wrapped) is mode


@pytest.mark.parametrize(
    ("env", "id"),
    [
        ("Hopper-v5", "Hopper-v5"),
        (gym.spec("CartPole-v1"), "CartPole-v1"),
        (gym.make("CartPole-v1"), "CartPole-v1"),
        (gym.make_vec("CartPole-v1", num_envs=2, vectorization_mode="sync"), "CartPole-v1"),
        (Counting, None),
        (Counting(), None),
        (SyncVectorEnv([Counting]), None),
    ],
)
def test_the_id_is_that_of_the_registry_where_there_is_one(env, id):
    assert env_id(env) == id


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ("CartPoll-v1", "env = 'CartPoll-v1': unknown; did you mean CartPole-v1"),
        ("CartPole-v7", "env = 'CartPole-v7': unknown version; did you mean CartPole-v"),
        ("MiniGrid-Nothing-v0", r"allowed: minigrid:MiniGrid-Nothing-v0 \(pip install 'klrl\[pixels\]'\)"),
        ("qqqq/A-v0", "nobody has registered qqqq here; allowed: MODULE:qqqq/A-v0 with the module that registers it"),
        ("needing_another:A-v0", "No module named 'nobody_has_this', which needing_another needs; allowed: a module"),
        ("qqqqqqqqqqq-v0", "env = 'qqqqqqqqqqq-v0': unknown; allowed: a registered Gymnasium id"),
        ("qqqqqqqqqqq:A-v0", "No module named 'qqqqqqqqqqq'; allowed: MODULE:ID with a module that can be imported"),
        (3, "env = 3; allowed: an id, an EnvSpec, a function"),
    ],
)
def test_what_is_no_environment_is_refused_in_one_line(env, message, tmp_path, monkeypatch):
    (tmp_path / "needing_another.py").write_text("import nobody_has_this")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=message) as error:
        PPO(env)
    assert "\n" not in str(error.value)


def test_a_game_without_ale_py_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ale_py", None)
    with pytest.raises(ValueError, match=r"env = 'ALE/Nothing-v5': .*ale_py.*; allowed: pip install 'klrl\[atari\]'$"):
        PPO("ALE/Nothing-v5")


def test_autoreset_switched_off_is_refused():
    with pytest.raises(ValueError, match="autoreset_mode = 'Disabled'; allowed: 'NextStep', 'SameStep'"):
        make_vector_env(SyncVectorEnv([Counting], autoreset_mode=AutoresetMode.DISABLED), 1)


@pytest.mark.parametrize("own", [True, False])
def test_where_no_vector_can_be_made_only_the_users_own_environment_stays_open(own, monkeypatch):
    monkeypatch.setattr(Closing, "closed", False)
    env = Closing(box(1))
    env.metadata = None  # Gymnasium's vectors write into it
    with pytest.raises(TypeError):
        make_vector_env(env if own else lambda: env, 1)
    assert Closing.closed is not own


class Closing(Noise):
    closed = False

    def close(self):
        Closing.closed = True


def with_observations(space):
    env = Closing(gym.spaces.Discrete(2))
    env.observation_space = space
    return env


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Closing(gym.spaces.Tuple([gym.spaces.Discrete(2), box(1)])),
            "action space Tuple.*; allowed: Discrete, MultiDiscrete, MultiBinary, or a Box of floats",
        ),
        (lambda: Closing(gym.spaces.Box(0, 3, (2,), np.int64)), "action space Box.*; allowed"),
        (lambda: Closing(box(0)), "action space Box.*; allowed"),
        (lambda: with_observations(gym.spaces.Text(4)), "observation space Text.*; allowed: non-empty Box of num"),
        (lambda: with_observations(gym.spaces.Dict(x=gym.spaces.Text(4))), r"observation space\['x'\] Text"),
        (lambda: with_observations(box(0)), "observation space Box.*; allowed: non-empty Box"),
    ],
    ids=["Tuple", "integers", "no actions", "Text", "Dict", "no observations"],
)
def test_spaces_that_no_network_fits_are_refused_and_the_environments_closed(make, message, monkeypatch):
    monkeypatch.setattr(Closing, "closed", False)
    with pytest.raises(ValueError, match=message):
        make_vector_env(make, 2)
    assert Closing.closed


def first_observations(envs, seeds):
    return reset(envs, EnvCursor.beginning(spawn_env_seeds(seeds, envs.num_envs)))[0]


def test_no_two_environments_and_no_two_runs_share_a_first_observation():
    first = [
        row
        for seed in range(4)
        for row in first_observations(make_vector_env("CartPole-v1", 8), environment_seeds(seed))
    ]
    assert len({row.tobytes() for row in first}) == 32


@pytest.mark.parametrize("timesteps", [0, 4096])
def test_the_same_seed_gives_the_same_first_observations(timesteps):
    first, again = (
        first_observations(make_vector_env("CartPole-v1", 2), environment_seeds(3, timesteps)) for _ in range(2)
    )
    np.testing.assert_array_equal(first, again)


def test_a_vector_env_that_takes_one_seed_only_gets_one():
    envs = gym.make_vec("CartPole-v1", num_envs=2, vectorization_mode="vector_entry_point")
    first, again = (first_observations(envs, environment_seeds(0)) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert len({row.tobytes() for row in first}) == 2


def test_an_engine_that_does_not_exist_is_refused_with_those_that_do():
    with pytest.raises(
        ValueError, match=r"vectorization_mode = 'nonsense'; allowed: sync, async, vector_entry_point, envpool"
    ):
        make_vector_env("CartPole-v1", 2, "nonsense")


class OwnLimit(TimeLimit):
    """Derived from Gymnasium's, whose ``spec`` hides it."""


def pendulum(**settings):
    return gym.make("Pendulum-v1", **settings)


def steps_of_an_episode(env):
    env.reset(seed=0)
    for step in range(1, 1000):
        if any(env.step(np.zeros(1, np.float32))[2:4]):
            return step
    return None


@pytest.mark.parametrize(
    "make",
    [
        pendulum,
        lambda: TimeLimit(pendulum(), 700),
        lambda: TimeLimit(pendulum(), 50),
        lambda: TimeLimit(TimeLimit(pendulum(max_episode_steps=300), 30), 400),
        lambda: pendulum(max_episode_steps=500, g=2.0),
        lambda: pendulum(max_episode_steps=-1),
        lambda: pendulum().unwrapped,
        lambda: TimeLimit(pendulum().unwrapped, 7),
        lambda: gym.spec("Pendulum-v1"),
        lambda: TimeLimit(pendulum(), 700).spec,
    ],
)
def test_what_is_saved_of_an_environment_makes_one_with_episodes_of_the_same_length(make):
    env = make()
    again = gym.make(described(describe(env)))
    made = env if isinstance(env, gym.Env) else gym.make(env)
    assert steps_of_an_episode(again) == steps_of_an_episode(made)
    assert again.unwrapped.g == made.unwrapped.g


@pytest.mark.parametrize(
    "make",
    [
        lambda: OwnLimit(pendulum(), 9),
        lambda: TimeLimit(OwnLimit(pendulum(), 9), 100),
        lambda: RecordEpisodeStatistics(pendulum()),
        lambda: TimeLimit(Counting(), 9),
        lambda: EnvSpec("Pendulum-v1", Counting),
        lambda: pendulum,
    ],
)
def test_what_a_registered_id_and_plain_settings_cannot_name_is_not_named(make):
    assert describe(make()) is None
