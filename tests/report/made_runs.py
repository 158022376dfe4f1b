"""Runs and audits for the tests of reports: made by the code that writes real ones, without a training."""

import json
from functools import cache

import numpy as np
from environments import Noise, box, small_agent

from klrl.agents import PPO, PPOConfig
from klrl.audit import AuditedPolicy, audit
from klrl.run.csv_log import EPISODES, CsvLog
from klrl.run.directory import versions

METRICS = (
    "rollout/ep_len_mean", "eval/mean_reward", "drift/kl_reverse", "drift/kl_p95", "drift/kl_max", "drift/kl_initial",
    "drift/kl_next", "drift/kl_total", "drift/states_over_target", "drift/path_length", "train/entropy",
    "train/clip_fraction", "train/line_search_scale", "train/cg_residual", "train/kl_penalty",
    "train/explained_variance", "train/value_loss", "time/fps",
)  # fmt: skip


def described(seed=0, env="CartPole-v1", total_timesteps=2048, **settings):
    """A run's config.json."""
    config = json.loads(_described(**settings))
    config["env"]["id"] = env
    return config | {"seed": seed, "total_timesteps": total_timesteps}


@cache
def _described(**settings):
    agent = PPO("CartPole-v1", PPOConfig(trust_region="constraint", **settings), seed=0)
    agent.close()
    return json.dumps(agent.describe() | {"versions": versions()})


def rows(updates, seed=0, target=0.01, steps=2048):
    """Rows of metrics.csv with random numbers; about a fifth of the updates is beyond the target."""
    random = np.random.default_rng(seed)
    returns = np.cumsum(random.normal(1.0, 3.0, updates))
    kl = target * random.gamma(8.0, 0.1, updates)
    more = random.lognormal(size=(updates, len(METRICS)))
    return [
        {
            "time/total_timesteps": float(steps * (i + 1)),
            "rollout/ep_rew_mean": float(returns[i]),
            "drift/kl": float(kl[i]),
            "drift/kl_target": target,
            **dict(zip(METRICS, more[i].tolist(), strict=True)),
            "train/stop_reason": "inside the region" if i % 5 else "stepped back",
        }
        for i in range(updates)
    ]


def write_run(path, history, config=None, episodes=()):
    """Write a run directory, or the log of another library's training, which has no config.json."""
    path.mkdir(parents=True)
    if config is not None:
        (path / "config.json").write_text(json.dumps(config))
    CsvLog(path / "metrics.csv", rows=history).close()
    CsvLog(path / "episodes.csv", EPISODES, [dict(zip(EPISODES, e, strict=True)) for e in episodes]).close()
    return path


def write_audit(path, names=("A", "B"), steps=None, n_episodes=3, dimensions=2, env="Noise-v0"):
    """Write what ``klrl audit --json`` does, of policies that have learned nothing, and return the audit."""
    policies = []
    for seed, name in enumerate(names):
        agent = small_agent(PPO, lambda: Noise(box(dimensions)), seed=seed)
        origin = {"path": f"runs/{name}", "library": "klrl", "algorithm": "PPO", "statistics": None}
        origin["num_timesteps"] = steps[seed] if steps else 64
        policies.append(AuditedPolicy.of_agent(name, agent, origin))
        agent.close()
    result = audit(policies, lambda: Noise(box(dimensions)), n_episodes)
    record = {"env": env, "seed": 0, "max_steps": 30_000} | result.to_json() | {"versions": versions()}
    path.write_text(json.dumps(record))
    return result
