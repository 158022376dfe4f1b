"""Games of the Arcade Learning Environment: three engines on the same actions, what learners are told, and resuming."""

import copy
from contextlib import closing

import gymnasium as gym
import numpy as np
import pytest
import torch

pytest.importorskip("ale_py")
pytest.importorskip("cv2")

from klrl.agents import PPO, TRPO, PPOConfig, TRPOConfig
from klrl.experience import make_vector_env
from klrl.experience.atari import ale_vector, envpool_settings, preprocessed, spec_of
from klrl.experience.collector import Collector
from klrl.experience.environments import describe, described
from klrl.experience.steps import BadStep
from klrl.experience.told import Told
from klrl.policy.observations import Encoding
from klrl.run import Callback, evaluate
from klrl.run.presets import preset


def game(name, **kwargs):
    spec = spec_of(f"ALE/{name}-v5")
    spec.kwargs |= kwargs
    return spec


def test_gymnasiums_wrappers_and_ale_pys_vector_are_the_same_to_the_bit():
    spec = game("Breakout", repeat_action_probability=0.0, noop_max=0)
    one, many = preprocessed(spec), ale_vector(spec, 1)
    seen, (other, _) = [one.reset(seed=3)[0]], many.reset(seed=3)
    np.testing.assert_array_equal(seen[0], other[0])
    assert not seen[0][:3].any()
    total = 0.0
    for action in np.random.default_rng(0).integers(0, one.action_space.n, 150):
        frame, reward, ended, cut, info = one.step(int(action))
        other, rewards, ends, cuts, infos = many.step(np.array([action]))
        np.testing.assert_array_equal(frame, other[0])
        assert (reward, ended, cut, info["lives"]) == (rewards[0], ends[0], cuts[0], infos["lives"][0])
        total += reward
        if ended:
            break
    assert info["lives"] < 5
    one.close(), many.close()


def test_the_preprocessing_is_that_of_the_papers_written_out():
    """Every action for four frames, the maximum of the last two, 84 x 84 gray, four such images."""
    import cv2

    env = preprocessed(game("Pong", repeat_action_probability=0.0, noop_max=0))
    raw = gym.make("ALE/Pong-v5", frameskip=1, repeat_action_probability=0.0, obs_type="grayscale")
    frame, _ = env.reset(seed=1)
    raw.reset(seed=1)
    stack = []
    for action in np.random.default_rng(1).integers(0, 6, 12):
        frame, *_ = env.step(int(action))
        screens = [raw.step(int(action))[0] for _ in range(4)]
        stack.append(cv2.resize(np.maximum(screens[2], screens[3]), (84, 84), interpolation=cv2.INTER_AREA))
    assert frame.shape == (4, 84, 84)
    np.testing.assert_array_equal(frame, stack[-4:])
    env.close(), raw.close()


def test_envpool_is_given_the_same_settings():
    spec = game("Pong", repeat_action_probability=0.1, noop_max=7, max_num_frames_per_episode=4_000)
    expected = {"repeat_action_probability": 0.1, "noop_max": 7, "max_episode_steps": 1_000, "frame_skip": 4}
    expected |= {"task_id": "Pong-v5", "stack_num": 4, "use_fire_reset": False, "full_action_space": False}
    assert envpool_settings(spec) == expected


@pytest.mark.parametrize("mode", ["sync", "vector_entry_point", "envpool"])
def test_every_engine_has_gymnasiums_spaces_and_ends_games_at_the_limit(mode):
    if mode == "envpool":
        pytest.importorskip("envpool")
    envs = make_vector_env(game("Pong", max_num_frames_per_episode=40, noop_max=1), 2, mode)
    space = gym.spaces.Box(0, 255, (4, 84, 84), np.uint8)
    assert (envs.single_observation_space, envs.single_action_space) == (space, gym.spaces.Discrete(6))
    collector = Collector(envs, np.random.SeedSequence(0), Encoding(space, gym.spaces.Discrete(6)))
    batch = collector.collect(_random, 14)
    assert batch.observations.dtype == torch.uint8
    lengths = {episode.length for episode in batch.episodes}
    assert lengths <= {9, 10, 11}  # a no-op counts as a frame in Gymnasium and ale-py
    assert len(batch.episodes) == 2
    assert batch.truncated.sum() == 2
    envs.close()


def _random(observations):
    from klrl.policy.distributions import Categorical

    policy = Categorical(torch.zeros(len(observations), 6))
    actions = torch.randint(0, 6, (len(observations),), generator=torch.Generator().manual_seed(0))
    return actions, actions.numpy(), policy


