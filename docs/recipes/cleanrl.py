"""CleanRL's loop, with its names: a few updates of PPO on CartPole, each of them measured."""

import gymnasium as gym
import torch
from torch import nn
from torch.distributions import Categorical

from klrl import DriftMonitor

torch.manual_seed(0)
torch.set_num_threads(1)
num_envs, num_steps, target_kl = 4, 64, 0.01
envs = gym.vector.SyncVectorEnv([lambda: gym.make("CartPole-v1") for _ in range(num_envs)])
actor = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 2))
critic = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 1))
optimizer = torch.optim.Adam([*actor.parameters(), *critic.parameters()], lr=2.5e-3, eps=1e-5)

# [recipe]
monitor = DriftMonitor(lambda obs: Categorical(logits=actor(obs)), target_kl=0.01)  # run_dir="runs/cleanrl"


def update(b_obs, b_actions, b_logprobs, b_returns, global_step):
    with monitor.update(b_obs, b_actions, timesteps=global_step, log_prob=b_logprobs) as logged:
        for _ in range(4):  # update_epochs
            for mb_inds in torch.randperm(len(b_obs)).split(64):
                approx_kl = step(*(x[mb_inds] for x in (b_obs, b_actions, b_logprobs, b_returns)))
        logged["train/approx_kl"] = approx_kl  # of the last minibatch, as CleanRL logs it


# [end]


def step(obs, actions, logprobs, returns):
    """Take one minibatch step of PPO and return its approximate KL."""
    logratio = Categorical(logits=actor(obs)).log_prob(actions) - logprobs
    value = critic(obs).squeeze(-1)
    advantages = returns - value.detach()
    ratio = logratio.exp()
    loss = (
        -torch.min(advantages * ratio, advantages * ratio.clamp(0.8, 1.2)).mean()
        + 0.5 * (returns - value).square().mean()
    )
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return ((ratio - 1) - logratio).mean().item()


next_obs, _ = envs.reset(seed=0)
for iteration in range(1, 4):
    obs, actions, logprobs, rewards, dones = [], [], [], [], []
    for _ in range(num_steps):
        with torch.no_grad():
            probs = Categorical(logits=actor(torch.as_tensor(next_obs)))
            action = probs.sample()
        obs.append(torch.as_tensor(next_obs.copy()))
        actions.append(action)
        logprobs.append(probs.log_prob(action))
        next_obs, reward, terminations, truncations, _ = envs.step(action.numpy())
        rewards.append(torch.as_tensor(reward))
        dones.append(torch.as_tensor(terminations | truncations))
    returns, following = [], torch.zeros(num_envs, dtype=torch.float64)
    for reward, done in zip(reversed(rewards), reversed(dones), strict=True):
        following = reward + 0.99 * following * ~done
        returns.insert(0, following)
    batch = [torch.stack(x).flatten(0, 1) for x in (obs, actions, logprobs, returns)]
    update(*batch, global_step=iteration * num_envs * num_steps)

print(monitor.summary("train/approx_kl"))
assert len(monitor.history) == 3
assert all(row["drift/kl"] > 0.0 and row["drift/start_ratio_error"] < 1e-5 for row in monitor.history)
