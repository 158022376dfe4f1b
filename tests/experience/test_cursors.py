"""Where environments are, in arrays and back."""

import numpy as np
import torch

from klrl.experience.cursors import EnvCursor

MIDST = EnvCursor(
    env_seeds=np.array([11, 22]),
    episodes=np.array([3, 0]),
    lengths=np.array([3, 1]),
    returns=np.array([1.5, -2.0]),
    actions=(np.arange(4.0).reshape(1, 2, 2), np.arange(12.0).reshape(3, 2, 2)),
    observation=torch.randn(2, 5),
)


def test_a_place_has_the_actions_since_its_reset_and_no_others():
    first, second = MIDST.episode_cursors()
    assert (first.env_seed, first.episode, second.env_seed, second.episode) == (11, 3, 22, 0)
    np.testing.assert_array_equal(first.actions, [[0.0, 1.0], [4.0, 5.0], [8.0, 9.0]])
    np.testing.assert_array_equal(second.actions, [[10.0, 11.0]])


def test_what_is_saved_is_what_comes_back_and_no_older_actions_are_kept():
    tensors = MIDST.tensors()
    again = EnvCursor.of(tensors, (2,), (5,))
    assert tensors["actions"].shape == (3, 2, 2)
    for one, other in zip(MIDST.episode_cursors(), again.episode_cursors(), strict=True):
        assert (one.env_seed, one.episode) == (other.env_seed, other.episode)
        np.testing.assert_array_equal(one.actions, other.actions)
    np.testing.assert_array_equal(MIDST.returns, again.returns)
    assert torch.equal(MIDST.observation, again.observation)


def test_the_beginning_has_no_actions_and_no_observation():
    beginning = EnvCursor.beginning([5, 6])
    again = EnvCursor.of(beginning.tensors(), (2,), (5,))
    assert again.observation is None
    assert [(p.env_seed, p.episode, len(p.actions)) for p in again.episode_cursors()] == [(5, 0, 0), (6, 0, 0)]
