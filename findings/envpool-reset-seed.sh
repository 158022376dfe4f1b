#!/usr/bin/env bash
# Guess: EnvPool's Gymnasium interface takes reset(seed=...) as every gymnasium.Env does, or raises that it cannot.
# What happens: reset accepts the argument and ignores it. Only the seed given to envpool.make counts: two pools with the
# same seed there begin alike although they are reset with different seeds, and the same pool reset twice with the same
# seed begins differently.
# Why it matters: a training loop that seeds its environments by reset, as Gymnasium documents, believes that its runs
# can be repeated or are independent, and neither holds.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check envpool==1.2.5 gymnasium==1.4.0 numpy==2.4.6 2>pip.log \
  || { cat pip.log; exit 1; }
cat > case.py <<'PY'
import importlib.metadata

import envpool
import numpy as np


def pool():
    return envpool.make("CartPole-v1", env_type="gymnasium", num_envs=2, seed=0)


print("envpool", importlib.metadata.version("envpool"))
first, other, again = pool(), pool(), pool()
five, six = first.reset(seed=5)[0], other.reset(seed=6)[0]
once, twice = again.reset(seed=5)[0], again.reset(seed=5)[0]
print("two pools, reset(seed=5) and reset(seed=6): equal states", np.array_equal(five, six))
print("one pool, reset(seed=5) twice: equal states", np.array_equal(once, twice))
assert np.array_equal(five, six) and not np.array_equal(once, twice)
PY
venv/bin/python -W ignore case.py 2>/dev/null
