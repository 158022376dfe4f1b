"""Networks of one's own on the command line: named, and asked for again by whatever opens the agent."""

import json
import sys

import pytest
from test_command_line import refused  # noqa: F401

from klrl.scripts.main import main

MODULE = """
from torch import nn

def net(n_inputs, n_outputs):
    return nn.Sequential(nn.Linear(n_inputs, 8), nn.SiLU(), nn.Linear(8, n_outputs))

not_one = 3
"""
SMALL = ["--total-timesteps", "128", "--n-envs", "2", "--n-steps", "32", "--batch-size", "32", "--eval-episodes", "1"]
OWN = ["--network", "nets_of_mine:net"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a module of one's own, which no other test has imported."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "nets_of_mine.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("nets_of_mine", None)


@pytest.fixture
def run(folder):
    main(["train", "ppo", "--env", "CartPole-v1", *SMALL, *OWN, "--run-dir", "run"])
    return folder / "run"


OPENING = [
    ["resume", "run"],
    ["evaluate", "run", "--episodes", "1"],
    ["audit", "run", "run", "--episodes", "1"],
    ["distill", "run", "--output", "student", "--n-rounds", "1", "--n-steps", "8", "--episodes", "1"],
    ["dpo", "run", "--output", "tuned", "--n-pairs", "4", "--n-epochs", "1", "--episodes", "1"],
    ["train", "ppo", "--config", "run", "--run-dir", "same"],
    ["train", "ppo", "--env", "CartPole-v1", *SMALL, "--start-from", "run", "--run-dir", "next"],
]


def test_whatever_opens_the_agent_asks_for_its_network_in_one_line(run, refused, monkeypatch):  # noqa: F811
    assert json.loads((run / "config.json").read_text())["config"]["network"] == {"function": OWN[1]}
    monkeypatch.delitem(sys.modules, "nets_of_mine")
    for words in OPENING:
        line = refused(*words)
        said = f"network = {OWN[1]}: functions are not saved; allowed: --network {OWN[1]}"
        assert line.strip().endswith(said), words
        assert "nets_of_mine" not in sys.modules, words  # what is saved is not imported
        main([*words, *OWN])
        monkeypatch.delitem(sys.modules, "nets_of_mine")
    rows = [(run.parent / name / "metrics.csv").read_text().splitlines() for name in ("run", "same")]
    without_time = [[line.split(",")[3:] for line in lines] for lines in rows]
    assert [len(lines) for lines in rows] == [3, 3]
    assert without_time[0][0] == without_time[1][0]
    assert "student" in {path.name for path in run.parent.iterdir()}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--network", "nets_of_mine:absent"],
            "network = 'nets_of_mine:absent': module 'nets_of_mine' has no",
        ),
        (
            ["--network", "nets_of_mine:not_one"],
            "network = 'nets_of_mine:not_one' is a int; allowed: MODULE:NAME",
        ),
        (
            ["--network", "nowhere:net"],
            "network = 'nowhere:net': No module named 'nowhere'; allowed: MODULE:NAME",
        ),
        (["--network", "net"], "network = 'net'; allowed: MODULE:NAME of a function of (n_inputs, n_outputs) that"),
        ([*OWN, "--layer-norm"], "layer_norm = True with network = nets_of_mine:net, which has layers of its own"),
        (["--activation", "siluu"], "activation = 'siluu'; allowed: tanh, relu, celu, "),
    ],
)
def test_words_that_are_no_network_are_refused_in_one_line(words, message, refused, folder):  # noqa: F811
    assert message in refused("train", "ppo", "--env", "CartPole-v1", *SMALL, *words)


def test_a_network_that_is_not_there_is_not_taken(refused, folder):  # noqa: F811
    main(["train", "ppo", "--env", "CartPole-v1", *SMALL, "--run-dir", "run"])
    for words in (["resume", "run"], ["evaluate", "run"]):
        line = refused(*words, *OWN)
        assert "network = nets_of_mine:net; allowed: None, because the saved networks are klrl's" in line
