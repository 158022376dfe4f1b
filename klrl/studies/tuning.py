"""Design of a search over settings: what is searched, on which environment and seeds, and what a trial is worth."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

from klrl.agents import AGENTS, AgentConfig
from klrl.agents.names import agent_class
from klrl.studies.space import Searched, assignment, check_names, searched
from klrl.text import allowed
from klrl.trust_region import PARAMETERS
from klrl.trust_region.names import parameters_of, readers_of
from klrl.validation import Bounds, NonNegativeInt, Positive, validate

if TYPE_CHECKING:
    from optuna import Trial

Objective = Literal["return", "return-and-kl"]
Measure = Literal["training", "evaluation"]


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """A search over settings of an agent on an environment.

    Raises:
        ValueError: settings that contradict each other or do not fit the environment.
    """

    agent: str
    """Name on the command line."""
    env: str
    """Gymnasium id."""
    space: tuple[Searched, ...]
    """Settings that are searched."""
    settings: Mapping = field(default_factory=dict)
    """Settings that are the same in all trials."""
    presets: bool = True
    """True to start from the environment's preset, False for the plain defaults."""
    total_timesteps: Annotated[int, Bounds(1, 10**12)] = 100_000
    """Environment steps of every run."""
    seeds: tuple[NonNegativeInt, ...] = (100, 101, 102)
    """Seeds of every trial; a trial is worth its mean over them."""
    objective: Objective = "return"
    """Goal: the return, or the return against the KL spent for it."""
    measure: Measure = "training"
    """Return of the last tenth of the training, or of 20 deterministic episodes afterwards."""
    kl_budget: Positive | None = None
    """KL(old||new), summed over updates, that the best trial may spend at most, in nats; the mean over seeds counts."""

    def __post_init__(self) -> None:
        validate(self)
        if self.agent not in AGENTS:
            raise ValueError(f"agent = {self.agent!r}; allowed: {allowed(self.agent, AGENTS)}")
        if not self.seeds or len({*self.seeds}) < len(self.seeds):
            raise ValueError(f"seeds = {self.seeds}; allowed: at least one, every seed once")
        check_names(self.space, self.settings)
        self._check_read()
        self._check_corners()

    @property
    def config_class(self) -> type[AgentConfig]:
        """Class of the agent's settings."""
        return agent_class(self.agent).config_class

    def suggest(self, trial: Trial) -> dict[str, Any]:
        """Return a trial's values; of a trust region's settings those that its region reads."""
        chosen: dict[str, Any] = {}
        for one in sorted(self.space, key=lambda one: one.name != "trust_region"):
            if one.name not in PARAMETERS or one.name in parameters_of(self._region(chosen)):
                chosen[one.name] = one.suggest(trial)
        return chosen

    def config(self, chosen: Mapping[str, Any]) -> AgentConfig:
        """Return all settings of a trial.

        Raises:
            ValueError: its values do not fit each other.
        """
        return self.config_class.for_env(self.env if self.presets else None, **self._given(chosen))

    def command(self, chosen: Mapping[str, Any], seed: int = 0) -> str:
        """Return the command line that trains with a trial's settings."""
        words = ["klrl", "train", self.agent, "--env", self.env, "--total-timesteps", str(self.total_timesteps)]
        words += ["--seed", str(seed), *([] if self.presets else ["--preset", "none"])]
        for name, value in self._given(chosen).items():
            flag = name.replace("_", "-")
            if isinstance(value, bool):
                words.append(f"--{flag}" if value else f"--no-{flag}")
            else:
                words += [f"--{flag}", *(map(str, value) if isinstance(value, tuple) else [str(value)])]
        return shlex.join(words)

    def record(self) -> dict[str, Any]:
        """Return everything that decides what a trial is worth, as plain JSON."""
        fixed = {"agent": self.agent, "env": self.env, "search": [*map(str, self.space)], "set": dict(self.settings)}
        more = ("presets", "total_timesteps", "seeds", "objective", "measure", "kl_budget")
        return json.loads(json.dumps(fixed | {name: getattr(self, name) for name in more}))

    def _given(self, chosen: Mapping[str, Any]) -> dict[str, Any]:
        """Return what differs from the base; a setting of the region only where it reads it."""
        region = self._region(chosen)
        given = {**self.settings, **chosen}
        return {name: v for name, v in given.items() if name not in PARAMETERS or name in parameters_of(region)}

    def _region(self, chosen: Mapping[str, Any]) -> Any:
        given = {**self.settings, **chosen}
        if "trust_region" in given:
            return given["trust_region"]
        return self.config_class.for_env(self.env if self.presets else None).trust_region

    def _check_read(self) -> None:
        """Refuse settings of a trust region that none of the possible ones reads."""
        regions = next((one.ends for one in self.space if one.name == "trust_region"), (self._region({}),))
        read = frozenset().union(*map(parameters_of, regions))
        named = [("search", one.name) for one in self.space] + [("set", name) for name in self.settings]
        for option, name in named:
            if name in PARAMETERS and name not in read:
                said = f"allowed: only with a trust region that reads it ({readers_of(name)})"
                raise ValueError(f"{option} = {name!r}; {said}")

    def _check_corners(self) -> None:
        """Refuse a space of which neither all first nor all last values fit each other, or the environment."""
        problem: ValueError | None = None
        for end in (0, -1):
            try:
                config = self.config({one.name: one.ends[end] for one in self.space})
                agent_class(self.agent)(self.env, config).close()
            except ValueError as error:
                problem = problem or error
            else:
                return
        assert problem is not None
        raise problem


def shown(chosen: Mapping[str, Any]) -> str:
    """Return settings as a line says them.

    >>> shown({"learning_rate": 0.000312345, "actor_hidden_sizes": (64, 64)})
    'learning_rate = 0.0003123, actor_hidden_sizes = (64, 64)'
    """
    numbers = {name: f"{value:.4g}" if type(value) is float else str(value) for name, value in chosen.items()}
    return ", ".join(f"{name} = {text}" for name, text in numbers.items())


def tuning(agent: str, env: str, search: Sequence[str], assignments: Sequence[str] = (), **options: Any) -> Tuning:
    """Read a design in the form of the command line.

    Args:
        agent: its name.
        env: Gymnasium id.
        search: ``"NAME=LOW:HIGH"``, ``"NAME=LOW:HIGH:log"``, ``"NAME=A,B,..."``.
        assignments: ``"NAME=VALUE"``, the same in all trials.
        **options: as :class:`Tuning` has them.

    Raises:
        ValueError: an unknown agent or setting, an empty range, or a value that is not allowed.
    """
    if agent not in AGENTS:
        raise ValueError(f"agent = {agent!r}; allowed: {allowed(agent, AGENTS)}")
    config_class = agent_class(agent).config_class
    space = tuple(searched(config_class, word) for word in search)
    settings = dict(assignment(config_class, word) for word in assignments)
    return Tuning(agent=agent, env=env, space=space, settings=settings, **options)
