"""klrl's agents with the settings of a workload that other libraries have, too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from klrl.scripts.benchmarks.workload import Clock, Job


def train(agent: Any, clock: Clock, update_ended: Callable[[], None] = lambda: None) -> None:
    """Train for as many updates as ``clock`` waits for; steps that only reset do not count."""
    from klrl.run import Callback

    class After(Callback):
        def on_update_end(self, agent: Any, batch: Any, metrics: Any) -> bool:
            clock(batch.n_samples)
            update_ended()
            return not clock.done

    agent.learn(2 * clock.workload.total_timesteps, After())


def make_agent(job: Job, env: Any) -> Any:
    """Make the agent of the job on ``env``."""
    from klrl.agents import PPO, TRPO, PPOConfig, TRPOConfig
    from klrl.experience.atari import spec_of
    from klrl.scripts.benchmarks.random_images import PONG

    w = job.workload
    same = ("n_envs", "n_steps", "gamma", "gae_lambda", "learning_rate", "max_grad_norm")
    shared: dict[str, Any] = {
        **{name: getattr(w, name) for name in same},
        "vectorization_mode": job.engine,
        "learning_rate_schedule": "constant",
        "normalize_observations": w.normalize,
        "scale_rewards": w.normalize,
        "actor_hidden_sizes": w.hidden_sizes,
        "critic_hidden_sizes": w.hidden_sizes,
        **job.settings,
    }
    if env == PONG:  # as Stable-Baselines3's, without actions that stick
        env = spec_of(env)
        env.kwargs["repeat_action_probability"] = 0.0
    if job.algorithm == "ppo":
        shared |= {"batch_size": w.batch_size, "n_epochs": w.n_epochs}
        return PPO(env, PPOConfig(clip_range=w.clip_range, vf_coef=w.vf_coef, **shared), seed=job.seed)
    shared |= {"batch_size": w.critic_batch_size, "n_critic_updates": w.n_critic_updates}
    return TRPO(env, TRPOConfig(target_kl=w.target_kl, cg_max_steps=w.cg_max_steps, **shared), seed=job.seed)
