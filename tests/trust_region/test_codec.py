"""Trust regions as JSON."""

import inspect
import json
import math

import pytest
import torch

from klrl import trust_region
from klrl.policy.distributions import Categorical
from klrl.trust_region import (
    REGIONS,
    Adaptive,
    AdaptiveLearningRate,
    All,
    Change,
    Clip,
    Coefficient,
    Dual,
    KLConstraint,
    KLPenalty,
    MirrorDescent,
    Proportional,
    ReferenceConstraint,
    ReferenceForwardConstraint,
    ReferenceForwardPenalty,
    ReferencePenalty,
    TrustRegion,
    region_from_json,
    region_from_name,
    region_to_json,
)
from klrl.trust_region.codec import own_class

SAVED = [
    *map(region_from_name, REGIONS),
    KLPenalty(Adaptive(target_kl=0.003, beta=0.1 + 0.2, minimum=1e-3, maximum=7.0)),
    KLPenalty(Proportional(target_kl=0.003, beta=0.1 + 0.2, minimum=1e-3, maximum=7.0, proportion=0.1)),
    AdaptiveLearningRate(target_kl=0.003, scale=0.1 + 0.2, minimum=0.1, maximum=2.0),
    KLPenalty(Dual(target_kl=0.003, beta=0.1 + 0.2, minimum=1e-3, maximum=7.0, rate=0.5)),
    All(Clip(0.1), KLPenalty(Adaptive(target_kl=0.02)), All(KLConstraint(0.5, on_exit="stop"), TrustRegion())),
    All(MirrorDescent(kl_coef=0.1 + 0.2, progress_remaining=0.7), ReferencePenalty(), ReferenceConstraint()),
    All(ReferenceForwardPenalty(0.3), ReferenceForwardConstraint(0.2)),
    All(),
]


@pytest.mark.parametrize("region", SAVED, ids=repr)
def test_a_region_survives_json(region):
    text = json.dumps(region_to_json(region))
    assert region_from_json(json.loads(text)) == region


@pytest.mark.parametrize(
    ("coefficient", "beta"),
    [(Adaptive(), 4.0), (Proportional(), 1.44), (Dual(), math.exp(0.4))],
    ids=["adaptive", "proportional", "dual"],
)
def test_an_adapted_coefficient_survives_json(coefficient, beta):
    old, new = Categorical(torch.zeros(3, 2)), Categorical(torch.tensor([[3.0, 0.0]] * 3))
    far = Change(old, new, torch.zeros(3, dtype=torch.int64), torch.zeros(3), torch.zeros(3))
    region = All(Clip(), KLPenalty(coefficient)).adapt(far).adapt(far)
    restored = region_from_json(json.loads(json.dumps(region_to_json(region))))
    assert restored.beta == region.beta == pytest.approx(beta)
    assert restored.adapt(far) == region.adapt(far)


@pytest.mark.parametrize("data", [{"class": "Nothing"}, {"class": "KLPenalty", "coefficient": {"class": "os"}}, {}])
def test_a_class_that_is_not_klrls_is_refused(data):
    with pytest.raises(ValueError, match=r"is not klrl's; allowed: one given to load") as error:
        region_from_json(data)
    assert "\n" not in str(error.value)


def test_a_saved_value_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"^clip_range = -0.2"):
        region_from_json({"class": "Clip", "clip_range": -0.2})


PUBLIC = [cls for _, cls in inspect.getmembers(trust_region, inspect.isclass) if not inspect.isabstract(cls)]


@pytest.mark.parametrize("cls", [cls for cls in PUBLIC if issubclass(cls, (TrustRegion, Coefficient))])
def test_every_public_region_and_coefficient_is_saved_by_its_fields(cls):
    made = cls()
    region = KLPenalty(made) if isinstance(made, Coefficient) else made
    assert region_from_json(json.loads(json.dumps(region_to_json(region)))) == region


def test_a_class_of_ones_own_is_named_and_not_made_again():
    class Mine(TrustRegion):
        pass

    assert own_class(region_to_json(All(Clip(), Mine()))) == "Mine"
    assert own_class(region_to_json(All(Clip(), KLPenalty()))) is None
