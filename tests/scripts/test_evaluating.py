"""Evaluation during training on the command line: its rows, its best checkpoint, the return at which a run ends."""

import csv
import json

import pytest
from test_command_line import klrl, refused  # noqa: F401

SMALL = ["--env", "CartPole-v1", "--n-envs", "2", "--n-steps", "128", "--run-dir", "run"]


def rows(run):
    with (run / "metrics.csv").open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["eval/mean_reward"]]


def test_a_run_is_evaluated_on_its_way_ends_at_a_return_and_its_best_agent_is_evaluated_again(tmp_path):
    words = ["--eval-every", "500", "--eval-episodes", "3", "--stop-at-return", "1", "--total-timesteps", "10000"]
    run = klrl("train", "ppo", *SMALL, *words, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    (row,) = rows(tmp_path / "run")
    assert row["time/total_timesteps"] == "512.0"
    mean = float(row["eval/mean_reward"])
    assert f"evaluation {mean:.1f}" in run.stdout
    assert f"stopped: eval/mean_reward = {mean:.6g}, at least 1, after 512 steps\n" in run.stdout
    assert f"evaluation: mean return {mean:.1f} " in run.stdout  # the same policy in the same three episodes
    again = klrl("resume", "run", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "run: finished, eval/mean_reward = " in again.stdout
    best = klrl("evaluate", "run", "--best", "--episodes", "3", "--json", "best.json", cwd=tmp_path)
    assert best.returncode == 0, best.stderr
    result = json.loads((tmp_path / "best.json").read_text())
    assert (result["num_timesteps"], result["path"]) == (512, "run/checkpoints/best")
    assert result["mean_return"] == pytest.approx(mean)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--eval-every", "0"], "eval_every = 0; allowed: an integer >= 1 or none"),
        (["--eval-every", "10", "--eval-episodes", "0"], "eval_episodes = 0 with eval_every; allowed: an integer >= 1"),
        (["--stop-at-return", "high"], "stop_at_return = 'high'; allowed: a number that is finite or none"),
    ],
)
def test_an_evaluation_that_cannot_be_is_refused_in_one_line(words, message, refused):  # noqa: F811
    assert refused("train", "ppo", "--env", "CartPole-v1", *words) == f"klrl train ppo: {message}"