# What learners are told.
class Lives(gym.Env):
    """Three lives, one lost in every third step; the reward is 5 and -2 in turn."""

    observation_space, action_space = gym.spaces.Box(0, 9, (1,)), gym.spaces.Discrete(6)

    def __init__(self, says=True):
        self.says = says

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self._answer()[0], self._answer()[1]

    def step(self, action):
        self.t += 1
        observation, info = self._answer()
        return observation, 5.0 if self.t % 2 else -2.0, self.t == 9, False, info

    def _answer(self):
        return np.array([self.t], np.float32), {"lives": 3 - self.t // 3} if self.says else {}


@pytest.mark.parametrize("n", [12, 4, 1])
def test_a_lost_life_is_terminal_in_batches_only_and_rewards_are_signs_there(n):
    envs = make_vector_env(Lives, 1)
    encoding = Encoding(Lives.observation_space, Lives.action_space)
    told = Told(sign_of_rewards=True, life_is_episode=True)
    collector = Collector(envs, np.random.SeedSequence(0), encoding, told=told)
    batches = [collector.collect(_random, n) for _ in range(12 // n)]
    terminated = torch.cat([b.terminated[:, 0] for b in batches])
    assert terminated.nonzero().flatten().tolist() == [2, 5, 8, 11]
    assert torch.cat([b.rewards[:, 0] for b in batches]).tolist() == [1, -1, 1, -1, 1, -1, 1, -1, 1, 1, -1, 1]
    ((episode,),) = [b.episodes for b in batches if b.episodes]
    assert (episode.length, episode.episode_return) == (9, 5 * 5.0 - 4 * 2.0)


def test_an_environment_without_lives_is_refused_where_they_count():
    envs = make_vector_env(lambda: Lives(says=False), 1)
    encoding = Encoding(Lives.observation_space, Lives.action_space)
    with pytest.raises(BadStep, match="info of environment 0 has no number of 'lives' after 0 steps; allowed: one at "):
        Collector(envs, np.random.SeedSequence(0), encoding, told=Told(life_is_episode=True))


def test_evaluations_are_of_whole_games_and_rewards():
    agent = PPO(Lives, PPOConfig(n_envs=1, n_steps=16, batch_size=16, sign_of_rewards=True, life_is_episode=True))
    result = evaluate(agent, Lives(), 2, seed=0)
    assert list(result.returns) == [17.0, 17.0]


# Names and files.
def test_a_run_keeps_the_preprocessing_and_older_ones_have_none():
    data = describe("ALE/Pong-v5")
    assert data["kwargs"]["preprocessing"] == "standard"
    assert described(data).kwargs == data["kwargs"]
    older = copy.deepcopy(data)
    del older["kwargs"]["preprocessing"]
    with closing(make_vector_env(described(older), 1)) as envs:
        assert envs.single_observation_space.shape == (210, 160, 3)
    with closing(make_vector_env(game("Pong", preprocessing="none"), 1)) as envs:
        assert envs.single_observation_space.shape == (210, 160, 3)


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"preprocessing": "gray"}, "preprocessing = 'gray'; allowed: 'standard', 'none'"),
        ({"obs_type": "ram"}, "obs_type = 'ram' with preprocessing = 'standard'; allowed: with preprocessing = 'none'"),
        ({"frameskip": (2, 5)}, r"frameskip = \(2, 5\) with preprocessing = 'standard'; allowed: an integer >= 1"),
        ({"noop_max": -1}, "noop_max = -1 with preprocessing = 'standard'; allowed: an integer >= 0"),
    ],
)
def test_settings_that_the_preprocessing_does_not_have_are_refused(kwargs, said):
    with pytest.raises(ValueError, match=said):
        make_vector_env(game("Pong", **kwargs), 1)


@pytest.mark.parametrize("algorithm", ["ppo", "trpo", "npg"])
def test_every_game_has_the_preset_of_the_family(algorithm):
    settings = preset(algorithm, "ale_py:ALE/Seaquest-v5")
    assert settings == preset(algorithm, "ALE/Pong-v5")
    assert (settings["image_network"], settings["sign_of_rewards"], settings["life_is_episode"]) == ("nature", 1, 1)
    assert preset(algorithm, "MiniGrid-Empty-5x5-v0") == preset(algorithm, "MiniGrid-DoorKey-5x5-v0") != {}


SMALL = {"n_envs": 2, "n_steps": 8, "batch_size": 8, "image_network": "nature", "actor_hidden_sizes": ()}
SMALL |= {"critic_hidden_sizes": (), "sign_of_rewards": True, "life_is_episode": True}


def test_a_saved_training_on_a_game_goes_on_to_the_bit(tmp_path):
    config = PPOConfig(**SMALL, n_epochs=1)
    whole = PPO("ALE/Breakout-v5", config, seed=1).learn(32)
    PPO("ALE/Breakout-v5", config, seed=1).learn(32, callback=StopAfterOne()).save(tmp_path / "half")
    again = PPO.load(tmp_path / "half").resume()
    assert again.num_timesteps == whole.num_timesteps == 32
    for p, q in zip(whole.actor.parameters(), again.actor.parameters(), strict=True):
        assert torch.equal(p, q)


class StopAfterOne(Callback):
    def on_update_end(self, agent, batch, metrics):
        return agent.n_updates < 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("agent_class", "mode"), [(PPO, "sync"), (PPO, "vector_entry_point"), (PPO, "envpool"), (TRPO, "sync")]
)
def test_every_engine_trains_a_few_hundred_steps(agent_class, mode):
    if mode == "envpool":
        pytest.importorskip("envpool")
    short = {"n_epochs": 1, "batch_size": 64} if agent_class is PPO else {"n_critic_updates": 1}
    config = (PPOConfig if agent_class is PPO else TRPOConfig).for_env(
        "ALE/Pong-v5", vectorization_mode=mode, n_steps=16, **short
    )
    agent = agent_class("ALE/Pong-v5", config, seed=0).learn(256)
    assert len(agent.history) == 2
    assert all(0.0 < row["drift/kl"] < 0.5 for row in agent.history)
