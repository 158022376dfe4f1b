"""Regions that define hooks under the names that these had before count as if written today, and say so once."""

import dataclasses
import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from environments import small_agent
from support import without_time

from klrl.agents import NPG, PPO, TRPO, PPOConfig
from klrl.policy.distributions import Categorical
from klrl.trust_region import All, Change, Clip, KLConstraint, TrustRegion
from klrl.trust_region.all import redefines
from klrl.trust_region.region import RENAMED


def old(function):
    """A class made by a function, which has to warn once; the warning and the class."""

    @functools.wraps(function)
    def make():
        with pytest.warns(DeprecationWarning, match="goes with klrl") as caught:
            cls = function()
        assert [w.filename for w in caught] == [__file__]
        return cls

    return make


def change(step=0.1):
    generator = torch.Generator().manual_seed(0)
    z, d = (torch.randn(64, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    record = Categorical(z)
    action = record.sample(generator)
    advantage = torch.randn(64, generator=generator, dtype=torch.float64)
    return Change(record, Categorical(z + step * d), action, record.log_prob(action), advantage)


# The same regions as they were written before and as they are today.
@dataclass(frozen=True)
class Soft(TrustRegion):
    def surrogate(self, change):
        return torch.tanh(change.log_ratio) * change.advantage


@old
def old_soft():
    @dataclass(frozen=True)
    class Soft(TrustRegion):
        def gain(self, change):
            return torch.tanh(change.log_ratio) * change.advantage

    return Soft


@dataclass(frozen=True)
class Tilted(Clip):
    """With its derivative written out, on a region of klrl's, by ``super()``."""

    def surrogate(self, change):
        return super().surrogate(change) - 0.5 * change.log_ratio

    def surrogate_gradient(self, change):
        score = change.new.score(change.action)
        return tuple(g - 0.5 * s for g, s in zip(super().surrogate_gradient(change), score, strict=True))


@old
def old_tilted():
    @dataclass(frozen=True)
    class Tilted(Clip):
        def gain(self, change):
            return super().gain(change) - 0.5 * change.log_ratio

        def gain_gradient(self, change):
            score = change.new.score(change.action)
            return tuple(g - 0.5 * s for g, s in zip(super().gain_gradient(change), score, strict=True))

    return Tilted


@dataclass(frozen=True)
class Shrinking(TrustRegion):
    """A bound on the largest KL that falls over the training."""

    bound: float = 0.05
    on_exit = "backtrack"

    def violation(self, change):
        return float(change.kl.max()) - self.bound

    def scheduled(self, progress_remaining):
        return dataclasses.replace(self, bound=0.01 + 0.04 * progress_remaining)


@old
def old_shrinking():
    @dataclass(frozen=True)
    class Shrinking(TrustRegion):
        bound: float = 0.05
        on_exit = "backtrack"

        def excess(self, change):
            return float(change.kl.max()) - self.bound

        def at(self, progress_remaining):
            return dataclasses.replace(self, bound=0.01 + 0.04 * progress_remaining)

    return Shrinking


@dataclass(frozen=True)
class Tighter(KLConstraint):
    def violation(self, change):
        return super().violation(change) + 0.5 * self.target_kl


@old
def old_tighter():
    @dataclass(frozen=True)
    class Tighter(KLConstraint):
        def excess(self, change):
            return super().excess(change) + 0.5 * self.target_kl

    return Tighter


PAIRS = [(old_soft, Soft), (old_tilted, Tilted), (old_shrinking, Shrinking), (old_tighter, Tighter)]
pairs = pytest.mark.parametrize(("before", "today"), PAIRS, ids=[today.__name__ for _, today in PAIRS])


def everything(region, c):
    return region.surrogate(c), *region.surrogate_gradient(c), torch.tensor(region.violation(c)), region.scheduled(0.5)


@pairs
def test_a_hook_under_its_old_name_counts(before, today):
    region, expected, c = before()(), today(), change()
    *tensors, scheduled = everything(region, c)
    *expected_tensors, expected_scheduled = everything(expected, c)
    assert all(map(torch.equal, tensors, expected_tensors))
    assert vars(scheduled) == vars(expected_scheduled)
    assert region.by_autograd == expected.by_autograd
    for hook in RENAMED.values():
        assert redefines(region, hook) == redefines(expected, hook)


def trained(agent_class, region):
    """An agent whose steps are long enough for every hook to matter."""
    if not isinstance(region, KLConstraint):
        region = All(region, KLConstraint(0.05))
    return small_agent(agent_class, trust_region=region, learning_rate=0.02).learn(256)


@pairs
@pytest.mark.parametrize("agent_class", [PPO, TRPO])
def test_training_has_the_same_bits(before, today, agent_class):
    """Warnings are errors here: nothing more is said while the region is used."""
    one, other = trained(agent_class, before()()), trained(agent_class, today())
    assert without_time(one) == without_time(other)
    for a, b in zip(one.networks, other.networks, strict=True):
        assert all(map(torch.equal, a.parameters(), b.parameters()))
    ignored = trained(agent_class, today.__base__())
    assert without_time(one) != without_time(ignored)


def test_one_warning_names_all_of_a_class():
    with pytest.warns(DeprecationWarning, match="now") as caught:

        class Mine(TrustRegion):
            def gain(self, change):
                return change.ratio

            def excess(self, change):
                return 1.0

            def at(self, progress_remaining):
                return self

    class Derived(Mine):
        """It says nothing of its own."""

    (said,) = (str(w.message) for w in caught)
    assert said.startswith("Mine.gain is surrogate now, Mine.excess is violation now, Mine.at is scheduled now; ")
    assert Derived().violation(change()) == 1.0


def test_where_a_class_defines_both_the_new_name_counts_and_the_class_says_so():
    with pytest.warns(DeprecationWarning, match=r"^Both\.excess does not count beside violation; "):

        class Both(TrustRegion):
            def excess(self, change):
                return 1.0

            def violation(self, change):
                return 2.0

    assert Both().violation(change()) == 2.0
    assert Both().excess(change()) == 1.0  # as its author wrote it

    class Same(TrustRegion):
        def violation(self, change):
            return 3.0

        excess = violation  # for both versions of klrl: nothing to say

    assert Same().violation(change()) == 3.0


@pytest.mark.parametrize("name", RENAMED)
def test_klrls_own_regions_answer_to_the_old_names(name):
    argument = 0.5 if name == "at" else change()
    for region in (TrustRegion(), Clip(), KLConstraint(), All(Clip(), KLConstraint()), Tilted(), Shrinking()):
        expected = getattr(region, RENAMED[name])(argument)
        owner = next(c.__name__ for c in type(region).__mro__ if RENAMED[name] in vars(c))
        for call in (getattr(region, name), functools.partial(getattr(type(region), name), region)):
            with pytest.warns(DeprecationWarning, match=rf"^{owner}\.{name} is {owner}\.{RENAMED[name]} now; ") as said:
                found = call(argument)
            assert [w.filename for w in said] == [__file__]
            if isinstance(expected, tuple):
                assert all(map(torch.equal, found, expected))
            else:
                assert torch.equal(found, expected) if name == "gain" else found == expected


def test_a_hook_from_a_class_that_knows_nothing_of_regions_counts():
    class Doubling:
        def gain(self, change):
            return 2.0 * super().gain(change)

    with pytest.warns(DeprecationWarning, match=r"^Mixed\.gain is surrogate now"):

        class Mixed(Doubling, Clip):
            pass

    c = change()
    torch.testing.assert_close(Mixed().surrogate(c), 2.0 * Clip().surrogate(c))
    torch.testing.assert_close(Mixed().surrogate_gradient(c)[0], 2.0 * Clip().surrogate_gradient(c)[0])

    class After(Clip, Doubling):
        """Clip's comes first, as it always did."""

    assert torch.equal(After().surrogate(c), Clip().surrogate(c))


def test_an_older_derivative_is_not_that_of_a_newer_surrogate():
    class Slope:
        def gain_gradient(self, change):
            return tuple(0.0 * x for x in change.new.parameters)

    with pytest.warns(DeprecationWarning, match=r"^Mine\.gain is surrogate now; "):

        class Mine(Slope, TrustRegion):
            def gain(self, change):
                return change.ratio * change.advantage

    c = change()
    torch.testing.assert_close(Mine().surrogate_gradient(c)[0], TrustRegion().surrogate_gradient(c)[0])
    assert Mine.by_autograd == {"surrogate"}


def test_what_comes_before_an_old_hook_comes_before_it_under_the_new_name_too():
    with pytest.warns(DeprecationWarning, match=r"^Mine\.excess is violation now"):

        class Mine(TrustRegion):
            def excess(self, change):
                return 1.0

    class Stricter:
        def violation(self, change):
            return 5.0 + super().violation(change)

    class Today(Stricter, Mine):
        pass

    c = change()
    assert (Today().violation(c), Today().excess(c)) == (6.0, 6.0)

    class Sub(Mine):
        def violation(self, change):
            return 7.0 + super().violation(change)

    assert (Sub().violation(c), Sub().excess(c)) == (8.0, 8.0)


def test_a_hook_may_be_the_method_of_another_region():
    with pytest.warns(DeprecationWarning, match=r"^Mine\.gain is surrogate now"):

        class Mine(TrustRegion):
            clip_range = 0.1
            gain = Clip.gain
            _surrogates = Clip._surrogates

    assert torch.equal(Mine().surrogate(change(1.0)), Clip(0.1).surrogate(change(1.0)))


def test_a_dataclass_with_slots_is_the_same_region():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")

        @dataclass(frozen=True, slots=True)
        class Mine(TrustRegion):
            bound: float = 0.5

            def excess(self, change):
                return self.bound

    assert len(caught) == 1
    assert (Mine().violation(change()), Mine(1.0).excess(change())) == (0.5, 1.0)


def test_a_number_may_have_the_name_of_an_old_hook():
    @dataclass(frozen=True)
    class Mine(TrustRegion):
        gain: float = 3.0

        def penalty(self, change):
            return self.gain * change.kl

    assert PPOConfig(trust_region=Mine()).region.gain == 3.0
    assert not redefines(Mine(), "surrogate")


def test_a_hook_in_a_field_with_an_old_name_is_refused():
    @dataclass(frozen=True)
    class Mine(TrustRegion):
        excess: Callable[[Change], float]

    region = All(Clip(), Mine(lambda change: 1.0))
    with pytest.raises(ValueError, match=r"^Mine has a hook excess; allowed: violation$"):
        PPOConfig(trust_region=region)


def test_npg_refuses_a_surrogate_under_its_old_name_too():
    region = All(KLConstraint(), old_soft()())
    with pytest.raises(ValueError, match="allowed for NPG: no surrogate of its own"):
        small_agent(NPG, trust_region=region)
