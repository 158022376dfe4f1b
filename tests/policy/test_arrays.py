"""What formulas share for arrays and tensors: the same numbers from both, and numpy as quiet as torch."""

import math
import subprocess
import sys
import warnings
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from threadpoolctl import ThreadpoolController

from klrl.policy import arrays
from klrl.policy.arrays import is_numpy, like, numpy_as_torch, tensor

both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
seeds = pytest.mark.parametrize("seed", range(3))


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def rows(*shape, k=5, seed=0):
    return torch.randint(k, shape, generator=torch.Generator().manual_seed(seed))


def agree(by_tensors, by_arrays, expected):
    """Both are what they should be: a tensor and an array of the expected numbers in one type."""
    expected = np.asarray(expected)
    tolerance = {"rtol": 1e-6, "atol": 1e-7} if by_tensors.dtype == torch.float32 else {"rtol": 1e-14, "atol": 1e-15}
    assert isinstance(by_tensors, torch.Tensor)
    assert isinstance(by_arrays, (np.ndarray, np.generic))
    assert by_arrays.dtype == by_tensors.numpy().dtype
    np.testing.assert_allclose(by_tensors.numpy(), expected, **tolerance)
    np.testing.assert_allclose(by_arrays, expected, **tolerance)


@seeds
@both_dtypes
@pytest.mark.parametrize(
    ("name", "oracle"),
    [("exp", math.exp), ("expm1", math.expm1), ("positive", lambda x: float(x > 0.0)), ("log", math.log)],
)
def test_functions_of_one_array_are_those_of_the_standard_library(name, oracle, dtype, seed):
    x = randn(4, 3, seed=seed, dtype=dtype)
    x = x.abs() + 0.1 if name == "log" else x
    function = getattr(arrays, name)
    agree(function(x), function(x.numpy()), [[oracle(element) for element in row] for row in x.tolist()])


@pytest.mark.parametrize("x", [1e-12, -1e-12, 1e-5, 0.0])
def test_expm1_does_not_cancel(x):
    for result in (arrays.expm1(torch.tensor([x], dtype=torch.float64)), arrays.expm1(np.array([x]))):
        assert result.item() == pytest.approx(x + x * x / 2.0, rel=1e-9)


@seeds
@both_dtypes
@pytest.mark.parametrize(("name", "oracle"), [("tanh_", math.tanh), ("relu_", lambda x: max(x, 0.0))])
def test_activations_work_in_place(name, oracle, dtype, seed):
    x = randn(4, 3, seed=seed, dtype=dtype)
    x[0, 0] = 0.0
    expected = [[oracle(element) for element in row] for row in x.tolist()]
    function, changed, array = getattr(arrays, name), x.clone(), x.numpy().copy()
    agree(function(changed), function(array), expected)
    agree(changed, array, expected)


def test_the_rectifier_has_slope_zero_at_zero():
    for zero in (torch.tensor([-0.0, 0.0]), np.array([-0.0, 0.0])):
        assert arrays.positive(zero).tolist() == [0.0, 0.0]


@seeds
@both_dtypes
def test_minimum_and_where_choose_element_by_element(dtype, seed):
    x, y = randn(2, 4, 3, seed=seed, dtype=dtype)
    smaller = [[min(a, b) for a, b in zip(*both, strict=True)] for both in zip(x.tolist(), y.tolist(), strict=True)]
    agree(arrays.minimum(x, y), arrays.minimum(x.numpy(), y.numpy()), smaller)
    agree(arrays.where(x < y, x, y), arrays.where((x < y).numpy(), x.numpy(), y.numpy()), smaller)
    without = [[0.0 if a < 0 else a for a in row] for row in x.tolist()]
    agree(arrays.where(x < 0.0, 0.0, x), arrays.where((x < 0.0).numpy(), 0.0, x.numpy()), without)


def test_the_minimum_with_what_is_not_a_number_is_not_a_number():
    x, y = torch.tensor([math.nan, 1.0]), torch.tensor([1.0, math.nan])
    assert arrays.minimum(x, y).isnan().all()
    assert np.isnan(arrays.minimum(x.numpy(), y.numpy())).all()


@pytest.mark.parametrize("shapes", [[(3,), (2,)], [(3, 2), (1, 2), (4, 2)], [(5,)]])
def test_concatenate_puts_rows_after_rows(shapes):
    parts = [randn(*shape, seed=i) for i, shape in enumerate(shapes)]
    expected = [row for part in parts for row in part.tolist()]
    agree(arrays.concatenate(parts), arrays.concatenate([p.numpy() for p in parts]), expected)


@pytest.mark.parametrize("sizes", [[6], [1, 2, 3], [0, 6], [2, 0, 4, 0]], ids=str)
def test_split_undoes_concatenate_on_the_same_memory(sizes):
    x = randn(6)
    array = x.numpy().copy()
    of_tensor, of_array = arrays.split(x, sizes), arrays.split(array, sizes)
    for a, b, size in zip(of_tensor, of_array, sizes, strict=True):
        agree(a, b, a.tolist())
        assert len(a) == len(b) == size
    agree(arrays.concatenate(of_tensor), arrays.concatenate(of_array), x)
    of_array[-2 if sizes[-1] == 0 else -1][:] = 0.0
    assert array[-1] == 0.0


