"""Evaluation during training: which episodes, what it leaves alone, what its failures cost, and how it goes on."""

import math
import os
import time

import gymnasium as gym
import numpy as np
import pytest
from environments import Counting, Noise, newest, small_agent
from support import every_agent, parameters, same, slots
from test_resume import rows, state
from test_tensorboard_writer import shown

from klrl.agents import PPO, load_agent
from klrl.run import Callback, EvalCallback, StopAtReturn
from klrl.run.seeding import evaluation_seed

TOTAL = 64 * 6
EVALUATED = [128, 192, 320, 384]
"""Steps of the updates, of 64 steps each, that reach a multiple of 95, or the end."""


def evaluated(agent):
    """The metrics of evaluations by step."""
    rows = [{k: v for k, v in row.items() if k.startswith("eval/")} for row in agent.history]
    return {int(row["time/total_timesteps"]): mine for row, mine in zip(agent.history, rows, strict=True) if mine}


def without_evaluation(agent):
    kept = [{k: v for k, v in row.items() if not k.startswith(("eval/", "time/fps"))} for row in agent.history]
    return repr(kept)


class Global(gym.Wrapper):
    """CartPole with rewards from the program's own random numbers."""

    def __init__(self):
        super().__init__(gym.make("CartPole-v1"))

    def step(self, action):
        observation, _, *ended = self.env.step(action)
        return observation, np.random.normal(), *ended  # noqa: NPY002


class Scripted(Counting):
    """Every evaluation has the next one of these returns, or raises it, exits with it, hangs, or never ends."""

    def __init__(self, script, seeds=None):
        super().__init__(0, 3)
        self.script, self.seeds = iter(script), seeds if seeds is not None else []

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            self.now = next(self.script)
            self.seeds.append(seed)
        return super().reset(seed=seed)

    def step(self, action):
        observation, _, terminated, truncated, info = super().step(action)
        if isinstance(self.now, BaseException):
            raise self.now
        if self.now == "crash":
            os._exit(3)
        if self.now == "hang":
            time.sleep(3600)
        if self.now == "endless":
            terminated = truncated = False
        reward = self.now / 3 if isinstance(self.now, (int, float)) else 1.0
        return observation, reward, terminated, truncated, {"is_success": reward > 1} if truncated else info


@every_agent
@pytest.mark.parametrize("deterministic", [True, False])
def test_no_bit_of_the_training_depends_on_it(agent_class, deterministic):
    agents = []
    for callback in (None, EvalCallback(Global, eval_every=95, n_eval_episodes=2, deterministic=deterministic)):
        np.random.seed(0)  # noqa: NPY002
        agents.append(small_agent(agent_class, Global).learn(TOTAL, callback))
    plain, watched = agents
    assert [*evaluated(watched)] == EVALUATED
    assert same(parameters(watched), parameters(plain))
    assert same(slots(watched), slots(plain))
    assert without_evaluation(watched) == without_evaluation(plain)
    for name, stream in plain.streams.state().items():
        assert np.array_equal(watched.streams.state()[name], stream), name


def test_it_plays_whole_episodes_of_its_own_from_one_seed_and_reports_their_means():
    seeds, played = [], []

    class Recorded(Counting):
        def reset(self, *, seed=None, options=None):
            played.append(seed)
            return super().reset(seed=seed)

    agent = small_agent(PPO, lambda: Recorded(0, 5))
    agent.learn(TOTAL, EvalCallback(Scripted([3.0, 6.0, 9.0, 1.5], seeds), eval_every=95, n_eval_episodes=4))
    assert {evaluation_seed(0)} == {*seeds}
    assert not {*seeds} & {*played}
    for (step, row), mean in zip(evaluated(agent).items(), [3.0, 6.0, 9.0, 1.5], strict=True):
        assert step in EVALUATED
        assert row == pytest.approx(
            {
                "eval/mean_reward": mean,
                "eval/mean_ep_length": 3.0,
                "eval/success_rate": float(mean > 3),
                "eval/cut": 0.0,
                "eval/failures": 0.0,
            }
        )


def test_a_function_makes_an_environment_for_every_evaluation_and_it_is_closed():
    made = []

    def make():
        made.append(Counting(0, 3))
        return made[-1]

    small_agent(PPO, lambda: Counting(0, 5)).learn(TOTAL, EvalCallback(make, eval_every=95))
    assert len(made) == len(EVALUATED) + 1  # one to see its spaces
    assert all(env.closed for env in made)


