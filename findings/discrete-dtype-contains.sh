#!/usr/bin/env bash
# Guess: Discrete(4, dtype=np.int8) contains the number 1 as a Python int, as np.int8 and as np.int64, which is what an
# argmax over logits or a vector environment's action array gives.
# What happens: it contains the Python int and np.int8, not np.int64 (that cannot be cast safely), and not a 0-d int64
# array. And batch_space gives the vector of such spaces as int8 again, so the two sides disagree on what an action is.
# Why it matters: an environment that checks its actions (PassiveEnvChecker, an assertion of its own) refuses what most
# libraries hand it; the action has to be cast to the space's dtype first.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check gymnasium==1.4.0 numpy==2.4.6 2>pip.log || { cat pip.log; exit 1; }
cat > case.py <<'PY'
import gymnasium as gym
import numpy as np

space = gym.spaces.Discrete(4, dtype=np.int8)
argmax = np.argmax(np.array([0.0, 1.0, 0.5, 0.2]))
said = {
    "int": space.contains(1),
    "np.int8": space.contains(np.int8(1)),
    f"argmax ({type(argmax).__name__})": space.contains(argmax),
    "0-d int64 array": space.contains(np.array(1)),
}
print("gymnasium", gym.__version__, "numpy", np.__version__)
for name, answer in said.items():
    print(f"Discrete(4, dtype=int8) contains 1 as {name}: {answer}")
print("batch_space:", gym.vector.utils.batch_space(space, 3).dtype)
assert list(said.values()) == [True, True, False, False]
assert gym.vector.utils.batch_space(space, 3).dtype == np.int8
PY
venv/bin/python case.py
