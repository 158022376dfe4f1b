#!/usr/bin/env bash
# Guess: reset(seed=...) and reset() of an Atari game cost about the same: a seed sets the state of a generator.
# What happens: every seeded reset loads the ROM anew, because the emulator takes its seed only when a game is loaded. It
# costs more than five times as much as a reset without a seed (25 times where this was written).
# Why it matters: a training that gives every episode a seed of its own, so that each can be repeated, spends more time in
# resets of short games than in playing them. The first episode's seed determines the later ones as well.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check ale-py==0.12.1 gymnasium==1.4.0 numpy==2.4.6 2>pip.log \
  || { cat pip.log; exit 1; }
cat > case.py <<'PY'
import time

import ale_py
import gymnasium as gym
import numpy as np

gym.register_envs(ale_py)
env = gym.make("ALE/Pong-v5")
env.reset(seed=0)


def cost(**seed):
    start = time.process_time()
    env.reset(**seed)
    return time.process_time() - start


print("ale-py", ale_py.__version__)
pairs = [(cost(seed=i), cost()) for i in range(10)]
ratio = float(np.median([seeded / plain for seeded, plain in pairs]))
print(f"a seeded reset costs {'more' if ratio > 5.0 else 'less'} than five times a reset without a seed")
assert ratio > 5.0, ratio
PY
venv/bin/python case.py 2>/dev/null
