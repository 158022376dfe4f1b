"""Policies as graphs: the same actions as the agent's own predictions, in every space; the same distribution."""

from functools import cache, partial

import numpy as np
import pytest
import torch
from environments import Sampling, small_agent
from gymnasium.spaces import Box, Dict, Discrete
from scipy import stats
from test_every_space import BETA, BOX, CASES, IMAGE, SQUASHED, VECTOR
from torch import nn

from klrl.agents import PPO
from klrl.agents.export import ExportedPolicy, export_policy
from klrl.policy.distributions import Bernoulli, Beta, Categorical, DiagGaussian, MultiCategorical, SquashedGaussian
from klrl.scripts.cli.exporting import CLOSE, difference, largest_difference, runner, some_observations

MORE = {
    "integers": (Box(-5, 5, (2, 2), np.int16), Discrete(3), None, {}),
    "float64": (Box(-1e6, 1e6, (3,), np.float64), BOX, None, {"scale_actions": False}),
    "images in a Dict": (Dict(image=IMAGE, x=VECTOR), BOX, None, SQUASHED | {"image_scale": "seen"}),
    "not normalised": (VECTOR, Box(-np.inf, np.inf, (2, 2)), None, {"normalize_observations": False}),
    "unequal bounds": (VECTOR, Box(np.float64([-1.0, 3.0]), np.float64([np.inf, 3.0]), dtype=np.float64), None, {}),
    "layer norm": (VECTOR, BOX, None, BETA | {"layer_norm": True, "activation": "gelu"}),
}


@cache
def trained(name):
    observations, actions, masks, options = (CASES | MORE)[name]
    agent = small_agent(PPO, partial(Sampling, observations, actions, masks=masks), **options).learn(128)
    agent.actor.trunk.requires_grad_(True)
    with torch.no_grad():  # near the uniform policy everything is the same
        for p in agent.actor.trunk.parameters():
            p += 0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    return agent


SAMPLED = [
    "Discrete, mask in observations", "MultiDiscrete, masks", "MultiBinary 2-D", "gaussian, state-dependent",
    "gaussian", "squashed", "beta",
]  # fmt: skip
STATES, EACH = 2, 3_000


def repeated(agent, policy):
    """A few states, many times each, and the distributions there."""
    observations, inputs = some_observations(agent, policy.parts, STATES)
    masks = [inputs["action_mask"]] if agent.encoding.mask_in_info else []
    return {k: x.repeat(EACH, axis=0) for k, x in inputs.items()}, agent.distribution(observations, *masks)


def check_shares(name, shares, expected):
    """Shares of EACH samples, within four standard errors."""
    error = 4.0 * np.sqrt(expected * (1.0 - expected) / EACH) + 1e-9
    assert (np.abs(shares - expected) <= error).all(), (name, shares, expected)


def check_samples(name, agent, record, actions):
    """Samples ``[STATES * EACH, *A]`` have the distribution of the record, by its definition."""
    space = agent.action_space
    x = actions.reshape(STATES, EACH, -1).astype(np.float64)
    p = [y.detach().double() for y in record.parameters]
    match record:
        case Categorical() | MultiCategorical():
            sizes = [p[0].shape[-1]] if isinstance(record, Categorical) else list(record.nvec)
            x = x - np.ravel(space.start)
            for i, head in enumerate(p[0].split(sizes, -1)):
                shares = np.stack([(x[:, :, i] == k).mean(1) for k in range(sizes[i])], -1)
                check_shares(name, shares, head.softmax(-1).numpy())
        case Bernoulli():
            check_shares(name, x.mean(1), p[0].sigmoid().numpy())
        case DiagGaussian() | SquashedGaussian() | Beta():
            low, high = (np.ravel(y).astype(np.float64) for y in (space.low, space.high))
            unit = low + (high - low) * np.array([0.15, 0.35, 0.5, 0.65, 0.85])[:, None]  # points inside the box
            for point in unit:
                a = 2.0 * (point - low) / (high - low) - 1.0
                if isinstance(record, Beta):
                    expected = stats.beta(*(y.numpy() for y in p)).cdf((a + 1.0) / 2.0)
                else:
                    z = np.arctanh(a) if isinstance(record, SquashedGaussian) else a
                    expected = stats.norm(p[0].numpy(), p[1].exp().numpy()).cdf(z)
                check_shares(name, (x <= point).mean(1), expected)


