#!/usr/bin/env bash
# Guess: NormalizeObservation gives every coordinate variance 1 whatever its unit, which is what it is for.
# What happens: 1e-8 is added to the variance before the square root, an absolute number. CartPole in units of 1e-6 (a
# position of micrometres written in metres, say) leaves the wrapper with a standard deviation of 0.0002 to 0.003.
# Nothing warns, and a policy network sees next to nothing. Stable-Baselines3's VecNormalize has the same form.
# Why it matters: learning depends on the unit although the statistics are said to remove it; positions in metres of a
# microscope, currents in ampere or concentrations are all of that size.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check gymnasium==1.4.0 numpy==2.4.6 2>pip.log || { cat pip.log; exit 1; }
cat > case.py <<'PY'
import gymnasium as gym
import numpy as np


def spread(unit):
    """Standard deviation of each normalised coordinate, after the statistics have settled."""
    space = gym.spaces.Box(-np.inf, np.inf, (4,), np.float64)
    scaled = gym.wrappers.TransformObservation(gym.make("CartPole-v1"), lambda o: np.float64(o) * unit, space)
    env = gym.wrappers.NormalizeObservation(scaled)
    env.reset(seed=0)
    env.action_space.seed(0)
    seen = []
    for _ in range(3000):
        observation, _, terminated, truncated, _ = env.step(env.action_space.sample())
        seen.append(observation)
        if terminated or truncated:
            env.reset()
    return np.std(seen[1000:], axis=0)


print("gymnasium", gym.__version__)
plain, small = spread(1.0), spread(1e-6)
print("unit 1    standard deviations", plain.round(4))
print("unit 1e-6 standard deviations", small.round(6))
assert (plain > 0.8).all() and (plain < 1.2).all(), "the plain one is not normalised any more"
assert (small < 0.01).all(), "small units are normalised now"
PY
venv/bin/python case.py
