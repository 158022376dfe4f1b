"""Whether episodes can be played again is found by trying."""

import gymnasium as gym
import numpy as np
import pytest
from environments import Noise, Sampling, box
from test_episodes import Remembering

from klrl.experience.environments import make_vector_env, prepare
from klrl.experience.replay import difference, random_action, record, replay


class Unseeded(Noise):
    """Its random numbers are its own business."""

    def _observe(self):
        return np.random.default_rng().normal(size=self.observation_space.shape).astype(np.float32)


class Refusing(Noise):
    def step(self, action):
        raise RuntimeError("not with random actions")


class Made(Noise):
    """Repeats its episodes, but another one has others."""

    def __init__(self):
        super().__init__(box(1))
        self.offset = np.random.default_rng().normal()

    def _observe(self):
        return super()._observe() + np.float32(self.offset)


def test_an_environment_that_is_made_at_random_cannot_be_played_again_in_another():
    assert replay(Made) == "never"


MAKES = {
    "used": lambda: Noise(box(2)),
    "new": lambda: Remembering(box(1)),
    "never": lambda: Unseeded(box(1)),
    "unknown": lambda: Refusing(box(1)),
}


@pytest.mark.parametrize("expected", ["used", "new", "never"])
def test_it_is_found_where_an_episode_can_be_played_again(expected):
    assert replay(MAKES[expected]) == expected


@pytest.mark.parametrize(("env", "expected"), [("CartPole-v1", "used"), ("Pendulum-v1", "used"), ("Taxi-v4", "used")])
def test_registered_environments(env, expected):
    assert replay(lambda: gym.make(env)) == expected


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("env", ["BipedalWalker-v3", "BipedalWalkerHardcore-v3"])
def test_a_world_that_keeps_hidden_state_over_resets_is_found(env):
    pytest.importorskip("Box2D")
    assert replay(lambda: gym.make(env)) == "new"


@pytest.mark.parametrize("expected", MAKES)
def test_every_environment_is_prepared_for_what_was_found(expected):
    envs = make_vector_env(MAKES[expected], 2)
    assert prepare(MAKES[expected], envs) == expected
    assert envs.get_attr("rebuild") == 2 * (expected == "new",)


def test_an_instance_is_not_tried_and_foreign_vectors_cannot_be_played_again():
    env = Noise(box(1))
    assert prepare(env, make_vector_env(env, 1)) == "unknown"
    assert not hasattr(env, "steps")
    foreign = gym.vector.SyncVectorEnv([MAKES["used"]])
    assert prepare(foreign, foreign) == "never"


def test_the_first_step_that_differs_is_named():
    env = Remembering(box(1))
    recording = record(env, 0)
    assert difference(env, recording) == 0
    assert difference(Remembering(box(1)), recording) is None
    recording.said[4][0][0][0] += 1.0
    assert difference(Remembering(box(1)), recording) == 4


@pytest.mark.parametrize("source", ["observation", "info"])
@pytest.mark.parametrize(
    "space", [gym.spaces.Discrete(4, start=-1), gym.spaces.MultiDiscrete([2, 3, 2], start=[5, 0, 1])]
)
def test_random_actions_keep_to_masks(space, source):
    env = Sampling(box(2), space, masks=source)  # refuses what is forbidden
    for seed in range(20):
        assert len(record(env, seed).actions) == 10
    observation, info = env.reset(seed=0)
    assert len({str(random_action(space, observation, info)) for _ in range(100)}) > 1