@seeds
@both_dtypes
@pytest.mark.parametrize("batch", [(), (4,), (2, 3)])
@pytest.mark.parametrize("shift", [0.0, 1e4, -1e4])
def test_log_softmax_is_that_of_exact_arithmetic(batch, shift, dtype, seed):
    x = 3.0 * randn(*batch, 5, seed=seed, dtype=dtype) + shift
    exact = x.double() - shift  # the shift cancels: e^x of it would overflow
    expected = exact - exact.exp().sum(-1, keepdim=True).log()
    agree(arrays.log_softmax(x), arrays.log_softmax(x.numpy()), expected)


def test_log_softmax_keeps_impossible_actions_impossible():
    x = torch.tensor([[0.0, -math.inf, 0.0], [-math.inf, 7.0, -math.inf]], dtype=torch.float64)
    expected = [[-math.log(2), -math.inf, -math.log(2)], [-math.inf, 0.0, -math.inf]]
    agree(arrays.log_softmax(x), arrays.log_softmax(x.numpy()), expected)


@seeds
@pytest.mark.parametrize("batch", [(), (4,), (2, 3)])
def test_pick_and_one_hot_are_indexing(batch, seed):
    x, index = randn(*batch, 5, seed=seed), rows(*batch, seed=seed)
    flat, where = x.reshape(-1, 5), index.reshape(-1).tolist()
    picked = np.reshape([row[i] for row, i in zip(flat, where, strict=True)], batch)
    agree(arrays.pick(x, index), arrays.pick(x.numpy(), index.numpy()), picked)
    hot = np.eye(5)[where].reshape(*batch, 5)
    agree(arrays.one_hot(index, x), arrays.one_hot(index.numpy(), x.numpy()), hot)


@both_dtypes
def test_one_hot_has_the_type_of_the_other_array(dtype):
    x, index = randn(4, 5, dtype=dtype), rows(4)
    assert arrays.one_hot(index, x).dtype == dtype
    assert arrays.one_hot(index.numpy(), x.numpy()).dtype == x.numpy().dtype


def test_expand_repeats_a_vector_in_memory_that_can_be_written():
    row = randn(3)
    expanded = arrays.expand(row.numpy(), (4, 3))
    agree(arrays.expand(row, (4, 3)), expanded, [row.tolist()] * 4)
    expanded[0] = 0.0
    assert row.all()
    assert expanded[1:].all()


def test_a_tensor_is_no_array_and_anything_else_is_one():
    assert not is_numpy(torch.zeros(2))
    assert not is_numpy(torch.nn.Parameter(torch.zeros(2)))
    assert all(map(is_numpy, (np.zeros(2), np.float32(1.0), 1.0)))


def test_a_tensor_of_an_array_and_back_is_the_same_memory():
    array, made = np.zeros(3), torch.zeros(3)
    assert tensor(made) is made
    assert like(made, made) is made
    tensor(array)[0] = 1.0
    like(made, array)[1] = 2.0
    assert (array.tolist(), made.tolist()) == ([1.0, 0.0, 0.0], [0.0, 2.0, 0.0])


# numpy_as_torch.
def blas_threads():
    pools = ThreadpoolController().select(user_api="blas").info()
    return [pool["num_threads"] for pool in pools if "numpy" in pool["filepath"]]  # SciPy brings one of its own


def strange():
    """Everything numpy warns of: division by zero, overflow, invalid values, the logarithm of zero; and underflow."""
    zero, large = np.zeros(1, np.float32), np.full(1, 200.0, np.float32)
    return [x.item() for x in (1.0 / zero, np.exp(large), zero / zero, np.log(zero), np.exp(-large))]


def test_numpy_computes_what_torch_does_without_a_warning():
    with warnings.catch_warnings(), numpy_as_torch():
        warnings.simplefilter("error")
        numbers = strange()
    assert numbers[:2] == [math.inf, math.inf]
    assert math.isnan(numbers[2])
    assert numbers[3:] == [-math.inf, 0.0]
    with pytest.warns(RuntimeWarning):
        strange()


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("error", [None, Interrupted, KeyboardInterrupt])
@pytest.mark.parametrize("state", [{}, {"divide": "raise", "over": "ignore", "under": "warn", "invalid": "call"}])
def test_numpys_errors_and_threads_are_afterwards_what_they_were_whatever_happens(error, state):
    with np.errstate(**state), ThreadpoolController().limit(limits=3, user_api="blas"):
        errors, threads = np.geterr(), blas_threads()
        assert threads
        assert set(threads) != {1}
        with pytest.raises(error) if error else nullcontext(), numpy_as_torch():
            assert set(blas_threads()) == {1}
            assert set(np.geterr().values()) == {"ignore"}
            with numpy_as_torch():
                pass
            assert set(blas_threads()) == {1}
            assert set(np.geterr().values()) == {"ignore"}
            if error is not None:
                raise error
        assert np.geterr() == errors
        assert blas_threads() == threads


OVERLAPPING = """
from threading import Event, Thread
from threadpoolctl import ThreadpoolController
from klrl.policy.arrays import numpy_as_torch

def threads():
    return [pool["num_threads"] for pool in ThreadpoolController().select(user_api="blas").info()]

def stay():
    with numpy_as_torch():
        inside.set()
        leave.wait()

inside, leave, before, other = Event(), Event(), threads(), Thread(target=stay)
with numpy_as_torch():
    other.start()
    inside.wait()
    assert set(threads()) == {1}, threads()
leave.set()
other.join()
assert threads() == before, (threads(), before)
"""


def test_blocks_that_overlap_in_threads_leave_the_number_of_threads_as_it_was():
    subprocess.run([sys.executable, "-c", OVERLAPPING], check=True)