@pytest.mark.parametrize(
    ("name", "deterministic"), [("Discrete, mask in info", True), ("beta", False)], ids=["masks, a Dict", "samples"]
)
def test_onnxruntime_computes_what_the_agent_does(name, deterministic, tmp_path):
    """Two graphs, of the most operations: an export costs seconds."""
    compare_onnx(name, deterministic, tmp_path / "policy.onnx")


def compare_onnx(name, deterministic, file):
    """``[*CASES, *MORE]`` and SAMPLED have all names."""
    runtime = pytest.importorskip("onnxruntime")
    runtime.set_seed(0)
    agent = trained(name)
    policy = export_policy(agent, file, "onnx", deterministic=deterministic)
    run = runner(file, policy)
    assert run({k: x[:1].numpy() for k, x in zip(policy.names, policy.examples(2), strict=True)}).shape[0] == 1
    if deterministic:
        assert largest_difference(agent, policy, run) <= CLOSE, name
    else:
        inputs, record = repeated(agent, policy)
        check_samples(name, agent, record, run(inputs))


def test_the_sampling_graph_has_the_policys_distribution():
    torch.manual_seed(0)
    for name in SAMPLED:
        agent = trained(name)
        policy = ExportedPolicy(agent, deterministic=False)
        inputs, record = repeated(agent, policy)
        check_samples(name, agent, record, eagerly(policy)(inputs))
        narrower = record.map(lambda x: 0.5 * x) if name == "gaussian" else None
        if narrower is not None:
            with pytest.raises(AssertionError):
                check_samples(name, agent, narrower, eagerly(policy)(inputs))


def eagerly(policy):
    return lambda inputs: policy(*(torch.from_numpy(inputs[name]) for name in policy.names)).numpy()


pytestmark = pytest.mark.filterwarnings(
    "ignore:.*lacks bounds in .*:RuntimeWarning", "ignore:.*elements up to.*:RuntimeWarning"
)


def test_the_graph_acts_as_predict_does_in_every_space():
    for name in CASES | MORE:
        agent = trained(name)
        policy = ExportedPolicy(agent)
        assert largest_difference(agent, policy, eagerly(policy)) <= CLOSE, name
        observations, inputs = some_observations(agent, policy.parts, 50)
        changed = {k: np.roll(x, 1, axis=0) for k, x in inputs.items()}
        masks = {"action_masks": inputs["action_mask"]} if agent.encoding.mask_in_info else {}
        mine = agent.predict(observations, deterministic=True, **masks)[0]
        assert difference(agent, observations, masks, mine, eagerly(policy)(changed)) > CLOSE, name


class Deciding(nn.Linear):
    def forward(self, x):
        y = super().forward(x)
        return y if float(y.sum()) > 0.0 else 2.0 * y


class Residual(nn.Module):
    def __init__(self, n_inputs, n_outputs):
        super().__init__()
        self.wide, self.out = nn.Linear(n_inputs, n_inputs), nn.Linear(n_inputs, n_outputs)

    def forward(self, x):
        return self.out(x + torch.sin(self.wide(x)))


def test_a_torch_program_is_written_with_what_it_takes_and_returns(tmp_path):
    agent = small_agent(PPO, "Pendulum-v1").learn(64)
    agent.actor.trunk = Residual(3, 1)
    file = tmp_path / "made" / "policy.pt2"
    policy = export_policy(agent, file, "torch")
    assert largest_difference(agent, policy, runner(file, policy)) <= CLOSE
    run = runner(file, policy)
    assert [run({"observation": np.zeros((n, 3), np.float32)}).shape for n in (1, 7)] == [(1, 1), (7, 1)]
    agent.actor.trunk = Deciding(3, 1)
    with pytest.raises(ValueError, match=r"^the policy cannot be exported: .*; allowed: networks of torch's"):
        export_policy(agent, file, "torch")
    assert [path.name for path in file.parent.iterdir()] == ["policy.pt2"]

    class OwnActor(type(agent.actor)):
        pass

    agent.actor.__class__ = OwnActor
    with pytest.raises(ValueError, match=r"^actor = OwnActor is not klrl's; allowed: CategoricalActor, "):
        ExportedPolicy(agent)


def test_a_missing_package_is_named_with_its_extra(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    agent = small_agent(PPO)
    with pytest.raises(ValueError, match=r"^format = 'onnx' needs onnx: pip install 'klrl\[export\]'; allowed without"):
        export_policy(agent, tmp_path / "policy.onnx")
