"""Environments whose observations are images, each trained with one command."""

import numpy as np
import pytest

from klrl.agents import PPO
from klrl.scripts.main import main

pytest.importorskip("minigrid", reason="pip install 'klrl[pixels]'")
SMALL = ["--total-timesteps", "256", "--n-envs", "2", "--n-steps", "64", "--batch-size", "64", "--eval-episodes", "0"]
CAMERA = """config={"observation": {
    "type": "GrayscaleObservation", "observation_shape": (64, 64), "stack_size": 4, "scaling": 1.75,
    "weights": [0.3, 0.59, 0.11]
}}"""


def trained(words, folder):
    main(["train", *words, *SMALL, "--n-epochs", "2", "--run-dir", str(folder / "run")])
    return PPO.load(folder / "run")


@pytest.mark.parametrize(
    ("wrapper", "channels", "others"),
    [
        (["minigrid.wrappers:ImgObsWrapper"], 3, 0),
        (["gymnasium.wrappers:FilterObservation", 'filter_keys=["image", "direction"]'], 3, 4),
    ],
    ids=["image", "Dict"],
)
def test_minigrid_trains_with_its_preset(wrapper, channels, others, tmp_path):
    words = ["ppo", "--env", "minigrid:MiniGrid-Empty-5x5-v0", "--wrapper", *wrapper]
    agent = trained(words, tmp_path)
    assert agent.config.image_scale == "seen"
    assert agent.num_timesteps == 256
    assert agent.encoding.dtype == np.uint8
    trunk = agent.actor.trunk
    assert trunk.convolutions[0][0].in_channels == channels
    assert sum(columns.stop - columns.start for columns in trunk.others) == others


def test_a_text_among_observations_is_refused_with_what_leaves_it_out(capsys):
    with pytest.raises(SystemExit):
        main(["train", "ppo", "--env", "minigrid:MiniGrid-Empty-5x5-v0"])
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "observation space['mission'] " in said
    assert """--wrapper gymnasium.wrappers:FilterObservation 'filter_keys=["direction", "image"]'""" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "shape"),
    [
        (["--env", "CarRacing-v3", "--env-kwargs", "continuous=true"], (96, 96, 3)),
        (["--env", "highway_env:highway-fast-v0", "--env-kwargs", CAMERA], (4, 64, 64)),
    ],
    ids=["CarRacing", "highway-env"],
)
def test_cameras_train(words, shape, tmp_path, monkeypatch):
    pytest.importorskip("Box2D")
    pytest.importorskip("highway_env")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    agent = trained(["ppo", *words, "--image-network", "nature", "--no-try-envs"], tmp_path)
    assert agent.observation_space.shape == shape
    assert agent.encoding.dtype == np.uint8
    assert all(row["drift/kl"] > 0.0 for row in agent.history)
