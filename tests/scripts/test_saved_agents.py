"""Saved agents on the command line: what ``--env`` and ``--trust-region`` add to what was saved, and what they keep."""

import contextlib
import json
import re
import sys

import gymnasium as gym
import pytest
from environments import SMALL

from klrl.agents import NPG, PPO, TRPO
from klrl.run import Callback
from klrl.scripts.evaluate import main as evaluate
from klrl.scripts.resume import main as resume
from klrl.scripts.train import main as train
from klrl.trust_region import All, Clip, KLConstraint, TrustRegion

MODULE = """
from dataclasses import dataclass
import gymnasium as gym
import numpy as np
from klrl.trust_region import Clip, TrustRegion

made = []


class Long(gym.Env):
    observation_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, size=5.0):
        made.append(size)
        self.size = size

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action):
        return np.zeros(1, np.float32), self.size, False, False, {}


@dataclass(frozen=True)
class Mine(Clip):
    clip_range: float = 0.3


mine = Mine()
not_one = 3

gym.register("SavedLong-v0", entry_point=Long, max_episode_steps=50)
gym.register("SavedLong-v1", entry_point=Long, max_episode_steps=7)
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A user's module, and nothing registered before somebody imports it anew."""
    (tmp_path / "saved_long.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    import saved_long

    yield saved_long
    sys.modules.pop("saved_long", None)
    for name in ("SavedLong-v0", "SavedLong-v1"):
        gym.registry.pop(name, None)


class Interrupting(Callback):
    """Ctrl-C in the second update."""

    def on_update_start(self, agent, batch):
        if agent.n_updates == 1:
            raise KeyboardInterrupt


def begun(path, env, agent_class=PPO, **settings):
    agent = agent_class(env, agent_class.config_class(**(SMALL | settings)))
    with pytest.raises(KeyboardInterrupt):
        agent.learn(192, Interrupting(), run_dir=path)
    return path


def other_settings(module):
    spec = gym.spec("SavedLong-v0")
    return gym.envs.registration.EnvSpec(
        spec.id, entry_point=spec.entry_point, kwargs={"size": 2.0}, max_episode_steps=11
    )


def forget(module):
    """As in another process, where the module has not been imported."""
    sys.modules.pop("saved_long")
    for name in ("SavedLong-v0", "SavedLong-v1"):
        gym.registry.pop(name)


def test_an_environment_that_is_named_again_keeps_its_saved_settings(module, tmp_path):
    run = begun(tmp_path / "run", other_settings(module))
    forget(module)
    evaluate([str(run), "--env", "saved_long:SavedLong-v0", "--episodes", "2", "--json", str(tmp_path / "a.json")])
    result = json.loads((tmp_path / "a.json").read_text())
    assert (result["lengths"], result["returns"]) == ([11, 11], [22.0, 22.0])
    assert set(sys.modules["saved_long"].made) == {2.0}
    forget(module)
    resume([str(run), "--env", "saved_long:SavedLong-v0"])
    assert set(sys.modules["saved_long"].made) == {2.0}
    assert json.loads((run / "config.json").read_text())["env"]["kwargs"] == {"size": 2.0}
    resumed = PPO.load(run)
    assert (resumed.num_timesteps, {e.length for e in resumed.episodes}) == (192, {11})


def test_another_id_has_its_own_settings(module, tmp_path):
    run = begun(tmp_path / "run", other_settings(module))
    evaluate([str(run), "--env", "saved_long:SavedLong-v1", "--episodes", "1", "--json", str(tmp_path / "a.json")])
    result = json.loads((tmp_path / "a.json").read_text())
    assert (result["lengths"], result["returns"]) == ([7], [35.0])


@pytest.mark.parametrize("agent_class", [PPO, TRPO, NPG])
@pytest.mark.parametrize("inside", [False, True], ids=["alone", "among others"])
def test_an_agent_whose_trust_region_is_of_an_own_class_is_evaluated_without_it(agent_class, inside, tmp_path, capsys):
    own = Own()
    region = All(own, KLConstraint()) if inside else own
    agent = agent_class("CartPole-v1", agent_class.config_class(**SMALL, trust_region=region)).learn(64)
    agent.save(tmp_path / "a")
    evaluate([str(tmp_path / "a"), "--episodes", "1"])
    assert "on CartPole-v1 after 64 steps: mean return" in capsys.readouterr().out


class Own(TrustRegion):
    """Limits a step's length, and nothing else."""

    def step_length(self, curvature):
        return 0.1


@pytest.mark.parametrize("given", ["saved_long:mine", "saved_long:Mine"])
def test_a_run_with_it_is_resumed_with_the_one_that_is_named(module, given, tmp_path):
    whole = PPO("CartPole-v1", PPO.config_class(**SMALL, trust_region=module.mine)).learn(192)
    run = begun(tmp_path / "run", "CartPole-v1", trust_region=module.mine)
    resume([str(run), "--trust-region", given])
    resumed = PPO.load(run, trust_region=module.mine)
    assert [x.tolist() for x in resumed.actor.parameters()] == [x.tolist() for x in whole.actor.parameters()]


@pytest.mark.parametrize("given", ["saved_long:mine", "saved_long:Mine"])
def test_a_training_takes_a_region_of_ones_own_and_is_that_of_python(module, given, tmp_path):
    settings = ["--n-envs", "2", "--n-steps", "32", "--batch-size", "32", "--preset", "none", "--eval-episodes", "0"]
    run = tmp_path / "run"
    command = ["ppo", "--env", "CartPole-v1", "--trust-region", given, "--total-timesteps", "128", *settings]
    train([*command, "--run-dir", str(run)])
    config = PPO.config_class(n_envs=2, n_steps=32, batch_size=32, trust_region=module.mine)
    same = PPO("CartPole-v1", config, seed=0).learn(128)
    trained = PPO.load(run, trust_region=module.mine)
    assert [x.tolist() for x in trained.actor.parameters()] == [x.tolist() for x in same.actor.parameters()]
    assert json.loads((run / "config.json").read_text())["config"]["trust_region"]["class"] == "Mine"


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ("nowhere:mine", "trust_region = 'nowhere:mine': No module named 'nowhere'; allowed: MODULE:NAME of a Tr"),
        ("saved_long:not_one", "trust_region = 'saved_long:not_one': 'int' object is not callable; allowed: MOD"),
        (".saved_long:mine", "trust_region = '.saved_long:mine'; allowed: MODULE:NAME of a TrustRegion"),
        ("clip+saved_long:mine", "trust_region = 'clip+saved_long:mine'; allowed: MODULE:NAME alone"),
        ("saved_long:", "trust_region = 'saved_long:'; allowed: MODULE:NAME of a TrustRegion"),
    ],
)
def test_a_training_without_such_a_region_is_refused_in_one_line(module, given, line, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        train(["ppo", "--env", "CartPole-v1", "--trust-region", given, "--run-dir", str(tmp_path / "run")])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"klrl train ppo: {line}")
    assert (error.count("\n"), (tmp_path / "run").exists()) == (1, False)


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ([], r"trust region Mine is not klrl's; allowed: --trust-region MODULE:NAME$"),
        (["--trust-region", "nowhere:mine"], r"trust_region = 'nowhere:mine': No module named 'nowhere'; allowed: "),
        (["--trust-region", "saved_long:yours"], r"trust_region = 'saved_long:yours': module 'saved_long' has no "),
        (["--trust-region", "saved_long:not_one"], r"trust_region = 'saved_long:not_one': 'int' object is not call"),
        (["--trust-region", "builtins:dict"], r"trust_region = 'builtins:dict' is a dict; allowed: MODULE:NAME"),
    ],
)
def test_without_a_region_that_can_be_used_one_line_says_what_to_do(module, flags, line, tmp_path, capsys):
    run = begun(tmp_path / "run", "CartPole-v1", trust_region=module.mine)
    before = (run / "metrics.csv").read_bytes()
    with pytest.raises(SystemExit) as stop:
        resume([str(run), *flags])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(line, error.strip())
    assert (run / "metrics.csv").read_bytes() == before


