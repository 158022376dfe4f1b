"""Whether episodes can be played again is found by trying."""

from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
from environments import Noise, Sampling, box, newest
from test_episodes import Remembering

from klrl.experience.reproducibility import (
    EnvTrial,
    check_reproducibility,
    costly_seeds,
    difference,
    random_action,
    record,
)


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
    assert check_reproducibility(Made).reproducibility == "never"


MAKES = {
    "used": lambda: Noise(box(2)),
    "new": lambda: Remembering(box(1)),
    "never": lambda: Unseeded(box(1)),
    "unknown": lambda: Refusing(box(1)),
}


@pytest.mark.parametrize("expected", ["used", "new", "never"])
def test_it_is_found_where_an_episode_can_be_played_again(expected):
    assert check_reproducibility(MAKES[expected]).reproducibility == expected


@pytest.mark.parametrize("name", ["CartPole", "Pendulum", "Taxi"])
def test_registered_environments(name):
    assert check_reproducibility(lambda: gym.make(newest(name))).reproducibility == "used"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("env", ["BipedalWalker-v3", "BipedalWalkerHardcore-v3"])
def test_a_world_that_keeps_hidden_state_over_resets_is_found(env):
    pytest.importorskip("Box2D")
    assert check_reproducibility(lambda: gym.make(env)).reproducibility == "new"


class Loading(Noise):
    """A seed loads something that stays loaded without one; so many seconds pass at every reset."""

    def __init__(self, clock, seeded, unseeded):
        super().__init__(box(1))
        self.clock, self.seconds = clock, (seeded, unseeded)

    def reset(self, *, seed=None, options=None):
        self.clock.now += self.seconds[seed is None]
        return super().reset(seed=seed, options=options)


def test_what_seeds_cost_is_measured_and_named_where_it_is_much(monkeypatch):
    clock = SimpleNamespace(now=0.0, perf_counter=lambda: clock.now)
    monkeypatch.setattr("klrl.experience.reproducibility.time", clock)
    trial = check_reproducibility(lambda: Loading(clock, 0.45, 0.016))
    assert (trial.seeded, trial.unseeded) == pytest.approx((0.45, 0.016))
    assert costly_seeds(trial) == (
        "a reset with a seed takes 0.450 s, one without 0.016 s; seed_every_episode = False seeds only an "
        "environment's first (episodes then cannot be played again)"
    )
    assert costly_seeds(check_reproducibility(lambda: Loading(clock, 0.5, 0.5))) is None


@pytest.mark.parametrize(("seeded", "unseeded", "much"), [(0.45, 0.016, True), (0.45, 0.2, False), (0.001, 0.0, False)])
def test_seeds_are_called_costly_by_what_they_add(seeded, unseeded, much):
    assert (costly_seeds(EnvTrial("used", seeded, unseeded)) is not None) == much


@pytest.mark.parametrize(("found", "used", "rebuilt"), [
    ("used", True, True), ("new", False, True), ("never", False, False), ("unknown", True, True),
])  # fmt: skip
def test_going_back_is_tried_where_it_may_lead_there(found, used, rebuilt):
    assert [EnvTrial(found).playable(how) for how in (False, True)] == [used, rebuilt]


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
