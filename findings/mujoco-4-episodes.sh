#!/usr/bin/env bash
# Guess: with the same Gymnasium, task id, seed and actions, a new MuJoCo release changes the last digits of a trajectory,
# not when an episode ends; the version in the id (Ant-v5) names the task.
# What happens: from MuJoCo 3.17.0 to 4.0.0 the first state of Ant-v5 is the same to the bit, and then its episode of
# random actions ends after 45 steps instead of 37, with another return; HalfCheetah-v5's return changes from -242.5 to
# -265.7 over 1,000 steps. Hopper-v5 is the same to six digits.
# Why it matters: a saved policy, a published return or a stored data set belongs to a MuJoCo release as much as to a task
# id. Compare numbers only where both are known, and write down both.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
cat > case.py <<'PY'
import json
import warnings

import gymnasium as gym
import mujoco

warnings.simplefilter("ignore")
said = {"mujoco": mujoco.__version__}
for name in ("Ant-v5", "HalfCheetah-v5", "Hopper-v5"):
    env = gym.make(name)
    first, _ = env.reset(seed=0)
    env.action_space.seed(0)
    total, steps, ended = 0.0, 0, False
    while not ended:
        _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
        total, steps, ended = total + float(reward), steps + 1, terminated or truncated
    said[name] = {"first": float(first.sum()), "steps": steps, "return": round(total, 3)}
print(json.dumps(said))
PY
for version in 3.17.0 4.0.0; do
  python3 -m venv "venv-$version"
  "venv-$version/bin/pip" install --quiet --disable-pip-version-check gymnasium==1.4.0 numpy==2.4.6 imageio==2.37.3 \
    packaging "mujoco==$version" 2>pip.log || { cat pip.log; exit 1; }
  "venv-$version/bin/python" case.py 2>/dev/null | tee "$version.json"
done
python3 - <<'PY'
import json

old, new = (json.load(open(f"{version}.json")) for version in ("3.17.0", "4.0.0"))
assert old["Ant-v5"]["first"] == new["Ant-v5"]["first"], "the first states differ"
assert (old["Ant-v5"]["steps"], new["Ant-v5"]["steps"]) == (37, 45), "Ant's episodes end elsewhere"
assert abs(old["HalfCheetah-v5"]["return"] - new["HalfCheetah-v5"]["return"]) > 10.0, "HalfCheetah is the same now"
assert old["Hopper-v5"] == new["Hopper-v5"], "Hopper differs, too"
PY
