"""Budgets of KL over a whole training: where it ends, what is said, what is refused."""

import math
import warnings
from functools import cache

import pytest
from environments import small_agent
from support import both

from klrl.agents import PPO, TRPO
from klrl.run import Callback, KLBudget


@cache
def unlimited(agent_class):
    """What six updates do without a budget."""
    return small_agent(agent_class).learn(6 * 64).history


@both
@pytest.mark.parametrize("n", [1, 3])
def test_training_ends_after_the_first_update_whose_sum_is_over_the_budget(agent_class, n):
    kl = [metrics["drift/kl"] for metrics in unlimited(agent_class)]
    total = sum(kl[: n - 1]) + 0.5 * kl[n - 1]
    budget = KLBudget(total=total)
    agent = small_agent(agent_class).learn(6 * 64, callback=budget)
    assert [metrics["drift/kl"] for metrics in agent.history] == kl[:n]
    assert budget.reason == f"drift/kl_sum = {sum(kl[:n]):.6g} nats, over {total:g}, after {64 * n} steps"


@both
def test_training_ends_where_the_policy_is_too_far_from_the_first_one(agent_class):
    far = [metrics["drift/kl_initial"] for metrics in unlimited(agent_class)]
    limit = 0.5 * (far[0] + max(far))
    n = next(i for i, kl in enumerate(far) if kl > limit) + 1
    budget = KLBudget(initial=limit)
    assert len(small_agent(agent_class).learn(6 * 64, callback=[Callback(), budget]).history) == n > 1
    assert budget.reason.startswith(f"drift/kl_initial = {far[n - 1]:.6g} nats, over ")


def test_training_ends_where_the_path_is_too_long():
    lengths = [metrics["drift/path_length"] for metrics in unlimited(TRPO)]
    budget = KLBudget(length=0.5 * (lengths[1] + lengths[2]))
    assert len(small_agent(TRPO).learn(6 * 64, callback=budget).history) == 3
    assert budget.reason.startswith(f"drift/path_length = {lengths[2]:.6g} sqrt(nats), over ")


def test_what_is_exactly_spent_is_not_exceeded():
    budget = KLBudget(total=0.5, initial=0.25, length=2.0)
    metrics = {"drift/kl_sum": 0.5, "drift/kl_initial": 0.25, "drift/path_length": 2.0}
    assert budget.on_update_end(None, None, metrics) is None
    assert budget.reason is None


def test_training_goes_on_after_a_single_warning():
    budget = KLBudget(total=1e-9, initial=1e-9, on_exceed="warn")
    with pytest.warns(RuntimeWarning, match=r"drift/kl_sum = .* and drift/kl_initial = .*, after 64 steps") as seen:
        agent = small_agent(PPO).learn(192, callback=budget)
    assert len(seen) == 1
    assert len(agent.history) == 3
    assert budget.reason == str(seen[0].message)


@pytest.mark.parametrize("on_exceed", ["stop", "warn"])
def test_within_its_budget_training_is_what_it_is_without(on_exceed):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        budget = KLBudget(total=1e6, initial=1e6, on_exceed=on_exceed)
        limited, free = small_agent(PPO).learn(192, callback=budget), small_agent(PPO).learn(192)
    assert [m["drift/kl_sum"] for m in limited.history] == [m["drift/kl_sum"] for m in free.history]
    assert budget.reason is None


def test_the_path_before_a_second_training_counts():
    agent = small_agent(PPO).learn(192)
    budget = KLBudget(total=0.5 * agent.drift.kl_sum)
    assert len(agent.learn(192, callback=budget).history) == 4
    agent.learn(64, callback=KLBudget(total=1e6))


def test_a_path_of_unknown_length_is_not_within_a_budget():
    assert (
        KLBudget(total=1.0).on_update_end(small_agent(PPO), None, {"drift/kl_sum": math.nan, "drift/kl_initial": 0.0})
        is False
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"total = None, initial = None, length = None; allowed: a number > 0 for at least one of them"),
        ({"total": 0.0}, r"total = 0\.0; allowed: a number > 0 or none"),
        ({"initial": -1}, r"initial = -1; allowed: a number > 0 or none"),
        ({"total": math.inf}, r"total = inf; allowed: a number > 0 or none"),
        ({"total": 1.0, "on_exceed": "pause"}, r"on_exceed = 'pause'; allowed: stop, warn"),
    ],
)
def test_bad_budgets_are_refused(settings, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        KLBudget(**settings)
