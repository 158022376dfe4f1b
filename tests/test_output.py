"""Output that never fails: whoever should read it, the work goes on and ends well."""

import contextlib
import io
import os
import subprocess
import sys
import warnings
from pathlib import Path

import gymnasium as gym
import pytest

from klrl.output import lost, plain_warnings, steady
from klrl.scripts.main import main

# A command that works, says so all the time, and leaves a file; then what its output has become.
WORK = """
import sys, warnings
from pathlib import Path
from rich.console import Console
from klrl.output import as_program, lost
def main():
    print("begins ± ‖ ü")
    Console().print("rich ‖")
    for _ in range(100):
        print("x" * 1000)
    print("to error ‖ \\udc80", file=sys.stderr)
    warnings.warn("heard", stacklevel=1)
    Path("file").write_text("not for a terminal")
    print("the end, without a line's end", end="")
    Path("done").write_text(f"{lost(sys.stdout)}")
as_program(main)
"""


def work(tmp_path, redirections, **environment):
    """Its exit status; what it wrote is in ``done``."""
    file = tmp_path / "work.py"
    file.write_text(WORK)
    command = f'"{sys.executable}" "{file}" {redirections}'
    script = f"set -o pipefail; cd '{tmp_path}'; {command}"
    environment = {**os.environ, "PYTHONWARNINGS": "default", **environment}
    return subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "redirections",
    [
        ">/dev/full", ">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-", "2>/dev/full", ">/dev/full 2>&1", "1</dev/null",
        "| head -1 >/dev/null", "| true", "2>&1 | true",
    ],
)  # fmt: skip
def test_whatever_becomes_of_the_output_the_work_is_done_and_nothing_is_said(tmp_path, redirections):
    ended = work(tmp_path, redirections)
    assert ended.returncode == 0
    assert not {"Error", "Traceback", "ignored"} & {*ended.stderr.replace(":", " ").split()}
    full = redirections.startswith(">/dev/full")
    assert ("No space left" in (tmp_path / "done").read_text()) == full
    assert (tmp_path / "file").read_text() == "not for a terminal"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "ascii:strict", "utf-8"])
def test_what_an_encoding_lacks_becomes_an_escape(tmp_path, encoding):
    ended = work(tmp_path, ">out", PYTHONIOENCODING=encoding)
    assert ended.returncode == 0
    name = encoding.partition(":")[0]
    first, second = (tmp_path / "out").read_text(encoding=name).splitlines()[:2]
    expected = "begins ± ‖ ü".encode(name, "backslashreplace").decode(name)
    assert (first, second) == (expected, "rich ‖".encode(name, "backslashreplace").decode(name))
    assert (tmp_path / "out").read_text(encoding=name).endswith("the end, without a line's end")


def test_a_pipe_that_somebody_has_made_non_blocking_gets_everything():
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    data = "".join(f"{i:06d}\n" for i in range(100_000))
    code = "from klrl.output import as_program; as_program(lambda: [print(f'{i:06d}') for i in range(100_000)])"
    with subprocess.Popen([sys.executable, "-c", code], stdout=writing) as process:
        os.close(writing)
        with open(reading, newline="") as file:
            assert file.read() == data
    assert process.returncode == 0


def test_a_warning_that_gymnasium_colours_is_shown_as_plain_text(monkeypatch):
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # for the tests that follow
    monkeypatch.setattr(gym.logger, "min_level", gym.logger.WARN)  # other libraries raise it
    plain_warnings()
    with pytest.warns(UserWarning, match="WARN: old") as caught:
        gym.logger.warn("old\x1b[2J")
    assert str(caught[0].message).startswith("\x1b[33m")
    text = warnings.formatwarning(caught[0].message, UserWarning, "file", 1)
    assert text == "klrl: UserWarning: WARN: old\\x1b[2J\n"


def test_lines_of_others_to_the_same_file_stay_in_order(tmp_path):
    with (tmp_path / "out").open("w") as file:
        ours = steady(file)
        for i in range(3):
            file.write(f"theirs {i}\n")
            ours.write(f"ours {i}\n")
    assert (tmp_path / "out").read_text() == "".join(f"theirs {i}\nours {i}\n" for i in range(3))


def test_a_stream_that_is_no_file_is_left_alone():
    text, memory = io.StringIO(), io.TextIOWrapper(io.BytesIO())
    assert (steady(text), steady(memory)) == (text, memory)
    assert lost(text) is None


def test_what_a_full_disk_takes_no_more_is_known(tmp_path):
    with open("/dev/full", "w") as file:
        ours = steady(file)
        assert ours.write("one\n") == 4
        assert "No space left" in str(lost(ours))
    assert steady(ours) is ours
    assert ours.write("after it was closed\n") == 20


LEARN = """
import sys
from klrl.agents import PPO, PPOConfig
print("begins")
small = dict(n_envs=2, n_steps=32, batch_size=32, actor_hidden_sizes=(4,), critic_hidden_sizes=(4,))
agent = PPO("CartPole-v1", PPOConfig(**small)).learn(4096, progress_bar=True)
print(agent.num_timesteps, file=sys.stderr)
"""


def test_a_progress_bar_that_nobody_watches_ends_no_training():
    script = f"set -o pipefail; \"{sys.executable}\" -c '{LEARN}' | head -1"
    ended = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "begins\n", "4096\n")


def test_an_evaluation_whose_only_result_a_full_disk_lost_says_so(tmp_path, monkeypatch, capsys):
    from klrl.agents import PPO

    path = PPO("CartPole-v1", seed=0).save(tmp_path / "agent")
    with open("/dev/full", "w") as file, contextlib.redirect_stdout(steady(file)):
        with pytest.raises(SystemExit) as stop:
            main(["evaluate", str(path), "--episodes", "1"])
        assert stop.value.code == 1
        main(["evaluate", str(path), "--episodes", "1", "--json", str(tmp_path / "result.json")])
    assert capsys.readouterr().err == "klrl evaluate: stdout: No space left on device; the result is lost\n"
    assert Path(tmp_path / "result.json").stat().st_size > 100
