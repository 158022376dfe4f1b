"""Observations of every space as one array: against Gymnasium's flatten, by hand, as vector environments give them."""

from functools import partial

import gymnasium as gym
import numpy as np
import pytest
from environments import Sampling
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple
from gymnasium.spaces.utils import flatten
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.vector.utils import batch_space, iterate

from klrl.experience import Collector
from klrl.policy.distributions import Categorical
from klrl.policy.observations import Encoding
from klrl.run.seeding import environment_seeds

IMAGE = Box(0, 255, (4, 5, 3), np.uint8)
NESTED = Dict(
    a=Tuple([Box(-1.0, 1.0, (2, 2)), Dict(b=MultiBinary((2, 2)), c=Tuple([MultiDiscrete([2, 3], start=[5, -1])]))]),
    image=IMAGE,
    Z=Discrete(3, start=-1),
)
SPACES = {
    "vector": Box(-1.0, 1.0, (3,)),
    "number": Box(-1.0, 1.0, ()),
    "unbounded": Box(-np.inf, np.inf, (2,)),
    "float64": Box(-1.0, 1.0, (2, 2), np.float64),
    "integers": Box(-5, 300, (3,), np.int64),
    "bytes": Box(0, 255, (6,), np.uint8),
    "image": IMAGE,
    "Discrete": Discrete(4),
    "Discrete from 7": Discrete(4, start=7),
    "MultiDiscrete": MultiDiscrete([2, 4, 3]),
    "MultiDiscrete with start": MultiDiscrete([2, 4], start=[-3, 10]),
    "MultiDiscrete 2-D": MultiDiscrete([[2, 3], [4, 5]], start=[[0, 1], [2, -3]]),
    "MultiBinary": MultiBinary(4),
    "MultiBinary 2-D": MultiBinary((2, 3)),
    "Tuple": Tuple([Discrete(2), Box(-1.0, 1.0, (2,))]),
    "Dict": Dict(x=Box(-1.0, 1.0, (2,)), n=Discrete(3, start=1)),
    "ordered Dict": Dict([("z", Discrete(2)), ("a", Box(-1.0, 1.0, ()))]),
    "nested": NESTED,
}  # fmt: skip
every_space = pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)


def by_flatten(space, x):
    """Gymnasium's own layout, in the shape and type that a Box keeps."""
    flat = np.asarray(flatten(space, x), np.float64 if "float64" in str(space) else np.float32)
    return flat.reshape(space.shape) if isinstance(space, Box) else flat


def samples(space, n, seed=0):
    space.seed(seed)
    return [space.sample() for _ in range(n)]


def refusal(function):
    """The one line of the ValueError that a call raises."""
    with pytest.raises(ValueError) as error:  # noqa: PT011 (callers match the text)
        function()
    assert "\n" not in str(error.value)
    return str(error.value)


@every_space
def test_one_observation_is_encoded_as_gymnasium_flattens_it(space):
    encoding = Encoding(space, Discrete(2))
    for x in samples(space, 20):
        got = encoding(x)
        assert (got.shape, got.dtype) == (encoding.shape, encoding.dtype)
        np.testing.assert_array_equal(got, by_flatten(space, x))


@every_space
@pytest.mark.parametrize("n", [1, 3])
def test_a_batch_is_encoded_as_its_rows(space, n):
    batched = batch_space(space, n)
    (x,) = samples(batched, 1)
    expected = [by_flatten(space, row) for row in iterate(batched, x)]
    np.testing.assert_array_equal(Encoding(space, Discrete(2))(x), expected)


def test_the_type_is_float32_but_for_an_image_alone_and_where_a_box_has_more_digits():
    dtypes = {name: Encoding(space, Discrete(2)).dtype for name, space in SPACES.items()}
    assert {name for name, dtype in dtypes.items() if dtype == np.uint8} == {"image"}
    assert {name for name, dtype in dtypes.items() if dtype == np.float64} == {"float64", "integers"}
    assert set(dtypes.values()) == {np.dtype(np.uint8), np.dtype(np.float32), np.dtype(np.float64)}
    for dtype, long in ((np.float16, 0), (np.int16, 0), (np.int32, 1), (np.uint32, 1), (np.int64, 1), (np.float64, 1)):
        space = gym.spaces.Dict(count=Box(0, 9, (2,), dtype), kind=Discrete(3))
        assert Encoding(space, Discrete(2)).dtype == (np.float64 if long else np.float32)


