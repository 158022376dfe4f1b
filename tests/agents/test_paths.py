"""Formulas in numpy, formulas in torch and autograd are three ways to the same training."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from environments import Sampling, small_agent
from test_every_space import every_case, in_torch
from torch import distributions as td
from torch import nn

from klrl.agents import PPO, TRPO
from klrl.agents.update_batch import UpdateBatch
from klrl.kl import kl_gradient
from klrl.native import at_level, available
from klrl.policy.distributions import Categorical, MultiCategorical
from klrl.policy.linearization import ByAutograd, flatten
from klrl.policy.mlp import MLP
from klrl.run import Callback
from klrl.trust_region import All, Clip, Fixed, KLPenalty, TrustRegion

ENVIRONMENTS = ["CartPole-v1", "Pendulum-v1"]
tasks = pytest.mark.parametrize("env", ENVIRONMENTS)
algorithms = pytest.mark.parametrize("agent_class", [PPO, TRPO])


def choose_path(agent, path):
    """Arrays or tensors in the library's networks, or the same layers in networks that it has no formulas for."""
    agent.networks.numpy_rows = 0 if "tensors" in path else 10**9
    agent.networks.kernel = at_level(available()[-1]) if path == "kernel" else None
    if "autograd" in path:
        for network in (agent.actor, agent.critic):
            network.trunk = nn.Sequential(*network.trunk)
    return agent


PATHS = ["arrays", "tensors", "autograd, arrays", "autograd, tensors"]
paths = pytest.mark.parametrize("path", PATHS)
KERNEL = ["kernel"] if available() else []


# One minibatch.
class Recorder(PPO):
    """Keeps the losses of an update instead of descending them."""

    def descend(self, loss):
        self.losses.append(loss)


REGIONS = {
    "clip": Clip(0.2),
    "clip and penalty": All(Clip(0.2), KLPenalty(Fixed(3.0))),
    "penalty": KLPenalty(Fixed(3.0)),
}
regions = pytest.mark.parametrize("region", REGIONS.values(), ids=REGIONS)
entropies = pytest.mark.parametrize("ent_coef", [0.0, 0.02])


def moved(env, region, ent_coef, dtype, seed=0):
    """An agent, and samples from before its policy and critic were moved: one minibatch holds them all."""
    settings = {"trust_region": region, "ent_coef": ent_coef, "vf_coef": 0.7, "n_epochs": 1, "batch_size": 64}
    agent = small_agent(Recorder, env, seed=seed, **settings)
    agent.actor.to(dtype)
    agent.critic.to(dtype)
    g = torch.Generator().manual_seed(seed)
    observations = torch.randn(64, *agent.observation_space.shape, generator=g, dtype=dtype)
    old = agent.actor(observations).detach()
    actions, (advantage, returns) = old.sample(g), torch.randn(2, 64, generator=g, dtype=dtype)
    samples = UpdateBatch(observations, actions, old, old.log_prob(actions), advantage, returns)
    for p in (*agent.actor.parameters(), *agent.critic.parameters()):
        p.data += 0.2 * torch.randn(p.shape, generator=g, dtype=dtype)
    return agent, samples


def loss_of(agent, samples, path):
    """The loss that PPO makes of these samples, and its gradients; paths with autograd come last."""
    choose_path(agent, path).losses = []
    with torch.no_grad():
        agent.improve(None, samples, Callback())
    (loss,) = agent.losses
    return float(loss.value), loss.gradients()


