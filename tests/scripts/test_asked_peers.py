"""The benchmark of other libraries' KL: a small run of the real command, and what its table says."""

import json
import sys

import pytest

from klrl.scripts.benchmarks import asked, asked_peers
from klrl.scripts.main import main

pytestmark = pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
SHORT = (
    asked_peers.Trained("sb3-contrib TRPO", asked_peers._peer, "TRPO", {"n_steps": 128}),
    asked_peers.Trained("klrl TRPO", asked_peers._klrl, "trpo", {"n_steps": 16}),
)


def test_the_command_trains_measures_writes_and_continues(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(asked_peers, "TRAINED", SHORT)
    output = tmp_path / "peers.json"
    words = ["--peers", "--envs", "CartPole-v1", "--seeds", "0", "--total-timesteps", "256", "--processes", "1"]
    asked.main([*words, "--output", str(output)])
    record = json.loads(output.read_text())
    assert record["versions"]["sb3_contrib"]
    peer, ours = record["rows"]
    assert (peer["trained"], ours["trained"]) == ("sb3-contrib TRPO", "klrl TRPO")
    for row in (peer, ours):
        assert row["updates"] == len(row["kl"]) == len(row["logged"]) == 2
    assert peer["start_ratio_error"] <= 1e-5
    assert peer["logged_as"] == "train/kl_divergence_loss"
    assert ours["kl"] == ours["logged"]
    assert max(ours["kl"]) <= ours["target_kl"] == 0.01
    assert "| CartPole-v1 | klrl TRPO | 2 |" in capsys.readouterr().out
    monkeypatch.setattr(asked_peers, "TRAINED", ())
    asked.main([*words, "--output", str(output)])
    assert "finished already" in capsys.readouterr().out


def test_the_table_has_means_largest_and_shares_over_all_seeds():
    rows = [
        {"env": "A", "trained": "T", "target_kl": 0.01, "kl": kl, "logged": [0.005, 0.01]}
        for kl in ([0.02, 0.005], [0.015, 0.03])
    ]
    assert asked_peers.table(rows).splitlines()[2:] == [
        "| A | T | 4 | 0.0075 (0.0100) | 0.0175 (0.0300) | 3.00 | 75% over 0.01 |"
    ]


def test_an_unknown_environment_and_a_missing_library_are_refused_in_one_line(capsys, monkeypatch):
    with pytest.raises(SystemExit) as stop:
        main(["benchmark", "asked", "--peers", "--envs", "Ant-v5"])
    assert stop.value.code == 2
    assert "envs = 'Ant-v5'; allowed: Hopper-v5," in capsys.readouterr().err
    monkeypatch.setattr(asked_peers, "_PACKAGES", ("no_such_library",))
    with pytest.raises(SystemExit) as stop:
        main(["benchmark", "asked", "--peers"])
    assert stop.value.code == 2
    assert "no_such_library is not installed; allowed: pip install 'klrl[peers]'" in capsys.readouterr().err
    assert "no_such_library" not in sys.modules
