"""Keyword arguments of environments in words and in files."""

import json
import math
from collections import namedtuple
from dataclasses import replace

import gymnasium as gym
import pytest

from klrl.experience.environments import describe, described
from klrl.experience.wrapped import Wrapping
from klrl.keywords import is_plain, of_json, of_word, to_json, to_word

Named = namedtuple("Named", "n")
VALUES = [
    3,
    -2.5,
    True,
    None,
    "8x8",
    "3",
    "(1, 2)",
    "",
    math.inf,
    -math.inf,
    [1, [2.0, "x"]],
    (64, 64),
    (),
    {"shape": (64, 64), "weights": [0.3, 0.6], "inner": {"deep": ((1,), None, False)}},
    {"tuple": 3},
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_a_value_comes_back_from_its_word_and_from_a_file(value):
    assert is_plain(value)
    saved = json.loads(json.dumps(to_json({"x": value, "tuple": value})))
    for again in (of_word(to_word(value)), *of_json(saved).values()):
        assert again == value
        assert type(again) is type(value)


@pytest.mark.parametrize("text", ["{1, 2}", "b'x'", "1j", "(1, {2})", "open('x')", "(1, nan)", "(" * 500, "...", "[1,"])
def test_what_json_cannot_keep_is_text(text):
    assert of_word(text) == text


def test_constants_of_json_stand_beside_tuples():
    assert of_word('{"shape": (64, 64), "on": true, "off": [false, (null,)]}') == {
        "shape": (64, 64), "on": True, "off": [False, (None,)],
    }  # fmt: skip


@pytest.mark.parametrize(
    "value",
    [{1, 2}, object(), {1: 2}, {"tuple": [1, 2]}, math.nan, [len], Named(1)],
    ids=["set", "object", "keys", "tuple", "nan", "function", "names"],
)
def test_what_a_file_would_give_back_as_something_else_is_not_plain(value):
    assert not is_plain(value)
    assert to_json({"x": value}) is None


def test_arguments_that_hold_themselves_are_not_plain():
    endless = []
    endless.append(endless)
    assert not is_plain(endless)


def test_an_argument_may_be_called_tuple():
    spec = replace(gym.spec("CartPole-v1"), kwargs={"tuple": [1, (2,)]})
    saved = json.loads(json.dumps(describe(spec)))
    assert described(saved).kwargs == {"tuple": [1, (2,)]}
    assert str(Wrapping.of(Wrapping("a:b", {"tuple": [1]}).to_json())) == "a:b(tuple=[1])"
