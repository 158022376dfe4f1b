"""A student becomes its teacher, as far as it can: by which KL, where, and what can be done with it afterwards."""

import json
import math
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from environments import Probe, Sampling, box, small_agent
from support import exactly, parameters, same
from torch import distributions as td
from torch import nn

from klrl.agents import PPO, TRPO, DistillationConfig, PPOConfig, distill, load_agent
from klrl.agents.distillation import distillation_loss, distillation_rounds, student_config
from klrl.run import evaluate
from klrl.scripts.main import main

directions = pytest.mark.parametrize("direction", ["forward", "reverse"])
QUICK = {"n_envs": 2, "n_steps": 32, "n_rounds": 2, "n_epochs": 2}


class Fixed(nn.Module):
    """The same outputs in every state; they are the parameters."""

    def __init__(self, outputs):
        super().__init__()
        self.outputs = nn.Parameter(torch.tensor(outputs))

    def forward(self, x):
        return self.outputs.expand(*x.shape[:-1], -1)


class OnePeak(nn.Module):
    """Logits a i - e^c i^2 of a number i: one peak, wherever it is; an exponential family with moments of i, i^2."""

    def __init__(self, n, peak):
        super().__init__()
        self.i = torch.linspace(-1.0, 1.0, n)
        self.a, self.c = nn.Parameter(torch.tensor([20.0 * peak])), nn.Parameter(torch.tensor([math.log(10.0)]))

    def forward(self, x):
        return (self.a * self.i - self.c.exp() * self.i.square()).expand(*x.shape[:-1], -1)


class Alternating(gym.Env):
    """Episodes of one step, in one of two states by turns."""

    observation_space, action_space = box(1), box(1)
    state = 1.0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = -self.state
        return np.array([self.state], np.float32), {}

    def step(self, action):
        return np.array([self.state], np.float32), 0.0, True, False, {}


