"""Linearizations of any network and of every actor and critic against autograd; sums of objectives; packing."""

import copy
import subprocess
import sys
from functools import partial
from itertools import product

import numpy as np
import pytest
import torch
from environments import box
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete
from torch import nn
from torch.func import functional_call

from klrl.policy.actors import make_actor
from klrl.policy.distributions import Categorical, DiagGaussian, Distribution
from klrl.policy.linearization import ByAutograd, Objective, check_separate, expectation, flatten, pack
from klrl.policy.mlp import mlp
from klrl.policy.networks import Critic
from klrl.policy.observations import Encoding

REL = {torch.float64: 1e-12, torch.float32: 3e-6}
kinds = pytest.mark.parametrize("kind", ["arrays", "tensors"])
dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
seeds = pytest.mark.parametrize("seed", range(3))


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def as_kind(x, kind):
    return x.numpy().copy() if kind == "arrays" else x.clone()


def is_kind(x, kind):
    return isinstance(x, np.ndarray if kind == "arrays" else torch.Tensor)


def close(got, expected, rel):
    """||got - expected|| <= rel ||expected||, in its type and shape, without a graph."""
    got = torch.as_tensor(got)
    assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
    assert not got.requires_grad
    assert (got - expected).norm() <= rel * expected.norm() + 1e-30


def count(network):
    return sum(p.numel() for p in network.parameters())


def shaken(network, seed=0, dtype=torch.float64):
    """In this type, and away from its start, where biases are zero and log_std is the same everywhere."""
    network = network.to(dtype)
    for i, p in enumerate(network.parameters()):
        p.data += 0.3 * randn(*p.shape, seed=1000 * seed + i, dtype=dtype)
    return network


def fields(output):
    return output.parameters if isinstance(output, Distribution) else (output,)


def outputs_of(network, x, theta):
    """The network's outputs as a pure function of one vector."""
    names, shapes = zip(*((name, p.shape) for name, p in network.named_parameters()), strict=True)
    parts = theta.split([shape.numel() for shape in shapes])
    values = {name: part.view(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
    return fields(functional_call(network, values, (x,)))


def check(network, linearize, x, kind, seed=0):
    """Outputs and both products of a linearization against the dense Jacobians of ``forward``."""
    rel, theta = REL[x.dtype], flatten(p.detach() for p in network.parameters())
    function = partial(outputs_of, network, x)
    expected, jacobians = function(theta), torch.autograd.functional.jacobian(function, theta)
    u = [randn(*y.shape, seed=seed + 10 + i, dtype=x.dtype) for i, y in enumerate(expected)]
    v = randn(len(theta), seed=seed + 20, dtype=x.dtype)

    at = linearize(as_kind(x, kind))
    assert at.network is network
    for got, y in zip(fields(at.output), expected, strict=True):
        assert is_kind(got, kind)
        close(got, y.detach(), rel)
    for _ in range(2):
        moved = at.push_forward(as_kind(v, kind))
        assert all(is_kind(d, kind) for d in moved)
        for d, J in zip(moved, jacobians, strict=True):
            close(d, J @ v, rel)
        pulled = at.pull_back(*(as_kind(y, kind) for y in u))
        assert is_kind(pulled, kind)
        close(pulled, sum(torch.tensordot(y, J, y.ndim) for y, J in zip(u, jacobians, strict=True)), rel)
    Ju, pairs = torch.as_tensor(pulled), [(y, torch.as_tensor(d)) for y, d in zip(u, moved, strict=True)]
    error = sum((y * d).sum() for y, d in pairs) - Ju @ v  # <u, J v> = <J'u, v>
    assert error.abs() <= rel * (sum(y.norm() * d.norm() for y, d in pairs) + Ju.norm() * v.norm())


# Any network, by autograd.
class Residual(nn.Module):
    """Something no formula here knows: a skip, a gate, a norm, and a parameter that nothing depends on."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(3))
        self.gate, self.main, self.norm = nn.Linear(4, 4), nn.Linear(4, 4), nn.LayerNorm(4)

    def forward(self, x):
        return self.norm(x + torch.sigmoid(self.gate(x)) * nn.functional.gelu(self.main(x)))


class TwoHeads(nn.Module):
    """A Gaussian whose standard deviation depends on the state."""

    def __init__(self):
        super().__init__()
        self.body, self.mean, self.log_std = nn.Linear(4, 5), nn.Linear(5, 2), nn.Linear(5, 2)

    def forward(self, x):
        h = torch.tanh(self.body(x))
        return DiagGaussian(self.mean(h), self.log_std(h))


def seeded(make):
    """The default initialisation draws from the global generator."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make()


MODULES = {
    "residual": Residual,
    "gaussian with two heads": TwoHeads,
    "sequential": lambda: nn.Sequential(nn.Linear(4, 5), nn.ELU(), nn.Linear(5, 1)),
    "convolution": lambda: nn.Sequential(nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 3, 2), nn.SiLU(), nn.Flatten()),
    "linear": lambda: nn.Linear(4, 2),
}
modules = pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)


