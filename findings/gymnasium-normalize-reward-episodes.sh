#!/usr/bin/env bash
# Guess: NormalizeReward divides by the standard deviation of the discounted return, counted from the start of each episode.
# What happens: reset() is not seen, and the running return is multiplied by 1 - terminated before the last reward is added,
# not after. So a terminated episode's last reward runs on into the next one, and after a truncation the whole return does.
# With a reward of 1 in the last of 10 steps, the right scale is 0.3. After a thousand episodes the wrapper's is 0.04 where
# they terminate and above 0.5 where they are truncated. The vector wrapper does the same in NEXT_STEP mode (the default) and
# is right in SAME_STEP mode.
# Why it matters: rewards are multiplied by 25 where 3.3 was meant, and the factor depends on how episodes end and on the
# autoreset mode. Step sizes, entropy bonuses and clipping ranges tuned with one do not hold with the other.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check gymnasium==1.4.0 numpy==2.4.6 2>pip.log || { cat pip.log; exit 1; }
cat > case.py <<'PY'
import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import NormalizeReward
from gymnasium.wrappers.vector import NormalizeReward as VectorNormalizeReward

LENGTH, EPISODES = 10, 1_000


class Goal(gym.Env):
    """Ten steps; the last one gives a reward of 1."""

    observation_space = gym.spaces.Box(0.0, 1.0, (1,))
    action_space = gym.spaces.Discrete(2)

    def __init__(self, end):
        self.end = end

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.steps += 1
        last = self.steps == LENGTH
        return np.zeros(1, np.float32), float(last), last and self.end == "terminated", last and self.end == "truncated", {}


def single(end):
    env = NormalizeReward(Goal(end))
    for _ in range(EPISODES):
        env.reset()
        for _ in range(LENGTH):
            env.step(0)
    return np.sqrt(env.return_rms.var)


def vector(end, mode):
    envs = VectorNormalizeReward(SyncVectorEnv([lambda: Goal(end)], autoreset_mode=mode))
    envs.reset()
    for _ in range(EPISODES * (LENGTH + (mode == AutoresetMode.NEXT_STEP))):
        envs.step(np.zeros(1, np.int64))
    return np.sqrt(envs.return_rms.var)


print("gymnasium", gym.__version__)
right = np.std([0.0] * (LENGTH - 1) + [1.0])  # of the returns so far: 0 until the goal, 1 at it
print(f"standard deviation of the returns within episodes: {right:.3f}")
for end in "terminated", "truncated":
    found = single(end), vector(end, AutoresetMode.NEXT_STEP), vector(end, AutoresetMode.SAME_STEP)
    print("{}: single {:.3f}, vector in next-step mode {:.3f}, in same-step mode {:.3f}".format(end, *found))
    for scale in found[:2]:
        assert scale < 0.05 if end == "terminated" else scale > 0.5, found
    assert abs(found[2] - right) < 0.001, found
PY
venv/bin/python case.py
