"""TorchRL: its clipped loss with every update measured, on Pendulum, whose actions a TanhNormal gives in [-2, 2]."""

import torch
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.collectors import Collector
from torchrl.envs.libs.gym import GymEnv
from torchrl.modules import NormalParamExtractor, ProbabilisticActor, TanhNormal, ValueOperator
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

from klrl import DriftMonitor

torch.manual_seed(0)
torch.set_num_threads(1)
env = GymEnv("Pendulum-v1", device="cpu")
env.set_seed(0)
network = nn.Sequential(nn.Linear(3, 32), nn.Tanh(), nn.Linear(32, 2), NormalParamExtractor())
actor = ProbabilisticActor(
    TensorDictModule(network, in_keys=["observation"], out_keys=["loc", "scale"]),
    spec=env.action_spec,
    in_keys=["loc", "scale"],
    distribution_class=TanhNormal,
    distribution_kwargs={"low": env.action_spec.space.low, "high": env.action_spec.space.high},
    return_log_prob=True,
)
critic = ValueOperator(nn.Sequential(nn.Linear(3, 32), nn.Tanh(), nn.Linear(32, 1)), in_keys=["observation"])
advantage = GAE(gamma=0.99, lmbda=0.95, value_network=critic, average_gae=True)
loss = ClipPPOLoss(actor, critic, entropy_bonus=False)
optimizer = torch.optim.Adam(loss.parameters(), lr=1e-3)
collector = Collector(env, actor, frames_per_batch=256, total_frames=768, device="cpu")

# [recipe]
monitor = DriftMonitor(lambda data: actor.get_dist(data))  # run_dir="runs/torchrl"
steps = 0
for data in collector:
    steps += data.numel()
    data = data.reshape(-1)  # one row per state
    keys = data.select("observation"), data["action"], data["action_log_prob"]
    with monitor.update(keys[0], keys[1], timesteps=steps, log_prob=keys[2]):
        for _ in range(4):
            advantage(data)
            for rows in torch.randperm(len(data)).split(64):
                values = loss(data[rows])
                optimizer.zero_grad()
                (values["loss_objective"] + values["loss_critic"]).backward()
                optimizer.step()
# [end]

collector.shutdown()
print(monitor.summary())
assert len(monitor.history) == 3
# float32 actions near the border of the tanh are rounded: a warning would say if that did not explain the error
assert all(row["drift/kl"] > 0.0 and row["drift/start_ratio_error"] < 1e-3 for row in monitor.history)
