"""Networks by settings and of a user's own: what they compute, that the trust region holds, how they are saved."""

from functools import partial
from typing import get_args

import numpy as np
import pytest
import torch
from environments import SMALL, Noise, box
from support import both, parameters, same, slots, without_time
from torch import nn
from torch.nn.modules import activation as of_torch

from klrl.agents import AGENTS, PPO, TRPO, PPOConfig, load_agent
from klrl.policy.choices import Activation
from klrl.policy.mlp import mlp
from klrl.policy.normalizer_folding import first_layer
from klrl.run import Callback

NOT_BY_NAME = {
    "GLU", "LogSoftmax", "MultiheadAttention", "Softmax", "Softmax2d", "Softmin",  # of several numbers at once
    "Threshold",  # needs arguments
}  # fmt: skip


def deep(n_inputs, n_outputs):
    return nn.Sequential(nn.Linear(n_inputs, 8), nn.LayerNorm(8), nn.SiLU(), nn.Linear(8, n_outputs))


class Residual(nn.Module):
    """No layer that features enter alone, a buffer, and a lazy layer."""

    def __init__(self, n_inputs, n_outputs):
        super().__init__()
        self.wide, self.out = nn.LazyLinear(n_inputs), nn.Linear(n_inputs, n_outputs)
        self.register_buffer("factor", torch.tensor(0.5))

    def forward(self, x):
        return self.out(x + self.factor * torch.sin(self.wide(x)))


def small_agent(agent_class, env="CartPole-v1", seed=0, **settings):
    """An agent whose updates take milliseconds, without hidden sizes, which own networks do not read."""
    sizes = {name: x for name, x in SMALL.items() if "network" not in settings or "hidden" not in name}
    return agent_class(env, agent_class.config_class(**(sizes | settings)), seed=seed)


def generator():
    return torch.Generator().manual_seed(0)


def test_activations_are_torchs_by_their_names():
    layers = {name: mlp([1, 1, 1], activation=name, output_gain=1.0, generator=generator())[1] for name in names()}
    by_torch = [getattr(of_torch, name) for name in of_torch.__all__ if name not in NOT_BY_NAME]
    assert len(layers) == len(by_torch)
    assert all(any(isinstance(layer, kind) for layer in layers.values()) for kind in by_torch)
    x = torch.linspace(-4.0, 4.0, 33)
    more = {"prelu": [torch.tensor(0.25)], "rrelu": []}
    for name, layer in layers.items():
        function = getattr(nn.functional, name)
        torch.testing.assert_close(layer.eval()(x), function(x, *more.get(name, [])), msg=name)


def names():
    return get_args(Activation)


@pytest.mark.filterwarnings("ignore:.*RReLU.*networks act and learn as in evaluation mode:RuntimeWarning")
def test_every_activation_learns_inside_the_trust_region_and_keeps_its_function_when_statistics_change():
    for name in names():
        agent = small_agent(TRPO, partial(Noise, box(2)), activation=name, target_kl=0.01).learn(128)
        row = agent.history[-1]
        assert 1e-5 < row["drift/kl"] <= 0.01, name
        assert row["drift/kl_normalizer"] < 1e-9, name  # folded into the first layer
        formulas = "written out" if name in ("tanh", "relu") else "by autograd"
        assert formulas in agent.describe()["paths"]["critic"], name


def test_layer_norm_normalises_every_hidden_layer_before_its_activation():
    network = mlp([3, 5, 4, 2], activation="tanh", output_gain=1.0, generator=generator(), layer_norm=True)
    x = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
    linears = [(m.weight.detach().numpy(), m.bias.detach().numpy()) for m in network if isinstance(m, nn.Linear)]
    h = x.astype(np.float64)
    for W, b in linears[:-1]:
        z = h @ W.T + b
        h = np.tanh((z - z.mean(-1, keepdims=True)) / np.sqrt(z.var(-1, keepdims=True) + 1e-5))
    W, b = linears[-1]
    np.testing.assert_allclose(network(x), h @ W.T + b, atol=1e-5)
    assert not network.explicit
    assert not network.written_out


@both
def test_layer_norm_learns_inside_the_trust_region_by_autograd(agent_class, tmp_path):
    env = partial(Noise, box(2))
    agent = small_agent(agent_class, env, layer_norm=True, trust_region="constraint", target_kl=0.01).learn(256)
    assert all(0.0 < row["drift/kl"] <= 0.01 and row["drift/kl_total"] <= 0.0101 for row in agent.history)
    assert "by autograd" in agent.describe()["paths"]["policy"]
    loaded = agent_class.load(agent.save(tmp_path / "agent"), env)
    assert same(parameters(loaded.learn(64)), parameters(agent.learn(64)))


# Each of two tasks with every agent and with every network.
@pytest.mark.parametrize(("agent_class", "network", "env"), [
    pytest.param(cls, network, ["CartPole-v1", partial(Noise, box(2))][(i + j) % 2], id=f"{cls.__name__}-{j}")
    for i, cls in enumerate(AGENTS.values()) for j, network in enumerate([deep, Residual])
])  # fmt: skip
def test_an_own_network_learns_inside_the_trust_region(agent_class, network, env):
    agent = small_agent(agent_class, env, network=network, trust_region="constraint", target_kl=0.01).learn(320)
    sure = 1.5 if agent_class.__name__ == "NPG" else 1.0  # its target is an aim
    assert all(0.0 < row["drift/kl"] <= sure * 0.01 for row in agent.history)
    assert max(row["drift/start_kl"] for row in agent.history[1:]) < 1e-9
    folded = first_layer(agent.actor) is not None
    assert folded is (network is deep)
    moved = max(row["drift/kl_normalizer"] for row in agent.history)
    assert (moved < 1e-9) if folded else (moved > 1e-9)  # reported where nothing can be folded
    paths = agent.describe()["paths"]
    assert "kernel" not in paths["policy"] + paths["critic"] + paths["acting"]