def test_a_region_for_a_run_that_has_one_is_refused(tmp_path, capsys):
    run = begun(tmp_path / "run", "CartPole-v1", trust_region=Clip(0.1))
    with pytest.raises(SystemExit):
        resume([str(run), "--trust-region", "klrl.trust_region:Clip"])
    assert "allowed: only for a run whose trust region is of your own class" in capsys.readouterr().err


@pytest.mark.parametrize("where", ["", "checkpoints/*"])
def test_an_evaluation_names_versions_that_differ_from_those_of_the_training(where, tmp_path):
    run = begun(tmp_path / "run", "CartPole-v1")
    path = next(run.glob(where)) if where else run
    evaluate([str(path), "--episodes", "1"])  # the same ones: no warning, which would be an error here
    config = json.loads((run / "config.json").read_text())
    config["versions"] |= {"torch": "0.0.1", "mujoco": "0.0.2"}
    (run / "config.json").write_text(json.dumps(config))
    with pytest.warns(RuntimeWarning, match=r"returns may differ from those of the training: torch 0\.0\.1 -> "):
        evaluate([str(path), "--episodes", "1"])


@pytest.mark.parametrize("text", ["", "[]", "{", '{"versions": 3}', '{"versions": {"torch": []}}'])
def test_a_config_that_is_none_does_not_stop_an_evaluation(text, tmp_path):
    run = begun(tmp_path / "run", "CartPole-v1")
    (run / "config.json").write_text(text)
    with pytest.warns(RuntimeWarning) if "torch" in text else contextlib.nullcontext():
        evaluate([str(run), "--episodes", "1"])
