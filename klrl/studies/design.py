"""Design of a study: variants, the base that they share, environments and seeds."""

from __future__ import annotations

import ast
import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

from klrl.agents import AgentConfig
from klrl.agents.names import agent_class
from klrl.run.options import RunOptions
from klrl.schedules import FORMS, to_json
from klrl.text import allowed, file_name
from klrl.trust_region import PARAMETERS, RegionSettings, with_region
from klrl.trust_region.names import parameters_of, readers_of, region_of_word
from klrl.validation import describe, fits, hints

CRITIC_PASSES = ("n_epochs", "n_critic_updates")
"""Names that agents use for the passes over the batch that fit their critic."""
MOST_STEPS = 10**12
"""Most training steps of a run."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """An agent, its trust region and its settings: a line of the table per environment."""

    name: str
    agent: str
    """A name, or ``MODULE:CLASS`` of one's own."""
    region: str
    """A name, or ``MODULE:NAME`` of one's own."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Settings in place of those of the base."""


@dataclass(frozen=True, kw_only=True)
class Design:
    """Variants, the base that they share, and the environments and seeds on which they are trained."""

    agent: str
    """Agent whose configuration is the base."""
    settings: Mapping[str, Any]
    """Changes to the base; a region's settings reach the regions that read them."""
    presets: bool = True
    """True to start from the environment's preset, False for the plain defaults."""
    variants: tuple[Variant, ...]
    only_fitting: bool = False
    """True to leave variants out where they do not fit an environment, instead of refusing them."""
    left_out: tuple[tuple[str, str], ...] = ()
    """Environments and variants that are left out."""
    environments: Mapping[str, int] = field(default_factory=dict)
    """Training steps by environment id."""
    seeds: tuple[int, ...] = ()
    """Seeds of every variant on every environment."""
    options: RunOptions = field(default_factory=RunOptions)
    """Options of every run that do not affect its updates."""

    def cells(self) -> Iterator[tuple[str, Variant]]:
        """Yield every environment with every variant, in the order of the table."""
        cells = ((env, variant) for env in self.environments for variant in self.variants)
        yield from ((env, variant) for env, variant in cells if (env, variant.name) not in self.left_out)

    def config(self, variant: Variant, env: str) -> AgentConfig:
        """Return the variant's configuration on an environment: the base except for what it changes.

        A trust region comes with the settings that it reads. Another agent has every field of the base that it knows,
        as many passes for its critic, and a trust region of its own.

        Raises:
            ValueError: a setting does not fit the others.
        """
        if variant.agent == self.agent:
            return replace(self._base(env, variant.region), **variant.changes)
        base, other = self._base(env, self._base_region()), agent_class(variant.agent).config_class
        kept = names_of(type(base)) - names_of(RegionSettings)
        values = {own_name(other, name): getattr(base, name) for name in kept}
        shared = {name: value for name, value in values.items() if name in names_of(other)}
        return replace(other(**(shared | self._chosen(other, variant.region))), **variant.changes)

    def _base(self, env: str, region: str) -> AgentConfig:
        config_class = agent_class(self.agent).config_class
        return config_class.for_env(env if self.presets else None, **self._chosen(config_class, region))

    def _base_region(self) -> str:
        return self.settings.get("trust_region", default_region(self.agent))

    def _chosen(self, config_class: type[AgentConfig], region: str) -> dict[str, Any]:
        """The region, and the settings that it reads or that the agent has."""
        settings = with_region(self.settings, region_of_word(region))
        named = {own_name(config_class, name): value for name, value in settings.items()}
        return {name: value for name, value in named.items() if name in names_of(config_class)}

    def check(self) -> None:
        """Refuse a design that cannot be a study, as far as that can be seen without its environments.

        Raises:
            ValueError: nothing to train, an unknown or repeated value, two variants that are the same, or a setting
                that nothing reads.
        """
        check_names("variants", [variant.name for variant in self.variants])
        check_names("environments", [*self.environments])
        for env, steps in self.environments.items():
            if not (type(steps) is int and 1 <= steps <= MOST_STEPS):
                raise ValueError(f"environments = {env}: {steps!r} steps; allowed: an integer in [1, {MOST_STEPS:,}]")
        if not self.seeds or len({*self.seeds}) < len(self.seeds) or not all(map(_is_seed, self.seeds)):
            raise ValueError(f"seeds = {list(self.seeds)}; allowed: at least one, integers >= 0, every seed once")
        if self.options.final_episodes < 1:
            raise ValueError("eval_episodes = 0; allowed: an integer >= 1 in a study, whose table has their return")
        check_read(self.variants, self.settings)


