"""A shared encoder belongs to the policy: the trust region holds both, whatever the value loss wants."""

import copy
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from environments import Noise, Sampling, box, small_agent
from gymnasium.spaces import Box, Dict, Discrete
from support import MeasuredKL, Nowhere, every_agent, parameters, policy, same, slots, without_time
from torch import nn

from klrl.agents import NPG, PPO, TRPO, PPOConfig
from klrl.agents.compatibility import copy_networks
from klrl.agents.distillation import distill
from klrl.agents.epochs import kernel_of
from klrl.agents.settings import DistillationConfig
from klrl.kl import kl_divergence
from klrl.policy.linearization import Objective
from klrl.policy.shared_encoder import SharedCritic, together
from klrl.run import Callback, checkpoint
from klrl.studies.opening import difference
from klrl.trust_region import KLConstraint, TrustRegion

IMAGE = Box(0, 255, (6, 7, 3), np.uint8)
MIXED = Dict(image=IMAGE, x=Box(-1.0, 1.0, (2,)))
VECTOR = Box(-1.0, 1.0, (4,))
SPACES = {"image": IMAGE, "Dict": MIXED, "vector": VECTOR}
every_kind = pytest.mark.parametrize("kind", SPACES)
TARGET = 0.01


def agent_on(kind, agent_class=PPO, seed=0, **settings):
    """An agent that shares an encoder, as it is told to or by default."""
    shared = {"shared_encoder": True} if kind == "vector" else {}
    shared |= {"n_epochs" if issubclass(agent_class, PPO) else "n_critic_updates": 3}  # convolutions are slow
    return small_agent(agent_class, partial(Sampling, SPACES[kind]), seed, **(shared | settings))


# Restless enough that minibatch steps would leave the region many times over.
RESTLESS = {"trust_region": "constraint", "target_kl": TARGET, "learning_rate": 3e-2, "n_epochs": 4}


def batch_of(agent, n_steps=32):
    return agent.collector().collect(agent.act, n_steps)


def test_images_share_by_default_vectors_when_asked_and_networks_of_ones_own_never():
    assert isinstance(agent_on("image").critic, SharedCritic)
    assert isinstance(agent_on("Dict", TRPO).critic, SharedCritic)
    assert isinstance(agent_on("vector", NPG).critic, SharedCritic)
    assert agent_on("image").config.shared_encoder is None
    assert not agent_on("image", shared_encoder=False).networks.share_encoder
    assert not small_agent(PPO).networks.share_encoder
    own = PPO(partial(Sampling, IMAGE), PPOConfig(network=lambda n, m: nn.Linear(n, m)))
    assert not own.networks.share_encoder


@every_kind
def test_the_encoder_is_the_policys_and_the_critic_reads_it(kind):
    agent = agent_on(kind)
    x = agent.normalized(batch_of(agent).observations.flatten(0, 1))
    trunk = agent.actor.trunk
    if kind == "vector":
        encoded = torch.tanh(x @ trunk[0].weight.T + trunk[0].bias)
    else:
        flat = x.flatten(1)
        n = 6 * 7 * 3
        encoded = trunk.convolutions[0](flat[:, :n].reshape(-1, 6, 7, 3).permute(0, 3, 1, 2)).flatten(1)
        encoded = torch.cat([flat[:, n:], encoded], -1)
    first, last = agent.critic.trunk[0], agent.critic.trunk[2]
    expected = (torch.tanh(encoded @ first.weight.T + first.bias) @ last.weight.T + last.bias)[:, 0]
    torch.testing.assert_close(agent.critic(x), expected)
    assert {*map(id, agent.critic.parameters())}.isdisjoint(map(id, agent.actor.parameters()))
    assert sum(p.numel() for p in agent.critic.parameters()) == encoded.shape[1] * 8 + 8 + 8 + 1


