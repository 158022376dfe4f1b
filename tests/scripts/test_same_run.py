"""Runs in words: keyword arguments, wrappers, names, numbers, and the same run again from its config.json."""

import json
import sys

import gymnasium as gym
import pytest
from environments import small_agent
from test_command_line import klrl, refused  # noqa: F401
from test_resume import rows, state

from klrl.agents import PPO, PPOConfig, TRPOConfig
from klrl.experience.environments import describe
from klrl.experience.wrapped import Wrapped, Wrapping
from klrl.run.options import RunOptions
from klrl.scripts.cli.environments import environment, in_words
from klrl.scripts.cli.flags import with_whole_numbers
from klrl.scripts.main import main

MODULE = """
import gymnasium as gym

class Heavier(gym.Wrapper):
    def __init__(self, environment, mass=0.1):  # not called env
        super().__init__(environment)
        self.mass = environment.unwrapped.m = mass

def nothing(env):
    return None

gym.register("Mine-v0", entry_point="gymnasium.envs.classic_control:PendulumEnv", max_episode_steps=50)
"""
SMALL = ["--total-timesteps", "2.56e2", "--n-envs", "2", "--n-steps", "6_4", "--batch-size", "64", "--eval-episodes", 1]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a module of one's own, which no other test has imported."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "words_of_mine.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("words_of_mine", None)
    gym.registry.pop("Mine-v0", None)


def run_of(path):
    return json.loads((path / "config.json").read_text())


def test_arguments_and_wrappers_reach_every_environment_and_are_asked_for_again(folder):
    words = ["--env", "words_of_mine:Mine-v0", "--env-kwargs", "g=5.0", "--wrapper", "words_of_mine:Heavier", "mass=2"]
    again = ["--env", "words_of_mine:Mine-v0", "--wrapper", "words_of_mine:Heavier"]
    ended = klrl("train", "ppo", *words, *SMALL, "--name", "words/of: mine", cwd=folder)
    assert ended.returncode == 0, ended.stderr
    run = folder / "runs/words_of__mine"
    kept = {"id": "Mine-v0", "kwargs": {"g": 5.0}, "max_episode_steps": 50}
    kept["wrappers"] = [{"name": "words_of_mine:Heavier", "kwargs": {"mass": 2}}]
    assert run_of(run)["env"] == kept
    assert (run_of(run)["name"], run_of(run)["total_timesteps"]) == ("words/of: mine", 256)
    line = klrl("resume", run, "--env", "words_of_mine:Mine-v0", cwd=folder)
    assert line.returncode == 2
    said = "env was inside words_of_mine:Heavier(mass=2), and nothing that is saved is imported"
    assert line.stderr == f"klrl resume: {said}; allowed: --wrapper words_of_mine:Heavier\n"
    assert klrl("evaluate", run, *again, "--episodes", 1, cwd=folder).returncode == 0
    ended = klrl("train", "ppo", "--config", run, *again, "--run-dir", "same", cwd=folder)
    assert ended.returncode == 0, ended.stderr
    assert state(folder / "same") == state(run)


def test_wrappers_are_made_in_order_with_their_arguments(folder):
    wrappers = [["words_of_mine:Heavier", "mass=3.0"], ["gymnasium.wrappers:TimeAwareObservation"]]
    sys.path.append(str(folder))
    made = in_words("Pendulum-v1", ["g=2"], wrappers)
    assert isinstance(made, Wrapped)
    for env in (made(), *PPO(made, seed=0).envs.envs):
        heavier = env.get_wrapper_attr("mass")
        assert (heavier, env.unwrapped.m, env.unwrapped.g) == (3.0, 3.0, 2)
        assert env.observation_space.shape == (4,)  # with the time
    assert in_words("Pendulum-v1", [], []) == "Pendulum-v1"


def test_a_wrapper_that_takes_tuples_alone_gets_them_again_from_what_is_saved():
    """Gymnasium's ResizeObservation refuses the list that JSON makes of a shape."""
    wrappers = [["gymnasium.wrappers:AddRenderObservation"], ["gymnasium.wrappers:ResizeObservation", "shape=(36, 40)"]]
    made = in_words("CartPole-v1", ["render_mode=rgb_array"], wrappers)
    saved = json.loads(json.dumps(describe(made)))
    assert saved["wrappers"][1]["kwargs"] == {"shape": {"tuple": [36, 40]}}
    again = environment(saved, None, [words[:1] for words in wrappers])
    for env in (made(), again()):
        with env:
            assert env.observation_space.shape == (36, 40, 3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--wrapper", "nobody:Heavier"], "wrapper = 'nobody:Heavier': No module named 'nobody'; allowed: MODULE:NAME"),
        (["--wrapper", "math:pi"], "wrapper = 'math:pi' is a float; allowed: MODULE:NAME of a Gymnasium wrapper"),
        (["--wrapper", "words_of_mine:Heavier", "weight=1"], "wrapper = words_of_mine:Heavier(weight=1): Heavier"),
        (["--wrapper", "words_of_mine:nothing"], "wrapper = words_of_mine:nothing made a NoneType; allowed: MODULE"),
        (["--wrapper", "math:pi", "math:e"], "wrapper = 'math:e' after math:pi; allowed: key=value, or --wrapper"),
        (["--wrapper", "mine.Heavier"], "wrapper = 'mine.Heavier'; allowed: MODULE:NAME, then key=value"),
        (["--env-kwargs", "gravity=5"], "env = 'Pendulum-v1': PendulumEnv.__init__() got an unexpected keyword argum"),
        (["--env-kwargs", "gravity"], "env_kwargs = 'gravity'; allowed: key=value"),
        (["--n-envs", "1.5e0"], "n_envs = '1.5e0'; allowed: an integer in [1, 65536]"),
        (["--name", "a", "--run-dir", "b"], "name = 'a' with run_dir; allowed: one of the two"),
        (["--config", "nowhere"], "config = nowhere: nothing there; allowed: a run directory, its config.json"),
        (["--config="], "config = ''; allowed: a path or none, not empty"),
    ],
)
def test_words_that_name_nothing_are_refused_in_one_line(words, message, refused, folder):  # noqa: F811
    assert message in refused("train", "ppo", "--env", "Pendulum-v1", *words)
    assert not (folder / "runs").exists()