def written_out(agent, samples):
    """PPO's loss (eq. 7 to 9) once more, by torch.distributions and autograd."""
    config, x = agent.config, samples.observations
    outputs = nn.Sequential(*agent.actor.trunk)(x)
    if isinstance(samples.old, Categorical):
        old, new = (td.Categorical(logits=logits) for logits in (samples.old.logits, outputs))
    else:
        log_std = agent.actor.log_std.expand_as(outputs)
        fields = ((samples.old.mean, samples.old.log_std), (outputs, log_std))
        old, new = (td.Independent(td.Normal(mean, log.exp()), 1) for mean, log in fields)
    ratio = (new.log_prob(samples.actions) - old.log_prob(samples.actions)).exp()
    surrogate = ratio * samples.advantage
    if (eps := agent.region.clip_range) is not None:
        assert 0.1 < ((ratio - 1.0).abs() > eps).double().mean() < 0.9
        surrogate = torch.min(surrogate, ratio.clamp(1.0 - eps, 1.0 + eps) * samples.advantage)
    penalty = (agent.region.beta or 0.0) * td.kl_divergence(old, new)
    values = nn.Sequential(*agent.critic.trunk)(x).squeeze(-1)
    value_loss = nn.functional.mse_loss(values, samples.returns)
    loss = config.vf_coef * value_loss - (surrogate - penalty).mean() - config.ent_coef * new.entropy().mean()
    networks = (agent.actor, agent.critic)
    gradients = [flatten(torch.autograd.grad(loss, list(n.parameters()), retain_graph=True)) for n in networks]
    return loss.item(), dict(zip(networks, gradients, strict=True))


def assert_close(gradients, expected, rel):
    assert set(gradients) == set(expected)
    for network, e in expected.items():
        assert e.norm() > 1e-3
        assert (torch.as_tensor(gradients[network]) - e).norm() <= rel * e.norm()


@tasks
@regions
@entropies
@pytest.mark.parametrize(("dtype", "rel"), [(torch.float64, 1e-12), (torch.float32, 3e-6)], ids=["float64", "float32"])
def test_the_loss_of_a_minibatch_and_its_gradient_are_those_written_out(env, region, ent_coef, dtype, rel):
    agent, samples = moved(env, region, ent_coef, dtype)
    expected, by_autograd = written_out(agent, samples)
    for path in PATHS:
        value, gradients = loss_of(agent, samples, path)
        assert value == pytest.approx(expected, rel=rel, abs=rel), path
        kind = torch.Tensor if "tensors" in path else np.ndarray
        assert all(isinstance(g, kind) for g in gradients.values()), path
        assert_close(gradients, by_autograd, rel)


@tasks
@pytest.mark.parametrize("seed", range(5))
def test_all_paths_take_the_same_gradient_step(env, seed):
    results = [loss_of(*moved(env, REGIONS["clip and penalty"], 0.02, torch.float64, seed), path) for path in PATHS]
    (value, first), *others = results
    for other_value, other in others:
        assert other_value == pytest.approx(value, rel=1e-12)
        for g, e in zip(other.values(), first.values(), strict=True):
            assert np.linalg.norm(np.asarray(g) - np.asarray(e)) <= 1e-12 * np.linalg.norm(np.asarray(e))


# The other actors.
def moved_in(case, dtype=torch.float64, seed=0, **given):
    """As :func:`moved`, in any space, with masks where there are some; networks are separate on all paths."""
    observations, actions, masks, options = case
    env = partial(Sampling, observations, actions, masks=masks)
    settings = {"trust_region": REGIONS["clip and penalty"], "n_epochs": 1, "batch_size": 64, "shared_encoder": False}
    settings |= options | given
    agent = small_agent(Recorder, env, seed=seed, **settings)
    g = torch.Generator().manual_seed(seed)
    collector = agent.collector()
    rows = collector.collect(agent.act, 32).observations.flatten(0, 1)
    agent.actor.to(dtype)
    agent.critic.to(dtype)
    x = agent.normalizer(rows).to(dtype)
    old = agent.actor(x).detach()
    taken, (advantage, returns) = old.sample(g), torch.randn(2, 64, generator=g, dtype=dtype)
    samples = UpdateBatch(x, taken, old, old.log_prob(taken), advantage, returns)
    for p in (*agent.actor.parameters(), *agent.critic.parameters()):
        p.data += 0.2 * torch.randn(p.shape, generator=g, dtype=dtype)
    return agent, samples


def log_prob_in_torch(record, action):
    if isinstance(record, MultiCategorical):
        return sum(head.log_prob(action[:, i]) for i, head in enumerate(in_torch(record)))
    return in_torch(record)[0].log_prob(action)


