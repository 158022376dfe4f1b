"""Trainings whose observations come in any unit, at any offset, or as dark images; a std that outgrows float32."""

import warnings
from dataclasses import replace
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from environments import Noise, Sampling, box, random_batch, small_agent
from gymnasium.spaces import Box, Dict, Discrete
from support import both, parameters

from klrl.agents import PPO
from klrl.agents.saved_policy import SavedPolicy
from klrl.agents.update_batch import overflow
from klrl.experience import Collector
from klrl.experience.rollout import NonFinite
from klrl.policy.distributions import Categorical, DiagGaussian, SquashedGaussian
from klrl.policy.observations import Encoding
from klrl.run import checkpoint


class Far(Noise):
    """Observations of ten bits, in another unit, in float64: nothing is lost on the way."""

    def __init__(self, scale=1.0, offset=0.0):
        super().__init__(Discrete(3))
        self.observation_space = Box(-np.inf, np.inf, (3,), np.float64)
        self.scale, self.offset = scale, offset

    def _observe(self):
        return np.round(super()._observe().astype(np.float64) * 256.0) / 256.0 * self.scale + self.offset


def moved(batch, scale, offset):
    """The same steps as an environment in another unit tells them."""
    names = ("observations", "next_observations", "final_observations")
    return replace(batch, **{name: getattr(batch, name).double() * scale + offset for name in names})


UNITS = [(2.0**-30, 0.0), (2.0**100, 0.0), (1.0, 2.0**31), (2.0**-4, -(2.0**31))]


