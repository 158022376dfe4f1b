"""Evaluation plays whole episodes and changes nothing."""

from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from environments import Broken, Counting, Sampling, small_agent

from klrl.agents import PPO
from klrl.run import Evaluation, evaluate
from klrl.run.evaluation import CannotAct


class Recorder:
    """An agent that remembers what it was asked."""

    def __init__(self):
        self.asked = []

    def predict(self, observation, deterministic=False):
        self.asked.append((*observation[:3], deterministic))
        return np.int64(1), None


@pytest.mark.parametrize("ending", ["terminated", "truncated"])
@pytest.mark.parametrize("deterministic", [True, False])
def test_every_step_of_every_episode_is_played_once(ending, deterministic):
    agent = Recorder()
    result = evaluate(agent, Counting(7, length=4, ending=ending), n_episodes=3, deterministic=deterministic)
    assert agent.asked == [(7, episode, step, deterministic) for episode in range(3) for step in range(4)]
    assert result == Evaluation(returns=(6.0,) * 3, lengths=(4,) * 3, infos=({},) * 3)


class Endless(Counting):
    """Its episodes from the ``first`` one on do not end."""

    def __init__(self, first=0):
        super().__init__(length=4, ending="terminated")
        self.first, self.resets, self.played = first, 0, 0

    def reset(self, *, seed=None, options=None):
        self.resets += 1
        return super().reset(seed=seed, options=options)

    def step(self, action):
        self.played += 1
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, terminated and self.resets <= self.first, truncated, info


def test_an_environment_is_reset_once_per_episode():
    env = Endless(first=3)
    evaluate(Recorder(), env, n_episodes=3)
    assert (env.resets, env.played) == (3, 12)


@pytest.mark.parametrize(("first", "n", "cut"), [(0, 20, tuple(range(20))), (2, 3, (2,)), (5, 5, ())])
def test_episodes_that_do_not_end_are_cut_and_named(first, n, cut, recwarn):
    env = Endless(first)
    result = evaluate(Recorder(), env, n_episodes=n, max_steps=10)
    lengths = tuple(10 if i in cut else 4 for i in range(n))
    assert (result.cut, result.lengths, env.played) == (cut, lengths, sum(lengths))
    assert [str(w.message).partition(";")[0] for w in recwarn] == [
        f"evaluation: {len(cut)} episode{'s were' if len(cut) > 1 else ' was'} cut after max_steps = 10"
    ][: len(cut)]


def test_no_more_than_thirty_thousand_steps_go_to_episodes_that_do_not_end():
    env = Endless(first=1)
    with pytest.warns(RuntimeWarning, match=r"1 episode was cut after max_steps = 30,000, so that only 2 of 20 were"):
        result = evaluate(Recorder(), env)
    assert (result.lengths, result.cut, env.played) == ((4, 30_000), (1,), 30_004)
    with pytest.warns(RuntimeWarning, match=r"2 episodes were cut after max_steps = 20,000, so that only 2 of 20 were"):
        assert evaluate(Recorder(), Endless(), max_steps=20_000).lengths == (20_000, 20_000)


@pytest.mark.parametrize("bad", [{"n_episodes": 0}, {"max_steps": 0}])
def test_no_episodes_and_no_steps_are_refused(bad):
    ((name, value),) = bad.items()
    with pytest.raises(ValueError, match=f"^{name} = {value}; allowed: an integer >= 1$"):
        evaluate(Recorder(), Counting(), **bad)


def test_mean_and_standard_deviation_are_those_of_the_episodes():
    result = Evaluation(returns=(1.0, 3.0), lengths=(1, 1))
    assert (result.mean, result.std) == (2.0, 1.0)


def test_the_seed_decides_the_episodes():
    agent = small_agent(PPO)
    results = [evaluate(agent, gym.make("CartPole-v1"), n_episodes=5, seed=seed) for seed in (0, 0, 1)]
    assert results[0] == results[1] != results[2]


@pytest.mark.parametrize("deterministic", [True, False])
def test_evaluating_between_two_trainings_does_not_change_the_second(deterministic):
    plain, evaluated = (small_agent(PPO).learn(64) for _ in range(2))
    evaluate(evaluated, gym.make("CartPole-v1"), n_episodes=3, deterministic=deterministic)
    for a, b in zip(
        plain.learn(64).networks.actor_parameters, evaluated.learn(64).networks.actor_parameters, strict=True
    ):
        assert torch.equal(a, b)


OBSERVATIONS = gym.spaces.Box(-1.0, 1.0, (2,))
MASKED_ACTIONS = [gym.spaces.Discrete(4, start=-1), gym.spaces.MultiDiscrete([2, 3], start=[5, 0])]


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("source", ["observation", "info"])
@pytest.mark.parametrize("actions", MASKED_ACTIONS, ids=["Discrete", "MultiDiscrete"])
def test_only_allowed_actions_are_evaluated(actions, source, deterministic):
    env = partial(Sampling, OBSERVATIONS, actions, masks=source)
    agent = small_agent(PPO, env, action_mask="info" if source == "info" else "auto")
    result = evaluate(agent, env(length=100), n_episodes=2, deterministic=deterministic)
    assert result.lengths == (100,) * 2  # the environment ends the test at a forbidden action