@every_case
def test_the_loss_in_every_space_is_the_same_on_all_paths_and_written_out(observations, actions, masks, options):
    case = (observations, actions, masks, options)
    agent, samples = moved_in(case)
    new, old, A = agent.actor(samples.observations), samples.old, samples.advantage
    ratio = (log_prob_in_torch(new, samples.actions) - log_prob_in_torch(old, samples.actions)).exp()
    surrogate = torch.min(ratio * A, ratio.clamp(0.8, 1.2) * A)
    kl = sum(td.kl_divergence(p, q) for p, q in zip(in_torch(old), in_torch(new), strict=True))
    value_loss = (agent.critic(samples.observations) - samples.returns).square()
    loss = (0.5 * value_loss - surrogate + 3.0 * kl).mean()
    networks = (agent.actor, agent.critic)
    expected = [flatten(torch.autograd.grad(loss, list(n.parameters()), retain_graph=True)) for n in networks]
    for path in PATHS:
        if "autograd" in path and not isinstance(agent.actor.trunk, MLP):
            continue
        agent, samples = moved_in(case)
        value, gradients = loss_of(agent, samples, path)
        assert value == pytest.approx(loss.item(), rel=1e-9)
        assert all(isinstance(g, torch.Tensor if "tensors" in path else np.ndarray) for g in gradients.values())
        assert_close(gradients, dict(zip((agent.actor, agent.critic), expected, strict=True)), 1e-9)


# Whole runs.
def run(agent_class, env, path, n_updates=4, seed=0, **settings):
    """A short training on one path."""
    epochs = {"n_epochs": 4, "ent_coef": 0.01} if agent_class is PPO else {"n_critic_updates": 4}
    epochs |= {"learning_rate": 0.005, "learning_rate_schedule": "constant"}
    agent = choose_path(small_agent(agent_class, env, seed=seed, **(epochs | settings)), path)
    return agent.learn(n_updates * 64)


def curve(agent):
    """Every metric of every update, but for the time it took and for what rounding decides.

    That is what is zero without rounding, and where conjugate gradient ends: once a residual is below its tolerance.
    """
    rounding = {"time/fps", "drift/start_kl", "drift/start_ratio_error", "train/cg_steps", "train/cg_residual"}
    return [{name: x for name, x in metrics.items() if name not in rounding} for metrics in agent.history]


@pytest.fixture
def made(monkeypatch):
    """Which linearizations of trunks are made, and of arrays or of tensors."""
    seen, autograd, formulas = set(), ByAutograd.__init__, MLP.linearize

    def by_autograd(self, network, x):
        seen.add(("autograd", type(x)))
        autograd(self, network, x)

    def by_formulas(self, x):
        seen.add(("formulas", type(x)))
        return formulas(self, x)

    monkeypatch.setattr(ByAutograd, "__init__", by_autograd)
    monkeypatch.setattr(MLP, "linearize", by_formulas)
    return seen


# The paths round differently, in the seventh digit, and training multiplies the difference by 3 to 10 per update, to
# some 1e-5 in the fourth (TRPO 1e-4: its conjugate gradient may end one step earlier). A wrong formula, a network
# without its gradient or a stale copy of a parameter moves the second update by percents.
REL, ABS = 2e-3, 1e-5


@tasks
@algorithms
@pytest.mark.parametrize("path", PATHS[1:] + KERNEL)
def test_whole_runs_have_the_same_curve_on_every_path(agent_class, env, path, made):
    fold = "autograd" not in path  # a trunk that the library does not know is not folded
    expected = curve(run(agent_class, env, PATHS[0], fold_normalizer=fold))
    by = {("formulas", np.ndarray)} if agent_class is PPO else {("formulas", np.ndarray), ("formulas", torch.Tensor)}
    assert made == by
    made.clear()
    got = curve(run(agent_class, env, path, fold_normalizer=fold))
    which = "autograd" if "autograd" in path else "formulas"
    kinds = {torch.Tensor} if "tensors" in path else set() if path == "kernel" else {np.ndarray}
    assert made == {(which, kind) for kind in kinds | ({torch.Tensor} if agent_class is TRPO else set())}
    for metrics, same in zip(got, expected, strict=True):
        assert set(metrics) == set(same)
        for name, x in same.items():
            assert metrics[name] == (x if isinstance(x, str) else pytest.approx(x, rel=REL, abs=ABS, nan_ok=True)), name
    assert sum(metrics["drift/kl"] for metrics in got) > 1e-3


