#!/usr/bin/env bash
# Guess: with episodes that end when a life is lost, reset() goes on with the game's next life and starts a new game only
# once the last life is gone, as the option is known from Baselines' EpisodicLifeEnv.
# What happens: Gymnasium's AtariPreprocessing(terminal_on_life_loss=True) and ale-py's vector environment with
# episodic_life=True start a new game each time: every episode of Breakout begins with 5 lives and a whole wall, and no agent
# ever sees 4. EnvPool with episodic_life=True goes through 5, 4, 3, 2, 1.
# Why it matters: the agent trains on the game's first life alone and is evaluated on all five, in states (a broken wall, a
# score of hundreds) that it has not seen. Results under "the same" preprocessing are not comparable between the libraries.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check ale-py==0.12.1 gymnasium==1.4.0 numpy==2.4.6 envpool==1.2.5 \
  opencv-python-headless==5.0.0.93 2>pip.log || { cat pip.log; exit 1; }
cat > case.py <<'PY'
import ale_py
import envpool
import gymnasium as gym
import numpy as np
from gymnasium.wrappers import AtariPreprocessing

EPISODES = 7
gym.register_envs(ale_py)


def wrapped():
    """Yield the lives at the start of each episode."""
    game = gym.make("ALE/Breakout-v5", frameskip=1, repeat_action_probability=0.0)
    env = AtariPreprocessing(game, terminal_on_life_loss=True)
    env.action_space.seed(0)
    for episode in range(EPISODES):
        env.reset(seed=None if episode else 0)
        yield env.unwrapped.ale.lives()
        ended = False
        while not ended:
            *_, terminated, truncated, _ = env.step(env.action_space.sample())
            ended = terminated or truncated


def vector(envs, **seed):
    """Yield the lives before the first step of each episode, of one environment in next-step mode."""
    rng = np.random.default_rng(0)
    _, info = envs.reset(**seed)
    for _ in range(EPISODES):
        yield int(info["lives"][0])
        ended = False
        while not ended:
            *_, terminated, truncated, after = envs.step(rng.integers(4, size=1))
            ended = terminated[0] or truncated[0]
        # The step that resets.
        *_, info = envs.step(rng.integers(4, size=1))


print("gymnasium", gym.__version__, "ale-py", ale_py.__version__, "envpool", envpool.__version__)
starts = {
    "gymnasium": list(wrapped()),
    "ale-py": list(vector(ale_py.vector_env.AtariVectorEnv("breakout", 1, episodic_life=True), seed=0)),
    "envpool": list(vector(envpool.make("Breakout-v5", "gymnasium", num_envs=1, seed=0, episodic_life=True))),
}
for name, lives in starts.items():
    print(f"{name}: episodes begin with", *lives, "lives")
assert starts["gymnasium"] == starts["ale-py"] == [5] * EPISODES and starts["envpool"] == [5, 4, 3, 2, 1, 5, 4]
PY
venv/bin/python case.py 2>/dev/null
