"""Actors: the record of every action space and option, what the environment receives, what is refused."""

import multiprocessing
from functools import partial

import numpy as np
import pytest
import torch
from environments import Sampling, small_agent
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import distributions as td
from torch.nn.functional import softplus

from klrl.agents import PPO, TRPO
from klrl.kl import fisher_product, kl_gradient
from klrl.policy.actors import make_actor
from klrl.policy.distributions import (
    Bernoulli,
    Beta,
    Categorical,
    DiagGaussian,
    MultiCategorical,
    SquashedGaussian,
)
from klrl.policy.observations import Encoding

OBSERVATIONS = Box(-1.0, 1.0, (4,))
BOX = Box(np.float32([[-1.0, 0.0], [-3.0, 5.0]]), np.float32([[1.0, 0.5], [2.0, 1e6]]))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def actor(action_space, observation_space=OBSERVATIONS, hidden=(16, 16), log_std_init=-0.5, mask="auto", **style):
    return make_actor(
        Encoding(observation_space, action_space, mask),
        action_space,
        hidden,
        log_std_init=log_std_init,
        activation="tanh",
        generator=generator(),
        **style,
    )


OPTIONS = {
    "gaussian": {},
    "squashed-gaussian": {"action_distribution": "squashed-gaussian"},
    "beta": {"action_distribution": "beta"},
    "state-dependent": {"state_dependent_std": True},
    "state-dependent squashed": {"action_distribution": "squashed-gaussian", "state_dependent_std": True},
}
every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def in_torch(policy, x):
    """The same policy, by torch.distributions, of the trunk's outputs; and its family."""
    z = policy.trunk(x)
    first, second = z.chunk(2, -1) if z.shape[-1] % 2 == 0 else (z, None)
    match type(policy).__name__:
        case "CategoricalActor":
            return Categorical, td.Categorical(logits=z)
        case "MultiCategoricalActor":
            return MultiCategorical, [td.Categorical(logits=y) for y in z.split(policy.nvec, -1)]
        case "BernoulliActor":
            return Bernoulli, td.Independent(td.Bernoulli(logits=z), 1)
        case "GaussianActor":
            mean, log_std = (z, policy.log_std) if policy.log_std is not None else (first, second - 0.5)
            inner = td.Independent(td.Normal(mean, log_std.exp()), 1)
            if not policy.squashed:
                return DiagGaussian, inner
            return SquashedGaussian, td.TransformedDistribution(inner, td.TanhTransform())
        case "BetaActor":
            return Beta, td.Independent(td.Beta(1.0 + softplus(first), 1.0 + softplus(second)), 1)


@pytest.mark.parametrize("options", [{}, {"action_distribution": "beta"}])
def test_a_box_of_one_number_without_dimensions_gets_one(options):
    made = actor(Box(-1.0, 1.0, ()), **options)
    for x in (torch.zeros(4), torch.zeros(6, 4)):
        action = made.to_environment(made(x).detach().sample(generator()))
        assert action.shape == x.shape[:-1]


CASES = {
    "Discrete": (Discrete(3, start=2), {}),
    "MultiDiscrete": (MultiDiscrete([[2, 3], [4, 2]], start=[[0, 1], [-2, 5]]), {}),
    "MultiBinary": (MultiBinary((2, 2)), {}),
    **{name: (BOX, options) for name, options in OPTIONS.items()},
}
every_case = pytest.mark.parametrize(("space", "options"), CASES.values(), ids=CASES)


@every_case
def test_the_record_is_the_distribution_that_torch_makes_of_the_outputs(space, options):
    policy = actor(space, **options).double()
    for p in policy.parameters():
        p.data += 0.5 * torch.randn(p.shape, generator=generator(1), dtype=p.dtype)
    x = torch.randn(50, 4, generator=generator(2), dtype=torch.float64)
    record, (family, expected) = policy(x).detach(), in_torch(policy, x)
    assert type(record) is family
    action = record.sample(generator(3)).clone()  # torch's formula is that of an action that remembers nothing
    if family is MultiCategorical:
        log_prob = sum(head.log_prob(action[:, i]) for i, head in enumerate(expected))
    else:
        log_prob = expected.log_prob(action)
    torch.testing.assert_close(record.log_prob(action), log_prob.detach(), rtol=1e-9, atol=1e-9)


@every_case
def test_what_the_environment_gets_is_in_its_space_for_arrays_and_tensors(space, options):
    policy, x = actor(space, **options), torch.randn(64, 4, generator=generator())
    record = policy(x).detach()
    for actions in (record.sample(generator(1)), record.mode()):
        executed, again = policy.to_environment(actions), policy.to_environment(actions.numpy())
        np.testing.assert_array_equal(executed, again)
        for one, row in zip(actions, executed, strict=True):
            assert space.contains(row)
            single = policy.to_environment(one)
            assert space.contains(single)
            np.testing.assert_array_equal(single, row)
    assert executed.dtype == space.dtype