@tasks
@algorithms
@pytest.mark.parametrize("path", PATHS + KERNEL)
def test_the_same_seed_gives_the_same_bits_on_every_path(agent_class, env, path):
    first, second = (run(agent_class, env, path, n_updates=2) for _ in range(2))
    other = run(agent_class, env, path, n_updates=1, seed=1)
    assert repr(curve(first)) == repr(curve(second))
    for network in ("actor", "critic"):
        a, b, c = (flatten(getattr(agent, network).parameters()) for agent in (first, second, other))
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


# What an agent says of its path, against what its updates were seen to do.
WORDS = {
    ("formulas", np.ndarray): "numpy, derivatives written out",
    ("formulas", torch.Tensor): "torch, derivatives written out",
    ("autograd", np.ndarray): "numpy around a network in torch, derivatives by autograd",
    ("autograd", torch.Tensor): "torch, derivatives by autograd",
}


def seen_in(agent, monkeypatch):
    """What an update linearizes of each network, and how; and what actions are drawn from."""
    seen = {"policy": set(), "critic": set(), "acting": set()}
    names = {agent.actor: "policy", agent.actor.trunk: "policy", agent.critic.trunk: "critic"}
    autograd, formulas, act = ByAutograd.__init__, MLP.linearize, agent.act

    def by_autograd(self, network, x):
        seen[names[network]].add(WORDS["autograd", type(x)])
        autograd(self, network, x)

    def by_formulas(self, x):
        made = formulas(self, x)
        if not isinstance(made, ByAutograd):
            seen[names[self]].add(WORDS["formulas", type(x)])
        return made

    def acting(observations):
        actions, executed, policy = act(observations)
        seen["acting"].add("numpy" if isinstance(policy.parameters[0], np.ndarray) else "torch")
        return actions, executed, policy

    with monkeypatch.context() as patch:
        patch.setattr(ByAutograd, "__init__", by_autograd)
        patch.setattr(MLP, "linearize", by_formulas)
        patch.setattr(agent, "act", acting)
        agent.learn(64)
    return seen


@algorithms
@paths
def test_describe_says_which_path_ran(agent_class, path, monkeypatch):
    agent = choose_path(small_agent(agent_class, "Pendulum-v1", fold_normalizer=False), path)
    said = agent.describe()["paths"]
    seen = seen_in(agent, monkeypatch)
    assert seen.pop("acting") == {said["acting"].partition(" ")[0]}
    assert seen == {name: {said[name]} for name in ("policy", "critic")}
    assert said["acting"].endswith("a network in torch") == (path == "autograd, arrays")
    assert (said["surrogate"], said["optimizer"]) == ("derivatives written out", "numpy")


def test_describe_says_that_a_frozen_trunk_a_beta_policy_and_large_minibatches_take_other_paths(monkeypatch):
    frozen, beta = (small_agent(PPO, "Pendulum-v1", action_distribution=d) for d in ("gaussian", "beta"))
    frozen.actor.trunk[0].bias.requires_grad_(requires_grad=False)
    large = small_agent(PPO, "Pendulum-v1", critic_hidden_sizes=(512, 512, 512))
    large.networks.kernel = None  # beyond numpy's minibatches it competes with torch
    for agent in (frozen, beta, large):
        said = agent.describe()["paths"]
        seen = seen_in(agent, monkeypatch)
        assert {name: {said[name]} for name in ("policy", "critic")} == {n: seen[n] for n in ("policy", "critic")}
    assert "by autograd" in frozen.describe()["paths"]["policy"]
    assert "by autograd" in beta.describe()["paths"]["policy"]
    assert large.describe()["paths"]["policy"] == "torch, derivatives written out"