def test_a_file_that_is_neither_a_run_nor_the_settings_of_an_agent_is_refused(refused, folder):  # noqa: F811
    refusals = {
        '{"gamma": 0.9}': "no agent, config, env, seed, total_timesteps, versions; allowed: a run directory, ",
        "[0.9]": "is not as a run writes it: [0.9]; allowed: a run directory, its config.json, or best.json",
        "gamma": "is not as a run writes it: Expecting value",
        json.dumps(TRPOConfig().to_json()): "cg_max_steps is no setting of ppo; allowed: klrl train trpo",
        json.dumps(PPOConfig().to_json() | {"gama": 0.9}): "gama is no setting of ppo; allowed: gamma, ",
        json.dumps(PPOConfig().to_json() | {"gamma": 2.0}): "gamma = 2.0; allowed: a number in [0, 1]",
    }
    for text, said in refusals.items():
        (folder / "best.json").write_text(text)
        assert said in refused("train", "ppo", "--config", "best.json", "--env", "CartPole-v1")
    assert not (folder / "runs").exists()


def test_any_flag_changes_the_same_run(folder):
    first = ["--env", "CartPole-v1", "--trust-region", "clip", "--clip-range", "0.1", "--seed", "5", "--gamma", "0.9"]
    assert klrl("train", "ppo", *first, *SMALL, "--run-dir", "first", cwd=folder).returncode == 0
    changed = ["--trust-region", "constraint", "--target-kl", "0.02", "--n-steps", "16", "--no-scale-rewards"]
    ended = klrl("train", "ppo", "--config", "first/config.json", *changed, "--run-dir", "second", cwd=folder)
    assert ended.returncode == 0, ended.stderr
    one, two = run_of(folder / "first"), run_of(folder / "second")
    asked = {"trust_region": "constraint", "clip_range": None, "target_kl": 0.02, "n_steps": 16, "batch_size": 32}
    assert two["config"] == one["config"] | asked | {"scale_rewards": False}
    assert {k for k in one if one[k] != two[k]} == {"config", "region", "reward_scale"}
    line = klrl("train", "trpo", "--config", "first", cwd=folder)
    assert line.stderr == "klrl train trpo: config = first is that of a run of ppo; allowed: klrl train ppo\n"


def test_functions_are_given_anew_by_their_flags(refused, folder):  # noqa: F811
    def rate(progress_remaining):
        return 1e-3 * progress_remaining

    small_agent(PPO, learning_rate=rate).learn(64, run_dir=folder / "run")
    line = refused("train", "ppo", "--config", "run")
    assert line.endswith(".rate: functions are not saved; allowed: --learning-rate")
    main(["train", "ppo", "--config", "run", "--learning-rate", "linear:1e-3:0", "--run-dir", "again"])
    told, metrics = run_of(folder / "again"), "metrics.csv"
    assert told["config"]["learning_rate"] == "linear:1e-3:0"
    assert rows(folder / "again" / metrics) == rows(folder / "run" / metrics)
    line = refused("resume", "run")
    assert "functions are not saved; allowed: in Python, klrl.agents.load_agent('run', env, schedules={'learn" in line


def test_an_unnamed_wrapper_of_a_saved_agent_is_asked_for_in_python_too(tmp_path):
    wrapped = Wrapped(gym.spec("CartPole-v1"), [Wrapping("gymnasium.wrappers:TimeLimit", {"max_episode_steps": 7})])
    agent = PPO(wrapped, seed=0).learn(1)
    assert max(episode.length for episode in agent.episodes) == 7
    loaded = PPO.load(agent.save(tmp_path / "agent"))
    with pytest.raises(ValueError, match=r"^env = None; allowed: an environment, given to load\(\)"):
        loaded.learn(1)
    assert PPO.load(tmp_path / "agent", wrapped).learn(1).num_timesteps == 2 * agent.num_timesteps


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--eval-every", "1e4"], ["--eval-every", "10000"]),
        (["--eval-every=1.5e3"], ["--eval-every=1500"]),
        (["--torch-threads", "1_0"], ["--torch-threads", "10"]),
        (["--kl-budget", "1e0"], ["--kl-budget", "1e0"]),  # a number
        (["--eval-every", "1.23e1"], ["--eval-every", "1.23e1"]),  # refused
        (["--nothing", "1e4"], ["--nothing", "1e4"]),
    ],
)
def test_integers_may_be_written_as_people_write_them(words, expected):
    assert with_whole_numbers(RunOptions, words) == expected