@pytest.mark.parametrize("arrays", [False, True], ids=["tensors", "arrays"])
@pytest.mark.parametrize("kind", ["image", "vector"])
def test_the_gradient_of_a_step_is_that_of_the_loss_written_out(kind, arrays, monkeypatch):
    agent = agent_on(kind, trust_region="clip", ent_coef=0.02, vf_coef=0.7).learn(64)
    samples = agent.prepare(batch_of(agent))
    with torch.no_grad():
        agent.networks.actor_parameters.add_(0.05 * torch.randn(agent.networks.actor_parameters.shape))
    samples = replace(samples, observations=inputs(agent, samples))
    found = {}
    monkeypatch.setattr(agent, "descend", lambda loss: found.update(loss.gradients()))
    agent._step(samples.numpy() if arrays else samples)

    x = samples.observations
    logits = agent.actor.trunk(x.flatten(1))
    h = agent.actor.trunk.encode(x.flatten(1))
    values = agent.critic.trunk(h)[:, 0]
    log_p = logits.log_softmax(-1)
    ratio = (log_p.gather(1, samples.actions.reshape(-1, 1))[:, 0] - samples.log_prob).exp()
    gain = torch.minimum(ratio * samples.advantage, ratio.clamp(0.8, 1.2) * samples.advantage)
    entropy = -(log_p.exp() * log_p).sum(-1)
    loss = 0.7 * (values - samples.returns).square().mean() - gain.mean() - 0.02 * entropy.mean()
    for network in agent.networks:
        expected = torch.cat(
            [g.reshape(-1) for g in torch.autograd.grad(loss, [*network.parameters()], retain_graph=True)]
        )
        torch.testing.assert_close(torch.as_tensor(found[network]), expected, rtol=1e-4, atol=1e-6)


def test_alone_neither_part_of_the_loss_moves_what_it_does_not_depend_on():
    agent = agent_on("vector").learn(64)
    samples = agent.prepare(batch_of(agent))
    assert {*agent.value_loss(samples).gradients()} == {agent.critic}
    with together(agent.actor, agent.critic, samples.observations) as at:
        objective = agent.objective(at, samples.change(at.output))
        value = agent.value_loss(samples)
    assert {*objective.gradients()} == {agent.actor}
    assert {*value.gradients()} == {agent.actor, agent.critic}
    whole, parts = (objective + value).gradients(), (objective.gradients(), value.gradients())
    torch.testing.assert_close(whole[agent.actor], parts[0][agent.actor] + parts[1][agent.actor])
    v = torch.randn(len(agent.networks.actor_parameters))
    u = torch.randn(len(samples), 2)
    (moved,) = at.push_forward(v)  # the same Jacobian from both sides
    torch.testing.assert_close((moved * u).sum(), at.pull_back(u) @ v, rtol=1e-4, atol=1e-5)


CASES = [(PPO, "constraint"), (PPO, "clip+constraint"), (TRPO, "constraint")]
every_case = pytest.mark.parametrize(("agent_class", "region"), CASES, ids=["PPO", "PPO with clip", "TRPO"])


def measured(agent_class, region, kind, seed, **settings):
    """KL after every update, measured by the test itself on the batch, and the agent."""
    bound = {} if region == "none" else {"target_kl": TARGET}
    fast = {"learning_rate": 3e-2} | ({"n_epochs": 4} if issubclass(agent_class, PPO) else {})
    settings = fast | bound | {"normalize_observations": False} | settings
    agent = agent_on(kind, agent_class, seed, trust_region=region, **settings)
    with torch.no_grad():  # a policy that has decided something, so that its encoder counts
        [*agent.actor.trunk.modules()][-1].weight.mul_(100.0)
    kl = MeasuredKL()
    return agent.learn(64 * 3, kl), kl.found


@every_case
@every_kind
def test_the_measured_kl_is_at_most_the_target_after_every_update(agent_class, region, kind):
    agent, kls = measured(agent_class, region, kind, 0)
    assert max(kls) <= TARGET
    assert max(row["drift/kl"] for row in agent.history) <= TARGET
    assert max(kls) > 1e-4
    assert min(row.get("train/backtrack_scale", 0.0) for row in agent.history) < 1.0  # it had to hold something


