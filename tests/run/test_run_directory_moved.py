"""A run directory that somebody moves, removes or names oddly under the run."""

import csv
import os
import shutil

import pytest
import torch
from environments import small_agent

from klrl.agents import PPO
from klrl.run import Callback
from klrl.run.directory import RunDirectory
from klrl.run.lock import LOCK
from klrl.run.tensorboard_writer import points


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


class Once(Callback):
    """Does something after the second update."""

    def __init__(self, do):
        self.do = do

    def on_update_end(self, agent, batch, metrics):
        if agent.n_updates == 2:
            self.do()


def trained(run_dir, do):
    """An agent whose run directory met something."""
    return small_agent(PPO).learn(256, Once(do), run_dir=run_dir)


def assert_whole(path, agent):
    """All that a run directory has to have, but for older episodes."""
    assert (path / "config.json").is_file()
    assert [int(float(row["time/total_timesteps"])) for row in rows(path / "metrics.csv")] == [64, 128, 192, 256]
    assert {step for step, _ in points(path)["drift/kl"]} == {64, 128, 192, 256}
    assert torch.equal(PPO.load(path).networks.actor_parameters, agent.networks.actor_parameters)
    assert not (path / LOCK).exists()


def test_a_relative_directory_stays_where_it_was_when_somebody_changes_the_working_directory(tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(tmp_path)
    agent = trained("run", lambda: monkeypatch.chdir(elsewhere))
    assert_whole(tmp_path / "run", agent)
    assert not any(elsewhere.iterdir())


def test_a_directory_that_is_removed_is_named_and_begun_anew(tmp_path):
    with pytest.warns(
        RuntimeWarning, match=r"^run_dir = .*/run was removed while the run was writing there; the run continues"
    ):
        agent = trained(tmp_path / "run", lambda: shutil.rmtree(tmp_path / "run"))
    assert_whole(tmp_path / "run", agent)


def test_a_directory_that_is_renamed_is_named_with_its_new_name(tmp_path):
    with pytest.warns(RuntimeWarning, match=r"/old was renamed to /.*/new while the run was writing there; the run"):
        agent = trained(tmp_path / "old", lambda: (tmp_path / "old").rename(tmp_path / "new"))
    assert_whole(tmp_path / "old", agent)
    assert len(rows(tmp_path / "new" / "metrics.csv")) == 1
    assert not (tmp_path / "new" / LOCK).exists()


def test_a_run_goes_on_nowhere_when_something_else_has_its_place(tmp_path):
    def exchange():
        (tmp_path / "run").rename(tmp_path / "old")
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "precious").write_text("years of work")

    agent = small_agent(PPO)
    with pytest.raises(
        OSError, match=r"/run was renamed to /.*/old while .* cannot continue: run_dir = .* is not empty"
    ):
        agent.learn(256, Once(exchange), run_dir=tmp_path / "run")
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["precious"]
    assert agent.num_timesteps == 128
    assert not (tmp_path / "old" / LOCK).exists()


@pytest.mark.parametrize("update", [2, 4])
def test_checkpoints_that_are_removed_are_named_and_written_again(tmp_path, update):
    class Remove(Callback):
        def on_update_end(self, agent, batch, metrics):
            if agent.n_updates == update:
                shutil.rmtree(tmp_path / "run" / "checkpoints")

    keep = RunDirectory(tmp_path / "run", checkpoint_every=64)
    with pytest.warns(RuntimeWarning, match=r"^checkpoint /.*/0*(64|192) was removed during the run"):
        agent = small_agent(PPO).learn(256, [keep, Remove()])
    assert_whole(tmp_path / "run", agent)


@pytest.mark.parametrize("name", ["x" * 256, "ü" * 128, "a\0b"])
def test_a_name_that_no_file_can_have_is_refused_in_one_line(tmp_path, name):
    with pytest.raises(
        OSError, match=r"^run_dir = .* has a name of (256|3) bytes; allowed: at most 255, none of them z"
    ):
        small_agent(PPO).learn(64, run_dir=tmp_path / "new" / name)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["x" * 255, "ü" * 127, "a\nb", "\x1b[31m", "%s[0-9]*", "-rf"])
def test_a_name_that_a_file_can_have_is_used(tmp_path, name):
    agent = small_agent(PPO).learn(64, run_dir=tmp_path / name)
    assert torch.equal(PPO.load(tmp_path / name).networks.actor_parameters, agent.networks.actor_parameters)


def test_in_a_directory_whose_name_is_no_text_only_tensorboard_is_missing(tmp_path):
    path = tmp_path / os.fsdecode(b"a\xffb")
    with pytest.warns(RuntimeWarning, match=r"UnicodeEncodeError: .*: TensorBoard gets no more points from "):
        agent = small_agent(PPO).learn(64, run_dir=path)
    assert torch.equal(PPO.load(path).networks.actor_parameters, agent.networks.actor_parameters)
    assert (path / "metrics.csv").read_text().count("\n") == 1 + len(agent.history)