@modules
@kinds
@dtypes
@pytest.mark.parametrize("rows", [1, 20])
def test_any_network_is_linearized_by_autograd(make, dtype, kind, rows):
    network = shaken(seeded(make), dtype=dtype)
    check(network, partial(ByAutograd, network), randn(rows, 4, dtype=dtype), kind)


@modules
def test_autograd_works_where_the_caller_records_no_graph(make):
    network, x = shaken(seeded(make)), randn(5, 4)
    with torch.no_grad():
        at = ByAutograd(network, x)
        at.push_forward(torch.ones(count(network), dtype=x.dtype))
        got = at.pull_back(*(torch.ones_like(y) for y in fields(at.output)))
    total = sum(y.sum() for y in fields(network(x)))
    expected = torch.autograd.grad(total, list(network.parameters()), materialize_grads=True, allow_unused=True)
    close(got, flatten(expected), 1e-12)


@kinds
def test_autograd_leaves_inputs_parameters_and_their_gradients_alone(kind):
    network = shaken(seeded(Residual))
    x, u, v = (as_kind(y, kind) for y in (randn(7, 4), randn(7, 4, seed=1), randn(count(network), seed=2)))
    given = [*(torch.as_tensor(y) for y in (x, u, v)), *(p.detach() for p in network.parameters())]
    before = [y.clone() for y in given]
    at = ByAutograd(network, x)
    first, second = ((at.pull_back(u), at.push_forward(v)[0]) for _ in range(2))
    assert all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(first, second, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(given, before, strict=True))
    assert all(p.grad is None for p in network.parameters())


# Every actor and the critic.
SPACES = {"Discrete(4)": Discrete(4), "Discrete(2)": Discrete(2, start=3), "Box(1)": box(1), "Box(3)": box(3)}
OBSERVATIONS = {"vector": (4,), "matrix": (2, 2), "number": ()}
STYLE = {"hidden": (5, 6), "activation": "tanh"}


def make_network(space, observations=(4,), dtype=torch.float64, seed=0, **style):
    """The actor for an action space, or the critic for none."""
    style = STYLE | {"generator": torch.Generator().manual_seed(seed)} | style
    inputs = Box(-1.0, 1.0, observations)
    encoding = Encoding(inputs, Discrete(2) if space is None else space)
    made = Critic(encoding, **style) if space is None else make_actor(encoding, space, log_std_init=-0.4, **style)
    return shaken(made, seed, dtype)


def replace_trunk(network):
    """The same layers on the same parameters, in a network that klrl knows no formulas of."""
    network.trunk = nn.Sequential(*network.trunk)
    return network


networks = pytest.mark.parametrize("space", [*SPACES.values(), None], ids=[*SPACES, "critic"])
trunks = pytest.mark.parametrize("trunk", [lambda x: x, replace_trunk], ids=["mlp", "custom trunk"])


@networks
@trunks
@kinds
@dtypes
@seeds
def test_actors_and_critics_are_linearized_as_autograd_would(space, trunk, dtype, kind, seed):
    network = trunk(make_network(space, dtype=dtype, seed=seed))
    check(network, network.linearize, randn(20, 4, seed=seed, dtype=dtype), kind, seed)


