"""klrl benchmark speed: a tiny run of the real command, and what it makes of its measurements."""

import contextlib
import csv
import io
import json
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from dataclasses import asdict, replace
from datetime import date
from importlib.machinery import ModuleSpec
from statistics import median
from types import ModuleType

import pytest
from forked_measurements import Forked
from torture.processes import Fork
from torture.runs import succeed

import klrl
from klrl.scripts.benchmarks import speed, speed_history, timers
from klrl.scripts.benchmarks.measure import BOUND, LIBRARIES
from klrl.scripts.benchmarks.speed_report import summarise, table
from klrl.scripts.benchmarks.workload import Clock, Job, Workload
from klrl.scripts.cli.terminal import PlainConsole
from klrl.scripts.main import main
from klrl.studies.work import Work

TINY = Workload(updates=1, n_envs=2, n_steps=32, batch_size=16, critic_batch_size=16, n_epochs=2, n_critic_updates=3)
FLAGS = ["--updates", "1", "--n-envs", "2", "--n-steps", "32", "--batch-size", "16", "--critic-batch-size", "16"]
FLAGS += ["--n-epochs", "2", "--n-critic-updates", "3", "--envs", "CartPole-v1"]
USUAL = ["--variants"]  # none
MEASURED = {"steps_per_second": 64.0, "steps_per_cpu_second": 128.0, "seconds": 1.0, "peak_mib": 100.0}
# Counts what torch's optimisers and linear layers are asked to do, whichever library asks.
COUNTING = """
import json, sys, torch
from collections import Counter
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_post_hook
from klrl.scripts.benchmarks.measure import LIBRARIES
from klrl.scripts.benchmarks.workload import Clock, Job

def stepped(optimizer, args, kwargs):
    group = optimizer.param_groups[0]
    steps[f"{type(optimizer).__name__} {group['lr']:g} {group['eps']:g}"] += 1

def entered(module, args):
    if isinstance(module, torch.nn.Linear):
        layers.add((module.in_features, module.out_features))
        if torch.is_grad_enabled():
            rows.add(args[0].shape[:-1].numel())

register_optimizer_step_post_hook(stepped)
register_module_forward_pre_hook(entered)
for text in sys.argv[1:]:
    steps, rows, layers = Counter(), set(), set()
    job = Job.from_json(json.loads(text))
    clock = Clock(job.workload)
    LIBRARIES[job.library].run(job, clock)
    assert clock.seconds > 0
    print(json.dumps({"steps": steps, "rows": sorted(rows), "layers": sorted(layers)}))
"""


def job(library, algorithm="ppo", engine="sync", **changes):
    return Job(
        **{"env": "CartPole-v1", "seed": 0, "workload": TINY} | changes,
        library=library,
        algorithm=algorithm,
        engine=engine,
    )


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The command's output and its JSON, from one real run of klrl and Stable-Baselines3."""
    path, said = tmp_path_factory.mktemp("speed") / "made" / "speed.json", io.StringIO()
    words = ["--peers", "stable-baselines3", "--engines", "sync", "--repeats", "1"]
    words += ["--timeout", "1000", "--output", str(path)]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        patch.setattr(speed, "subprocess", Forked)
        main(["benchmark", "speed", *FLAGS, *USUAL, *words])
    return said.getvalue(), json.loads(path.read_text())


def test_every_library_is_measured_and_everything_is_kept(tiny):
    _, record = tiny
    measured = [(r["library"], r["algorithm"], r["profile"]) for r in record["measurements"]]
    assert measured == [
        (BOUND, "", False),
        ("klrl", "ppo", False),
        ("stable-baselines3", "ppo", False),
        ("klrl", "trpo", False),
        ("klrl", "ppo", True),
        ("klrl", "trpo", True),
    ]
    assert record["command"].startswith("klrl benchmark speed --updates 1")
    assert {"klrl", "torch", "gymnasium", "stable-baselines3"} <= set(record["versions"])
    assert record["machine"]["cpu_count"] >= 1
    assert Workload(**record["workload"] | {"hidden_sizes": (64, 64)}) == TINY
    assert record["failed"] == []


