"""Finished parts of long work: taken again by the same command, never where anything is not as it was written."""

import json
import os
import signal
from pathlib import Path

import pytest
from torture.processes import Fork
from torture.runs import succeed

from klrl.scripts.cli.terminal import PlainConsole
from klrl.studies.kept import MOST
from klrl.studies.results import claim, write
from klrl.studies.work import Work

PROGRAM = """
import sys
from pathlib import Path
from klrl.scripts.benchmarks.learning import Task, benchmark
steps = {"a": 16, "b": 32, "c": 64}
tasks = [Task("ppo", "CartPole-v1", 512, space=space, settings={"n_steps": n}) for space, n in steps.items()]
benchmark("learning", [], tasks, "env", ["CartPole-v1"], [0], 1, Path(sys.argv[1]))
"""
# It kills itself when it has said that the first part is done: whoever watched it could come too late.
KILLED = """
import os, signal
from klrl.scripts.cli.terminal import PlainConsole
say = PlainConsole.print
def say_and_die(self, line, *more, **style):
    say(self, line, *more, **style)
    if line.startswith("1/3  "):
        os.kill(os.getpid(), signal.SIGKILL)
PlainConsole.print = say_and_die
"""


def test_a_benchmark_that_was_killed_goes_on_with_what_was_finished(tmp_path):
    def run(path):
        return succeed(Fork(["-c", PROGRAM, path], tmp_path)).out

    killed = Fork(["-c", KILLED + PROGRAM, tmp_path / "made" / "killed.json"], tmp_path).wait()
    assert killed.code == -signal.SIGKILL
    folder = tmp_path / "made" / "killed.json.parts"
    assert not (tmp_path / "made" / "killed.json").exists()
    assert len(list(folder.glob("*.json"))) == 1
    again = run(tmp_path / "made" / "killed.json")
    assert again.startswith(f"1 of 3 parts are finished already ({folder})\n")
    whole = json.loads((tmp_path / "made" / "killed.json").read_text())
    assert [row["space"] for row in whole["rows"]] == ["a", "b", "c"]
    assert not folder.exists()
    run(tmp_path / "whole.json")
    rows = json.loads((tmp_path / "whole.json").read_text())["rows"]
    for row in [*rows, *whole["rows"]]:
        del row["steps_per_second"]
    assert whole["rows"] == rows
    third = run(tmp_path / "made" / "killed.json")
    assert third.startswith(f"{tmp_path / 'made' / 'killed.json'}: finished already; remove this file")
    assert "| ppo | CartPole-v1, a |" in third


@pytest.fixture
def work(tmp_path):
    return Work(tmp_path / "out.json", "klrl benchmark it", {"klrl": "1"}, PlainConsole().print)


OF = {"seed": 0, "lr": 0.1}


def made():
    return {"x": 1.5, "y": [1, 2]}


def again():
    raise AssertionError("made again")


def test_a_part_is_made_once(work):
    assert work.once("part", OF, made) == ({"x": 1.5, "y": [1, 2]}, False)
    assert work.once("part", OF, again) == ({"x": 1.5, "y": [1, 2]}, True)


@pytest.mark.parametrize(
    ("versions", "of"), [({"klrl": "2"}, OF), ({"klrl": "1"}, OF | {"seed": 1}), ({"klrl": "1"}, OF | {"lr": 0.2})]
)
def test_a_part_of_other_settings_or_versions_is_another_one(work, versions, of):
    work.once("part", OF, made)
    other = Work(work.output, work.command, versions, PlainConsole().print)
    assert other.once("part", of, lambda: {"x": 2}) == ({"x": 2}, False)


def damages():
    def edited(file):
        file.write_text(file.read_text().replace("1.5", "9.5"))

    def pipe(file):
        file.unlink()
        os.mkfifo(file)

    def link(file):
        file.rename(file.with_name("elsewhere"))
        file.symlink_to(file.with_name("elsewhere"))

    yield edited
    yield pipe
    yield link
    for text in ("", "{", "[]", "null", '{"of": 1}', '{"of": {}, "row": []}', "[" * 100_000, "\ud800"):
        yield lambda file, text=text: file.write_text(text, errors="surrogatepass")
    yield lambda file: os.truncate(file, MOST + 1)


@pytest.mark.parametrize("damage", [*damages()])
def test_a_part_that_is_not_as_it_was_written_is_named_and_made_again(work, damage, capsys):
    work.once("part", OF, made)
    (file,) = work.folder.iterdir()
    damage(file)
    assert work.once("part", OF, lambda: {"x": 2}) == ({"x": 2}, False)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"part: made again, {file.name} is not as it was written: ")
    assert work.once("part", OF, again) == ({"x": 2}, True)


def test_what_is_not_ours_stays_when_the_parts_go(work):
    work.once("part", OF, made)
    (work.folder / "precious").write_text("years of work")
    work.save('{"command": "klrl benchmark it", "versions": {"klrl": "1"}}')
    assert [path.name for path in work.folder.iterdir()] == ["precious"]
    assert work.finished() == {"command": "klrl benchmark it", "versions": {"klrl": "1"}}


@pytest.mark.parametrize("text", ["", "[]", '{"command": "another"}', '{"command": "klrl benchmark it"}'])
def test_an_output_of_something_else_is_not_finished(work, text):
    work.output.write_text(text)
    assert work.finished() is None


def full(descriptor):
    raise OSError("no room")


def test_an_output_is_claimed_without_a_trace_and_written_in_one_step(tmp_path, monkeypatch):
    claim(tmp_path / "new")
    assert not any(tmp_path.iterdir())
    (tmp_path / "old").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no room"):
        write(tmp_path / "old", "new")
    monkeypatch.undo()
    assert (tmp_path / "old").read_text() == "old"
    write(tmp_path / "link", "new ‖")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "old").read_text(encoding="utf-8") == "new ‖"
    write(Path("/dev/null"), "gone")
    assert Path("/dev/null").is_char_device()


@pytest.mark.parametrize(
    ("path", "message"),
    [(".", "is a directory; allowed: a file"), ("missing/x.json", "no directory .*missing; allowed: a file in one")],
)
def test_an_output_that_cannot_be_written_is_refused_before_the_work(tmp_path, path, message):
    with pytest.raises(OSError, match=f"^json = .*{message}"):
        claim(tmp_path / path, "json")