@both
@pytest.mark.parametrize("network", [deep, Residual])
def test_a_seed_decides_own_networks_and_an_interrupted_training_goes_on_to_the_bit(agent_class, network, tmp_path):
    class Stop(Callback):
        def on_update_end(self, agent, batch, metrics):
            if agent.n_updates == 2:
                raise KeyboardInterrupt

    torch.manual_seed(1)
    whole = small_agent(agent_class, network=network).learn(256)
    assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(1)))  # nothing was drawn
    other = small_agent(agent_class, network=network, seed=1)
    with pytest.raises(KeyboardInterrupt):
        small_agent(agent_class, network=network).learn(256, Stop(), run_dir=tmp_path / "run")
    resumed = agent_class.load(tmp_path / "run", network=network).resume(run_dir=tmp_path / "run")
    assert same(parameters(resumed), parameters(whole))
    assert same(slots(resumed), slots(whole))
    assert without_time(resumed) == without_time(whole)
    assert not same(parameters(small_agent(agent_class, network=network)), parameters(other))


def test_only_the_name_of_a_network_is_saved_and_asked_for_in_one_line(tmp_path):
    agent = small_agent(PPO, network=deep, ent_coef=lambda p: 0.0)
    path = agent.save(tmp_path / "agent")
    name = f"{deep.__module__}:deep"
    assert agent.describe()["config"]["network"] == {"function": name}
    said = rf"path = .*: network = {name}, ent_coef = .*<lambda>: functions are not saved; allowed: load\(..., "
    with pytest.raises(ValueError, match=said + r"network=\.\.\., schedules=\{'ent_coef': \.\.\.\}\)$"):
        PPO.load(path)
    again = {"schedules": {"ent_coef": 0.0}}
    loaded = load_agent(path, network=name, **again)
    assert loaded.config.network is deep
    assert same(parameters(loaded), parameters(agent))
    klrls = small_agent(PPO).save(tmp_path / "klrl's")
    with pytest.raises(ValueError, match=r"network = .*:deep; allowed: None, because the saved networks are klrl's$"):
        PPO.load(klrls, network=deep)
    with pytest.raises(ValueError, match=r"path = .*agent: "):
        PPO.load(path, network=Residual, **again)


def test_a_word_in_a_file_is_not_imported():
    data = PPOConfig().to_json() | {"network": "nobody:has"}
    with pytest.raises(ValueError, match=r"^network = nobody:has in saved settings; allowed: one that is given again$"):
        PPOConfig.from_json(data)
    assert PPOConfig(network="torch.nn:Linear").network is nn.Linear


def test_other_policies_are_known_by_the_same_network(tmp_path):
    path = small_agent(PPO, network=deep).learn(64).save(tmp_path / "agent")
    agent = small_agent(PPO, network=deep, reference=str(path)).start_from(path).learn(64)
    assert agent.history[-1]["drift/kl_reference"] > 0.0
    loaded = load_agent(agent.save(tmp_path / "referring"), network=deep).learn(64)
    assert loaded.history[-1]["drift/kl_reference"] == agent.learn(64).history[-1]["drift/kl_reference"]
    said = rf" = .*agent has network = {deep.__module__}:deep; allowed: the agent's, "
    for own in (None, Residual):
        with pytest.raises(ValueError, match="^reference" + said):
            small_agent(PPO, network=own, reference=str(path))
        with pytest.raises(ValueError, match="^other" + said):
            small_agent(PPO, network=own).start_from(path)


class Noisy(nn.Linear):
    def forward(self, x):
        return super().forward(x) + torch.rand(())


class Remembering(nn.Linear):
    def get_extra_state(self):
        return "anything"

    def set_extra_state(self, state):
        raise AssertionError


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (lambda n_inputs: nn.Linear(n_inputs, 2), r"TypeError: .* takes 1 positional argument"),
        (lambda i, o: None, "TypeError: made a NoneType"),
        (lambda i, o: nn.Linear(i, o + 1), r"its outputs at features \[2, 4\] have shape \[2, 3\], not shape \[2, 2\]"),
        (lambda i, o: nn.Linear(i + 1, o), "RuntimeError: "),
        (lambda i, o: nn.Sequential(nn.Softmax(0), nn.Linear(i, o)), "by chance or with other states"),
        (Noisy, "by chance or with other states"),
        (Remembering, "its state has _extra_state, a str, and only tensors are saved"),
    ],
    ids=["arguments", "nothing", "outputs", "inputs", "over states", "by chance", "no tensors"],
)
def test_what_is_no_network_is_refused_in_one_line(network, message):
    wanted = r"; allowed: a function of \(n_inputs, n_outputs\) that returns a torch\.nn\.Module$"
    with pytest.raises(ValueError, match=rf"^network\(4, 2\): .*{message}.*{wanted}"):
        small_agent(PPO, network=network)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"network": 3}, "network = 3; allowed: text or a function or none"),
        ({"network": "nets"}, r"network = 'nets'; allowed: MODULE:NAME of a function of \(n_inputs, n_outputs\) that"),
        ({"network": "math:pi"}, "network = 'math:pi' is a float; allowed: MODULE:NAME of a function of "),
        ({"network": deep, "activation": "relu"}, r"activation = 'relu' with network = .*:deep, .*; allowed: 'tanh'$"),
        ({"network": deep, "layer_norm": True}, r"layer_norm = True with network = .*:deep, .*; allowed: False$"),
        ({"activation": "Tanh"}, "activation = 'Tanh'; allowed: tanh, relu, celu, elu, "),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        PPOConfig(**settings)
