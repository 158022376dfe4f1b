"""Environments of agents: they are kept, as many are made as were asked for, callbacks reach them."""

import os
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
from environments import Counting, Noise, box, small_agent
from gymnasium.vector import SyncVectorEnv
from gymnasium.wrappers import NormalizeObservation, NormalizeReward, RecordEpisodeStatistics
from support import same
from test_env_trial import Tallied, alive, tally
from test_episodes import Listening
from test_resume import Interrupt

from klrl.agents import PPO, PPOConfig
from klrl.run import Callback

LENGTH = 10
"""Steps of every episode here."""
STEPS = 3 * 32
"""That each of two environments takes."""
both_modes = pytest.mark.parametrize("mode", ["sync", "async"])


class Keeping(gym.Env):
    """Keeps a level that rises with every episode, a game of three lives, and its place in data."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self):
        self.level = self.read = self.lives = 0
        self.begun_with = {1: 0, 2: 0, 3: 0}
        self.length = LENGTH

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps, self.level, self.lives = 0, self.level + 1, self.lives or 3
        self.begun_with[self.lives] += 1
        return self._next(), {}

    def step(self, action):
        self.steps += 1
        over = self.steps == self.length
        self.lives -= over
        return self._next(), 1.0, over, False, {}

    def _next(self):
        self.read += 1
        return np.array([self.level, self.read], np.float32)


def learned(make, mode, **settings):
    return small_agent(PPO, make, vectorization_mode=mode, **settings).learn(2 * STEPS)


@both_modes
def test_what_an_environment_keeps_is_kept(mode):
    agent = learned(Keeping, mode)
    resets = 1 + STEPS // LENGTH
    assert agent.envs.get_attr("level") == (resets,) * 2
    assert agent.envs.get_attr("read") == (resets + STEPS,) * 2
    thirds = {3: (resets + 2) // 3, 2: (resets + 1) // 3, 1: resets // 3}
    assert agent.envs.get_attr("begun_with") == (thirds,) * 2
    agent.close()


@both_modes
@pytest.mark.parametrize(
    ("wrapper", "name", "expected"),
    [
        (NormalizeObservation, "obs_rms", STEPS + 1 + STEPS // LENGTH),
        (NormalizeReward, "return_rms", STEPS),
        (RecordEpisodeStatistics, "episode_count", STEPS // LENGTH),
    ],
)
def test_what_a_wrapper_counts_is_counted_over_all_episodes(wrapper, name, expected, mode):
    agent = learned(lambda: wrapper(Keeping()), mode)
    counts = [getattr(x, "count", x) for x in agent.envs.get_attr(name)]
    assert counts == pytest.approx([expected] * 2, abs=1e-3)  # Gymnasium's begin at 1e-4
    agent.close()


@both_modes
def test_a_new_environment_for_every_episode_has_nothing_of_the_one_before(mode, tmp_path):
    path = tmp_path / "tally"
    agent = learned(lambda: Tallied(path, Keeping()), mode, rebuild_envs=True)
    assert agent.envs.get_attr("level") == (1, 1)
    letters, _ = tally(path)
    assert letters.count("m") - (mode == "async") == letters.count("r") == 2 * (1 + STEPS // LENGTH)
    assert alive(letters) == 2
    agent.close()


@both_modes
def test_a_function_is_called_for_every_environment_and_once_more_for_the_spaces_of_processes(mode, tmp_path):
    path = tmp_path / "tally"
    agent = small_agent(PPO, lambda: Tallied(path, Keeping()), vectorization_mode=mode)
    agent.learn(2 * STEPS)
    agent.close()
    letters, processes = tally(path)
    extra = mode == "async"
    assert (letters.count("m"), letters.count("c"), alive(letters)) == (2 + extra, 2 + extra, 2)
    assert letters.count("s") == 2 * STEPS  # nothing but training
    assert letters.count("r") == 2 * (1 + STEPS // LENGTH)
    if extra:
        assert letters[:2] == "mc"
        assert processes[:2] == [os.getpid()] * 2
        assert os.getpid() not in processes[2:]


@both_modes
@pytest.mark.parametrize("try_envs", [True, False])
@pytest.mark.parametrize("n", [1, 3])
def test_one_is_tried_before_those_of_a_loaded_agent_are_made(mode, try_envs, n, tmp_path):
    path = tmp_path / "tally"
    settings = {"vectorization_mode": mode, "n_envs": n, "try_envs": try_envs}
    saved = small_agent(PPO, Counting, **settings).learn(64).save(tmp_path / "agent")
    agent = PPO.load(saved, lambda: Tallied(path, Counting()))
    letters, _ = tally(path)
    assert letters.count("m") == 2 * try_envs + (mode == "async") + n
    assert alive(letters) == n
    tried, of_training = letters.rpartition("s")[::2]
    assert tried.count("m") == 2 * try_envs
    assert of_training.startswith("c" if try_envs else "m")  # the last one that was tried is closed before
    assert agent.reproducibility == ("new" if try_envs else "unknown")  # its observations count the episodes
    agent.close()


@both_modes
def test_after_an_interrupt_none_is_made_beside_those_of_training(mode, tmp_path):
    path = tmp_path / "tally"
    agent = small_agent(PPO, lambda: Tallied(path, Counting(length=LENGTH)), vectorization_mode=mode)
    with pytest.raises(KeyboardInterrupt):
        agent.learn(2 * STEPS, Interrupt("minibatch", update=1))
    with pytest.warns(RuntimeWarning, match="environment 0 did not come back to where it was"):
        agent.resume()  # it counts its episodes
    agent.close()
    letters, _ = tally(path)
    assert (letters.count("m"), alive(letters)) == (2 + (mode == "async"), 2)
    assert agent.reproducibility is None


def test_of_environments_that_cannot_all_be_made_none_stays_open():
    made = []

    def make():
        if len(made) == 3:
            raise RuntimeError("no licence for a fourth")
        made.append(Counting())
        return made[-1]

    with pytest.raises(RuntimeError, match="no licence for a fourth"):
        small_agent(PPO, make, n_envs=4)
    assert [env.closed for env in made] == [True] * 3


class Shortening(Callback):
    """Makes episodes shorter from the second update on."""

    def on_update_end(self, agent, batch, metrics):
        agent.envs.set_attr("length", [4, 5])
        assert agent.envs.call("get_wrapper_attr", "length") == (4, 5)


@both_modes
def test_callbacks_reach_the_environments(mode):
    agent = small_agent(PPO, Keeping, vectorization_mode=mode)
    agent.learn(2 * STEPS, Shortening())
    # 32 steps of episodes of 10 in the first update, the fourth episode of each ends at its new length.
    lengths = [[e.length for e in agent.episodes if e.env_index == i] for i in (0, 1)]
    assert lengths == [[10, 10, 10, *[4] * 16], [10, 10, 10, *[5] * 13]]
    agent.close()


def test_the_environments_of_a_loaded_agent_are_made_when_they_are_asked_for(tmp_path):
    path = small_agent(PPO).save(tmp_path / "agent")
    agent = PPO.load(path)
    assert agent.envs is agent.envs
    assert agent.envs.num_envs == 2
    with pytest.raises(ValueError, match="env = None; allowed: an environment"):
        _ = PPO.load(small_agent(PPO, Counting).save(tmp_path / "other")).envs


@both_modes
def test_only_the_first_episode_of_each_environment_is_seeded_where_that_is_wanted(mode, tmp_path):
    agent = learned(Listening, mode, seed_every_episode=False)
    again = learned(Listening, "sync", seed_every_episode=False)
    seeds = agent.envs.get_attr("seeds")
    assert [len(each) for each in seeds] == [1 + STEPS // 20] * 2
    assert all(type(first) is int and rest == [None] * len(rest) for first, *rest in seeds)
    assert seeds[0][0] != seeds[1][0]
    assert seeds == again.envs.get_attr("seeds")
    assert same(agent.actor.parameters(), again.actor.parameters())
    agent.close()
    loaded = PPO.load(agent.save(tmp_path / "agent"), Listening)  # there is no place to go back to
    assert loaded.learn(64).envs.get_attr("seeds") != seeds
    every = learned(Listening, mode)
    assert None not in every.envs.get_attr("seeds")[0]
    every.close()


@pytest.mark.parametrize(
    ("env", "settings", "what"),
    [
        (Counting(), {}, "rebuild_envs = True with a Counting"),
        (SyncVectorEnv([Counting] * 2), {}, "rebuild_envs = True with a SyncVectorEnv"),
        (
            "CartPole-v1",
            {"vectorization_mode": "vector_entry_point"},
            "rebuild_envs = True with vectorization_mode",
        ),
        (Counting, {"seed_every_episode": False}, "seed_every_episode = False with rebuild_envs = True"),
    ],
)
def test_a_new_environment_for_every_episode_where_none_can_be_made_is_refused(env, settings, what):
    with pytest.raises(ValueError, match=f"^{what}.*; allowed: ") as refused:
        PPO(env, PPOConfig(rebuild_envs=True, **settings))
    assert "\n" not in str(refused.value)


def test_keeping_environments_changes_no_bit_where_a_used_one_is_as_good_as_a_new_one():
    one, other = (
        small_agent(PPO, partial(Noise, box(1)), rebuild_envs=rebuilt).learn(2 * STEPS) for rebuilt in (False, True)
    )
    assert same(one.actor.parameters(), other.actor.parameters())


def test_one_is_tried_before_those_of_a_new_agent_are_made_where_that_is_wanted(tmp_path):
    path = tmp_path / "tally"
    agent = PPO(lambda: Tallied(path, Counting()), PPOConfig(n_envs=1), trial=True)
    letters, _ = tally(path)
    assert (letters.count("m"), alive(letters), letters[-1]) == (3, 1, "m")
    assert agent.reproducibility == "new"
    assert PPO(Counting).reproducibility is None