@networks
@trunks
@kinds
@pytest.mark.parametrize("observations", OBSERVATIONS.values(), ids=OBSERVATIONS)
def test_whatever_the_layers_and_the_observations_shape(space, trunk, kind, observations):
    for activation, hidden in product(["tanh", "relu"], [(), (6,), (3, 4, 5)]):
        network = trunk(make_network(space, observations, hidden=hidden, activation=activation))
        check(network, network.linearize, randn(3, *observations), kind)


FAMILIES = {
    "MultiDiscrete": (MultiDiscrete([2, 3, 2]), {}),
    "MultiDiscrete of equals": (MultiDiscrete([[3, 3], [3, 3]]), {}),
    "MultiBinary": (MultiBinary((2, 2)), {}),
    "squashed": (box(3), {"action_distribution": "squashed-gaussian"}),
    "state-dependent": (box(3), {"state_dependent_std": True}),
    "state-dependent squashed": (box(1), {"action_distribution": "squashed-gaussian", "state_dependent_std": True}),
    "beta": (box(3), {"action_distribution": "beta"}),
}


@pytest.mark.parametrize(("space", "options"), FAMILIES.values(), ids=FAMILIES)
@trunks
@kinds
@pytest.mark.parametrize("observations", OBSERVATIONS.values(), ids=OBSERVATIONS)
def test_every_other_actor_is_linearized_as_autograd_would(space, options, trunk, kind, observations):
    network = trunk(make_network(space, observations, **options))
    check(network, network.linearize, randn(7, *observations), kind)


@networks
@kinds
@pytest.mark.parametrize("image", [Box(0, 255, (6, 5, 3), np.uint8), Dict(i=Box(0, 255, (5, 6), np.uint8), x=box(2))])
def test_image_trunks_are_linearized_as_autograd_would(space, kind, image):
    encoding = Encoding(image, space or Discrete(2))
    style = STYLE | {"generator": torch.Generator().manual_seed(0)}
    network = shaken(Critic(encoding, **style) if space is None else make_actor(encoding, space, **style))
    check(network, network.linearize, randn(3, *encoding.shape).abs(), kind)


@kinds
@trunks
@pytest.mark.parametrize("space", [Discrete(5), MultiDiscrete([2, 3])], ids=["Discrete", "MultiDiscrete"])
def test_a_masked_actor_is_linearized_as_its_trunk_where_actions_are_allowed(space, trunk, kind):
    encoding = Encoding(Box(-1.0, 1.0, (4,)), space, "info")
    actor = trunk(shaken(make_actor(encoding, space, **STYLE, generator=torch.Generator().manual_seed(0))))
    allowed = torch.tensor([[1, 0, 1, 0, 0], [0, 1, 1, 1, 1], [1, 1, 0, 0, 1], [1, 0, 0, 1, 0]])
    x, theta = randn(4, 4), flatten(p.detach() for p in actor.parameters())
    at = actor.linearize(as_kind(torch.cat([x, allowed.double()], -1), kind))
    (J,) = torch.autograd.functional.jacobian(partial(outputs_of, actor.trunk, x), theta)
    logits, (moved,) = torch.as_tensor(at.output.logits), at.push_forward(as_kind(randn(len(theta), seed=1), kind))
    assert (logits[allowed == 0] == -np.inf).all()
    close(logits[allowed == 1], actor.trunk(x).detach()[allowed == 1], 1e-12)
    close(torch.as_tensor(moved)[allowed == 1], (J @ randn(len(theta), seed=1))[allowed == 1], 1e-12)
    u = randn(4, 5, seed=2) * allowed
    close(at.pull_back(as_kind(u, kind)), torch.tensordot(u, J, 2), 1e-12)


@networks
@kinds
@dtypes
def test_a_custom_trunk_with_the_same_parameters_gives_the_same_numbers(space, kind, dtype):
    network, x = make_network(space, dtype=dtype), as_kind(randn(50, 4, dtype=dtype), kind)
    v = as_kind(randn(count(network), seed=1, dtype=dtype), kind)

    def numbers():
        at = network.linearize(x)
        u = [as_kind(randn(*y.shape, seed=2, dtype=dtype), kind) for y in fields(at.output)]
        with torch.no_grad():
            forward = [torch.as_tensor(y) for y in fields(network(x))]
        return [torch.as_tensor(y) for y in (*fields(at.output), *forward, at.pull_back(*u), *at.push_forward(v))]

    written_out = numbers()
    replace_trunk(network)
    for a, b in zip(written_out, numbers(), strict=True):
        close(a, b, 1e-6 if dtype == torch.float32 else 1e-13)