def test_speeds_and_ratios_follow_from_the_raw_values(tiny):
    _, record = tiny
    speeds, on_cpu = defaultdict(list), defaultdict(list)
    for row in record["measurements"]:
        assert row["steps"] == (640 if row["library"] == BOUND else 64)
        assert row["steps_per_second"] == pytest.approx(row["steps"] / row["seconds"])
        assert row["steps_per_cpu_second"] == pytest.approx(row["steps"] / row["cpu_seconds"])
        assert 10 < row["peak_mib"] < 10_000
        if not row["profile"]:
            speeds[row["library"], row["algorithm"]].append(row["steps_per_second"])
            on_cpu[row["library"], row["algorithm"]].append(row["steps_per_cpu_second"])
    assert len(record["summary"]) == len(speeds)
    for row in record["summary"]:
        mine = speeds[row["library"], row["algorithm"]]
        assert (row["median"], row["min"], row["max"]) == (median(mine), min(mine), max(mine))
        mine = on_cpu[row["library"], row["algorithm"]]
        assert row["cpu_median"] == median(mine)
        assert row["bound_share"] == pytest.approx(median(mine) / median(on_cpu[BOUND, ""]))
        if row["library"] != BOUND:
            assert row["klrl_ratio"] == pytest.approx(median(on_cpu["klrl", row["algorithm"]]) / median(mine))


def test_the_profile_shares_add_up_and_every_part_of_the_algorithm_is_seen(tiny):
    shares = {row["algorithm"]: row["shares"] for row in tiny[1]["measurements"] if row["profile"]}
    only = {"ppo": {"minibatch steps"}, "trpo": {"policy gradient, CG", "Fisher products", "line search", "critic"}}
    for algorithm, parts in shares.items():
        assert tuple(parts) == timers.PARTS
        assert sum(parts.values()) == pytest.approx(1.0)
        absent = only["trpo" if algorithm == "ppo" else "ppo"]
        assert {part for part, share in parts.items() if share == 0.0} == absent
        assert all(share >= 0.0 for share in parts.values())


def test_the_terminal_shows_both_tables(tiny):
    output, record = tiny
    assert table(record["summary"]) in output
    assert "| environment | algorithm | engine | environments | acting |" in output


@pytest.mark.parametrize(
    ("library", "expected"),
    [
        ("stable-baselines3", {"ppo": ([16], 2 * 4)}),
        ("sb3-contrib", {"trpo": ([16, 64], 3 * 4)}),
        ("tianshou", {"ppo": ([2, 16], 2 * 4), "trpo": ([2, 64], 3)}),  # it acts with gradients switched on
    ],
)
def test_peers_do_the_work_their_docstrings_say(library, expected, tmp_path):
    if not speed.installed(LIBRARIES[library].package):
        pytest.skip(f"{library} is not installed")
    texts = [json.dumps(asdict(job(library, algorithm))) for algorithm in expected]
    done = succeed(Fork(["-c", COUNTING, *texts], tmp_path))
    updates = TINY.warm_up + TINY.updates
    for line, (batches, steps) in zip(done.out.splitlines(), expected.values(), strict=True):
        counted = json.loads(line)
        assert counted["steps"] == {"Adam 0.0003 1e-05": updates * steps}
        assert counted["layers"] == [[4, 64], [64, 1], [64, 2], [64, 64]]
        assert counted["rows"] == batches


def test_cleanrl_is_timed_by_its_printed_lines_with_flags_for_the_same_settings(tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "subprocess", Forked)
    file = tmp_path / "ppo.py"
    file.write_text(
        "import sys\nfor _ in range(2): print('SPS:', 1)\nopen('made', 'w')\nprint(sys.argv, file=sys.stderr)"
    )
    result = speed.run(job("cleanrl", files=(str(file),)), 1000.0)
    assert result["steps_per_second"] == pytest.approx(64 / result["seconds"])
    assert list(tmp_path.iterdir()) == [file]


