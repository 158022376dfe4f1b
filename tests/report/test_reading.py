"""What a report knows of runs: read from their files, however these were left."""

import json
import math
import os

import numpy as np
import pytest
import torch
from environments import Broken, small_agent
from made_runs import described, rows, write_run
from torch.distributions import Normal

from klrl.agents import PPO, load_agent
from klrl.monitor import DriftMonitor
from klrl.report import read_runs, write
from klrl.report.summary import RESULTS, Group, results
from klrl.run import Callback
from klrl.run.lock import Lock
from klrl.studies import Study
from klrl.studies.outcomes import write_outcome


class Stop(Callback):
    """Ends a training after so many updates, as Ctrl-C does."""

    def __init__(self, updates):
        self.left = updates

    def on_update_end(self, agent, batch, metrics):
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


def test_a_run_is_read_as_it_was_logged(tmp_path):
    agent = small_agent(PPO, seed=3)
    agent.learn(96, run_dir=tmp_path / "run")
    (run,) = read_runs([tmp_path / "run"])
    assert (run.env, run.variant, run.seed, run.agent, run.status) == ("CartPole-v1", "ppo", 3, "ppo", "done")
    numbers = {name for row in agent.history for name, x in row.items() if isinstance(x, float)}
    assert {*run.columns} == numbers
    for name in numbers:
        np.testing.assert_array_equal(run.columns[name], [row[name] for row in agent.history])
    reasons = [row["train/stop_reason"] for row in agent.history]
    assert run.reasons == {reason: reasons.count(reason) for reason in reasons}
    assert (run.resumed, run.notes, run.error) == (0, (), "")
    np.testing.assert_allclose(run.spent, np.cumsum(run.columns["drift/kl"]), rtol=1e-6)


def test_a_resumed_run_is_whole_and_says_that_it_was_continued(tmp_path):
    agent = small_agent(PPO)
    with pytest.raises(KeyboardInterrupt):
        agent.learn(256, Stop(2), run_dir=tmp_path / "run")
    (run,) = read_runs([tmp_path / "run"])
    assert (run.status, run.updates) == ("stopped", 2)
    assert run.error == f"ended after {run.steps[-1]:,.0f} of 256 steps"
    load_agent(tmp_path / "run").resume(run_dir=tmp_path / "run")
    (run,) = read_runs([tmp_path / "run"])
    assert (run.status, run.resumed, run.steps[-1]) == ("done", 1, 256.0)


def test_a_run_with_a_number_that_was_not_finite_has_failed(tmp_path):
    agent = small_agent(PPO, lambda: Broken("reward", 0))
    with pytest.raises(FloatingPointError):
        agent.learn(96, run_dir=tmp_path / "run")
    (run,) = read_runs([tmp_path])
    assert (run.status, run.updates) == ("failed", 0)
    assert "non-finite.npz" in run.error


@pytest.mark.parametrize(
    ("options", "status"),
    [
        ({"kl_budget": 1e-5, "over_budget": "stop"}, "done"),
        ({"kl_budget": 1e5, "over_budget": "stop"}, "stopped"),
        ({"kl_budget": 1e-5, "over_budget": "warn"}, "stopped"),
        ({"kl_budget_length": 1e-5, "over_budget": "stop"}, "done"),
        ({"kl_budget_length": 1e5, "initial_kl_budget": 1e5, "over_budget": "stop"}, "stopped"),
        ({"stop_at_return": -1e6}, "done"),
        ({"stop_at_return": 1e6}, "stopped"),
        ({"stop_at_return": 1e6, "eval_every": 32}, "stopped"),
    ],
)
def test_a_run_that_was_to_end_where_it_did_is_done(options, status, tmp_path):
    history = [row | {"drift/kl_sum": 0.01 * i, "drift/path_length": 0.1 * i} for i, row in enumerate(rows(3), 1)]
    (run,) = read_runs([write_run(tmp_path / "run", history, described(total_timesteps=10**6) | options)])
    assert run.status == status


def test_a_run_that_another_process_writes_is_running(tmp_path):
    write_run(tmp_path / "run", rows(3), described(total_timesteps=10**6))
    lock = Lock(tmp_path / "run")
    assert read_runs([tmp_path])[0].status == "running"
    lock.release()
    assert read_runs([tmp_path])[0].status == "stopped"
    said = {"pid": 2**22 + 1, "host": os.uname().nodename}  # no process has such a number
    (tmp_path / "run/run.lock").write_text(json.dumps(said))
    assert read_runs([tmp_path])[0].status == "stopped"
    (tmp_path / "run/run.lock").write_text(json.dumps(said | {"host": "another"}))
    assert read_runs([tmp_path])[0].status == "running"
    assert (tmp_path / "run/run.lock").exists()


def test_a_run_before_its_first_update_waits(tmp_path):
    path = write_run(tmp_path / "run", [], described())
    (run,) = read_runs([path])
    assert (run.status, run.updates, run.error) == ("waiting", 0, "no update is complete")


