"""Environments of one's own on the command line: modules of the current folder, and nothing else there."""

import subprocess
import sys
from pathlib import Path

import pytest
from test_command_line import klrl

from klrl.scripts.cli.own_modules import find_in_this_folder

MODULE = """
import gymnasium as gym
from gymnasium.envs.classic_control import CartPoleEnv
gym.register("Mine-v0", entry_point="nobodys_module:Mine", max_episode_steps=20)
class Mine(CartPoleEnv):
    pass
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "nobodys_module.py").write_text(MODULE)
    (tmp_path / "nobodys_package").mkdir()
    (tmp_path / "json.py").write_text("raise AssertionError")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", str(tmp_path))])
    return tmp_path


@pytest.mark.parametrize(
    ("words", "searched"),
    [
        (["--env", "nobodys_module:Mine-v0"], True),
        (["--env=nobodys_module:Mine-v0"], True),
        (["--trust-region", "nobodys_module:REGION"], True),
        (["--env", "nobodys_package.envs:Mine-v0"], True),
        (["--envs", "nobodys_module:Mine-v0:50000"], True),
        (["--env", "json:Mine-v0"], False),
        (["--env", "nobodys:Mine-v0"], False),
        (["--env", "CartPole-v1", "--device", "cuda:0"], False),
        (["nobodys_module"], False),
        ([], False),
    ],
)
def test_this_folder_is_searched_last_and_only_for_what_is_nowhere_else(folder, words, searched):
    before = [*sys.path]
    find_in_this_folder(words)
    find_in_this_folder(words)
    assert sys.path == before + [str(folder)] * searched


def test_the_installed_program_finds_environments_of_this_folder(folder):
    program = Path(sys.executable).with_name("klrl")
    small = ["--total-timesteps", "64", "--n-steps", "16", "--n-envs", "2", "--vectorization-mode", "async"]
    env = ["--env", "nobodys_module:Mine-v0"]
    words = ["train", "ppo", *small, "--run-dir", "run", "--eval-episodes", "1"]
    done = subprocess.run([program, *words, *env], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    for verb in ("resume", "evaluate"):  # whose search begins in a folder that is not this one, either
        done = klrl(verb, "run", *env, cwd=folder)
        assert done.returncode == 0, done.stderr
    assert klrl("evaluate", "run", cwd=folder).stderr.endswith("allowed: --env MODULE:Mine-v0\n")