def test_a_nested_observation_by_hand():
    x = {
        "a": (np.array([[1, 2], [3, 4]]), {"b": [[1, 0], [0, 1]], "c": (np.array([6, -1]),)}),
        "image": np.arange(60, dtype=np.uint8).reshape(4, 5, 3),
        "Z": 1,
    }
    expected = [1, 2, 3, 4, *(1, 0, 0, 1), *(0, 1), *(1, 0, 0), *range(60), *(0, 0, 1)]
    np.testing.assert_array_equal(Encoding(NESTED, Discrete(2))(x), expected)


def test_the_result_is_memory_of_its_own():
    for dtype in (np.float32, np.uint8):
        x = np.ones((2, 3, 4), dtype)
        encoded = Encoding(Box(0, 255, (3, 4), dtype), Discrete(2))(x)
        x[:] = 0
        assert (encoded == 1).all()


@pytest.mark.parametrize("value", [-1, 4, 1.5, np.nan])
@pytest.mark.parametrize("start", [0, 7])
def test_what_is_no_element_of_a_discrete_space_is_refused_by_name(value, start):
    encoding = Encoding(Dict(n=Discrete(4, start=start)), Discrete(2))
    assert refusal(lambda: encoding({"n": value + start})) == (
        f"observation['n'] has {value + start}; allowed: elements of {Discrete(4, start=start)}"
    )


def test_small_integers_are_not_too_small_for_the_difference():
    encoding = Encoding(Discrete(250, start=-120), Discrete(2))
    assert [int(encoding(np.int8(value)).argmax()) for value in (-120, 0, 127)] == [0, 120, 247]
    encoding = Encoding(MultiDiscrete([3], start=[1], dtype=np.uint8), Discrete(2))
    assert refusal(lambda: encoding(np.array([0], np.uint8))).startswith("observation has 0; allowed: elements of Mult")


def test_a_large_batch_is_refused_with_the_first_wrong_value_only():
    encoding = Encoding(Tuple([MultiDiscrete([[9, 9], [9, 9]])]), Discrete(2))
    x = np.zeros((100, 2, 2), int)
    x[50, 1, 0] = 12
    assert refusal(lambda: encoding((x,))) == (
        "observation[0] has 12; allowed: elements of MultiDiscrete([[9 9] [9 9]])"
    )


@pytest.mark.parametrize("value", [0.5, -1, 256])
def test_pixels_that_a_byte_cannot_hold_are_refused(value):
    for space, x in ((IMAGE, np.full(IMAGE.shape, value)), (Dict(i=IMAGE), {"i": np.full(IMAGE.shape, value)})):
        assert refusal(lambda space=space, x=x: Encoding(space, Discrete(2))(x)).endswith(
            f"has {value}; allowed: elements of {IMAGE}"
        )
    np.testing.assert_array_equal(Encoding(IMAGE, Discrete(2))(np.full(IMAGE.shape, 255.0)), np.full(IMAGE.shape, 255))


