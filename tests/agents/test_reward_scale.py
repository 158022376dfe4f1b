"""The critic's values in units of the reward, which no change of the rewards' scale moves."""

import math
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from environments import Noise, Sampling, box, random_batch, small_agent
from support import both, every_agent, parameters, same
from torch import nn

from klrl.agents import PPO
from klrl.native import at_level, available
from klrl.policy.optimizer import BETA1, BETA2
from klrl.run import Callback, checkpoint

folding = partial(small_agent, fold_reward_scale=True)

SPACES = {
    "vector": box(3),
    "image": gym.spaces.Box(0, 255, (8, 8, 3), np.uint8),
    "dict": gym.spaces.Dict(x=box(2), kind=gym.spaces.Discrete(3)),
}
PATHS = ["arrays", "tensors", "autograd", *(["kernel"] if available() else [])]


class Growing(Sampling):
    """Rewards that are larger with every step."""

    def step(self, action):
        self.total = getattr(self, "total", 0) + 1
        observation, reward, *rest = super().step(action)
        return observation, self.total * (reward + 1.0), *rest


def unit(agent):
    """What one unit of the critic's values is in units of the reward."""
    return math.sqrt(agent.return_scaler.moments.variance.item() + 1e-8)


class InUnitsOfTheReward(Callback):
    """Values and unit before an update, and after its statistics, in front of the first step."""

    def __init__(self, agent):
        self.agent, self.before, self.after = agent, [], []
        self.improve, agent.improve = agent.improve, self.watch

    def on_update_start(self, agent, batch):
        self.observations = batch.flatten_valid(batch.observations)
        self.before.append(self.values() if agent.n_updates else None)

    def watch(self, *args):
        self.after.append(self.values())
        return self.improve(*args)

    @torch.no_grad()
    def values(self):
        return self.agent.critic(self.agent.normalized(self.observations)) * unit(self.agent), unit(self.agent)


def on(path, agent):
    agent.networks.numpy_rows = 0 if path == "tensors" else 10**9
    agent.networks.kernel = at_level(available()[-1]) if path == "kernel" else None
    if path == "autograd":
        agent.critic.trunk = nn.Sequential(*agent.critic.trunk.children())
    return agent


@both
@pytest.mark.parametrize("path", PATHS)
def test_values_in_units_of_the_reward_stay_across_every_change_of_scale(agent_class, path):
    once = {"n_epochs" if agent_class is PPO else "n_critic_updates": 1}
    for name, space in SPACES.items():
        if name == "image" and path != "arrays":  # autograd differentiates an image's critic on every path
            continue
        for fold in (True, False) if name == "vector" else (True,):
            agent = on(path, small_agent(agent_class, partial(Growing, space), fold_reward_scale=fold, **once))
            seen = InUnitsOfTheReward(agent)
            agent.learn(192, seen)
            for (before, old), (after, new) in zip(seen.before[1:], seen.after[1:], strict=True):
                assert new > 1.05 * old
                error = ((after - before).abs().max() / before.abs().max()).item()
                assert error < 1e-6 if fold else error == pytest.approx(new / old - 1.0, rel=1e-4), name
            said = agent.describe()
            words = "folded into the critic's last layer" if fold else "not folded: fold_reward_scale = False"
            assert said["reward_scale"] == words
            assert ("kernel" in said["paths"]["critic"]) == (path == "kernel")


@every_agent
def test_the_first_scale_changes_no_weight_and_without_folding_none_does(agent_class):
    agent, moved = folding(agent_class, partial(Noise, box(2))), folding(agent_class, partial(Noise, box(2)))
    before = parameters(agent)
    agent.absorb_rewards(random_batch(agent, scale=7.0))
    assert same(before, parameters(agent))
    assert unit(agent) > 2.0
    for one in (moved, small_agent(agent_class, partial(Noise, box(2)), fold_reward_scale=False)):
        one.update(random_batch(one))
        before = parameters(one)
        one.absorb_rewards(random_batch(one, seed=1, scale=7.0))
        changed = [not torch.equal(a, b) for a, b in zip(before, parameters(one), strict=True)]
        assert changed == [False] * (len(before) - 2) + [one is moved] * 2


@both
def test_adams_moments_are_those_of_gradients_in_the_new_unit(agent_class):
    agent, factor = folding(agent_class, partial(Noise, box(2)), max_grad_norm=1e9), 0.3
    networks, critic = agent.networks, agent.critic
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    targets = 5.0 * torch.randn(4, 50, generator=torch.Generator().manual_seed(1))

    def gradients(unit):
        for target in targets:
            found = torch.autograd.grad((critic(x) - unit * target).square().mean(), [*critic.parameters()])
            yield torch.cat([g.flatten() for g in found])

    networks.optimizer.learning_rate = 0.0  # parameters stay where they are, only moments are gathered
    for gradient in gradients(1.0):
        networks.optimizer.step([gradient.numpy() if n is critic else None for n in networks.optimized])
    assert networks.rescale_values(factor, x)
    mean = square = 0.0
    for gradient in gradients(factor):
        mean, square = BETA1 * mean + (1 - BETA1) * gradient, BETA2 * square + (1 - BETA2) * gradient.square()
    found = networks.optimizer.moments(networks.optimized.index(critic))
    torch.testing.assert_close(found["exp_avg"], mean, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found["exp_avg_sq"], square, rtol=1e-4, atol=1e-9)


