"""klrl torture: what its frame makes of cases that pass, fail, raise or never end; and its helpers."""

import json
import os
import signal
import socket
import sys

import pytest
from environments import small_agent
from support import wait_for
from torture import interrupts, malicious_runs, states
from torture.case import Case, Outcome, run_all, table
from torture.forgery import Victim
from torture.known import MODULES
from torture.main import POINTS
from torture.processes import SOCKET, Ended, Fork, Forks, Process, Unexpected, haste, patient, start_child
from torture.runs import Run, finish, succeed

from klrl.agents import PPO
from klrl.run import checkpoint
from klrl.scripts.main import main


def passing(scratch):
    assert scratch.is_dir()
    assert not [*scratch.iterdir()]


def raising(scratch):
    raise OSError("no such\nluck")


def endless(scratch):
    """Its process would outlive it."""
    Process([sys.executable, "-c", "import time; time.sleep(10_000)"], scratch).wait(10_000.0)


FAKES = [
    Case("R1", "passes", passing, quick=True),
    Case("R1", "fails", lambda scratch: "a | b is wrong"),
    Case("R2", "raises", raising),
    Case("R2", "never ends", endless, timeout=0.5),
    Case("R3", "tries often", lambda scratch: Outcome(["one"], 5, {"kills": 3, "largest x": 1.5}), quick=True),
    Case("R3", "tries again", lambda scratch: Outcome([], 5, {"kills": 4, "largest x": 0.5}), quick=True),
]


def test_every_case_has_a_row_whatever_happens_in_it():
    rows = {row["name"]: row for row in run_all(FAKES, processes=2)}
    assert {name for name, row in rows.items() if row["passed"]} == {"passes", "tries again"}
    assert rows["fails"]["detail"] == "a | b is wrong"
    assert rows["raises"]["detail"] == "OSError: no such luck"
    assert rows["never ends"]["detail"] == "not done after 0.5 s"
    assert (rows["tries often"]["trials"], rows["tries often"]["failed"]) == (5, 1)
    text = table([rows[case.name] for case in FAKES], POINTS)
    assert "| 1/2 |" in text
    assert r"FAILED fails: a \| b is wrong" in text
    assert "| 9/10 |" in text
    assert "kills: 7; largest x: 1.5; FAILED tries often: one" in text
    assert len(text.splitlines()) == 2 + 3