@directions
@pytest.mark.parametrize("space", [box(3), gym.spaces.Discrete(4)], ids=["Box", "Discrete"])
def test_the_gradient_is_that_of_the_kl_of_torch_distributions(direction, space):

    def env():
        return Sampling(box(3), space)

    teacher, student = (small_agent(PPO, env, seed=seed, log_std_init=0.3 * seed) for seed in (0, 1))
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    asked = teacher.actor(3.0 * x).detach()
    loss = distillation_loss(asked, student.actor.linearize(x), direction)
    p, q = exactly(asked), exactly(student.actor(x))
    expected = (td.kl_divergence(p, q) if direction == "forward" else td.kl_divergence(q, p)).mean()
    expected.backward()
    gradient = torch.cat([p.grad.reshape(-1) for p in student.actor.parameters()])
    torch.testing.assert_close(loss.value.double(), expected.detach(), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(loss.gradients()[student.actor], gradient, rtol=1e-3, atol=1e-6)


@directions
@pytest.mark.parametrize(("temperature", "probs"), [(0.5, [4 / 21, 1 / 21, 16 / 21]), (1.0, [2 / 7, 1 / 7, 4 / 7])])
def test_a_student_learns_the_teachers_policy_at_the_temperature(direction, temperature, probs):
    def env():
        return Sampling(box(3), gym.spaces.Discrete(3))

    teacher, student = (small_agent(PPO, env, seed=seed) for seed in (0, 1))
    teacher.actor.trunk, student.actor.trunk = Fixed([math.log(2.0), 0.0, math.log(4.0)]), Fixed([0.0, 0.0, 0.0])
    settings = QUICK | {"n_rounds": 8, "n_epochs": 20, "learning_rate": 3e-2}
    distill(teacher, student, env, DistillationConfig(direction=direction, temperature=temperature, **settings))
    torch.testing.assert_close(student.actor(torch.zeros(3)).probs, torch.tensor(probs), rtol=0.0, atol=0.01)
    first, last = student.history[0], student.history[-1]
    p, q = torch.tensor(probs), torch.full((3,), 1 / 3)
    assert first["distill/kl_forward"] == pytest.approx((p * (p / q).log()).sum().item(), rel=1e-4)
    assert last["distill/kl_forward"] < 1e-3
    assert last["distill/kl_reverse"] < 1e-3


@pytest.mark.parametrize(("direction", "variance"), [("forward", 0.25 + 4.0), ("reverse", 0.25)])
def test_a_student_that_does_not_see_the_state_covers_the_teacher_or_seeks_it(direction, variance):
    """Teacher N(+-2, 1/4) by state: forward KL gives the mixture's moments, reverse the normalised geometric mean."""
    teacher, student = (small_agent(PPO, Alternating, normalize_observations=False, seed=seed) for seed in (0, 1))
    teacher.actor.trunk = nn.Linear(1, 1)
    student.actor.trunk = Fixed([0.7])
    with torch.no_grad():
        teacher.actor.trunk.weight.fill_(2.0)
        teacher.actor.trunk.bias.fill_(0.5)
        teacher.actor.log_std.fill_(math.log(0.5))
    config = DistillationConfig(
        direction=direction, n_rounds=3, n_envs=2, n_steps=16, batch_size=32, n_epochs=300, learning_rate=0.02
    )
    distill(teacher, student, Alternating, config)
    learned = student.distribution(torch.zeros(1, 1))
    assert learned.mean.item() == pytest.approx(0.5, abs=0.03)
    assert learned.log_std.exp().item() ** 2 == pytest.approx(variance, rel=0.03)


def with_two_peaks(peak, direction, n_epochs):
    """Teach a student with one peak, first at ``peak``, what to do by a teacher with two; what both then do."""

    def env():
        return Probe(lambda state, action: 0.0, action_space=gym.spaces.Discrete(9))

    teacher, student = (small_agent(PPO, env, normalize_observations=False, seed=seed) for seed in (0, 1))
    teacher.actor.trunk = Fixed([-3.0, 0.0, 3.0, 0.0, -4.0, 0.0, 3.0, 0.0, -3.0])
    student.actor.trunk = OnePeak(9, peak)
    config = DistillationConfig(
        direction=direction, n_rounds=1, n_envs=2, n_steps=4, batch_size=8, n_epochs=n_epochs, learning_rate=0.05
    )
    distill(teacher, student, env, config)
    return (agent.distribution(torch.zeros(1, 1)).probs[0] for agent in (teacher, student))


def test_one_peak_cannot_be_two_and_forward_kl_matches_moments():
    teacher, student = with_two_peaks(0.3, "forward", n_epochs=500)
    i = torch.linspace(-1.0, 1.0, 9)
    assert (student @ i).item() == pytest.approx((teacher @ i).item(), abs=1e-3)
    assert (student @ i.square()).item() == pytest.approx((teacher @ i.square()).item(), rel=1e-3)
    assert student[4] > 10.0 * teacher[4]  # it does what the teacher hardly ever does, too


@pytest.mark.parametrize("side", [-1, 1])
def test_one_peak_cannot_be_two_and_reverse_kl_seeks_the_nearer_one(side):
    _, student = with_two_peaks(0.3 * side, "reverse", n_epochs=200)
    assert (student[5:] if side > 0 else student[:4]).sum() > 0.95


@pytest.fixture(scope="module")
def cartpole_teacher():
    config = PPOConfig.for_env("CartPole-v1", normalize_observations=True)
    return PPO("CartPole-v1", config, seed=100).learn(4096)


@pytest.mark.parametrize(("agent_class", "direction"), [(PPO, "forward"), (TRPO, "reverse")])
def test_a_cartpole_teacher_is_learned_and_the_student_learns_on(agent_class, direction, cartpole_teacher, tmp_path):
    teacher = cartpole_teacher
    before = parameters(teacher)
    small = student_config(agent_class.config_class, teacher, "CartPole-v1", actor_hidden_sizes=(8, 8))
    student = agent_class("CartPole-v1", small, seed=101)
    settings = DistillationConfig(direction=direction, n_rounds=6, n_steps=64, n_epochs=6, learning_rate=3e-3)
    assert distill(teacher, student, "CartPole-v1", settings, seed=102) is student
    for name in ("kl_forward", "kl_reverse"):
        assert student.history[-1][f"distill/{name}"] < 0.1 * student.history[0][f"distill/{name}"]
    assert same(parameters(teacher), before)
    loaded = agent_class.load(student.save(tmp_path / "student"))
    observations = torch.from_numpy(np.array([[0.0, 0.1, 0.02, -0.1]], np.float32))
    assert same(loaded.distribution(observations).parameters, student.distribution(observations).parameters)
    loaded.learn(1)
    assert loaded.history[-1]["train/explained_variance"] > 0.2  # the critic knows what to expect
    assert loaded.num_timesteps == 7 * 8 * 64 + 1024


def test_new_students_take_the_teachers_statistics_and_trained_ones_keep_their_own():
    teacher = small_agent(PPO, "CartPole-v1").learn(64)
    new, trained = small_agent(PPO, "CartPole-v1", seed=1), small_agent(PPO, "CartPole-v1", seed=2).learn(128)
    own = trained.normalizer
    next(distillation_rounds(teacher, new, "CartPole-v1", DistillationConfig(**QUICK)))
    next(distillation_rounds(teacher, trained, "CartPole-v1", DistillationConfig(**QUICK)))
    assert new.normalizer.moments.count == teacher.normalizer.moments.count + 64
    assert trained.normalizer.moments.count == own.moments.count + 64
    frozen = small_agent(PPO, "CartPole-v1", seed=1, normalize_observations=False)
    distill(teacher, frozen, "CartPole-v1", DistillationConfig(**QUICK))
    assert frozen.normalizer is teacher.normalizer


def test_who_visits_the_states_is_who_was_asked_to():
    teacher, student = (small_agent(PPO, "CartPole-v1", seed=seed) for seed in (0, 1))
    acting = {"teacher": 0, "student": 0}

    def counted(name, act):
        def counting(observations):
            acting[name] += 1
            return act(observations)

        return counting

    for name, agent in (("teacher", teacher), ("student", student)):
        agent.act = counted(name, agent.act)
    distill(teacher, student, "CartPole-v1", DistillationConfig(states="teacher", **QUICK))
    assert acting == {"teacher": 3 * 32, "student": 0}
    assert not student.episodes
    distill(teacher, student, "CartPole-v1", DistillationConfig(**QUICK))
    assert acting == {"teacher": 3 * 32, "student": 3 * 32}


@directions
def test_masked_actions_and_agents_of_different_algorithms(direction):
    def env():
        return Sampling(box(3), gym.spaces.MultiDiscrete([3, 2]), masks="observation")

    teacher, student = small_agent(TRPO, env), small_agent(PPO, env, seed=1)
    with torch.no_grad():
        teacher.networks.actor_parameters.mul_(3.0)
    distill(teacher, student, env, DistillationConfig(direction=direction, **(QUICK | {"n_epochs": 30})))
    assert student.history[-1]["distill/kl_forward"] < 0.5 * student.history[0]["distill/kl_forward"]


def test_agents_that_do_not_go_together_are_refused():
    teacher = small_agent(PPO, "Pendulum-v1")
    with pytest.raises(ValueError, match="student is the teacher; allowed: another agent"):
        distill(teacher, teacher, "Pendulum-v1")
    with pytest.raises(ValueError, match=r"student has observation_space Box\(.*\); allowed: teacher's, Box"):
        distill(teacher, small_agent(PPO, "CartPole-v1"), "Pendulum-v1")
    with pytest.raises(
        ValueError, match="teacher's policy is a DiagGaussian, student's a Beta; allowed: the same family"
    ):
        distill(teacher, small_agent(PPO, "Pendulum-v1", action_distribution="beta"), "Pendulum-v1")
    with pytest.raises(ValueError, match=r"env has observation_space Box\(.*\); allowed: the agent's"):
        distill(teacher, small_agent(PPO, "Pendulum-v1"), "CartPole-v1")
    with pytest.raises(ValueError, match="direction = 'sideways'; allowed: forward, reverse"):
        DistillationConfig(direction="sideways")
    masked = [
        small_agent(PPO, lambda: Sampling(box(3), masks="info"), action_mask=source) for source in ("info", "none")
    ]
    with pytest.raises(ValueError, match="student reads observation; allowed: as teacher, observation, a mask in info"):
        distill(*masked, lambda: Sampling(box(3), masks="info"))


def test_a_student_that_is_not_finite_any_more_is_named():
    teacher, student = (small_agent(PPO, "Pendulum-v1", seed=seed) for seed in (0, 1))
    with torch.no_grad():
        teacher.networks.actor_parameters.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="the policy's gradient of norm nan; allowed: finite numbers"):
        distill(teacher, student, "Pendulum-v1", DistillationConfig(**QUICK))


