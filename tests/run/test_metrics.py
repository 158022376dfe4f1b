"""What callbacks may add to metrics: numbers of every kind, text, and nothing else."""

import math
from decimal import Decimal
from enum import IntEnum, StrEnum
from fractions import Fraction

import numpy as np
import pytest
import torch

from klrl.run.metrics import settle


class Level(IntEnum):
    HARD = 3


class Color(StrEnum):
    RED = "red"


NUMBERS = [
    (3, 3.0), (True, 1.0), (False, 0.0), (2**70, 2.0**70), (-0.0, -0.0), (Level.HARD, 3.0),
    (np.int8(-3), -3.0), (np.uint64(2**63), 2.0**63), (np.bool_(True), 1.0), (np.float16(0.5), 0.5),
    (np.float32(0.1), 0.100000001490116), (np.float64(0.1), 0.1), (np.longdouble(0.5), 0.5),
    (np.array(0.25), 0.25), (np.array(7), 7.0), (np.array(False), 0.0),
    (torch.tensor(0.5), 0.5), (torch.tensor(0.5, requires_grad=True), 0.5), (torch.tensor(3), 3.0),
    (torch.tensor(True), 1.0), (torch.tensor(0.5, dtype=torch.bfloat16), 0.5),
    (torch.nn.Parameter(torch.ones(())), 1.0),
    (Fraction(1, 4), 0.25), (Decimal("0.1"), 0.1), (math.inf, math.inf), (np.float32(-math.inf), -math.inf),
]  # fmt: skip


@pytest.mark.parametrize(("value", "expected"), NUMBERS)
def test_numbers_of_every_kind_become_floats(value, expected):
    metrics = {"drift/kl": 0.5, "my/x": value}
    settle(metrics, {"drift/kl": 0.5}, "Mine")
    assert type(metrics["my/x"]) is float
    assert metrics["my/x"] == pytest.approx(expected, rel=1e-14)
    assert list(metrics) == ["drift/kl", "my/x"]


@pytest.mark.parametrize("value", [math.nan, np.float32("nan"), torch.tensor(math.nan), np.array(math.nan)])
def test_nan_is_a_number(value):
    metrics = {"my/x": value}
    settle(metrics, {}, "Mine")
    assert math.isnan(metrics["my/x"])


@pytest.mark.parametrize(
    ("value", "expected"),
    [("good", "good"), ("", ""), ("größer ✓", "größer ✓"), (np.str_("a"), "a"), (Color.RED, "red")],
)
def test_text_stays_text(value, expected):
    metrics = {"my/x": value}
    settle(metrics, {}, "Mine")
    assert (type(metrics["my/x"]), metrics["my/x"]) == (str, expected)


REFUSED = {
    r"None \(NoneType\)": None,
    r"of shape \(2,\) \(ndarray\)": np.zeros(2),
    r"of shape \(1,\) \(ndarray\)": np.zeros(1),
    r"of shape \(0, 3\) \(ndarray\)": np.zeros((0, 3)),
    r"of shape \(1, 1\) \(Tensor\)": torch.zeros(1, 1),
    r"\[1\.0\] \(list\)": [1.0],
    r"\{'a': 1\} \(dict\)": {"a": 1},
    r"1j \(complex\)": 1j,
    r".* \(complex64\)": np.complex64(1),
    r"tensor\(.*\) \(Tensor\)": torch.tensor(1j),
    r".* \(timedelta64\)": np.timedelta64(5, "s"),
    r"array\(None, dtype=object\) \(ndarray\)": np.array(None),
    r"b'text' \(bytes\)": b"text",
    r"1000+\.\.\. \(int\)": 10**400,
    r"'two\\nlines' \(str\)": "two\nlines",
    r"'\\ud800' \(str\)": "\ud800",
    r"'x+\.\.\. \(str\)": "x" * 1001,
    r"Decimal\('sNaN'\) \(Decimal\)": Decimal("sNaN"),
    r"tensor\(\.\.\., device='meta', size=\(\)\) \(Tensor\)": torch.zeros((), device="meta"),
    r"<built-in function print> \(builtin_function_or_method\)": print,
}


@pytest.mark.parametrize("said", REFUSED)
def test_anything_else_is_refused_in_one_line_and_left_out(said):
    metrics = {"drift/kl": 0.5, "my/x": REFUSED[said], "my/y": 1}
    expected = rf"^metric 'my/x' is {said}; allowed: a number, or one line of text \(from Mine\)$"
    with pytest.raises(ValueError, match=expected) as caught:
        settle(metrics, {"drift/kl": 0.5}, "Mine")
    assert "\n" not in str(caught.value)
    assert metrics == {"drift/kl": 0.5, "my/y": 1.0}


@pytest.mark.parametrize("name", ["", "a\nb", None, 3, ("a", "b"), b"a", "x" * 1001])
def test_a_name_is_one_line_of_text(name):
    metrics = {name: 1.0, "my/y": 2}
    with pytest.raises(ValueError, match=r"^metric .*; allowed as a name: one line of text.* \(from Mine\)$"):
        settle(metrics, {}, "Mine")
    assert metrics == {"my/y": 2.0}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m.update({"drift/kl": 0.0}), r"'drift/kl' is 0\.0 \(float\) now"),
        (lambda m: m.update({"drift/kl": None}), r"'drift/kl' is None \(NoneType\) now"),
        (lambda m: m.update({"train/value_loss": 1.0}), r"'train/value_loss' is 1\.0 \(float\) now"),
        (lambda m: m.update({"train/stop_reason": 1.0}), r"'train/stop_reason' is 1\.0 \(float\) now"),
        (lambda m: m.pop("drift/kl"), "'drift/kl' was removed"),
        (lambda m: m.clear(), "'drift/kl' was removed"),
    ],
)
def test_what_the_update_reports_stays(change, said):
    own = {"drift/kl": 0.5, "train/value_loss": math.nan, "train/stop_reason": "epochs"}
    metrics = dict(own)
    change(metrics)
    with pytest.raises(ValueError, match=rf"^metric {said} \(from Mine\); allowed: another name"):
        settle(metrics, own, "Mine")
    assert repr(metrics) == repr(own)


def test_the_update_s_own_metrics_may_be_written_again_as_they_are():
    own = {"drift/kl": 0.5, "train/value_loss": math.nan}
    metrics = {"drift/kl": float("0.5"), "train/value_loss": float("nan")}
    settle(metrics, own, "Mine")
    assert repr(metrics) == repr(own)
