"""Trainings that one process makes, or several ranks together: ``torchrun ranks.py FOLDER CASE ...``."""

import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torture import ranked

from klrl.agents import NPG, PPO, TRPO, saving
from klrl.run import Callback, World

AGENTS = {"ppo": PPO, "trpo": TRPO, "npg": NPG}
SPACES = {
    "box": {"observed": "box", "acts": "box"},
    "discrete": {"observed": "box", "acts": "discrete"},
    "dict": {"observed": "dict", "acts": "discrete"},
    "masks": {"observed": "masks", "acts": "discrete"},
    "images": {"observed": "images", "acts": "discrete"},
}


class Stop(Callback):
    """Ends the training after so many updates, for the last rank alone."""

    def __init__(self, updates):
        self.updates = updates

    def on_update_end(self, agent, batch, metrics):
        world = World.current()
        return agent.n_updates < self.updates or world.rank < world.size - 1


class Saving(Callback):
    """Saves the agent after its second update."""

    first_rank_only = True

    def __init__(self, path):
        self.path = path

    def on_update_end(self, agent, batch, metrics):
        if agent.n_updates == 2:
            agent.save(self.path)


def case(word):
    """``ppo-box-sync``, ``ppo-box-async-n5``: what is trained, in what, how, with how many environments."""
    name, space, mode, *more = word.split("-")
    n = int(more[0][1:]) if more else 4
    cls = AGENTS[name]
    sizes = {"batch_size": 32, "n_epochs": 2} if name == "ppo" else {"batch_size": 32}
    if space == "masks":
        sizes["action_mask"] = "info"
    if space == "beta":
        sizes["action_distribution"] = "beta"
    config = cls.config_class(n_envs=n, n_steps=24, vectorization_mode=mode, info_keys=("score",), **sizes)
    if mode == "envpool":  # which has its own environments
        config = cls.config_class(n_envs=n, n_steps=24, vectorization_mode=mode, **sizes)
        return cls, {"discrete": "CartPole-v1", "box": "Pendulum-v1"}[space], config
    return cls, partial(ranked.Walk, **SPACES.get(space, SPACES["box"])), config


def outcome(agent):
    """Everything that must not depend on the number of ranks, as JSON."""
    numbers = b"".join(x.detach().contiguous().numpy().tobytes() for x in saving.essence(agent))
    rows = [{k: repr(v) for k, v in row.items() if k != "time/fps"} for row in agent.history]
    where = agent.training_envs.cursor
    cursor = None if where is None else {k: x.numpy().tobytes().hex() for k, x in where.tensors().items()}
    episodes = [[repr(x) for x in vars(e).values()] for e in agent.episodes]
    return {"numbers": numbers.hex()[-4000:], "rows": rows, "cursor": cursor, "episodes": episodes}


def trained(word, folder=None, updates=3):
    """Train from the beginning; with a folder, the state after the second update is saved there."""
    cls, env, config = case(word)
    agent = cls(env, config, seed=3)
    callbacks = [] if folder is None else [Saving(folder / word)]
    agent.learn(updates * config.n_envs * config.n_steps, callbacks)
    agent.close()
    return outcome(agent)


def resumed(word, folder):
    """Finish the training that is saved in the folder."""
    cls, env, _ = case(word)
    agent = cls.load(folder / word, env).resume()
    agent.close()
    return outcome(agent)


def stopped(word):
    """Train until the last rank's callback ends it; return the number of updates."""
    cls, env, config = case(word)
    agent = cls(env, config, seed=3).learn(10_000, Stop(2))
    agent.close()
    return agent.n_updates


def apart(word):
    """Train while ranks differ after the first update; return what ends it."""
    cls, env, config = case(word)
    rank = World.current().rank

    class Nudge(Callback):
        def on_epoch_end(self, agent, epoch):
            agent.streams.minibatches.manual_seed(rank)

    agent = cls(env, config, seed=3)
    try:
        agent.learn(3 * config.n_envs * config.n_steps, Nudge())
    except RuntimeError as error:
        return [agent.n_updates, type(error).__name__, str(error)]
    return None


def diverged(word):
    """Train while ranks differ after the first update, and go on from rank 0's parameters."""
    cls, env, config = case(word)
    world = World.current()
    world.settle(on_divergence="broadcast")

    class Nudge(Callback):
        def on_epoch_end(self, agent, epoch):
            if world.rank == 1 and agent.n_updates == 0:
                with torch.no_grad():
                    next(agent.critic.parameters()).add_(1e-3)

    agent = cls(env, config, seed=3).learn(3 * config.n_envs * config.n_steps, Nudge())
    agent.close()
    world.settle()
    counted = [row.get("train/ranks_differing") for row in agent.history]
    rows = [{k: v for k, v in row.items() if k != "train/ranks_differing"} for row in agent.history]
    agent.history.become(type(agent.history)(rows))
    return {"counted": counted, "outcome": outcome(agent)}


def gathered():
    """A batch of this rank's rows and of all of them."""
    world = World.current()
    share = world.share(5)
    return [world.rank, share.start, share.stop, world.any(world.rank == world.size - 1), world.any(False)]


def main(folder, *words):
    """Do everything, and write what came out of it on every rank."""
    torch.set_num_threads(1)
    world, found = World.current(), {"gathered": gathered()}
    for word in words:
        verb, _, what = word.partition(":")
        if verb == "trained":
            found[word] = trained(what, folder / "saved" if world.size > 1 else None)
        elif verb == "resumed":
            found[word] = resumed(what, folder / "alone")
        else:
            found[word] = {"stopped": stopped, "diverged": diverged, "apart": apart}[verb](what)
    (folder / f"rank-{world.rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    np.seterr(all="ignore")
    main(Path(sys.argv[1]), *sys.argv[2:])
