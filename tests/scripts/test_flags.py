"""What is wrong with a command line, in one short line."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import pytest

from klrl.scripts.cli.flags import has_empty_value, objection
from klrl.validation import Bounds, Pattern


@dataclass
class Inner:
    learning_rate: Annotated[float, Bounds(0.0, 1.0)] = 0.1
    n_steps: int | None = None


@dataclass
class Settings:
    inner: Inner = field(default_factory=Inner)
    gamma: float = 0.99
    sizes: tuple[Annotated[int, Bounds(1)], ...] = (64,)
    switch: bool = False
    over_budget: Literal["stop", "warn"] = "stop"
    path: Path | None = None
    device: Annotated[str, Pattern("cpu|cuda", "cpu, cuda")] = "cpu"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("--gama 1", "--gama is not an option; did you mean --gamma?"),
        ("--learning_rat 1", "--learning_rat is not an option; did you mean --learning-rate?"),
        ("--xyzzy", "--xyzzy is not an option"),
        ("--gamma high", "gamma = 'high'; allowed: a number"),
        ("--gamma=high", "gamma = 'high'; allowed: a number"),
        ("--gamma", "gamma has no value; allowed: a number"),
        ("--gamma=", "gamma = ''; allowed: a number, not empty"),
        ("--gamma 1 --learning-rate x", "learning_rate = 'x'; allowed: a number in [0, 1]"),
        ("--n_steps 1.5", "n_steps = '1.5'; allowed: an integer or none"),
        ("--sizes 1 two", "sizes = 'two'; allowed: an integer >= 1, several separated by spaces"),
        ("--switch yes", "switch = 'yes'; allowed: --switch or --no-switch, and no value"),
        ("--over-budget pause", "over_budget = 'pause'; allowed: stop, warn"),
        ("--path=", "path = ''; allowed: a path or none, not empty"),
        ("--device tpu", "device = 'tpu'; allowed: cpu, cuda"),
    ],
)
def test_the_flag_its_value_and_what_is_allowed_are_named(words, line):
    assert objection(Settings, words.split(), Settings()) == line


@pytest.mark.parametrize(
    "words",
    [
        "--gamma -1e-3 --sizes 1 2 --no-switch --over_budget warn --path x --device cuda",
        "--sizes --n-steps None --learning-rate nan --no_switch",
        "--help",
        "",
    ],
)
def test_nothing_is_said_where_names_and_forms_are_right(words):
    assert objection(Settings, words.split(), Settings()) is None


def test_an_empty_value_is_noticed():
    assert has_empty_value(["--path", ""])
    assert has_empty_value(["--path="])
    assert not has_empty_value(["--path", "x", "--path=y"])
