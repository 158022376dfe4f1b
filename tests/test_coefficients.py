"""Penalty coefficients: direction, bounds, fixed point, immutability."""

import dataclasses
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from klrl.trust_region import Adaptive, Fixed

kls = st.floats(0.0, 1e3) | st.just(math.inf) | st.just(math.nan)


@pytest.mark.parametrize("kl", [0.0, 0.01, 1e6, math.inf, math.nan])
def test_a_fixed_coefficient_never_changes_and_aims_at_nothing(kl):
    assert Fixed(3.0).update(kl) == Fixed(3.0)
    assert Fixed(3.0).target_kl is None


# Schulman et al. 2017, section 4, with d_targ = 0.03: halved below 0.02, doubled above 0.045.
@pytest.mark.parametrize(
    ("kl", "beta"),
    [(0.0, 1.0), (0.0199, 1.0), (0.0201, 2.0), (0.03, 2.0), (0.0449, 2.0), (0.0451, 4.0), (9.0, 4.0), (math.inf, 4.0)],
)
def test_an_adaptive_coefficient_doubles_beyond_its_aim_and_halves_short_of_it(kl, beta):
    assert Adaptive(target_kl=0.03, beta=2.0).update(kl).beta == beta


@given(st.lists(kls, max_size=60))
@settings(deadline=None, max_examples=50, derandomize=True)
def test_beta_stays_inside_its_bounds_whatever_happens(history):
    coefficient = Adaptive(target_kl=0.01, minimum=0.1, maximum=5.0)
    for kl in history:
        coefficient = coefficient.update(kl)
        assert 0.1 <= coefficient.beta <= 5.0
        assert (coefficient.target_kl, coefficient.minimum, coefficient.maximum) == (0.01, 0.1, 5.0)


@pytest.mark.parametrize(("kl", "bound"), [(1.0, 5.0), (0.0, 0.1)])
def test_beta_reaches_its_bound_and_comes_back(kl, bound):
    coefficient = Adaptive(target_kl=0.01, minimum=0.1, maximum=5.0)
    for _ in range(20):
        coefficient = coefficient.update(kl)
    assert coefficient.beta == bound
    assert coefficient.update(1.0 - kl).beta == (bound / 2 if kl else bound * 2)


@pytest.mark.parametrize("start", [1e-4, 1.0, 1e4])
def test_the_schedule_settles_where_the_kl_it_causes_is_the_one_it_aims_at(start):
    # A quadratic surrogate: the penalised step g / beta has KL = 1 / (2 beta^2); the aim 0.005 is met at beta = 10.
    coefficient = Adaptive(target_kl=0.005, beta=start)
    for _ in range(40):
        coefficient = coefficient.update(1.0 / (2.0 * coefficient.beta**2))
    settled = coefficient.update(1.0 / (2.0 * coefficient.beta**2))
    # KL within a factor 1.5 of the aim is beta within sqrt(1.5), but steps of 2 may jump over that band.
    assert 10 / math.sqrt(6) <= settled.beta <= 10 * math.sqrt(6)


def test_updating_returns_the_next_coefficient_and_keeps_this_one():
    coefficient = Adaptive(target_kl=0.01)
    assert coefficient.update(1.0) == coefficient.update(1.0) == Adaptive(target_kl=0.01, beta=2.0)
    assert coefficient == Adaptive(target_kl=0.01)
    with pytest.raises(dataclasses.FrozenInstanceError):
        coefficient.beta = 2.0


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: Fixed(0.0), "^beta = 0.0; allowed: a number > 0$"),
        (lambda: Fixed(math.nan), "^beta = nan"),
        (lambda: Adaptive(target_kl=-0.01), "^target_kl = -0.01; allowed: a number > 0$"),
        (lambda: Adaptive(beta=1e5), r"^beta = 100000.0; allowed: a number in \[0.0001, 10000\]$"),
        (lambda: Adaptive(minimum=2.0, maximum=1.0), "^beta = 1.0; allowed"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(build, text):
    with pytest.raises(ValueError, match=text):
        build()
