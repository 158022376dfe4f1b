#!/usr/bin/env bash
# Guess: a TimeLimit of 1,000 around an environment that ends after 200 steps changes nothing that can be seen, and the
# spec, which can make the environment again, says 200 or holds both limits.
# What happens: episodes end after 200 steps, spec.max_episode_steps says 1000, and the environment that gym.make makes
# of that spec runs for 1,000 steps: the inner limit is lost.
# Why it matters: whoever saves env.spec beside a trained agent (to evaluate or to go on later) gets another task back,
# with returns five times as large and nothing that says why.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check gymnasium==1.4.0 numpy==2.4.6 pygame-ce==2.5.6 2>pip.log \
  || { cat pip.log; exit 1; }
cat > case.py <<'PY'
import gymnasium as gym
from gymnasium.wrappers import TimeLimit


def length(env):
    env.reset(seed=0)
    for steps in range(1, 10_000):
        *_, terminated, truncated, _ = env.step(env.action_space.sample())
        if terminated or truncated:
            return steps


print("gymnasium", gym.__version__)
env = TimeLimit(gym.make("Pendulum-v1"), 1000)
seen = length(env), env.spec.max_episode_steps, length(gym.make(env.spec))
print("episodes of {} steps; the spec says {}; made again from the spec, episodes of {} steps".format(*seen))
assert seen == (200, 1000, 1000)
PY
venv/bin/python case.py
