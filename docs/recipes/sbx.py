"""SBX: PPO in JAX with every update measured, on Pendulum and CartPole."""

import numpy as np
from sbx import PPO

from klrl import DriftMonitor


# [recipe]
class MeasuredPPO(PPO):
    monitor = None

    def at(self, observations):
        actor = self.policy.actor_state
        d = actor.apply_fn(actor.params, observations)
        return {"mean": d.mean(), "std": d.stddev()} if self.action_space.shape else {"logits": d.logits}

    def train(self):
        self.monitor = self.monitor or DriftMonitor(self.at, self.target_kl)  # run_dir="runs/sbx"
        b = self.rollout_buffer
        obs, actions, log_prob = (x.reshape(-1, *x.shape[2:]) for x in (b.observations, b.actions, b.log_probs))
        with self.monitor.update(obs, actions, timesteps=self.num_timesteps, log_prob=log_prob) as logged:
            super().train()
            logged["train/approx_kl"] = float(self.logger.name_to_value["train/approx_kl"])


# [end]
for env in ("Pendulum-v1", "CartPole-v1"):
    model = MeasuredPPO("MlpPolicy", env, n_steps=128, batch_size=64, target_kl=0.01, seed=0)
    model.learn(384)
    print(model.monitor.summary("train/approx_kl"))
    rows = model.monitor.history
    assert len(rows) == 3
    assert all(np.isfinite(row["drift/kl"]) and row["drift/start_ratio_error"] < 1e-5 for row in rows)
