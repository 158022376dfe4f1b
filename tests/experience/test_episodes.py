"""Episodes seeded one by one: each depends on its place alone, and any place can be reached again."""

import sys

import gymnasium as gym
import numpy as np
import pytest
from environments import Counting, Noise, box

from klrl.experience import make_vector_env
from klrl.experience.episodes import EpisodeCursor, SeededEpisodes


class Remembering(Noise):
    """What an episode is depends on how many the environment has had before."""

    episodes = 0

    def reset(self, *, seed=None, options=None):
        self.episodes += 1
        observation, info = super().reset(seed=seed, options=options)
        return observation + np.float32(self.episodes), info


def noise():
    return Noise(box(1))


def play(env, n):
    """What the next steps show; the episode goes on or ends, and the next one begins."""
    shown = []
    for _ in range(n):
        observation, reward, terminated, truncated, _ = env.step(env.action_space.sample())
        shown.append((observation.tobytes(), reward))
        if terminated or truncated:
            shown.append(env.reset()[0].tobytes())
    return shown


def test_seeds_are_spread_over_streams_and_episodes_and_fit_an_int32():
    seeds = [EpisodeCursor(env_seed, episode).seed for env_seed in range(100) for episode in range(100)]
    assert len(set(seeds)) == 10_000
    assert min(seeds) >= 0
    assert max(seeds) < 2**31
    assert EpisodeCursor(3, 4).seed == int(np.random.SeedSequence(3, spawn_key=(4,)).generate_state(1)[0]) // 2


def test_an_episode_does_not_depend_on_how_long_those_before_it_were():
    long, short = SeededEpisodes(noise), SeededEpisodes(noise)
    for env in (long, short):
        env.reset(seed=7)
    play(long, 5)
    np.testing.assert_array_equal(long.reset()[0], short.reset()[0])


def test_a_reset_with_a_seed_begins_the_stream_again_and_another_seed_another_one():
    env = SeededEpisodes(noise)
    first = [env.reset(seed=s)[0].tobytes() for s in (1, 1, 2)]
    assert first[0] == first[1] != first[2]
    again = env.reset()[0].tobytes()
    env.reset(seed=2)
    assert env.reset()[0].tobytes() == again not in first


@pytest.mark.parametrize("steps", [0, 1, 7, 19])
def test_a_place_is_reached_again_in_another_environment(steps):
    env = SeededEpisodes(noise)
    env.reset(seed=5)
    for _ in range(3):
        observation, _ = env.reset()
    actions = [env.action_space.sample() for _ in range(steps)]
    for action in actions:
        observation, *_ = env.step(action)
    other = SeededEpisodes(noise)
    other.cursor = EpisodeCursor(5, 3, actions)
    np.testing.assert_array_equal(other.reset()[0], observation)
    for one in (env, other):
        one.action_space.seed(0)
    assert play(env, 30) == play(other, 30)


def test_a_stream_that_nobody_seeded_is_random():
    one, other = (SeededEpisodes(noise).reset()[0].tobytes() for _ in range(2))
    assert one != other


def test_where_a_used_environment_goes_on_differently_new_ones_can_be_made_for_every_episode():
    def first_of_episode_3(rebuild, at):
        env = SeededEpisodes(lambda: Remembering(box(1)), rebuild=rebuild)
        env.cursor = at
        env.reset()
        for _ in range(3 - at.episode):
            env.reset()
        return env.reset()[0].tobytes()

    for rebuild in (False, True):
        from_the_start, from_there = (first_of_episode_3(rebuild, EpisodeCursor(1, episode)) for episode in (0, 2))
        assert (from_the_start == from_there) == rebuild


def test_environments_that_are_replaced_are_closed():
    made = []

    def make():
        made.append(Counting())
        return made[-1]

    env = SeededEpisodes(make, rebuild=True)
    for _ in range(3):
        env.reset()
    env.close()
    assert [one.closed for one in made] == [True, True, True]


class Failing(Noise):
    def step(self, action):
        if self.steps == 2:
            raise RuntimeError("sensor fault")
        return super().step(action)


def test_an_exception_says_where_it_happened():
    env = SeededEpisodes(lambda: Failing(box(1)), index=3)
    env.reset(seed=9)
    env.reset()
    with pytest.raises(RuntimeError, match=r"^sensor fault") as caught:
        play(env, 3)
    assert caught.value.__notes__ == [f"in step 3 of environment 3, episode 1 (seed {EpisodeCursor(9, 1).seed})"]