def test_a_failure_is_its_last_line_and_is_not_tried_again(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(speed, "subprocess", Forked)
    file = tmp_path / "ppo.py"
    file.write_text("print('SPS: 1')")
    failing = [job("cleanrl", files=(str(file),)), job("cleanrl", env="Pendulum-v1", files=(str(file),))]
    console = PlainConsole()
    measurements = speed.Measurements(Work(tmp_path / "s.json", "", {}, print), console, 1000.0)
    measurements.take(failing)
    measurements.take(failing)
    first, second = capsys.readouterr().out.splitlines()
    assert first == "cleanrl sync ppo CartPole-v1: failed: RuntimeError: the library made 1 updates; expected: 2"
    assert second.endswith("ppo.py; allowed for the actions of Pendulum-v1: ppo_continuous_action.py")
    assert measurements.rows == []
    assert set(measurements.failed) == {failing[0].key, failing[1].key}


def test_what_is_not_installed_is_skipped_with_one_line(monkeypatch, capsys, tmp_path):
    done = []

    def run(job, timeout):
        done.append(job)
        return MEASURED

    monkeypatch.setattr(speed, "run", run)
    for module in ("tianshou", "envpool"):
        monkeypatch.setitem(sys.modules, module, None)
    words = ["--peers", "tianshou", "cleanrl", "--repeats", "2", "--no-profile", "--output", str(tmp_path / "s.json")]
    main(["benchmark", "speed", *FLAGS, *USUAL, *words])
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [
        "tianshou: tianshou is not installed; skipped",
        "cleanrl: no --cleanrl FILE; skipped",
        "engine envpool: envpool is not installed; skipped",
    ]
    everything = [(BOUND, ""), ("klrl", "ppo"), ("klrl", "trpo")]
    assert [(j.seed, (j.library, j.algorithm)) for j in done] == [(s, what) for s in (0, 1) for what in everything]


@pytest.fixture
def jobs(monkeypatch):
    """The jobs that a command would measure."""
    done = []
    monkeypatch.setattr(speed, "run", lambda job, timeout: done.append(job) or MEASURED)
    return done


def test_variants_are_klrls_own_runs_beside_the_usual_ones(jobs, monkeypatch, tmp_path):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 1}, raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.setattr("klrl.scripts.benchmarks.speed_variants.available", lambda: ("plain",))
    monkeypatch.setitem(sys.modules, "envpool", found := ModuleType("envpool"))
    found.__spec__ = ModuleSpec("envpool", None)
    words = ["--algorithms", "ppo", "--peers", "--n-steps", "256", "--repeats", "1", "--no-profile"]
    main(["benchmark", "speed", *FLAGS, *words, "--output", str(tmp_path / "s.json")])
    usual, varied = jobs[:4], jobs[4:]
    assert [(j.library, j.engine) for j in usual] == [(x, e) for x in (BOUND, "klrl") for e in ("sync", "envpool")]
    assert all(not j.variant and not j.environment and j.processes == 1 for j in usual)
    assert [(j.library, j.engine, j.variant) for j in varied] == [
        ("klrl", "sync", "numpy"),
        (BOUND, "envpool", "envpool-64"),
        ("klrl", "envpool", "envpool-64"),
        ("klrl", "sync", "two-processes"),
    ]
    assert [(j.environment, j.processes) for j in varied if j.engine == "sync"] == [
        ({"KLRL_NATIVE": "off"}, 1),
        ({}, 2),
    ]
    assert [(j.workload.n_envs, j.workload.n_steps) for j in jobs] == [(2, 256)] * 5 + [(64, 8)] * 2 + [(2, 256)]
    record = json.loads((tmp_path / "s.json").read_text())
    assert [row["variant"] for row in record["summary"]].count("envpool-64") == 2


def test_variants_that_cannot_be_measured_are_skipped_with_one_line(jobs, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0}, raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    monkeypatch.setattr("klrl.scripts.benchmarks.speed_variants.available", tuple)
    monkeypatch.setitem(sys.modules, "envpool", None)
    words = ["--peers", "--engines", "sync", "--repeats", "1", "--no-profile"]
    main(["benchmark", "speed", *FLAGS, *words, "--output", str(tmp_path / "s.json")])
    assert capsys.readouterr().out.splitlines()[:3] == [
        "numpy: the kernel was not built; skipped",
        "envpool-64: envpool is not installed; skipped",
        "two-processes: cores = 1, of which two runs need 2; skipped",
    ]
    assert {j.variant for j in jobs} == {""}