def test_what_raises_or_never_ends_is_named_and_counted_and_costs_the_training_nothing():
    plain = small_agent(PPO, lambda: Counting(0, 5)).learn(TOTAL)
    script = [ValueError("a lost screw"), "endless", SystemExit(3), 6.0]
    callback = EvalCallback(Scripted(script), eval_every=95, n_eval_episodes=2, max_steps=7)
    agent = small_agent(PPO, lambda: Counting(0, 5))
    with pytest.warns(RuntimeWarning) as told:
        agent.learn(TOTAL, callback)
    said = [str(warning.message) for warning in told]
    assert said[0].startswith("evaluation after 128 steps failed: ValueError: a lost screw (")
    assert f"{__file__}:" in said[0]
    assert "cut after max_steps = 7" in said[1]
    assert said[2].startswith("evaluation after 320 steps failed: SystemExit: 3 (")
    assert len(said) == 3
    first, second, third, last = evaluated(agent).values()
    assert math.isnan(first["eval/mean_reward"])
    assert math.isnan(first["eval/mean_ep_length"])
    assert [row["eval/failures"] for row in (first, second, third, last)] == [1, 1, 2, 2]
    assert (second["eval/cut"], second["eval/mean_ep_length"], second["eval/mean_reward"]) == (2.0, 7.0, 7.0)
    assert last["eval/mean_reward"] == pytest.approx(6.0)
    assert same(parameters(agent), parameters(plain))
    assert without_evaluation(agent) == without_evaluation(plain)


def test_beside_worker_processes_it_has_one_too_so_that_it_may_hang_and_crash(tmp_path):
    script = [3.0, "hang", "crash", 6.0, 9.0]  # the first one only shows its spaces

    def make():
        made = tmp_path / "made"  # by any process
        with made.open("a") as file:
            file.write("x")
        return Scripted(script[len(made.read_text()) - 1 :])

    callback = EvalCallback(make, eval_every=95, n_eval_episodes=2)
    agent = small_agent(PPO, lambda: Counting(0, 5), vectorization_mode="async", worker_timeout=5.0)
    with pytest.warns(RuntimeWarning) as told:
        agent.learn(TOTAL, callback)
    agent.close()
    said = [str(warning.message) for warning in told]
    assert said[0].startswith("evaluation after 128 steps failed: worker hangs: no answer for 5 s;")
    assert said[1].startswith("evaluation after 192 steps failed: worker exited with status 3;")
    assert [row["eval/failures"] for row in evaluated(agent).values()] == [1, 2, 2, 2]
    assert [row["eval/mean_reward"] for row in evaluated(agent).values()][2:] == pytest.approx([6.0, 9.0])


@pytest.mark.filterwarnings("ignore:evaluation:RuntimeWarning")
@pytest.mark.parametrize("masks", [False, True])
def test_an_environment_in_a_process_answers_as_it_does_here(masks):
    env_id = newest("Taxi") if masks else "CartPole-v1"
    settings = {"action_mask": "info"} if masks else {}
    rows = []
    for mode in ("sync", "async"):
        agent = small_agent(PPO, env_id, vectorization_mode=mode, **settings)
        agent.learn(64, EvalCallback(env_id, n_eval_episodes=3, deterministic=False, max_steps=50))
        agent.close()
        rows.append(evaluated(agent))
    assert rows[0] == rows[1]


def test_the_best_agent_is_kept_by_evaluation(tmp_path):
    callback = EvalCallback(Scripted([2.0, 5.0, 4.0, 5.0]), eval_every=95, best_model_save_path=tmp_path / "mine")
    agents = {}

    class Remember(Callback):
        def on_update_end(self, agent, batch, metrics):
            agents[agent.num_timesteps] = parameters(agent)

    small_agent(PPO, lambda: Counting(0, 5)).learn(TOTAL, [callback, Remember()], run_dir=tmp_path / "run")
    assert callback.best_mean_reward == pytest.approx(5.0)
    for path in (tmp_path / "mine", tmp_path / "run/checkpoints/best"):
        best = load_agent(path)
        assert best.num_timesteps == 192
        assert same(parameters(best), agents[192])
        assert best.history[-1]["eval/mean_reward"] == pytest.approx(5.0)
    assert load_agent(tmp_path / "run").num_timesteps == TOTAL


