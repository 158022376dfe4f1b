"""klrl benchmark seeds: which runs are made, some at a time on cores of their own, and what is reported."""

import json
import threading

import pytest

from klrl.scripts.benchmarks import seeds, speed

RESULT = {"cpu_seconds": 2.0, "seconds": 2.0, "peak_mib": 300.0}


@pytest.fixture
def made(monkeypatch):
    """Runs that were asked for, in place of trainings; each waits until as many run as may."""
    jobs, lock, running, most = [], threading.Lock(), set(), []

    def run(job, timeout):
        with lock:
            assert job.place not in running, "two runs share a core"
            running.add(job.place)
            jobs.append(job)
            most.append(len(running))
        together.wait(600)
        with lock:
            running.remove(job.place)
        w = job.workload
        return {**RESULT, "steps": w.updates * w.steps_per_update, "peak_mib": 300.0 + job.seed}

    together = threading.Barrier(2)
    monkeypatch.setattr(speed, "run", run)
    return jobs, most, together


def test_all_seeds_run_two_at_a_time_each_on_its_core(made):
    jobs, most, _ = made
    args = seeds.Seeds(env="CartPole-v1", total_timesteps=10_000, seeds=6)
    row = seeds.at_a_time(args.job("klrl", "envpool"), 6, 2, 60.0)
    assert sorted(job.seed for job in jobs) == [*range(6)]
    assert max(most) == 2
    assert {job.place for job in jobs} == {0, 1}
    assert (row["runs"], row["processes"], row["cpu_seconds"], row["peak_mib"]) == (6, 2, 12.0, 305.0)
    assert row["steps"] == 6 * 10_240  # five updates of 2,048, the first included, of each


def test_the_command_writes_every_number_of_processes_and_the_peer(tmp_path, capsys, monkeypatch):
    calls = []

    def run(job, timeout):
        calls.append((job.library, job.engine, job.seed))
        return {**RESULT, "steps": 2048}

    monkeypatch.setattr(speed, "run", run)
    output = tmp_path / "seeds.json"
    words = ["--env", "CartPole-v1", "--total-timesteps", "4096", "--seeds", "2", "--processes", "1", "2"]
    seeds.main([*words, "--output", str(output)])
    rows = json.loads(output.read_text())["rows"]
    assert [(row["library"], row["runs"], row["processes"], row["steps"]) for row in rows] == [
        ("klrl", 2, 1, 8192),
        ("klrl", 2, 2, 8192),
        (seeds.PEER, 1, 1, 4096),
    ]
    assert sorted(calls) == [("klrl", "envpool", 0)] * 2 + [("klrl", "envpool", 1)] * 2 + [(seeds.PEER, "sync", 0)]
    assert capsys.readouterr().out.count("| klrl, envpool | 2 | ") == 2
    seeds.main([*words, "--output", str(output)])
    assert len(calls) == 5, "it was finished already"


def test_the_share_is_of_the_wall_time_of_the_peers_one_run():
    row = {"library": "klrl", "engine": "sync", "runs": 10, "processes": 2, "seconds": 30.0, "peak_mib": 1.0}
    rows = [row | {"cpu_seconds": 50.0}, row | {"library": seeds.PEER, "seconds": 40.0, "cpu_seconds": 9.0}]
    _, _, ours, theirs = seeds.table(rows).splitlines()
    assert ours == "| klrl, sync | 10 | 2 | 30 | 50 | 1 | 0.75 |"
    assert theirs.endswith("| 1.00 |")
    assert seeds.table(rows[:1]).endswith("| 30 | 50 | 1 |  |")


def test_less_than_two_updates_are_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        seeds.main(["--total-timesteps", "4095", "--output", str(tmp_path / "seeds.json")])
    assert stop.value.code == 2
    said = "total_timesteps = 4095; allowed: at least 4096, two updates"
    assert capsys.readouterr().err == f"klrl benchmark seeds: {said}\n"
