"""Words for messages, and where warnings say they come from: the user's own line."""

import ast
import os
import shutil
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from environments import Counting, Noise, Sampling, box, random_batch, small_agent
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from test_checkpoint import saved_run
from test_conventions import ROOT, SOURCES
from test_evaluation import Endless, Recorder
from test_modes import trunk
from test_reproducibility import Unseeded
from test_vector import Worlds
from test_workers import throw

from klrl.agents import PPO
from klrl.run import Callback, KLBudget, checkpoint, evaluate
from klrl.run.directory import RunDirectory


class At(Callback):
    """Does something after the second update."""

    def __init__(self, do):
        self.do = do

    def on_update_end(self, agent, batch, metrics):
        if agent.n_updates == 2:
            self.do()


def guess(path, monkeypatch):
    small_agent(PPO, partial(Noise, gym.spaces.Box(-np.inf, np.inf, (2,)))).learn(64)


def modes(path, monkeypatch):
    agent = small_agent(PPO)
    agent.critic.trunk = trunk(4, 1, torch.nn.Dropout(0.5))
    agent.learn(64)


def dark(path, monkeypatch):
    small_agent(PPO, partial(Dark, gym.spaces.Box(0, 255, (12, 12, 3), np.uint8))).learn(64)


class Dark(Sampling):
    def _observe(self, terminal):
        observation, info = super()._observe(terminal)
        return np.minimum(observation, 10), info


def stale(path, monkeypatch):
    small_agent(PPO).update(random_batch(small_agent(PPO, seed=1).learn(64)))


def lookalike(path, monkeypatch):
    small_agent(PPO).learn(64, type("Mine", (Callback,), {"on_step": print})())


def no_points(path, monkeypatch):
    small_agent(PPO).learn(64, run_dir=path / os.fsdecode(b"a\xffb"))


def removed(path, monkeypatch):
    keep = RunDirectory(path / "run", checkpoint_every=64)
    small_agent(PPO).learn(256, [keep, At(lambda: shutil.rmtree(path / "run/checkpoints"))])


def renamed(path, monkeypatch):
    keep = RunDirectory(path / "run")
    small_agent(PPO).learn(256, [keep, At(lambda: (path / "run").rename(path / "other"))])


def unlocked(path, monkeypatch):
    def flock(*arguments):
        raise OSError("no locks here")

    monkeypatch.setattr("fcntl.flock", flock)
    small_agent(PPO).learn(64, run_dir=path / "run")


def elsewhere(path, monkeypatch):
    saved = small_agent(PPO, lambda: Unseeded(box(1))).learn(128).save(path / "agent")
    PPO.load(saved, lambda: Unseeded(box(1))).learn(64)


def shared(path, monkeypatch):
    env = gym.make("CartPole-v1")
    agent = small_agent(PPO, env).learn(32)
    env.reset()
    agent.learn(32)


def pool(path, monkeypatch):
    kind = type("Pool", (SyncVectorEnv,), {"__module__": "envpool.python"})
    PPO(kind([Counting] * 2, autoreset_mode=AutoresetMode.SAME_STEP))


def long(path, monkeypatch):
    monkeypatch.setattr("klrl.experience.tape.MOST", 64)
    small_agent(PPO, partial(Counting, length=1000)).learn(64)


def silent(path, monkeypatch):
    small_agent(PPO, Worlds(AutoresetMode.NEXT_STEP)).learn(64)


def no_masks(path, monkeypatch):
    masked = partial(Sampling, box(2), gym.spaces.Discrete(4), masks="info")
    small_agent(PPO, masked, action_mask="info").predict(np.zeros(2))


def cut(path, monkeypatch):
    evaluate(Recorder(), Endless(1), n_episodes=2, max_steps=10)


def damaged(path, monkeypatch):
    saved_run(path, [1.0, 2.0])
    for file in sorted(path.rglob("tensors*"))[-1:]:
        file.write_bytes(b"half")
    checkpoint.read(path)


def budget(path, monkeypatch):
    small_agent(PPO).learn(64, KLBudget(total=1e-9, on_exceed="warn"))


def restarted(path, monkeypatch):
    settings = {"vectorization_mode": "async", "on_worker_failure": "restart", "try_envs": False}
    small_agent(PPO, Once, **settings).learn(64).close()


class Once(Counting):
    """Every fifth episode of it fails."""

    def step(self, action):
        return throw(ValueError("x")) if self.episode == 5 else super().step(action)


WARNING = [
    guess, modes, dark, stale, lookalike, no_points, removed, renamed, unlocked, elsewhere, shared, pool, long, silent,
    no_masks, cut, damaged, budget, restarted,
]  # fmt: skip


@pytest.mark.parametrize("warning", WARNING, ids=lambda warning: warning.__name__)
def test_a_warning_names_the_line_that_called_klrl(warning, tmp_path, monkeypatch):
    with pytest.warns(RuntimeWarning) as caught:
        warning(tmp_path, monkeypatch)
    lines = range(warning.__code__.co_firstlineno, 1 + max(line for *_, line in warning.__code__.co_lines() if line))
    assert {(said.filename, said.lineno in lines) for said in caught} == {(__file__, True)}


def test_no_warning_counts_frames():
    for path in SOURCES:
        calls = {ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)}
        assert path == ROOT / "klrl/text.py" or "warnings.warn" not in calls, path
