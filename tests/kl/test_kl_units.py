"""Nats or another unit: every function of klrl.kl takes ``base`` in the same place, or by name."""

import inspect
import math

import pytest
import torch

from klrl import kl
from klrl.kl import kl_covariance_part, kl_executed, kl_mean_part, kl_per_dimension, renyi
from klrl.policy import DiagGaussian

LOG2 = math.log(2.0)


def normals():
    """N(0, 1) and N(1, 2^2), whose KL is log 2 + (1 + 1) / 8 - 1/2, 1/8 of it by the means, at two states."""
    mean, log_std = torch.zeros(2, 1, dtype=torch.float64), torch.zeros(2, 1, dtype=torch.float64)
    return DiagGaussian(mean, log_std), DiagGaussian(mean + 1.0, log_std + LOG2)


def test_base_is_the_first_argument_after_the_policies_or_has_a_name_only():
    found = {}
    for name in kl.__all__:
        if inspect.isfunction(function := getattr(kl, name)) and "base" in inspect.signature(function).parameters:
            parameters = inspect.signature(function).parameters
            policies = [p for p in parameters if p in ("p", "q")]
            base = parameters["base"]
            found[name] = base.kind is base.KEYWORD_ONLY or [*parameters].index("base") == len(policies)
            assert base.default is None
    assert len(found) == 15
    assert all(found.values()), found


def test_support_has_a_name_only():
    for function in (getattr(kl, name) for name in kl.__all__):
        if inspect.isfunction(function) and "support" in (parameters := inspect.signature(function).parameters):
            assert parameters["support"].kind is inspect.Parameter.KEYWORD_ONLY


@pytest.mark.parametrize(
    ("part", "nats"),
    [
        (kl_per_dimension, LOG2 + 1.0 / 4.0 - 0.5),
        (kl_mean_part, 1.0 / 8.0),
        (kl_covariance_part, LOG2 + 1.0 / 8.0 - 0.5),
    ],
)
def test_parts_of_the_kl_are_in_nats_or_in_bits(part, nats):
    p, q = normals()
    for value, expected in ((part(p, q), nats), (part(p, q, 2), nats / LOG2), (part(p, q, base=2), nats / LOG2)):
        torch.testing.assert_close(value.reshape(-1), torch.full((2,), expected, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"base = 1\.0; allowed: None"):
        part(p, q, 1.0)
    as_numpy = part(*(x.map(lambda x: x.numpy()) for x in (p, q)), base=2)
    assert as_numpy.tolist() == part(p, q, base=2).tolist()


@pytest.mark.parametrize(
    ("function", "arguments"), [(renyi, (0.5,)), (kl_executed, (-1.0, 1.0))], ids=["renyi", "kl_executed"]
)
def test_base_after_something_else_is_taken_with_a_warning(function, arguments):
    p, q = normals()
    bits = function(p, q, *arguments, base=2)
    torch.testing.assert_close(bits, function(p, q, *arguments) / LOG2)
    with pytest.warns(
        DeprecationWarning, match=rf"{function.__name__}\(\.\.\., 2\) without a name; .*: base="
    ) as caught:
        assert torch.equal(function(p, q, *arguments, 2), bits)
    assert caught[0].filename == __file__
    with pytest.raises(TypeError):
        function(p, q, *arguments, 2, "inf")