def test_an_environment_without_masks_is_refused_where_the_agent_was_trained_with_them():
    agent = small_agent(PPO, partial(Sampling, OBSERVATIONS, MASKED_ACTIONS[0], masks="info"), action_mask="info")
    with pytest.raises(CannotAct, match=r"^info has no 'action_mask' after 0 steps; allowed: one at every reset"):
        evaluate(agent, Sampling(OBSERVATIONS, MASKED_ACTIONS[0]))


def test_what_predict_refuses_is_told_with_its_place_and_what_an_environment_raises_as_it_is():
    with pytest.raises(CannotAct, match=r"^episode 0 after 3 steps: observation has NaN or infinite elements; allowed"):
        evaluate(small_agent(PPO, Counting), Unending("final observation", 0))
    with pytest.raises(ValueError, match="sensor fault") as caught:
        evaluate(small_agent(PPO, Counting), Faulty())
    assert not isinstance(caught.value, CannotAct)


class Unending(Broken):
    """Goes on after the last observation."""

    def step(self, action):
        observation, reward, *_ = super().step(action)
        return observation, reward, False, False, {}


class Faulty(Counting):
    def step(self, action):
        raise ValueError("sensor fault")


@pytest.mark.parametrize("given", [[0, 0, 0, 0], [0.0, 0.4, 0.0, 0.0]])
def test_predict_refuses_a_mask_without_an_allowed_action_in_one_line(given):
    agent = small_agent(PPO, partial(Sampling, OBSERVATIONS, MASKED_ACTIONS[0], masks="info"), action_mask="info")
    with pytest.raises(ValueError, match=r"^action_mask = \[.*\]; allowed: at least one action in every state$"):
        agent.predict(np.zeros((30, 2)), action_masks=[[1, 1, 1, 1]] * 29 + [given])


def test_predicting_without_masks_that_training_had_warns():
    agent = small_agent(PPO, partial(Sampling, OBSERVATIONS, MASKED_ACTIONS[0], masks="info"), action_mask="info")
    with pytest.warns(RuntimeWarning, match="predict without action_masks: training took masks from info"):
        agent.predict(np.zeros(2))


def test_predict_refuses_numbers_that_are_not_finite():
    with pytest.raises(ValueError, match=r"^observation has NaN or infinite elements; allowed: finite numbers"):
        small_agent(PPO, "CartPole-v1").predict([0.0, 0.0, 0.0, np.nan])


@pytest.mark.parametrize("name", ["FrozenLake-v1", "Blackjack-v1", "Pendulum-v1"])
def test_gymnasiums_own_tasks_are_evaluated(name):
    assert evaluate(small_agent(PPO, name), gym.make(name), n_episodes=2, deterministic=False).lengths[0] >= 1


@pytest.mark.parametrize(
    "space",
    [
        gym.spaces.Dict(x=OBSERVATIONS, n=gym.spaces.Discrete(3), b=gym.spaces.MultiBinary(2)),
        gym.spaces.Box(0, 255, (6, 7, 3), np.uint8),
        gym.spaces.Discrete(5),
        gym.spaces.MultiDiscrete([2, 3]),
    ],
    ids=["Dict", "image", "Discrete", "MultiDiscrete"],
)
@pytest.mark.parametrize("actions", [gym.spaces.Discrete(3), gym.spaces.MultiDiscrete([2, 3]), OBSERVATIONS])
def test_stable_baselines3_evaluates_agents_on_these_spaces(space, actions):
    from stable_baselines3.common.evaluation import evaluate_policy
    from stable_baselines3.common.monitor import Monitor

    env = partial(Sampling, space, actions, length=7)
    agent = small_agent(PPO, env)
    returns, lengths = evaluate_policy(agent, Monitor(env()), n_eval_episodes=3, return_episode_rewards=True)
    assert lengths == [7, 7, 7]
    assert np.isfinite(returns).all()


class Graded(gym.Env):
    """Episodes of one step; every second one succeeds, and its info says how far it was."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (1,))
    action_space = gym.spaces.Discrete(2)
    played = 0

    def reset(self, *, seed=None, options=None):
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.played += 1
        info = {"is_success": self.played % 2 == 0, "distance": float(self.played), "word": "text"}
        return np.zeros(1, np.float32), 1.0, True, False, info


def test_success_rate_and_infos_are_means_over_the_episodes():
    agent = small_agent(PPO, Graded)
    plain = evaluate(agent, Graded(), 5)
    assert (plain.success_rate, plain.info_means) == (0.4, {"is_success": 0.4})
    assert str(plain) == "mean return 1.0 ± 0.0, success rate 0.40"
    asked = evaluate(agent, Graded(), 4, info_keys=("distance", "absent"))
    assert asked.info_means == {"is_success": 0.5, "distance": 2.5}
    assert str(asked).endswith(", success rate 0.50, distance 2.5")
    with pytest.raises(ValueError, match=r"^info\['word'\] of the environment at the end of episode 0 is text"):
        evaluate(agent, Graded(), 1, info_keys=("word",))


def test_without_such_an_info_there_is_no_success_rate():
    result = evaluate(small_agent(PPO), gym.make("CartPole-v1"), 2)
    assert (result.success_rate, result.info_means) == (None, {})
    assert "success" not in str(result)
