"""klrl train --resume: one command that begins a run, goes on with it, and does nothing once it is finished."""

import pytest
from torture.states import run_parts

from klrl.agents import PPO
from klrl.run import Callback
from klrl.scripts.main import main

FLAGS = ["--env", "CartPole-v1", "--total-timesteps", "256", "--n-envs", "2", "--n-steps", "32", "--batch-size", "16"]
FLAGS += ["--preset", "none", "--eval-episodes", "0", "--checkpoint-every", "64"]


class Stop(Callback):
    """Ends the training by an exception after two updates."""

    def on_update_end(self, agent, batch, metrics):
        if agent.num_timesteps == 128:
            raise RuntimeError("power cut")


def train(run_dir, *more):
    main(["train", "ppo", *FLAGS, "--run-dir", str(run_dir), *more])


def test_it_begins_goes_on_and_ends(tmp_path, capsys, monkeypatch):
    train(tmp_path / "whole")
    learn = PPO.learn
    monkeypatch.setattr(PPO, "learn", lambda self, steps, callbacks: learn(self, steps, [*callbacks, Stop()]))
    with pytest.raises(RuntimeError, match="power cut"):
        train(tmp_path / "run", "--resume")
    monkeypatch.undo()
    capsys.readouterr()
    train(tmp_path / "run", "--resume")
    assert capsys.readouterr().out.startswith(f"resuming {tmp_path / 'run'}: 128 of 256 steps\n")
    assert run_parts(tmp_path / "run") == run_parts(tmp_path / "whole")
    train(tmp_path / "run", "--resume")
    assert capsys.readouterr().out == f"{tmp_path / 'run'}: finished, 256 steps\n"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--seed", "1"], "seed = 0, not 1"),
        (["--gamma", "0.9"], "gamma = 0.99, not 0.9"),
        (["--total-timesteps", "512"], "total_timesteps = 256, not 512"),
        (["--env", "Acrobot-v1"], "env = CartPole-v1, not Acrobot-v1"),
        (["--env-kwargs", "sutton_barto_reward=True"], "env_kwargs = {}, not {'sutton_barto_reward': True}"),
        (["--eval-every", "64", "--eval-episodes", "1"], "eval_every = None, not 64, eval_episodes = 0, not 1"),
        (["--kl-budget", "2"], "kl_budget = None, not 2.0"),
    ],
)
def test_another_run_is_refused(tmp_path, more, message, capsys, finished):
    with pytest.raises(SystemExit) as stop:
        train(finished, "--resume", *more)
    assert stop.value.code == 2
    assert capsys.readouterr().err == (
        f"klrl train ppo: run_dir = {finished} holds another run: {message}; allowed: one of these flags\n"
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    train(run_dir)
    return run_dir


def test_it_needs_a_directory(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", "ppo", *FLAGS, "--resume"])
    assert stop.value.code == 2
    assert capsys.readouterr().err == "klrl train ppo: resume = True without run_dir; allowed: with --run-dir\n"