@every_case
@pytest.mark.parametrize("kind", ["image", "vector"])
def test_an_absurd_value_loss_cannot_move_the_policy_unmeasured(agent_class, region, kind):
    class Absurd(agent_class):
        def value_loss(self, samples):
            return 1e4 * super().value_loss(samples)

    large = {"learning_rate": 0.3} | ({"vf_coef": 1e3} if agent_class is PPO else {})
    agent, kls = measured(Absurd, region, kind, 0, **large)
    assert max(kls) <= TARGET
    if region == "constraint" and agent_class is PPO:
        assert any(row["train/backtrack_scale"] < 1.0 for row in agent.history)
        assert max(measured(Absurd, "none", kind, 0, **large)[1]) > TARGET  # unless the region holds it


class Steps(Callback):
    """Copies of the networks' parameters and of Adam's state after every epoch."""

    def __init__(self):
        self.seen = []

    def on_epoch_end(self, agent, epoch):
        self.seen.append((policy(agent), [p.detach().clone() for p in agent.critic.parameters()], slots(agent)))


@every_kind
@pytest.mark.parametrize("region", [KLConstraint(TARGET, on_exit="stop"), Nowhere()], ids=["early-stop", "nowhere"])
def test_after_a_stop_encoder_and_policy_head_stand_still_to_the_bit_and_the_critics_head_goes_on(kind, region):
    settings = RESTLESS | {"trust_region": region, "learning_rate": 0.3, "target_kl": None}
    agent, steps = agent_on(kind, **settings), Steps()
    metrics = agent.update(batch_of(agent), steps)
    stopped = int(metrics["train/policy_epochs"]) - 1
    assert stopped < 2
    at_stop, *later = steps.seen[stopped:]
    for policy_now, critic_now, slots_now in later:
        assert same(policy_now, at_stop[0])
        assert not any(torch.equal(a, b) for a, b in zip(critic_now, at_stop[1], strict=True))
        names = sorted(agent.networks.optimizer.state())
        of_policy = [i for i, name in enumerate(names) if name.startswith("0.")]
        assert same([slots_now[i] for i in of_policy], [at_stop[2][i] for i in of_policy])


@every_kind
def test_what_goes_back_is_encoder_and_head_by_the_same_share_of_their_way(kind):
    def moved(region):
        settings = RESTLESS | {"trust_region": region, "target_kl": None, "learning_rate": 0.3, "n_epochs": 1}
        agent = agent_on(kind, **settings)
        (old,) = policy(agent)
        metrics = agent.update(batch_of(agent))
        return metrics["train/backtrack_scale"], policy(agent)[0] - old

    (_, whole), (scale, part) = moved(TrustRegion()), moved(KLConstraint(TARGET))
    assert 0.0 < scale < 1.0
    assert whole[0] != 0.0  # of the encoder
    assert whole[-1] != 0.0  # of the head
    torch.testing.assert_close(part, scale * whole, rtol=1e-3, atol=1e-6)


def test_a_head_is_fitted_to_an_encoder_that_went_back_after_the_last_epoch():
    agent = agent_on("image", **(RESTLESS | {"learning_rate": 0.3, "n_epochs": 1}))
    encoders = []

    class Watched(Callback):
        def on_minibatch_end(self, agent, metrics):
            encoders.append(policy(agent))

    agent.update(batch_of(agent), Watched())
    half = len(encoders) // 2
    assert len(encoders) == 4  # 64 samples by 32, twice
    assert all(same(x, policy(agent)) for x in encoders[half:])