def test_runs_side_by_side_add_their_steps_and_keep_their_own_memory():
    if (os.cpu_count() or 1) < 2:
        pytest.skip("one core")
    result = speed.run(replace(job("klrl"), processes=2, variant="two-processes"), 1000.0)
    assert result["steps"] == 2 * 64
    assert result["steps_per_second"] == pytest.approx(128 / result["seconds"])
    assert result["steps_per_cpu_second"] == pytest.approx(128 / result["cpu_seconds"])
    assert 10 < result["peak_mib"] < 10_000


def test_quick_adds_a_line_to_the_history_and_writes_nothing_else(jobs, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(speed_history, "ROOT", tmp_path / "nowhere")
    monkeypatch.setattr(speed, "missing", lambda name, args: None)
    for _ in range(2):
        main(["benchmark", "speed", "--quick", "--envs", "CartPole-v1", "--repeats", "1"])
    names = [("klrl", "ppo"), ("stable-baselines3", "ppo"), ("klrl", "trpo"), ("sb3-contrib", "trpo")]
    assert [(j.library, j.algorithm) for j in jobs] == 2 * names
    assert {(j.engine, j.variant, j.profile, j.workload.n_envs) for j in jobs} == {("sync", "", False, 8)}
    assert capsys.readouterr().out.splitlines()[-1] == "added to speed-history.csv"
    assert [path.name for path in tmp_path.iterdir()] == ["speed-history.csv"]
    with open("speed-history.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 2
    for line in lines:
        assert (line["commit"], line["repeats"], line["updates"]) == (klrl.__version__, "1", "4")
        assert date.fromisoformat(line["date"]) <= date.today()
        assert line["ppo CartPole-v1 / stable-baselines3"] == line["trpo CartPole-v1 / sb3-contrib"] == "1.000"


def test_a_history_is_written_by_its_columns_names(tmp_path):
    path = tmp_path / "history.csv"
    for line in ({"date": "a", "x": "1"}, {"x": "2", "date": "b"}, {"date": "c, d", "y": "3"}, {"x": "4"}):
        speed_history.append(line, path)
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [["date", "x", "y"], ["a", "1", ""], ["b", "2", ""], ["c, d", "", "3"], ["", "4", ""]]
    path.write_text("date,x\na\n")
    with pytest.raises(ValueError, match=r"history\.csv has lines of different lengths; allowed: those of its header"):
        speed_history.append({"date": "b"}, path)


def test_a_line_names_the_commit_or_the_version(tmp_path, monkeypatch):
    assert speed_history.commit(tmp_path) == klrl.__version__  # not a checkout
    if shutil.which("git"):
        git = ["git", "-C", str(tmp_path), "-c", "user.name=N", "-c", "user.email=e@mail"]
        for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "first"]):
            subprocess.run([*git, *words], check=True)
        asked = [*git, "rev-parse", "HEAD"]
        head = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
        assert speed_history.commit(tmp_path) == head[:12]
        (inside := tmp_path / "site-packages").mkdir()
        assert speed_history.commit(inside) == klrl.__version__  # somebody else's repository
    monkeypatch.setenv("PATH", "")
    assert speed_history.commit(tmp_path) == klrl.__version__


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--envs", "CartPol-v1"], "env = 'CartPol-v1': unknown; did you mean CartPole-v1"),
        (["--repeats", "0"], "repeats = 0; allowed: an integer >= 1"),
        (["--batch-size", "100"], "batch_size = 100; allowed: divisors of n_envs * n_steps = 2048"),
        (["--algorithms", "sac"], "ppo"),
        (["--cleanrl", "missing.py"], "cleanrl = missing.py; allowed: CleanRL's ppo.py"),
        (["--output", "/dev/null/speed.json"], "/dev/null"),
    ],
)
def test_bad_input_is_refused_in_one_line(words, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["benchmark", "speed", "--peers", "sb3-contrib", *words])
    line = capsys.readouterr().err
    assert stop.value.code == 2
    assert line.startswith("klrl benchmark speed: ")
    assert line.count("\n") == 1
    assert message in line
    assert not list(tmp_path.iterdir())


def test_an_unknown_benchmark_is_refused(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["benchmark", "memory"])
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith(
        "klrl benchmark: what = 'memory'; allowed: learning, speed, seeds, atari, accuracy,"
    )


