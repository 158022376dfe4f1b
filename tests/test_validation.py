"""Checked dataclasses: what every kind of field accepts, and what the one line says when it does not."""

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import pytest

from klrl.validation import (
    Bounds,
    Finite,
    Fraction,
    NonNegative,
    NonNegativeInt,
    Pattern,
    Positive,
    PositiveInt,
    validate,
)

NAN, INF = math.nan, math.inf


@dataclass(frozen=True)
class Everything:
    positive: Positive = 1.0
    non_negative: NonNegative = 0.0
    finite: Finite = 0.0
    fraction: Fraction = 0.5
    half_open: Annotated[float, Bounds(0.0, 0.999, open_below=True)] = 0.5
    positive_int: PositiveInt = 1
    non_negative_int: NonNegativeInt = 0
    number: float = 0.0
    switch: bool = False
    text: str = ""
    choice: Literal["tanh", "relu"] = "tanh"
    sizes: tuple[PositiveInt, ...] = (64, 64)
    optional: Positive | None = None
    choice_or_record: Literal["default"] | Bounds = "default"
    form: Annotated[str, Pattern("(?s)a.*", "a and more")] | None = None

    def __post_init__(self) -> None:
        validate(self)


ACCEPTED: dict[str, list[Any]] = {
    "positive": [1e-300, 1, 1e300, np.float64(2.0)],
    "non_negative": [0.0, 0, -0.0, 3.5],
    "finite": [-1e300, 0.0, 1e300],
    "fraction": [0, 0.0, 0.5, 1, 1.0],
    "half_open": [1e-9, 0.999],
    "positive_int": [1, 10**12],
    "non_negative_int": [0, 7],
    "number": [-3.5, 2],
    "switch": [True, False],
    "text": ["", "CartPole-v1"],
    "choice": ["tanh", "relu"],
    "sizes": [(), (1,), (3, 2, 1)],
    "optional": [None, 0.1, 2],
    "choice_or_record": ["default", Bounds(0.0)],
    "form": ["a", "a\n", None],
}

NUMBER_LIKE = ["1", None, True, False, NAN, INF, -INF, 1j, (1.0,), [1.0]]
REJECTED: dict[str, tuple[list[Any], str]] = {
    "positive": ([0, 0.0, -1e-9, *NUMBER_LIKE], "a number > 0"),
    "non_negative": ([-1, -1e-9, *NUMBER_LIKE], "a number >= 0"),
    "finite": (NUMBER_LIKE, "a number that is finite"),
    "fraction": ([-0.01, 1.01, 2, *NUMBER_LIKE], "a number in [0, 1]"),
    "half_open": ([0, 0.0, 1.0, *NUMBER_LIKE], "a number in (0, 0.999]"),
    "positive_int": ([0, -3, 1.0, *NUMBER_LIKE], "an integer >= 1"),
    "non_negative_int": ([-1, 0.0, *NUMBER_LIKE], "an integer >= 0"),
    "number": (NUMBER_LIKE, "a number"),
    "switch": ([0, 1, "true", None], "true or false"),
    "text": ([0, None, b"bytes"], "text"),
    "choice": (["Tanh", "", None, 0], "tanh, relu"),
    "sizes": ([[0], 64, None, (64, 0), (64, 1.0), (True,)], "a tuple, each an integer >= 1"),
    "optional": ([0.0, -1.0, "1", True, NAN], "a number > 0 or none"),
    "choice_or_record": (["other", None, 0], "default or Bounds"),
    "form": (["", "ba", 1, b"a"], "a and more or none"),
}


@pytest.mark.parametrize("field", ACCEPTED)
def test_an_allowed_value_is_kept_as_it_is(field):
    for value in ACCEPTED[field]:
        assert getattr(Everything(**{field: value}), field) is value


def test_a_list_becomes_the_tuple_that_is_meant():
    assert Everything(sizes=[64, 32]).sizes == (64, 32)
    assert Everything(sizes=[]).sizes == ()


@pytest.mark.parametrize("field", REJECTED)
def test_a_forbidden_value_is_named_in_one_line_with_what_is_allowed(field):
    values, allowed = REJECTED[field]
    for value in values:
        with pytest.raises(ValueError, match=f"^{field} = ") as error:
            Everything(**{field: value})
        assert str(error.value) == f"{field} = {value!r}; allowed: {allowed}"


def test_an_integer_too_large_for_a_float_is_refused_in_one_line():
    with pytest.raises(ValueError, match="positive = "):
        Everything(positive=10**400)


def test_the_first_wrong_field_is_the_one_reported():
    with pytest.raises(ValueError, match=r"^fraction = 2"):
        Everything(fraction=2, positive_int=0)


def test_fields_of_a_base_class_are_checked_and_its_class_attributes_are_not():
    class Base:
        constant: int = "not a field"  # type: ignore[assignment]

    @dataclass(frozen=True)
    class Child(Everything, Base):
        extra: int = 0

    assert Child(extra=3).constant == "not a field"
    with pytest.raises(ValueError, match=r"^fraction"):
        Child(fraction=-1.0)


@pytest.mark.parametrize(
    ("bounds", "inside", "outside", "text"),
    [
        (Bounds(0.0), [0.0, 1e308], [-1e-12, INF, NAN], ">= 0"),
        (Bounds(0.0, open_below=True), [5e-324], [0.0, -1.0, INF], "> 0"),
        (Bounds(-1.0, 2.0), [-1, 2], [-1.1, 2.1], "in [-1, 2]"),
        (Bounds(0.0, 1.0, open_below=True), [1.0], [0.0], "in (0, 1]"),
        (Bounds(1, 2**16), [1, 65536], [0, 65537, 10**400], "in [1, 65536]"),
        (Bounds(0, 2**31), [2**31], [2**31 + 1], "in [0, 2147483648]"),
        (Bounds(-INF), [-1e308, 0.0, 1e308], [-INF, INF, NAN], "that is finite"),
    ],
)
def test_bounds_contain_their_closed_ends_and_print_as_an_interval(bounds, inside, outside, text):
    assert all(x in bounds for x in inside)
    assert not any(x in bounds for x in outside)
    assert str(bounds) == text
