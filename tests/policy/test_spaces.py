"""Spaces as JSON and tensors: equal after the way there and back, also in the order of their parts."""

import inspect

import numpy as np
import pytest
from environments import small_agent
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Text, Tuple
from test_observations import SPACES

from klrl.agents import PPO
from klrl.agents.saved_policy import SavedPolicy
from klrl.policy.observations import Encoding
from klrl.policy.spaces import check_spaces, describe_space, space_from
from klrl.run import checkpoint

TYPED = "dtype" in inspect.signature(Discrete).parameters
"""Whether this release of Gymnasium has Discrete spaces of other types than int64: since 1.2.2."""
MORE = {
    **({"small Discrete": Discrete(3, start=-2, dtype=np.int32)} if TYPED else {}),
    "small MultiDiscrete": MultiDiscrete([3, 4], dtype=np.int16),
    "half-open": Box(np.float32([0.0, -np.inf]), np.float32([np.inf, 1.0])),
    "half precision": Box(-1.0, 1.0, (2,), np.float16),
    "bool": Box(0, 1, (2,), bool),
    "bits of one": MultiBinary([1]),
    "one bit": MultiBinary(1),
    "keys of numbers": Dict({1: Discrete(2), 10: Discrete(3), 2: Discrete(4)}),
    "odd keys": Dict({"a.b": Discrete(2), "0": Box(-1.0, 1.0, (1,)), "": Box(0.0, 2.0, (1,))}),
    "empty Tuple inside": Tuple([Discrete(2), Tuple([])]),
}


@pytest.mark.parametrize("space", [*SPACES.values(), *MORE.values()], ids=[*SPACES, *MORE])
def test_a_space_read_from_disk_is_the_one_written(space, tmp_path):
    data, arrays = describe_space(space)
    arrays, state = checkpoint.read(checkpoint.write(tmp_path / "space", arrays, {"space": data}))
    restored = space_from(state["space"], arrays)
    assert restored == space
    assert repr(restored) == repr(space)
    space.seed(0)
    x = space.sample()
    assert restored.contains(x)
    np.testing.assert_array_equal(Encoding(restored, Discrete(2))(x), Encoding(space, Discrete(2))(x))


def test_a_dict_that_does_not_sort_its_keys_keeps_their_order():
    space = Dict([("z", Dict([("y", Discrete(2)), ("x", Discrete(3))])), ("a", Discrete(4))])
    restored = space_from(*describe_space(space))
    assert list(restored) == ["z", "a"]
    assert list(restored["z"]) == ["y", "x"]


def test_another_kind_of_space_is_refused():
    with pytest.raises(ValueError, match=r"^space of class 'Graph'; allowed: Box, Discrete, MultiDiscrete, MultiB"):
        space_from({"class": "Graph", "dtype": "int64"}, {})


MATRIX = Box(np.zeros((2, 2), np.float32), np.arange(4, dtype=np.float32).reshape(2, 2) + 1.0)


@pytest.mark.parametrize(
    ("observations", "actions", "text"),
    [
        (Dict(m=MATRIX, t=Text(3)), Discrete(2), "observation space['t'] Text"),
        (Tuple([MATRIX, Text(3)]), Discrete(2), "observation space[1] Text"),
        (Tuple([]), Discrete(2), "observation space Tuple() is empty; allowed: one with at least one element"),
        (MATRIX, Tuple([MATRIX]), "action space Tuple(Box(0.0, [[1. 2.] [3. 4.]]"),
        (MATRIX, Dict(a=MATRIX), "action space Dict("),
        (
            MATRIX,
            Box(np.zeros((2, 2), int), np.array([[1, 2], [3, 4]]), dtype=np.int64),
            "action space Box(0, [[",
        ),
    ],
    ids=["Text in a Dict", "Text in a Tuple", "nothing", "Tuple", "Dict", "integers"],
)
def test_unsupported_spaces_are_refused_in_one_line_that_says_what_would_do(observations, actions, text):
    with pytest.raises(ValueError, match="; allowed: ") as error:
        check_spaces(observations, actions)
    assert str(error.value).startswith(text)
    assert "\n" not in str(error.value)


class Older(Discrete):
    """As Gymnasium had it before 1.2.2: there is no other type than int64, and no argument for one."""

    def __init__(self, n, seed=None, start=0):
        super().__init__(n, seed, start)


def test_a_release_that_knows_one_type_of_numbers_reads_it_and_names_others(monkeypatch):
    data, arrays = describe_space(Discrete(5, start=-1))
    monkeypatch.setattr("gymnasium.spaces.Discrete", Older)
    assert space_from(data, arrays) == Older(5, start=-1)
    monkeypatch.setattr("gymnasium.__version__", "1.1.0")
    expected = r"^space Discrete\(5\) of type int8; allowed with gymnasium 1\.1\.0: int64$"
    with pytest.raises(ValueError, match=expected):
        space_from(data | {"dtype": "int8"}, arrays)


def test_a_saved_agent_whose_space_is_refused_here_is_not_called_damaged(tmp_path, monkeypatch):
    path = small_agent(PPO).save(tmp_path / "agent")

    def refuse(*args, **kwargs):
        raise TypeError("an argument that this release does not know")

    monkeypatch.setattr("gymnasium.spaces.Box", refuse)
    for read in (PPO.load, SavedPolicy.read):
        with pytest.raises(
            ValueError, match=f"^path = {path} is intact, but cannot be used here: .* not know$"
        ) as refused:
            read(path)
        assert type(refused.value) is ValueError
        assert "damaged" not in str(refused.value)