@kinds
@trunks
@pytest.mark.parametrize("space", [SPACES["Discrete(4)"], SPACES["Box(3)"], None], ids=["discrete", "box", "critic"])
def test_forward_takes_arrays_and_tensors_alike(space, trunk, kind):
    network = trunk(make_network(space))
    for batch in [(), (5,), (2, 5)]:
        x = randn(*batch, 4)
        for got, expected in zip(fields(network(as_kind(x, kind))), fields(network(x)), strict=True):
            assert is_kind(got, kind)
            close(torch.as_tensor(got).detach(), expected.detach(), 1e-13)


@kinds
@trunks
def test_what_a_linearization_says_does_not_change_when_the_parameters_do(kind, trunk):
    network = trunk(make_network(SPACES["Box(3)"]))
    theta, x = pack(network).detach(), as_kind(randn(5, 4), kind)
    output = network.linearize(x).output
    before = [torch.as_tensor(y).clone() for y in output.parameters]
    theta += 1.0
    assert all(torch.equal(torch.as_tensor(y), b) for y, b in zip(output.parameters, before, strict=True))


# Objectives.
def make_places():
    """A network at two inputs of different lengths, and another one at a third: (network, input, weights) each."""
    make = partial(mlp, (4, 5, 3), activation="tanh", output_gain=1.0)
    one, other = (shaken(make(generator=torch.Generator().manual_seed(seed)), seed) for seed in (0, 1))
    places = [(one, randn(7, 4, seed=1)), (one, randn(4, 4, seed=2)), (other, randn(7, 4, seed=3))]
    return [(network, x, randn(3, seed=10 + i)) for i, (network, x) in enumerate(places)]


def objectives(places, kind):
    """E[sum_i w_i y_i^2] at each of the three places, and E[sum_i w_i y_i] at the first one."""
    ats = [(network.linearize(as_kind(x, kind)), as_kind(w, kind)) for network, x, w in places]
    squares = [expectation((w * at.output**2).sum(-1), at, (2.0 * w * at.output,)) for at, w in ats]
    at, w = ats[0]
    return [*squares, expectation((w * at.output).sum(-1), at, (w + 0.0 * at.output,))]


def scalars(places):
    """The same numbers with their graph."""
    graph = [(nn.Sequential(*network)(x), w) for network, x, w in places]
    return [*((w * y**2).sum(-1).mean() for y, w in graph), (graph[0][0] * graph[0][1]).sum(-1).mean()]


EXPRESSIONS = {
    "one": lambda a, b, c, d: a,
    "negated": lambda a, b, c, d: -c,
    "doubled": lambda a, b, c, d: 2.0 * b,
    "by an integer": lambda a, b, c, d: 3 * b,
    "zero times": lambda a, b, c, d: 0.0 * a,
    "two inputs of one network": lambda a, b, c, d: a + b,
    "two terms at one place": lambda a, b, c, d: a + d,
    "difference at one place": lambda a, b, c, d: 0.25 * a - 3.0 * d,
    "itself twice": lambda a, b, c, d: a + a,
    "two networks": lambda a, b, c, d: a - c,
    "as in a paper": lambda a, b, c, d: 0.5 * c - a - 0.01 * d,
    "everything": lambda a, b, c, d: -(2.0 * (a - 3.0 * b) + -(c - 0.5 * d)) - -1.5 * (a + c),
}


@kinds
@pytest.mark.parametrize("expression", EXPRESSIONS.values(), ids=EXPRESSIONS)
def test_sums_and_multiples_have_the_value_and_the_gradients_of_the_scalar(expression, kind):
    places = make_places()
    made, scalar = expression(*objectives(places, kind)), expression(*scalars(places))
    scalar.backward()
    assert float(made.value) == pytest.approx(scalar.item(), rel=1e-13, abs=1e-15)
    gradients = made.gradients()
    assert set(gradients) == {network for network, _, _ in places if network[0].weight.grad is not None}
    for network, g in gradients.items():
        assert is_kind(g, kind)
        close(g, flatten(p.grad for p in network.parameters()), 1e-12)


