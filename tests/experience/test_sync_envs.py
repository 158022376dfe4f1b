"""klrl's own step of environments in this process is Gymnasium's in SAME_STEP mode."""

from functools import partial

import numpy as np
import pytest
from environments import Sampling
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from klrl.experience.infos import SyncEnvs

BOX = Box(-1.0, 1.0, (2, 3))
SPACES = [BOX, Box(0, 255, (3, 2, 2), np.uint8), Discrete(4, start=2), MultiBinary(3), Tuple([BOX, Discrete(2)])]
SPACES.append(Dict(x=BOX, more=Dict(n=MultiDiscrete([2, 3]))))
ACTIONS = [Discrete(3, start=-1), MultiDiscrete([2, 3]), MultiBinary(2), Box(-1.0, 1.0, (2,))]


def same(x, y):
    if isinstance(x, dict):
        return x.keys() == y.keys() and all(same(x[key], y[key]) for key in x)
    if isinstance(x, tuple):
        return len(x) == len(y) and all(map(same, x, y))
    return np.asarray(x).dtype == np.asarray(y).dtype and np.array_equal(x, y)


@pytest.mark.parametrize("ending", ["truncated", "terminated", "both"])
@pytest.mark.parametrize("actions", ACTIONS, ids=str)
@pytest.mark.parametrize("space", SPACES, ids=str)
def test_every_answer_is_that_of_gymnasium(space, actions, ending):
    makes = [partial(Sampling, space, actions, length=length, ending=ending) for length in (1, 3, 4)]
    ours, theirs = (cls(makes, copy=False, autoreset_mode=AutoresetMode.SAME_STEP) for cls in (SyncEnvs, SyncVectorEnv))
    assert same(ours.reset(seed=[1, 2, 3])[0], theirs.reset(seed=[1, 2, 3])[0])
    ours.action_space.seed(0)
    for _ in range(9):
        action = ours.action_space.sample()
        (*answer, infos), (*expected, stacked) = ours.step(action), theirs.step(action)
        assert all(map(same, answer, expected))
        for i in np.flatnonzero(answer[2] | answer[3]):
            assert same(infos.final_observation(i), stacked["final_obs"][i])
