"""What an environment gives, where it enters; the faults themselves are those of tests/test_inputs.py."""

import numpy as np
import pytest
from environments import Counting, encoding_of
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete, Tuple

from klrl.experience import BadStep, Collector, make_vector_env
from klrl.experience.steps import CheckedSteps
from klrl.run.seeding import environment_seeds


class Reusing(Counting):
    """Writes every observation where the last one was, all environments in the same array."""

    shared = np.zeros(4, np.float32)

    def _observe(self, action):
        self.shared[:] = super()._observe(action)
        return self.shared


class Given(Counting):
    """Observes what it is told to."""

    def __init__(self, space, observation):
        super().__init__()
        self.observation_space, self.given = space, observation

    def _observe(self, action):
        return self.given


def checked(env, index=0):
    return CheckedSteps(lambda: env, index, (env.observation_space, env.action_space))


def batch_of(cls):
    """Six steps of three environments, whose episodes end by truncation after 3 steps."""
    indices = iter([0, 0, 1, 2])  # the first is looked at only
    envs = make_vector_env(lambda: cls(next(indices)), 3)
    collector = Collector(envs, environment_seeds(0, 0), encoding_of(envs))
    actions = np.zeros(3, np.int64)
    return collector.collect(lambda _: (actions, actions, _Nothing()), 6)


class _Nothing:
    """Stands for the distributions, which are only stacked."""


def test_an_environment_that_writes_over_its_observations_is_collected_as_one_that_does_not(monkeypatch):
    monkeypatch.setattr("klrl.experience.rollout.stack_records", lambda records: records[0])
    batch, expected = batch_of(Reusing), batch_of(Counting)
    assert len(expected.final_observations) == 6
    assert expected.final_observations[:, 2].tolist() == [3.0] * 6
    for name in ("observations", "final_observations", "next_observations"):
        np.testing.assert_array_equal(getattr(batch, name), getattr(expected, name))


@pytest.mark.parametrize(
    ("space", "observation"),
    [
        (Box(-1.0, 1.0, (2,)), np.ones(2, np.float32)),
        (Box(-1.0, 1.0, (2,)), np.ones(2, np.int8)),
        (Box(-1.0, 1.0, (2,)), [0.5, 1]),
        (Box(-1.0, 1.0, ()), 0.5),
        (Discrete(3, start=-1), 1),
        (Discrete(3, start=-1), np.array(-1)),
        (Discrete(3), np.uint8(2)),
        (MultiDiscrete([2, 3], start=[5, -1]), np.array([6, 1], np.int8)),
        (Dict(a=Discrete(2), b=Tuple([Box(0.0, 1.0, (1,))])), {"a": 1, "b": [np.ones(1)], "more": "text"}),
    ],
)
def test_what_a_space_can_store_is_let_through(space, observation):
    seen, _ = checked(Given(space, observation)).reset(seed=0)
    if isinstance(observation, dict):
        assert seen == {"a": 1, "b": (np.ones(1),)}
    else:
        np.testing.assert_array_equal(seen, observation)
    assert not any(np.shares_memory(seen, x) for x in [observation] if isinstance(x, np.ndarray))


def test_the_message_names_environment_step_value_and_what_is_allowed():
    env = checked(Given(Box(-1.0, 1.0, (2,)), np.zeros(3)), index=5)
    with pytest.raises(BadStep) as error:
        env.reset()
    line = "environment 5, reset: observation has shape (3,); allowed: (2,), as in Box(-1.0, 1.0, (2,), float32)"
    assert str(error.value) == line


@pytest.mark.parametrize("mistake", [ValueError("of its own"), TypeError("of its own"), RuntimeError("of its own")])
def test_an_environments_own_error_is_not_put_in_other_words(mistake):
    class Raising(Counting):
        def step(self, action):
            raise mistake

    env = checked(Raising())
    env.reset()
    with pytest.raises(type(mistake), match=r"^of its own$") as error:
        env.step(0)
    assert error.value is mistake