def learn(run, script, resume=False):
    """Train, or finish a training, with an evaluation that has these returns and a goal of 8."""
    callbacks = [EvalCallback(Scripted(script), eval_every=95), StopAtReturn(8.0, evaluations=True)]
    if resume:
        return PPO.load(run, noise).resume(callbacks, run_dir=run)
    return small_agent(PPO, noise).learn(TOTAL, callbacks, run_dir=run)


def noise():
    """An environment with the spaces of the others, whose episodes can be played again."""
    return Noise(gym.spaces.Discrete(4), (4,))


@pytest.mark.parametrize(
    ("script", "n_done"),
    [
        ([2.0, 5.0, 4.0, 3.0], 0),
        ([2.0, 5.0, 4.0, 3.0], 1),
        ([2.0, 5.0, 4.0, 3.0], 2),
        ([2.0, 5.0, 4.0, 3.0], 3),
        ([2.0, 5.0, 8.0, 1.0], 2),
    ],
    ids=["first", "best", "third", "last", "goal"],
)
def test_what_interrupts_an_evaluation_changes_no_row_no_point_and_no_best_agent(script, n_done, tmp_path):
    whole, interrupted = tmp_path / "whole", tmp_path / "interrupted"
    learn(whole, script)
    with pytest.raises(KeyboardInterrupt):
        learn(interrupted, [*script[:n_done], KeyboardInterrupt()])
    with pytest.raises(KeyboardInterrupt):  # again, in the evaluation that is made up for
        learn(interrupted, [KeyboardInterrupt()], resume=True)
    learn(interrupted, script[n_done:], resume=True)
    assert rows(interrupted / "metrics.csv") == rows(whole / "metrics.csv")
    assert points(interrupted) == points(whole)
    assert best(interrupted) == best(whole)
    if script[-1] == 3.0:
        assert state(interrupted) == state(whole)
    else:  # the last checkpoint is from before the goal was reached, so that it is reached again
        learn(interrupted, script[n_done:], resume=True)
        assert rows(interrupted / "metrics.csv") == rows(whole / "metrics.csv")


def best(run):
    agent = load_agent(run / "checkpoints/best")
    return agent.num_timesteps, [p.numpy().tobytes() for p in parameters(agent)]


def points(run):
    return {tag: values for tag, values in shown(run).items() if tag != "time/fps"}


def test_training_ends_at_a_return_that_evaluations_reach():
    goal = StopAtReturn(4.5, evaluations=True)
    agent = small_agent(PPO, lambda: Counting(0, 5))
    agent.learn(TOTAL, [EvalCallback(Scripted([4.0, 5.0, 9.0]), eval_every=95), goal])
    assert agent.num_timesteps == 192
    assert goal.reason == "eval/mean_reward = 5, at least 4.5, after 192 steps"


def test_training_ends_at_a_return_of_the_last_hundred_episodes():
    agent = small_agent(PPO, lambda: Counting(0, 3))  # every return is 0 + 1 + 2, an episode has 3 steps
    agent.learn(640, StopAtReturn(3.0))
    assert agent.num_timesteps == 320  # 21 episodes per 64 steps, and more
    assert small_agent(PPO, lambda: Counting(0, 3)).learn(640, StopAtReturn(3.1)).num_timesteps == 640


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eval_every": 0}, "eval_every = 0; allowed: an integer >= 1"),
        ({"n_eval_episodes": 1.5}, "n_eval_episodes = 1.5; allowed: an integer >= 1"),
        ({"env": gym.vector.SyncVectorEnv([Counting])}, "env = SyncVectorEnv; allowed: an id, "),
        ({"env": "Cartpol-v1"}, "env = 'Cartpol-v1': "),
    ],
)
def test_what_cannot_be_evaluated_is_refused_at_once(settings, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        EvalCallback(**({"env": "CartPole-v1"} | settings))


def test_other_spaces_than_the_agents_are_refused_before_the_first_update():
    agent = small_agent(PPO, "CartPole-v1")
    with pytest.raises(ValueError, match=r"^EvalCallback: env has .*; allowed: .*"):
        agent.learn(64, EvalCallback("Acrobot-v1"))
    assert agent.num_timesteps == 0
