"""klrl distill and klrl dpo are killed, really, and the same command comes to the same end, to the bit."""

import json
import re
import shutil
import signal
from typing import ClassVar

import gymnasium as gym
import pytest
from environments import small_agent
from gymnasium.envs.classic_control import CartPoleEnv
from gymnasium.envs.registration import EnvSpec
from torture.processes import Fork

from klrl.agents import PPO
from klrl.run import checkpoint
from klrl.scripts.cli import halfway
from klrl.scripts.main import main

# It kills itself when it has said a line: whoever watched it could come too late.
PROGRAM = """
import builtins, os, signal, sys
from klrl.scripts import main
from klrl.scripts.cli import halfway
halfway.EVERY = 0.0
say, last, words = print, sys.argv[1], sys.argv[2:]
def say_and_die(line, **how):
    say(line, **how)
    if line.startswith(last):
        os.kill(os.getpid(), signal.SIGKILL)
builtins.print = say_and_die
main.main(words)
"""
DISTILL = ["--n-rounds", "4", "--n-envs", "2", "--n-steps", "32", "--n-epochs", "2", "--episodes", "2"]
DPO = ["--n-pairs", "16", "--n-envs", "4", "--n-epochs", "4", "--episodes", "2", "--segment-length", "20"]
VERBS = {
    "distill": (["distill", "AGENT", *DISTILL], "round 2"),
    "distill, teacher's states, reverse": (
        ["distill", "AGENT", *DISTILL, "--states", "teacher", "--direction", "reverse", "--agent", "trpo"],
        "round 3",
    ),
    "dpo": (["dpo", "AGENT", *DPO], "epoch  2"),
    "dpo, saved": (["dpo", "AGENT", *DPO], "tuned:"),
}


@pytest.fixture(scope="module")
def agent(tmp_path_factory):
    return str(small_agent(PPO, "CartPole-v1").learn(64).save(tmp_path_factory.mktemp("halfway") / "agent"))


def killed(words, cwd, line):
    """Let it be killed once it has said a line."""
    assert Fork(["-c", PROGRAM, line, *words], cwd).wait().code == -signal.SIGKILL


@pytest.mark.parametrize("name", VERBS)
def test_the_same_command_goes_on_after_a_kill_and_ends_as_if_there_had_been_none(name, agent, tmp_path, capsys):
    words, line = VERBS[name]
    words = [agent if word == "AGENT" else word for word in words]
    main([*words, "--output", str(tmp_path / "whole"), "--json", str(tmp_path / "whole.json")])
    words += ["--output", str(tmp_path / "again"), "--json", str(tmp_path / "again.json")]
    killed(words, tmp_path, line)
    assert not (tmp_path / "again.json").exists()
    capsys.readouterr()
    main(words)
    assert re.search("^going on after ", capsys.readouterr().out, re.MULTILINE)  # perhaps after one that was cut short
    (ours, _), (theirs, _) = (checkpoint.read(tmp_path / path) for path in ("again", "whole"))
    assert ours.keys() == theirs.keys()
    for name, x in ours.items():  # networks, optimisers, streams, statistics, rows with NaN in them
        assert x.numpy().tobytes() == theirs[name].numpy().tobytes(), name
    again, whole = (json.loads((tmp_path / f"{path}.json").read_text()) for path in ("again", "whole"))
    for record in (again, whole):
        del record["student" if "student" in record else "tuned"]
    assert again == whole
    assert not (tmp_path / "again.parts").exists()


class Listed(CartPoleEnv):
    """All that were made can be looked at."""

    made: ClassVar[list] = []

    def __init__(self):
        super().__init__()
        self.closed = False
        self.made.append(self)

    def close(self):
        self.closed = True


def test_a_command_that_goes_on_closes_every_environment(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(halfway, "EVERY", 0.0)
    monkeypatch.setitem(gym.registry, "Listed-v0", EnvSpec("Listed-v0", Listed, max_episode_steps=50))
    small_agent(PPO, "Listed-v0").save(tmp_path / "agent")
    words = ["distill", str(tmp_path / "agent"), *DISTILL, "--output", str(tmp_path / "out")]
    with monkeypatch.context() as cut:
        cut.setattr("klrl.scripts.cli.distilling._say", interrupt)
        with pytest.raises(SystemExit):
            main(words)
    Listed.made.clear()
    main(words)
    assert "going on after 1 passes" in capsys.readouterr().out
    assert len(Listed.made) > 2
    assert all(env.closed for env in Listed.made)


def interrupt(*arguments):
    raise KeyboardInterrupt


def test_another_command_begins_anew_and_damage_is_left_out(agent, tmp_path, capsys):
    killed(["distill", agent, *DISTILL, "--output", str(tmp_path / "out")], tmp_path, "round 3")
    main(["distill", agent, *DISTILL, "--seed", "1", "--output", str(tmp_path / "out")])
    assert "going on" not in capsys.readouterr().out
    (folder,) = (tmp_path / "out.parts").iterdir()
    (kept,) = folder.iterdir()
    manifest = kept / "state" / "MANIFEST.json"
    manifest.write_text(manifest.read_text().replace("sha256", "sha265", 1))
    shutil.rmtree(tmp_path / "out")
    main(["distill", agent, *DISTILL, "--output", str(tmp_path / "out")])
    assert capsys.readouterr().out.startswith(f"left out: path = {kept / 'state'} is damaged: ")


def test_work_that_is_soon_over_leaves_nothing_but_its_result(agent, tmp_path):
    main(["distill", agent, *DISTILL, "--output", str(tmp_path / "out")])
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
