"""Networks of images, against the papers' written out in torch, and layouts of images and of stacks of them."""

import math

import numpy as np
import pytest
import torch
from environments import Sampling, small_agent
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary
from support import every_agent
from torch import nn
from torch.nn import functional as F

from klrl.agents import PPO, PPOConfig
from klrl.policy.image_networks import Layout, make_image_network
from klrl.policy.observations import Encoding
from klrl.policy.trunks import least_parameters, make_trunk

STYLE = {"activation": "tanh", "output_gain": 1.0}


def image_space(*shape):
    return Box(0, 255, shape, np.uint8)


def trunk(space, n_outputs=4, hidden=(8,), **more):
    generator = torch.Generator().manual_seed(0)
    return make_trunk(Encoding(space, Discrete(2)), hidden, n_outputs, **STYLE, generator=generator, **more)


def network(name, *shape, **more):
    return make_image_network(name, Layout(shape), torch.Generator().manual_seed(1), **more)


def copied(target, source):
    """The hand-written network with the weights of klrl's, in the order in which both compute."""
    mine, its = list(target.parameters()), list(source.parameters())
    assert [p.shape for p in mine] == [p.shape for p in its]
    with torch.no_grad():
        for p, q in zip(mine, its, strict=True):
            p.copy_(q)
    return target


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_nature_is_the_network_of_mnih_2015():
    by_hand = nn.Sequential(
        *(nn.Conv2d(4, 32, 8, 4), nn.ReLU(), nn.Conv2d(32, 64, 4, 2), nn.ReLU(), nn.Conv2d(64, 64, 3, 1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(3136, 512), nn.ReLU()),
    )
    made = network("nature", 4, 84, 84)
    assert count(made) == count(by_hand) == 1_684_128
    x = torch.rand(3, 4, 84, 84, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(made(x), copied(by_hand, made)(x))


class Block(nn.Module):
    """Espeholt et al. 2018, figure 3, right: one of three."""

    def __init__(self, n_in, n):
        super().__init__()
        self.start = nn.Conv2d(n_in, n, 3, padding=1)
        self.a, self.b, self.c, self.d = (nn.Conv2d(n, n, 3, padding=1) for _ in range(4))

    def forward(self, x):
        x = F.max_pool2d(self.start(x), 3, 2, 1)
        x = x + self.b(F.relu(self.a(F.relu(x))))
        return x + self.d(F.relu(self.c(F.relu(x))))


def test_impala_is_the_residual_network_of_espeholt_2018():
    blocks = (Block(4, 16), Block(16, 32), Block(32, 32))
    by_hand = nn.Sequential(*blocks, nn.ReLU(), nn.Flatten(), nn.Linear(11 * 11 * 32, 256), nn.ReLU())
    made = network("impala", 4, 84, 84)
    assert count(made) == count(by_hand) == 1_089_232
    x = torch.rand(2, 4, 84, 84, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(made(x), copied(by_hand, made)(x))


@pytest.mark.parametrize("name", ["nature", "impala"])
def test_layer_norm_normalises_the_layer_behind_the_convolutions(name):
    made, plain = network(name, 1, 40, 44, layer_norm=True), network(name, 1, 40, 44)
    x = torch.rand(3, 1, 40, 44, generator=torch.Generator().manual_seed(2))
    sums = plain[:-1](x)
    expected = (sums - sums.mean(-1, keepdim=True)) / (sums.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(made(x), expected.relu())


@pytest.mark.parametrize(
    ("name", "shape", "inputs"),
    [
        ("small", (4, 84, 84), 121 * 32), ("small", (1, 1, 1), 32), ("nature", (3, 36, 50), 1 * 2 * 64),
        ("nature", (3, 96, 96), 8 * 8 * 64), ("impala", (3, 7, 7), 32), ("impala", (1, 1, 17), 3 * 32),
    ],
)  # fmt: skip
def test_networks_are_sized_by_the_image(name, shape, inputs):
    made = network(name, *shape)
    features = made(torch.zeros(2, *shape))
    if name == "small":
        assert features.flatten(1).shape == (2, inputs)
    else:
        (dense,) = (layer for layer in made if isinstance(layer, nn.Linear))
        assert dense.in_features == inputs
        assert features.shape == (2, dense.out_features)


def test_an_image_too_small_for_a_network_is_refused_with_its_size():
    said = (
        r"image_network = 'nature' with images of 35 x 84; allowed: 36 x 36 or more \('small' and 'impala' take any\)"
    )
    with pytest.raises(ValueError, match=said):
        trunk(image_space(35, 84, 3), image_network="nature")
    assert trunk(image_space(36, 36), image_network="nature")(torch.zeros(1, 36 * 36)).shape == (1, 4)


@pytest.mark.parametrize("name", ["small", "nature", "impala"])
@pytest.mark.parametrize("space", [image_space(40, 48, 3), Dict(a=image_space(4, 40, 40, 3), b=Discrete(3))], ids=str)
def test_no_network_has_fewer_parameters_than_the_bound(name, space):
    made = trunk(space, image_network=name)
    dense = [layer for layer in made.convolutions.modules() if isinstance(layer, nn.Linear)]
    least = least_parameters(Encoding(space, Discrete(2)), (8,), 4, name)
    assert least == sum(layer.weight.numel() for layer in dense) + count(made.layers) < count(made)


@pytest.mark.parametrize("name", ["small", "nature", "impala"])
def test_layouts_that_are_permuted_give_the_same_outputs(name):
    """Frames f, rows r, columns c, colors k: channels are all but rows and columns, in their order."""
    frames = np.random.default_rng(0).integers(0, 256, (2, 4, 40, 44, 3), dtype=np.uint8)
    f_k_r_c = np.moveaxis(frames, -1, 2)
    layouts = [frames, f_k_r_c, f_k_r_c.reshape(2, 12, 40, 44), np.moveaxis(f_k_r_c.reshape(2, 12, 40, 44), 1, -1)]
    layouts.append(np.moveaxis(f_k_r_c, (1, 2), (-2, -1)))
    outputs = []
    for images in layouts:
        made = trunk(image_space(*images.shape[1:]), image_network=name)
        outputs.append(made(torch.from_numpy(images.copy()).flatten(1) / 255.0))
    assert outputs[0].std() > 0.01
    for other in outputs[1:]:
        torch.testing.assert_close(outputs[0], other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "channels", "size"),
    [
        ((84, 84, 3), 3, (84, 84)), ((4, 84, 84), 4, (84, 84)), ((210, 160, 3), 3, (210, 160)), ((6, 7), 1, (6, 7)),
        ((4, 84, 84, 3), 12, (84, 84)), ((84, 84, 3, 4), 12, (84, 84)), ((4, 3, 64, 96), 12, (64, 96)),
        ((2, 2, 2), 2, (2, 2)), ((7, 7, 3), 3, (7, 7)),
    ],
)  # fmt: skip
def test_rows_and_columns_are_the_neighbours_with_the_most_pixels(shape, channels, size):
    layout = Layout(shape)
    assert (layout.channels, layout.size) == (channels, size)
    assert layout(torch.zeros(5, math.prod(shape))).shape == (5, channels, *size)


# Agents.
STACK = image_space(4, 12, 12, 3)


@every_agent
@pytest.mark.parametrize("name", ["small", "impala"])
def test_a_stack_of_color_images_trains_and_is_loaded(agent_class, name, tmp_path):
    agent = small_agent(agent_class, lambda: Sampling(STACK, masks=None), image_network=name).learn(128)
    assert agent.actor.trunk.convolutions[0][0].in_channels == 12
    assert sum(p.numel() for p in agent.actor.trunk.layers.parameters()) < 20_000  # not of 1,728 numbers a state
    agent.save(tmp_path / "a")
    again = agent_class.load(tmp_path / "a")
    assert again.config.image_network == name
    x = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (5, *STACK.shape), dtype=np.uint8))
    assert torch.equal(again.distribution(x).logits, agent.distribution(x).logits)


def test_files_from_before_the_settings_mean_what_they_meant():
    config = PPOConfig().to_json()
    assert config.pop("image_network") == "small"
    assert config.pop("frame_stacks") == "channels"
    older = PPOConfig.from_json(config)
    assert (older.image_network, older.frame_stacks) == ("small", "numbers")
    numbers = Encoding(STACK, Discrete(2), frame_stacks="numbers")
    assert not numbers.images
    assert numbers.dtype == np.float32
    assert numbers.fixed_scale is None


MIXED = Dict(direction=Discrete(4), image=image_space(7, 7, 3), bits=MultiBinary(2))


@pytest.mark.parametrize("mask", ["none", "info"])
def test_images_beside_choices_bits_and_masks_stay_bytes(mask):
    encoding = Encoding(MIXED, Discrete(3), mask)
    image = np.random.default_rng(0).integers(0, 256, (2, 7, 7, 3), dtype=np.uint8)
    observation = {"direction": np.array([1, 3]), "image": image, "bits": np.array([[0, 1], [1, 1]], np.int8)}
    masks = np.array([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]]) if mask == "info" else None
    x = encoding(observation, masks)
    assert x.dtype == np.uint8
    for part in encoding.parts:
        if part.keys == ("image",):
            np.testing.assert_array_equal(x[:, part.columns], image.reshape(2, -1))
        elif part.keys == ("direction",):
            np.testing.assert_array_equal(x[:, part.columns], np.eye(4)[[1, 3]])
        else:
            np.testing.assert_array_equal(x[:, part.columns], observation["bits"])
    if masks is not None:
        np.testing.assert_array_equal(encoding.allowed(x), masks)
        assert not encoding.forbids_everything(x).any()
    in_float32 = encoding.normalizer()(torch.from_numpy(x).float())
    assert torch.equal(encoding.normalizer()(torch.from_numpy(x)), in_float32)


def test_values_that_no_byte_has_are_refused_and_numbers_beside_images_keep_their_digits():
    observation = {"direction": 1, "image": np.zeros((7, 7, 3), np.uint8), "bits": np.array([0.5, 1.0])}
    with pytest.raises(ValueError, match=r"observation\['bits'\] has 0.5; allowed: elements of MultiBinary"):
        Encoding(MIXED, Discrete(3))(observation)
    beside = Dict(image=image_space(7, 7, 3), speed=Box(-1.0, 1.0, (1,)))
    assert Encoding(beside, Discrete(3)).dtype == np.float32


def test_a_batch_of_images_with_masks_is_a_quarter_of_what_it_was():
    agent = small_agent(PPO, lambda: Sampling(image_space(6, 7, 3), Discrete(3), masks="info"), action_mask="info")
    batch = agent.collector().collect(agent.act, 32)
    assert batch.observations.dtype == torch.uint8
    assert batch.observations[0, 0].nbytes == 6 * 7 * 3 + 3
