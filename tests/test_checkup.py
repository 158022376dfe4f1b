"""The check-up of environments: each kind of trouble is found and named, and healthy ones pass."""

import gymnasium as gym
import numpy as np
import pytest
from environments import Broken, Counting, Noise, box

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


def findings(make, **options):
    return {f.question: f for f in check_up(make, **({"steps": 200} | options))}


def unsupported():
    env = Noise(box(1))
    env.action_space = gym.spaces.Text(3)
    return env


TROUBLE = [
    (lambda: Remembering(box(1)), "the same after other episodes", "note", "klrl makes a new environment for each"),
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
    (Outside, "finite numbers", "note", "not in its space"),
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
    assert [f.verdict for f in found.values()] == ["ok"] * 6
    assert "after 500 steps" in found["time limit"].answer
    assert "200 random steps" in found["finite numbers"].answer


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
    assert len(said) == 6
    assert sum(line.startswith("PROBLEM") for line in said) == status


def test_an_unknown_environment_is_refused_in_one_line(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["doctor", "CartPool-v1"])
    assert stop.value.code == 2
    assert "CartPole-v1" in capsys.readouterr().err
