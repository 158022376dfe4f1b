"""The check-up of environments: each kind of trouble is found and named, and healthy ones pass."""

from functools import partial
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
from environments import Broken, Counting, Noise, Sampling, box
from gymnasium.envs.registration import EnvSpec
from test_reproducibility import Loading

from klrl.experience.checkup import check_up
from klrl.scripts.main import main


class Remembering(Noise):
    """What an episode is depends on how many there were."""

    episodes = 0

    def reset(self, *, seed=None, options=None):
        observation, info = super().reset(seed=seed, options=options)
        self.episodes += 1
        return observation + np.float32(self.episodes), info


class Unseeded(Noise):
    """Its random numbers are its own business."""

    def _observe(self):
        return np.random.default_rng().normal(size=self.observation_space.shape).astype(np.float32)


class Overwriting(Noise):
    """One array for all observations."""

    def _observe(self):
        if not hasattr(self, "buffer"):
            self.buffer = np.zeros(self.observation_space.shape, np.float32)
        self.buffer[:] = super()._observe()
        return self.buffer


class Outside(Noise):
    def __init__(self):
        super().__init__(box(1))
        self.observation_space = gym.spaces.Box(-1e-3, 1e-3, (3,), np.float32)


class Starting(Broken):
    """NaN in the observation of every reset."""

    def reset(self, *, seed=None, options=None):
        observation, info = super().reset(seed=seed, options=options)
        return observation * np.float32(np.nan), info


class Doubled(Broken):
    """Observations are float64, not the float32 of their space, and the last one of an episode is NaN."""

    def step(self, action):
        observation, *rest = super().step(action)
        return observation.astype(np.float64), *rest


class Old(Noise):
    """The steps of Gym."""

    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, terminated or truncated, info


class Raising(Noise):
    """One of its methods fails, from some call on."""

    def __init__(self, method, call=1):
        super().__init__(box(1))
        self.left = {method: call}
        self.fail("__init__")

    def reset(self, *, seed=None, options=None):
        self.fail("reset")
        return super().reset(seed=seed, options=options)

    def step(self, action):
        self.fail("step")
        return super().step(action)

    def fail(self, method):
        self.left[method] = self.left.get(method, 0) - 1
        if self.left[method] == 0:
            raise RuntimeError("sensor\nfault")


def findings(make, **options):
    return {f.question: f for f in check_up(make, **({"steps": 200} | options))}


def unsupported():
    env = Noise(box(1))
    env.action_space = gym.spaces.Text(3)
    return env


TROUBLE = [
    (
        lambda: Remembering(box(1)),
        "the same after other episodes",
        "note",
        "episodes cannot be played again; if a run is",
    ),
    (lambda: Unseeded(box(1)), "the same in a new environment", "problem", "cannot be repeated or resumed exactly"),
    (lambda: Overwriting(box(1)), "observations of their own memory", "note", "klrl copies them"),
    (lambda: Broken("observation", 0), "finite numbers", "problem", "the observation of step 1 of episode 0 is not"),
    (lambda: Broken("reward", 0), "finite numbers", "problem", "the reward of step 1 of episode 0 is not"),
    (
        lambda: Broken("final observation", 0, length=5),
        "finite numbers",
        "problem",
        "the observation of step 5 of",
    ),
    (
        lambda: Starting("final observation", 0, length=5),
        "finite numbers",
        "problem",
        "the observation of the reset of episode 0 is not",
    ),
    (Outside, "finite numbers", "note", "the observation of the reset of episode 0 is not in its space"),
    (
        lambda: Doubled("final observation", 0, length=12),
        "finite numbers",
        "problem",
        "the observation of step 12 of episode 0 is not",
    ),
    (lambda: Noise(gym.spaces.Box(500.0, np.inf, (2,))), "scale of actions", "note", "100.0% is outside of [500, inf]"),
    (lambda: Noise(gym.spaces.Box(-np.inf, np.inf, (2,))), "scale of actions", "note", "begins with mean 0 and std 1"),
    (lambda: Noise(gym.spaces.Box(-1e10, 1e10, (2,))), "scale of actions", "note", "std 1e+10 at first"),
    (lambda: Old(box(1)), "runs without errors", "problem", "step 1: the result is a tuple of 4; allowed: (obs"),
    *[
        (
            partial(Raising, method, call),
            "runs without errors",
            "problem",
            f"no: RuntimeError: sensor fault ({__file__}",
        )
        for method, call in (("__init__", 1), ("reset", 1), ("step", 1), ("step", 300))
    ],
    (lambda: Noise(box(1)), "time limit", "note", "may never end"),
    (unsupported, "spaces", "problem", "Text"),
]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("make", "question", "verdict", "text"), TROUBLE, ids=lambda x: x if isinstance(x, str) else ""
)
def test_trouble_is_found_and_named(make, question, verdict, text):
    found = findings(make)[question]
    assert (found.verdict, text in found.answer) == (verdict, True)
    assert "\n" not in found.answer


