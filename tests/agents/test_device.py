"""Devices: what is refused, what a machine without a GPU can show of one, and real updates where there is one."""

import pytest
import torch
from environments import random_batch, small_agent
from support import every_agent
from torch._subclasses.fake_tensor import FakeTensorMode

from klrl.agents import PPO, TRPO, PPOConfig
from klrl.policy.device import usable, usable_or_cpu
from klrl.policy.linearization import pack
from klrl.policy.optimizer import Adam
from klrl.run import checkpoint
from klrl.trust_region import FisherVectorProduct

# Looking up where a parameter is: a tensor that only claims to be somewhere warns about that.
pytestmark = pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "", "meta"])
def test_what_is_no_device_is_refused_in_one_line(device):
    with pytest.raises(ValueError, match=rf"device = {device!r}; allowed: cpu, cuda, ") as error:
        PPOConfig(device=device)
    assert "\n" not in str(error.value)


def test_a_device_that_is_not_there_is_refused_before_training():
    with pytest.raises(ValueError, match=r"device = 'cuda:99'; allowed here: cpu"):
        small_agent(PPO, device="cuda:99")


@pytest.mark.parametrize(
    ("n_cuda", "mps", "found"), [(2, True, "cuda"), (1, False, "cuda"), (0, True, "mps"), (0, False, "cpu")]
)
def test_auto_is_the_first_accelerator_that_there_is(monkeypatch, n_cuda, mps, found):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: n_cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert usable("auto") == torch.device(found)
    assert (usable_or_cpu("mps"), usable_or_cpu("auto")) == ("mps" if mps else "cpu", "auto")
    if not mps:
        with pytest.raises(ValueError, match=r"^device = 'mps'; allowed here: cpu"):
            usable("mps")


@every_agent
def test_an_agent_saved_on_a_device_that_is_not_here_is_loaded_on_the_cpu(agent_class, tmp_path):
    agent = small_agent(agent_class).learn(64)
    path = agent.save(tmp_path / "agent")
    tensors, state = checkpoint.read(path)
    state["config"]["device"] = "cuda:99"
    checkpoint.write(path, tensors, state)
    loaded = agent_class.load(tmp_path / "agent")
    assert loaded.config.device == "cpu"
    assert torch.equal(loaded.networks.actor_parameters, agent.networks.actor_parameters)


def on_fake_cuda(agent, samples):
    """The agent and a minibatch as if on a GPU: tensors without numbers, which know their device.

    Mixing devices raises; so does reading a number back, which would make the host wait for the device.
    """

    def move(x):
        return torch.empty(x.shape, dtype=x.dtype, device="cuda")

    for network in (agent.actor, agent.critic):
        for module in network.modules():
            for name, p in list(module.named_parameters(recurse=False)):
                setattr(module, name, torch.nn.Parameter(move(p)))
    packed = {network: pack(network) for network in (agent.actor, agent.critic)}
    agent.networks.optimizer = Adam(
        [packed[n] for n in agent.networks.optimized], learning_rate=1e-3, max_grad_norm=0.5
    )
    return samples.map(move)


REGIONS = ["none", "clip", "early-stop", "fixed-penalty", "clip+adaptive-penalty", "spo", "rollback", "truly-ppo"]


@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
@torch.no_grad()
def test_a_minibatch_step_of_ppo_stays_on_its_device_and_never_waits_for_it(region, env):
    agent = small_agent(PPO, env, trust_region=region, ent_coef=0.01).learn(64)
    samples = agent.prepare(random_batch(agent))
    with FakeTensorMode():
        minibatch = on_fake_cuda(agent, samples)
        for values in (agent._step(minibatch), agent._critic_step(minibatch)):
            assert {x.device.type for x in values.values()} == {"cuda"}


@pytest.mark.parametrize("batch_size", [None, 16])
@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
@torch.no_grad()
def test_critic_steps_and_fisher_products_of_trpo_stay_on_their_device_and_never_wait_for_it(env, batch_size):
    agent = small_agent(TRPO, env).learn(64)
    samples = agent.prepare(random_batch(agent))
    with FakeTensorMode():
        samples = on_fake_cuda(agent, samples)
        agent.descend(agent.value_loss(samples))
        F = FisherVectorProduct(agent.actor.linearize, samples.observations, 0.1, batch_size)
        v = torch.empty(sum(p.numel() for p in agent.actor.parameters()), device="cuda")
        assert F(v).device.type == "cuda"


@gpu
@every_agent
@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_a_run_on_the_gpu_follows_the_run_on_the_cpu(agent_class, env):
    cpu, cuda = (small_agent(agent_class, env, device=device).learn(256) for device in ("cpu", "cuda"))
    assert cuda.networks.actor_parameters.is_cuda
    for ours, theirs in zip(cuda.history, cpu.history, strict=True):
        for name in ("drift/kl", "train/value_loss", "train/entropy"):
            assert ours[name] == pytest.approx(theirs[name], rel=0.05, abs=1e-5), name


@gpu
@every_agent
def test_an_agent_moves_between_devices_by_saving(agent_class, tmp_path):
    agent = small_agent(agent_class, device="cuda").learn(64)
    path = agent.save(tmp_path / "agent")
    for device in ("cuda", "cpu"):
        loaded = agent_class.load(path, device=device)
        assert loaded.networks.actor_parameters.device.type == device
        torch.testing.assert_close(
            loaded.networks.actor_parameters.cpu(), agent.networks.actor_parameters.cpu(), rtol=0, atol=0
        )
        loaded.learn(64)
