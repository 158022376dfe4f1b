"""The written-out derivative of an MLP against autograd and dense Jacobians, for arrays and for tensors."""

from functools import cache, partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev

from klrl.policy.linearization import flatten, pack
from klrl.policy.mlp import mlp

HIDDEN = [(), (6,), (5, 7), (4, 6, 5)]
IN, OUT = 3, 2
REL = {torch.float64: 1e-12, torch.float32: 3e-6}
networks = pytest.mark.parametrize("hidden", HIDDEN, ids=[f"{len(h)} hidden" for h in HIDDEN])
activations = pytest.mark.parametrize("activation", ["tanh", "relu"])
kinds = pytest.mark.parametrize("kind", ["arrays", "tensors"])
dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
ROUNDS = [(rows, seed) for rows in (1, 200) for seed in range(3)]


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def make(hidden=(5, 7), activation="tanh", dtype=torch.float64, seed=0):
    """A network away from its start, where biases are zero."""
    generator = torch.Generator().manual_seed(seed)
    network = mlp((IN, *hidden, OUT), activation=activation, output_gain=1.0, generator=generator).to(dtype)
    for i, p in enumerate(network.parameters()):
        p.data += 0.3 * randn(*p.shape, seed=100 * seed + i, dtype=dtype)
    return network


def count(network):
    return sum(p.numel() for p in network.parameters())


def plain(network):
    """The same layers on the same parameters, without klrl's forward."""
    return nn.Sequential(*network)


def as_kind(x, kind):
    return x.numpy().copy() if kind == "arrays" else x.clone()


def close(got, expected, rel):
    """||got - expected|| <= rel ||expected||, and the same kind of thing."""
    got = torch.as_tensor(got)
    assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
    assert not got.requires_grad
    assert (got - expected).norm() <= rel * expected.norm() + 1e-30


def jacobian(network, x):
    """d outputs / d theta, dense, ``[n, out, P]``."""
    parameters = {name: p.detach() for name, p in network.named_parameters()}
    parts = jacrev(lambda values: functional_call(plain(network), values, (x,)))(parameters)
    return torch.cat([parts[name].flatten(2) for name in parameters], -1)


@cache
def made_jacobian(hidden, activation, dtype, rows, seed):
    """That of a network and observations of these seeds."""
    return jacobian(make(hidden, activation, dtype, seed), randn(rows, IN, seed=seed, dtype=dtype))


def backward(network, x, u):
    """Autograd's vector-Jacobian product."""
    return flatten(torch.autograd.grad(plain(network)(x), list(network.parameters()), u))


def every_case(function):
    for mark in (kinds, dtypes, activations, networks):
        function = mark(function)
    return function


@every_case
def test_the_output_is_that_of_the_layers_one_after_the_other(hidden, activation, dtype, kind):
    for rows, seed in ROUNDS:
        network, x = make(hidden, activation, dtype, seed), randn(rows, IN, seed=seed, dtype=dtype)
        for output in (network.linearize(as_kind(x, kind)).output, network(as_kind(x, kind))):
            assert isinstance(output, np.ndarray if kind == "arrays" else torch.Tensor)
            close(torch.as_tensor(output).detach(), plain(network)(x).detach(), REL[dtype])


@every_case
def test_pulling_back_is_autograds_vector_jacobian_product(hidden, activation, dtype, kind):
    for rows, seed in ROUNDS:
        network, x = make(hidden, activation, dtype, seed), randn(rows, IN, seed=seed, dtype=dtype)
        u = randn(rows, OUT, seed=seed + 10, dtype=dtype)
        got = network.linearize(as_kind(x, kind)).pull_back(as_kind(u, kind))
        assert isinstance(got, np.ndarray if kind == "arrays" else torch.Tensor)
        close(got, backward(network, x, u), REL[dtype])


@every_case
def test_pushing_forward_multiplies_by_the_dense_jacobian(hidden, activation, dtype, kind):
    for rows, seed in ROUNDS:
        network, x = make(hidden, activation, dtype, seed), randn(rows, IN, seed=seed, dtype=dtype)
        v = randn(count(network), seed=seed + 20, dtype=dtype)
        (got,) = network.linearize(as_kind(x, kind)).push_forward(as_kind(v, kind))
        assert isinstance(got, np.ndarray if kind == "arrays" else torch.Tensor)
        close(got, made_jacobian(hidden, activation, dtype, rows, seed) @ v, REL[dtype])


@every_case
def test_both_products_are_those_of_one_matrix(hidden, activation, dtype, kind):
    for rows, seed in ROUNDS:
        network = make(hidden, activation, dtype, seed)
        x, u = randn(rows, IN, seed=seed, dtype=dtype), randn(rows, OUT, seed=seed + 10, dtype=dtype)
        v = randn(count(network), seed=seed + 20, dtype=dtype)
        at = network.linearize(as_kind(x, kind))
        (Jv,) = map(torch.as_tensor, at.push_forward(as_kind(v, kind)))
        Ju = torch.as_tensor(at.pull_back(as_kind(u, kind)))
        error = (u * Jv).sum() - Ju @ v
        assert error.abs() <= REL[dtype] * (u.norm() * Jv.norm() + Ju.norm() * v.norm())


