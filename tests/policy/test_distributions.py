"""Distribution records: sampling, log-probability and entropy against torch.distributions and enumeration."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch import distributions as td

from klrl.policy.distributions import (
    Bernoulli,
    Beta,
    Categorical,
    DiagGaussian,
    MultiCategorical,
    SquashedGaussian,
    as_record,
    stack_records,
)

INF = math.inf
BATCHES = [(), (4,), (2, 3)]


def categorical(*batch, k=5, seed=0):
    return Categorical(torch.randn(*batch, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))


def gaussian(*batch, d=3, seed=0):
    x = torch.randn(2, *batch, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return DiagGaussian(x[0], 0.5 * x[1])


def normal(*shape):
    return td.Normal(*(torch.linspace(low, 3.0, math.prod(shape)).reshape(shape) for low in (-3.0, 0.1)))


def oracle(record):
    """The same distribution as a torch object."""
    if isinstance(record, Categorical):
        return td.Categorical(logits=record.logits)
    return td.Independent(td.Normal(record.mean, record.std), 1)


records = pytest.mark.parametrize("make", [categorical, gaussian])
batches = pytest.mark.parametrize("batch", BATCHES)


@records
@batches
def test_log_prob_and_entropy_agree_with_torch(make, batch):
    record = make(*batch)
    action = record.sample(torch.Generator().manual_seed(1))
    assert record.batch_shape == batch
    torch.testing.assert_close(record.log_prob(action), oracle(record).log_prob(action))
    torch.testing.assert_close(record.entropy(), oracle(record).entropy())


@batches
def test_probabilities_sum_to_one_and_log_probs_are_their_logarithms(batch):
    p = categorical(*batch)
    torch.testing.assert_close(p.probs.sum(-1), torch.ones(batch, dtype=torch.float64))
    torch.testing.assert_close(p.log_probs, p.probs.log())


def test_an_action_of_probability_zero_adds_nothing_to_the_entropy_nor_nan_to_its_gradient():
    logits = torch.tensor([0.0, 0.0, -INF, 0.0, 0.0], requires_grad=True)
    entropy = Categorical(logits).entropy()
    entropy.backward()
    assert entropy.item() == pytest.approx(math.log(4.0))
    assert logits.grad.isfinite().all()
    assert Categorical(logits.detach()).log_prob(torch.tensor(2)).item() == -INF


@pytest.mark.parametrize("sample_shape", [(), (2, 3)])
@records
def test_samples_have_one_action_per_state(make, sample_shape):
    p = make(*sample_shape)
    event = () if make is categorical else (3,)
    assert p.sample().shape == (*sample_shape, *event)
    assert p.sample().dtype == (torch.int64 if make is categorical else torch.float64)


def test_categorical_frequencies_match_the_probabilities_within_four_standard_errors():
    n, probs = 200_000, torch.tensor([0.5, 0.3, 0.19, 0.01, 0.0])
    p = Categorical(probs.log().expand(n, 5))
    frequency = torch.bincount(p.sample(torch.Generator().manual_seed(0)), minlength=5) / n
    assert ((frequency - probs).abs() <= 4.0 * (probs * (1 - probs) / n).sqrt()).all()


def test_gaussian_samples_have_the_mean_and_standard_deviation_asked_for():
    n, mean, std = 200_000, torch.tensor([-3.0, 10.0]), torch.tensor([0.1, 5.0])
    x = DiagGaussian(mean.expand(n, 2), std.log().expand(n, 2)).sample(torch.Generator().manual_seed(0))
    assert ((x.mean(0) - mean).abs() <= 4.0 * std / n**0.5).all()
    assert ((x.std(0) - std).abs() <= 4.0 * std / (2 * n) ** 0.5).all()  # standard error of a normal's std
    assert torch.corrcoef(x.T)[0, 1].abs() <= 4.0 / n**0.5


@records
def test_a_generator_makes_samples_repeatable_and_leaves_the_global_one_alone(make):
    p, before = make(7), torch.get_rng_state()
    first, second = (p.sample(torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)


@records
@batches
def test_no_sample_is_more_probable_than_the_mode(make, batch):
    p = make(*batch)
    for seed in range(20):
        sample = p.sample(torch.Generator().manual_seed(seed))
        assert (p.log_prob(p.mode()) >= p.log_prob(sample)).all()


@records
def test_indexing_reads_the_batch_dimensions_of_every_parameter(make):
    p = make(4, 3)
    action = p.sample(torch.Generator().manual_seed(1))
    torch.testing.assert_close(p[2, 1].log_prob(action[2, 1]), p.log_prob(action)[2, 1])
    assert p[1:].batch_shape == (3, 3)
    assert p[torch.tensor([0, 0, 3])].batch_shape == (3, 3)


@records
def test_detached_records_have_the_same_numbers_and_no_graph(make):
    leaf = make(2).map(lambda x: x.clone().requires_grad_())
    for kept, cut in zip(leaf.parameters, leaf.detach().parameters, strict=True):
        assert kept.requires_grad
        assert not cut.requires_grad
        assert torch.equal(kept, cut)


@records
def test_stacked_records_can_be_taken_apart_again(make):
    rows = [make(2, seed=i) for i in range(3)]
    stacked = stack_records(rows)
    assert stacked.batch_shape == (3, 2)
    for i, row in enumerate(rows):
        assert all(torch.equal(a, b) for a, b in zip(stacked[i].parameters, row.parameters, strict=True))


@records
def test_records_cannot_be_changed(make):
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(make(), dataclasses.fields(make())[0].name, torch.zeros(3))


@pytest.mark.parametrize(
    ("build", "error", "text"),
    [
        (lambda: Categorical([0.0, 1.0]), TypeError, "logits must be a floating-point tensor"),
        (lambda: Categorical(torch.tensor([0, 1])), TypeError, "int64"),
        (lambda: Categorical(torch.tensor(0.0)), TypeError, "0 dimensions"),
        (lambda: DiagGaussian(torch.zeros(2), torch.tensor(0.0)), TypeError, "log_std must be"),
        (lambda: DiagGaussian(torch.zeros(2, dtype=torch.int32), torch.zeros(2)), TypeError, "mean must be"),
        (lambda: DiagGaussian(torch.zeros(4, 2), torch.zeros(2)), ValueError, r"log_std has shape \[2\], the mean \[4"),
    ],
)
def test_wrong_parameters_are_refused_where_they_enter(build, error, text):
    with pytest.raises(error, match=text) as caught:
        build()
    assert "\n" not in str(caught.value)


def test_a_record_passes_through_as_record():
    assert as_record(p := gaussian(2)) is p


@pytest.mark.parametrize(
    ("distribution", "batch_shape"),
    [
        (normal(), ()),
        (normal(4, 3), (4, 3)),
        (td.Independent(normal(4, 3), 1), (4,)),
        (td.Independent(normal(4, 3), 2), ()),
        (td.Independent(normal(4, 3, 2), 2), (4,)),
        (td.Categorical(logits=categorical(2).logits), (2,)),
        (td.Categorical(probs=categorical(2).logits.abs()), (2,)),
    ],
)
def test_torch_distributions_keep_their_batch_shape_and_their_densities(distribution, batch_shape):
    torch.manual_seed(0)  # torch's sample takes no generator
    record, action = as_record(distribution), distribution.sample()
    vector = action if isinstance(record, Categorical) else action.reshape(*batch_shape, -1)
    assert record.batch_shape == batch_shape
    torch.testing.assert_close(record.log_prob(vector), distribution.log_prob(action))


@pytest.mark.parametrize("look", [lambda p: None, lambda p: p.logits, lambda p: p.entropy()], ids=range(3))
@pytest.mark.parametrize("expand", [lambda p: p, lambda p: p.expand((3,))], ids=["itself", "expanded"])
def test_zero_probabilities_of_a_torch_categorical_stay_zero_whatever_was_read_before(look, expand):
    p = td.Categorical(probs=torch.tensor([0.25, 0.0, 0.75]))
    look(p)
    probs = as_record(expand(p)).probs
    torch.testing.assert_close(probs, torch.tensor([0.25, 0.0, 0.75]).expand_as(probs))
    assert (probs[..., 1] == 0.0).all()


@pytest.mark.parametrize(
    "distribution",
    [
        td.Poisson(torch.ones(2)),
        td.Independent(td.MultivariateNormal(torch.zeros(3, 2), torch.eye(2)), 1),
        td.Independent(td.Laplace(torch.zeros(2), torch.ones(2)), 1),
        td.TransformedDistribution(td.Normal(torch.zeros(2), torch.ones(2)), td.ExpTransform()),
    ],
    ids=lambda d: type(d).__name__,
)
def test_a_family_without_a_record_is_refused_in_one_line(distribution):
    with pytest.raises(TypeError, match=rf"^{type(distribution).__name__}[^;]* has no record; allowed:") as error:
        as_record(distribution)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("family", [Categorical, lambda x: DiagGaussian(x, 0.5 * x)], ids=["categorical", "gaussian"])
def test_what_was_looked_at_without_gradients_still_has_them_afterwards(family):
    leaf = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    p = family(leaf)
    with torch.no_grad():
        action = p.sample()
        p.log_prob(action), p.entropy()
    fresh = torch.autograd.grad(family(leaf).log_prob(action).sum(), leaf)[0]
    for _ in range(2):
        torch.testing.assert_close(torch.autograd.grad(p.log_prob(action).sum(), leaf, retain_graph=True)[0], fresh)


@pytest.mark.parametrize("probs", [[0.0, 0.5], [1e-10, 1.0], [0.3, 0.7]])
def test_an_expanded_bernoulli_keeps_its_certainties(probs):
    b = td.Bernoulli(torch.tensor(probs))
    direct = as_record(td.Bernoulli(torch.tensor(probs))).logits.squeeze(-1)
    _ = b.logits
    torch.testing.assert_close(as_record(b.expand((3, 2))).logits.squeeze(-1), direct.expand(3, 2), rtol=1e-5, atol=0.0)
    assert as_record(td.Bernoulli(logits=torch.tensor(-1e8))).logits.item() == -INF


def test_an_expanded_categorical_keeps_its_small_probabilities():
    c = td.Categorical(torch.tensor([1e-10, 0.5, 0.5]))
    _ = c.logits
    torch.testing.assert_close(as_record(c.expand((3,))).probs[0, 0].item(), 1e-10, rtol=1e-5, atol=0.0)


def test_nested_independents_make_one_action_of_all_their_dimensions():
    normal_ = td.Independent(td.Independent(normal(4, 3, 2), 1), 1)
    assert as_record(normal_).mean.shape == (4, 6)
    heads = td.Independent(td.Categorical(logits=torch.zeros(4, 3, 2, 5)), 2)
    assert as_record(heads).nvec == (5,) * 6


def test_heads_may_be_given_as_a_space_has_them():
    p = MultiCategorical(torch.zeros(5), np.array([2, 3]))
    assert p.nvec == (2, 3)
    assert p.sample().shape == (2,)


def test_a_mask_may_be_a_list_beside_tensors():
    p = Categorical.masked(torch.zeros(3), [True, False, True])
    assert p.probs.tolist() == [0.5, 0.0, 0.5]


def test_what_is_no_action_of_a_family_is_refused_in_one_line():
    zeros = np.zeros((2, 3), np.float32)
    cases = [
        (Categorical(zeros), [1, -1], r"action = -1; allowed: integers 0 to 2"),
        (Categorical(zeros), [3, 0], r"action = 3; allowed: integers 0 to 2"),
        (MultiCategorical(zeros, (2, 1)), [[1, 0], [0, 1]], r"action = \[0, 1\]; allowed: integers .* \[2, 1\]"),
        (Bernoulli(zeros), [[0.0, 1.0, 1.0], [0.0, 0.5, 1.0]], r"action = \[0.0, 0.5, 1.0\]; allowed: 0 and 1"),
        (Beta(zeros + 1, zeros + 2), [[0.0, 0.5, 1.0], [0.5, 0.5, 1.5]], r"1.5\]; allowed: numbers from 0 to 1"),
        (SquashedGaussian(zeros, zeros), [[0.0, -1.0, 1.0], [-2.0, 0.0, 0.0]], r"allowed: numbers from -1 to 1"),
    ]
    for record, actions, message in cases:
        for p, action in ((record, np.array(actions)), (record.map(torch.from_numpy), torch.tensor(actions))):
            assert p.supports(action).tolist().count(False) == 1
            with pytest.raises(ValueError, match=message):
                p.log_prob(action)
            good = action[1:] if p.supports(action)[1] else action[:1]
            one = p[1:] if p.supports(action)[1] else p[:1]
            np.testing.assert_allclose(one.log_prob(good), one.log_prob_inside(good))
    assert DiagGaussian(zeros, zeros).supports(zeros).all()


@pytest.mark.parametrize("mean", [0.0, 9.0, -30.0])
def test_squashed_samples_have_the_log_probability_and_score_of_the_normal_they_come_from(mean):
    """In float32, by torch's transform in float64: that of u, less log (1 - tanh(u)^2)."""
    n = 2000
    for kind in (torch.from_numpy, lambda x: x):
        old, new = (
            SquashedGaussian(kind(np.full((n, 2), m, np.float32)), kind(np.full((n, 2), -0.7, np.float32)))
            for m in (mean, mean + 0.1)
        )
        u = old.base.sample(torch.Generator().manual_seed(0))
        action = old.sample(torch.Generator().manual_seed(0))
        assert np.abs(np.asarray(action)).max() < 1.0
        wide = torch.as_tensor(u).double()
        slope = math.log(4.0) - 2.0 * wide.abs() - 2.0 * (-2.0 * wide.abs()).exp().log1p()
        expected = td.Normal(mean, math.exp(-0.7)).log_prob(wide) - slope
        np.testing.assert_allclose(old.log_prob(action), expected.sum(-1), rtol=1e-5, atol=1e-4)
        ratio = np.exp(np.asarray(new.log_prob(action), np.float64) - np.asarray(old.log_prob(action)))
        assert abs(ratio.mean() - 1.0) < 4.0 * ratio.std() / n**0.5
        for ours, theirs in zip(old.score(action), old.base.score(u), strict=True):
            np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))
        plain = action[: n // 2]  # an ordinary array: what it says itself
        assert np.isfinite(np.asarray(old[: n // 2].log_prob(plain))).all()


def test_squashed_actions_that_were_written_to_have_forgotten():
    old = SquashedGaussian(torch.zeros(4, 1), torch.zeros(4, 1))
    action = old.sample(torch.Generator().manual_seed(0))
    expected = old.log_prob(-action)
    action.neg_()
    torch.testing.assert_close(old.log_prob(action), expected)
    with pytest.raises(ValueError, match="read-only"):
        old.map(Tensor.numpy).sample()[0] = 0.5
