"""What ``predict`` returns, and what environments get: elements of the action space, of its type, everywhere."""

import inspect
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import stable_baselines3
from environments import Sampling, newest, small_agent
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

from klrl.agents import (
    PPO,
    TRPO,
    DistillationConfig,
    DPOConfig,
    PreferencesConfig,
    collect_preferences,
    distill,
    fit_preferences,
    load_agent,
)
from klrl.run import evaluate

if "dtype" not in inspect.signature(gym.spaces.Discrete).parameters:
    pytest.skip("Gymnasium before 1.2.2 has Discrete spaces of one type", allow_module_level=True)

INTEGERS = [np.int8, np.int32, np.int64, np.uint8, np.uint16]
DISCRETE = {
    **{f"Discrete {t.__name__}": gym.spaces.Discrete(4, dtype=t) for t in INTEGERS},
    "Discrete with a start": gym.spaces.Discrete(3, start=-2, dtype=np.int8),
    "Discrete up to the type's end": gym.spaces.Discrete(127, start=-120, dtype=np.int8),
    "MultiDiscrete": gym.spaces.MultiDiscrete([3, 2], dtype=np.int8, start=[1, -1]),
    "MultiDiscrete matrix": gym.spaces.MultiDiscrete([[3, 2], [2, 2]], dtype=np.uint8),
    "MultiBinary": gym.spaces.MultiBinary((2, 2)),
}
OTHERS = {"Box": gym.spaces.Box(-1.0, 1.0, (2,), np.float32), "Box of one number": gym.spaces.Box(-1.0, 1.0, ())}
every_discrete = pytest.mark.parametrize("space", DISCRETE.values(), ids=DISCRETE)
every_space = pytest.mark.parametrize("space", (DISCRETE | OTHERS).values(), ids=DISCRETE | OTHERS)
OBSERVATIONS = gym.spaces.Box(-1.0, 1.0, (3,), np.float32)


class Strict(Sampling):
    """Takes what it would get from Gymnasium's own vector environments: elements, of the very type."""

    def step(self, action):
        one = self.action_space.sample()
        assert type(action) is type(one), type(action)
        assert action.dtype == one.dtype
        return super().step(action)


@pytest.mark.parametrize(
    ("name", "mode"), [*((name, "sync") for name in DISCRETE), ("Discrete int8", "async"), ("MultiDiscrete", "async")]
)
def test_environments_get_elements_of_their_space(name, mode, tmp_path):
    space = DISCRETE[name]
    make = partial(Strict, OBSERVATIONS, space)
    agent = small_agent(PPO, make, vectorization_mode=mode, n_steps=16, batch_size=16).learn(64)
    agent.save(tmp_path / "a")  # with the actions of the episodes that have begun
    agent.close()
    loaded = load_agent(tmp_path / "a", make)
    loaded.learn(32)
    loaded.close()


@every_discrete
def test_so_they_do_where_agents_are_evaluated_taught_and_compared(space):
    make = partial(Strict, OBSERVATIONS, space)
    agent, student = small_agent(PPO, make), small_agent(PPO, make, seed=1)
    for deterministic in (True, False):
        assert evaluate(agent, make(), 2, deterministic=deterministic).lengths == (10, 10)
    distill(agent, student, make, DistillationConfig(n_rounds=1, n_envs=2, n_steps=8))
    pairs = collect_preferences(agent, make, PreferencesConfig(n_pairs=4, segment_length=5, n_envs=2))
    fit_preferences(student, agent, pairs, DPOConfig(n_epochs=1))


@every_space
@pytest.mark.parametrize("deterministic", [True, False])
def test_predictions_are_arrays_in_the_shape_and_type_of_the_space(space, deterministic):
    agent = small_agent(TRPO, partial(Sampling, OBSERVATIONS, space))
    one, state = agent.predict(OBSERVATIONS.sample(), deterministic=deterministic)
    assert isinstance(one, np.ndarray)
    assert state is None
    assert (one.shape, one.dtype) == (space.shape, space.dtype)
    assert space.contains(one)
    many, _ = agent.predict(np.stack([OBSERVATIONS.sample() for _ in range(5)]), deterministic=deterministic)
    assert isinstance(many, np.ndarray)
    assert (many.shape, many.dtype) == ((5, *space.shape), space.dtype)
    assert all(space.contains(np.asarray(action)) for action in many)


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1", "FrozenLake-v1"])
def test_they_are_what_those_of_stable_baselines3_are(env):
    ours = small_agent(PPO, env)
    theirs = stable_baselines3.PPO("MlpPolicy", env, n_steps=8, batch_size=8, device="cpu")
    observation = gym.make(env).reset(seed=0)[0]
    for observations in (observation, np.stack([observation] * 3)):
        (a, _), (b, _) = (model.predict(observations, deterministic=True) for model in (ours, theirs))
        assert isinstance(a, np.ndarray)
        assert (a.shape, a.dtype) == (b.shape, b.dtype)


@pytest.mark.parametrize("env", [newest(x) for x in ("CartPole", "FrozenLake", "Taxi", "CliffWalking", "Blackjack")])
def test_one_prediction_can_be_given_to_an_environment_and_looked_up_in_tables(env):
    agent = small_agent(PPO, env)
    with gym.make(env) as one:
        observation, _ = one.reset(seed=0)
        action, _ = agent.predict(observation)
        one.step(action)
    k = int(action)
    assert {k: "here"}[action] == "here"
    assert list(range(8))[action] == k
    assert type(action + 1) is type(np.add(np.asarray(action), 1))


def test_evaluations_take_the_arrays_of_stable_baselines3_too():
    theirs = stable_baselines3.PPO("MlpPolicy", "FrozenLake-v1", n_steps=8, batch_size=8, device="cpu")
    assert len(evaluate(theirs, gym.make("FrozenLake-v1"), 2).returns) == 2


def test_its_evaluation_works_on_every_type():
    make = partial(Strict, OBSERVATIONS, DISCRETE["Discrete int8"])
    mean, _ = evaluate_policy(small_agent(PPO, make), Monitor(make()), n_eval_episodes=2)
    assert np.isfinite(mean)


def test_an_observation_at_the_end_of_its_type_is_one():
    space = gym.spaces.Discrete(127, start=-120, dtype=np.int8)
    both = gym.spaces.Tuple([space, gym.spaces.MultiDiscrete([200], dtype=np.uint8)])
    agent = small_agent(PPO, partial(Sampling, both)).learn(64)
    assert agent.encoding((np.int8(6), np.array([0]))).argmax() == 126
    assert isinstance(agent.predict((np.int8(-120), np.array([199])))[0], np.ndarray)