@pytest.mark.parametrize(("words", "names", "status"), [
    (["--quick", "--only", "R1"], ["passes"], 0),
    (["--quick"], ["passes", "tries often", "tries again"], 1),
    (["--only", "R1", "R3"], ["passes", "fails", "tries often", "tries again"], 1),
])  # fmt: skip
def test_the_command_writes_rows_and_a_table_and_its_status_says_whether_all_passed(
    words, names, status, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("torture.known.MODULES", (lambda seed: FAKES,))
    with pytest.raises(SystemExit) as stop:
        main(
            [
                "torture",
                *words,
                "--seed",
                "7",
                "--output",
                str(tmp_path / "torture.json"),
                "--keep",
                str(tmp_path / "k"),
            ]
        )
    assert stop.value.code == status
    text = (tmp_path / "torture.json").read_text()
    assert str(tmp_path) not in text
    written = json.loads(text)
    assert written["command"].startswith("klrl torture ")
    assert written["versions"]["klrl"]
    assert [row["name"] for row in written["rows"]] == names
    assert {row["seed"] for row in written["rows"]} == {7}
    assert len([*(tmp_path / "k").iterdir()]) == len(names)
    out = capsys.readouterr().out
    assert f"{len(names)}/{len(names)}  R" in out
    assert "| R1 | kill -9 at random moments" in out


@pytest.mark.parametrize("words", [["--only", "R99"], ["--output", "/nowhere/x.json"], ["--keep", "."]])
def test_bad_input_is_one_line(words, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["torture", *words])
    assert stop.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_real_cases_have_names_of_their_own_and_stand_for_points_of_the_protocol():
    cases = [case for make in MODULES for case in make(0)]
    assert len({(case.protocol, case.name) for case in cases}) == len(cases)
    points = {case.protocol for case in cases}
    assert points <= set(POINTS)
    assert {case.protocol for case in cases if case.quick} == points
    assert [case.name for make in MODULES for case in make(0)] == [case.name for case in cases]


def test_a_process_is_waited_for_killed_and_leaves_nobody_behind(tmp_path):
    program = (
        "import subprocess, time; subprocess.Popen(['sleep', '10000']); print('up', flush=True); time.sleep(10_000)"
    )
    process = Process([sys.executable, "-c", program], tmp_path)
    process.until(lambda: "up" in process.out)
    with pytest.raises(Unexpected, match="in vain"):
        process.until(lambda: False, timeout=0.1)
    assert len(process.survivors()) == 2
    assert process.kill().code == -signal.SIGKILL
    wait_for(lambda: not process.survivors())
    with pytest.raises(Unexpected, match="ended with"):
        process.until(lambda: False)


def test_forks_have_output_status_and_memory_of_their_own(tmp_path):
    saved = small_agent(PPO).save(tmp_path / "saved")
    forks = Forks(tmp_path)
    good, bad = (forks.run(words, 600.0) for words in (["load", saved], ["klrl", "evaluate", tmp_path / "nothing"]))
    late = forks.run(["save-for-ever", tmp_path / "other"], timeout=0.5)
    assert json.loads(good.out)["digest"] == states.digest(states.saved_parts(saved))
    assert good.peak > 10 * 2**20
    assert (bad.code, len(bad.err.splitlines())) == (2, 1)
    assert late.code == -signal.SIGKILL
    assert start_child(["load", saved], tmp_path).wait().out == good.out


def test_a_fork_is_watched_and_sent_signals_while_it_runs(tmp_path):
    forks = Forks(tmp_path)
    fork = forks.start(["save-for-ever", tmp_path / "saved"])
    fork.until(lambda: "\n" in fork.out)
    assert fork.running
    assert fork.survivors() == [fork.pid]
    fork.send(signal.SIGTERM, everyone=True)
    assert fork.wait().code == -signal.SIGTERM
    assert not fork.running
    assert forks.start(["save-for-ever", tmp_path / "saved"]).kill().code == -signal.SIGKILL


def test_forks_go_on_when_somebody_who_asked_for_one_is_gone(tmp_path):
    succeed(Fork(["-c", ""], tmp_path))
    nobody, impatient = (socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(2))
    with nobody, impatient:
        nobody.connect(os.environ[SOCKET])
        impatient.connect(os.environ[SOCKET])
        request = {"words": ["-c", ""], "cwd": str(tmp_path), "environment": dict(os.environ), "path": []}
        with open(os.devnull, "r+b") as nothing:
            socket.send_fds(impatient, [json.dumps(request).encode()], [nothing.fileno()] * 3)
    assert succeed(Fork(["-c", "print('there')"], tmp_path)).out == "there\n"


@pytest.mark.skipif(sys.platform != "linux", reason="descriptors are listed in /proc")
def test_a_fork_has_no_descriptors_but_its_own(tmp_path):
    folder = "/proc/self/fd"
    program = f"import os; print(*(x for x in os.listdir({folder!r}) if os.path.lexists('{folder}/' + x)))"
    other = Fork(["-c", "import time; time.sleep(10_000)"], tmp_path)
    assert succeed(Fork(["-c", program], tmp_path)).out.split() == ["0", "1", "2"]
    other.kill()


def test_states_differ_where_something_differs(tmp_path):
    agent = small_agent(PPO)
    one = states.agent_parts(agent)
    again = states.agent_parts(PPO.load(agent.save(tmp_path / "agent")))
    assert states.difference(one, again) is None
    assert states.digest(one) == states.digest(again)
    moved = states.agent_parts(agent.learn(64))
    assert "parts differ: tensor actor." in states.difference(one, moved)
    assert states.digest(one) != states.digest(moved)


def test_a_run_is_the_same_run_whatever_time_it_took(tmp_path):
    runs = [tmp_path / "a", tmp_path / "b"]
    for run_dir in runs:
        small_agent(PPO, seed=3).learn(192, run_dir=run_dir)
    one, other = map(states.run_parts, runs)
    assert states.difference(one, other) is None
    text = (runs[0] / "metrics.csv").read_text()
    (runs[0] / "metrics.csv").write_text(f"{text.rstrip()}9\n")
    assert "metrics.csv row" in states.difference(states.run_parts(runs[0]), other)


def test_a_forgery_has_right_digests(tmp_path):
    small_agent(PPO).save(checkpoint.step_directory(tmp_path / "run", 0))
    victim = Victim(tmp_path / "run", tmp_path, tmp_path / "marker")
    victim.forge(lambda tensors, state: state.update(seed=99))
    assert PPO.load(tmp_path / "run").seed == 99


def test_a_link_where_a_run_writes_is_seen(tmp_path):
    small_agent(PPO).learn(64, run_dir=tmp_path / "run")
    assert malicious_runs.links(tmp_path / "run") == []
    (tmp_path / "run" / "metrics.csv").rename(tmp_path / "elsewhere")
    (tmp_path / "run" / "metrics.csv").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "run" / "checkpoints" / f"{128:012d}").symlink_to(tmp_path)
    assert malicious_runs.links(tmp_path / "run") == ["metrics.csv", f"{128:012d}"]


