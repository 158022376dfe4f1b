"""Rollouts: every row of a batch, in every autoreset mode, against closed forms of what the environments do."""

from functools import partial
from typing import ClassVar

import gymnasium as gym
import numpy as np
import pytest
import torch
from environments import Broken, Counting, encoding_of
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

from klrl.experience import Collector
from klrl.policy.distributions import Categorical, stack_records
from klrl.run.seeding import environment_seeds

LENGTHS = (1, 3, 4)
BATCHES = (4, 7, 1, 12)
ROWS = sum(BATCHES)
SAME, NEXT = AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP

every_vector_env = pytest.mark.parametrize(
    ("maker", "mode"), [(SyncVectorEnv, SAME), (SyncVectorEnv, NEXT), (AsyncVectorEnv, SAME), (AsyncVectorEnv, NEXT)]
)
every_mode = pytest.mark.parametrize("mode", [SAME, NEXT])
every_ending = pytest.mark.parametrize("ending", ["truncated", "terminated", "both"])


def act(observation):
    """The policy's action depends on the step, the environment gets another one, the logits are the observation."""
    action = observation[:, 2].long() % 4
    return action, 3 - action.numpy(), Categorical(observation)


def value(observation):
    """A different number for every environment, episode and step."""
    return observation[..., 0] * 10_000 + observation[..., 1] * 100 + observation[..., 2]


def collect(maker, mode, ending, lengths=LENGTHS, batches=BATCHES):
    makers = [partial(Counting, i, length, ending) for i, length in enumerate(lengths)]
    envs = maker(makers, autoreset_mode=mode)
    try:
        collector = Collector(envs, environment_seeds(0), encoding_of(envs))
        return [collector.collect(act, n) for n in batches], collector
    finally:
        envs.close()


class Expected:
    """Rows ``[T, N]`` by arithmetic: a period is an episode, and a dummy step after it in NEXT_STEP mode."""

    def __init__(self, mode, lengths=LENGTHS, n_rows=ROWS):
        length = np.array(lengths)
        t, env = np.indices((n_rows, len(lengths)))
        self.env, (self.episode, self.step) = env, np.divmod(t, length + (mode is NEXT))
        self.valid = self.step < length
        self.ended = self.step == length - 1
        self.next_value = env * 10_000 + self.episode * 100 + self.step + 1


def column(batches, name):
    return np.concatenate([getattr(batch, name) for batch in batches])


@every_ending
@every_vector_env
def test_every_row_holds_what_the_environment_did_in_that_step(maker, mode, ending):
    batches, _ = collect(maker, mode, ending)
    expected = Expected(mode)
    observations = column(batches, "observations")
    np.testing.assert_array_equal(observations[..., 0], expected.env)
    np.testing.assert_array_equal(observations[..., 1], expected.episode)
    np.testing.assert_array_equal(observations[..., 2], expected.step)
    np.testing.assert_array_equal(column(batches, "valid"), expected.valid)
    np.testing.assert_array_equal(column(batches, "ended"), expected.ended)
    np.testing.assert_array_equal(column(batches, "truncated"), expected.ended & (ending == "truncated"))
    np.testing.assert_array_equal(column(batches, "rewards"), expected.step * expected.valid)
    np.testing.assert_array_equal(column(batches, "actions"), expected.step % 4)
    inside = expected.step[1:] > 0
    np.testing.assert_array_equal(observations[1:, :, 3][inside], 3 - (expected.step[:-1] % 4)[inside])
    behaviour = stack_records([batch.behaviour[t] for batch in batches for t in range(len(batch.rewards))])
    np.testing.assert_array_equal(behaviour.logits, observations)


@every_vector_env
def test_the_next_value_is_that_of_the_state_the_step_led_to_also_at_a_truncation(maker, mode):
    batches, _ = collect(maker, mode, "truncated")
    result = np.concatenate([b.next_values(value(b.observations), value) for b in batches])
    expected = Expected(mode)
    np.testing.assert_array_equal(result[expected.valid], expected.next_value[expected.valid])


@every_mode
@pytest.mark.parametrize("ending", ["terminated", "both"])
def test_a_termination_leaves_no_final_observation_to_bootstrap_from(mode, ending):
    batches, _ = collect(SyncVectorEnv, mode, ending)
    assert all(batch.final_observations.shape == (0, 4) for batch in batches)
    result = np.concatenate([b.next_values(value(b.observations), value) for b in batches])
    expected = Expected(mode)
    going_on = expected.valid & ~expected.ended
    np.testing.assert_array_equal(result[going_on], expected.next_value[going_on])


