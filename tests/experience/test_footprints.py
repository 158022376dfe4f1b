"""Who else has been in the environment that training steps."""

import random
import warnings
from collections import deque

import gymnasium as gym
import numpy as np
import pytest
from environments import Counting, Noise, box, small_agent
from stable_baselines3.common.evaluation import evaluate_policy
from support import parameters, same, without_time

from klrl.agents import PPO
from klrl.experience.footprints import Footprints
from klrl.run import Callback, evaluate


class Walk(gym.Env):
    """All that a step changes is in one attribute of some kind; no random number is ever drawn."""

    observation_space, action_space = gym.spaces.Box(-9, 9, (1,), np.float32), gym.spaces.Discrete(2)

    def __init__(self, keep):
        self.keep, self.level, self.task = keep, 0, None

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.task, self._t = None, self.keep(0)
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.n = self.n + 1 if self._t != self.keep(0) else 1
        self._t = self.keep(self.n)
        return np.full(1, self.n / 9, np.float32), 1.0, self.n == 7, False, {}


KEEPS = {
    "integer": int,
    "float": float,
    "text": str,
    "tuple": lambda n: (n, "x"),
    "list of lists": lambda n: [[0, n]],
    "dict": lambda n: {"n": n},
    "deque": lambda n: deque([0, n], maxlen=2),
}


@pytest.mark.parametrize("keep", KEEPS)
def test_a_step_of_somebody_else_is_seen_by_what_it_changes(keep):
    env = Walk(KEEPS[keep])
    prints = Footprints(env)
    env.reset()
    prints.leave()
    for steps in range(3):
        assert prints.come_back() == []
        env.step(0)
        prints.leave()
        for _ in range(steps + 1):
            env.step(0)
        assert prints.come_back() == ["_t", "n"]
        prints.leave()


GENERATORS = [np.random.default_rng, lambda n: np.random.Generator(np.random.MT19937(n)), np.random.RandomState]


@pytest.mark.parametrize("make", [*GENERATORS, random.Random])
def test_a_draw_from_a_random_generator_is_seen(make):
    class Drawing(gym.Env):
        def __init__(self):
            self._rng, self._x = make(0), np.zeros(2)

        def draw(self):
            self._rng.random()

    env = Drawing()
    prints = Footprints(env)
    env.draw()
    prints.leave()
    assert prints.come_back() == []
    env.draw()
    assert prints.come_back() == ["_rng"]


def test_arrays_that_are_written_in_place_are_seen_below_wrappers():
    env = Walk(int)
    env._t = np.zeros((2, 3))
    prints = Footprints(gym.wrappers.ClipReward(gym.wrappers.OrderEnforcing(env), 0.0))
    env._t[1, 2] = 1.0
    prints.leave()
    env._t[1, 2] = 2.0
    assert prints.come_back() == ["_t"]


def test_what_a_callback_sets_is_no_step():
    env = Walk(int)
    prints = Footprints(env)
    env.reset()
    env.step(0)
    prints.leave()
    env.level = 3  # training never writes it
    assert prints.come_back() == []
    env.task = "next"
    env.reset()  # uses it up
    prints.leave()
    env.task = "after that"
    assert prints.come_back() == []


def test_what_is_large_or_deep_or_foreign_is_not_looked_at():
    env = Walk(int)
    env._large, env._long, env._deep, env._foreign = np.zeros(10**5), [0] * 10**5, [[[[[0]]]]], object()
    env._self = [0]
    env._self.append(env._self)
    prints = Footprints(env)
    env._large[0], env._long[0], env._deep[0][0][0][0][0], env._foreign, env._self[0] = 1, 1, 1, object(), 1
    prints.leave()
    assert prints.come_back() == []


class Visitor(Callback):
    """Does something with the environment in one hook of every update."""

    def __init__(self, hook, act):
        setattr(self, hook, lambda agent, *arguments: act(agent))


ENVIRONMENTS = {
    "CartPole": lambda: gym.make("CartPole-v1"),
    "Pendulum": lambda: gym.make("Pendulum-v1"),
    "Noise": lambda: Noise(box(1)),
    "Walk": lambda: Walk(int),
}
VISITS = {
    "evaluate_policy": lambda agent, env: evaluate_policy(agent, env, 1, warn=False),
    "evaluate": lambda agent, env: evaluate(agent, env, 1),
    "a reset below all wrappers": lambda agent, env: env.unwrapped.reset(),
}
NAMED = (
    r"the environment that the agent learns from was reset or stepped by others between two rollouts \(its .* changed"
)


@pytest.mark.parametrize(
    ("name", "visit", "hook"),
    [(name, visit, "on_update_end") for name in ENVIRONMENTS for visit in VISITS]
    + [("Noise", "evaluate", hook) for hook in ("on_update_start", "on_epoch_end")],
)
def test_an_evaluation_in_the_environment_that_is_learned_from_is_named_and_changes_nothing(name, visit, hook):
    alone = small_agent(PPO, ENVIRONMENTS[name](), n_epochs=1).learn(32 * 4)
    env = ENVIRONMENTS[name]()
    agent = small_agent(PPO, env, n_epochs=1)
    with pytest.warns(RuntimeWarning, match=NAMED):
        agent.learn(32 * 4, Visitor(hook, lambda agent: VISITS[visit](agent, env)))
    assert same(parameters(agent), parameters(alone))
    assert without_time(agent) == without_time(alone)


def test_between_two_trainings_too_and_where_there_is_no_way_back_new_episodes_begin():
    env = Counting(length=7)
    agent = small_agent(PPO, env).learn(32)
    evaluate_policy(agent, env, 1, warn=False)
    with pytest.warns(RuntimeWarning) as caught:  # it counts its episodes, so none can be played again
        agent.learn(32)
    first, second = (str(note.message) for note in caught)
    assert "(its episode, steps changed): training goes back to where it was" in first
    assert "did not come back to where it was" in second


def test_where_no_episode_can_be_played_again_new_ones_are_what_the_warning_announces():
    env = Noise(box(1))
    agent = small_agent(PPO, env, seed_every_episode=False).learn(32)
    evaluate_policy(agent, env, 1, warn=False)
    text = r"changed\): new episodes begin; evaluate in a separate environment"
    with pytest.warns(RuntimeWarning, match=text) as caught:
        agent.learn(32)
    assert len(caught) == 1


def test_nobody_else_no_warning_and_environments_of_one_s_own_are_nobody_s_business():
    class Level(Callback):
        def on_update_end(self, agent, batch, metrics):
            env.unwrapped.level = agent.n_updates
            evaluate_policy(agent, gym.make("CartPole-v1"), 1, warn=False)

    env = gym.make("CartPole-v1")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        agent = small_agent(PPO, env).learn(32 * 4, Level())
        agent.learn(32)
        evaluate(agent, env, 1)  # the end