@pytest.mark.parametrize(
    ("space", "x", "text"),
    [
        (Box(-1.0, 1.0, (3,)), np.zeros(2), "observation has shape (2,); allowed: (3,) or ('n', 3)"),
        (Box(-1.0, 1.0, (3,)), 0.0, "observation has shape (); allowed: (3,) or ('n', 3)"),
        (Box(-1.0, 1.0, (3,)), {"x": 1}, "observation is a dict; allowed: numbers"),
        (Box(-1.0, 1.0, (3,)), None, "observation is a NoneType; allowed: numbers"),
        (Box(-1.0, 1.0, (2,)), [[1.0, 2.0], [3.0]], "observation is a list; allowed: numbers"),
        (SPACES["Dict"], np.zeros(5), "observation['x'] is missing; allowed: the structure of the space"),
        (SPACES["Dict"], {"x": np.zeros(2)}, "observation['n'] is missing; allowed: the structure of the space"),
        (SPACES["Dict"], {"x": np.zeros(3), "n": 1}, "observation['x'] has shape (3,); allowed: (2,) or ('n', 2)"),
        (SPACES["Dict"], {"x": np.zeros((4, 2)), "n": 1}, "observation['n'] has shape (); allowed: (4,)"),
        (SPACES["Dict"], {"x": "no", "n": 1}, "observation['x'] is a str; allowed: numbers"),
        (SPACES["Tuple"], (1,), "observation[1] is missing; allowed: the structure of the space"),
        (NESTED, {"a": (np.zeros((2, 2)), {"b": np.eye(2)})}, "observation['a'][1]['c'][0] is missing"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_another_structure_or_shape_is_refused_in_one_line_that_names_the_part(space, x, text):
    assert refusal(lambda: Encoding(space, Discrete(2))(x)).startswith(text)


def test_numbers_beyond_float32_become_infinite_without_a_warning():
    encoding = Encoding(Box(-np.inf, np.inf, (2,), np.float64), Discrete(2))
    np.testing.assert_array_equal(encoding(np.array([1e300, -1e300])), [np.inf, -np.inf])


# What vector environments hand out.
SAME, NEXT = AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP


def act(observation):
    n = len(observation)
    return np.zeros(n, int), np.zeros(n, int), Categorical(np.zeros((n, 2), np.float32))


@pytest.mark.parametrize("mode", [SAME, NEXT])
@pytest.mark.parametrize("maker", [SyncVectorEnv, AsyncVectorEnv])
@pytest.mark.parametrize("space", [SPACES[n] for n in ("nested", "MultiDiscrete 2-D", "Tuple", "image", "number")])
def test_every_row_is_what_the_environments_showed_and_truncations_end_in_their_last_observation(space, maker, mode):
    lengths, T = (2, 3), 7
    envs = maker([partial(Sampling, space, length=n) for n in lengths], autoreset_mode=mode)
    encoding = Encoding(space, Discrete(2))
    try:
        collector = Collector(envs, environment_seeds(0), encoding)
        batch = collector.collect(act, T)
    finally:
        envs.close()
    assert batch.observations.shape == (T, 2, *encoding.shape)
    seeds = [int(s.generate_state(1)[0]) for s in environment_seeds(0).spawn(2)]
    finals = {}
    for i, length in enumerate(lengths):
        env = Sampling(space, length=length)
        x, _ = env.reset(seed=seeds[i])
        for t in range(T):
            np.testing.assert_array_equal(batch.observations[t, i], by_flatten(space, x))
            if mode is NEXT and t % (length + 1) == length:
                assert not batch.valid[t, i]
                x, _ = env.reset()
                continue
            x, _, _, truncated, _ = env.step(0)
            assert batch.truncated[t, i] == truncated
            if truncated:
                finals[t, i] = by_flatten(space, x)
                x = env.reset()[0] if mode is SAME else x
        np.testing.assert_array_equal(batch.next_observations[i], by_flatten(space, x))
    expected = [finals[key] for key in sorted(finals)]
    np.testing.assert_array_equal(batch.final_observations, expected)
    assert str(batch.observations.dtype) == str(batch.final_observations.dtype) == f"torch.{encoding.dtype}"


def test_a_number_that_is_not_finite_is_named_by_its_part():
    class Bad(gym.Env):
        observation_space = Dict(x=Box(-1.0, 1.0, (2,)), y=Tuple([Discrete(3), Box(-1.0, 1.0, (3,))]))
        action_space = Discrete(2)

        def reset(self, *, seed=None, options=None):
            return {"x": np.zeros(2, np.float32), "y": (1, np.array([0.0, np.nan, 0.0], np.float32))}, {}

    envs = SyncVectorEnv([Bad])
    with pytest.raises(FloatingPointError, match=r"^observation of environment 0\['y'\]\[1\], element \[1\], is nan"):
        Collector(envs, environment_seeds(0), Encoding(Bad.observation_space, Discrete(2)))


# Masks in observations: the vector's end.
def masked(mask=None, **parts):
    return Dict(parts | {"action_mask": MultiBinary(3) if mask is None else mask})


@pytest.mark.parametrize("mask", [MultiBinary(3), Box(0, 1, (3,), np.int8), Box(0.0, 1.0, (3,)), Box(0, 1, (3, 1))])
def test_a_mask_is_the_end_of_the_vector_wherever_its_key_would_stand(mask):
    encoding = Encoding(Dict({"action_mask": mask, "Z": Discrete(2), "x": Box(-1.0, 1.0, (2,))}), Discrete(3))
    m = np.array([1, 0, 1], mask.dtype).reshape(mask.shape)
    got = encoding({"x": np.array([0.5, -0.5]), "Z": 1, "action_mask": m})
    np.testing.assert_array_equal(got, [0, 1, 0.5, -0.5, 1, 0, 1])
    assert (encoding.n_features, encoding.n_mask, encoding.mask_in_info) == (4, 3, False)
    np.testing.assert_array_equal(encoding.allowed(got), [1, 0, 1])


def test_none_treats_the_mask_as_a_feature():
    encoding = Encoding(masked(x=Box(-1.0, 1.0, (2,))), Discrete(3), "none")
    got = encoding({"x": np.array([0.5, -0.5]), "action_mask": np.array([1, 0, 1], np.int8)})
    np.testing.assert_array_equal(got, [1, 0, 1, 0.5, -0.5])
    assert (encoding.n_features, encoding.n_mask) == (5, 0)
    assert not encoding.forbids_everything(got)


@pytest.mark.parametrize("actions", [Box(-1.0, 1.0, (2,)), MultiBinary(3)], ids=str)
def test_a_mask_for_other_than_discrete_actions_is_refused_unless_it_is_said_to_be_none(actions):
    with pytest.raises(ValueError, match=r"^observation\['action_mask'\] with action space .*; allowed: masks of"):
        Encoding(masked(x=Discrete(2)), actions)
    assert Encoding(masked(x=Discrete(2)), actions, "none").n_mask == 0


@pytest.mark.parametrize("space", [Box(-1.0, 1.0, (2,)), Box(-1.0, 1.0, ()), Discrete(2), IMAGE, SPACES["Dict"]])
def test_masks_from_info_stand_behind_any_observation(space):
    encoding = Encoding(space, Discrete(3), "info")
    (x,) = samples(space, 1)
    flat = np.ravel(by_flatten(space, x))
    np.testing.assert_array_equal(encoding(x, [1, 0, 1]), [*flat, 1, 0, 1])
    np.testing.assert_array_equal(encoding(x), [*flat, 1, 1, 1])
    many = [[1, 0, 1], [0, 0, 1]]
    rows = encoding(gym.vector.utils.concatenate(space, [x, x], gym.vector.utils.create_empty_array(space, 2)), many)
    np.testing.assert_array_equal(rows, [[*flat, *mask] for mask in many])


def test_multi_discrete_masks_are_one_vector_or_a_tuple_of_one_per_component():
    encoding = Encoding(Discrete(2), MultiDiscrete([2, 3]), "info")
    for mask in ([1, 0, 0, 1, 1], (np.array([1, 0], np.int8), np.array([0, 1, 1], np.int8))):
        np.testing.assert_array_equal(encoding(1, mask), [0, 1, 1, 0, 0, 1, 1])


@pytest.mark.parametrize(
    ("actions", "mask", "nothing_left"),
    [
        (Discrete(3), [0, 0, 0], True),
        (Discrete(3), [0, 0, 1], False),
        (Discrete(3), [0.3, 0.0, 0.2], True),
        (MultiDiscrete([2, 1, 2]), [1, 1, 1, 0, 0], True),
        (MultiDiscrete([2, 1, 2]), [1, 1, 0, 1, 1], True),
        (MultiDiscrete([2, 1, 2]), [0, 0, 1, 1, 1], True),
        (MultiDiscrete([2, 1, 2]), [0, 1, 1, 1, 0], False),
        (MultiDiscrete([[1, 2], [1, 1]]), [1, 0, 0, 1, 1], True),
    ],
    ids=str,
)
def test_a_mask_must_leave_something_in_every_component(actions, mask, nothing_left):
    encoding = Encoding(Discrete(2), actions, "info")
    assert bool(encoding.forbids_everything(encoding(0, mask))) is nothing_left
    everything = np.ones(len(mask))
    assert encoding.forbids_everything(encoding([0, 1], [mask, everything])).tolist() == [nothing_left, False]


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda: Encoding(masked(MultiBinary(4), x=Discrete(2)), Discrete(3)),
            "observation['action_mask'] is MultiBinary(4); allowed with Discrete(3): a Box or MultiBinary of 3 el",
        ),
        (
            lambda: Encoding(masked(MultiDiscrete([2, 2, 2]), x=Discrete(2)), Discrete(3)),
            "observation['action_mask'] is MultiDiscrete([2 2 2]); allowed with Discrete(3): a Box or MultiBinary",
        ),
        (
            lambda: Encoding(masked(Tuple([MultiBinary(2), MultiBinary(3)]), x=Discrete(2)), MultiDiscrete([2, 3])),
            "observation['action_mask'] is Tuple(MultiBinary(2), MultiBinary(3)); allowed with MultiDiscrete([2 3])",
        ),
        (
            lambda: Encoding(masked(), Discrete(3)),
            "observation space Dict('action_mask': MultiBinary(3)) is empty; allowed: one with at least one element",
        ),
        (
            lambda: Encoding(Discrete(2), Box(-np.ones((2, 2)), np.ones((2, 2)), dtype=np.float64), "info"),
            "action_mask = 'info' with action space Box(-1.0, 1.0, (2, 2), float64); allowed: Discrete, MultiDiscrete",
        ),
        (
            lambda: Encoding(Discrete(2), Discrete(3), "info")(1, [1, 0]),
            "action_mask has shape (2,); allowed: (3,)",
        ),
        (
            lambda: Encoding(Discrete(2), Discrete(3), "info")([1, 1], [[1, 0, 1]]),
            "action_mask has shape (1, 3); allowed: (2, 3)",
        ),
        (
            lambda: Encoding(Discrete(2), Discrete(3))(1, [1, 0, 1]),
            "action_masks beside an observation; allowed: only where action_mask = 'info'",
        ),
    ],
    ids=["length", "one-hot", "tuple", "nothing else", "no choices", "one mask", "masks", "nobody asked"],
)
def test_masks_that_do_not_fit_are_refused_in_one_line(make, text):
    assert refusal(make).startswith(text)


def test_scales_are_known_for_pixels_bits_and_choices_only():
    encoding = Encoding(
        masked(b=MultiBinary(2), d=Discrete(2), i=Box(0, 255, (2, 2), np.uint8), x=Box(-1.0, 1.0, (2,))), Discrete(3)
    )
    expected = [*(1.0,) * 4, *(1 / 255,) * 4, 0.0, 0.0, *(1.0,) * 3]
    np.testing.assert_allclose(encoding.fixed_scale, expected, rtol=1e-15)
    assert Encoding(SPACES["vector"], Discrete(2)).fixed_scale is None
    assert Encoding(SPACES["bytes"], Discrete(2)).fixed_scale is None
    assert Encoding(Tuple([Discrete(2), MultiBinary(2)]), Discrete(2)).fixed_scale == 1.0
    assert Encoding(IMAGE, Discrete(2)).fixed_scale == pytest.approx(1 / 255, rel=1e-15)
    assert Encoding(Box(0, 15, (3, 3), np.uint8), Discrete(2)).fixed_scale == pytest.approx(1 / 15, rel=1e-15)
