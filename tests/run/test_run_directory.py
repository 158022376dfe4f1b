"""The files of a run, read back with other tools than those that wrote them."""

import csv
import json
import math
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from environments import Counting, small_agent
from support import full_disk, parameters, same
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from klrl.agents import PPO, TRPO
from klrl.run import Callback, checkpoint
from klrl.run.checkpoint import read
from klrl.run.directory import RunDirectory
from klrl.run.disk import DiskFull
from klrl.run.lock import Lock
from klrl.trust_region import All, Clip, KLConstraint

both = pytest.mark.parametrize("agent_class", [PPO, TRPO])


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def checkpoints(run):
    return sorted(int(p.name) for p in (run / "checkpoints").iterdir())


@both
def test_metrics_csv_is_the_history(tmp_path, agent_class):
    agent = small_agent(agent_class).learn(192, run_dir=tmp_path)
    table = rows(tmp_path / "metrics.csv")
    assert [list(row) for row in table] == [list(metrics) for metrics in agent.history]
    assert [list(row.values()) for row in table] == [[str(x) for x in metrics.values()] for metrics in agent.history]


@both
def test_tensorboard_shows_every_finite_number_of_metrics_csv(tmp_path, agent_class):
    small_agent(agent_class).learn(192, run_dir=tmp_path)
    board = EventAccumulator(str(tmp_path)).Reload()
    shown = {(tag, e.step): e.value for tag in board.Tags()["scalars"] for e in board.Scalars(tag)}
    expected = {
        (name, int(float(row["time/total_timesteps"]))): np.float32(text)
        for row in rows(tmp_path / "metrics.csv")
        for name, text in row.items()
        if name != "train/stop_reason" and not math.isnan(float(text))
    }
    assert shown == expected


class Curriculum(Callback):
    """Bounds the KL from some step on, until another one."""

    def on_update_start(self, agent, batch):
        bounded = 64 <= agent.num_timesteps < 192
        agent.region = All(Clip(0.2), KLConstraint(0.02)) if bounded else Clip(0.2)


class NowAndThen(Callback):
    """Adds other metrics in every update, of every kind."""

    def on_update_end(self, agent, batch, metrics):
        n = agent.n_updates
        metrics |= [{"my/one": n}, {"my/two": np.float32(n) / 2, "my/note": f"update {n}"}, {}][n % 3]


def expected_of(agent):
    """The history by name, as a reader of CSV files sees it."""
    names = dict.fromkeys(name for row in agent.history for name in row)
    return [{name: str(row.get(name, "")) for name in names} for row in agent.history]


def test_a_region_that_is_switched_in_training_moves_no_number_to_another_column(tmp_path):
    agent = small_agent(PPO).learn(64 * 5, callback=Curriculum(), run_dir=tmp_path)
    table = rows(tmp_path / "metrics.csv")
    assert table == expected_of(agent)
    assert [row["drift/kl_target"] for row in table] == ["", "0.02", "0.02", "", ""]
    with (tmp_path / "metrics.csv").open(newline="") as file:
        assert {len(row) for row in csv.reader(file)} == {len(table[0])}


def test_metrics_that_come_and_go_are_the_same_in_csv_tensorboard_and_what_is_loaded(tmp_path):
    agent = small_agent(PPO).learn(64 * 7, callback=NowAndThen(), run_dir=tmp_path)
    table, board = rows(tmp_path / "metrics.csv"), EventAccumulator(str(tmp_path)).Reload()
    assert [row["my/one"] for row in table] == ["", "", "3.0", "", "", "6.0", ""]
    assert [row["my/two"] for row in table] == ["0.5", "", "", "2.0", "", "", "3.5"]
    assert [row["my/note"] for row in table] == ["update 1", "", "", "update 4", "", "", "update 7"]
    assert [(e.step, e.value) for e in board.Scalars("my/one")] == [(192, 3.0), (384, 6.0)]
    assert [(e.step, e.value) for e in board.Scalars("my/two")] == [(64, 0.5), (256, 2.0), (448, 3.5)]
    assert "my/note" not in board.Tags()["scalars"]
    assert repr(PPO.load(tmp_path).history) == repr(agent.history)


@pytest.mark.parametrize("update", [1, 3])
def test_what_is_no_metric_is_left_out_and_everything_else_is_there(tmp_path, update):
    class Late(Callback):
        def on_update_end(self, agent, batch, metrics):
            metrics["my/x"] = 0.5 if agent.n_updates < update else None

    agent = small_agent(PPO)
    with pytest.warns(
        RuntimeWarning, match=r"^left out: metric 'my/x' is None .* \(from Late\.on_update_end\)$"
    ) as said:
        agent.learn(320, callback=Late(), run_dir=tmp_path)
    assert len(said) == 1
    assert [row.get("my/x") for row in agent.history] == [0.5] * (update - 1) + [None] * (6 - update)
    assert checkpoints(tmp_path)[-1] == 320
    assert rows(tmp_path / "metrics.csv") == expected_of(agent)
    assert same(parameters(PPO.load(tmp_path)), parameters(small_agent(PPO).learn(320)))


