"""Every trust region that has a name, in PPO: it trains, goes on after loading, and has autograd's gradient."""

import json

import numpy as np
import pytest
import torch
from environments import random_batch, small_agent
from support import GAUSSIAN_ONLY, NEEDS_REFERENCE, parameters, same, slots
from test_paths import ENVIRONMENTS, PATHS, loss_of, moved
from torch import nn

from klrl.agents import PPO
from klrl.policy.distributions import Categorical, DiagGaussian
from klrl.policy.linearization import flatten
from klrl.trust_region import REGIONS, Change, region_from_name

JOINED = ["spo+adaptive-lr", "rollback+dual-penalty+constraint", "truly-ppo+espo+proportional-penalty"]
every_name = pytest.mark.parametrize("name", [*REGIONS, *JOINED])
FAST = {"learning_rate": 1e-2, "learning_rate_schedule": "constant", "n_epochs": 4}


@every_name
def test_training_goes_on_after_loading_with_the_same_numbers(name, tmp_path):
    env = "Pendulum-v1" if name in GAUSSIAN_ONLY else "CartPole-v1"
    saved = {"reference": str(small_agent(PPO, env).save(tmp_path / "reference"))} if name in NEEDS_REFERENCE else {}
    agent = small_agent(PPO, env, seed=3, trust_region=name, **FAST, **saved).learn(192)
    for metrics in agent.history[:-1]:  # the last one waits for a rollout
        assert all(
            np.isfinite(x) for key, x in metrics.items() if not isinstance(x, str) and not key.startswith("rollout/")
        )
        assert metrics["drift/kl"] > 0.0
    loaded = PPO.load(agent.save(tmp_path / "agent"))
    assert loaded.region == agent.region
    assert loaded.config == agent.config
    for seed in range(2):
        assert repr(loaded.update(random_batch(loaded, seed))) == repr(agent.update(random_batch(agent, seed)))
    assert same(parameters(loaded), parameters(agent))
    assert same(slots(loaded), slots(agent))
    steps = loaded.num_timesteps
    assert loaded.learn(64).num_timesteps == steps + 64


@pytest.mark.parametrize("name", ["adaptive-penalty", "proportional-penalty", "dual-penalty", "adaptive-lr"])
def test_what_a_region_has_learned_is_in_the_saved_state(name, tmp_path):
    agent = small_agent(PPO, trust_region=name, target_kl=1e-4, **FAST).learn(256)
    assert agent.region != agent.config.region
    path = agent.save(tmp_path / "agent")
    assert PPO.load(path).region == agent.region
    saved = "".join(f.read_text() for f in path.iterdir() if f.suffix == ".json")
    number = agent.region.beta if agent.region.beta is not None else agent.region.lr_scale
    assert json.dumps(number) in saved


def by_autograd(agent, samples):
    """Gradient of -E[surrogate - penalty] by the actor's parameters, through the network and the region's hooks."""
    outputs = nn.Sequential(*agent.actor.trunk)(samples.observations)
    new = (
        Categorical(outputs)
        if isinstance(samples.old, Categorical)
        else DiagGaussian(outputs, agent.actor.log_std.expand_as(outputs))
    )
    change = Change(samples.old, new, samples.actions, samples.log_prob, samples.advantage)
    loss = -(agent.region.surrogate(change) - agent.region.penalty(change)).mean()
    return loss.item(), flatten(torch.autograd.grad(loss, list(agent.actor.parameters())))


@pytest.mark.parametrize(
    ("name", "env"),
    [
        (name, env)
        for name in [*REGIONS, *JOINED]
        for env in ENVIRONMENTS
        if name not in NEEDS_REFERENCE and (env != "CartPole-v1" or name not in GAUSSIAN_ONLY)
    ],
)
@pytest.mark.parametrize(("dtype", "rel"), [(torch.float64, 1e-11), (torch.float32, 1e-5)], ids=["float64", "float32"])
def test_on_every_path_the_gradient_of_every_region_is_autograds(name, env, dtype, rel):
    agent, samples = moved(env, region_from_name(name), 0.0, dtype)
    expected, g = by_autograd(agent, samples)
    assert g.norm() > 1e-3
    for path in PATHS:
        value, gradients = loss_of(agent, samples, path)
        (error,) = ((torch.as_tensor(x) - g).norm() for network, x in gradients.items() if network is agent.actor)
        assert error <= rel * g.norm(), path
        value_loss = agent.value_loss(samples).value
        assert value - 0.7 * float(value_loss) == pytest.approx(expected, rel=100 * rel, abs=100 * rel), path
