#!/usr/bin/env bash
# Guess: metadata["autoreset_mode"] of a vector environment says how that environment resets, whatever else the program has
# made before.
# What happens: ale-py's vector environment writes its mode into the dict that gymnasium.vector.VectorEnv holds for all its
# subclasses. A second one with another mode changes what the first one says of itself, and a vector environment of any other
# class that states no mode says the one that was made last.
# Why it matters: Gymnasium's wrappers and training loops take from this entry which steps are resets. Here the statistics of
# one environment in next-step mode count one step more per episode after an evaluation environment was made in same-step mode.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check ale-py==0.12.1 gymnasium==1.4.0 numpy==2.4.6 \
  opencv-python-headless==5.0.0.93 2>pip.log || { cat pip.log; exit 1; }
cat > case.py <<'PY'
import ale_py
import gymnasium as gym
import numpy as np
from ale_py.vector_env import AtariVectorEnv
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics


class Silent(VectorEnv):
    """States no mode."""


def made(mode):
    return AtariVectorEnv("pong", 1, autoreset_mode=mode, max_num_frames_per_episode=80)


def second_length(envs):
    """Return the length of the second episode by Gymnasium's statistics."""
    envs = RecordEpisodeStatistics(envs)
    envs.reset(seed=0)
    lengths = []
    while len(lengths) < 2:
        *_, terminated, truncated, info = envs.step(np.zeros(1, np.int64))
        if terminated[0] or truncated[0]:
            lengths.append(int(info["episode"]["l"][0]))
    return lengths[1]


print("ale-py", ale_py.__version__, "gymnasium", gym.__version__)
assert "autoreset_mode" not in Silent().metadata
ordinary = SyncVectorEnv([lambda: gym.make("CartPole-v1")])
training = made(AutoresetMode.NEXT_STEP)
before, silent, length = training.metadata["autoreset_mode"], Silent().metadata["autoreset_mode"], second_length(training)
evaluation = made(AutoresetMode.SAME_STEP)
after, other, longer = training.metadata["autoreset_mode"], Silent().metadata["autoreset_mode"], second_length(training)
print(f"the first says {before.value}, once a second is made {after.value}; resets in fact by {training.autoreset_mode.value}")
print(f"one that states no mode says {silent.value}, then {other.value}")
print(f"its second episode takes {length} steps, then {longer}")
assert before == silent == training.autoreset_mode == AutoresetMode.NEXT_STEP and after == other == AutoresetMode.SAME_STEP
assert longer == length + 1, (length, longer)
assert ordinary.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP and training.metadata is VectorEnv.metadata
PY
venv/bin/python case.py 2>/dev/null
