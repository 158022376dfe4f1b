"""Trust regions by name."""

import dataclasses
import itertools

import pytest

from klrl.trust_region import (
    PARAMETERS,
    REGIONS,
    SPO,
    Adaptive,
    AdaptiveLearningRate,
    All,
    Clip,
    Dual,
    Fixed,
    FrobeniusProjection,
    KLConstraint,
    KLPenalty,
    KLProjection,
    MirrorDescent,
    Proportional,
    RatioDeviation,
    ReferenceConstraint,
    ReferencePenalty,
    Rollback,
    TrulyPPO,
    TrustRegion,
    WassersteinProjection,
    region_from_name,
)
from klrl.trust_region.names import parameters_of

# What names have stood for since they were there; a new one needs no line.
MEANING = {
    "none": (TrustRegion(), {}),
    "clip": (Clip(0.3), {"clip_range": 0.3}),
    "spo": (SPO(0.3), {"clip_range": 0.3}),
    "rollback": (Rollback(0.3, 0.5), {"clip_range": 0.3, "rollback_slope": 0.5}),
    "truly-ppo": (TrulyPPO(0.05, 0.4), {"state_kl": 0.05, "rollback_slope": 0.4}),
    "projection": (KLProjection(2.0, 0.05), {"state_kl": 0.05, "regression_coef": 2.0}),
    "w2-projection": (WassersteinProjection(2.0, 0.5), {"state_distance": 0.5, "regression_coef": 2.0}),
    "frobenius-projection": (FrobeniusProjection(2.0, 0.5), {"state_distance": 0.5, "regression_coef": 2.0}),
    "early-stop": (KLConstraint(0.02, on_exit="stop"), {"target_kl": 0.02}),
    "constraint": (KLConstraint(0.02, on_exit="backtrack"), {"target_kl": 0.02}),
    "espo": (RatioDeviation(0.5), {"ratio_deviation": 0.5}),
    "fixed-penalty": (KLPenalty(Fixed(2.0)), {"kl_coef": 2.0}),
    "adaptive-penalty": (KLPenalty(Adaptive(target_kl=0.02, beta=2.0)), {"target_kl": 0.02, "kl_coef": 2.0}),
    "proportional-penalty": (
        KLPenalty(Proportional(target_kl=0.02, beta=2.0)),
        {"target_kl": 0.02, "kl_coef": 2.0},
    ),
    "mdpo": (MirrorDescent(kl_coef=2.0), {"kl_coef": 2.0}),
    "reference-penalty": (ReferencePenalty(0.5), {"reference_coef": 0.5}),
    "reference-constraint": (ReferenceConstraint(0.5), {"reference_kl": 0.5}),
    "adaptive-lr": (AdaptiveLearningRate(target_kl=0.02), {"target_kl": 0.02}),
    "dual-penalty": (KLPenalty(Dual(target_kl=0.02, beta=2.0)), {"target_kl": 0.02, "kl_coef": 2.0}),
}


@pytest.mark.parametrize("name", MEANING)
def test_a_name_keeps_its_meaning(name):
    region, settings = MEANING[name]
    assert region_from_name(name, **settings) == region
    assert parameters_of(name) == settings.keys()
    assert type(region_from_name(name)) is type(region)


def values(x, path=()):
    """Values in a region's fields, those of its coefficient among them, by their paths."""
    if not dataclasses.is_dataclass(x):
        return {path: x}
    parts = [values(getattr(x, field.name), (*path, field.name)) for field in dataclasses.fields(x)]
    return {(): type(x)} | {key: value for part in parts for key, value in part.items()}


@pytest.mark.parametrize(("name", "setting"), [(name, x) for name in REGIONS for x in sorted(parameters_of(name))])
def test_a_setting_is_one_number_of_its_region_and_changes_no_other(name, setting):
    before, after = values(region_from_name(name)), values(region_from_name(name, **{setting: 0.37}))
    assert before.keys() == after.keys()
    assert [after[path] for path in before if before[path] != after[path]] == [0.37]


@pytest.mark.parametrize("name", REGIONS)
def test_a_setting_that_no_chosen_region_reads_is_refused_in_one_line(name):
    for setting in set(PARAMETERS) - parameters_of(name) | {"clip_rnge"}:
        with pytest.raises(ValueError, match=f"^{setting} = 0.5; allowed: only with a trust region that reads it"):
            region_from_name(name, **{setting: 0.5})


def test_the_settings_are_those_that_some_region_reads():
    assert set(PARAMETERS) == set().union(*map(parameters_of, REGIONS))


def test_names_joined_by_plus_share_their_settings():
    region = region_from_name("clip+adaptive-penalty+constraint", clip_range=0.1, target_kl=0.02)
    assert region == All(Clip(0.1), KLPenalty(Adaptive(target_kl=0.02)), KLConstraint(0.02))
    assert parameters_of("clip+early-stop") == {"clip_range", "target_kl"}


SURROGATES = {name for name in REGIONS if type(region_from_name(name)).surrogate is not TrustRegion.surrogate}
PAIRS = list(itertools.combinations(REGIONS, 2))


def test_any_two_names_can_be_joined():
    for pair in (pair for pair in PAIRS if not set(pair) <= SURROGATES):
        assert region_from_name("+".join(pair)) == All(*map(region_from_name, pair)), pair


def test_two_surrogates_cannot_be_joined():
    for pair in (pair for pair in PAIRS if set(pair) <= SURROGATES):
        with pytest.raises(ValueError, match="at most one region with a surrogate of its own") as error:
            region_from_name("+".join(pair))
        assert str(error.value).endswith(" and ".join(type(region_from_name(name)).__name__ for name in pair) + " have")


@pytest.mark.parametrize("name", ["", "Clip", "clip+", "clip,constraint", "clip + constraint", "trust"])
def test_an_unknown_name_is_refused_with_all_the_known_ones_in_one_line(name):
    with pytest.raises(ValueError, match=r"^trust_region = ") as error:
        region_from_name(name)
    assert all(known in str(error.value) for known in (repr(name), *REGIONS))
    assert "\n" not in str(error.value)


def test_a_wrong_value_is_refused_by_the_region_that_reads_it():
    with pytest.raises(ValueError, match=r"^clip_range = -1; allowed: a number > 0$"):
        region_from_name("clip", clip_range=-1)
    with pytest.raises(ValueError, match="at most one region with a surrogate of its own"):
        region_from_name("clip+clip")
