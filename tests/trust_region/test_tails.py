"""Bounds on the states that move farthest: what is measured, that it is held, and the length of the step."""

import math
from dataclasses import dataclass, replace
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from environments import Noise, box, random_batch, small_agent
from families import MAKE, torch_kl
from scipy import special
from support import Nowhere, policy, same

from klrl.agents import NPG, PPO, TRPO
from klrl.policy.distributions import Categorical, DiagGaussian, MultiCategorical, SquashedGaussian
from klrl.run import Callback
from klrl.run.targets import TARGETS
from klrl.trust_region import (
    REGIONS,
    All,
    Change,
    CVaRConstraint,
    FisherVectorProduct,
    KLConstraint,
    MaxConstraint,
    QuantileConstraint,
    region_from_name,
)


def numpy_kl(old, new):
    """KL(old||new) of every state by scipy's elements, or by the normals' closed form."""
    if isinstance(old, SquashedGaussian):
        old, new = old.base, new.base
    if isinstance(old, DiagGaussian):
        (m, s), (n, t) = ((x.mean.numpy(), np.exp(x.log_std.numpy())) for x in (old, new))
        return (np.log(t / s) + (s**2 + (m - n) ** 2) / (2.0 * t**2) - 0.5).sum(-1)
    heads = np.cumsum(old.nvec)[:-1] if isinstance(old, MultiCategorical) else []
    p, q = ([special.softmax(z, -1) for z in np.split(x.logits.numpy(), heads, -1)] for x in (old, new))
    return sum(special.rel_entr(*pair).sum(-1) for pair in zip(p, q, strict=True))


def numpy_quantile(x, level):
    return np.sort(x)[math.ceil(level * (len(x) - 1))]


def numpy_cvar(x, level):
    """Rockafellar and Uryasev's minimum of t + E[(x - t)+] / (1 - level), which is at one of the values."""
    return min(t + np.maximum(x - t, 0.0).mean() / (1.0 - level) for t in x)


def change(old, new):
    zeros = torch.zeros(old.batch_shape, dtype=torch.float64)
    return Change(old, new, zeros, zeros, zeros)


def test_what_is_bounded_is_a_states_quantile_the_mean_of_the_tail_or_the_largest():
    for family in (Categorical, MultiCategorical, DiagGaussian, SquashedGaussian):
        for n, level in [(1, 0.95), (7, 0.5), (20, 0.95), (64, 0.9), (200, 0.95), (200, 0.0001), (200, 0.9999)]:
            c = change(MAKE[family](n, seed=n), MAKE[family](n, seed=n + 7))
            kl = numpy_kl(c.old, c.new)
            for region, expected in [
                (QuantileConstraint(0.1, level), numpy_quantile(kl, level)),
                (CVaRConstraint(0.1, level), numpy_cvar(kl, level)),
                (MaxConstraint(0.1), kl.max()),
            ]:
                assert region.violation(c) == pytest.approx(expected - 0.1, rel=1e-9), (family, n, region)
                assert region.report(c) == {region.metric: region.tail(c.kl), f"{region.metric}_bound": 0.1}
                assert (region.target_kl, region.on_exit) == (None, "backtrack")


def test_the_tails_mean_lies_between_quantile_and_largest_and_nan_and_infinity_are_outside():
    kl = torch.rand(101, generator=torch.Generator().manual_seed(0), dtype=torch.float64) ** 4
    regions = [QuantileConstraint(), CVaRConstraint(), MaxConstraint()]
    measured = [region.tail(kl) for region in regions]
    assert kl.mean() < measured[0] < measured[1] < measured[2] == kl.max()
    assert [region.tail(3.0 * kl) for region in regions] == pytest.approx([3.0 * x for x in measured])
    for broken in (math.nan, math.inf):
        for share, inside in [(1.0, False), (0.01, True)]:  # of the states; a quantile does not look at all of them
            wild = torch.where(torch.arange(101) < 101 * share, broken, kl)
            found = [region.tail(wild) - region.bound <= 0.0 for region in regions[1:]]
            assert found == [False, False]
            if not inside or math.isnan(broken):
                assert not regions[0].tail(wild) <= regions[0].bound


TAILS = {
    "quantile-constraint": {"quantile_kl": 0.02},
    "cvar-constraint": {"cvar_kl": 0.02, "quantile_level": 0.8},
    "max-constraint": {"max_state_kl": 0.02},
    "clip+quantile-constraint+max-constraint": {"quantile_kl": 0.01, "quantile_level": 0.5, "max_state_kl": 0.03},
}
SPACES = [
    (gym.spaces.Discrete(5), {}),
    (box(2), {"state_dependent_std": True}),
    (box(2), {"action_distribution": "squashed-gaussian"}),
    (gym.spaces.MultiDiscrete([3, 4]), {}),
]


class Tails(Callback):
    """The states' KL of every update, in float64 by torch, against what the update says of itself."""

    def __init__(self):
        self.shares = []

    def on_update_start(self, agent, batch):
        self.observations = batch.observations.flatten(0, 1)
        self.old = agent.distribution(self.observations).map(torch.Tensor.double)

    def on_update_end(self, agent, batch, metrics):
        kl = torch_kl(self.old, agent.distribution(self.observations).map(torch.Tensor.double)).numpy()
        level = agent.config.quantile_level or 0.95
        found = {"quantile": numpy_quantile(kl, level), "cvar": numpy_cvar(kl, level), "max": kl.max()}
        assert "drift/kl_target" not in metrics
        for name, value in found.items():
            if (bound := metrics.get(f"drift/kl_{name}_bound")) is not None:
                assert metrics[f"drift/kl_{name}"] == pytest.approx(value, rel=2e-3, abs=1e-8)
                assert metrics[f"drift/kl_{name}"] <= bound
                assert value <= bound * (1.0 + 1e-4)
                self.shares.append(value / bound)