def row(library, speed, env="A-v0", algorithm="ppo", engine="sync", peak=1.0, variant="", wall=None):
    """A measurement of ``speed`` steps per CPU second, by default also of wall time."""
    names = {"library": library, "engine": engine, "algorithm": algorithm, "env": env, "variant": variant}
    return names | {"steps_per_second": wall or speed, "steps_per_cpu_second": speed, "peak_mib": peak}


def test_summary_by_hand():
    rows = [row("klrl", 100.0), row("peer", 10.0), row(BOUND, 1000.0, algorithm=""), row("klrl", 400.0)]
    rows += [row("peer", 40.0), row("klrl", 300.0, peak=7.0), row("klrl", 600.0, engine="envpool")]
    rows += [row("klrl", 50.0, env="B-v0", algorithm="trpo")]
    summary = {(r["library"], r["engine"], r["env"]): r for r in summarise(rows)}
    ours, peer = summary["klrl", "sync", "A-v0"], summary["peer", "sync", "A-v0"]
    assert (ours["median"], ours["min"], ours["max"], ours["peak_mib"], ours["repeats"]) == (
        300.0,
        100.0,
        400.0,
        7.0,
        3,
    )
    assert (peer["median"], peer["klrl_ratio"], peer["bound_share"]) == (25.0, 12.0, 0.025)
    assert summary["klrl", "envpool", "A-v0"]["klrl_ratio"] == 0.5
    assert summary["klrl", "envpool", "A-v0"]["bound_share"] is None
    assert summary[BOUND, "sync", "A-v0"]["klrl_ratio"] is None


def test_ratios_are_of_cpu_time_and_variants_have_rows_of_their_own():
    rows = [row("klrl", 100.0, wall=50.0), row("peer", 10.0, wall=80.0), row(BOUND, 1000.0, algorithm="", wall=9.0)]
    rows += [row("klrl", 25.0, variant="numpy"), row("klrl", 80.0, variant="two-processes", wall=160.0)]
    rows += [row("klrl", 300.0, engine="envpool", variant="envpool-64")]
    rows += [row(BOUND, 600.0, algorithm="", engine="envpool", variant="envpool-64")]
    summary = summarise(rows)
    assert [
        (r["library"], r["variant"], r["median"], r["cpu_median"], r["klrl_ratio"], r["bound_share"]) for r in summary
    ] == [
        (BOUND, "", 9.0, 1000.0, None, 1.0),
        (BOUND, "envpool-64", 600.0, 600.0, None, 1.0),
        ("klrl", "", 50.0, 100.0, 1.0, 0.1),
        ("peer", "", 80.0, 10.0, 10.0, 0.01),
        ("klrl", "numpy", 25.0, 25.0, 4.0, None),
        ("klrl", "two-processes", 160.0, 80.0, 1.25, None),
        ("klrl", "envpool-64", 300.0, 300.0, 1 / 3, 0.5),
    ]
    assert "| klrl, two-processes | A-v0 | ppo | sync | 160 | 160–160 | 80 | 1.25 |  | 1 |" in table(summary)


def test_the_clock_leaves_out_the_warm_up_and_counts_updates():
    clock = Clock(Workload(updates=2, warm_up=1), marks=[10.0, 12.0, 18.0], taken=[2048, 2000, 2048])
    clock.cpu_marks = [1.0, 1.5, 4.0]
    assert (clock.seconds, clock.cpu_seconds) == (8.0, 3.0)
    assert clock.steps == 4048
    with pytest.raises(RuntimeError, match="made 2 updates; expected: 3"):
        _ = Clock(Workload(updates=2), marks=[1.0, 2.0]).seconds


def test_nested_timers_count_exclusive_time(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(timers.time, "perf_counter", lambda: now[0])
    inside = timers.Timers()

    def spend(seconds):
        now[0] += seconds

    inner = inside.around("inner", lambda: spend(3.0))

    def outer():
        spend(1.0)
        inner()
        inner()
        spend(0.5)

    inside.around("outer", outer)()
    assert inside.seconds == {"inner": 6.0, "outer": 1.5}


def test_a_job_survives_json():
    kept = job("klrl", "trpo", files=("a.py",))
    assert Job.from_json(json.loads(json.dumps(asdict(kept)))) == kept
