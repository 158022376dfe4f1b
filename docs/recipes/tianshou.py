"""Tianshou: its PPO with every update measured, on Pendulum."""

import gymnasium as gym
import torch
from tianshou.algorithm import PPO
from tianshou.algorithm.modelfree.reinforce import ProbabilisticActorPolicy
from tianshou.algorithm.optim import AdamOptimizerFactory
from tianshou.data import Batch, Collector, VectorReplayBuffer
from tianshou.env import DummyVectorEnv
from tianshou.trainer import OnPolicyTrainerParams
from tianshou.utils.net.common import Net
from tianshou.utils.net.continuous import ContinuousActorProbabilistic, ContinuousCritic
from torch.distributions import Independent, Normal

from klrl import DriftMonitor

torch.manual_seed(0)
torch.set_num_threads(1)


# [recipe]
class MeasuredPPO(PPO):
    steps = 0

    def _update_with_batch(self, batch, batch_size, repeat):
        self.steps += len(batch)
        more = {"timesteps": self.steps, "log_prob": batch.logp_old}
        with monitor.update(batch.obs, batch.act, **more):
            return super()._update_with_batch(batch, batch_size, repeat)


monitor = DriftMonitor(lambda obs: algorithm.policy(Batch(obs=obs, info={})).dist)  # run_dir="runs/tianshou"
# [end]


def network():
    return Net(state_shape=(3,), hidden_sizes=(32,))


env = gym.make("Pendulum-v1")
actor = ContinuousActorProbabilistic(preprocess_net=network(), action_shape=(1,), unbounded=True)
algorithm = MeasuredPPO(
    policy=ProbabilisticActorPolicy(
        actor=actor, dist_fn=lambda p: Independent(Normal(*p), 1), action_space=env.action_space
    ),
    critic=ContinuousCritic(preprocess_net=network()),
    optim=AdamOptimizerFactory(lr=1e-3),
)
envs = DummyVectorEnv([lambda: gym.make("Pendulum-v1") for _ in range(4)])
collector = Collector(algorithm, envs, VectorReplayBuffer(256, 4))
params = OnPolicyTrainerParams(
    training_collector=collector,
    max_epochs=1,
    epoch_num_steps=768,
    collection_step_num_env_steps=256,
    update_step_num_repetitions=4,
    batch_size=64,
    show_progress=False,
    verbose=False,
)
algorithm.run_training(params)

print(monitor.summary())
assert len(monitor.history) == 3
assert all(row["drift/kl"] > 0.0 and row["drift/start_ratio_error"] < 1e-5 for row in monitor.history)
