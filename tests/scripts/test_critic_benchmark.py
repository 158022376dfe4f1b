"""klrl benchmark critic: a tiny run of the real command, and what is wrong with its words."""

import json

import numpy as np
import pytest

from klrl.scripts.benchmarks import critic, critic_runs


def test_the_command_trains_both_ways_measures_and_writes(tmp_path, capsys):
    output = tmp_path / "critic.json"
    critic.main(["--envs", "CartPole-v1:3000", "--seeds", "7", "--processes", "1", "--output", str(output)])
    rows = json.loads(output.read_text())["rows"]
    assert [(r["agent"], r["fold_reward_scale"]) for r in rows] == [
        (a, f) for a in ("ppo", "trpo") for f in (True, False)
    ]
    for row in rows:
        assert (row["env"], row["seed"], row["total_timesteps"], row["updates"]) == ("CartPole-v1", 7, 3000, 3)
        assert row["explained_variance_lowest"] <= row["explained_variance_median"] <= 1.0
        assert 0.0 < row["error_mean"] < 1.0
        halves = row["error_first_half"], row["error_second_half"]
        assert row["error_mean"] == pytest.approx(np.mean(halves))
    assert rows[0]["error_mean"] != rows[1]["error_mean"]
    assert capsys.readouterr().out.count("| CartPole-v1 | ") == 4


def test_the_table_has_means_and_seeds():
    row = {"agent": "ppo", "env": "E-v0", "fold_reward_scale": True, "mean_return": 1.0, "last_return": 2.0}
    row |= dict.fromkeys(("explained_variance_median", "error_first_half", "error_second_half"), 0.25)
    other = row | {"mean_return": 4.0, "error_first_half": 0.75}
    *_, line = critic_runs.table([row, other]).splitlines()
    numbers = "2 (1, 4) | 2 (2, 2) | 0.250 (0.250, 0.250) | 0.500 (0.250, 0.750) | 0.250 (0.250, 0.250)"
    assert line == f"| ppo | E-v0 | True | {numbers} |"


@pytest.mark.parametrize("word", ["CartPole-v1", ":5", "CartPole-v1:0", "CartPole-v1:many"])
def test_an_environment_without_steps_is_refused_in_one_line(word, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        critic.main(["--envs", word, "--output", str(tmp_path / "critic.json")])
    assert stop.value.code == 2
    allowed = "allowed: ENV:STEPS, such as CartPole-v1:40000"
    assert capsys.readouterr().err == f"klrl benchmark critic: envs = {word!r}; {allowed}\n"
