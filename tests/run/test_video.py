"""Videos beside a training: which pictures, in which files, what failures cost, and how it goes on; of evaluations."""

import importlib.util
import subprocess

import gymnasium as gym
import numpy as np
import pytest
from environments import Noise, small_agent
from support import parameters, same, without_time
from test_command_line import klrl, refused  # noqa: F401

from klrl.agents import PPO
from klrl.run import VideoCallback, evaluate
from klrl.run.video import recorded, rendered

imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg", reason="pip install 'klrl[video]'")
pytest.importorskip("moviepy", reason="pip install 'klrl[video]'")

TOTAL, RECORDED = 64 * 4, [128, 192, 256]
"""Steps of a training with updates of 64, and those of its updates that reach a multiple of 95, or the end."""


class Seen(Noise):
    """Every picture is as bright as its step; at the end of a list of errors it shows pictures without fail."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(self, render_mode=None, errors=()):
        super().__init__(gym.spaces.Discrete(4), (4,))
        self.render_mode, self.errors = render_mode, iter(errors)

    def render(self):
        if self.steps == 1 and (error := next(self.errors, None)) is not None:
            raise error
        return np.full((32, 48, 3), 10 * self.steps, np.uint8)


def brightness(path):
    """The mean of every picture of a video."""
    words = [
        imageio_ffmpeg.get_ffmpeg_exe(),
        "-loglevel",
        "error",
        "-i",
        path,
        "-f",
        "rawvideo",
        "-pix_fmt",
        "gray",
        "-",
    ]
    pictures = subprocess.run(words, capture_output=True, check=True).stdout
    return np.frombuffer(pictures, np.uint8).reshape(-1, 32, 48).mean((1, 2))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_every_episode_is_a_file_and_no_bit_of_the_training_depends_on_it(tmp_path):
    agents = []
    for mode in ("sync", "async"):
        films = [
            None,
            VideoCallback(Seen, tmp_path / mode, video_every=95, n_episodes=2, deterministic=False, video_length=15),
        ]
        for film in films if mode == "sync" else films[1:]:
            np.random.seed(0)  # noqa: NPY002
            agents.append(small_agent(PPO, Seen, vectorization_mode=mode))
            agents[-1].learn(TOTAL, film)
            agents[-1].close()
        assert names(tmp_path / mode) == sorted(f"step-{t}-episode-{i}.mp4" for t in RECORDED for i in (0, 1))
        for file in (tmp_path / mode).iterdir():  # an episode has 20 steps
            assert brightness(file) == pytest.approx([10 * step for step in range(16)], abs=6)
    plain, watched, apart = agents
    for agent in (watched, apart):
        assert same(parameters(agent), parameters(plain))
        assert without_time(agent) == without_time(plain)
    for name, stream in plain.streams.state().items():
        assert np.array_equal(watched.streams.state()[name], stream), name


def test_a_whole_episode_has_a_picture_of_every_step_and_the_returns_of_one_without(tmp_path):
    agent = small_agent(PPO, Seen)
    with recorded(rendered(Seen), tmp_path / "videos", "mine", 1000) as env:
        result = evaluate(agent, env, 2)
    assert names(tmp_path / "videos") == ["mine-episode-0.mp4", "mine-episode-1.mp4"]
    assert len(brightness(tmp_path / "videos/mine-episode-1.mp4")) == 21
    assert result == evaluate(agent, Seen(), 2)


def test_what_cannot_be_recorded_is_named_and_costs_the_training_nothing(tmp_path):
    env = Seen("rgb_array", [None, None, ValueError("a black screen"), ValueError("a black screen")])
    plain = small_agent(PPO, Seen).learn(TOTAL)
    agent = small_agent(PPO, Seen)
    with pytest.warns(RuntimeWarning, match="^no video after 192 steps: ValueError: a black screen ") as told:
        agent.learn(TOTAL, VideoCallback(env, tmp_path / "videos", video_every=64))
    assert len(told) == 1
    assert names(tmp_path / "videos") == ["step-128-episode-0.mp4", "step-64-episode-0.mp4"]
    assert same(parameters(agent), parameters(plain))


def test_a_recording_that_was_interrupted_is_made_up_for_and_none_is_made_twice(tmp_path):
    def film(errors=()):
        return VideoCallback(Seen("rgb_array", errors), tmp_path / "run/videos", video_every=95)

    with pytest.raises(KeyboardInterrupt):
        small_agent(PPO, Seen).learn(TOTAL, film([None, KeyboardInterrupt()]), run_dir=tmp_path / "run")
    assert names(tmp_path / "run/videos") == ["step-128-episode-0.mp4"]
    before = (tmp_path / "run/videos/step-128-episode-0.mp4").stat().st_mtime_ns
    agent = PPO.load(tmp_path / "run", Seen)
    assert agent.num_timesteps == 192
    agent.resume(film(), run_dir=tmp_path / "run")
    assert names(tmp_path / "run/videos") == [f"step-{t}-episode-0.mp4" for t in RECORDED]
    assert (tmp_path / "run/videos/step-128-episode-0.mp4").stat().st_mtime_ns == before


class NoPicture(Noise):
    """An environment that knows nothing of pictures."""

    def __init__(self):
        super().__init__(gym.spaces.Discrete(4), (4,))


gym.register("klrl-test/NoPicture-v0", NoPicture)


@pytest.mark.filterwarnings("ignore:.*not in the possible render_modes")
def test_environments_without_pictures_are_refused_before_the_first_update(tmp_path, monkeypatch):
    broken = Seen("rgb_array")
    broken.render = lambda: 1 / 0
    closed = "env has render_mode = None; allowed: one whose render_mode is 'rgb_array'"
    for env, said in {
        NoPicture: closed,
        Seen(): closed,
        "klrl-test/NoPicture-v0": "env = 'klrl-test/NoPicture-v0': .* argument 'render_mode'; allowed: one whose",
        broken: "no picture can be taken: ZeroDivisionError: division by zero",
    }.items():
        agent = small_agent(PPO, Seen)
        with pytest.raises(ValueError, match=f"^video: {said}"):
            agent.learn(TOTAL, VideoCallback(env, tmp_path / "videos"))
        assert agent.num_timesteps == 0
    with pytest.raises(ValueError, match=r"^video_every = 0; allowed: an integer >= 1$"):
        VideoCallback(Seen, tmp_path / "videos", video_every=0)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "moviepy" else find(name))
    with pytest.raises(ValueError, match=r"^videos need MoviePy: pip install 'klrl\[video\]'$"):
        VideoCallback(Seen, tmp_path / "videos")


def test_videos_on_the_command_line(tmp_path, refused, monkeypatch):  # noqa: F811
    small = ["--n-envs", "2", "--n-steps", "64", "--run-dir", "run", "--eval-episodes", "1", "--no-try-envs"]
    words = ["--env", "CartPole-v1", "--total-timesteps", "256", "--video-every", "1000", "--video-length", "5"]
    run = klrl("train", "ppo", *words, *small, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert names(tmp_path / "run/videos") == ["step-256-episode-0.mp4"]
    again = klrl("evaluate", "run", "--episodes", "2", "--video", "films/here", "--video-length", "5", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert again.stdout.endswith("videos: films/here\n")
    assert names(tmp_path / "films/here") == ["step-256-episode-0.mp4", "step-256-episode-1.mp4"]
    assert "finished, 256 steps" in klrl("resume", "run", cwd=tmp_path).stdout
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "moviepy" else find(name))
    line = refused("train", "ppo", *words)
    assert line == "klrl train ppo: videos need MoviePy: pip install 'klrl[video]'"