@pytest.mark.parametrize("agent_class", [PPO, TRPO])
@pytest.mark.parametrize(("space", "settings"), SPACES, ids=["Discrete", "Box", "squashed", "MultiDiscrete"])
def test_every_update_is_inside_its_bound(agent_class, space, settings):
    fast = {"learning_rate": 0.02, "n_epochs": 4} if agent_class is PPO else {"n_critic_updates": 1}
    for name, bounds in TAILS.items():
        tails = Tails()
        for seed in range(2):
            shared = {"trust_region": name, "normalize_observations": False, **bounds, **settings, **fast}
            small_agent(agent_class, partial(Noise, space), seed, **shared).learn(128, tails)
        assert len(tails.shares) == 4 * (1 + ("clip" in name))
        assert max(tails.shares) > 0.5, name


@pytest.mark.parametrize("name", ["quantile-constraint", "cvar-constraint", "max-constraint"])
@pytest.mark.parametrize("agent_class", [TRPO, NPG])
def test_a_small_step_has_the_length_at_which_the_tail_meets_its_bound(agent_class, name):
    region = type(region_from_name(name))(1e-6)
    for space in (gym.spaces.Discrete(5), box(2)):
        agent = small_agent(agent_class, partial(Noise, space), trust_region=region, cg_damping=1e-3)
        metrics = agent.update(random_batch(agent, n_steps=128))
        scale = metrics.get("train/line_search_scale", 1.0)
        assert metrics[region.metric] == pytest.approx(scale**2 * 1e-6, rel=0.1)


@pytest.mark.parametrize("batch_size", [None, 7])
def test_the_curvature_of_the_states_is_that_of_each_alone(batch_size):
    agent = small_agent(TRPO, partial(Noise, box(2)))
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(1))[:, : agent.encoding.n_features]
    v = torch.randn(len(agent.networks.actor_parameters), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        found = FisherVectorProduct(agent.actor.linearize, x, 0.3, batch_size).of_states(v)
        alone = torch.stack([v @ FisherVectorProduct(agent.actor.linearize, one[None])(v) for one in x])
    torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-6)


@dataclass(frozen=True)
class TooLong(MaxConstraint):
    """Proposes steps that no line search of ten tries brings inside."""

    max_state_kl: float = 1e-6

    def step_within(self, curvature, of_states):
        return 1e4 * super().step_within(curvature, of_states)


@pytest.mark.parametrize(
    ("agent_class", "region"),
    [(TRPO, TooLong()), (PPO, MaxConstraint(1e-30)), (PPO, CVaRConstraint(1e-30)), (TRPO, All(Nowhere(), TooLong()))],
)
def test_a_step_that_no_try_brings_inside_changes_no_bit(agent_class, region):
    fast = {"learning_rate": 0.02} if agent_class is PPO else {}
    agent = small_agent(agent_class, partial(Noise, box(2)), trust_region=region, fold_normalizer=False, **fast)
    agent.learn(64)
    before = policy(agent)
    metrics = agent.update(random_batch(agent))
    assert same(policy(agent), before)
    assert metrics["drift/kl_max"] == 0.0
    assert metrics["train/line_search_scale" if agent_class is TRPO else "train/backtrack_scale"] == 0.0


def test_joined_regions_take_the_shortest_step_the_largest_violation_and_report_the_nearer_of_two_alike():
    c = change(MAKE[Categorical](40), MAKE[Categorical](40, seed=3))
    loose, tight, mean = CVaRConstraint(9.0), CVaRConstraint(0.1, 0.5), KLConstraint(0.3)
    curvatures = torch.linspace(0.1, 8.0, 40)
    for regions in ((loose, tight, mean), (tight, All(mean, loose))):
        joined = All(*regions)
        assert joined.violation(c) == max(r.violation(c) for r in (loose, tight, mean))
        assert joined.report(c) == tight.report(c)
        lengths = [r.step_within(4.05, lambda: curvatures) for r in (loose, tight, mean)]
        assert joined.step_within(4.05, lambda: curvatures) == min(lengths)
        assert lengths[2] == pytest.approx(math.sqrt(2 * 0.3 / 4.05))
        assert lengths[1] == pytest.approx(math.sqrt(2 * 0.1 / numpy_cvar(curvatures.numpy(), 0.5)), rel=1e-6)
    assert joined.target_kl == 0.3
    still = torch.zeros(40)
    still[0] = 4.0  # the quantile does not move: the mean decides
    assert QuantileConstraint(0.1, 0.5).step_within(0.1, lambda: still) == math.sqrt(2.0)


def test_what_regions_report_is_counted_against_its_bound():
    c = change(MAKE[Categorical](40), MAKE[Categorical](40, seed=3))
    c = replace(c, reference=MAKE[Categorical](40, seed=4))
    of_references = {
        "drift/kl_reference_bound",
        "drift/kl_reference_forward_bound",
    }  # of the reference's KL, not counted
    for name in REGIONS:
        names = set(region_from_name(name).report(c)) - of_references
        assert names == {x for pair in TARGETS.items() if names & {*pair} for x in pair}, name
    assert set(TARGETS) - {"drift/kl"} == {
        metric for name in REGIONS for metric in region_from_name(name).report(c) if metric in TARGETS
    }
