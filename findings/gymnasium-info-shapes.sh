#!/usr/bin/env bash
# Guess: Gymnasium promises nothing about the contents of `info`, so a vector environment keeps whatever its
# environments put there; where two arrays under one key differ in length, as object arrays or one entry each.
# What happens: SyncVectorEnv makes one array of the first environment's shape for every key and writes the others into
# it. Two environments that report different numbers of contacts end the run with a ValueError about broadcasting that
# names neither the key nor the environment. Both environments pass Gymnasium's own check_env.
# Why it matters: a simulator that reports contacts, hits or visible objects trains alone and fails in a vector, perhaps
# hours after the start, in the first step in which two counts differ.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check gymnasium==1.4.0 numpy==2.4.6 2>pip.log || { cat pip.log; exit 1; }
cat > case.py <<'PY'
import sys
import warnings

import gymnasium as gym
import numpy as np
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import SyncVectorEnv


class Contacts(gym.Env):
    """As many contact forces as there are contacts."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, contacts=1):
        self.contacts = contacts

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {"forces": np.zeros(self.contacts)}

    def step(self, action):
        return np.zeros(1, np.float32), 0.0, False, False, {"forces": np.zeros(self.contacts)}


warnings.simplefilter("ignore")
print("gymnasium", gym.__version__)
for contacts in (1, 2):
    check_env(Contacts(contacts), skip_render_check=True)
print("check_env accepts both environments")
try:
    SyncVectorEnv([lambda: Contacts(1), lambda: Contacts(2)]).reset(seed=0)
except ValueError as error:
    print("SyncVectorEnv.reset:", error)
    sys.exit("forces" in str(error))
sys.exit("SyncVectorEnv.reset: no error")
PY
venv/bin/python case.py
