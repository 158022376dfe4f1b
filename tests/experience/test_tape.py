"""The actions of current episodes: as many as are asked for, in little time and memory."""

import random

import numpy as np
import pytest

from klrl.experience.tape import Tape


@pytest.mark.parametrize("shape", [(3,), (2, 4)])
def test_the_last_rows_are_those_that_were_added_last(shape):
    g, tape, every = random.Random(0), Tape(), np.zeros((0, *shape))
    for i in range(300):
        new = np.random.default_rng(i).normal(size=(g.randrange(1, 9), *shape))
        keep = g.choice([0, 1, 5, len(every) + len(new), 40])
        every = np.concatenate([every, new])
        every = every[len(every) - keep :] if keep < len(every) else every
        tape.add(new, keep)
        np.testing.assert_array_equal(tape.actions, every)


def test_goes_on_from_saved_actions():
    tape = Tape(np.arange(6.0).reshape(3, 2))
    tape.add(np.array([[6.0, 7.0]]), 3)
    np.testing.assert_array_equal(tape.actions, np.arange(2.0, 8.0).reshape(3, 2))


def test_what_was_given_out_stays_as_it_is():
    tape, given = Tape(), []
    for i in range(200):
        tape.add(np.full((1, 2), i), keep=i % 50 + 1)
        given.append((tape.actions, tape.actions.copy()))
    for view, then in given:
        np.testing.assert_array_equal(view, then)


def test_a_row_is_copied_a_few_times_however_many_there_are():
    """Every row is once in the array it was added to, and in the copies that begin arrays of twice the size."""
    tape, arrays = Tape(), {}
    for i in range(10_000):
        tape.add(np.full((1, 1), i), keep=i + 1)
        arrays[id(tape._rows)] = tape._rows
    assert sum(map(len, arrays.values())) < 4 * 10_000
