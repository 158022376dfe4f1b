#!/usr/bin/env bash
# Guess: the wrappers listed in an EnvSpec's additional_wrappers are around the environment that gym.make makes of it,
# whatever the registered entry point returns.
# What happens: gym.make takes the wrappers that the entry point has put around its environment for the first ones of that
# list. With an entry point of one wrapper, a spec that lists one of the user's is refused as "different from the saved
# EnvSpec"; with an entry point of two, the user's one is dropped without a word.
# Why it matters: a training script that adds its reward or observation wrapper by the spec (the only way that travels to
# worker processes and into saved files) trains in the plain environment, and nothing says so.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check gymnasium==1.4.0 numpy==2.4.6 pygame-ce==2.5.6 2>pip.log \
  || { cat pip.log; exit 1; }
cat > case.py <<'PY'
import copy

import gymnasium as gym
import numpy as np
from gymnasium.envs.classic_control import PendulumEnv
from gymnasium.envs.registration import WrapperSpec
from gymnasium.wrappers import ClipReward, DtypeObservation, RescaleObservation


def plain():
    return PendulumEnv()


def inside_one():
    return DtypeObservation(PendulumEnv(), np.float32)


def inside_two():
    return RescaleObservation(inside_one(), np.float32(-1.0), np.float32(1.0))


def made(entry_point):
    gym.register(f"{entry_point.__name__}-v0", entry_point=entry_point)
    spec = copy.deepcopy(gym.spec(f"{entry_point.__name__}-v0"))
    bounds = {"min_reward": -1.0, "max_reward": 1.0}
    spec.additional_wrappers = (WrapperSpec("ClipReward", "gymnasium.wrappers:ClipReward", bounds),)
    try:
        env = gym.make(spec)
    except ValueError:
        return "refused"
    return "clips rewards" if isinstance(env, ClipReward) else "does not clip rewards"


print("gymnasium", gym.__version__)
found = [made(entry_point) for entry_point in (plain, inside_one, inside_two)]
print("a ClipReward in the spec, entry points with 0, 1 and 2 wrappers of their own:", ", ".join(found))
assert found == ["clips rewards", "refused", "does not clip rewards"]
PY
venv/bin/python case.py