@kinds
def test_an_objective_is_a_value_that_does_not_change(kind):
    a, b, _, d = objectives(make_places(), kind)
    loss = a - 0.5 * (b + d)
    for made in (a, loss):
        (first,), value = made.gradients().values(), float(made.value)
        first = torch.as_tensor(first).clone()
        _ = -made + 2.0 * made - b
        made.gradients()
        (second,) = made.gradients().values()
        assert torch.equal(first, torch.as_tensor(second))
        assert float(made.value) == value


class Counting(ByAutograd):
    """Counts the ways from outputs to parameters."""

    calls = 0

    def pull_back(self, *cotangent):
        self.calls += 1
        return super().pull_back(*cotangent)


def test_the_way_to_the_parameters_is_taken_once_however_many_terms_there_are():
    network, x = seeded(MODULES["linear"]).double(), randn(6, 4)
    at = Counting(network, x)
    a, b = (expectation(at.output[:, i], at, (torch.eye(2).double()[i].expand(6, 2),)) for i in range(2))
    loss = a - 2.0 * b + 3.0 * (a + b)
    assert at.calls == 0
    loss.gradients()
    assert at.calls == 1


@kinds
@pytest.mark.parametrize("space", [SPACES["Discrete(4)"], SPACES["Box(3)"]], ids=["discrete", "box"])
def test_objectives_of_distributions_reach_every_parameter(space, kind):
    actor, x = make_network(space), randn(9, 4)
    action = actor(x).detach().sample(torch.Generator().manual_seed(0))
    policy = actor.linearize(as_kind(x, kind))
    p, taken = policy.output, as_kind(action, kind)
    made = expectation(p.log_prob(taken), policy, p.score(taken))
    scalar = actor(x).log_prob(action).mean()
    scalar.backward()
    assert float(made.value) == pytest.approx(scalar.item(), rel=1e-12)
    close(made.gradients()[actor], flatten(q.grad for q in actor.parameters()), 1e-12)


@kinds
@seeds
def test_an_expectation_is_the_mean_over_the_rows(kind, seed):
    critic, x = make_network(None, seed=seed), randn(11, 4, seed=seed)
    at = critic.linearize(as_kind(x, kind))
    made = expectation(at.output, at, (0.0 * at.output + 1.0,))
    assert isinstance(made, Objective)
    assert float(made.value) == pytest.approx(np.mean([critic(row).item() for row in x]), rel=1e-12)
    one_by_one = [flatten(torch.autograd.grad(critic(row), list(critic.parameters()))) for row in x]
    close(made.gradients()[critic], torch.stack(one_by_one).mean(0), 1e-12)


# Packing.
@networks
def test_parameters_are_views_of_the_vector_in_their_own_order(space):
    network = make_network(space)
    before = [(name, p.detach().clone()) for name, p in network.named_parameters()]
    vector = pack(network)
    assert isinstance(vector, nn.Parameter)
    assert torch.equal(vector, torch.cat([p.reshape(-1) for _, p in before]))
    after = list(network.named_parameters())
    assert [name for name, _ in after] == [name for name, _ in before]
    assert all(torch.equal(p, q) and p.shape == q.shape for (_, p), (_, q) in zip(after, before, strict=True))
    assert all(p.requires_grad and p.is_leaf for _, p in after)


@networks
def test_writes_are_seen_both_ways(space):
    network = make_network(space)
    vector, start = pack(network).detach(), 0
    for i, p in enumerate(network.parameters()):
        part = vector[start : (start := start + p.numel())]
        part.fill_(float(i))
        assert (p == float(i)).all()
        p.data.fill_(-float(i) - 1.0)
        assert (part == -float(i) - 1.0).all()
    assert start == len(vector)


