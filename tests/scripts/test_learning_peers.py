"""The benchmark of other libraries' learning: a small run of the real command, which goes on from its record."""

import json
import sys

import pytest

from klrl.scripts.benchmarks import learning_peers
from klrl.scripts.main import main

pytestmark = pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
WIDE = {"log_std_init": -2.0, "ortho_init": False, "activation_fn": "ReLU", "net_arch": [8]}
SHORT = {
    "PPO": {"Pendulum": {"n_envs": 2, "n_steps": 64, "n_epochs": 2, "policy_kwargs": WIDE}},
    "TRPO": {"Pendulum": {"n_envs": 2, "n_steps": 64, "target_kl": 0.01}},
}


def command(output, *more):
    words = ["--peers", "--envs", "Pendulum-v1", "--seeds", "0", "--total-timesteps", "512", "--processes", "1"]
    main(["benchmark", "learning", *words, "--output", str(output), *more])
    return json.loads(output.read_text())


def test_the_command_trains_measures_writes_and_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(learning_peers, "SETTINGS", SHORT)
    monkeypatch.setattr(learning_peers, "EPISODES", 2)
    output = tmp_path / "peers.json"
    first = command(output, "--algorithms", "TRPO")
    assert first["versions"][0]["sb3_contrib"]
    record = command(output)
    assert "1 of 2 runs are in" in capsys.readouterr().out
    ppo, trpo = sorted(record["rows"], key=lambda row: row["variant"])
    assert [ppo["variant"], trpo["variant"]] == ["Stable-Baselines3 PPO", "sb3-contrib TRPO"]
    assert trpo == first["rows"][0]
    for row in (ppo, trpo):
        assert row["updates"] == len(row["curve"]) == 4
        assert row["num_timesteps"] == 512
        assert row["kl_largest"] >= row["kl_mean"] > 0.0
        assert row["last_tenth_episodes"] == 0
        assert [steps for steps, *_ in row["curve"]] == [128, 256, 384, 512]
        assert -2_000.0 < row["mean_return"] < 0.0
    assert trpo["counted_against"] == "0.01"
    assert ppo["counted_against"] is None
    assert {cell["variant"]: cell["config"]["n_steps"] for cell in record["variants"]} == {
        "Stable-Baselines3 PPO": 64,
        "sb3-contrib TRPO": 64,
    }
    with pytest.raises(SystemExit) as stop:
        command(output, "--total-timesteps", "1024")
    assert stop.value.code == 2
    assert "with total_timesteps = 512, not 1024; allowed: a new file" in capsys.readouterr().err


def test_unknown_names_and_a_missing_library_are_refused_in_one_line(capsys, monkeypatch):
    for words, said in (
        (["--envs", "Pusher-v4"], "envs = 'Pusher-v4'; allowed: versions of HalfCheetah, "),
        (["--algorithms", "A2C"], "algorithms = 'A2C'; allowed: PPO, TRPO"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["benchmark", "learning", "--peers", *words])
        assert stop.value.code == 2
        assert said in capsys.readouterr().err
    monkeypatch.setattr(learning_peers, "_PACKAGES", ("no_such_library",))
    with pytest.raises(SystemExit):
        main(["benchmark", "learning", "--peers"])
    assert "no_such_library is not installed; allowed: pip install 'klrl[peers]'" in capsys.readouterr().err
    assert "no_such_library" not in sys.modules
