"""What an audit measures: torch's own KL in the environment's units, and standard errors over episodes."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import distributions as td

from klrl.audit import AuditedPolicy, Visits, audit, divergence
from klrl.audit.policy import check_comparable
from klrl.policy.distributions import Beta, Categorical, DiagGaussian
from klrl.policy.observations import Encoding
from klrl.policy.units import Units
from klrl.run.evaluation import CannotAct, Evaluation

ACTIONS = gym.spaces.Box(np.array([-1.0, 0.0], np.float32), np.array([3.0, 0.5], np.float32))
STATES = gym.spaces.Box(-10.0, 10.0, (2,), np.float32)


def gaussian(name, mean, log_std, units=None, action_space=ACTIONS, states=STATES):
    """A Gaussian whose mean is a matrix times the observation."""
    mean, log_std = torch.tensor(mean), torch.tensor(log_std)

    def policy(x):
        return DiagGaussian(x @ mean.T, log_std.expand(len(x), len(mean)).clone())

    return AuditedPolicy(name, Encoding(states, action_space), action_space, policy, lambda a: a.numpy(), units)


def visited(lengths, seed=0):
    """States that are alike within an episode."""
    rng = np.random.default_rng(seed)
    centers = rng.standard_normal((len(lengths), 1, 2)) * 2.0
    states = [c + 0.1 * rng.standard_normal((n, 2)) for c, n in zip(centers, lengths, strict=True)]
    episodes = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    evaluation = Evaluation((0.0,) * len(lengths), tuple(lengths))
    return Visits(torch.from_numpy(np.concatenate(states)).float(), episodes, evaluation)


def test_kl_is_that_of_torch_in_the_environments_units():
    p = gaussian("A", [[0.3, 0.1], [0.0, -0.2]], [-0.5, -1.0], Units.of(ACTIONS))
    q = gaussian("B", [[0.5, 0.1], [0.1, 0.0]], [0.1, -2.0])
    visits = visited([5, 9, 2])
    x = visits.observations.double()
    half = torch.tensor([2.0, 0.25], dtype=torch.float64)
    mean = x @ torch.tensor([[0.3, 0.1], [0.0, -0.2]]).double().T
    one = td.Normal(torch.tensor([1.0, 0.25]) + half * mean, half * torch.tensor([-0.5, -1.0]).double().exp())
    mean = x @ torch.tensor([[0.5, 0.1], [0.1, 0.0]]).double().T
    other = td.Normal(mean, torch.tensor([0.1, -2.0]).double().exp().expand_as(mean))
    for found, expected in (
        (divergence(p, q, p, visits), td.kl_divergence(one, other)),
        (divergence(q, p, p, visits), td.kl_divergence(other, one)),
    ):
        kl = expected.sum(-1)
        assert found.kl.value == pytest.approx(kl.mean().item(), rel=1e-5)
        assert found.largest == pytest.approx(kl.max().item(), rel=1e-5)
        assert found.quantiles[0.95] == pytest.approx(np.quantile(kl.numpy(), 0.95), rel=1e-5)
        assert [part.value for part in found.per_dimension] == pytest.approx(expected.mean(0).tolist(), rel=1e-5)
        assert sum(part.value for part in found.per_dimension) == pytest.approx(found.kl.value, rel=1e-12)


def test_one_policy_in_two_units_has_a_kl_of_nothing():
    units = Units.of(ACTIONS)
    inside = gaussian("A", [[0.3, 0.1], [0.0, -0.2]], [-0.5, -1.0], units)
    half, center = torch.from_numpy(units.half_range), torch.from_numpy(units.center)

    def same(x):
        record = inside.policy(x)
        return DiagGaussian(center + half * record.mean, record.log_std + half.log())

    outside = AuditedPolicy("B", inside.encoding, ACTIONS, same, inside.to_environment)
    assert divergence(inside, outside, inside, visited([4, 4])).kl.value < 1e-14


def test_the_standard_error_is_that_of_the_mean_over_episodes():
    """Against the spread of many such experiments, from which the error over states is far away."""
    p, q = gaussian("A", [[0.3, 0.1], [0.0, -0.2]], [0.0, 0.0]), gaussian("B", [[0.5, 0.1], [0.1, 0.0]], [0.0, 0.0])
    lengths = [10, 30] * 10
    found = [divergence(p, q, p, visited(lengths, seed)).kl for seed in range(200)]
    spread = np.std([x.value for x in found], ddof=1)
    assert np.sqrt(np.mean([x.stderr**2 for x in found])) == pytest.approx(spread, rel=0.15)  # 5 % in 200 experiments
    visits = visited(lengths)
    alone = Visits(visits.observations, torch.arange(len(visits.episodes)), visits.evaluation)
    assert divergence(p, q, p, alone).kl.stderr < 0.4 * spread


def test_a_single_episode_has_no_standard_error():
    p, q = gaussian("A", [[0.3, 0.1], [0.0, -0.2]], [0.0, 0.0]), gaussian("B", [[0.5, 0.1], [0.1, 0.0]], [0.0, 0.0])
    assert divergence(p, q, p, visited([7])).to_json()["stderr"] is None


def test_policies_without_a_formula_for_their_kl_are_refused():
    first = gaussian("A", [[0.3, 0.1], [0.0, -0.2]], [0.0, 0.0])
    beta = AuditedPolicy("B", first.encoding, ACTIONS, lambda x: Beta(x.abs() + 1.0, x.abs() + 1.0), lambda a: a)
    with pytest.raises(
        ValueError, match=r"^A is a DiagGaussian, B a Beta: no formula has the KL between them; allowed: "
    ):
        check_comparable(first, beta)
    wider = gym.spaces.Box(-2.0, 2.0, (2,), np.float32)
    other = gaussian("B", [[0.3, 0.1], [0.0, -0.2]], [0.0, 0.0], action_space=wider)
    with pytest.raises(ValueError, match=r"^B has action_space Box\(-2\.0, 2\.0, \(2,\), float32\); allowed: A's, Box"):
        check_comparable(first, other)
    one, many = (choosing(name, mask) for name, mask in (("A", "none"), ("B", "info")))
    with pytest.raises(ValueError, match=r"^B takes action masks, A none; allowed: both or neither$"):
        check_comparable(one, many)


class Choices(gym.Env):
    """Five steps, with masks by the method that sb3-contrib asks for; a forbidden choice is an error."""

    observation_space, action_space = STATES, gym.spaces.Discrete(3)

    def __init__(self):
        self.steps = 0

    def action_masks(self):
        return np.arange(3) != self.steps % 3

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        assert self.action_masks()[action]
        self.steps += 1
        return np.full(2, self.steps, np.float32), 1.0, self.steps == 5, False, {}


def choosing(name, mask, shift=0.0):
    encoding = Encoding(STATES, gym.spaces.Discrete(3), mask)

    def policy(x):
        logits = torch.tensor([0.0, shift, 1.0]).expand(len(x), 3)
        return Categorical.masked(logits, encoding.allowed(x) > 0.5) if mask == "info" else Categorical(logits)

    return AuditedPolicy(name, encoding, gym.spaces.Discrete(3), policy, lambda a: a.numpy())


def test_masks_come_from_the_environments_method_and_count_in_the_kl():
    policies = [choosing("A", "info"), choosing("B", "info", 1.0), choosing("C", "info", 2.0)]
    found = audit(policies, Choices, 3)
    assert [v.evaluation.lengths for v in found.visits] == [(5, 5, 5)] * 3
    first = found.visits[0].observations
    assert first[:5, 2:].tolist() == [[0, 1, 1], [1, 0, 1], [1, 1, 0], [0, 1, 1], [1, 0, 1]]
    expected = []
    for allowed in ([1, 2], [0, 2], [0, 1], [1, 2], [0, 2]):
        p, q = (torch.tensor([0.0, shift, 1.0], dtype=torch.float64)[allowed] for shift in (0.0, 1.0))
        expected.append(td.kl_divergence(td.Categorical(logits=p), td.Categorical(logits=q)).item())
    assert found.divergences[0].kl.value == pytest.approx(np.mean(expected), rel=1e-6)
    pairs = [(x.p, x.q, x.states_of) for x in found.divergences]
    assert pairs[:4] == [("A", "B", "A"), ("B", "A", "A"), ("A", "B", "B"), ("B", "A", "B")]
    assert {(p, q) for p, q, _ in pairs[8:]} == {("A", "C"), ("C", "A")}
    assert len(pairs) == 12


def test_what_a_policy_cannot_act_on_is_said(monkeypatch):
    monkeypatch.delattr(Choices, "action_masks")
    with pytest.raises(CannotAct, match="info has no 'action_mask' after 0 steps"):
        audit([choosing("A", "info"), choosing("B", "info", 1.0)], Choices, 1)
    with pytest.raises(ValueError, match=r"^1 policies; allowed: at least two to compare$"):
        audit([choosing("A", "info")], Choices, 1)
