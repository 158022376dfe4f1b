"""R15: policies that leave the place they were trained in."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from klrl.agents import AGENTS, PPO
from klrl.agents.export import ExportedPolicy
from klrl.run import checkpoint, evaluate
from klrl.scripts.benchmarks.speed import installed
from klrl.scripts.cli.exporting import difference, some_observations
from torture.case import Case, Outcome
from torture.child import some_actions
from torture.processes import Process, Unexpected, start_child, start_klrl, start_python

_BUILT_IN = ("CartPole-v1", "Acrobot-v1", "MountainCar-v0", "MountainCarContinuous-v0", "Pendulum-v1", "FrozenLake-v1",
             "Blackjack-v1", "Taxi-v4", "CliffWalking-v1")  # fmt: skip
_EXTRA = {"mujoco": ("Hopper-v5", "HalfCheetah-v5"), "Box2D": ("LunarLander-v3",)}
_EPISODES = 3
_STEPS = 200

# The environment's module exists only where it is trained.
_LOCAL = """
import gymnasium as gym, numpy as np

class Local(gym.Env):
    observation_space = gym.spaces.Dict(place=gym.spaces.Box(-1.0, 1.0, (2, 3)), room=gym.spaces.Discrete(4, start=1))
    action_space = gym.spaces.MultiDiscrete([3, 2])

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self._observe(), {}

    def step(self, action):
        self.steps += 1
        return self._observe(), float(action[0]), False, self.steps == 20, {}

    def _observe(self):
        place = self.np_random.uniform(-1.0, 1.0, (2, 3)).astype(np.float32)
        return {"place": place, "room": int(self.np_random.integers(1, 5))}

gym.register("Local-v0", Local)
"""
_TRAIN_LOCAL = """
import sys
from klrl.agents import PPO, PPOConfig
PPO("local:Local-v0", PPOConfig(n_envs=2, n_steps=64), seed=0).learn(256).save(sys.argv[1])
"""

# The exported file alone: neither klrl nor torch, and no environment.
_GRAPH = """
import sys
import numpy as np, onnxruntime
session, given = onnxruntime.InferenceSession(sys.argv[1]), np.load(sys.argv[2])
np.save(sys.argv[3], session.run(["action"], {one.name: given[one.name] for one in session.get_inputs()})[0])
assert not {"klrl", "torch", "gymnasium"} & {name.partition(".")[0] for name in sys.modules}
"""
_ALIKE = 1e-6
"""Largest difference of a graph's actions, relative where they are larger than 1; of choices, of log-probabilities."""


def cases(seed: int) -> list[Case]:
    """Environments of every kind, as far as they are installed."""
    names = [*_BUILT_IN, *(name for package, names in _EXTRA.items() if installed(package) for name in names)]
    names = [name for name in names if name in gym.registry]  # older Gymnasiums have older versions of some
    return [
        *(Case("R15", f"{name} ({agent})", _case(name, agent, seed), name in ("CartPole-v1", "Pendulum-v1"))
          for i, name in enumerate(names) for agent in [("ppo", "trpo", "npg")[i % 3]]),
        Case("R15", "an environment whose module is gone", _gone, quick=True),
        *(Case("R15", f"{name}, its graph alone", _graph(name, seed)) for name in names if installed("onnxruntime")),
    ]  # fmt: skip


def _case(env: str, name: str, seed: int) -> Callable[[Path], Outcome]:
    def run(scratch: Path) -> Outcome:
        with gym.make(env, max_episode_steps=_STEPS) as one:
            spec = one.spec
        assert spec is not None
        config = AGENTS[name].config_class.for_env(None, n_envs=2, n_steps=64)
        agent = AGENTS[name](spec, config, seed=seed).learn(512)
        saved = agent.save(scratch / "saved")
        here = some_actions(agent)
        with gym.make(spec) as one:
            ours = evaluate(agent, one, _EPISODES, seed=seed)
        agent.close()
        problems = [*_predicted(scratch, saved, here), *_evaluated(scratch, saved, ours.returns, seed)]
        return Outcome(problems, trials=2)

    return run


