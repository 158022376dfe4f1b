"""Folding a change of statistics into the first layer, against dense evaluation in float64 from raw observations."""

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary
from torch import nn

from klrl.policy.actors import make_actor
from klrl.policy.linearization import is_packed, pack
from klrl.policy.mlp import mlp
from klrl.policy.networks import Critic
from klrl.policy.normalizer import Normalizer
from klrl.policy.normalizer_folding import first_layer, fold
from klrl.policy.observations import Encoding

ACTIONS = Discrete(4)
VECTOR, TABLE = Box(-np.inf, np.inf, (3,)), Box(-np.inf, np.inf, (2, 3))
MIXED = Dict(kind=Discrete(3), x=VECTOR, bits=MultiBinary(2), y=Box(-np.inf, np.inf, (2,)))
CASES = {"vector": (VECTOR, "auto"), "table": (TABLE, "auto"), "mixed": (MIXED, "auto"), "mask": (MIXED, "info")}
every_case = pytest.mark.parametrize(("space", "masks"), CASES.values(), ids=CASES)


def networks(encoding, activation="tanh", hidden=(16, 16)):
    """An actor and a critic with random biases, each packed into one vector."""
    style = {"activation": activation, "generator": torch.Generator().manual_seed(0)}
    both = make_actor(encoding, ACTIONS, hidden, **style), Critic(encoding, hidden, **style)
    for network in both:
        for parameter in network.parameters():
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=style["generator"])
    return both


def observations(encoding, n, seed, mean=0.0, scale=1.0):
    """Raw observations as they are collected: numbers of any scale, and one-hot vectors, bits and masks as they are."""
    rng = np.random.default_rng(seed)
    x = mean + scale * rng.normal(size=(n, *encoding.shape))
    fixed = encoding.fixed_scale
    return torch.from_numpy(x if fixed is None else np.where(fixed > 0.0, x > 0.0, x)).float()


def dense(network, encoding, x, data):
    """The trunk at raw ``x``, with the statistics of ``data``, in float64 numpy; and the largest normalised number."""
    x, data = x.double().numpy(), data.double().numpy()
    z = (x - data.mean(0)) / np.sqrt(data.var(0) + 1e-8)
    if encoding.fixed_scale is not None:
        z = np.where(encoding.fixed_scale > 0.0, x, z)
    largest, h = abs(z).max(), z.reshape(len(z), -1)[:, : encoding.n_features]
    for layer in network.trunk:
        if isinstance(layer, nn.Linear):
            h = h @ layer.weight.detach().double().numpy().T + layer.bias.detach().double().numpy()
        else:
            h = np.tanh(h) if isinstance(layer, nn.Tanh) else np.maximum(h, 0.0)
    return h, largest


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@every_case
def test_outputs_at_raw_observations_stay_where_nothing_is_clipped(space, masks, activation):
    encoding = Encoding(space, ACTIONS, masks)
    first, second = observations(encoding, 200, 0, 5.0, 3.0), observations(encoding, 100, 1, -2.0, 7.0)
    old = Normalizer.of_shape(encoding.shape, encoding.fixed_scale).absorb(first)
    new, everything = old.absorb(second), torch.cat([first, second])
    for network in networks(encoding, activation):
        before, largest = dense(network, encoding, everything, first)
        unfolded, _ = dense(network, encoding, everything, everything)
        fold([network], encoding, old, new)
        after, _ = dense(network, encoding, everything, everything)
        assert largest < 10.0
        np.testing.assert_allclose(after, before, rtol=0.0, atol=1e-5)  # float32 weights, 16 of a size of 1
        assert abs(unfolded - before).max() > 0.1