def test_config_json_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    def interrupt(descriptor):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            small_agent(PPO).learn(64, run_dir=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} <= {"run.lock"}
    small_agent(PPO).learn(64, run_dir=tmp_path)


def test_config_json_says_what_was_run(tmp_path):
    agent = small_agent(PPO, seed=5).learn(64, callback=RunDirectory(tmp_path))
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["agent"] == "ppo"
    assert config["env"]["id"] == "CartPole-v1"
    assert (config["seed"], config["total_timesteps"], config["preset"]) == (5, 64, None)
    assert type(agent.config).from_json(config["config"]) == agent.config
    assert config["versions"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]  # +cpu, +cu130
    assert {"python", "klrl", "gymnasium", "numpy", "mujoco"} <= config["versions"].keys()


def test_no_room_for_config_json_is_told(tmp_path):
    expected = rf"{tmp_path}/config.json needs [\d,]+ bytes, [\d,]+ are free; allowed: more room, or another directory"
    with full_disk(room=200), pytest.raises(DiskFull, match=expected):
        small_agent(PPO).learn(64, run_dir=tmp_path)


def test_episodes_csv_has_a_row_for_every_episode_of_every_environment(tmp_path):
    small_agent(PPO, lambda: Counting(length=5)).learn(128, run_dir=tmp_path)
    table = [tuple(map(float, row.values())) for row in rows(tmp_path / "episodes.csv")]
    ends = [2 * t for t in range(5, 65, 5)]
    expected = [(steps, 0 + 1 + 2 + 3 + 4, 5, env) for steps in ends for env in (0, 1)]
    assert table == expected
    assert list(rows(tmp_path / "episodes.csv")[0]) == ["total_timesteps", "return", "length", "env_index"]


def test_a_checkpoint_is_written_when_it_is_time_and_at_the_end(tmp_path):
    small_agent(PPO).learn(64 * 7, callback=RunDirectory(tmp_path, checkpoint_every=128, keep=9))
    assert checkpoints(tmp_path) == [128, 256, 384, 448]


class Taken(Callback):
    """Evaluates an update, whose directory somebody else's takes the place of."""

    def __init__(self, run):
        self.run = run

    def on_update_end(self, agent, batch, metrics):
        metrics["eval/mean_reward"] = 1.0
        self.run.rename(self.run.parent / "before")
        self.run.mkdir()


@pytest.mark.filterwarnings("ignore:checkpoint .* was removed during the run")
@pytest.mark.skipif(sys.platform != "linux", reason="a directory is written to by its descriptor in /proc")
def test_no_checkpoint_gets_into_a_directory_that_has_taken_the_runs_name(tmp_path, monkeypatch):
    """The best one is none that does: a suspended process may wake up right before it writes."""
    monkeypatch.setattr(Lock, "lost", lambda self: None)
    run = tmp_path / "run"
    small_agent(PPO).learn(1, callback=[Taken(run), RunDirectory(run)])
    assert not (run / "checkpoints").exists()
    assert read(tmp_path / "before/checkpoints/best")[1]["num_timesteps"] > 0


def test_the_newest_checkpoints_and_the_best_one_are_kept(tmp_path):
    class Falling(Counting):
        """Every episode is one step shorter, and so pays less."""

        def reset(self, **arguments):
            self.length = max(self.length - 1, 1)
            return super().reset(**arguments)

    run = RunDirectory(tmp_path, checkpoint_every=1, keep=2)
    small_agent(PPO, Falling(length=12)).learn(32 * 6, callback=run)
    assert checkpoints(tmp_path) == [32, 160, 192]
    scores = [read(tmp_path / "checkpoints" / f"{steps:012d}")[1]["ep_rew_mean"] for steps in checkpoints(tmp_path)]
    assert scores == [float(row["rollout/ep_rew_mean"]) for row in np.array(rows(tmp_path / "metrics.csv"))[[0, 4, 5]]]


@both
def test_a_checkpoint_holds_the_agent_as_it_was(tmp_path, agent_class):
    agent = small_agent(agent_class).learn(128, run_dir=tmp_path)
    loaded = agent_class.load(tmp_path)
    assert loaded.num_timesteps == 128
    for a, b in zip(agent.networks.actor_parameters, loaded.networks.actor_parameters, strict=True):
        assert torch.equal(a, b)


def test_a_second_training_keeps_counting(tmp_path):
    agent = small_agent(PPO).learn(64)
    agent.learn(64, run_dir=tmp_path)
    assert [row["time/total_timesteps"] for row in rows(tmp_path / "metrics.csv")] == ["128.0"]
    assert checkpoints(tmp_path) == [128]


def test_nothing_is_written_without_a_run_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small_agent(PPO).learn(64)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["directory", "file"])
def test_a_directory_that_holds_something_is_refused_before_training(tmp_path, kind):
    path = tmp_path if kind == "directory" else tmp_path / "file"
    (tmp_path / "file").write_text("mine")
    agent = small_agent(PPO)
    with pytest.raises(FileExistsError, match=r"run_dir = .* is not empty; allowed: a new or empty directory"):
        agent.learn(64, run_dir=path)
    assert agent.num_timesteps == 0
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


