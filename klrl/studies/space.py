"""Search spaces: settings of an agent or of its trust region, each with a range or a list of values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin

from klrl.agents import AgentConfig
from klrl.studies.design import setting_of_word
from klrl.text import allowed
from klrl.trust_region.names import parameters_of
from klrl.validation import fits, hints

if TYPE_CHECKING:
    from optuna import Trial

_FORMS = "NAME=LOW:HIGH, NAME=LOW:HIGH:log or NAME=VALUE,VALUE,..."


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, both included, uniform or uniform in their logarithm."""

    name: str
    low: float
    high: float
    log: bool = False
    whole: bool = False

    def suggest(self, trial: Trial) -> float:
        """Return the trial's value."""
        if self.whole:
            return trial.suggest_int(self.name, int(self.low), int(self.high), log=self.log)
        return trial.suggest_float(self.name, self.low, self.high, log=self.log)

    def value_of(self, kept: Any) -> Any:
        """Return the value for what the study keeps of it."""
        return kept

    @property
    def ends(self) -> tuple[Any, ...]:
        """Values that are allowed if all are."""
        return (self.low, self.high)

    def __str__(self) -> str:
        return f"{self.name}={self.low!r}:{self.high!r}{':log' if self.log else ''}"


@dataclass(frozen=True)
class Choice:
    """A few values, and the words that stand for them."""

    name: str
    values: Mapping[str, Any]

    def suggest(self, trial: Trial) -> Any:
        """Return the trial's value."""
        return self.value_of(trial.suggest_categorical(self.name, [*self.values]))

    def value_of(self, kept: Any) -> Any:
        """Return the value for what the study keeps of it, the word."""
        return self.values[kept]

    @property
    def ends(self) -> tuple[Any, ...]:
        """Values, all of them."""
        return tuple(self.values.values())

    def __str__(self) -> str:
        return f"{self.name}={'/'.join(self.values) if self._several else ','.join(self.values)}"

    @property
    def _several(self) -> bool:
        return any(isinstance(value, tuple) for value in self.values.values())


Searched = Range | Choice


def searched(config_class: type[AgentConfig], word: str) -> Searched:
    """Read a setting to be searched: a range ``NAME=LOW:HIGH[:log]``, or values ``NAME=A,B,...``.

    Values that are several numbers are separated by slashes: ``actor_hidden_sizes=64,64/256,256``. Schedules are
    values, too: ``learning_rate=3e-4,linear:1e-3:0``.

    Raises:
        ValueError: an unknown setting, an empty range, or a value that is not allowed.

    >>> from klrl.agents import PPOConfig
    >>> searched(PPOConfig, "n-epochs=2:20:log")
    Range(name='n_epochs', low=2, high=20, log=True, whole=True)
    """
    name, text = _assigned(config_class, "search", word, _FORMS)
    hint = hints(config_class)[name]
    if ":" in text and "," not in text and name != "trust_region" and not fits(text, hint):  # else a schedule
        low, high, *more = text.split(":")
        ends = [_value(config_class, name, end) for end in (low, high)]
        if more not in ([], ["log"]) or not all(type(end) in (int, float) for end in ends):
            raise ValueError(f"search = {word!r}; allowed: {_FORMS}")
        if not ends[0] < ends[1] or (more and ends[0] <= 0):
            above = "0 < LOW < HIGH" if more else "LOW < HIGH"
            raise ValueError(f"search = {word!r} is an empty range; allowed: {above}")
        return Range(name, ends[0], ends[1], bool(more), not _takes_fractions(hint))
    words = text.split("/" if _is_several(hint) else ",")
    for twice in (value for value in words if words.count(value) > 1):
        raise ValueError(f"search = {word!r} has {twice!r} twice; allowed: every value once")
    return Choice(name, {value: _value(config_class, name, value) for value in words})


def assignment(config_class: type[AgentConfig], word: str) -> tuple[str, Any]:
    """Read ``NAME=VALUE``.

    Raises:
        ValueError: an unknown setting, or a value that it does not allow.
    """
    name, text = _assigned(config_class, "set", word, "NAME=VALUE")
    return name, _value(config_class, name, text)


def _value(config_class: type[AgentConfig], name: str, word: str) -> Any:
    """Read a word as a value of a setting; a trust region is one of klrl's, whose settings are known.

    Raises:
        ValueError: the value is not of the setting's type, or out of its range.
    """
    if name == "trust_region":
        parameters_of(word)
    return setting_of_word(config_class, name, word)


def _assigned(config_class: type[AgentConfig], option: str, word: str, forms: str) -> tuple[str, str]:
    name, equals, text = word.partition("=")
    name = name.replace("-", "_")
    if not (name and equals and text):
        raise ValueError(f"{option} = {word!r}; allowed: {forms}")
    known = [f.name for f in fields(config_class)]
    if name not in known:
        said = f"{option} = {name!r} is no setting of {config_class.algorithm}"
        raise ValueError(f"{said}; allowed: {allowed(name, known)}")
    return name, text


def _is_several(hint: Any) -> bool:
    return get_origin(hint) is tuple


def _takes_fractions(hint: Any) -> bool:
    """Tell whether a type allows numbers that are not whole."""
    if get_origin(hint) is Annotated:
        return _takes_fractions(get_args(hint)[0])
    return hint is float or any(_takes_fractions(option) for option in get_args(hint))


def check_names(space: Sequence[Searched], settings: Mapping[str, Any]) -> None:
    """Refuse a setting that is searched twice, or both searched and set.

    Raises:
        ValueError: names it.
    """
    names = [one.name for one in space]
    if not names:
        raise ValueError(f"search = (); allowed: at least one {_FORMS}")
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"search = {name!r} twice; allowed: every setting once")
        if name in settings:
            raise ValueError(f"set = {name!r}; allowed: what --search does not search")
