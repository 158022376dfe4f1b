"""Parts that do one thing in training and another in evaluation: acting, measuring and updating are of one function."""

from functools import cache, partial

import pytest
import torch
from environments import Noise, box, small_agent
from support import parameters, same
from torch import nn

from klrl.agents import AGENTS, PPO, TRPO
from klrl.run import Callback

pytestmark = pytest.mark.filterwarnings("ignore:.*networks act and learn as in evaluation mode:RuntimeWarning")
STATE = [0.01, 0.02, 0.003, -0.01]


class Louder(nn.Module):
    """A user's own: ten times as much in training."""

    def forward(self, x):
        return 10.0 * x if self.training else x


def trunk(n_inputs, n_outputs, part, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(n_inputs, 8), part, nn.Tanh(), nn.Linear(8, n_outputs))


PARTS = {
    "Dropout": lambda: nn.Dropout(0.5),
    "AlphaDropout": lambda: nn.AlphaDropout(0.5),
    "own": Louder,
    "nested": lambda: nn.Sequential(nn.Identity(), nn.Dropout(0.9)),
}


class Switching(Callback):
    """Puts networks in training mode wherever it is asked."""

    def on_update_start(self, agent, batch):
        agent.actor.train()
        agent.critic.train()

    def on_minibatch_end(self, agent, metrics):
        agent.actor.trunk.train()
        agent.critic.trunk.train()

    def on_epoch_end(self, agent, epoch):
        for module in agent.actor.modules():
            module.train()

    def on_update_end(self, agent, batch, metrics):
        agent.actor.train()


@cache
def trained(agent_class, make, callback=None):
    agent = small_agent(agent_class)
    agent.actor.trunk, agent.critic.trunk = trunk(4, 2, make()), trunk(4, 1, make())
    return agent.learn(192, callback)


# Every agent with every part; each agent and each part with a callback that switches, and without one.
@pytest.mark.parametrize(("agent_class", "part", "callback"), [
    pytest.param(cls, part, Switching() if (i + j) % 2 else None, id=f"{cls.__name__}-{name}")
    for i, cls in enumerate(AGENTS.values()) for j, (name, part) in enumerate(PARTS.items())
])  # fmt: skip
def test_a_part_that_evaluation_leaves_out_is_as_if_it_were_not_there(agent_class, part, callback):
    agent, plain = trained(agent_class, part, callback), trained(agent_class, nn.Identity)
    assert same(parameters(agent), parameters(plain))
    assert [row["drift/kl"] for row in agent.history] == [row["drift/kl"] for row in plain.history]
    assert agent.drift.kl_sum > 0.0


@pytest.mark.parametrize("early", [False, True], ids=["after training", "before training"])
def test_predictions_without_noise_are_one_and_the_same(early):
    agent = small_agent(TRPO, target_kl=0.01)
    agent.actor.trunk = trunk(4, 2, nn.Dropout(0.5))
    if not early:
        agent.learn(512)
        assert all(row["drift/kl"] <= 0.01 for row in agent.history)
    agent.actor.train()
    logits = {tuple(agent.distribution(torch.tensor(STATE)).logits.tolist()) for _ in range(40)}
    assert len(logits) == 1
    assert len({int(agent.predict(STATE, deterministic=True)[0]) for _ in range(40)}) == 1


def test_a_layer_put_into_the_usual_network_is_in_evaluation_mode_too():
    agents = [small_agent(PPO), small_agent(PPO)]
    for agent, part in zip(agents, (nn.Dropout(0.5), nn.Identity()), strict=True):
        for network in agent.networks:
            network.trunk[1] = nn.Sequential(nn.Tanh(), part)
        agent.learn(128)
    assert same(*map(parameters, agents))


def instance_norm():
    norm = nn.InstanceNorm1d(2, affine=True, track_running_stats=True)
    return nn.Sequential(nn.Unflatten(1, (2, 4)), norm, nn.Flatten())


@pytest.mark.parametrize("part", [lambda: nn.BatchNorm1d(8), instance_norm], ids=["batch", "instance"])
def test_running_statistics_stay_and_the_policy_that_acts_is_the_one_that_is_updated(part):
    agent = small_agent(TRPO, partial(Noise, box(2)), target_kl=0.01, normalize_observations=False)
    agent.actor.trunk, agent.critic.trunk = trunk(3, 2, part()), trunk(3, 1, part())
    before = [x.clone() for x in agent.actor.buffers()]
    agent.learn(256)
    assert same(agent.actor.buffers(), before)
    assert all(row["drift/start_kl"] < 1e-9 and 0.0 < row["drift/kl"] <= 0.01 for row in agent.history)


def test_a_part_that_looks_at_other_states_is_refused_in_one_line():
    for network, n in (("actor", 2), ("critic", 1)):
        agent = small_agent(PPO)
        getattr(agent, network).trunk = trunk(4, n, nn.BatchNorm1d(8, track_running_stats=False))
        before = parameters(agent)
        with pytest.raises(ValueError, match=rf"^{network}\.trunk\.1 is a BatchNorm1d without running statistics.*$"):
            agent.learn(64)
        assert same(parameters(agent), before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_network_of_other_numbers_is_refused_in_one_line(dtype):
    agent = small_agent(PPO)
    agent.actor.trunk = trunk(4, 2, nn.Identity()).to(dtype)
    with pytest.raises(ValueError, match=rf"^actor\.trunk\.0\.weight has dtype {dtype}; allowed: torch\.float32$"):
        agent.learn(64)


@pytest.mark.filterwarnings("error")
def test_what_evaluation_mode_leaves_out_is_said_once():
    agent = small_agent(PPO)
    agent.critic.trunk = trunk(4, 1, nn.Dropout(0.5))
    with pytest.warns(RuntimeWarning, match=r"^critic\.trunk\.1 \(Dropout\): networks act and learn as in evaluation"):
        agent.learn(64)
    agent.learn(64)