class Blind(Counting):
    """Sees nothing from its first reset on."""

    def reset(self, **kwargs):
        observation, info = super().reset(**kwargs)
        observation[1] = np.nan
        return observation, info


def test_a_first_observation_that_is_not_finite_is_named_and_written_and_nothing_has_begun(tmp_path):
    agent = small_agent(PPO, Blind)
    with pytest.raises(FloatingPointError, match="in step 0 of its episode 0, after 0 steps") as caught:
        agent.learn(64, run_dir=tmp_path / "run")
    file = tmp_path / "run/non-finite.npz"
    assert str(caught.value).endswith(f"; the step is in {file}")
    with np.load(file) as step:
        assert np.isnan(step["next_observation"][:, 1]).all()
    assert [p.name for p in (tmp_path / "run").iterdir()] == [file.name]
    assert agent.training is None
    small_agent(PPO).learn(64, run_dir=tmp_path / "run")  # no run was there


class Asking(Callback):
    """Asks for a checkpoint while one is being written, as a signal may."""

    def __init__(self, keep, monkeypatch):
        self.keep, self.told, self.due = keep, [], []
        write = checkpoint.write
        monkeypatch.setattr(checkpoint, "write", lambda *args: (self.keep.save(self.told.append), write(*args))[1])

    def on_update_end(self, agent, batch, metrics):
        self.due.append(agent.num_timesteps)


def test_who_asks_for_a_checkpoint_while_it_is_written_is_told_when_it_is_there(tmp_path, monkeypatch):
    keep = RunDirectory(tmp_path / "run", checkpoint_every=1)
    asking = Asking(keep, monkeypatch)
    small_agent(PPO).learn(64 * 3, [keep, asking])
    assert [int(path.name) for path in asking.told] == asking.due


class FailLater(Callback):
    """Raises in the second update."""

    def on_epoch_end(self, agent, epoch):
        if agent.n_updates == 1:
            raise ZeroDivisionError


@both
@pytest.mark.parametrize("checkpoint_every", [64, 10**6])
def test_an_exception_inside_an_update_saves_the_last_whole_one(tmp_path, agent_class, checkpoint_every):
    run = RunDirectory(tmp_path, checkpoint_every=checkpoint_every)
    with pytest.raises(ZeroDivisionError):
        small_agent(agent_class).learn(192, callback=[run, FailLater()])
    assert checkpoints(tmp_path) == [64]
    loaded, expected = agent_class.load(tmp_path), small_agent(agent_class).learn(64)
    assert same(parameters(loaded), parameters(expected))
    assert loaded.history[0]["drift/kl"] == expected.history[0]["drift/kl"]
    assert len(rows(tmp_path / "metrics.csv")) == 1


def test_an_exception_inside_an_update_closes_the_files(tmp_path, monkeypatch):
    opened, plain = [], Path.open

    def remember(*arguments, **options):
        opened.append(plain(*arguments, **options))
        return opened[-1]

    monkeypatch.setattr(Path, "open", remember)
    with pytest.raises(ZeroDivisionError):
        small_agent(PPO).learn(192, callback=FailLater(), run_dir=tmp_path)
    writing = [file for file in opened if Path(file.name).suffix == ".csv"]
    assert {Path(file.name).name for file in writing} == {"metrics.csv", "episodes.csv"}
    assert all(file.closed for file in writing)


class DeadAtOnce(gym.Env):
    """Pays NaN in its third step."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (1,))
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        self.steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.steps += 1
        return np.zeros(1, np.float32), float("nan") if self.steps == 3 else 1.0, False, False, {}


def test_a_run_that_died_in_its_first_rollout_does_not_block_its_directory(tmp_path):
    with pytest.raises(FloatingPointError):
        small_agent(PPO, DeadAtOnce).learn(64, run_dir=tmp_path)
    assert (tmp_path / "config.json").exists()
    with pytest.raises(FileNotFoundError, match=r"no saved agent there; its run has saved nothing yet; allowed: klrl"):
        PPO.load(tmp_path)
    again = small_agent(PPO, "CartPole-v1", seed=5).learn(128, run_dir=tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == 5
    assert PPO.load(tmp_path).num_timesteps == again.num_timesteps
    with pytest.raises(FileExistsError, match=r"is not empty; allowed: a new or empty directory \(klrl resume"):
        small_agent(PPO).learn(64, run_dir=tmp_path)


@pytest.mark.parametrize("name", ["metrics.csv", "checkpoints", "notes.txt"])
def test_what_more_than_such_a_run_left_is_never_overwritten(name, tmp_path):
    with pytest.raises(FloatingPointError):
        small_agent(PPO, DeadAtOnce).learn(64, run_dir=tmp_path)
    (tmp_path / name).write_text("mine")
    with pytest.raises(FileExistsError, match="is not empty"):
        small_agent(PPO).learn(64, run_dir=tmp_path)
    assert (tmp_path / name).read_text() == "mine"


def test_a_config_of_somebody_elses_is_no_such_run(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileExistsError, match="is not empty"):
        small_agent(PPO).learn(64, run_dir=tmp_path)
