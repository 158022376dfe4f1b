"""The predicates that choose between numpy and torch, formulas and autograd, and their words."""

import itertools

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn

from klrl.policy.actors import make_actor
from klrl.policy.linearization import ByAutograd
from klrl.policy.mlp import MLP, mlp
from klrl.policy.networks import linearize
from klrl.policy.observations import Encoding
from klrl.policy.paths import (
    acts_in_numpy,
    brings_derivative,
    has_formulas,
    in_words,
    is_explicit,
    is_written_out,
    learns_in_numpy,
    optimizes_in_numpy,
    outputs_in_words,
    rows_for_numpy,
)

CPU, CUDA = torch.device("cpu"), torch.device("cuda:1")


def network(sizes=(3, 8, 2)):
    return mlp(sizes, activation="tanh", output_gain=1.0, generator=torch.Generator().manual_seed(0))


def test_numpy_takes_as_many_rows_as_are_four_million_multiplications_in_the_largest_layer():
    small, large = network((3, 8, 2)), network((4, 100, 120, 1))
    rows = rows_for_numpy(small, large)
    assert rows == rows_for_numpy(large) == 4_194_304 // (100 * 120)
    assert learns_in_numpy(rows, rows)
    assert not learns_in_numpy(rows + 1, rows)
    acting = [n for n in range(rows + 2) if acts_in_numpy(n, rows)]
    assert acting == list(range(rows // 16 + 1))


def test_outside_the_cpus_memory_there_is_no_numpy():
    there = network().to("meta")
    assert rows_for_numpy(network(), there) == 0
    assert not learns_in_numpy(1, 0)
    assert not acts_in_numpy(1, 0)
    assert optimizes_in_numpy(torch.zeros(1))
    assert not optimizes_in_numpy(torch.zeros(1, device="meta"))


LINEAR = nn.Linear(2, 2)
UNKNOWN = {
    "nothing": [],
    "an activation last": [LINEAR, nn.Tanh()],
    "no bias": [nn.Linear(2, 2, bias=False)],
    "two kinds of activation": [LINEAR, nn.Tanh(), LINEAR, nn.ReLU(), LINEAR],
    "another activation": [LINEAR, nn.GELU(), LINEAR],
    "a derived class": [type("Mine", (nn.Linear,), {})(2, 2)],
    "two linear layers in a row": [LINEAR, LINEAR, LINEAR],
}


@pytest.mark.parametrize("layers", UNKNOWN.values(), ids=UNKNOWN)
def test_other_layers_have_no_formulas(layers):
    assert not has_formulas(layers, [0] * len(layers))


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
def test_linear_layers_with_one_kind_of_activation_have_formulas_unless_they_are_hooked(activation):
    assert has_formulas([LINEAR], [0])
    assert has_formulas([LINEAR, activation(), LINEAR, activation(), LINEAR], [0] * 5)
    assert not has_formulas([LINEAR, activation(), LINEAR], [0, 1, 0])


def changed(how):
    """A network after something was done to it."""
    net = network()
    if how == "frozen":
        net[0].weight.requires_grad_(requires_grad=False)
    elif how == "hooked":
        net[1].register_forward_hook(lambda *_: None)
    elif how == "replaced":
        net[1] = nn.GELU()
    elif how == "of torch":
        return nn.Sequential(*net)
    return net


@pytest.mark.parametrize("arrays", [True, False], ids=["arrays", "tensors"])
@pytest.mark.parametrize(
    ("how", "explicit", "written_out"),
    [
        ("as made", True, True),
        ("frozen", True, False),
        ("hooked", False, False),
        ("replaced", False, False),
        ("of torch", False, False),
    ],
)
def test_a_trunks_path_is_the_one_that_it_is_linearized_on(how, explicit, written_out, arrays):
    net, x = changed(how), np.ones((5, 3), np.float32)
    assert (is_explicit(net), is_written_out(net)) == (explicit, written_out)
    made = linearize(net, x if arrays else torch.from_numpy(x))
    assert isinstance(made, ByAutograd) == (not written_out)
    kind = ("numpy" if written_out else "numpy around a network in torch") if arrays else "torch"
    assert in_words(arrays, net, CPU) == f"{kind}, derivatives {'written out' if written_out else 'by autograd'}"


def test_words_name_another_device():
    net = network()
    assert in_words(False, net, CUDA) == "torch on cuda:1, derivatives written out"
    assert outputs_in_words(False, net, CUDA) == "torch on cuda:1"
    assert outputs_in_words(True, net, CPU) == "numpy"
    assert outputs_in_words(True, changed("frozen"), CPU) == "numpy"
    assert outputs_in_words(True, changed("hooked"), CPU) == "numpy around a network in torch"


BOX = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
IMAGE = gym.spaces.Box(0, 255, (12, 12, 3), np.uint8)


@pytest.mark.parametrize(
    ("observations", "distribution", "explicit", "written_out"),
    [(BOX, "gaussian", True, True), (BOX, "beta", True, False), (IMAGE, "gaussian", False, False)],
    ids=["gaussian", "beta", "image"],
)
def test_an_actors_path_is_its_trunks_unless_its_fields_are_no_pieces_of_the_outputs(
    observations, distribution, explicit, written_out
):
    encoding = Encoding(observations, BOX, "auto")
    generator = torch.Generator().manual_seed(0)
    actor = make_actor(
        encoding, BOX, (8,), log_std_init=0.0, action_distribution=distribution, state_dependent_std=False,
        scale_actions=True, activation="tanh", generator=generator,
    )  # fmt: skip
    assert (is_explicit(actor), is_written_out(actor)) == (explicit, written_out)
    made = actor.linearize(torch.ones(2, *encoding.shape))
    assert isinstance(made, ByAutograd) or isinstance(made._trunk, ByAutograd) is not written_out
    assert isinstance(actor.trunk, MLP) == explicit


class Neither:
    def f(self): ...
    def df(self): ...


class Function(Neither):
    def f(self): ...


class Both(Function):
    def f(self): ...
    def df(self): ...


class Derivative(Function):
    def df(self): ...


def test_a_derivative_belongs_to_the_function_that_it_came_with_or_after():
    brings = {cls.__name__: brings_derivative(cls, "f", "df") for cls in (Neither, Function, Both, Derivative)}
    assert brings == {"Neither": True, "Function": False, "Both": True, "Derivative": True}
    below = [type("Below", (cls,), {}) for cls in (Neither, Function, Both, Derivative)]
    assert [brings_derivative(cls, "f", "df") for cls in below] == list(brings.values())
    mixed = [type("Mixed", pair, {}) for pair in itertools.permutations([Both, Function], 2) if pair[0] is Both]
    assert all(brings_derivative(cls, "f", "df") for cls in mixed)
