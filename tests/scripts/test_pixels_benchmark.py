"""klrl benchmark pixels: runs of klrl train that may be interrupted, and what is measured of them."""

import csv

import pytest

from klrl.scripts.benchmarks import pixels

SMALL = ("--total-timesteps", "512", "--n-envs", "2", "--n-steps", "64", "--batch-size", "64", "--n-epochs", "1")
EMPTY = ("--env", "minigrid:MiniGrid-Empty-5x5-v0", "--wrapper", "minigrid.wrappers:ImgObsWrapper")


def task(*more):
    return pixels.Task("Empty", "PPO, small", 0.1, "ppo", EMPTY, (*SMALL, "--eval-episodes", "0", *more))


def test_a_run_is_measured_by_its_log_and_made_once(tmp_path):
    pytest.importorskip("minigrid", reason="pip install 'klrl[pixels]'")
    row = pixels.train(task("--trust-region", "constraint", "--target-kl", "0.01"), 3, tmp_path)
    directory = tmp_path / "Empty_PPO,_small_3"
    with (directory / "metrics.csv").open() as file:
        logged = [*csv.DictReader(file)]
    assert (row["updates"], row["num_timesteps"], len(logged)) == (4, 512, 4)
    kl = [float(update["drift/kl"]) for update in logged]
    assert row["kl_largest"] == pytest.approx(max(kl))
    assert row["kl_mean"] == pytest.approx(sum(kl) / 4)
    assert (row["target_kl"], row["updates_over_target"]) == (0.01, 0)
    there = [int(float(u["time/total_timesteps"])) for u in logged if float(u["rollout/ep_rew_mean"] or 0) >= 0.1]
    assert row["steps_to_goal"] == (there[0] if there else None)
    assert row["command"].startswith("klrl train ppo --env minigrid:MiniGrid-Empty-5x5-v0 --wrapper minigrid.wrappers:")
    before = (directory / "metrics.csv").stat().st_mtime_ns
    assert pixels.train(task("--trust-region", "constraint", "--target-kl", "0.01"), 3, tmp_path) == row
    assert (directory / "metrics.csv").stat().st_mtime_ns == before


def test_a_run_that_fails_says_why(tmp_path):
    with pytest.raises(RuntimeError, match=r"n_steps = 0; allowed"):
        pixels.train(task("--n-steps", "0"), 0, tmp_path)


def test_the_table_by_hand():
    row = {"env": "Pong", "variant": "PPO", "goal": 15.0, "target_kl": 0.01, "updates": 100, "updates_over_target": 0}
    first = {"training_return": 18.25, "steps_to_goal": 1_500_000, "mean_return": 20.5}
    second = {"training_return": -3.0, "steps_to_goal": None, "mean_return": 1.0}
    rows = [
        row | first | {"kl_mean": 0.002, "kl_largest": 0.009},
        row | second | {"kl_mean": 0.004, "kl_largest": 0.0099},
    ]
    (line,) = pixels.table(rows).splitlines()[2:]
    assert line == (
        "| Pong | PPO | 15 | 1 of 2 | 18.2, -3 | 1,500k, never | 20.5, 1 | 0.0030 | 0.0099 | 0 of 200 over 0.01 |"
    )


def test_a_task_that_is_not_there_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        pixels.main(["--tasks", "Breakout", "--output", str(tmp_path / "x.json")])
    assert "tasks = 'Breakout'; allowed: DoorKey-5x5, Pong" in capsys.readouterr().err


def test_a_finished_record_is_not_made_again(tmp_path, monkeypatch, capsys):
    made = []

    def train(task, seed, runs):
        made.append((task.variant, seed))
        numbers = dict.fromkeys(("training_return", "mean_return", "kl_mean", "kl_largest"), 0.5)
        row = {"env": task.env, "variant": task.variant, "goal": 0.1, "seed": seed, "steps_to_goal": None}
        return row | numbers | {"target_kl": None, "updates": 1, "updates_over_target": 0}

    monkeypatch.setattr(pixels, "TASKS", (task(),))
    monkeypatch.setattr(pixels, "train", train)
    words = ["--tasks", "Empty", "--seeds", "1", "0", "1", "--processes", "1", "--output", str(tmp_path / "x.json")]
    pixels.main(words)
    assert sorted(made) == [("PPO, small", 0), ("PPO, small", 1)]
    pixels.main(words)
    assert len(made) == 2
    assert "finished already" in capsys.readouterr().out


def test_a_run_of_other_versions_does_not_pass_for_one_of_these(tmp_path):
    directory = tmp_path / "Empty_PPO,_small_0"
    directory.mkdir()
    (directory / "config.json").write_text('{"versions": {"torch": "1.0"}}')
    with pytest.raises(ValueError, match=r"was made with torch 1\.0, not .*; allowed: another --runs"):
        pixels.train(task(), 0, tmp_path)