def test_spaces_and_the_environment_inside_are_those_that_were_made():
    env = SeededEpisodes(lambda: gym.make("CartPole-v1"))
    assert (env.observation_space, env.spec.id) == (gym.make("CartPole-v1").observation_space, "CartPole-v1")


class Leaving(Noise):
    def step(self, action):
        sys.exit(0)


def test_an_environment_that_ends_the_program_has_failed():
    env = SeededEpisodes(lambda: Leaving(box(1)))
    env.reset(seed=9)
    with pytest.raises(RuntimeError, match=r"^SystemExit: 0") as caught:
        env.step(env.action_space.sample())
    assert caught.value.__notes__ == [f"in step 1 of environment 0, episode 0 (seed {EpisodeCursor(9, 0).seed})"]


class Listening(Noise):
    """Remembers the seeds of its resets."""

    def __init__(self):
        super().__init__(box(1))
        self.seeds = []

    def reset(self, *, seed=None, options=None):
        self.seeds.append(seed)
        return super().reset(seed=seed, options=options)


def test_only_the_first_episode_is_seeded_where_that_is_wanted_and_what_a_seed_begins():
    env = SeededEpisodes(Listening, every=False)
    for seed in (7, None, None, 8, None):
        env.reset(seed=seed)
    assert env.unwrapped.seeds == [EpisodeCursor(7).seed, None, None, EpisodeCursor(8).seed, None]
    unseeded = SeededEpisodes(Listening, every=False)
    unseeded.reset()
    assert type(unseeded.unwrapped.seeds[0]) is int


def test_where_an_episode_had_no_seed_none_is_named():
    env = SeededEpisodes(lambda: Failing(box(1)), index=3, every=False)
    env.reset(seed=9)
    env.reset()
    with pytest.raises(RuntimeError, match=r"^sensor fault") as caught:
        play(env, 3)
    assert caught.value.__notes__ == ["in step 3 of environment 3, episode 1"]


@pytest.mark.parametrize("what", ["early end", "rewards", "exception"])
def test_a_way_that_leads_elsewhere_is_said_and_the_environment_is_kept(what):
    made = []

    def make():
        made.append({"early end": Counting, "rewards": lambda: Counting(length=50), "exception": Faulty}[what]())
        return made[-1]

    env = SeededEpisodes(make)
    env.cursor = EpisodeCursor(1, 4, [0] * 5, {"early end": None, "rewards": 9.0, "exception": None}[what])
    env.reset()
    assert env.diverged
    assert (len(made), made[0].closed) == (1, False)
    assert made[0].episode == 1  # the second reset
    env.cursor = EpisodeCursor(1, 5, [0] * 2, 1.0)  # 0 + 1
    env.reset()
    assert not env.diverged


class Faulty(Counting):
    def step(self, action):
        if self.steps == 3:
            raise RuntimeError("sensor fault")
        return super().step(action)


class Namesake(Counting):
    """Its attributes have the names of those that wrappers have."""

    NAMES = (
        "cursor", "diverged", "every", "played", "_make", "_index", "_rebuild", "_now", "_seed", "_steps", "_spaces",
        "_shape", "_dtype",
    )  # fmt: skip

    def __init__(self):
        super().__init__()
        for name in self.NAMES:
            setattr(self, name, f"my {name}")


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_every_name_is_the_environments_from_outside(mode):
    envs = make_vector_env(lambda: gym.wrappers.TimeLimit(Namesake(), 10), 2, mode)
    envs.reset(seed=[1, 2])
    assert envs.get_attr("_max_episode_steps") == (10, 10)  # of a wrapper in between
    for name in Namesake.NAMES:
        assert envs.get_attr(name) == (f"my {name}",) * 2
        envs.set_attr(name, [f"{name} 0", f"{name} 1"])
        assert envs.get_attr(name) == (f"{name} 0", f"{name} 1")
    envs.set_attr("nobody_had_it", 3)
    assert envs.get_attr("nobody_had_it") == (3, 3)
    assert envs.call("has_wrapper_attr", "nothing") == (False, False)
    envs.reset()
    envs.step(np.zeros(2, int))
    envs.close()