def _graph(env: str, seed: int) -> Callable[[Path], Outcome]:
    """Train, export, and compute the actions of 1,000 observations in a process that has nothing but the file."""

    def run(scratch: Path) -> Outcome:
        agent = PPO(env, PPO.config_class.for_env(None, n_envs=2, n_steps=64), seed=seed).learn(512)
        agent.close()
        written = start_klrl(["export", agent.save(scratch / "saved")], scratch).wait()
        if written.code != 0:
            return Outcome([f"klrl export ended with {written.code}: {written.err[-200:]}"])
        observations, inputs = some_observations(agent, ExportedPolicy(agent).parts, 1_000)
        given: dict[str, Any] = {**inputs}
        np.savez(scratch / "given.npz", **given)
        moved = shutil.move(scratch / "saved" / checkpoint.EXPORT / "policy.onnx", scratch / "alone.onnx")
        words = ["-c", _GRAPH, moved, scratch / "given.npz", scratch / "actions.npy"]
        # A process of its own: a fork of this one has klrl.
        alone = Process([sys.executable, *words], scratch).wait()
        if alone.code != 0:
            return Outcome([f"the graph ended with {alone.code}: {alone.err[-200:]}"])
        mine, its = agent.predict(observations, deterministic=True)[0], np.load(scratch / "actions.npy")
        error = difference(agent, observations, {}, mine, its)
        problems = [] if error <= _ALIKE else [f"actions differ by {error:.1e}"]
        return Outcome(problems, 1, {"largest difference of a graph": error})

    return run


def _gone(scratch: Path) -> Outcome:
    """Trained where the module is; acting, in another process, where it is not."""
    modules, saved = scratch / "modules", scratch / "saved"
    modules.mkdir()
    (modules / "local.py").write_text(_LOCAL)
    trained = start_python(["-c", _TRAIN_LOCAL, saved], scratch, {"PYTHONPATH": str(modules)}).wait()
    if trained.code != 0:
        return Outcome([f"training ended with {trained.code}: {trained.err[-200:]}"])
    with_module = _actions(scratch, saved, "with", {"PYTHONPATH": str(modules)})
    shutil.rmtree(modules)
    return Outcome(_predicted(scratch, saved, with_module))


def _predicted(scratch: Path, saved: Path, here: np.ndarray) -> list[str]:
    """Bit for bit the same, in a process that has made no environment."""
    there = _actions(scratch, saved, "there")
    same = (here.dtype, here.shape, here.tobytes()) == (there.dtype, there.shape, there.tobytes())
    return [] if same else [f"{int((here != there).sum())} other actions"]


def _actions(scratch: Path, saved: Path, name: str, environment: Mapping[str, str] | None = None) -> np.ndarray:
    ended = start_child(["predict", saved, scratch / name], scratch, environment).wait()
    if ended.code != 0:
        raise Unexpected(f"predicting ended with {ended.code}: {ended.err[-200:]}")
    return checkpoint.read(scratch / name)[0]["actions"].numpy()


def _evaluated(scratch: Path, saved: Path, returns: Sequence[float], seed: int) -> list[str]:
    """``klrl evaluate`` gets the returns that evaluate() got where the agent was trained."""
    numbers = scratch / "evaluated.json"
    words: list[str | Path] = ["evaluate", saved, "--episodes", str(_EPISODES), "--seed", str(seed), "--json", numbers]
    ended = start_klrl(words, scratch).wait()
    if ended.code != 0:
        return [f"klrl evaluate ended with {ended.code}: {ended.err[-200:]}"]
    theirs = json.loads(numbers.read_text())["returns"]
    return [] if theirs == list(returns) else [f"returns {theirs} instead of {list(returns)}"]