def test_one_action_of_a_discrete_space_can_be_looked_up_in_a_table():
    action, _ = small_agent(PPO, "FrozenLake-v1").predict(3)
    assert {0: "left", 1: "down", 2: "right", 3: "up"}[action]


def test_multi_discrete_actions_by_hand():
    space = MultiDiscrete([[2, 3], [4, 2]], start=[[0, 1], [-2, 5]], dtype=np.int32)
    executed = actor(space).to_environment(torch.tensor([[1, 2, 3, 0], [0, 0, 0, 1]]))
    assert executed.tolist() == [[[1, 3], [1, 5]], [[0, 1], [-2, 6]]]
    assert executed.dtype == np.int32


EXTREME = st.sampled_from(np.float32([np.inf, -np.inf, 1e30, -1e30, 0.0, -0.0, 1.0, -1.0, 1e-40]).tolist())
NUMBERS = EXTREME | st.floats(width=32, allow_nan=False)


@given(actions=arrays(np.float32, (5, 4), elements=NUMBERS))
@settings(deadline=None, max_examples=40)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_clipped_actions_are_in_the_box_however_extreme_they_are(dtype, actions):
    low, high = np.array([[-1.0, 0.1], [-3.0, 5.0]], dtype), np.array([[1.0, 0.3], [2.0, 6e4]], dtype)
    space = Box(low, high, dtype=dtype)
    for options in ({}, {"state_dependent_std": True}):
        plain, scaled = (
            actor(space, **options, scale_actions=scale).to_environment(actions) for scale in (False, True)
        )
        for executed in (plain, scaled):
            assert (executed.shape, executed.dtype) == ((5, 2, 2), dtype)
            assert all(space.contains(row) for row in executed)
        np.testing.assert_array_equal(plain, np.clip(actions.reshape(5, 2, 2), low, high).astype(dtype))
        on_a_line = [np.interp(a, [-1, 1], [*ends]) for a, *ends in zip(actions.T, low.flat, high.flat, strict=True)]
        rounding = 1e-3 if dtype == np.float16 else 1e-6
        np.testing.assert_allclose(scaled.reshape(5, 4), np.transpose(on_a_line), rtol=rounding, atol=rounding)


@given(outputs=arrays(np.float32, (6, 8), elements=st.floats(-1e6, 1e6, width=32)), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=25)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("name", ["beta", "squashed-gaussian", "state-dependent squashed"])
def test_bounded_policies_stay_in_the_box_however_extreme_their_outputs_are(name, dtype, outputs, seed):
    low, high = np.array([[-1.0, 0.1], [-3.0, 5.0]], dtype), np.array([[1.0, 0.3], [2.0, 6e4]], dtype)
    space = Box(low, high, dtype=dtype)
    policy = actor(space, **OPTIONS[name])
    outputs = torch.from_numpy(outputs[:, :4] if name == "squashed-gaussian" else outputs)
    if name == "state-dependent squashed":
        outputs[:, 4:].clamp_(-50.0, 50.0)
    record = policy.policy(outputs, None).detach()
    for actions in (record.sample(generator(seed)), record.mode()):
        executed = policy.to_environment(actions)
        assert (executed.shape, executed.dtype) == ((6, 2, 2), dtype)
        assert all(space.contains(row) for row in executed)


@pytest.mark.parametrize(("name", "ends"), [("beta", (0.0, 1.0)), ("squashed-gaussian", (-1.0, 1.0))])
def test_bounded_policies_are_stretched_over_the_whole_box(name, ends):
    policy = actor(BOX, **OPTIONS[name])
    for end, bound in zip(ends, (BOX.low, BOX.high), strict=True):
        np.testing.assert_array_equal(policy.to_environment(np.full(4, end, np.float32)), bound)
    middle = policy.to_environment(np.full(4, sum(ends) / 2.0, np.float32))
    np.testing.assert_allclose(middle, (BOX.low + BOX.high) / 2.0, rtol=1e-6, atol=1e-7)


def test_a_state_dependent_std_depends_on_the_state_and_starts_at_its_setting():
    policy = actor(BOX, state_dependent_std=True, log_std_init=-1.25)
    record = policy(torch.randn(20, 4, generator=generator())).detach()
    assert record.log_std.std(0).min() > 0.0
    torch.testing.assert_close(record.log_std, torch.full((20, 4), -1.25), rtol=0.0, atol=0.05)


