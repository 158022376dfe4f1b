"""Flags that say yes or no, and where neither is given the environment decides."""

import pytest
import tyro

from klrl.agents.settings import PPOConfig
from klrl.scripts.cli.command_line import parse
from klrl.scripts.main import main
from klrl.scripts.train import Training

DEFAULT = Training(env=tyro.MISSING, agent=PPOConfig())


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], None), (["--shared-encoder"], True), (["--no-shared-encoder"], False), (["--no_shared_encoder"], False),
        (["--shared_encoder", "--seed", "1"], True), (["--shared-encoder", "False"], False),
        (["--shared-encoder=None"], None), (["--no-shared-encoder", "--gamma", "0.9"], False),
    ],
)  # fmt: skip
def test_a_flag_is_given_denied_or_left_out(words, expected):
    training = parse(Training, ["--env", "CartPole-v1", *words], "klrl train ppo", DEFAULT)
    assert training.agent.shared_encoder is expected


@pytest.mark.parametrize(
    "words", [["--shared-encoder", "perhaps"], ["--no-shared-encoder=1"], ["--shared-encoder", "1"]]
)
def test_anything_else_is_one_line(words, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", "ppo", "--env", "CartPole-v1", *words])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "shared_encoder = " in said
    assert "allowed: --shared-encoder or --no-shared-encoder, and no value" in said
