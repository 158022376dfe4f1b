"""rsl_rl: the runner's PPO with every update measured, on points that are to be pushed to the origin."""

import torch
from rsl_rl.algorithms import PPO
from rsl_rl.env import VecEnv
from rsl_rl.runners import OnPolicyRunner
from tensordict import TensorDict
from torch.distributions import Normal

from klrl import DriftMonitor

torch.manual_seed(0)
torch.set_num_threads(1)


# [recipe]
def policy(observations):
    actor = runner.alg.actor
    actor(observations, stochastic_output=True)  # it keeps the distribution's parameters
    return Normal(*actor.output_distribution_params)


class MeasuredPPO(PPO):  # the runner's config: {"algorithm": {"class_name": MeasuredPPO, ...}}
    steps = 0

    def update(self):
        s = self.storage
        obs, actions, log_prob = (x.flatten(0, 1) for x in (s.observations, s.actions, s.actions_log_prob))
        self.steps += len(actions)
        with monitor.update(obs, actions, timesteps=self.steps, log_prob=log_prob):
            return super().update()  # a change of the actor's observation statistics is part of it


monitor = DriftMonitor(policy, target_kl=0.01)  # desired_kl; run_dir="runs/rsl_rl"
# [end]


class Points(VecEnv):
    """Points in the plane, pushed by actions; the reward is their distance, negative."""

    num_envs, num_actions, max_episode_length, device, cfg = 32, 2, 16, "cpu", {}

    def __init__(self):
        self.episode_length_buf = torch.zeros(self.num_envs, dtype=torch.long)
        self.x = torch.randn(self.num_envs, 2)

    def get_observations(self):
        return TensorDict({"policy": self.x.clone()}, [self.num_envs])

    def step(self, actions):
        self.x = self.x + 0.1 * actions
        self.episode_length_buf = self.episode_length_buf + 1
        done = self.episode_length_buf >= self.max_episode_length
        reward = -self.x.norm(dim=-1)
        self.x = torch.where(done[:, None], torch.randn(self.num_envs, 2), self.x)
        self.episode_length_buf = self.episode_length_buf * ~done
        return self.get_observations(), reward, done.float(), {"time_outs": done.float()}


network = {"class_name": "MLPModel", "hidden_dims": [32], "activation": "tanh"}
normal = {"distribution_cfg": {"class_name": "GaussianDistribution", "init_std": 1.0}}
settings = {
    "algorithm": {"class_name": MeasuredPPO, "desired_kl": 0.01},
    "actor": network | normal,
    "critic": {**network},
    "obs_groups": {"actor": ["policy"], "critic": ["policy"]},
    "num_steps_per_env": 16,
    "save_interval": 100,
}
runner = OnPolicyRunner(Points(), settings)
runner.learn(3)

print(monitor.summary())
assert len(monitor.history) == 3
assert all(row["drift/kl"] > 0.0 and row["drift/start_ratio_error"] < 1e-5 for row in monitor.history)
