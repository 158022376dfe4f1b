"""Videos of episodes, one file each: of an evaluation, or recorded beside a training."""

from __future__ import annotations

import copy
import importlib.util
import inspect
import tempfile
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import VectorEnv
from gymnasium.wrappers import RecordVideo

from klrl.experience.atari import spec_of
from klrl.experience.environments import EnvLike, check_id
from klrl.experience.wrapped import Wrapped, Wrapping
from klrl.run.beside import Beside, CannotBegin, described, unchanged_generators
from klrl.run.callback import Metrics
from klrl.run.evaluation import evaluate
from klrl.run.options import LONGEST_VIDEO
from klrl.run.seeding import evaluation_seed
from klrl.text import warn_user

_ALLOWED = "one whose render_mode is 'rgb_array'"


class VideoCallback(Beside):
    """Records episodes after every so many steps, and after the last one, one file each.

    They are named ``step-10000-episode-0.mp4``, and appear in the folder once they are complete. Like evaluations
    (:class:`klrl.run.EvalCallback`) they change no bit of the training, and begin at the same seed, so that the first
    ones of all evaluations are seen. A recording that fails costs the training nothing: a warning names the error.

    Args:
        env: a Gymnasium id or ``EnvSpec``, of which one is made with ``render_mode="rgb_array"``, a function that makes
            one (given ``render_mode`` if it takes that), or an ``Env`` that has this mode.
        video_folder: where the files are put; made in a folder that is there.
        video_every: environment steps between recordings, over all environments, rounded up to whole updates.
        n_episodes: episodes of a recording.
        deterministic: take the most probable actions instead of sampling them.
        video_length: most steps of a video; episodes are recorded up to there.

    Raises:
        ValueError: MoviePy is not installed, an environment that cannot be one, or a number below 1.
    """

    def __init__(
        self,
        env: EnvLike,
        video_folder: str | Path,
        *,
        video_every: int = 100_000,
        n_episodes: int = 1,
        deterministic: bool = True,
        video_length: int = LONGEST_VIDEO,
    ) -> None:
        check_extra()
        numbers = {"video_every": video_every, "n_episodes": n_episodes, "video_length": video_length}
        for name, value in numbers.items():
            if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} = {value!r}; allowed: an integer >= 1")
        super().__init__(env, video_every)
        if not isinstance(env, (gym.Env, VectorEnv)):
            self.make = rendered(env)
        self.video_folder, self.n_episodes, self.video_length = Path(video_folder), n_episodes, video_length
        self.deterministic = deterministic
        self._told: set[str] = set()

    def on_training_start(self, agent: Any, total_timesteps: int) -> None:
        """Check spaces and pictures, and make up for a recording in which the training was interrupted.

        Raises:
            ValueError: other spaces than the agent's.
            CannotBegin: no video can be made, and this training has nothing to lose yet.
        """
        try:
            with unchanged_generators(agent):
                check_pictures(self.make, agent.seed, partial(self._environment, agent))
        except ValueError as error:
            if agent.num_timesteps == agent.training.first:
                raise CannotBegin(str(error)) from error
            self._tell(str(error), agent)
        super().on_training_start(agent, total_timesteps)

    def is_done(self, agent: Any) -> bool:
        """Tell whether the videos after the agent's last update are there."""
        last = f"{_prefix(agent.num_timesteps)}-episode-{self.n_episodes - 1}.mp4"
        return (self.video_folder / last).exists()

    def play(self, agent: Any, metrics: Metrics) -> None:
        """Record the episodes after the agent's last update."""
        try:
            self._record(agent, self.video_folder, _prefix(agent.num_timesteps))
        except (Exception, SystemExit) as error:
            self._tell(described(error), agent)

    def _tell(self, what: str, agent: Any) -> None:
        """Warn about a failure, once for each kind."""
        if what not in self._told:
            self._told.add(what)
            warn_user(f"no video after {agent.num_timesteps:,} steps: {what}; training goes on")

    def _record(self, agent: Any, folder: Path, prefix: str) -> None:
        make = partial(recorded, self.make, folder, prefix, self.video_length)
        with warnings.catch_warnings(), unchanged_generators(agent), self._environment(agent, make) as env:
            warnings.filterwarnings("ignore", "evaluation: .* cut after max_steps")
            evaluate(
                agent,
                env,
                self.n_episodes,
                deterministic=self.deterministic,
                seed=agent.seed,
                max_steps=self.video_length,
            )