def test_betas_have_one_peak():
    record = actor(BOX, action_distribution="beta").policy(torch.randn(99, 8, generator=generator()) * 20.0, None)
    assert record.alpha.min() >= 1.0
    assert record.beta.min() >= 1.0


# Masks.
MASKED = {
    "Discrete": (Discrete(4, start=1), (4,)),
    "MultiDiscrete": (MultiDiscrete([2, 3, 2]), (2, 3, 2)),
    "MultiDiscrete of equals": (MultiDiscrete([3, 3]), (3, 3)),
}


def masks_of(heads, n, seed=0):
    """At least one action in every head, and every combination sooner or later."""
    rng = np.random.default_rng(seed)
    rows = [[rng.permutation(np.arange(k) < rng.integers(1, k + 1)) for k in heads] for _ in range(n)]
    return torch.tensor(np.array([np.concatenate(row) for row in rows]))


@pytest.mark.parametrize(("space", "heads"), MASKED.values(), ids=MASKED)
@pytest.mark.parametrize("kind", ["arrays", "tensors"])
def test_masked_policies_are_those_of_the_allowed_actions_alone(space, heads, kind):
    policy = actor(space, mask="info").double()
    mask = masks_of(heads, 200)
    x = torch.cat([torch.randn(200, 4, generator=generator(), dtype=torch.float64), mask.double()], -1)
    record = policy(x.numpy() if kind == "arrays" else x).map(torch.as_tensor).detach()
    logits = policy.trunk(x[:, :4]).detach()
    action = record.sample(generator(1)).reshape(200, -1)
    log_prob, entropy = record.log_prob(record.sample(generator(1))), record.entropy()
    for i in range(200):  # by enumeration of what is allowed
        expected, H = 0.0, 0.0
        parts = zip(logits[i].split(heads), mask[i].split(heads), action[i], strict=True)
        for head, allowed, chosen in parts:
            assert allowed[chosen]
            p = head.exp() * allowed / (head.exp() * allowed).sum()
            expected += p[chosen].log().item()
            H -= sum(q * q.log() for q in p if q > 0.0).item()
        assert log_prob[i].item() == pytest.approx(expected, rel=1e-9, abs=1e-9)
        assert entropy[i].item() == pytest.approx(H, rel=1e-9, abs=1e-9)
    mode = record.mode().reshape(200, -1)
    offset = torch.tensor([0, *np.cumsum(heads)[:-1]])
    assert mask.gather(1, mode + offset).all()


@pytest.mark.parametrize(("space", "heads"), MASKED.values(), ids=MASKED)
@pytest.mark.parametrize("kind", ["arrays", "tensors"])
def test_masked_logits_have_gradients_of_exactly_zero_and_everything_is_finite(space, heads, kind):
    policy = actor(space, mask="info")
    mask = masks_of(heads, 100)
    x = torch.cat([torch.randn(100, 4, generator=generator()), mask.float()], -1)
    at = policy.linearize(x.numpy() if kind == "arrays" else x)
    old, new = (
        at.output,
        policy.policy(policy.trunk(x[:, :4]).detach() + torch.randn(sum(heads), generator=generator(2)), mask),
    )
    new = new.map(torch.Tensor.numpy) if kind == "arrays" else new
    taken, v = (
        old.sample(generator(1)),
        torch.randn(sum(p.numel() for p in policy.parameters()), generator=generator(3)),
    )
    tangent = at.push_forward(v.numpy() if kind == "arrays" else v)
    with np.errstate(all="ignore"):
        found = [new.score(taken), new.entropy_gradient(), kl_gradient(old, new), fisher_product(old, tangent)]
    for (gradient,) in found:
        gradient = torch.as_tensor(gradient)
        assert gradient.isfinite().all()
        assert (gradient[~mask] == 0.0).all()
        assert gradient[mask].any()


# What does not fit.
def refused(space, **settings):
    with pytest.raises(ValueError, match="; allowed: ") as error:
        small_agent(PPO, partial(Sampling, OBSERVATIONS, space), vectorization_mode="async", **settings)
    assert "\n" not in str(error.value)
    assert not multiprocessing.active_children()
    return str(error.value)


@pytest.mark.parametrize("space", [Discrete(3), MultiDiscrete([[2, 3], [4, 5]]), MultiBinary(2)], ids=["D", "MD", "MB"])
@pytest.mark.parametrize(
    ("name", "value"),
    [("action_distribution", "beta"), ("action_distribution", "squashed-gaussian"), ("state_dependent_std", True)],
)
def test_options_of_a_box_are_refused_elsewhere_and_no_process_is_left(space, name, value):
    text = refused(space, **{name: value})
    assert text == f"{name} = {value!r} with action space {' '.join(str(space).split())}; allowed: only with a Box"


