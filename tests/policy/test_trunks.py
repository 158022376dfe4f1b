"""Networks on images: layout, scale, memory, and networks of one's own."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from environments import Sampling, small_agent
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary
from support import every_agent
from torch import nn
from torch.nn.functional import conv2d

from klrl.agents import PPO
from klrl.policy.networks import Critic
from klrl.policy.observations import Encoding
from klrl.policy.trunks import ImageTrunk, make_trunk

HWC, CHW, GRAY = Box(0, 255, (6, 7, 3), np.uint8), Box(0, 255, (3, 6, 7), np.uint8), Box(0, 255, (6, 7), np.uint8)
MIXED = Dict(image=HWC, kind=Discrete(3), x=Box(-1.0, 1.0, (2,)))
STYLE = {"activation": "tanh", "output_gain": 1.0}


def trunk(space, seed=0, n_outputs=4):
    generator = torch.Generator().manual_seed(seed)
    return make_trunk(Encoding(space, Discrete(2)), (8,), n_outputs, **STYLE, generator=generator)


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def flat(images):
    return torch.from_numpy(images).flatten(1) / 255.0


def test_channels_may_come_first_or_last():
    images = pixels(5, *HWC.shape)
    last, first = trunk(HWC)(flat(images)), trunk(CHW)(flat(np.moveaxis(images, -1, 1)))
    torch.testing.assert_close(last, first)  # strides of their own: kernels of their own
    assert last.std() > 0.01


@pytest.mark.parametrize("shape", [(84, 84, 4), (4, 84, 84), (1, 9, 9), (9, 9, 1), (3, 2, 5), (1, 1, 1)], ids=str)
def test_the_smaller_end_has_the_channels(shape):
    made = trunk(Box(0, 255, shape, np.uint8))
    assert made.convolutions[0][0].in_channels == min(shape[0], shape[-1])
    assert made(torch.zeros(2, math.prod(shape))).shape == (2, 4)


def test_an_image_of_two_dimensions_has_one_channel():
    images, color = pixels(5, *GRAY.shape), Box(0, 255, (6, 7, 1), np.uint8)
    torch.testing.assert_close(trunk(GRAY)(flat(images)), trunk(color)(flat(images)))


def test_the_outputs_are_those_of_the_convolutions_written_out():
    made, images = trunk(HWC), pixels(5, *HWC.shape)
    x = torch.from_numpy(np.moveaxis(images, -1, 1).astype(np.float32) / 255.0)
    for layer in made.convolutions[0][::2]:
        x = conv2d(x, layer.weight, layer.bias, stride=2, padding=1).clamp_min(0.0)
    assert x.shape == (5, 32, 1, 1)
    h = torch.tanh(x.flatten(1) @ made.layers[0].weight.T + made.layers[0].bias)
    torch.testing.assert_close(made(flat(images)), h @ made.layers[2].weight.T + made.layers[2].bias)


def test_convolutions_are_orthogonal_with_gain_and_biases_zero_and_draw_from_their_own_generator():
    before = torch.get_rng_state()
    made, again, other = trunk(HWC), trunk(HWC), trunk(HWC, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    for layer, same, another in zip(*(t.convolutions[0][::2] for t in (made, again, other)), strict=True):
        W = layer.weight.detach().flatten(1)
        torch.testing.assert_close(W @ W.T, 2.0 * torch.eye(len(W)), rtol=1e-4, atol=1e-5)
        assert not layer.bias.any()
        assert torch.equal(layer.weight, same.weight)
        assert not torch.equal(layer.weight, another.weight)


def test_other_features_go_around_the_convolutions():
    made = trunk(MIXED)
    assert isinstance(made, ImageTrunk)
    x = torch.cat([flat(pixels(4, *HWC.shape)), torch.eye(3)[[0, 1, 2, 0]], torch.randn(4, 2)], -1)
    moved = x.clone()
    moved[:, -1] += 1.0
    assert (made(x) != made(moved)).all()
    assert torch.equal(made._features(x)[:, :5], x[:, -5:])


def test_two_images_have_convolutions_of_their_own():
    made = trunk(Dict(a=HWC, b=GRAY))
    assert [c[0].in_channels for c in made.convolutions] == [3, 1]
    assert made(torch.rand(2, 6 * 7 * 4)).shape == (2, 4)


def test_leading_dimensions_are_batch_dimensions():
    critic = Critic(Encoding(HWC, Discrete(2)), (8,), activation="tanh", generator=torch.Generator().manual_seed(0))
    x = torch.rand(2, 5, *HWC.shape)
    many = critic(x)
    assert many.shape == (2, 5)
    torch.testing.assert_close(many[1, 3], critic(x[1, 3]))
    np.testing.assert_allclose(critic(x.numpy()), many.detach(), rtol=1e-5)


# Agents.
def quick(agent_class):
    """Settings with one pass over a batch: convolutions take their time."""
    return {"n_epochs": 1} if agent_class is PPO else {"n_critic_updates": 1}


def seen(agent):
    """What goes into the first convolutions from now on, those that actor and critic share."""
    inputs = []
    for network in [agent.actor] if agent.networks.share_encoder else agent.networks:
        network.trunk.convolutions[0][0].register_forward_pre_hook(lambda _, x: inputs.append(x[0].detach().clone()))
    return inputs


@every_agent
@pytest.mark.parametrize(("normalize", "shared"), [(True, True), (False, True), (True, False)])
@pytest.mark.parametrize("space", [HWC, MIXED], ids=["image", "Dict"])
def test_pixels_are_scaled_to_one_exactly_once_in_training_and_prediction(agent_class, normalize, shared, space):
    env = partial(Sampling, space, masks=None)
    agent = small_agent(agent_class, env, normalize_observations=normalize, shared_encoder=shared, **quick(agent_class))
    inputs = seen(agent)
    agent.learn(128)
    values = torch.cat([x.flatten() for x in inputs])
    levels = values.double() * 255.0
    assert (levels - levels.round()).abs().max() < 1e-4
    assert values.min() == 0.0
    assert values.max() == 1.0
    assert values.std() > 0.2  # uniform: 0.29
    inputs.clear()
    image = pixels(*HWC.shape)
    agent.predict(image if space is HWC else {"image": image, "kind": 1, "x": np.zeros(2)})
    torch.testing.assert_close(inputs[-1][0], torch.from_numpy(np.moveaxis(image, -1, 0) / 255.0).float())


@every_agent
def test_a_batch_of_images_is_bytes_and_has_no_statistics(agent_class):
    agent = small_agent(agent_class, partial(Sampling, HWC), **quick(agent_class))
    batch = agent.collector().collect(agent.act, 32)
    for x in (batch.observations, batch.next_observations, batch.final_observations):
        assert x.dtype == torch.uint8
    metrics = agent.update(batch)
    assert agent.normalizer.moments.count == 0
    assert metrics["drift/kl_normalizer"] == 0.0
    assert agent.drift.probe.observations.dtype == torch.uint8


def test_beside_pixels_and_choices_only_the_numbers_are_normalised():
    agent = small_agent(PPO, partial(Sampling, MIXED), **quick(PPO)).learn(128)
    (x,) = (agent.training_envs.collector.collect(agent.act, 32).observations.flatten(0, 1),)
    z, n = agent.normalizer(x), math.prod(HWC.shape)
    torch.testing.assert_close(z[:, :n], x[:, :n] / 255.0)
    assert torch.equal(z[:, n : n + 3], x[:, n : n + 3])
    moments = agent.normalizer.moments
    expected = (x[:, -2:] - moments.mean[-2:]) / (moments.variance[-2:] + 1e-8).sqrt()
    torch.testing.assert_close(z[:, -2:], expected.float())


def own(space, n_outputs):
    """A network as one would write it for images of the space's shape."""
    layers = [nn.Unflatten(1, space.shape), nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.LazyLinear(n_outputs))


@every_agent
def test_networks_of_ones_own_train(agent_class):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        agent = small_agent(agent_class, partial(Sampling, CHW, Discrete(3)), **quick(agent_class))
        agent.actor.trunk, agent.critic.trunk = own(CHW, 3), own(CHW, 1)
        for network in agent.networks:
            network.trunk(torch.zeros(1, math.prod(CHW.shape)))  # makes the lazy layer
    before = [p.detach().clone() for network in agent.networks for p in network.parameters()]
    agent.learn(128)
    after = [p for network in agent.networks for p in network.parameters()]
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(metrics["drift/start_kl"] < 1e-6 for metrics in agent.history)
    assert agent.action_space.contains(agent.predict(pixels(*CHW.shape))[0])
    assert agent.predict(pixels(5, *CHW.shape))[0].shape == (5,)


@every_agent
def test_images_with_masks_train(agent_class):
    env = partial(Sampling, HWC, Discrete(3), masks="info")
    agent = small_agent(agent_class, env, action_mask="info", **quick(agent_class)).learn(128)
    assert agent.encoding.images
    assert agent.history[-1]["drift/kl"] > 0.0
    assert MultiBinary(3).contains(agent.drift.probe.observations[0, -3:].numpy().astype(np.int8))
