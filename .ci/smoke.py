"""Smoke test of the installed wheel, run outside the checkout with a foreign top-level package ``agents``."""

import importlib.metadata
import sys
import tempfile

import numpy as np

import agents
import klrl
from klrl.agents import PPO, TRPO

assert klrl.PPO is PPO
assert agents.OWNER == "openai-agents", "klrl must not install a top-level package called agents"
assert "site-packages" in klrl.__file__, klrl.__file__
top = {file.parts[0] for file in importlib.metadata.files("klrl") or () if ".dist-info" not in file.parts[0]}
assert top - {"..", "__pycache__"} == {"klrl"}, top
assert any(file.name == "py.typed" for file in importlib.metadata.files("klrl") or ())

for cls in (PPO, TRPO):
    agent = cls("CartPole-v1", seed=0).learn(2048)
    with tempfile.TemporaryDirectory() as folder:
        again = cls.load(agent.save(f"{folder}/agent"))
    observation = np.zeros(4, dtype=np.float32)
    assert agent.predict(observation, deterministic=True)[0] == again.predict(observation, deterministic=True)[0]
assert agent.history[-1]["drift/kl"] <= agent.history[-1]["drift/kl_target"]
print("klrl", klrl.__version__, "on Python", sys.version.split()[0], "works outside the checkout")