@every_case
def test_the_networks_themselves_agree_in_float32(space, masks):
    encoding = Encoding(space, ACTIONS, masks)
    x = observations(encoding, 200, 0, 5.0, 3.0)
    old = Normalizer.of_shape(encoding.shape, encoding.fixed_scale).absorb(x)
    new = old.absorb(observations(encoding, 100, 1, -2.0, 7.0))
    actor, critic = networks(encoding)
    before = actor(old(x)).logits, critic(old(x))
    fold([actor, critic], encoding, old, new)
    for one, other in zip(before, (actor(new(x)).logits, critic(new(x))), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_elements_of_a_known_scale_keep_their_weights_to_the_bit():
    encoding = Encoding(MIXED, ACTIONS, "info")
    old = Normalizer.of_shape(encoding.shape, encoding.fixed_scale).absorb(observations(encoding, 50, 0))
    new = old.absorb(observations(encoding, 50, 1, 3.0, 2.0))
    actor, _ = networks(encoding)
    before = actor.trunk[0].weight.detach().clone()
    fold([actor], encoding, old, new)
    same = (before == actor.trunk[0].weight).all(0)
    assert torch.equal(same, encoding.fixed_scale[: encoding.n_features] > 0.0)


def test_parameters_stay_in_the_vector_that_they_are_packed_in():
    encoding = Encoding(VECTOR, ACTIONS)
    old = Normalizer.of_shape(encoding.shape).absorb(observations(encoding, 50, 0))
    actor, _ = networks(encoding)
    vector = pack(actor)
    layers, before = actor.trunk.layers, vector.detach().clone()
    fold([actor], encoding, old, old.absorb(observations(encoding, 50, 1, 3.0, 2.0)))
    assert is_packed(actor, vector)
    assert actor.trunk.layers is layers
    changed = (vector != before).sum().item()
    assert changed == actor.trunk[0].weight.numel() + actor.trunk[0].bias.numel()


def test_what_was_clipped_is_what_is_left_over():
    encoding = Encoding(Box(-np.inf, np.inf, (1,)), ACTIONS)
    _, critic = networks(encoding, hidden=())
    W, b = critic.trunk[0].weight.item(), critic.trunk[0].bias.item()
    old = Normalizer.of_shape((1,)).absorb(torch.tensor([[-1.0], [1.0]]))  # mean 0, variance 1
    new = old.absorb(torch.tensor([[-7.0], [7.0]]))  # mean 0, variance 25: 20 is 4, and not clipped any more
    x = torch.tensor([[3.0], [20.0]])
    np.testing.assert_allclose(critic(old(x)).detach(), [3.0 * W + b, 10.0 * W + b], rtol=1e-5)
    fold([critic], encoding, old, new)
    np.testing.assert_allclose(critic(new(x)).detach(), [3.0 * W + b, 20.0 * W + b], rtol=1e-5)


@pytest.mark.parametrize(("scale", "folded"), [(9.0, True), (20.0, False)])
def test_an_element_that_hardly_changed_until_now_keeps_its_weights(scale, folded):
    encoding = Encoding(VECTOR, ACTIONS)
    x = observations(encoding, 1000, 0)
    y = observations(encoding, 1000, 1) * torch.tensor([1.0, scale * 2**0.5, 1.0])
    old = Normalizer.of_shape((3,)).absorb(x)
    actor, _ = networks(encoding)
    before = actor.trunk[0].weight.detach().clone()
    fold([actor], encoding, old, old.absorb(y))
    growth = (actor.trunk[0].weight / before).mean(0)
    assert growth[1].item() == pytest.approx(scale if folded else 1.0, rel=0.1)
    assert (growth[[0, 2]] != 1.0).all()


def test_a_constant_that_begins_to_move_leaves_finite_weights_of_the_same_size():
    encoding = Encoding(VECTOR, ACTIONS)
    x = observations(encoding, 100, 0)
    x[:, 1] = 7.25
    old = Normalizer.of_shape((3,)).absorb(x)
    actor, _ = networks(encoding)
    before = actor.trunk[0].weight.abs().max()
    fold([actor], encoding, old, old.absorb(observations(encoding, 100, 1)))
    assert actor.trunk[0].weight.abs().max() < 2.0 * before


class Twice(nn.Sequential):
    def forward(self, x):
        return super().forward(2.0 * x)


def own_trunk(sizes):
    return Twice(nn.Linear(*sizes))


def tied(sizes):
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    return nn.Sequential(first, nn.Tanh(), second, nn.Linear(*sizes))


def used_twice(sizes):
    layer = nn.Linear(3, 3)
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Linear(*sizes))


def hooked(sizes):
    trunk = mlp(sizes, activation="tanh", output_gain=1.0, generator=torch.Generator())
    trunk[0].register_forward_pre_hook(lambda module, inputs: None)
    return trunk


@pytest.mark.parametrize("trunk", [own_trunk, tied, used_twice, hooked])
def test_a_trunk_whose_first_layer_is_not_known_is_left_alone(trunk):
    encoding = Encoding(VECTOR, ACTIONS)
    old = Normalizer.of_shape((3,)).absorb(observations(encoding, 50, 0))
    _, critic = networks(encoding)
    critic.trunk = trunk([3, 1])
    before = [p.detach().clone() for p in critic.parameters()]
    fold([critic, nn.Linear(3, 1)], encoding, old, old.absorb(observations(encoding, 50, 1, 3.0, 2.0)))
    assert first_layer(critic) is None
    assert all(torch.equal(a, b) for a, b in zip(before, critic.parameters(), strict=True))


@pytest.mark.parametrize(
    "trunk",
    [
        lambda: nn.Linear(3, 1),
        lambda: nn.Sequential(nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)), nn.GELU(), nn.Linear(4, 1)),
        lambda: mlp((3, 4, 1), activation="silu", output_gain=1.0, generator=torch.Generator(), layer_norm=True),
    ],
    ids=["linear", "modules in turn", "layer norm"],
)
def test_any_modules_in_turn_keep_their_outputs_if_the_first_one_is_linear(trunk):
    encoding = Encoding(VECTOR, ACTIONS)
    x = observations(encoding, 50, 0)
    old = Normalizer.of_shape((3,)).absorb(x)
    new = old.absorb(observations(encoding, 50, 1, 3.0, 2.0))
    _, critic = networks(encoding)
    critic.trunk = trunk()
    before = critic(old(x))
    assert not torch.allclose(critic(new(x)), before, atol=1e-3)
    fold([critic], encoding, old, new)
    torch.testing.assert_close(critic(new(x)), before, atol=1e-5, rtol=1e-5)


def test_a_trunk_of_images_is_left_alone():
    encoding = Encoding(Dict(image=Box(0, 255, (8, 8, 3), np.uint8), x=VECTOR), ACTIONS)
    old = Normalizer.of_shape(encoding.shape, encoding.fixed_scale).absorb(observations(encoding, 50, 0))
    new = old.absorb(observations(encoding, 50, 1, 3.0, 2.0))
    actor, critic = networks(encoding)
    before = [p.detach().clone() for network in (actor, critic) for p in network.parameters()]
    fold([actor, critic], encoding, old, new)
    after = [p for network in (actor, critic) for p in network.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