@pytest.mark.parametrize("cut", [1, 20, 150])
def test_a_row_that_is_being_written_is_not_there_yet(tmp_path, cut):
    path = write_run(tmp_path / "run", rows(3), described())
    data = (path / "metrics.csv").read_bytes()
    (path / "metrics.csv").write_bytes(data[:-cut])
    (run,) = read_runs([path])
    assert (run.updates, run.notes) == (2, ())


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda line: line.replace(b",", b"", 1), "cells under"),
        (lambda line: b"x" + line, "time/total_timesteps = 'x"),
        (lambda line: b"\xff" + line, "time/total_timesteps = "),
    ],
)
def test_a_damaged_row_is_named_and_those_before_it_are_shown(tmp_path, damage, said):
    path = write_run(tmp_path / "run", rows(4), described())
    lines = (path / "metrics.csv").read_bytes().splitlines(keepends=True)
    lines[3] = damage(lines[3])
    (path / "metrics.csv").write_bytes(b"".join(lines))
    (run,) = read_runs([path])
    assert run.updates == 2
    (note,) = run.notes
    assert note.startswith("metrics.csv, line 4, is not as klrl writes it: ")
    assert said in note
    assert note.endswith("; the 2 updates before it are shown")


@pytest.mark.parametrize(("name", "data"), [("config.json", b"{"), ("config.json", b"[1]"), ("metrics.csv", None)])
def test_a_file_that_cannot_be_read_is_named(tmp_path, name, data):
    path = write_run(tmp_path / "run", rows(2), described())
    (path / name).unlink()
    if data is None:
        (path / name).symlink_to("/dev/zero")
    else:
        (path / name).write_bytes(data)
    (run,) = read_runs([path])
    assert len(run.notes) == 1
    assert run.notes[0].startswith(name)


def test_the_log_of_another_library_needs_no_return_and_no_settings(tmp_path):
    history = [{"drift/kl": 0.1 * i, "drift/kl_target": 0.15} for i in range(3)]
    write_run(tmp_path / "theirs", history)
    (run,) = read_runs([tmp_path / "theirs"])
    assert (run.status, run.variant, run.seed, run.config) == ("log", "theirs", None, {})
    np.testing.assert_array_equal(run.steps, [1, 2, 3])
    np.testing.assert_array_equal(run.over, [False, False, True])
    np.testing.assert_allclose(run.spent, [0.0, 0.1, 0.3])
    assert math.isnan(run.last_tenth)


def test_an_update_is_beyond_its_target_if_it_is_beyond_any_of_its_bounds(tmp_path):
    history = [
        {
            "drift/kl": 0.1,
            "drift/kl_max": x,
            "drift/kl_max_bound": 0.5,
            "drift/kl_cvar": x / 2,
            "drift/kl_cvar_bound": y,
        }
        for x, y in ((0.4, 0.3), (0.6, 0.4), (0.4, 0.1))
    ]
    write_run(tmp_path / "tails", history)
    (run,) = read_runs([tmp_path / "tails"])
    np.testing.assert_array_equal(run.over, [False, True, True])
    np.testing.assert_array_equal(run.beyond("drift/kl_max"), [False, True, False])
    np.testing.assert_array_equal(run.beyond("drift/kl_cvar"), [False, False, True])
    np.testing.assert_array_equal(run.judged, [True] * 3)
    write_run(tmp_path / "free", [{"drift/kl": 9.0}])
    (run,) = read_runs([tmp_path / "free"])
    assert not run.over.any()
    assert not run.judged.any()


def test_the_directory_of_a_drift_monitor_is_a_log(tmp_path):
    mean = torch.zeros(4, 1)
    monitor = DriftMonitor(lambda obs: Normal(mean, 1.0), 0.1, tmp_path / "theirs", notes={"seed": 5})
    for step, moved in ((10, 1.0), (20, 0.2)):
        with monitor.update(torch.ones(4, 1), timesteps=step):
            mean += moved
    assert read_runs([tmp_path])[0].status == "running"
    monitor.close()
    write([tmp_path], tmp_path / "report.html")
    (run,) = read_runs([tmp_path])
    assert (run.status, run.agent, run.seed, run.updates, run.notes) == ("log", "monitored", 5, 2, ())
    np.testing.assert_array_equal(run.steps, [10.0, 20.0])
    for name, column in run.columns.items():
        np.testing.assert_array_equal(column, [row.get(name, math.nan) for row in monitor.history])
    np.testing.assert_allclose(run.columns["drift/kl"], [0.5, 0.02], rtol=1e-6)
    np.testing.assert_array_equal(run.over, [True, False])
    assert math.isnan(run.last_tenth)
    assert "The runs were not trained by klrl." in (tmp_path / "report.html").read_text()


def test_empty_cells_are_gaps_and_columns_of_text_are_no_numbers(tmp_path):
    history = [{"drift/kl": 0.1, "own/note": "a"}, {"drift/kl": 0.2, "eval/mean_reward": 5.0, "own/note": "b"}]
    (run,) = read_runs([write_run(tmp_path / "run", history, described())])
    assert {*run.columns} == {"drift/kl", "eval/mean_reward"}
    np.testing.assert_array_equal(run.column("eval/mean_reward"), [np.nan, 5.0])
    np.testing.assert_array_equal(run.column("drift/kl_next"), [np.nan, np.nan])
    assert not run.over.any()


