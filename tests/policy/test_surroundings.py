"""What a program has set in torch and numpy for its own purposes: klrl computes the same numbers as without."""

import contextlib
from functools import cache, partial
from tempfile import TemporaryDirectory

import gymnasium as gym
import numpy as np
import pytest
import torch
from environments import Noise, Sampling, box, random_batch, small_agent
from support import every_agent

from klrl.agents import (
    NPG,
    PPO,
    TRPO,
    DistillationConfig,
    DPOConfig,
    PreferencesConfig,
    collect_preferences,
    distill,
    fit_preferences,
    load_agent,
)
from klrl.kl import estimate_divergence, jensen_shannon, kl_divergence, renyi, reverse_kl, total_variation, wasserstein
from klrl.policy.distributions import Beta, Categorical, DiagGaussian, SquashedGaussian

pytestmark = pytest.mark.filterwarnings("ignore:.*the standard error cannot be trusted:RuntimeWarning")


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


SETTINGS = {
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "meta device": lambda: torch.device("meta"),
    "inference mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "numpy raises": lambda: np.errstate(all="raise"),
}
every_setting = pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
IMAGE = gym.spaces.Box(0, 255, (9, 9, 3), np.uint8)
AGENTS = {
    "beta": partial(small_agent, PPO, partial(Noise, box(2)), action_distribution="beta", batch_size=16, n_epochs=2),
    "image": partial(small_agent, PPO, partial(Sampling, IMAGE), learning_rate=1e-2, n_epochs=2),
    "squashed": partial(small_agent, TRPO, partial(Noise, box(2)), action_distribution="squashed-gaussian"),
    "several": partial(small_agent, NPG, partial(Sampling, gym.spaces.Discrete(3), gym.spaces.MultiDiscrete([2, 3]))),
}


def numbers(agent):
    """All that training has made, as bits."""
    tensors = [p for network in agent.networks for p in network.parameters()]
    rows = [{k: v for k, v in row.items() if k != "time/fps"} for row in agent.history]
    return [x.detach().numpy().tobytes() for x in (*tensors, *agent.networks.optimizer.state().values())], repr(rows)


def state_of_the_program():
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_dtype(), np.geterr()


def a_life(make, path):
    """Made, trained, asked, saved, loaded, trained on."""
    agent = make().learn(64)
    observation = agent.observation_space.sample()
    for deterministic in (True, False):
        agent.predict(observation, deterministic=deterministic)
    agent.save(path)
    loaded = type(agent).load(path, agent.training_envs.env)
    action, _ = loaded.predict(observation, deterministic=True)
    assert np.array_equal(action, agent.predict(observation, deterministic=True)[0])
    return agent, loaded.learn(64)


@cache
def plain_life(make):
    """The numbers where the program has set nothing."""
    with TemporaryDirectory() as folder:
        return [numbers(agent) for agent in a_life(make, folder)]


@pytest.mark.parametrize("make", AGENTS.values(), ids=AGENTS)
@every_setting
def test_the_numbers_do_not_depend_on_what_the_program_has_set(make, setting, tmp_path):
    plain = plain_life(make)
    with setting():
        before = state_of_the_program()
        agents = a_life(make, tmp_path / "other")
        assert state_of_the_program() == before
    assert [numbers(agent) for agent in agents] == plain
    assert agents[0].drift.kl_sum > 0.0
    assert {x.dtype for x in agents[1].actor.parameters()} == {torch.float32}


def own(n):  # no MLP: derivatives by autograd
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.SiLU(), torch.nn.Linear(8, n))


@cache
def learned(agent_class, during):
    torch.manual_seed(0)
    nets = own(2), own(1)
    with during():
        agent = small_agent(agent_class, normalize_observations=False)
        agent.actor.trunk, agent.critic.trunk = nets
        batch = random_batch(agent) if during is not SETTINGS["meta device"] else None
    agent.update(batch or random_batch(agent))
    return numbers(agent)


@every_agent
@every_setting
def test_a_batch_and_an_agent_that_were_made_within_it_are_learned_from_outside(agent_class, setting):
    if setting is SETTINGS["bfloat16"] or setting is SETTINGS["float64"]:
        pytest.skip("the batch made here by hand is of the default type")
    assert learned(agent_class, setting) == learned(agent_class, contextlib.nullcontext)


@cache
def taught(during):
    make = partial(small_agent, PPO)
    with during():
        teacher, student = make(), make(seed=1)
        distill(teacher, student, "CartPole-v1", DistillationConfig(n_rounds=1, n_envs=2, n_steps=16))
        pairs = collect_preferences(teacher, "CartPole-v1", PreferencesConfig(n_pairs=8, segment_length=8))
        policy = make(seed=1)
        fit_preferences(policy, teacher, pairs, DPOConfig(n_epochs=1))
    return numbers(student), numbers(policy)


@every_setting
def test_distillation_and_preferences_do_not_depend_on_it(setting):
    assert taught(setting) == taught(contextlib.nullcontext)


def records(family, seed):
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(50, 3, generator=generator, dtype=torch.float32, device="cpu") for _ in range(2))
    return {
        "Categorical": lambda: Categorical(x),
        "DiagGaussian": lambda: DiagGaussian(x, 0.3 * y),
        "SquashedGaussian": lambda: SquashedGaussian(x, 0.3 * y),
        "Beta": lambda: Beta(1.0 + x.exp(), 1.0 + y.exp()),
    }[family]()


@pytest.mark.parametrize("family", ["Categorical", "DiagGaussian", "SquashedGaussian", "Beta"])
@pytest.mark.parametrize("as_numpy", [False, True], ids=["tensors", "arrays"])
@every_setting
def test_a_divergence_does_not_depend_on_it(family, as_numpy, setting):
    measures = [kl_divergence, reverse_kl, partial(renyi, alpha=0.5)]
    measures += [wasserstein] if family in ("Categorical", "DiagGaussian") else []
    measures += [total_variation, jensen_shannon] if family == "Categorical" else []

    def measured():
        p, q = records(family, 0), records(family, 1)
        p, q = (r.map(torch.Tensor.numpy) if as_numpy else r for r in (p, q))
        found = [f(p, q) for f in measures] + [p.entropy(), p.mode(), p.log_prob(p.mode())]
        found.append(p.sample(torch.Generator().manual_seed(0)))
        if not as_numpy:
            samples = torch.Generator().manual_seed(0)
            found.append(estimate_divergence(p, q, "jensen_shannon", n=100, generator=samples).value)
        return [np.asarray(x) for x in found]

    plain = measured()
    with setting():
        other = measured()
    for a, b in zip(plain, other, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_a_saved_agent_that_is_loaded_within_inference_mode_learns_outside(tmp_path):
    small_agent(PPO).learn(64).save(tmp_path / "a")
    with torch.inference_mode():
        inside = load_agent(tmp_path / "a")
    outside = load_agent(tmp_path / "a")
    assert numbers(inside.learn(64)) == numbers(outside.learn(64))