@networks
def test_a_packed_networks_state_can_be_taken_out_and_put_in(space):
    network, other, x = make_network(space), make_network(space, seed=5), randn(3, 4)
    names = list(network.state_dict())
    vector = pack(network)
    assert list(network.state_dict()) == names
    network.load_state_dict(other.state_dict())
    assert torch.equal(vector, flatten(other.parameters()))
    pack(other)
    fresh = make_network(space, seed=6)
    fresh.load_state_dict(network.state_dict())
    for a, b in zip(fields(fresh(x)), fields(other(x)), strict=True):
        assert torch.equal(a, b)


@networks
def test_a_packed_network_computes_what_it_did_and_differentiates_as_it_did(space):
    network, twin, x = make_network(space), make_network(space), randn(3, 4)
    pack(network)
    for n in (network, twin):
        sum(y.square().sum() for y in fields(n(x))).backward()
    assert torch.equal(flatten(p.grad for p in network.parameters()), flatten(p.grad for p in twin.parameters()))


def test_packing_twice_moves_the_parameters_again():
    network = make_network(None)
    first, second = pack(network).detach(), pack(network).detach()
    kept = first.clone()
    second += 1.0
    assert torch.equal(flatten(network.parameters()), second)
    assert torch.equal(first, kept)


def test_flatten_is_a_copy_in_order():
    parts = [randn(2, 3), randn(1), randn(4, 1, 2)]
    vector = flatten(iter(parts))
    assert vector.tolist() == [x for part in parts for x in part.reshape(-1).tolist()]
    vector.zero_()
    assert all(part.all() for part in parts)


def test_a_categorical_actor_linearizes_to_a_record_of_its_family():
    x = randn(3, 4)
    assert isinstance(make_network(SPACES["Discrete(4)"]).linearize(x).output, Categorical)
    assert isinstance(make_network(SPACES["Box(3)"]).linearize(x).output, DiagGaussian)


@pytest.mark.parametrize("trunk", ["mlp", "custom"])
@pytest.mark.parametrize("space", [Discrete(3), Box(-1.0, 1.0, (2,))], ids=["categorical", "gaussian"])
def test_frozen_parameters_have_gradient_zero_and_the_others_theirs(space, trunk):
    actor = make_actor(
        Encoding(Box(-1.0, 1.0, (4,)), space),
        space,
        (8,),
        log_std_init=-0.5,
        activation="tanh",
        generator=torch.Generator().manual_seed(0),
    )
    if trunk == "custom":
        actor.trunk = nn.Sequential(*actor.trunk)
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    u = [torch.ones_like(y) for y in actor.linearize(x).output.parameters]
    free = actor.linearize(x).pull_back(*u)
    frozen = [actor.trunk[0].weight, *actor.parameters(recurse=False)]
    for p in frozen:
        p.requires_grad_(False)
    mask = torch.cat([torch.full((p.numel(),), float(p.requires_grad)) for p in actor.parameters()])
    torch.testing.assert_close(actor.linearize(x).pull_back(*u), mask * free)
    for p in frozen:
        p.requires_grad_(True)
    torch.testing.assert_close(actor.linearize(x).pull_back(*u), free)


def test_a_replaced_layer_and_a_moved_one_are_seen_by_arrays_as_by_tensors():
    encoding = Encoding(Box(-1.0, 1.0, (4,)), Discrete(2))
    critic = Critic(encoding, (8, 8), activation="tanh", generator=torch.Generator().manual_seed(0))
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    critic(x.numpy())
    critic.trunk[2].weight.data = torch.ones(8, 8)
    with torch.no_grad():
        np.testing.assert_allclose(critic(x.numpy()), critic(x), rtol=1e-5)
        critic.trunk[4] = nn.Linear(8, 1)
        np.testing.assert_allclose(critic(x.numpy()), critic(x), rtol=1e-5)