@both
@pytest.mark.parametrize(("scale", "offset"), UNITS)
def test_updates_are_the_same_in_every_unit(agent_class, scale, offset):
    plain, other = small_agent(agent_class, Far), small_agent(agent_class, partial(Far, scale, offset))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the untrained policy acted on numbers that were not normalised
        for seed in range(3):
            batch = random_batch(plain, seed)
            batch = replace(batch, **{"observations": torch.round(256.0 * batch.observations) / 256.0})
            plain.update(batch)
            other.update(moved(batch, scale, offset))
    for ours, theirs in zip(parameters(plain), parameters(other), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_no_digit_is_lost_between_the_environment_and_the_policy():
    agent = small_agent(PPO, partial(Far, 2.0**-10, 2.0**31)).learn(128)
    seen = []
    act = agent.act

    def watched(observations):
        seen.append(observations)
        return act(observations)

    collector = Collector(agent.training_envs.envs, np.random.SeedSequence(0), agent.encoding)
    batch = collector.collect(watched, 8)
    assert batch.observations.dtype == torch.float64
    units = (batch.observations - 2.0**31) * 2.0**18
    assert torch.equal(units, units.round())
    assert units.unique().numel() > 20
    raw = batch.observations.flatten(0, 1)
    expected = agent.distribution(raw).logits
    assert torch.equal(agent.distribution(raw.numpy()).logits, expected)
    rows = torch.stack(seen).flatten(0, 1)
    assert torch.equal(agent.distribution(rows).logits, expected)
    torch.testing.assert_close(batch.behaviour.logits.flatten(0, 1), expected, rtol=1e-5, atol=1e-6)
    modes = agent.predict(raw.numpy(), deterministic=True)[0]
    assert modes.tolist() == expected.argmax(-1).tolist()


def test_what_a_network_cannot_take_is_infinite_for_a_float64_too():
    encoding = Encoding(Box(-np.inf, np.inf, (4,), np.float64), Discrete(2))
    got = encoding(np.array([1e300, -1e39, 3e38, 1.5]))
    assert got.tolist() == [np.inf, -np.inf, 3e38, 1.5]
    agent = small_agent(PPO, partial(Far, 1e300))
    with pytest.raises(NonFinite, match=r"observation of environment 0, element .* is -?inf in step 0"):
        agent.learn(64)


def test_an_agent_saved_with_rounded_observations_finds_its_place(tmp_path):
    agent = small_agent(PPO, partial(Far, 0.1)).learn(64)
    where = agent.training_envs.cursor
    rounded = replace(where, observation=where.observation.float())
    other = small_agent(PPO, partial(Far, 0.1))
    collector = Collector(other.training_envs.envs, rounded, other.encoding)
    assert torch.equal(collector.cursor.observation, where.observation)


# Images.
IMAGE = Box(0, 255, (8, 8, 3), np.uint8)


class Pixels(Sampling):
    """Images whose elements end at a level."""

    def __init__(self, most, space=IMAGE):
        super().__init__(space)
        self.most = most

    def _observe(self, terminal):
        observation, info = super()._observe(terminal)
        if isinstance(observation, dict):
            return observation | {"image": np.minimum(observation["image"], self.most)}, info
        return np.minimum(observation, self.most), info


@both
@pytest.mark.parametrize("space", [IMAGE, Dict(image=IMAGE, x=Box(-1.0, 1.0, (2,)))], ids=["alone", "in a Dict"])
def test_images_are_divided_by_the_largest_pixel_of_the_first_batch_for_good(agent_class, space, tmp_path):
    agent = small_agent(
        agent_class,
        partial(Pixels, 10, space),
        image_scale="seen",
        **({"n_epochs": 2} if agent_class is PPO else {"n_critic_updates": 2}),
    ).learn(64)
    agent.learn(128)
    assert max(metrics["drift/start_kl"] for metrics in agent.history[1:]) < 1e-9
    loaded = agent_class.load(agent.save(tmp_path / "agent"))
    reference = SavedPolicy.read(tmp_path / "agent")
    raw = torch.from_numpy(agent.encoding(batched(space, 5)))
    for other in (loaded, reference):
        assert torch.equal(torch.as_tensor(other.normalizer.fixed_scale), torch.as_tensor(agent.normalizer.fixed_scale))
        assert torch.equal(other.distribution(raw).logits, agent.distribution(raw).logits)
    columns = agent.encoding.images[0].columns
    got = agent.normalizer(raw).reshape(5, -1)[:, columns]
    torch.testing.assert_close(got.double(), raw.reshape(5, -1)[:, columns].double() / 10.0, rtol=1e-6, atol=0.0)


def test_scales_of_several_images_are_read_again_and_a_file_without_any_means_the_declared_ones(tmp_path):
    class Two(Sampling):
        """Images that end at 10 and at 100."""

        def _observe(self, terminal):
            observation, info = super()._observe(terminal)
            return {"a": np.minimum(observation["a"], 10), "b": np.minimum(observation["b"], 100)}, info

    agent = small_agent(PPO, partial(Two, Dict(a=IMAGE, b=IMAGE)), image_scale="seen").learn(64)
    loaded = PPO.load(agent.save(tmp_path / "agent"))
    assert sorted({*loaded.normalizer.fixed_scale.tolist()}) == [0.01, 0.1]
    old = small_agent(PPO, partial(Pixels, 200)).learn(64)
    tensors, state = checkpoint.read(old.save(tmp_path / "old"))
    del tensors["normalizer.fixed_scale"]  # as files were before
    again = PPO.load(checkpoint.write(tmp_path / "older", tensors, state))
    assert again.normalizer.fixed_scale == 1.0 / 255.0
    raw = torch.from_numpy(old.encoding(batched(IMAGE, 5)))
    assert torch.equal(again.distribution(raw).logits, old.distribution(raw).logits)


def test_an_agent_that_starts_from_another_keeps_its_scale_of_images(tmp_path):
    first = small_agent(PPO, partial(Pixels, 10), image_scale="seen").learn(64)
    other = small_agent(PPO, partial(Pixels, 10)).start_from(first)
    assert other.learn(64).normalizer.fixed_scale == pytest.approx(0.1, rel=1e-12)
    assert PPO.load(other.save(tmp_path / "agent")).normalizer.fixed_scale == other.normalizer.fixed_scale


def batched(space, n):
    return gym.vector.utils.batch_space(space, n).sample()


def test_an_image_far_below_its_bound_is_named_once_with_the_setting():
    agent = small_agent(PPO, partial(Pixels, 10))
    line = r"observation has elements up to 10 of 255: .* image_scale = 'seen'"
    with pytest.warns(RuntimeWarning, match=line) as said:
        agent.learn(192)
    assert len(said) == 1
    assert agent.normalizer.fixed_scale == 1.0 / 255.0


def test_images_that_use_their_range_and_black_ones_are_as_declared():
    for most in (0, 32, 255):
        agent = small_agent(PPO, partial(Pixels, most)).learn(64)
        assert agent.normalizer.fixed_scale == 1.0 / 255.0
    black = small_agent(PPO, partial(Pixels, 0), image_scale="seen").learn(64)
    assert black.normalizer.fixed_scale == 1.0 / 255.0


def test_a_scale_of_other_images_is_refused():
    snapshot = small_agent(PPO, partial(Pixels, 10), image_scale="seen").learn(64).snapshot()
    for bad in (torch.ones(3), torch.tensor(-1.0), torch.tensor(np.nan)):
        with pytest.raises(ValueError, match=r"normalizer\.fixed_scale"):
            SavedPolicy(snapshot.tensors | {"normalizer.fixed_scale": bad}, snapshot.state)


# Standard deviations.
@pytest.mark.parametrize("family", [DiagGaussian, SquashedGaussian])
def test_a_std_that_overflows_is_named_with_what_rewards_it(family):
    log_std = torch.tensor([[0.0, 3.0], [1.0, 90.0]])
    policy = family(torch.zeros(2, 2), log_std)
    assert not torch.isfinite(policy.log_std.exp()).all()
    text = overflow(policy, 0.5)
    assert text.startswith("std = exp(log_std) of action element [1] overflows, log_std = 90")
    assert "ent_coef = 0.5" in text
    assert "ent_coef" not in overflow(policy, 0.0)
    assert overflow(family(torch.zeros(2, 2), log_std.clamp_max(80.0)), 0.5) == ""
    assert overflow(Categorical(torch.full((3, 2), 90.0)), 0.5) == ""


@pytest.mark.parametrize("state_dependent_std", [False, True])
def test_a_large_entropy_bonus_ends_in_a_line_that_names_it(state_dependent_std):
    settings = {"ent_coef": 100.0, "learning_rate": 1.0, "state_dependent_std": state_dependent_std, "n_epochs": 20}
    agent = small_agent(PPO, partial(Noise, box(1)), learning_rate_schedule="constant", **settings)
    with pytest.raises(FloatingPointError, match=r"std = exp\(log_std\) .* ent_coef = 100") as error:
        agent.learn(10_000)
    assert "\n" not in str(error.value)


def test_an_action_that_is_no_number_is_explained_by_the_std():
    agent = small_agent(PPO, partial(Noise, box(1)), ent_coef=1.0)
    agent.learn(64)
    agent.actor.log_std.data.fill_(100.0)
    with pytest.raises(NonFinite, match=r"action of environment .*: std = exp\(log_std\) of action element \[0\]"):
        agent.learn(64)