def test_the_return_at_the_end_is_that_of_the_episodes_of_the_last_tenth(tmp_path):
    episodes = [(100, 1.0, 5, 0), (900, 10.0, 5, 0), (901, 20.0, 5, 1), (1000, 40.0, 5, 0)]
    (run,) = read_runs([write_run(tmp_path / "run", rows(1, steps=1000), described(), episodes)])
    assert run.last_tenth == 30.0


def test_runs_of_a_study_are_found_once_with_what_the_study_says_of_them(tmp_path):
    variants = {"b/1": {}, "a": {"trust_region": "constraint"}}
    study = Study.of(tmp_path / "s", environments={"CartPole-v1": 640}, variants=variants, seeds=(10, 2))
    study.record()
    for run in study.runs[:3]:
        write_run(run.directory, rows(1), described(seed=run.seed))
    outcome = {"status": "done", "config": {}, "versions": {}, "mean_return": 411.4, "curve": [], "updates": 1}
    numbers = ("std_return", "kl_mean", "kl_median_second_half", "kl_largest", "steps_per_second", "judged_by")
    optional = ("target_kl", "last_tenth_return", "last_beta", "last_actor_learning_rate")
    counts = ("num_timesteps", "last_tenth_episodes", "updates_over_target")
    outcome |= dict.fromkeys(("states_over_target", "peak_memory_mib", *numbers), 0.5)
    write_outcome(study.runs[0].directory, outcome | dict.fromkeys(optional) | dict.fromkeys(counts, 1))
    runs = read_runs([tmp_path, study.runs[0].directory])
    first, second, *_ = (results(Group("", "", (run,)))[RESULTS.index("last evaluation")] for run in runs)
    assert first == "411.4\nn = 1"  # the study's, after the training
    assert second == f"{runs[1].column('eval/mean_reward')[-1]:,.1f}\nn = 1"
    assert [run.name for run in runs] == [f"CartPole-v1 {v} seed {s}" for v in ("b/1", "a") for s in (10, 2)]
    assert (runs[3].status, runs[3].error, runs[3].updates) == ("waiting", "no update is complete", 0)


@pytest.mark.parametrize(
    "text", ["[", "seeds = 3", "steps = 3", "seeds = '0-1'\nenvironments = {A = 'x'}\nvariants = []"]
)
def test_a_damaged_study_is_refused_in_one_line(text, tmp_path):
    (tmp_path / "study.toml").write_text(text)
    with pytest.raises(ValueError, match=r"^.*study\.toml.*$"):
        read_runs([tmp_path])


def test_a_study_is_read_without_the_modules_that_it_names(tmp_path):
    study = Study.of(tmp_path / "s", environments={"CartPole-v1": 640}, variants={"a": {}, "b": {"gamma": 0.9}})
    study.record()
    record = tmp_path / "s/study.toml"
    record.write_text(record.read_text().replace('agent = "ppo", trust_region = "clip"', 'agent = "gone:Mine"'))
    assert 'agent = "gone:Mine"' in record.read_text()
    assert [run.name for run in read_runs([tmp_path])] == [run.name for run in study.runs]


def test_variants_are_named_by_what_differs(tmp_path):
    write_run(tmp_path / "1", rows(1), described(target_kl=0.01))
    write_run(tmp_path / "2", rows(1), described(target_kl=0.02))
    write_run(tmp_path / "3", rows(1), described(target_kl=0.02, seed=1))
    write_run(tmp_path / "4", rows(1), described(target_kl=0.02, seed=1))
    named = ["target_kl=0.01", "target_kl=0.02", "target_kl=0.02 (3)", "target_kl=0.02 (4)"]
    assert [run.variant for run in read_runs([tmp_path])] == named


def test_other_settings_never_share_a_name(tmp_path):
    """Also where a name has no room for all of them."""
    for i, gamma in enumerate((0.9, 0.99)):
        other = {"n_steps": 64, "batch_size": 32, "n_epochs": 3} if i else {}
        for j, last in enumerate((0.5, 0.6)):
            write_run(tmp_path / f"{i}{j}", rows(1), described(gae_lambda=gamma, vf_coef=last, seed=j, **other))
    runs = read_runs([tmp_path])
    assert len({run.variant for run in runs}) == 4


def test_what_holds_no_run_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        ValueError, match=r"path = .*missing is not there; allowed: a run directory, or a folder of some"
    ):
        read_runs([tmp_path / "missing"])
    with pytest.raises(ValueError, match=r"path = .*file is a file; allowed: a run directory"):
        read_runs([tmp_path / "file"])
    with pytest.raises(ValueError, match=r"has no config.json or metrics.csv in it or below; allowed: a run directory"):
        read_runs([tmp_path])