def _prefix(num_timesteps: int) -> str:
    return f"step-{num_timesteps}"


def check_extra() -> None:
    """Refuse to begin without the package that writes videos.

    Raises:
        ValueError: names the extra.
    """
    if importlib.util.find_spec("moviepy") is None:
        raise ValueError("videos need MoviePy: pip install 'klrl[video]'")


def check_pictures(
    make: Callable[[], gym.Env], seed: int, play_in: Callable[[Callable[[], gym.Env]], gym.Env] = lambda make: make()
) -> None:
    """Take the first picture of an episode, so that what cannot be recorded is known at once.

    Args:
        make: makes the environment.
        seed: seed of the run.
        play_in: makes what is played in from a function that makes an environment.

    Raises:
        ValueError: one line that says what cannot be done.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            with play_in(partial(recorded, make, Path(folder), "try", 1)) as env:
                env.reset(seed=evaluation_seed(seed))
        except ValueError as error:
            raise ValueError(f"video: {error}") from error
        except Exception as error:
            raise ValueError(f"video: no picture can be taken: {described(error)}") from error


def rendered(env: str | EnvSpec | Callable[[], gym.Env]) -> Callable[[], gym.Env]:
    """Return what makes the environment with pictures, as far as klrl can ask for them.

    Raises:
        ValueError: an unknown id.
    """
    if isinstance(env, str):
        check_id(env)
        env = spec_of(env)
    if isinstance(env, EnvSpec):
        return partial(_with_pictures, env, ())
    if isinstance(env, Wrapped):
        return partial(_with_pictures, env.spec, env.wrappers)
    make: Callable[..., gym.Env] = env
    try:
        takes_it = "render_mode" in inspect.signature(make).parameters
    except (TypeError, ValueError):  # no signature
        takes_it = False
    return partial(make, render_mode="rgb_array") if takes_it else make


def _with_pictures(spec: EnvSpec, wrappers: Sequence[Wrapping]) -> gym.Env:
    spec = copy.deepcopy(spec)
    spec.kwargs = {**spec.kwargs, "render_mode": "rgb_array"}
    try:
        return Wrapped(spec, wrappers)()
    except TypeError as error:  # an environment without this keyword argument
        said = str(error).partition(" was raised from ")[0]
        raise ValueError(f"env = {spec.id!r}: {said}; allowed: {_ALLOWED}") from error


def recorded(make: Callable[[], gym.Env], folder: Path, prefix: str, video_length: int) -> gym.Env:
    """Return an environment whose episodes are recorded, one file each: ``PREFIX-episode-0.mp4`` and so on.

    Args:
        make: makes the environment.
        folder: where the files are put; made if it is not there, in one that is.
        prefix: beginning of their names.
        video_length: most steps of a video.

    Raises:
        ValueError: no pictures can be taken of it.
        FileNotFoundError: there is no folder for the folder.
    """
    env = make()
    if env.render_mode not in ("rgb_array", "rgb_array_list"):
        env.close()
        raise ValueError(f"env has render_mode = {env.render_mode!r}; allowed: {_ALLOWED}")
    folder.mkdir(exist_ok=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*Overwriting existing videos")
        return _Recorded(env, str(folder), lambda _: True, video_length=video_length, name_prefix=prefix)


class _Recorded(RecordVideo):
    """Writes a video when its episode ends, under a hidden name until it is complete; what is cut off gets none."""

    def start_recording(self, video_name: str) -> None:
        super().start_recording(f".{video_name}")
        self._name = video_name

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = super().step(action)
        if self.recording and (terminated or truncated):
            self.stop_recording()
        return observation, reward, terminated, truncated, info

    def stop_recording(self) -> None:
        super().stop_recording()  # type: ignore[no-untyped-call]
        hidden = Path(self.video_folder, f".{self._name}.mp4")
        if hidden.exists():
            hidden.replace(hidden.with_name(f"{self._name}.mp4"))

    def close(self) -> None:
        self.recording, self.recorded_frames = False, []
        super().close()  # type: ignore[no-untyped-call]
