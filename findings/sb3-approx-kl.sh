#!/usr/bin/env bash
# Guess: train/approx_kl of Stable-Baselines3's PPO estimates how far the update has moved the policy, and target_kl
# ends an update at the first minibatch step that goes beyond 1.5 times it.
# What happens: every minibatch is measured before its own step, and the mean over the last epoch is logged. No
# update's last step is ever seen. With one minibatch and one epoch the log says 0 whatever the policy does: here
# KL(old||new) is above 0.05 after every update, and target_kl = 0.001 ends none. The same update in four epochs is
# ended one step late.
# Why it matters: a small approx_kl beside a large learning rate or large minibatches is no sign of a small step, and
# the trust region that target_kl asks for is not the one that the policy gets.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check stable-baselines3==2.9.2 gymnasium==1.4.0 torch==2.13.0 \
  numpy==2.4.6 2>pip.log || { cat pip.log; exit 1; }
cat > case.py <<'PY'
import torch
from stable_baselines3 import PPO


class Measured(PPO):
    """Measures KL(old||new), exactly and on the whole rollout, around every update."""

    def train(self):
        seen = torch.as_tensor(self.rollout_buffer.observations).flatten(0, 1)
        old = self.policy.get_distribution(seen).distribution
        super().train()
        new = self.policy.get_distribution(seen).distribution
        self.moved = torch.distributions.kl_divergence(old, new).mean().item()


def updates(n_epochs):
    model = Measured(
        "MlpPolicy", "CartPole-v1", n_steps=256, batch_size=256, n_epochs=n_epochs, learning_rate=0.05, target_kl=0.001,
        seed=0, device="cpu",
    )
    for n in range(3):
        model.learn(256, reset_num_timesteps=False)
        yield model.logger.name_to_value["train/approx_kl"], model.moved, model._n_updates


torch.set_num_threads(1)
for logged, moved, _ in updates(n_epochs=1):
    print(f"logged {abs(logged):.4f}, KL {'above' if moved > 0.05 else 'below'} 0.05")
    assert abs(logged) < 1e-6 and moved > 0.05, (logged, moved)
(_, moved, passes), *_ = updates(n_epochs=4)
print(f"four epochs: the first update ends after {passes}, KL {'above' if moved > 0.05 else 'below'} 0.05")
assert passes == 2 and moved > 0.05, (passes, moved)
PY
venv/bin/python case.py