@pytest.mark.parametrize("kind", ["image", "vector"])
def test_the_critic_of_a_natural_gradient_is_fitted_to_the_new_encoder_as_it_is(kind):
    agent, seen = agent_on(kind, TRPO, target_kl=TARGET, n_critic_updates=2), []

    class Watched(Callback):
        def on_minibatch_end(self, agent, metrics):
            seen.append(policy(agent))

    before = parameters(agent)
    batch = batch_of(agent)
    samples = agent.prepare(batch)
    agent.update(batch, Watched())
    assert len(seen) == 4
    assert all(same(x, policy(agent)) for x in seen)
    n = len([*agent.actor.parameters()])
    assert not any(map(torch.equal, parameters(agent), before))
    for_critic = agent.for_critic(samples)
    assert torch.equal(agent.critic.trunk(for_critic.encoded)[:, 0], agent.critic(inputs(agent, samples)))
    assert len(parameters(agent)) - n == 4


@pytest.mark.parametrize("kind", ["image", "vector"])
def test_the_natural_step_on_a_shared_encoder_is_that_of_a_dense_solve(kind):
    """(F + lambda I)^-1 g by Woodbury's identity, F = A'A with the rows of A from one backward pass per output."""
    cg = {"cg_max_steps": 500, "cg_tolerance": 1e-6, "target_kl": TARGET, "n_steps": 16}
    agent = agent_on(kind, TRPO, **cg).learn(32)
    samples, damping = agent.prepare(batch_of(agent, 16)), agent.config.cg_damping
    _, g = agent.policy_gradient(samples)
    step = agent.natural_step(samples, g)
    theta, rows = [*agent.actor.parameters()], []
    logits = agent.actor(inputs(agent, samples)).logits
    for z in logits:
        J = torch.stack([torch.cat([q.flatten() for q in torch.autograd.grad(k, theta, retain_graph=True)]) for k in z])
        p = z.detach().double().softmax(-1)
        w, Q = torch.linalg.eigh(torch.diag(p) - torch.outer(p, p))
        rows.append(w.clamp_min(0.0).sqrt()[:, None] * (Q.T @ J.double()))
    A, b = torch.cat(rows) / len(logits) ** 0.5, g.double()
    x = (b - A.T @ torch.linalg.solve(A @ A.T + damping * torch.eye(len(A)).double(), A @ b)) / damping
    curvature = (A @ x).square().sum()
    torch.testing.assert_close(step.vector.double(), (2.0 * TARGET / curvature).sqrt() * x, rtol=1e-3, atol=1e-5)
    n = sum(p.numel() for p in agent.actor.trunk.parameters())
    assert len(x) == n
    assert (x[: n // 2] != 0.0).any()  # the encoder's part


def inputs(agent, samples):
    """What networks are given at the states of an update."""
    return agent.inputs(samples.observations)


# Saved agents, other policies, statistics.
@every_kind
@pytest.mark.parametrize("agent_class", [PPO, TRPO])
def test_a_loaded_agent_goes_on_to_the_bit(agent_class, kind, tmp_path):
    agent = agent_on(kind, agent_class, trust_region="constraint", target_kl=TARGET).learn(128)
    loaded = agent_class.load(agent.save(tmp_path / "agent"))
    assert loaded.networks.share_encoder
    assert same(parameters(loaded), parameters(agent))
    for _ in range(2):
        batch = batch_of(agent)
        assert repr(loaded.update(batch)) == repr(agent.update(batch))
    assert same(parameters(loaded), parameters(agent))
    assert same(slots(loaded), slots(agent))


def test_an_interrupted_training_is_resumed_to_the_bit(tmp_path):
    whole = agent_on("image").learn(256)

    class Stop(Callback):
        def on_update_end(self, agent, batch, metrics):
            if agent.num_timesteps >= 128:
                raise KeyboardInterrupt

    part = agent_on("image")
    with pytest.raises(KeyboardInterrupt):
        part.learn(256, Stop())
    again = PPO.load(part.save(tmp_path / "agent"), env=partial(Sampling, IMAGE)).resume()
    assert same(parameters(again), parameters(whole))
    assert without_time(again) == without_time(whole)


def test_agents_that_were_saved_before_there_was_the_setting_have_separate_networks(tmp_path):
    agent = agent_on("image", shared_encoder=False).learn(64)
    path = agent.save(tmp_path / "agent")
    tensors, state = checkpoint.read(path)
    assert state["config"].pop("shared_encoder") is False
    checkpoint.write(path, tensors, state)
    loaded = PPO.load(path)
    assert not loaded.networks.share_encoder
    assert same(parameters(loaded), parameters(agent))
    batch = batch_of(agent)
    assert repr(loaded.update(batch)) == repr(agent.update(batch))


def test_a_run_of_images_is_resumed_by_the_same_flags(tmp_path):
    """What the environment decides is no other setting."""
    agent = agent_on("image").learn(64, run_dir=tmp_path / "run")
    assert difference(tmp_path / "run", agent_on("image").config, "", 0, 64) is None
    other = agent_on("image", shared_encoder=False)
    assert difference(tmp_path / "run", other.config, "", 0, 64) == "shared_encoder = None, not False"
    assert PPO.load(tmp_path / "run").shares_encoder
    assert agent.shares_encoder
    assert not other.shares_encoder


def test_networks_are_copied_only_to_an_agent_that_shares_as_the_other_does():
    source = agent_on("image").learn(64)
    target = agent_on("image").start_from(source)
    assert same(parameters(target), parameters(source))
    expected = r"^shared_encoder = True of the other agent's networks; allowed: the agent's, False$"
    with pytest.raises(ValueError, match=expected):
        copy_networks(source, agent_on("image", shared_encoder=False))


def test_a_shared_agent_is_a_reference_and_the_kl_to_it_is_held(tmp_path):
    path = agent_on("image").learn(128).save(tmp_path / "reference")
    settings = {"trust_region": "reference-constraint", "reference": str(path), "reference_kl": 0.02}
    tuned = agent_on("image", learning_rate=3e-2, **settings).start_from(path).learn(256)
    assert all(0.0 < row["drift/kl_reference"] <= 0.02 for row in tuned.history)


@pytest.mark.parametrize("kind", ["image", "vector"])
def test_a_student_that_shares_is_moved_by_the_kl_alone(kind):
    teacher, student = agent_on(kind).learn(64), agent_on(kind, seed=1)
    apart = agent_on(kind, seed=1, shared_encoder=False)
    apart.actor.load_state_dict(student.actor.state_dict())
    config = DistillationConfig(n_rounds=2, n_envs=2, n_steps=16, n_epochs=2, batch_size=16)
    for one in (student, apart):
        distill(teacher, one, partial(Sampling, SPACES[kind]), config)
    assert same(policy(student), policy(apart))  # the values of either had nothing to say in it
    assert student.history[-1]["distill/kl_forward"] < student.history[0]["distill/kl_forward"]


def test_a_change_of_statistics_is_folded_once_and_changes_neither_policy_nor_values():
    agent = small_agent(PPO, partial(Noise, box(2)), shared_encoder=True).learn(64)
    x = torch.randn(50, 3)
    before = agent.distribution(x), agent.critic(agent.normalized(x)).detach()
    head = [p.detach().clone() for p in agent.critic.parameters()]
    agent.absorb(0.3 + 1.7 * torch.randn(4096, 3))
    assert same([p.detach() for p in agent.critic.parameters()], head)
    assert kl_divergence(before[0], agent.distribution(x)).max() < 1e-6
    torch.testing.assert_close(agent.critic(agent.normalized(x)).detach(), before[1], rtol=1e-3, atol=1e-4)


def test_a_change_of_the_rewards_scale_multiplies_what_the_head_says():
    agent = agent_on("image", fold_reward_scale=True).learn(64)
    x = agent.normalized(batch_of(agent).observations.flatten(0, 1))
    before, moved = agent.critic(x).detach(), policy(agent)
    assert agent.networks.rescale_values(3.0, x[:1])
    torch.testing.assert_close(agent.critic(x).detach(), 3.0 * before)
    assert same(policy(agent), moved)


# Networks and paths.
def test_a_trunk_of_ones_own_needs_a_critic_of_ones_own():
    def own(n_outputs):
        return nn.Sequential(nn.Unflatten(1, IMAGE.shape), nn.Flatten(), nn.Linear(6 * 7 * 3, n_outputs))

    agent = agent_on("image")
    agent.actor.trunk = own(2)
    expected = (
        r"^shared_encoder = True, and actor\.trunk is a Sequential, of which no part is an encoder; allowed: critic"
    )
    with pytest.raises(ValueError, match=expected):
        agent.learn(64)
    agent.critic.trunk = own(1)
    assert not agent.networks.share_encoder
    agent.learn(64)
    other = agent_on("image")
    other.critic.trunk = own(1)
    before = parameters(other)
    assert not any(map(torch.equal, parameters(other.learn(64)), before))


def test_a_replaced_policy_is_the_one_whose_encoder_is_read():
    agent = agent_on("image")
    agent.actor = copy.deepcopy(agent.actor)
    with torch.no_grad():
        for p in agent.actor.trunk.convolutions.parameters():
            p.mul_(0.5)
    agent.networks.repack()
    x = agent.normalized(batch_of(agent).observations.flatten(0, 1))
    with torch.no_grad():
        encoded = agent.actor.trunk.encode(x.flatten(1))
        assert torch.equal(agent.critic(x), agent.critic.trunk(encoded)[:, 0])


@every_agent
def test_no_kernel_takes_steps_of_a_head_that_is_as_wide_as_the_observations(agent_class):
    """A head of the same sizes as a critic of its own would have, which the kernel knows."""
    agent = small_agent(agent_class, partial(Noise, Discrete(3), (8,)), shared_encoder=True)
    apart = small_agent(agent_class, partial(Noise, Discrete(3), (8,)))
    assert [p.shape for p in agent.critic.parameters()] == [p.shape for p in apart.critic.parameters()]
    assert kernel_of(agent) is None
    paths = agent.describe()["paths"]
    shared = "in one pass through the encoder that they share"
    assert (shared in paths["critic"]) == (shared in paths["policy"]) == (agent_class is PPO)
    assert agent_class is PPO or paths["critic"].endswith("on what the policy's encoder says")
    agent.learn(64)


def test_layer_norm_can_be_shared():
    agent = agent_on("vector", layer_norm=True, trust_region="constraint", target_kl=TARGET).learn(128)
    assert max(row["drift/kl"] for row in agent.history) <= TARGET
    x = agent.normalized(batch_of(agent).observations.flatten(0, 1))
    with torch.no_grad():
        torch.testing.assert_close(agent.actor.trunk(x), agent.actor.trunk.decode(agent.actor.trunk.encode(x)))


def test_what_cannot_be_shared_is_refused():
    with pytest.raises(
        ValueError, match=r"^shared_encoder = True with network = .*, of which no part .*; allowed: False$"
    ):
        PPOConfig(shared_encoder=True, network=lambda n, m: nn.Linear(n, m))
    with pytest.raises(
        ValueError, match=r"^shared_encoder = True with actor_hidden_sizes = \(\) and no images; allowed:"
    ):
        agent_on("vector", actor_hidden_sizes=())
    with pytest.raises(ValueError, match=r"^shared_encoder = 1; allowed: true or false or none$"):
        PPOConfig(shared_encoder=1)
    agent = agent_on("vector")
    agent.critic.trunk[0] = agent.actor.trunk[0]
    with pytest.raises(ValueError, match=r"^critic shares parameters with actor"):
        agent.learn(64)


def test_values_of_a_loss_may_be_evaluated_twice():
    agent = agent_on("vector").learn(64)
    samples = agent.prepare(batch_of(agent))
    with together(agent.actor, agent.critic, samples.observations) as at:
        loss: Objective = agent.value_loss(samples) - agent.objective(at, samples.change(at.output))
    first, second = loss.gradients(), loss.gradients()
    assert all(torch.equal(first[network], second[network]) for network in agent.networks)
