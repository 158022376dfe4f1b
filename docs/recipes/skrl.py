"""skrl: its PPO with every update measured, on Pendulum."""

import gymnasium as gym
import torch
from skrl.agents.torch.ppo import PPO, PPO_CFG
from skrl.envs.wrappers.torch import wrap_env
from skrl.memories.torch import RandomMemory
from skrl.models.torch import DeterministicMixin, GaussianMixin, Model
from skrl.trainers.torch import SequentialTrainer
from torch import nn

from klrl import DriftMonitor

torch.manual_seed(0)
torch.set_num_threads(1)


# [recipe]
def policy(observations):
    agent.policy.enable_training_mode(False)
    agent.policy.act({"observations": observations}, role="policy")  # it keeps the distribution
    return agent.policy.distribution(role="policy")


class MeasuredPPO(PPO):
    def update(self, *, timestep, timesteps):
        names = ("observations", "actions", "log_prob")  # [time, environment, ...]
        obs, actions, log_prob = (self.memory.get_tensor_by_name(name).flatten(0, 1) for name in names)
        steps = (timestep + 1) * self.memory.num_envs
        with monitor.update(obs, actions, timesteps=steps, log_prob=log_prob):
            super().update(timestep=timestep, timesteps=timesteps)


monitor = DriftMonitor(policy)  # target_kl=0.01, if kl_threshold is; run_dir="runs/skrl"
# [end]


class Actor(GaussianMixin, Model):
    def __init__(self, env):
        spaces = {"observation_space": env.observation_space, "state_space": None, "action_space": env.action_space}
        Model.__init__(self, **spaces, device="cpu")
        GaussianMixin.__init__(self)
        self.net = nn.Sequential(nn.Linear(3, 32), nn.Tanh(), nn.Linear(32, 1))
        self.log_std_parameter = nn.Parameter(torch.zeros(1))

    def compute(self, inputs, role):
        return self.net(inputs["observations"]), {"log_std": self.log_std_parameter}


class Critic(DeterministicMixin, Model):
    def __init__(self, env):
        spaces = {"observation_space": env.observation_space, "state_space": None, "action_space": env.action_space}
        Model.__init__(self, **spaces, device="cpu")
        DeterministicMixin.__init__(self)
        self.net = nn.Sequential(nn.Linear(3, 32), nn.Tanh(), nn.Linear(32, 1))

    def compute(self, inputs, role):
        return self.net(inputs["observations"]), {}


env = wrap_env(gym.make_vec("Pendulum-v1", 4, vectorization_mode="sync"))
settings = PPO_CFG(rollouts=64, learning_epochs=4, mini_batches=4, learning_rate=1e-3)
agent = MeasuredPPO(
    models={"policy": Actor(env), "value": Critic(env)},
    memory=RandomMemory(memory_size=64, num_envs=4, device="cpu"),
    cfg=settings,
    observation_space=env.observation_space,
    state_space=None,
    action_space=env.action_space,
    device="cpu",
)
SequentialTrainer(cfg={"timesteps": 192, "headless": True, "disable_progressbar": True}, env=env, agents=agent).train()

print(monitor.summary())
assert len(monitor.history) == 3
assert all(row["drift/kl"] > 0.0 and row["drift/start_ratio_error"] < 1e-5 for row in monitor.history)
