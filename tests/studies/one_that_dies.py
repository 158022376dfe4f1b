"""An environment that kills its process once, on rank 1, after a checkpoint has arrived in the folder of the test."""

import os
import signal
from pathlib import Path

import gymnasium as gym
from torture.ranked import Walk

FOLDER = "KLRL_ONE_THAT_DIES"
"""Variable with that folder."""


class OneThatDies(Walk):
    """Elsewhere, and afterwards, it is a walk."""

    def step(self, action):
        if os.environ.get("RANK") == "1":
            folder = Path(os.environ[FOLDER])
            if not (folder / "died").exists() and any(folder.rglob("checkpoints/0*/MANIFEST.json")):
                (folder / "died").touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return super().step(action)


gym.register("OneThatDies-v0", OneThatDies)
