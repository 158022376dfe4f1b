"""Episodes that their seed and their actions determine, so that any of them can be begun again and played up to now."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np

if TYPE_CHECKING:
    from klrl.experience.replay import Replay


@dataclass(frozen=True, eq=False)
class Place:
    """Where an environment is: in which episode of which stream, after which actions."""

    stream: int
    """Seed of all the environment's episodes."""
    episode: int = 0
    """How many came before it."""
    actions: Sequence[Any] = ()
    """What has been executed since its reset."""

    @property
    def seed(self) -> int:
        """What the environment is reset with; 31 bits, because some simulators take an int32."""
        return int(np.random.SeedSequence(self.stream, spawn_key=(self.episode,)).generate_state(1)[0] >> 1)

    @property
    def following(self) -> Place:
        """The beginning of the next episode."""
        return Place(self.stream, self.episode + 1)


class SeededEpisodes(gym.Wrapper):
    """Seeds every episode on its own: none depends on how long the ones before it were.

    A reset with a seed begins a stream of episodes, a reset without one its next episode. Where ``place`` is set, the
    next reset goes there, and returns the observation and info after its last action.

    Args:
        make: makes the environment.
        index: which one of several it is, for messages.
    """

    def __init__(self, make: Callable[[], gym.Env], index: int = 0) -> None:
        super().__init__(make())
        self.place: Place | None = None
        self.rebuild = False
        """Whether every episode needs an environment of its own, because a used one would go on differently."""
        self.played: Callable[[], object] = lambda: None
        """Called after every step on the way to a place."""
        self._make, self._index = make, index
        self._now: Place | None = None
        self._steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode, or go to ``place``; where that cannot be reached any more, to the episode after it."""
        if self._now is not None and self.rebuild:
            self.env.close()
            self.env = self._make()
        if seed is not None:
            place = Place(seed)
        elif self.place is not None:
            place = self.place
        else:
            place = Place(np.random.SeedSequence().generate_state(1)[0]) if self._now is None else self._now.following
        self._now, self._steps, self.place = place, 0, None
        try:
            observation, info = self.env.reset(seed=place.seed, options=options)
        except SystemExit as error:
            raise self._stopped(error, "reset") from error
        except Exception as error:
            self._locate(error, "reset")
            raise
        if len(place.actions) == 0:
            return observation, info
        try:
            return self._played(place.actions)
        except Exception:  # it is not what it was, and whoever asked will see that it is elsewhere
            self.env.close()
            self.env, self.place = self._make(), place.following
            return self.reset(options=options)

    def _played(self, actions: Sequence[Any]) -> tuple[Any, dict[str, Any]]:
        """What the last of these actions leads to, if none before it ends the episode."""
        for action in actions:
            observation, _, terminated, truncated, info = self.step(action)
            self.played()
            if terminated or truncated:
                raise RuntimeError("the episode ended early")
        return observation, info

    def playable(self) -> Replay:
        """Try where episodes can be played again, in environments of their own."""
        from klrl.experience.replay import replay  # imports torch, which most workers do without

        return replay(self._make)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """As the environment does it; an exception gets a note on where it happened."""
        self._steps += 1
        try:
            return self.env.step(action)
        except SystemExit as error:
            raise self._stopped(error, f"step {self._steps}") from error
        except Exception as error:
            self._locate(error, f"step {self._steps}")
            raise

    def _stopped(self, error: SystemExit, what: str) -> RuntimeError:
        """An environment that wants to end the program has failed: training was not finished."""
        failure = RuntimeError(f"SystemExit: {error}")
        self._locate(failure, what)
        return failure

    def _locate(self, error: Exception, what: str) -> None:
        assert self._now is not None
        error.add_note(f"in {what} of environment {self._index}, episode {self._now.episode} (seed {self._now.seed})")
