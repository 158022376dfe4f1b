"""Networks by space: initialisation, shapes, refused spaces."""

import math
from itertools import pairwise

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, Text, Tuple
from torch import nn

from klrl.policy.actors import make_actor
from klrl.policy.mlp import mlp
from klrl.policy.networks import Critic
from klrl.policy.observations import Encoding
from klrl.policy.spaces import check_spaces

OBSERVATIONS = Box(-1.0, 1.0, (4,))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def actor(action_space, observation_space=OBSERVATIONS, hidden=(16, 16), log_std_init=-0.5, seed=0):
    return make_actor(
        Encoding(observation_space, action_space),
        action_space,
        hidden,
        log_std_init=log_std_init,
        activation="tanh",
        generator=generator(seed),
    )


def linears(module):
    return [layer for layer in module.modules() if isinstance(layer, nn.Linear)]


@pytest.mark.parametrize("sizes", [(3, 64, 64, 2), (100, 8, 1), (5, 5), (2, 64, 7)])
@pytest.mark.parametrize("gain", [0.01, 1.0])
def test_weights_are_orthogonal_with_their_gain_and_biases_zero(sizes, gain):
    layers = linears(mlp(sizes, activation="tanh", output_gain=gain, generator=generator()))
    assert [(layer.in_features, layer.out_features) for layer in layers] == list(pairwise(sizes))
    for layer in layers:
        W = layer.weight.detach()
        gram = W @ W.T if W.shape[0] <= W.shape[1] else W.T @ W
        g = gain if layer is layers[-1] else math.sqrt(2.0)
        torch.testing.assert_close(gram, g**2 * torch.eye(len(gram)), rtol=1e-4, atol=1e-6 * g**2)
        assert not layer.bias.any()


@pytest.mark.parametrize(("activation", "kind"), [("tanh", nn.Tanh), ("relu", nn.ReLU)])
def test_every_layer_but_the_last_has_the_activation(activation, kind):
    kinds = [type(m) for m in mlp((3, 8, 8, 2), activation=activation, output_gain=1.0, generator=generator())]
    assert kinds == [nn.Linear, kind, nn.Linear, kind, nn.Linear]


@pytest.mark.parametrize("space", [Discrete(3), Box(-1.0, 1.0, (2,))], ids=str)
def test_the_first_policy_hardly_depends_on_the_state_and_the_critic_has_unit_gain(space):
    policy = actor(space)
    assert torch.linalg.matrix_norm(linears(policy)[-1].weight, 2).item() == pytest.approx(0.01, rel=1e-4)
    outputs = policy(torch.randn(100, 4, generator=generator())).parameters[0]
    assert outputs.abs().max() <= 0.01 * math.sqrt(16)  # |W h| <= ||W|| |h|, and |tanh| < 1 in 16 units
    critic = Critic(Encoding(OBSERVATIONS, space), (16,), activation="tanh", generator=generator())
    assert linears(critic)[-1].weight.norm().item() == pytest.approx(1.0, rel=1e-5)


def test_networks_draw_from_their_own_generator_and_nothing_else():
    before = torch.get_rng_state()
    same, again, other = (actor(Discrete(3), seed=seed) for seed in (1, 1, 2))
    Critic(Encoding(OBSERVATIONS, Discrete(3)), (16,), activation="relu", generator=generator())
    assert torch.equal(torch.get_rng_state(), before)
    a, b, c = (nn.utils.parameters_to_vector(x.parameters()) for x in (same, again, other))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


@pytest.mark.parametrize("observation_shape", [(), (4,), (2, 3)])
@pytest.mark.parametrize("batch", [(), (5,), (2, 5)])
def test_leading_dimensions_are_batch_dimensions(observation_shape, batch):
    space = Box(-1.0, 1.0, observation_shape)
    x = torch.randn((*batch, *observation_shape), generator=generator())
    assert actor(Discrete(3), space)(x).logits.shape == (*batch, 3)
    assert actor(Box(-1.0, 1.0, (2, 2)), space)(x).mean.shape == (*batch, 4)
    assert Critic(Encoding(space, Discrete(3)), (8,), activation="tanh", generator=generator())(x).shape == batch


def test_a_batch_gives_what_its_rows_give():
    policy, x = actor(Discrete(3)).double(), torch.randn(5, 4, generator=generator(), dtype=torch.float64)
    torch.testing.assert_close(policy(x).logits, torch.stack([policy(row).logits for row in x]))


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1", "MountainCarContinuous-v0"])
def test_gymnasium_tasks_are_supported(name):
    with gym.make(name) as env:
        check_spaces(env.observation_space, env.action_space)
        policy = actor(env.action_space, env.observation_space)
        observation, _ = env.reset(seed=0)
        action = policy.to_environment(policy(torch.tensor(observation)).detach().sample(generator()))
        assert env.action_space.contains(action) or env.action_space.contains(action.item())


@pytest.mark.parametrize(
    ("observation_space", "action_space", "text"),
    [
        (Text(5), Discrete(2), "^observation space .* is not supported; allowed: non-empty Box"),
        (
            Dict(x=Tuple([OBSERVATIONS, Text(5)])),
            Discrete(2),
            r"^observation space\['x'\]\[1\] Text.* is not supported",
        ),
        (Dict(), Discrete(2), "^observation space Dict.* is empty; allowed"),
        (Box(-1.0, 1.0, (0,)), Discrete(2), "^observation space .* non-empty Box"),
        (
            OBSERVATIONS,
            Tuple([Discrete(2), Discrete(3)]),
            "^action space .* is not supported; allowed: Discrete, Multi",
        ),
        (OBSERVATIONS, Text(5), "^action space"),
        (OBSERVATIONS, Box(0, 255, (2,), dtype=np.uint8), "^action space .*Box of floats"),
        (OBSERVATIONS, Box(-1.0, 1.0, (0,)), "^action space"),
    ],
    ids=str,
)
def test_spaces_without_a_network_are_refused_with_what_is_allowed(observation_space, action_space, text):
    with pytest.raises(ValueError, match=text) as error:
        check_spaces(observation_space, action_space)
    assert "\n" not in str(error.value)