@every_mode
def test_final_observations_stand_in_the_order_of_the_truncated_rows(mode):
    batches, _ = collect(SyncVectorEnv, mode, "truncated")
    expected = Expected(mode)
    np.testing.assert_array_equal(
        value(torch.cat([b.final_observations for b in batches])), expected.next_value[expected.ended]
    )


@every_vector_env
def test_episodes_are_reported_once_with_return_length_environment_and_time(maker, mode):
    batches, _ = collect(maker, mode, "truncated")
    expected = Expected(mode)
    taken = expected.valid.sum(axis=1).cumsum()
    rows = [(taken[t], sum(range(LENGTHS[i])), LENGTHS[i], i) for t, i in np.argwhere(expected.ended)]
    found = [(e.total_timesteps, e.episode_return, e.length, e.env_index) for b in batches for e in b.episodes]
    assert found == rows


@every_mode
def test_only_valid_steps_are_counted(mode):
    batches, collector = collect(SyncVectorEnv, mode, "terminated")
    n = int(Expected(mode).valid.sum())
    assert collector.total_timesteps == sum(b.n_samples for b in batches) == n
    assert (n == ROWS * len(LENGTHS)) == (mode is SAME)


@every_mode
def test_samples_are_the_valid_rows_of_tensors_and_records(mode):
    (batch,), _ = collect(SyncVectorEnv, mode, "truncated", batches=(9,))
    valid = batch.valid.numpy()
    np.testing.assert_array_equal(batch.samples(batch.observations), batch.observations.numpy()[valid])
    np.testing.assert_array_equal(batch.samples(batch.behaviour).logits, batch.observations.numpy()[valid])


@every_mode
@pytest.mark.parametrize("copy", [True, False])
def test_a_batch_is_not_changed_by_the_next_one_even_if_the_environment_uses_its_arrays_again(mode, copy):
    envs = SyncVectorEnv([Counting, Counting], autoreset_mode=mode, copy=copy)
    collector = Collector(envs, environment_seeds(0), encoding_of(envs))
    batch = collector.collect(act, 5)
    names = ("observations", "next_observations", "final_observations")
    before = {name: getattr(batch, name).clone() for name in names}
    collector.collect(act, 5)
    assert {name: getattr(batch, name).tolist() for name in names} == {n: x.tolist() for n, x in before.items()}
    assert batch.observations[:, 0, 2].tolist() == ([0, 1, 2, 0, 1] if mode is SAME else [0, 1, 2, 3, 0])


class Reusing(VectorEnv):
    """A VectorEnv that hands out the same arrays at every step, and says so nowhere."""

    metadata: ClassVar[dict] = {"autoreset_mode": SAME}
    num_envs = 1
    single_observation_space = gym.spaces.Box(-10.0, 10.0, (1,))
    single_action_space = gym.spaces.Discrete(2)

    def __init__(self):
        self.arrays = (np.zeros((1, 1)), np.zeros(1), np.zeros(1, dtype=bool), np.zeros(1, dtype=bool))

    def reset(self, *, seed=None, options=None):
        return self.arrays[0], {}

    def step(self, actions):
        self.arrays[1][:] += 1
        self.arrays[2][:] = self.arrays[1] == 3
        return *self.arrays, {}


def test_a_vector_env_may_use_its_own_arrays_again():
    batch = Collector(Reusing(), environment_seeds(0), encoding_of(Reusing())).collect(
        lambda o: act(o.expand(-1, 4)), 4
    )
    assert batch.rewards.flatten().tolist() == [1.0, 2.0, 3.0, 4.0]
    assert batch.terminated.flatten().tolist() == [False, False, True, False]


@every_mode
@pytest.mark.parametrize("what", ["observation", "reward", "final observation"])
def test_a_number_that_is_not_finite_is_refused_with_the_environment_it_came_from(mode, what):
    envs = SyncVectorEnv([Counting, partial(Broken, what, 1)], autoreset_mode=mode)
    collector = Collector(envs, environment_seeds(0), encoding_of(envs))
    with pytest.raises(FloatingPointError, match=rf"{what.split()[-1]} of environment 1.* is nan .*; allowed: "):
        collector.collect(act, 5)
