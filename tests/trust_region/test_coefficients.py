"""Penalty coefficients: direction, bounds, fixed point, immutability."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from klrl.trust_region import Adaptive, Dual, Fixed, Proportional

BOUNDED = [Adaptive, Proportional, Dual]
bounded = pytest.mark.parametrize("cls", BOUNDED)
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


# Ziegler et al. 2019, section 2.2: 1 + K clip(KL / target - 1, -0.2, 0.2).
@pytest.mark.parametrize("proportion", [1.0, 0.1])
@pytest.mark.parametrize(
    ("kl", "error"), [(0.0, -0.2), (0.02, -0.2), (0.027, -0.1), (0.03, 0.0), (0.033, 0.1), (9.0, 0.2), (math.inf, 0.2)]
)
def test_a_proportional_coefficient_changes_by_the_relative_error_of_the_kl(kl, error, proportion):
    coefficient = Proportional(target_kl=0.03, beta=2.0, proportion=proportion)
    assert coefficient.update(kl).beta == pytest.approx(2.0 * (1.0 + proportion * error))


def published(beta, target, horizon, kls, n_sequences):
    """The controller of the code that Ziegler et al. 2019 published, and TRL after it, in numpy."""
    for kl in kls:
        beta *= 1.0 + np.clip(kl / target - 1.0, -0.2, 0.2) * n_sequences / horizon
        yield beta


@pytest.mark.parametrize(("n_sequences", "horizon"), [(64, 10_000), (512, 10_000), (1, 10)])
def test_a_proportional_coefficient_has_the_numbers_of_the_published_controller(n_sequences, horizon):
    kls = np.random.default_rng(0).gamma(2.0, 3.0, 500)
    coefficient = Proportional(target_kl=6.0, beta=0.2, proportion=n_sequences / horizon)
    for kl, beta in zip(kls, published(0.2, 6.0, horizon, kls, n_sequences), strict=True):
        coefficient = coefficient.update(kl)
        assert coefficient.beta == pytest.approx(beta, rel=1e-12)


@pytest.mark.parametrize("rate", [0.2, 0.5])
@pytest.mark.parametrize(("kl", "error"), [(0.0, -1.0), (0.015, -0.5), (0.03, 0.0), (0.045, 0.5)])
def test_a_dual_coefficient_ascends_log_beta_by_the_violation_in_units_of_the_target(kl, error, rate):
    updated = Dual(target_kl=0.03, beta=2.0, rate=rate).update(kl).beta
    assert math.log(updated / 2.0) == pytest.approx(rate * error, abs=1e-12)


@pytest.mark.parametrize("kl", [0.06, 9.0, 1e300, math.inf])
def test_one_wild_update_raises_a_dual_coefficient_no_more_than_no_movement_lowers_it(kl):
    up, down = (Dual(target_kl=0.03, beta=2.0).update(x).beta for x in (kl, 0.0))
    assert up * down == pytest.approx(4.0)
    assert math.log(up / 2.0) == pytest.approx(0.2)


def quadratic(target, scale):
    """Maximise g'x - beta KL, KL = x'Hx / 2: x = H^-1 g / beta, and beta = sqrt(g'H^-1 g / (2 target)) is exact."""
    rng = np.random.default_rng(0)
    root = rng.normal(size=(5, 5))
    H, g = root @ root.T + np.eye(5), scale * rng.normal(size=5)
    x = np.linalg.solve(H, g)
    return (lambda beta: 0.5 * (x / beta) @ H @ (x / beta)), math.sqrt(g @ x / (2.0 * target))


def categorical(target, scale):
    """Maximise E_new[A] - beta KL(old||new): new = beta old / (nu - A), with nu so that it sums to 1."""
    rng = np.random.default_rng(1)
    A, old = scale * rng.normal(size=6), rng.dirichlet(np.ones(6))

    def bisect(falling, low, high):
        for _ in range(60):  # halvings: the last is far below what rounding leaves
            middle = 0.5 * (low + high)
            low, high = (middle, high) if falling(middle) > 0.0 else (low, middle)
        return 0.5 * (low + high)

    def kl(beta):
        nu = A.max() + bisect(lambda x: (beta * old / (A.max() + x - A)).sum() - 1.0, 0.0, beta)
        new = beta * old / (nu - A)
        assert new.sum() == pytest.approx(1.0, abs=1e-9)
        return (old * np.log(old / new)).sum()

    return kl, math.exp(bisect(lambda log_beta: kl(math.exp(log_beta)) - target, -12.0, 12.0))


@pytest.mark.parametrize("problem", [quadratic, categorical])
@pytest.mark.parametrize("target", [1e-3, 0.01, 0.1])
@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
@pytest.mark.parametrize("rate", [0.1, 0.2, 0.5])
def test_a_dual_coefficient_converges_to_the_exact_multiplier_whatever_the_scales(problem, target, scale, rate):
    kl, exact = problem(target, scale)
    assert kl(exact) == pytest.approx(target, rel=1e-6)
    coefficient = Dual(target_kl=target, rate=rate)
    for _ in range(150):
        coefficient = coefficient.update(kl(coefficient.beta))
    assert coefficient.beta == pytest.approx(exact, rel=1e-4)


@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
def test_a_proportional_coefficient_settles_near_the_same_multiplier(scale):
    # Of a KL that falls as 1 / beta^2 its error of log beta changes sign and keeps its size: 1 - 2 K = -1 at K = 1.
    kl, exact = quadratic(0.01, scale)
    for proportion, rel in ((1.0, 0.25), (0.3, 1e-4)):
        coefficient = Proportional(target_kl=0.01, proportion=proportion)
        for _ in range(200):
            coefficient = coefficient.update(kl(coefficient.beta))
        assert coefficient.beta == pytest.approx(exact, rel=rel)


@bounded
@given(history=st.lists(kls, max_size=60))
@settings(deadline=None, max_examples=50, derandomize=True)
def test_beta_stays_inside_its_bounds_whatever_happens(cls, history):
    coefficient = cls(target_kl=0.01, minimum=0.1, maximum=5.0)
    for kl in history:
        coefficient = coefficient.update(kl)
        assert 0.1 <= coefficient.beta <= 5.0
        assert (coefficient.target_kl, coefficient.minimum, coefficient.maximum) == (0.01, 0.1, 5.0)


@bounded
@pytest.mark.parametrize("kl", [math.nan])
def test_a_kl_that_is_not_a_number_changes_no_coefficient(cls, kl):
    assert cls().update(kl) == cls()


@bounded
@pytest.mark.parametrize(("kl", "bound"), [(1.0, 5.0), (0.0, 0.1)])
def test_beta_reaches_its_bound_and_comes_back(cls, kl, bound):
    coefficient = cls(target_kl=0.01, minimum=0.1, maximum=5.0)
    for _ in range(20):
        coefficient = coefficient.update(kl)
    assert coefficient.beta == bound
    back = coefficient.update(1.0 - kl).beta
    assert 0.1 < back < 5.0
    if cls is Adaptive:
        assert back == (bound / 2 if kl else bound * 2)


@pytest.mark.parametrize("start", [1e-4, 1.0, 1e4])
def test_the_schedule_settles_where_the_kl_it_causes_is_the_one_it_aims_at(start):
    # A quadratic surrogate: the penalised step g / beta has KL = 1 / (2 beta^2); the aim 0.005 is met at beta = 10.
    coefficient = Adaptive(target_kl=0.005, beta=start)
    for _ in range(40):
        coefficient = coefficient.update(1.0 / (2.0 * coefficient.beta**2))
    settled = coefficient.update(1.0 / (2.0 * coefficient.beta**2))
    # KL within a factor 1.5 of the aim is beta within sqrt(1.5), but steps of 2 may jump over that band.
    assert 10 / math.sqrt(6) <= settled.beta <= 10 * math.sqrt(6)


@pytest.mark.parametrize(("cls", "beta"), [(Adaptive, 2.0), (Proportional, 1.2), (Dual, math.exp(0.2))])
def test_updating_returns_the_next_coefficient_and_keeps_this_one(cls, beta):
    coefficient = cls(target_kl=0.01)
    assert coefficient.update(1.0) == coefficient.update(1.0) == cls(target_kl=0.01, beta=beta)
    assert coefficient == cls(target_kl=0.01)
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
        (lambda: Proportional(proportion=1.5), r"^proportion = 1.5; allowed: a number in \[0, 1\]$"),
        (lambda: Dual(rate=0.0), r"^rate = 0.0; allowed: a number in \(0, 1\]$"),
        (lambda: Dual(beta=1e5), r"^beta = 100000.0; allowed: a number in \[0.0001, 10000\]$"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(build, text):
    with pytest.raises(ValueError, match=text):
        build()
