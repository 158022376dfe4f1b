#!/usr/bin/env bash
# Guess: PPO.load gives the saved agent and leaves the random generators of the program alone, as reading a file does.
# What happens: an agent that was made with seed=... carries that seed, and loading it seeds Python's random, NumPy's and
# PyTorch's global generators with it. What the program draws after each load is the same, whatever seed it has set itself.
# The policy's own draws are, too: ten "independent" evaluations of a stochastic policy are one, ten times.
# Why it matters: a loop that loads a checkpoint per evaluation, league opponent or worker gets repeated noise, opponents or
# minibatches and a variance of 0, and nothing says so. Seed after loading, not before.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check stable-baselines3==2.9.2 gymnasium==1.4.0 torch==2.13.0 \
  numpy==2.4.6 2>pip.log || { cat pip.log; exit 1; }
cat > case.py <<'PY'
import random
from importlib.metadata import version

import numpy as np
import torch
from stable_baselines3 import DQN, PPO

torch.set_num_threads(1)


def after_loading(kind, name, seed):
    """Seed everything, load, and return what is drawn then: by the three generators and by the policy."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    model = kind.load(name, device="cpu")
    drawn = random.random(), np.random.rand(), torch.rand(()).item()
    return drawn, [int(model.predict(np.zeros(4, np.float32))[0]) for _ in range(20)]


print("stable-baselines3", version("stable-baselines3"))
for kind in PPO, DQN:
    for seed, expected in (7, 1), (None, 3):
        kind("MlpPolicy", "CartPole-v1", seed=seed, device="cpu").save("agent")
        found = [after_loading(kind, "agent", own) for own in (1, 2, 3)]
        draws, actions = ({repr(entry[i]) for entry in found} for i in (0, 1))
        print(f"{kind.__name__}(seed={seed}): {len(draws)} different draws after three loads under seeds 1, 2 and 3")
        assert len(draws) == expected, found
        if kind is PPO:
            assert len(actions) == expected, found
            print(f"  {len(actions)} different sequences of 20 sampled actions")
PY
venv/bin/python case.py
