"""What is found of an environment before training, and what that costs."""

import os
import time
from functools import partial

import gymnasium as gym
import pytest
from environments import Counting, Noise, box
from test_reproducibility import MAKES

from klrl.experience.env_trial import try_out


class Tallied(gym.Wrapper):
    """Writes a letter to a file when it is made (m), reset (r), stepped (s) and closed (c), and its process."""

    def __init__(self, path, env):
        super().__init__(env)
        self.path, self.open = path, True
        self.write("m")

    def write(self, letter):
        with open(self.path, "a") as file:
            file.write(f"{letter}{os.getpid()}\n")

    def reset(self, **how):
        self.write("r")
        return self.env.reset(**how)

    def step(self, action):
        self.write("s")
        return self.env.step(action)

    def close(self):
        if self.open:
            self.write("c")
        self.open = False
        self.env.close()


def tally(path):
    """Letters in their order, and processes."""
    lines = path.read_text().splitlines() if path.exists() else []
    return "".join(line[0] for line in lines), [int(line[1:]) for line in lines]


def alive(letters):
    """The most at once."""
    return max((letters[:i].count("m") - letters[:i].count("c") for i in range(len(letters) + 1)), default=0)


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("expected", MAKES)
def test_it_is_found_where_an_episode_can_be_played_again(expected, mode):
    assert try_out(MAKES[expected], mode).reproducibility == expected


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_two_environments_are_made_for_it_one_after_the_other_and_closed(mode, tmp_path):
    path = tmp_path / "tally"
    assert try_out(lambda: Tallied(path, Noise(box(1))), mode).reproducibility == "used"
    letters, processes = tally(path)
    assert (letters.count("m"), letters.count("c"), alive(letters)) == (2, 2, 1)
    assert (os.getpid() in processes) == (mode == "sync")
    # Episodes of 20 steps: eight recorded and played in one environment, the first one played in the other.
    assert letters.count("s") == 17 * 20


@pytest.mark.parametrize("settings", [{"try_envs": False}, {"seed_every_episode": False}])
def test_no_environment_is_made_where_there_is_nothing_to_find_or_nobody_wants_to_know(settings, tmp_path):
    path = tmp_path / "tally"
    found = try_out(lambda: Tallied(path, Noise(box(1))), **settings).reproducibility
    assert found == ("unknown" if "try_envs" in settings else "never")
    assert tally(path) == ("", [])


def test_an_instance_is_not_tried_and_what_is_not_seeded_one_by_one_cannot_be_played_again():
    env = Noise(box(1))
    assert try_out(env).reproducibility == "unknown"
    assert not hasattr(env, "steps")
    assert try_out(gym.vector.SyncVectorEnv([MAKES["used"]])).reproducibility == "never"
    assert try_out("CartPole-v1", "envpool").reproducibility == "never"


class Slow(Noise):
    """Hangs in one step, if there is such a step; takes its time for the others."""

    def __init__(self, hangs):
        super().__init__(box(1))
        self.hangs = hangs

    def step(self, action):
        time.sleep(10_000.0 if self.steps == self.hangs else 0.015)
        return super().step(action)


@pytest.mark.parametrize(("hangs", "expected"), [(None, "used"), (12, "unknown")])
def test_all_steps_may_take_longer_than_the_timeout_together_but_not_each(hangs, expected):
    # 340 steps, as counted above, of 0.015 s are 5.1 s.
    assert try_out(partial(Slow, hangs), "async", worker_timeout=4.0).reproducibility == expected


class Leaving(Counting):
    def step(self, action):
        raise SystemExit(0)


class Dying(Counting):
    def step(self, action):
        os._exit(3)


@pytest.mark.parametrize(("env", "mode"), [(Leaving, "sync"), (Leaving, "async"), (Dying, "async")])
def test_one_that_wants_to_end_the_program_does_not(env, mode):
    assert try_out(partial(env, 0), mode).reproducibility == "unknown"