def _is_seed(seed: object) -> bool:
    return type(seed) is int and seed >= 0


def check_names(what: str, names: Sequence[str]) -> None:
    """Refuse an empty list, a name that is there twice, and two names that file systems may take for the same.

    Raises:
        ValueError: one line that names them.
    """
    if not names:
        raise ValueError(f"{what} = (); allowed: at least one")
    known: dict[str, str] = {}
    for name in names:
        other = known.setdefault(file_name(name).casefold(), name)
        if names.count(name) > 1:
            raise ValueError(f"{what} = {name!r} twice; allowed: every one once")
        if other != name:
            raise ValueError(f"{what} = {other!r}, {name!r} have the same file name {file_name(name)}; allowed: others")


def check_read(variants: Sequence[Variant], settings: Mapping[str, Any]) -> None:
    """Refuse settings of the base that belong to a trust region and that no variant's reads.

    Raises:
        ValueError: names the setting, and the regions that read it.
    """
    read = frozenset().union(*(parameters_of(variant.region) for variant in variants if ":" not in variant.region))
    for unread in (name for name in settings if name in PARAMETERS and name not in read):
        raise ValueError(
            f"{unread} = {settings[unread]}; allowed: only with a trust region that reads it ({readers_of(unread)})"
        )


def setting(config_class: type[AgentConfig], name: str, value: Any) -> Any:
    """Return the value of a field as a design keeps it: checked, tuples for lists, a trust region by its name.

    Where a field may be ``None``, so may the text "None", which files have for it.

    Raises:
        ValueError: an unknown field, or a value that it does not allow.
    """
    known = [f.name for f in fields(config_class)]
    check_one_of(config_class.algorithm, name, known)
    if name == "trust_region":
        if not isinstance(value, str):
            raise ValueError(f"trust_region = {value!r}; allowed: a name, or MODULE:NAME of one of your own")
        if isinstance(region_of_word(value), str):
            parameters_of(value)
        return value
    if callable(value):
        raise ValueError(f"{name} = {to_json(value)}; allowed in a design: a number, or a schedule: {FORMS}")
    hint = hints(config_class)[name]
    if value == "None" and fits(None, hint):
        return None
    if not fits(value, hint):
        raise ValueError(f"{name} = {value!r}; allowed: {describe(hint)}")
    return tuple(value) if isinstance(value, list) else value


def setting_of_word(config_class: type[AgentConfig], name: str, word: str) -> Any:
    """Read a word as a value of a field: a number, True, False, None, several with commas, else text.

    Raises:
        ValueError: an unknown field, or a value that it does not allow.
    """
    if name == "trust_region":
        return setting(config_class, name, word)
    value: Any = word
    with contextlib.suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # it is text
        value = ast.literal_eval(word.capitalize() if word in ("true", "false") else word)
    if get_origin(hints(config_class).get(name)) is tuple and not isinstance(value, tuple):
        value = (value,)
    return setting(config_class, name, value)


def every_value(agent: str, name: str) -> tuple[Any, ...]:
    """Return the values of a field that has a few named ones.

    Raises:
        ValueError: it has not.
    """
    hint = get_type_hints(agent_class(agent).config_class)[name]
    values = get_args(Literal[True, False] if hint is bool else hint)
    if not values or not all(isinstance(value, (str, bool)) for value in values):
        raise ValueError(f"vary = {name!r} without values; allowed: {name} VALUES ...")
    return values


def own_name(config_class: type[AgentConfig], name: str) -> str:
    """Return an agent's name of a field: the passes that fit the critic have two names."""
    if name not in CRITIC_PASSES:
        return name
    return next((n for n in CRITIC_PASSES if n in names_of(config_class)), name)


def names_of(config_class: type[RegionSettings]) -> frozenset[str]:
    """Return the names of all settings."""
    return frozenset(f.name for f in fields(config_class))


def default_region(agent: str) -> str:
    """Return the name of an agent's own trust region."""
    return next(str(f.default) for f in fields(agent_class(agent).config_class) if f.name == "trust_region")


def check_one_of(name: str, value: str, known: Sequence[str] | Mapping[str, Any]) -> None:
    """Refuse a word that is none of these.

    Raises:
        ValueError: names them, or of many the nearest.
    """
    if value not in known:
        raise ValueError(f"{name} = {value!r}; allowed: {allowed(value, known)}")
