"""Experiment trackers: what they are sent, what their failures cost, how a run goes on; the packages themselves."""

import csv
import importlib.util
import json
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from environments import small_agent
from support import parameters, same, without_time
from test_command_line import refused  # noqa: F401

from klrl.agents import PPO
from klrl.integrations.trackers import Tracker
from klrl.run import Callback, RunDirectory, checkpoint

TOTAL = 64 * 3


class Artifact:
    def __init__(self, name, type):
        self.name, self.type, self.files = name, type, {}

    def add_file(self, path, name):
        with open(path, "rb") as file:
            self.files[name] = file.read()


class Fake(ModuleType):
    """A module with the interface of wandb and trackio, which may fail at any of its functions."""

    def __init__(self, name, fails="", error=None):
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)
        self.fails, self.error, self.logs, self.artifacts = fails, error or ConnectionError("no\nroute"), [], []
        self.Settings, self.Artifact = SimpleNamespace, Artifact
        self.Html, self.Video = (lambda path, **_: ("html", path)), (lambda path, **_: ("video", path))

    def __getattr__(self, name):
        def call(*args, **kwargs):
            np.random.random()  # noqa: NPY002  # as any library may
            if name == self.fails:
                raise self.error
            match name:
                case "init":
                    self.init_with, self.finished = kwargs, False
                case "log":
                    self.logs.append((kwargs.get("step"), args[0]))
                case "log_artifact":
                    self.artifacts.append(args[0])
                case "finish":
                    self.finished = True
            return self

        return call


def learn(run_dir, *before, report=None, tracker="wandb", resume=False):
    np.random.seed(0)  # noqa: NPY002
    callbacks = [RunDirectory(run_dir, resume=resume), Tracker(tracker, run_dir=run_dir, report=report), *before]
    if resume:
        return PPO.load(run_dir, "CartPole-v1").resume(callbacks)
    agent = small_agent(PPO)
    try:
        return agent.learn(TOTAL, callbacks)
    except KeyboardInterrupt:
        return agent


def rows(run):
    with (run / "metrics.csv").open(newline="") as file:
        return [{k: float(x) for k, x in row.items() if _is_number(x)} for row in csv.DictReader(file)]


def _is_number(text):
    try:
        return float(text) == float(text)
    except ValueError:
        return False


class Film(Callback):
    """Puts a file where videos are."""

    def __init__(self, run):
        self.folder = run / "videos"

    def on_update_end(self, agent, batch, metrics):
        self.folder.mkdir(exist_ok=True)
        (self.folder / f"step-{agent.num_timesteps}-episode-0.mp4").touch()


class StopAt(Callback):
    def __init__(self, steps):
        self.steps = steps

    def on_update_end(self, agent, batch, metrics):
        if agent.num_timesteps == self.steps:
            raise KeyboardInterrupt


def test_it_is_sent_settings_numbers_videos_files_and_the_report(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", wandb := Fake("wandb"))
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    run = tmp_path / "walk"
    learn(run, Film(run), report=lambda run, file: file.write_text("<html>") > 0)
    begun = wandb.init_with
    assert (begun["project"], begun["name"], begun["resume"]) == ("mine", "walk", "allow")
    assert {"agent": "ppo", "env": "CartPole-v1", "seed": 0, "n_steps": 32, "total_timesteps": TOTAL}.items() <= (
        begun["config"].items()
    )
    *updates, (_, report) = wandb.logs
    films = [run / f"videos/step-{step}-episode-0.mp4" for step, _ in updates]
    assert [numbers.pop("video") for _, numbers in updates] == [("video", str(film)) for film in films]
    assert [step for step, _ in updates] == [64, 128, 192]
    # KL on the next states is told by the rollout after an update.
    assert [numbers for _, numbers in updates] == [
        {name: x for name, x in row.items() if name != "drift/kl_next"} for row in rows(run)
    ]
    assert report == {"report": ("html", str(run / "report.html"))}
    (artifact,) = wandb.artifacts
    assert artifact.name == f"run-{begun['id']}"
    assert {"config.json", "metrics.csv", "episodes.csv", "report.html"} <= set(artifact.files)
    newest = checkpoint.step_directory(run, TOTAL).relative_to(run)
    assert [name for name in artifact.files if name.startswith(f"{newest}/")]
    assert artifact.files["metrics.csv"] == (run / "metrics.csv").read_bytes()
    assert wandb.finished


@pytest.mark.parametrize("tracker", ["wandb", "trackio"])
def test_a_run_that_is_resumed_goes_on_there_and_another_one_does_not(tracker, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, tracker, fake := Fake(tracker))
    learn(tmp_path / "run", StopAt(128), tracker=tracker)
    first = fake.init_with
    assert json.loads((tmp_path / "run/tracker.json").read_text())["tracker"] == tracker
    learn(tmp_path / "run", tracker=tracker, resume=True)
    again = fake.init_with
    assert [step for step, _ in fake.logs] == [64, 128, 192]
    learn(tmp_path / "other", tracker=tracker)
    if tracker == "wandb":
        assert again["id"] == first["id"] != fake.init_with["id"]
    else:
        assert [begun["resume"] for begun in (first, again, fake.init_with)] == ["never", "allow", "never"]
        assert again["name"] == first["name"] == "run"


def test_what_fails_in_the_middle_is_named_once_and_costs_the_training_nothing(tmp_path, monkeypatch):
    np.random.seed(0)  # noqa: NPY002
    plain = small_agent(PPO).learn(TOTAL)
    expected = np.random.random()  # noqa: NPY002
    for fails in ("log", "log_artifact", "finish"):
        for error in (ConnectionError("no\nroute"), SystemExit(1)):
            monkeypatch.setitem(sys.modules, "wandb", Fake("wandb", fails, error))
            run = tmp_path / f"{fails}-{type(error).__name__}"
            with pytest.warns(RuntimeWarning) as told:
                agent = learn(run)
            (said,) = (str(warning.message) for warning in told)
            assert said.startswith(f"wandb gets nothing more: {type(error).__name__}: ")
            assert said.endswith("; the training goes on")
            assert "\n" not in said
            assert same(parameters(agent), parameters(plain))
            assert without_time(agent) == without_time(plain)
            assert np.random.random() == expected  # noqa: NPY002
            assert checkpoint.step_directory(run, TOTAL).is_dir()


def test_a_tracker_that_cannot_begin_is_refused_before_the_first_update_and_only_then(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", Fake("wandb"))
    learn(tmp_path / "run", StopAt(128))
    monkeypatch.setitem(sys.modules, "wandb", Fake("wandb", "init", RuntimeError("no key")))
    with pytest.raises(ValueError, match=r"^track = 'wandb': RuntimeError: no key; allowed: a tracker that "):
        learn(tmp_path / "new")
    with pytest.warns(RuntimeWarning, match=r"no key; the training goes on without it$"):
        assert learn(tmp_path / "run", resume=True).num_timesteps == TOTAL


def test_a_package_that_is_missing_is_refused_in_one_line(refused, monkeypatch):  # noqa: F811
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in ("wandb", "trackio") else find(name))
    for name in ("wandb", "trackio"):
        line = refused("train", "ppo", "--env", "CartPole-v1", "--track", name, "--run-dir", "run")
        said = f"track = {name!r}: {name} is not installed; allowed: pip install 'klrl[{name}]'"
        assert line == f"klrl train ppo: {said}"
    with pytest.raises(ValueError, match=r"^track = 'mlflow'; allowed: wandb, trackio$"):
        Tracker("mlflow")
