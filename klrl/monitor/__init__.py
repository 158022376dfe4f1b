"""AUDIT: how far the policy of any training loop moves, measured by klrl.

>>> import torch
>>> from klrl.monitor import DriftMonitor
>>> net = torch.nn.Linear(3, 2)
>>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
>>> monitor = DriftMonitor(lambda obs: torch.distributions.Categorical(logits=net(obs)), target_kl=0.01)
>>> observations, actions = torch.ones(8, 3), torch.zeros(8, dtype=torch.int64)
>>> with monitor.update(observations, actions=actions, timesteps=8):
...     net(observations)[:, 0].mean().backward()
...     optimizer.step()
>>> monitor.history[-1]["drift/kl"] > 0.0
True
"""

from typing import TYPE_CHECKING

from klrl.lazy import exports

if TYPE_CHECKING:
    from klrl.monitor.drift_monitor import DriftMonitor
    from klrl.monitor.states import States

__all__ = ["DriftMonitor", "States"]
__getattr__, __dir__ = exports(__name__, {"DriftMonitor": "drift_monitor", "States": "states"})