def test_a_healthy_environment_passes_and_its_numbers_are_counted():
    found = findings(lambda: gym.make("CartPole-v1"), seed=3)
    assert [f.verdict for f in found.values()] == ["ok"] * 7
    assert "after 500 steps" in found["time limit"].answer
    assert "200 random steps" in found["finite numbers"].answer


def test_seeds_that_cost_much_are_named(monkeypatch):
    clock = SimpleNamespace(now=0.0, perf_counter=lambda: clock.now)
    monkeypatch.setattr("klrl.experience.reproducibility.time", clock)
    found = findings(lambda: Loading(clock, 0.45, 0.016))["cheap seeds"]
    assert found.verdict == "note"
    assert found.answer.startswith(
        "no: a reset with a seed takes 0.450 s, one without 0.016 s; seed_every_episode = Fal"
    )


def test_of_limits_around_each_other_the_least_is_named():
    limited = gym.wrappers.TimeLimit(gym.make("CartPole-v1", max_episode_steps=70), 1000)
    assert findings(lambda: limited)["time limit"].answer == "episodes are truncated after 70 steps"


class Listing(Sampling):
    """Its tuples are lists."""

    def _observe(self, terminal):
        observation, info = super()._observe(terminal)
        return list(observation), info


def test_a_tuple_may_be_a_list():
    found = findings(lambda: Listing(gym.spaces.Tuple([box(1), box(2)])))
    assert {f.question for f in found.values() if f.verdict != "ok"} == {"time limit"}


def test_an_episode_that_repeats_in_a_used_environment_alone_is_not_taken_for_repeatable():
    found = findings(lambda: Counting(0))  # its observations count the episodes since it was made
    assert found["the same after other episodes"].verdict == "note"
    assert found["the same in a new environment"].verdict == "ok"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Box2D's own, as it is imported
@pytest.mark.parametrize(("env", "status"), [("CartPole-v1", 0), ("BipedalWalker-v3", 0)])
def test_the_command_says_it_line_by_line_and_by_its_exit_status(env, status, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["doctor", env, "--steps", "300"])
    said = capsys.readouterr().out.splitlines()
    assert stop.value.code == status
    assert len(said) == (8 if env == "BipedalWalker-v3" else 7)  # of a Box also the scale of its actions
    assert sum(line.startswith("PROBLEM") for line in said) == status


@pytest.mark.parametrize("make", [partial(Old, box(1)), partial(Raising, "__init__"), partial(Raising, "step")])
def test_the_command_has_no_traceback_for_what_an_environment_raises(make, monkeypatch, capsys):
    monkeypatch.setitem(gym.registry, "Failing-v0", EnvSpec("Failing-v0", make))
    with pytest.raises(SystemExit) as stop:
        main(["doctor", "Failing-v0"])
    said = capsys.readouterr()
    assert stop.value.code == 1
    assert said.out.splitlines()[-1].startswith("PROBLEM  runs without errors: no: ")
    assert not said.err


def test_an_unknown_environment_is_refused_in_one_line(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["doctor", "CartPool-v1"])
    assert stop.value.code == 2
    assert "CartPole-v1" in capsys.readouterr().err