def test_every_attack_on_a_run_has_a_name_of_its_own():
    parts = (malicious_runs.of_files, malicious_runs.of_settings, malicious_runs.of_the_last_step)
    names = [name for part in parts for name, _ in part()]
    assert len({*names}) == len(names) > 200


@pytest.mark.parametrize(("moment", "rows", "said", "there", "wrong"), [
    ("row", 4, "SIGUSR1: checkpoint runs/a/checkpoints/000000000384\n", 384, []),
    ("start", 0, "SIGUSR1: nothing to save before the first update ends\n", 0, []),
    ("row", 4, "SIGUSR1: checkpoint runs/a/checkpoints/000000000256\n", 256, ["256 steps saved after 4 updates"]),
    ("row", 4, "SIGUSR1: checkpoint runs/a/checkpoints/000000000512\n", 384, ["512 steps said, newest of 384"]),
    ("row", 4, "SIGUSR1: nothing to save before the first update ends\n", 0, ["nothing saved after 4"]),
    ("write", 1, "SIGUSR1: nothing to save before the first update ends\n", 0, ["nothing saved after 1"]),
    ("start", 0, "SIGUSR1: not saved, No space left on device\n", 0, ["nothing saved after 0"]),
    ("evaluation", 12, "", 1536, ["nothing saved after 12"]),
])  # fmt: skip
def test_a_signal_that_saves_must_have_saved(moment, rows, said, there, wrong):
    trial = interrupts.Trial(signal.SIGUSR1, "sync", moment, everyone=False)
    problems = interrupts.unsaved(trial, Ended(0, f"before\n{said}after\n", "", 1.0), 7, rows, there)
    assert len(problems) == len(wrong)
    assert all(text in problem for text, problem in zip(wrong, problems, strict=True))


def test_a_resume_that_fails_is_a_problem_whatever_numbers_may_differ(tmp_path):
    with haste(True):
        (problem,) = finish(Run("ppo", "CartPole-v1"), tmp_path / "nothing", None, tmp_path)
    assert problem.startswith("klrl resume ended with 2: klrl resume: ")


def test_what_is_too_late_beside_other_tests_is_fifty_times_as_late():
    with haste(True):
        quick = patient(2.0)
    assert (quick, patient(2.0)) == (100.0, 2.0)


@pytest.mark.parametrize("point", POINTS)
def test_the_quick_cases_hold(point, tmp_path):
    words = ["torture", "--quick", "--only", point, "--processes", "1", "--output", str(tmp_path / "torture.json")]
    ended = Fork(["-m", "klrl.scripts.main", *words], tmp_path).wait(1_500.0)
    assert ended.code == 0, ended.out
    rows = json.loads((tmp_path / "torture.json").read_text())["rows"]
    assert rows
    assert all(row["passed"] for row in rows)