class Mine(TrustRegion):
    """A penalty without its derivative, under a surrogate that has one."""

    def penalty(self, change):
        return change.kl_reverse


class Known(Mine):
    def penalty_gradient(self, change):
        return kl_gradient(change.new, change.old)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"trust_region": "clip+constraint"}, "written out"),
        ({"trust_region": All(Clip(), Mine())}, "by autograd: Mine.penalty"),
        ({"trust_region": All(Clip(), Known())}, "written out"),
        ({"trust_region": "projection+mdpo"}, "by autograd: KLProjection.surrogate, MirrorDescent.penalty"),
        ({"action_distribution": "beta"}, "by autograd: Beta.log_prob"),
        ({"action_distribution": "beta", "ent_coef": 0.1}, "by autograd: Beta.log_prob, Beta.entropy"),
        ({"action_distribution": "squashed-gaussian"}, "written out"),
    ],
    ids=str,
)
def test_describe_names_what_of_the_surrogate_autograd_differentiates(settings, words):
    agent = small_agent(PPO, "Pendulum-v1", **settings)
    assert agent.describe()["paths"]["surrogate"] == f"derivatives {words}"


def test_config_json_says_it_too(tmp_path):
    agent = small_agent(PPO).learn(64, run_dir=tmp_path / "run")
    assert json.loads((tmp_path / "run/config.json").read_text())["paths"] == agent.describe()["paths"]


def shared_or_added(agent, how):
    """Give an agent's networks parameters that are not just their layers', each once; name the networks."""
    trunk = agent.actor.trunk
    if how == "shared weights":
        trunk[4].weight, agent.critic.trunk[4].weight = trunk[2].weight, agent.critic.trunk[2].weight
        return {"policy", "critic"}
    if how == "shared with a parameter of its own":
        trunk[-1].bias = agent.actor.log_std
    elif how == "added layer":
        agent.actor.auxiliary = nn.Linear(3, 2)
    elif how == "added parameter":
        agent.actor.scale = nn.Parameter(torch.ones(2))
    elif how == "added to a layer":
        agent.critic.trunk[0].scale = nn.Parameter(torch.ones(2))
    elif how == "added to the trunk":
        agent.critic.trunk.scale = nn.Parameter(torch.ones(2))
    return {"critic"} if how in ("added to a layer", "added to the trunk") else {"policy"}


@algorithms
@pytest.mark.parametrize(
    "how",
    [
        "shared weights", "shared with a parameter of its own", "added layer", "added parameter", "added to a layer",
        "added to the trunk",
    ],
)  # fmt: skip
def test_networks_with_shared_or_added_parameters_learn_by_autograd(agent_class, how):
    sizes = {"actor_hidden_sizes": (8, 8, 8), "critic_hidden_sizes": (8, 8, 8)}
    agent = small_agent(agent_class, "Pendulum-v1", fold_normalizer=False, **sizes)
    changed = shared_or_added(agent, how)
    agent.networks.repack()
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    for network in agent.networks:
        outputs = network(x).mean if network is agent.actor else network(x)
        u = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(1))
        parameters = list(network.parameters())
        gradients = torch.autograd.grad((u * outputs).sum(), parameters, allow_unused=True, materialize_grads=True)
        expected = flatten(gradients)
        for form in (x, x.numpy()):
            with torch.no_grad():
                at = network.linearize(form)
                cotangent = (u, 0.0 * u) if network is agent.actor else (u,)
                got = at.pull_back(*(cotangent if form is x else [c.numpy() for c in cotangent]))
            assert (torch.as_tensor(got) - expected).norm() <= 1e-5 * expected.norm()
    first = [flatten(network.parameters()).clone() for network in agent.networks]
    agent.learn(128)
    assert not any(map(torch.equal, first, [flatten(network.parameters()) for network in agent.networks]))
    said = agent.describe()["paths"]
    assert {name for name in ("policy", "critic") if "by autograd" in said[name]} == changed
