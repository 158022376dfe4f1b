"""The benchmark of action spaces: what its wrappers do, and a small run of the real command."""

import json

import gymnasium as gym
import numpy as np
import pytest

from klrl.scripts.benchmarks import spaces
from klrl.scripts.benchmarks.learning import Task


def test_actions_counted_from_one_do_what_those_from_zero_do():
    plain, shifted = gym.make("CartPole-v1"), spaces.from_one(gym.make("CartPole-v1"))
    assert shifted.action_space == gym.spaces.Discrete(2, start=1)
    for env in (plain, shifted):
        env.reset(seed=0)
    for action in (0, 1, 1, 0):
        np.testing.assert_array_equal(plain.step(action)[0], shifted.step(np.int64(action + 1))[0])


@pytest.mark.parametrize(("bits", "force"), [((0, 0), 0.0), ((1, 0), -3.0), ((0, 1), 3.0), ((1, 1), 0.0)])
def test_two_pushers_push_to_their_sides(bits, force):
    assert spaces._push(np.array(bits, np.int8)).tolist() == [force]


@pytest.mark.filterwarnings("ignore:.*out of date:DeprecationWarning")
@pytest.mark.parametrize("name", ["HalfCheetah-v4", "InvertedPendulum-v5"])
def test_the_tasks_take_the_new_actions(name):
    (wrap,) = {task.wrap for task in spaces.SPACES if task.env == name}
    if wrap is spaces.five_levels and not hasattr(gym.wrappers, "DiscretizeAction"):
        pytest.skip("Gymnasium has had DiscretizeAction since 1.2")
    with wrap(gym.make(name)) as env:
        env.reset(seed=0)
        env.step(env.action_space.sample())


def test_every_task_has_a_name_of_its_own():
    assert len({task.name for task in spaces.SPACES}) == len(spaces.SPACES)


def test_the_command_trains_measures_and_writes(tmp_path, monkeypatch, capsys):
    short = Task("trpo", "CartPole-v1", 1_000, 475.0, space="from one", wrap=spaces.from_one)
    monkeypatch.setattr(spaces, "SPACES", (short,))
    output = tmp_path / "spaces.json"
    spaces.main(["--seeds", "0", "--processes", "1", "--spaces", "from one", "--output", str(output)])
    (row,) = json.loads(output.read_text())["rows"]
    assert (row["space"], row["policy"], row["target_kl"]) == ("from one", "Categorical", 0.03)
    assert row["updates_over_target"] == 0
    assert 0.0 < row["kl_mean"] <= row["kl_largest"] <= 0.03
    assert "| trpo | CartPole-v1, from one | 1,000 | 475 |" in capsys.readouterr().out