@kinds
@activations
@networks
def test_products_can_be_repeated_in_any_order_and_change_nothing(hidden, activation, kind):
    network = make(hidden, activation)
    x, u, v = (as_kind(y, kind) for y in (randn(7, IN), randn(7, OUT, seed=1), randn(count(network), seed=2)))
    given = [*(torch.as_tensor(y) for y in (x, u, v)), *(p.detach() for p in network.parameters())]
    before = [y.clone() for y in given]
    at = network.linearize(x)
    output = torch.as_tensor(at.output).clone()
    calls = {"back": partial(at.pull_back, u), "forward": lambda: at.push_forward(v)[0]}
    results = {"back": [], "forward": []}
    for name in ("forward", "back", "back", "forward", "forward", "back"):
        results[name].append(torch.as_tensor(calls[name]()).clone())
    for first, *others in results.values():
        assert all(torch.equal(first, other) for other in others)
    assert all(torch.equal(a, b) for a, b in zip(given, before, strict=True))
    assert torch.equal(torch.as_tensor(at.output), output)
    assert all(p.grad is None for p in network.parameters())


@kinds
def test_results_share_no_memory_with_each_other(kind):
    network = make()
    at, u, v = network.linearize(as_kind(randn(7, IN), kind)), randn(7, OUT, seed=1), randn(count(make()), seed=2)
    u, v = as_kind(u, kind), as_kind(v, kind)
    for call in (lambda: at.pull_back(u), lambda: at.push_forward(v)[0]):
        first = call()
        kept = torch.as_tensor(first).clone()
        first *= 0.0
        assert torch.equal(torch.as_tensor(call()), kept)


@activations
def test_arrays_and_tensors_give_the_same_numbers(activation):
    network, x = make((5, 7), activation), randn(50, IN)
    u, v = randn(50, OUT, seed=1), randn(count(network), seed=2)
    a, t = network.linearize(x.numpy()), network.linearize(x)
    close(a.output, t.output, 1e-14)
    close(a.pull_back(u.numpy()), t.pull_back(u), 1e-14)
    close(a.push_forward(v.numpy())[0], t.push_forward(v)[0], 1e-14)


@kinds
def test_an_input_that_is_no_contiguous_block_of_memory_is_read_rightly(kind):
    network, x, u = make(), randn(IN, 14)[:, ::2].T, randn(OUT, 7, seed=1).T
    at = network.linearize(x.numpy() if kind == "arrays" else x)
    close(at.pull_back(u.numpy() if kind == "arrays" else u), backward(network, x, u), 1e-12)


@kinds
@pytest.mark.parametrize("move", ["pack", "write", "load_state_dict", "double"])
def test_parameters_are_read_where_they_are_however_they_were_moved(move, kind):
    network, other = make(dtype=torch.float32), make(dtype=torch.float32, seed=9)
    x, u = randn(7, IN, dtype=torch.float32), randn(7, OUT, seed=1, dtype=torch.float32)
    network(as_kind(x, kind))  # whatever is kept of the parameters is kept now
    network.linearize(as_kind(x, kind)).pull_back(as_kind(u, kind))
    old = plain(network)(x).detach()
    if move == "double":
        network, x, u = network.double(), x.double(), u.double()
    vector = pack(network).detach() if move in ("pack", "write") else None
    network(as_kind(x, kind))
    if move == "pack":
        vector += randn(len(vector), dtype=torch.float32)
    if move == "write":
        list(network.parameters())[-2].data.mul_(3.0)  # the last weights only
    if move == "load_state_dict":
        network.load_state_dict(other.state_dict())
    rel, new = REL[x.dtype], plain(network)(x).detach()
    assert move == "double" or (new - old).norm() > 0.1 * old.norm()
    close(network.linearize(as_kind(x, kind)).output, new, rel)
    close(torch.as_tensor(network(as_kind(x, kind))).detach(), new, rel)
    close(network.linearize(as_kind(x, kind)).pull_back(as_kind(u, kind)), backward(network, x, u), rel)


@kinds
def test_what_was_kept_of_the_parameters_is_not_a_copy(kind):
    network, x = make(), randn(7, IN)
    network(as_kind(x, kind))
    vector = pack(network).detach()
    for step in range(3):
        vector += 0.1 * randn(len(vector), seed=step)
        close(network.linearize(as_kind(x, kind)).output, plain(network)(x).detach(), 1e-12)


@pytest.mark.parametrize("batch", [(), (4,), (2, 3)])
def test_arrays_with_any_leading_dimensions_are_evaluated(batch):
    network, x = make(), randn(*batch, IN)
    before = x.clone()
    close(network(x.numpy()), plain(network)(x).detach(), 1e-14)
    assert torch.equal(x, before)


def test_a_tensors_forward_keeps_its_graph():
    network, x = make(), randn(7, IN)
    assert network(x).requires_grad
    assert not network.linearize(x).output.requires_grad


def test_a_rectifier_that_is_exactly_at_zero_does_not_move():
    network = make((6,), "relu")
    network[0].weight.data.zero_()
    network[0].bias.data.zero_()
    x, u = randn(7, IN), randn(7, OUT, seed=1)
    close(network.linearize(x.numpy()).pull_back(u.numpy()), backward(network, x, u), 1e-12)
    (moved,) = network.linearize(x.numpy()).push_forward(np.eye(count(network))[0])
    assert not moved.any()
