"""klrl benchmark scaling: a tiny run of the real command, its figures, and what it leaves out."""

import contextlib
import io
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import pytest
from forked_measurements import Forked
from matplotlib.image import imread

from klrl.scripts.benchmarks import scaling, scaling_measurements, speed
from klrl.scripts.benchmarks.scaling_measurements import Measurements
from klrl.scripts.benchmarks.scaling_report import summarise, table
from klrl.scripts.benchmarks.timers import PARTS
from klrl.scripts.benchmarks.workload import Workload
from klrl.scripts.cli.terminal import PlainConsole
from klrl.scripts.main import main
from klrl.studies.work import Work

TINY = ["--n-envs", "2", "--n-steps", "32", "--batch-size", "16", "--critic-batch-size", "16", "--n-epochs", "1"]
TINY += ["--n-critic-updates", "1", "--hidden-sizes", "8", "8", "--updates", "2", "--timed-steps", "128"]
TINY += ["--max-seconds", "1000"]
TINY += ["--env-counts", "1", "2", "--widths", "8", "16", "--batches", "64", "128", "--repeats", "1"]
ON_BATCHES = ["ppo", "trpo", "trpo, every 5th state", "trpo, 2,048 states at a time"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The command's output, its JSON and the folder of its files, from one real run."""
    path, said = tmp_path_factory.mktemp("scaling") / "made" / "scaling.json", io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        patch.setattr(speed, "subprocess", Forked)
        main(["benchmark", "scaling", *TINY, "--output", str(path)])
    return said.getvalue(), json.loads(path.read_text()), path.parent


def test_every_point_of_every_axis_is_there(tiny):
    _, record, _ = tiny
    points = [(row["axis"], row["value"], row["curve"]) for row in record["summary"]]
    expected = [("n_envs", n, curve) for n in (1, 2) for curve in ("ppo", "trpo")]
    expected += [("width", n, curve) for n in (8, 16) for curve in ("ppo", "trpo")]
    expected += [("batch", n, curve) for n in (64, 128) for curve in ON_BATCHES]
    assert points == expected
    assert record["skipped"] == []
    assert record["command"].startswith("klrl benchmark scaling --n-envs 2")
    assert {"klrl", "torch", "gymnasium", "matplotlib"} <= set(record["versions"])
    assert record["machine"]["cpu_count"] >= 1


def test_each_point_changes_one_thing_and_is_measured_once(tiny):
    _, record, _ = tiny
    made = [
        (r["algorithm"], r["n_envs"], r["n_steps"], r["hidden_sizes"], r["updates"], r["settings"])
        for r in record["measurements"]
    ]
    expected = [(a, n, 64 // n, [8, 8], 2, {}) for n in (1, 2) for a in ("ppo", "trpo")]
    expected += [(a, 2, 32, [16, 16], 1, {}) for a in ("ppo", "trpo")]  # twice as wide counts as twice the steps
    variants = [{"sub_sampling_factor": 5}, {"fisher_batch_size": 2048}]
    expected += [("trpo", 2, 32, [8, 8], 2, settings) for settings in variants]
    expected += [(a, 2, 64, [8, 8], 1, {}) for a in ("ppo", "trpo")]
    expected += [("trpo", 2, 64, [8, 8], 1, settings) for settings in variants]
    assert made == expected
    for row in record["measurements"]:
        assert row["steps"] == row["n_envs"] * row["n_steps"] * row["updates"]
        assert row["steps_per_second"] == pytest.approx(row["steps"] / row["seconds"])
        assert row["process_seconds"] > row["seconds"]
        assert 10 < row["peak_mib"] < 10_000


def test_the_phases_add_up_and_hold_the_parts_within_the_update(tiny):
    _, record, _ = tiny
    for row in record["summary"]:
        parts = {name: value["median"] for name, value in row["parts_us_per_step"].items()}
        whole = row["us_per_step"]["median"]
        assert whole == pytest.approx(1e6 / row["steps_per_second"]["median"])
        assert parts["stepping"] + parts["acting"] + parts["update"] == pytest.approx(whole)
        within = ["minibatch steps"] if row["algorithm"] == "ppo" else ["Fisher products", "critic"]
        assert list(parts) == ["stepping", "acting", "update", *within]
        assert min(parts.values()) > 0.0
        assert sum(parts[name] for name in within) < parts["update"]


def test_there_is_a_figure_of_every_axis_with_something_in_it(tiny):
    output, record, folder = tiny
    names = [f"scaling-{axis}.png" for axis in ("n_envs", "width", "batch")]
    assert sorted(path.name for path in folder.iterdir()) == sorted([*names, "scaling.json"])
    for name in names:
        image = imread(folder / name)
        assert min(image.shape[:2]) > 500
        assert 0.01 < (image[..., :3].min(-1) < 0.5).mean() < 0.5  # ink on paper
        assert str(folder / name) in output
    assert table(record["summary"]) in output


def test_the_summary_by_hand():
    (point, *_) = scaling.plan(scaling.Scaling(axes=("n_envs",), algorithms=("ppo",), env_counts=(4,)))
    assert (point.job.workload.n_envs, point.job.workload.n_steps) == (4, 512)
    shares = {"environments": 0.25, "storing steps": 0.25, "acting": 0.25, "minibatch steps": 0.125, "other": 0.125}
    shares |= {part: 0.0 for part in PARTS if part not in shares}
    rows = [{"steps_per_second": speed, "peak_mib": speed, "shares": shares} for speed in (1000.0, 250.0, 500.0)]
    (row,) = summarise([(point, rows), (point, [])])
    assert row["us_per_step"] == {"median": 2000.0, "min": 1000.0, "max": 4000.0}
    medians = {name: value["median"] for name, value in row["parts_us_per_step"].items()}
    assert medians == {"stepping": 1000.0, "acting": 500.0, "update": 500.0, "minibatch steps": 250.0}
    assert row["peak_mib"] == {"median": median([1000.0, 250.0, 500.0]), "min": 250.0, "max": 1000.0}
    assert row["repeats"] == 3


class Machine:
    """Stands in for the processes: a clock, and what each measurement takes."""

    def __init__(self, monkeypatch, seconds=lambda job: 1.0, mib=lambda job: 100.0):
        self.now, self.jobs = 0.0, []
        self.seconds, self.mib = seconds, mib
        monkeypatch.setattr(scaling_measurements, "run", self.run)
        monkeypatch.setattr(scaling_measurements.time, "monotonic", lambda: self.now)

    def run(self, job, timeout):
        self.jobs.append(job)
        self.now += min(timeout, self.seconds(job))
        if self.seconds(job) > timeout:
            raise RuntimeError(f"not done after {timeout:g} s")
        return {"steps_per_second": 1.0, "peak_mib": self.mib(job)}


def take(repeats=1, until=1e9, max_mib=1e9, max_seconds=1e9, **settings):
    points = scaling.plan(scaling.Scaling(algorithms=("ppo",), **settings))
    with tempfile.TemporaryDirectory() as folder:
        work, console = Work(Path(folder) / "scaling.json", "", {}, print), PlainConsole()
        measurements = Measurements(work, console, max_mib=max_mib, max_seconds=max_seconds)
        for repeat in range(repeats):
            measurements.take(points, repeat, until=until)
    return measurements, points


BATCHES = (2048, 4096, 8192, 16384)


def test_points_that_need_too_much_memory_are_skipped_with_a_line(monkeypatch, capsys):
    machine = Machine(monkeypatch, mib=lambda job: 100.0 + job.workload.steps_per_update / 64)
    measurements, _ = take(repeats=2, max_mib=400.0, axes=("batch",), batches=BATCHES)
    assert [(job.workload.steps_per_update, job.seed) for job in machine.jobs] == [
        (batch, seed) for seed in (0, 1) for batch in BATCHES[:3]
    ]
    assert [row["value"] for row in measurements.skipped] == [16384]
    assert "ppo, batch 16,384: skipped: up to 456 MiB expected, over --max-gib" in capsys.readouterr().out


def test_points_that_take_too_long_are_skipped_and_so_are_larger_ones(monkeypatch, capsys):
    machine = Machine(monkeypatch, seconds=lambda job: 1.0 if max(job.workload.hidden_sizes) < 512 else 1e6)
    take(max_seconds=50.0, axes=("width",), widths=(64, 512, 1024, 2048))
    assert [job.workload.hidden_sizes for job in machine.jobs] == [(64, 64), (512, 512)]
    lines = [line for line in capsys.readouterr().out.splitlines() if "skipped" in line]
    assert lines == [
        "ppo, width 512: skipped: not done after 50 s",
        "ppo, width 1,024: skipped: ppo, width 512 was not measured",
        "ppo, width 2,048: skipped: ppo, width 1,024 was not measured",
    ]


def test_every_point_is_measured_once_and_repeats_end_with_the_minutes(monkeypatch, capsys):
    machine = Machine(monkeypatch, seconds=lambda job: job.workload.steps_per_update / 2048)
    measurements, points = take(repeats=3, until=16.5, axes=("batch",), batches=BATCHES)
    assert [len(measurements.of(point)) for point in points] == [2, 1, 1, 1]
    assert machine.now == 16.0
    assert "repeat 2: 3 points left out, because they would end too late (--minutes)" in capsys.readouterr().out


def test_points_that_are_on_several_axes_are_measured_once(monkeypatch):
    machine = Machine(monkeypatch)
    _, points = take(repeats=2, env_counts=(8, 16), widths=(64,), batches=(2048,))
    assert len(points) == 4
    assert [(job.workload.n_envs, job.seed) for job in machine.jobs] == [(8, 0), (16, 0), (8, 1), (16, 1)]


def test_large_points_have_fewer_updates():
    points = scaling.plan(scaling.Scaling(algorithms=("ppo",)))
    updates = {(point.axis, point.value): point.job.workload.updates for point in points}
    assert [updates["n_envs", n] for n in (1, 256)] == [4, 4]
    assert [updates["width", n] for n in (64, 128, 256, 1024)] == [4, 2, 1, 1]
    assert [updates["batch", n] for n in (2048, 4096, 8192, 131072)] == [4, 2, 1, 1]
    assert all(p.job.workload.steps_per_update == 2048 for p in points if p.axis != "batch")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--env", "CartPol-v1"], "env = 'CartPol-v1': unknown; did you mean CartPole-v1"),
        (["--axes", "depth"], "n_envs"),
        (["--axes"], "axes = (); allowed: one or more, each once"),
        (["--widths", "0"], "widths = (0,); allowed: a tuple, each an integer >= 1"),
        (["--widths", "64", "64"], "widths = (64, 64); allowed: one or more, each once"),
        (["--hidden-sizes"], "hidden_sizes = (); allowed: one or more"),
        (["--env-counts", "3"], "env_counts = (3,); allowed: divisors of n_envs * n_steps = 2048"),
        (["--batches", "2050"], "batches = (2050,); allowed: multiples of n_envs = 8"),
        (["--batches", "2080"], "batch_size = 64; allowed: divisors of n_envs * n_steps = 2080"),
        (["--minutes", "0"], "minutes = 0.0; allowed: a number > 0"),
        (["--output", "/dev/null/scaling.json"], "/dev/null"),
    ],
)
def test_bad_input_is_refused_in_one_line(words, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    refused(words, message, capsys)
    assert not list(tmp_path.iterdir())


def test_without_matplotlib_one_line_says_what_to_install(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    machine = Machine(monkeypatch)
    refused([], "the figures need matplotlib: pip install 'klrl[plots]'", capsys)
    assert not machine.jobs
    assert not list(tmp_path.iterdir())


def refused(words, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["benchmark", "scaling", *words])
    line = capsys.readouterr().err
    assert stop.value.code == 2
    assert line.startswith("klrl benchmark scaling: ")
    assert line.count("\n") == 1
    assert message in line


def test_help_loads_nothing_heavy_and_the_command_no_figures():
    program = """
import sys
from klrl.scripts.main import main
try:
    main(["benchmark", "--help"])
except SystemExit:
    pass
assert not {"torch", "gymnasium", "numpy", "matplotlib"} & set(sys.modules)
import klrl.scripts.benchmarks.scaling
assert "matplotlib" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "scaling" in done.stdout


def test_the_workload_is_kept_with_the_measurements(tiny):
    kept = tiny[1]["workload"]
    assert Workload(**kept | {"hidden_sizes": tuple(kept["hidden_sizes"])}).steps_per_update == 64