class FixedSpread(nn.Module):
    """A Gaussian policy whose spread is a constant."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x):
        mean = self.layer(x)
        return DiagGaussian(mean, torch.full_like(mean, -0.5).detach())


@pytest.mark.parametrize("frozen", [False, True])
def test_outputs_without_a_graph_do_not_move_and_move_nothing(frozen):
    network, x = FixedSpread().requires_grad_(not frozen), torch.randn(5, 4)
    at = ByAutograd(network, x)
    u = torch.ones(5, 2)
    g = at.pull_back(u, u)
    expected = torch.cat([x.sum(0).repeat(2), torch.full((2,), 5.0)])  # d sum(Wx + b) by W and by b
    torch.testing.assert_close(g, torch.zeros(10) if frozen else expected)
    moved, spread = at.push_forward(torch.ones(10))
    torch.testing.assert_close(moved, torch.zeros(5, 2) if frozen else (x.sum(-1, keepdim=True) + 1.0).expand(5, 2))
    assert not spread.any()


@pytest.mark.parametrize("change", ["another activation", "a slice", "a hook", "a parametrization"])
def test_an_mlp_that_is_no_longer_plain_goes_through_autograd(change):
    net = mlp((4, 8, 8, 2), activation="tanh", output_gain=1.0, generator=torch.Generator().manual_seed(0))
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    net(x.numpy())
    if change == "another activation":
        net[1] = nn.GELU()
    elif change == "a slice":
        net = net[:-1]
    elif change == "a hook":
        net[0].register_forward_hook(lambda module, args, output: 2.0 * output)
    else:
        nn.utils.parametrizations.weight_norm(net[0])
    with torch.no_grad():
        np.testing.assert_allclose(net(x.numpy()), net(x), rtol=1e-5)
    at = net.linearize(x)
    torch.testing.assert_close(at.output, net(x).detach())
    u = torch.ones_like(at.output)
    expected = torch.autograd.grad(net(x).sum(), list(net.parameters()))
    torch.testing.assert_close(at.pull_back(u), flatten(expected))


# Two networks.
def test_networks_with_parameters_of_their_own_are_separate_packed_or_not():
    a, b = nn.Linear(3, 2), nn.Linear(3, 2)
    check_separate(a=a, b=b)
    pack(a)
    check_separate(a=a, b=copy.deepcopy(a), c=b)
    memory = torch.zeros(12)
    a.weight.data, b.weight.data = memory[:6].view(2, 3), memory[6:].view(2, 3)
    check_separate(a=a, b=b)
    a.bias, b.bias = (nn.Parameter(torch.zeros(0)) for _ in range(2))
    check_separate(a=a, b=b)


def share_object(a, b):
    b.bias = a.bias


def share_memory(a, b):
    b.bias.data = a.bias.data


def share_a_part(a, b):
    memory = torch.zeros(3)
    a.bias.data, b.bias.data = memory[:2], memory[1:]


def share_with_strides(a, b):
    memory = torch.zeros(4)
    a.bias.data, b.bias.data = memory[::3], memory[2:]


@pytest.mark.parametrize("share", [share_object, share_memory, share_a_part, share_with_strides])
@pytest.mark.parametrize("packed", [False, True])
def test_networks_that_share_a_parameter_or_its_memory_are_refused(share, packed):
    a, b = nn.Linear(3, 2), nn.Linear(3, 2)
    share(a, b)
    if packed and share is share_object:
        pack(a)
    with pytest.raises(ValueError, match=r"^b shares parameters with a: b\.bias = a\.bias; allowed: a copy .*deepcopy"):
        check_separate(a=a, b=b)


@pytest.mark.parametrize("shape", [(4,), (4, 1), (2,), (5, 4, 2), ()])
def test_a_gradient_of_another_shape_than_the_output_is_refused(shape):
    at = ByAutograd(nn.Linear(3, 2), torch.ones(4, 3))
    with pytest.raises(ValueError, match=r"cotangent of shape \[.*\]; allowed: \[4, 2\], that of the output"):
        at.pull_back(torch.ones(shape))


def test_derivatives_by_autograd_load_no_sympy():
    """torch imports it for cotangents that it is given: a third of a second and 34 MiB, for every training."""
    script = """
import sys, torch
from klrl.policy.linearization import ByAutograd
before = "sympy" in sys.modules
at = ByAutograd(torch.nn.Linear(3, 2), torch.ones(4, 3))
assert at.pull_back(torch.ones(4, 2)).tolist() == [4.0] * 8
assert [x.tolist() for x in at.push_forward(torch.ones(8))] == [[[4.0, 4.0]] * 4]
assert before or "sympy" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)
