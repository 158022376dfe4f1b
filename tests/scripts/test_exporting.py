"""``klrl export``: which agent, which file, what it says, and what it refuses."""

import json

import numpy as np
import pytest
import torch
from environments import small_agent
from test_command_line import refused  # noqa: F401

from klrl.agents import PPO
from klrl.run import checkpoint
from klrl.scripts.main import main


def network(n_inputs, n_outputs):
    return torch.nn.Linear(n_inputs, n_outputs)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run of Pendulum with two checkpoints and a best one that is not the newest."""
    monkeypatch.chdir(tmp_path)
    agent = small_agent(PPO, "Pendulum-v1", learning_rate=0.1).learn(64, run_dir="run")
    agent.save(checkpoint.best_directory(tmp_path / "run"))
    agent.learn(256)
    agent.save(tmp_path / "run" / "checkpoints" / f"{agent.num_timesteps:012d}")
    return tmp_path / "run"


pytestmark = pytest.mark.filterwarnings("ignore:.*get_attr")  # torch 2.6, of what it loads


def actions(file, states):
    return torch.export.load(file).module()(torch.from_numpy(states)).numpy()


def test_the_newest_or_the_best_checkpoint_is_written_beside_the_run_and_acts_as_evaluate_would(run, capsys):
    states = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    main(["export", "run", "--format", "torch"])
    said = capsys.readouterr()
    assert said.out.startswith("run/export/policy.pt2: from observation to action, after 320 steps; at most ")
    assert said.out.endswith(" from predict on 1,000 observations\n")
    assert said.err == ""
    main(["export", "run", "--format", "torch", "--best", "--output", "best.pt2"])
    newest, best = PPO.load("run"), PPO.load("run/checkpoints/best")
    files = {"run/export/policy.pt2": newest, "best.pt2": best}
    for file, agent in files.items():
        np.testing.assert_allclose(actions(file, states), agent.predict(states, deterministic=True)[0], atol=1e-5)
    assert not np.allclose(*(actions(file, states) for file in files), atol=1e-3)
    extra = {"klrl": ""}
    torch.export.load("best.pt2", extra_files=extra)
    told = json.loads(extra["klrl"])
    assert (told["inputs"], told["deterministic"]) == (["observation"], True)


def test_a_saved_agent_that_was_exported_can_be_saved_again(tmp_path, monkeypatch, refused):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    agent = PPO("CartPole-v1", PPO.config_class(network=network, n_steps=32), seed=0)
    agent.save("agent")
    named = f"{network.__module__}:network"
    line = refused("export", "agent", "--format", "torch")
    said = f"path = agent: network = {named}: functions are not saved; allowed: --network {named}"
    assert line.strip() == f"klrl export: {said}"
    main(["export", "agent", "--format", "torch", "--network", named, "--stochastic"])
    states = np.zeros((4_000, 4), np.float32)
    torch.manual_seed(0)
    share = float(actions("agent/export/policy.pt2", states).mean())
    assert abs(share - float(agent.distribution(states[0]).probs[1])) < 4.0 * 0.5 / 4_000**0.5
    agent.save("agent")
    assert PPO.load("agent", network=network).num_timesteps == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "nowhere"),
        (["agent", "--format", "tf"], "format = 'tf'; allowed: onnx, torch"),
        (["agent", "--output", "policy.txt"], "output = policy.txt; allowed for onnx: a name that ends in .onnx"),
        (["agent", "--best"], "path = agent has no checkpoint; allowed: a run directory with one"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(words, message, refused, tmp_path):  # noqa: F811
    small_agent(PPO).save(tmp_path / "agent")
    assert message in refused("export", *words)
    assert not [*tmp_path.rglob("export")]