SMALL = ["--n-rounds", "2", "--n-envs", "2", "--n-steps", "32", "--n-epochs", "2", "--episodes", "2"]


@pytest.fixture(scope="module")
def teacher_path(tmp_path_factory):
    return str(small_agent(PPO, "CartPole-v1").learn(64).save(tmp_path_factory.mktemp("teachers") / "teacher"))


def test_the_verb_leaves_an_agent_that_plays_and_learns_and_the_numbers(teacher_path, tmp_path, capsys):
    words = ["distill", teacher_path, *SMALL, "--agent", "trpo", "--actor-hidden-sizes", "4", "4"]
    main([*words, "--output", str(tmp_path / "student"), "--json", str(tmp_path / "numbers.json")])
    printed = capsys.readouterr().out
    assert "round 2:   KL(teacher‖student) " in printed
    assert "student: mean return " in printed
    record = json.loads((tmp_path / "numbers.json").read_text())
    assert len(record["history"]) == 3
    assert [len(record["evaluation"][name]["stochastic"]["returns"]) for name in ("teacher", "student")] == [2, 2]
    student = load_agent(tmp_path / "student")
    assert isinstance(student, TRPO)
    assert student.config == replace(student.config, actor_hidden_sizes=(4, 4), critic_hidden_sizes=(8,))
    with gym.make("CartPole-v1") as env:
        assert evaluate(student, env, 2).returns == tuple(record["evaluation"]["student"]["deterministic"]["returns"])
    assert student.learn(1).n_updates == 1
    main(["distill", teacher_path, *SMALL, "--student", str(tmp_path / "student"), "--output", str(tmp_path / "more")])
    assert load_agent(tmp_path / "more").num_timesteps == 2 * 3 * 64


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing"], "path = nothing: no saved agent there"),
        (["TEACHER", "--env", "Acrobot-v1"], "env = Acrobot-v1: its spaces differ from the agent's"),
        (["TEACHER", "--agent", "sac"], "agent = 'sac'; allowed: ppo, trpo"),
        (["TEACHER", "--student", "TEACHER", "--agent", "ppo"], "agent = ppo beside student = "),
        (["TEACHER", "--student", "elsewhere"], "path = elsewhere: no saved agent there"),
        (["TEACHER", "--n-rounds", "0"], "n_rounds = 0; allowed: an integer >= 1"),
        (["TEACHER", "--output", "TEACHER"], "is not empty; allowed: a new or empty directory"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(words, message, teacher_path, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [teacher_path if word == "TEACHER" else word for word in words]
    with pytest.raises(SystemExit) as stop:
        main(["distill", *words, *([] if "--output" in words else ["--output", "student"])])
    line = capsys.readouterr().err
    assert stop.value.code == 2
    assert message in line
    assert line.count("\n") == 1
    assert not (tmp_path / "student").exists()