@pytest.mark.parametrize("name", ["squashed-gaussian", "beta"])
def test_bounded_policies_need_finite_bounds(name):
    space = Box(np.float32([[-1.0, -np.inf], [0.0, 0.0]]), np.float32([[1.0, 1.0], [2.0, 3.0]]))
    text = refused(space, action_distribution=name)
    assert text.startswith(f"action_distribution = {name!r} with action space Box([[ -1. -inf] [ 0. 0.]]")
    assert text.endswith("which has no finite bounds; allowed: action_distribution = 'gaussian'")


def test_a_beta_has_no_state_dependent_std():
    text = refused(BOX, action_distribution="beta", state_dependent_std=True)
    assert text == "state_dependent_std = True with action_distribution = 'beta'; allowed: with a Gaussian"


def test_masks_from_info_need_choices():
    assert refused(BOX, action_mask="info").startswith("action_mask = 'info' with action space Box(")


@pytest.mark.parametrize("agent_class", [PPO, TRPO])
def test_masks_from_a_dict_are_used_without_being_asked_for(agent_class):
    agent = small_agent(agent_class, partial(Sampling, OBSERVATIONS, Discrete(3), masks="observation"))
    assert agent.actor.encoding.n_mask == 3
    action, _ = agent.predict({"x": np.zeros(4), "action_mask": np.array([0, 0, 1])})
    assert action == 2


def test_set_env_leaves_no_process_of_an_environment_that_it_refuses():
    agent = small_agent(PPO, partial(Sampling, OBSERVATIONS, BOX), vectorization_mode="async")
    before = set(multiprocessing.active_children())
    with pytest.raises(
        ValueError, match=r"^env has action_space Discrete\(3\); allowed: the agent's, Box\(.*float32\)$"
    ):
        agent.set_env(partial(Sampling, OBSERVATIONS, Discrete(3)))
    assert set(multiprocessing.active_children()) == before
    agent.close()


# The spaces without options.
@pytest.mark.parametrize("start", [0, 1, -3])
def test_discrete_actions_are_shifted_to_the_start_of_their_space(start):
    space = Discrete(3, start=start)
    policy = actor(space)
    assert isinstance(policy(torch.zeros(2, 4)), Categorical)
    executed = policy.to_environment(torch.tensor([0, 1, 2]))
    assert executed.tolist() == [start, start + 1, start + 2]
    assert all(space.contains(a) for a in executed)


def test_the_gaussian_has_one_log_std_for_all_states():
    policy = actor(Box(-1.0, 1.0, (2,)), log_std_init=-0.7)
    p = policy(torch.randn(5, 4, generator=generator()))
    assert isinstance(p, DiagGaussian)
    torch.testing.assert_close(p.log_std, torch.full((5, 2), -0.7))
    p.log_std.sum().backward()
    assert policy.log_std.grad.tolist() == [5.0, 5.0]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("batch", [(), (6,)])
def test_box_actions_are_clipped_to_the_box_in_its_shape_and_dtype(dtype, batch):
    low, high = np.array([[-1.0, -np.inf], [0.0, -2.0]], dtype), np.array([[1.0, np.inf], [0.5, 3.0]], dtype)
    space = Box(low, high, dtype=dtype)
    action = torch.randn(*batch, 4, generator=generator()) * 10
    executed = actor(space, scale_actions=False).to_environment(action)
    expected = np.maximum(np.minimum(action.numpy().reshape(*batch, 2, 2), high), low)
    assert executed.dtype == dtype
    np.testing.assert_array_equal(executed, expected)
    assert all(space.contains(a) for a in executed.reshape(-1, 2, 2))


def test_actions_come_back_from_the_environment():
    spaces = {
        "gaussian": (BOX, {}),
        "environment's units": (BOX, {"scale_actions": False}),
        "squashed-gaussian": (BOX, {"action_distribution": "squashed-gaussian"}),
        "beta": (BOX, {"action_distribution": "beta"}),
        "Discrete": (Discrete(3, start=-1), {}),
        "MultiDiscrete": (MultiDiscrete([[2, 3], [4, 1]], start=[[5, 0], [0, -1]]), {}),
        "MultiBinary": (MultiBinary((2, 2)), {}),
    }
    for space, style in spaces.values():
        space.seed(0)
        policy = actor(space, **style)
        given = np.stack([space.sample() for _ in range(6)]).reshape(2, 3, *space.shape)
        own = policy.from_environment(given)
        assert own.dtype == policy(torch.zeros(4)).sample().detach().numpy().dtype
        np.testing.assert_allclose(policy.to_environment(own), given, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r"action has shape \(3, 4\); allowed: \[\*B\] and then \(2, 2\)"):
        actor(BOX).from_environment(np.zeros((3, 4)))
