"""A policy of Stable-Baselines3 that klrl rebuilds from its zip computes, to the bit, what its own library computes."""

import numpy as np
import pytest
import torch
from sb3_models import MAKERS

from klrl.integrations.sb3_policy import read_policy
from klrl.policy.distributions import DiagGaussian


def batch_of(saved, n=64):
    """Observations as the environment gives them, one far from all that was seen."""
    space = saved.model.observation_space
    space.seed(1)
    observations = np.stack([np.asarray(space.sample()) for _ in range(n)])
    if observations.dtype.kind == "f":
        observations = np.clip(observations, -5.0, 5.0)
        observations[0] *= 1e3
    return observations


@pytest.mark.parametrize("name", MAKERS)
def test_outputs_are_those_of_the_librarys_own_loader(name, saved, reader):
    model = saved(name)
    loaded = type(model.model).load(model.path, device="cpu")
    assert torch.equal(loaded.policy.state_dict()["action_net.weight"], model.model.policy.action_net.weight)
    policy = read_policy(model.path, model.vec_normalize, reader)
    observations = batch_of(model)
    encoded = torch.from_numpy(policy.encoding(observations))
    record = policy.distribution(encoded)
    mine = [record.mean, record.log_std.exp()] if isinstance(record, DiagGaussian) else [record.logits]
    own = model.own(observations)
    if not isinstance(record, DiagGaussian):  # torch subtracts the logits' logsumexp when it makes a Categorical
        for _ in range(2 if policy.masked else 1):  # and sb3-contrib makes two of them
            mine = [normalized(record, mine[0])]
    assert all(torch.equal(a, b) for a, b in zip(mine, own, strict=True))
    assert torch.equal(policy.values(encoded), model.own_values(observations))


@pytest.mark.parametrize("name", ["masked", "masked heads"])
def test_masks_forbid_what_they_forbid_there(name, saved, reader):
    model = saved(name)
    policy = read_policy(model.path, None, reader)
    observations = batch_of(model)
    masks = np.random.default_rng(1).random((len(observations), policy.encoding.n_mask)) < 0.5
    masks[:, [0, 3] if name == "masked" else [0, 3, 5]] = True  # a choice of every head
    record = policy.distribution(torch.from_numpy(policy.encoding(observations, masks)))
    mine, (own,) = normalized(record, record.logits), model.own(observations, masks)
    np.testing.assert_allclose(mine.exp(), own.exp(), rtol=1e-6)
    assert (mine.exp()[torch.from_numpy(~masks)] == 0.0).all()


def normalized(record, logits):
    """As torch.distributions normalise logits, head by head."""
    name = type(record).__name__
    if name == "Bernoulli":
        return logits
    sizes = record.nvec if name == "MultiCategorical" else [logits.shape[-1]]
    heads = [x - x.logsumexp(-1, keepdim=True) for x in logits.split(list(sizes), -1)]
    return torch.cat(heads, -1)


def test_a_vec_normalize_for_a_model_without_one_is_used_with_a_warning(saved, reader):
    """The zip of a model that has learned says whether it was trained on one."""
    assert [reader.model(saved(name).path).used_vec_normalize for name in ("a2c", "pendulum")] == [False, True]
    with pytest.warns(
        RuntimeWarning, match=r"a2c_32_steps\.zip was not trained on a VecNormalize; .* normalises what it"
    ):
        policy = read_policy(saved("a2c").path, saved("pendulum").vec_normalize, reader)
    assert policy.statistics is not None