@both
def test_an_agent_saved_before_there_was_the_setting_goes_on_as_it_began(agent_class, tmp_path):
    agent = small_agent(agent_class, partial(Noise, box(2)), fold_reward_scale=False).learn(128)
    path = agent.save(tmp_path / "agent")
    tensors, state = checkpoint.read(path)
    del state["config"]["fold_reward_scale"]
    checkpoint.write(path, tensors, state)
    loaded = agent_class.load(path)
    assert not loaded.config.fold_reward_scale
    for i in range(2):
        batch = random_batch(agent, seed=i, scale=3.0)
        assert repr(loaded.update(batch)) == repr(agent.update(batch))
    assert same(parameters(loaded), parameters(agent))


@both
def test_a_loaded_agent_folds_the_same_bits(agent_class, tmp_path):
    agent = folding(agent_class, partial(Noise, box(2))).learn(128)
    loaded = agent_class.load(agent.save(tmp_path / "agent"))
    for i in range(3):
        batch = random_batch(agent, seed=i, scale=3.0**i)
        assert repr(loaded.update(batch)) == repr(agent.update(batch))
    assert same(parameters(loaded), parameters(agent))


def test_returns_that_are_all_equal_leave_the_critic_alone():
    agent = folding(PPO, partial(Noise, box(2)), gamma=0.0)
    batch = random_batch(agent)
    batch.rewards.fill_(3.0)
    agent.update(batch)
    before = parameters(agent)
    agent.absorb_rewards(random_batch(agent, seed=1))
    assert same(before, parameters(agent))


class Head(nn.Module):
    """What most people write."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(3, 4), nn.Linear(4, 1)

    def forward(self, x):
        return self.head(torch.tanh(self.body(x)))


class Sum(Head):
    def forward(self, x):
        return super().forward(x) + x.sum(-1, keepdim=True)


class Twice(Head):
    def __init__(self):
        super().__init__()
        self.body = self.head = nn.Linear(3, 3)
        self.head = nn.Linear(3, 1)
        self.gate = nn.Linear(1, 1)

    def forward(self, x):
        return self.gate(self.gate(self.head(self.body(x))))


class Tied(Head):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(3, 1)
        self.head = nn.Linear(3, 1)
        self.head.weight = self.body.weight

    def forward(self, x):
        return self.head(x * torch.tanh(self.body(x)))


def weight_normed():
    return nn.Sequential(nn.Linear(3, 4), nn.utils.parametrizations.weight_norm(nn.Linear(4, 1)))


def hooked():
    trunk = nn.Sequential(nn.Linear(3, 1))
    trunk[0].register_forward_hook(lambda layer, x, y: y + 1.0)
    return trunk


OWN = {
    "a head": (Head, True),
    "layers in a row": (lambda: nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.SiLU(), nn.Linear(8, 1)), True),
    "no bias": (lambda: nn.Sequential(nn.Linear(3, 1, bias=False)), True),
    "a nest": (lambda: nn.Sequential(nn.Sequential(nn.Linear(3, 2)), nn.Sequential(nn.ReLU(), nn.Linear(2, 1))), True),
    "a function at the end": (lambda: nn.Sequential(nn.Linear(3, 1), nn.Tanh()), False),
    "one in place": (lambda: nn.Sequential(nn.Linear(3, 1), nn.ReLU(inplace=True)), False),
    "a sum at the end": (Sum, False),
    "a layer that is called twice": (Twice, False),
    "a weight of two layers": (Tied, False),
    "a weight that is computed": (weight_normed, False),
    "a hook": (hooked, False),
    "no linear layer": (lambda: nn.Sequential(nn.Unflatten(-1, (1, 3)), nn.Conv1d(1, 1, 3), nn.Flatten()), False),
}


@pytest.mark.parametrize("name", OWN)
def test_a_critic_of_ones_own_is_folded_where_a_linear_layer_ends_it_and_it_is_said_where_not(name):
    make, folds = OWN[name]
    torch.manual_seed(0)
    agent = folding(PPO, partial(Noise, box(2)))
    agent.critic.trunk = make()
    agent.update(random_batch(agent))
    x, before, old = torch.randn(20, 3), parameters(agent), unit(agent)
    with torch.no_grad():
        values = agent.critic(x)
        agent.absorb_rewards(random_batch(agent, seed=1, scale=7.0))
        torch.testing.assert_close(
            agent.critic(x) * (unit(agent) / old if folds else 1.0), values, rtol=1e-5, atol=1e-6
        )
    said = agent.describe()["reward_scale"]
    if folds:
        assert said == "folded into the critic's last layer"
    else:
        assert said == "not folded: the critic does not end in a linear layer"
        assert same(before, parameters(agent))
    assert not any(m._forward_hooks for m in agent.critic.modules()) or name == "a hook"
