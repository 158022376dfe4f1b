"""The benchmark of asked and measured KL: its tasks, and a small run of the real command."""

import json
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest

from klrl.agents import AGENTS
from klrl.scripts.benchmarks import asked
from klrl.scripts.main import main


@pytest.mark.filterwarnings("ignore:.*out of date:DeprecationWarning")
@pytest.mark.parametrize("task", asked.ASKED, ids=lambda t: f"{t.agent}, {t.space}")
def test_every_task_has_the_actions_that_its_name_says_and_a_bound_of_a_hundredth(task):
    if task.space.startswith("MultiDiscrete") and not hasattr(gym.wrappers, "DiscretizeAction"):
        pytest.skip("this Gymnasium has no DiscretizeAction")
    with task.make() as env:
        space = env.action_space
    if isinstance(space, gym.spaces.Box):
        assert task.space == f"Box({int(np.prod(space.shape))})"
    else:
        assert task.space.startswith(type(space).__name__)
    config = AGENTS[task.agent].config_class.for_env(task.env, **task.settings)
    assert (config.region.target_kl, config.region.on_exit) == (0.01, "backtrack")


def test_the_command_trains_measures_and_writes(tmp_path, monkeypatch, capsys):
    short = [replace(task, total_timesteps=1_000) for task in asked.ASKED if task.env == "CartPole-v1"]
    monkeypatch.setattr(asked, "ASKED", tuple(short))
    output = tmp_path / "asked.json"
    words = ["--seeds", "0", "--processes", "1", "--spaces", "Discrete(2)", "--output", str(output)]
    asked.main(words)
    rows = json.loads(output.read_text())["rows"]
    assert [row["agent"] for row in rows] == ["ppo", "trpo"]
    for row in rows:
        assert (row["target_kl"], row["updates_over_target"]) == (0.01, 0)
        assert 0.0 < row["kl_mean"] <= row["kl_largest"] <= 0.01
    assert "| trpo | CartPole-v1, Discrete(2) | 1,000 |" in capsys.readouterr().out


def test_an_unknown_space_is_refused_in_one_line(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["benchmark", "asked", "--spaces", "Box(2)"])
    assert stop.value.code == 2
    assert "spaces = 'Box(2)'; allowed: Box(1), Box(3)," in capsys.readouterr().err
