"""Keyword arguments of environments in words and in files."""

import json

import pytest

from klrl.experience.keywords import is_plain, of_json, of_word, to_json, to_word

VALUES = [
    3,
    -2.5,
    True,
    None,
    "8x8",
    "3",
    "(1, 2)",
    "",
    [1, [2.0, "x"]],
    (64, 64),
    (),
    {"shape": (64, 64), "weights": [0.3, 0.6], "inner": {"deep": ((1,), None, False)}},
    {"tuple": 3},
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_a_value_comes_back_from_its_word_and_from_a_file(value):
    assert is_plain(value)
    for again in (of_word(to_word(value)), of_json(json.loads(json.dumps(to_json(value))))):
        assert again == value
        assert type(again) is type(value)


@pytest.mark.parametrize("text", ["{1, 2}", "b'x'", "1j", "(1, {2})", "open('x')", "(1, nan)", "(" * 500, "...", "[1,"])
def test_what_json_cannot_keep_is_text(text):
    assert of_word(text) == text


@pytest.mark.parametrize("value", [{1, 2}, object(), {1: 2}, {"tuple": [1, 2]}, float("nan"), [len]], ids=repr)
def test_what_a_file_would_give_back_as_something_else_is_not_plain(value):
    assert not is_plain(value)
