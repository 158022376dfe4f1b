"""W&B and Trackio themselves, without a network: behind klrl's own callback, and in the experiment of the page for
users of Stable-Baselines3, as it stands there. One process runs all, because their starts are slow.
"""

import contextlib
import csv
import importlib.util
import json
import re
import sqlite3
from pathlib import Path

import pytest
from torture.processes import Fork
from wandb_file import history

from klrl.agents import PPO

PAGE = Path(__file__).parents[2] / "docs/howto/stable-baselines3.md"
PACKAGES = [name for name in ("wandb", "trackio") if importlib.util.find_spec(name)]
needs = {
    name: pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"pip install 'klrl[{extra}]'")
    for name, extra in {"wandb": "wandb", "trackio": "trackio", "moviepy": "video", "onnxscript": "export"}.items()
}
THEN = """
assert run.settings.sync_tensorboard
assert agent.num_timesteps > 1_024 and len(result.returns) == 5, (agent.num_timesteps, result)
assert max(result.lengths) <= 200 and max(result.returns) <= 20, "the wrappers are there"
"""
TRACKED = """
from klrl.agents import PPO, PPOConfig
from klrl.integrations.trackers import Tracker
from klrl.run import RunDirectory

def tracked(name):
    files = f"run_{name}"
    agent = PPO("CartPole-v1", PPOConfig(n_envs=2, n_steps=32), seed=0)
    agent.learn(128, [RunDirectory(files), Tracker(name, run_dir=files)])
"""


def experiment():
    """The page's blocks: an environment, and what is done with it."""
    section = PAGE.read_text(encoding="utf-8").partition("## A whole experiment")[2].partition("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("packages")
    code = TRACKED + "".join(f"tracked({name!r})\n" for name in PACKAGES)
    if "wandb" in PACKAGES and all(map(importlib.util.find_spec, ("moviepy", "onnxscript"))):
        code += "".join(experiment()) + THEN
    offline = {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "HF_HUB_OFFLINE": "1"}
    done = Fork(["-c", code], path, offline | {"TRACKIO_DIR": str(path / "kept")}).wait(900.0)
    assert done.code == 0, done.err
    return path


def rows(run):
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def kept_by_wandb(folder, number):
    """The rows of the run that has so many."""
    found = map(history, folder.glob("wandb/offline-run-*/run-*.wandb"))
    return {len(sent): sent for sent in found}[number]


def check(sent, steps, expected):
    """Numbers are those of metrics.csv, at its steps."""
    assert steps == [int(float(row["time/total_timesteps"])) for row in expected]
    for numbers, row in zip(sent, expected, strict=True):
        for name in ("drift/kl", "train/value_loss", "train/learning_rate", "rollout/ep_rew_mean"):
            assert numbers[name] == pytest.approx(float(row[name]), rel=1e-5), name


@needs["wandb"]
@needs["moviepy"]
@needs["onnxscript"]
def test_the_experiment_of_a_user_of_stable_baselines3(folder):
    _, lines = experiment()
    assert len([line for line in lines.splitlines() if line and "import" not in line]) == 11
    told = rows(folder / "run")
    means = {int(float(row["time/total_timesteps"])): float(row["eval/mean_reward"] or "nan") for row in told}
    evaluated = {step: mean for step, mean in means.items() if mean == mean}
    assert [*evaluated] == [1024, 2048]
    best = PPO.load(folder / "best", schedules={"learning_rate": 1e-3})
    assert best.num_timesteps == max(evaluated, key=evaluated.__getitem__)
    assert [path.name for path in (folder / "videos").iterdir()] == ["step-2048-episode-0.mp4"]
    assert (folder / "windy.onnx").stat().st_size > 1_000
    assert [float(row["train/learning_rate"]) for row in told] == pytest.approx([1e-3, 7.5e-4, 5e-4, 2.5e-4])
    sent = kept_by_wandb(folder, 4)
    check(sent, [row["global_step"] for row in sent], told)


@needs["wandb"]
def test_wandb_has_every_number_at_its_step(folder):
    sent = kept_by_wandb(folder, 2)
    check(sent, [row["_step"] for row in sent], rows(folder / "run_wandb"))


@needs["trackio"]
def test_trackio_has_every_number_at_its_step_and_the_files(folder):
    with contextlib.closing(sqlite3.connect(folder / "kept/klrl.db")) as data:
        found = data.execute("select step, metrics from metrics order by step").fetchall()
        ((manifest,),) = data.execute("select manifest from artifact_versions").fetchall()
    check([json.loads(numbers) for _, numbers in found], [step for step, _ in found], rows(folder / "run_trackio"))
    assert "config.json" in str(manifest)
    assert "metrics.csv" in str(manifest)
