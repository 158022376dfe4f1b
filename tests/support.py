"""What the tests of the agents share: parametrisations, copies of state, an oracle."""

import contextlib
import resource
import signal
import sys
import time
from dataclasses import dataclass
from dis import opmap

import gymnasium as gym
import pytest
import torch
from environments import box
from torch import distributions as td

from klrl.agents import AGENTS, PPO, TRPO
from klrl.kl import kl_divergence
from klrl.policy.distributions import Categorical
from klrl.run import Callback
from klrl.trust_region import REGIONS, TrustRegion

every_agent = pytest.mark.parametrize("agent_class", AGENTS.values(), ids=lambda cls: cls.__name__)
GAUSSIAN_ONLY = {"w2-projection", "frobenius-projection"}
"""Names of regions that know no other policies."""
NEEDS_TOTAL_VARIATION = {"dppo-tv"}
"""Names of regions that know no Gaussians of several dimensions."""
NEEDS_REFERENCE = {name for name, region in REGIONS.items() if region().reads_reference}
"""Names of regions that measure from a saved policy."""
both = pytest.mark.parametrize("agent_class", [PPO, TRPO])
ACTION_SPACES = [box(1), box(6), box(17), gym.spaces.Discrete(5)]
every_space = pytest.mark.parametrize("space", ACTION_SPACES, ids=["Box(1)", "Box(6)", "Box(17)", "Discrete(5)"])


@contextlib.contextmanager
def full_disk(room=0):
    """No file of this process can have more than so many bytes; the system says so as it does of a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def wait_for(condition, seconds=600.0):
    """Wait until something has happened; the limit is against a hang, and far beyond what a busy machine needs."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


class MeasuredKL(Callback):
    """KL(old||new) of every update, measured anew on the whole batch in float32."""

    def __init__(self):
        self.found = []

    def on_update_start(self, agent, batch):
        self.states = agent.normalized(batch.flatten_valid(batch.observations))
        self.old = agent.actor(self.states)

    def on_update_end(self, agent, batch, metrics):
        self.found.append(kl_divergence(self.old, agent.actor(self.states)).double().mean().item())


def same(tensors, others):
    return all(torch.equal(a, b) for a, b in zip(tensors, others, strict=True))


def parameters(agent):
    """Copies of everything that an optimiser or a step moves."""
    return [p.detach().clone() for p in (*agent.actor.parameters(), *agent.critic.parameters())]


def policy(agent):
    return [agent.networks.actor_parameters.detach().clone()]


def slots(agent):
    """The optimiser's state, in the order of the networks and the names."""
    state = agent.networks.optimizer.state()
    return [state[name].clone() for name in sorted(state)]


def without_time(agent):
    """The history as text, so that NaN equals NaN."""
    return repr([{k: v for k, v in metrics.items() if k != "time/fps"} for metrics in agent.history])


@dataclass(frozen=True)
class Nowhere(TrustRegion):
    """A region that every policy is outside of."""

    on_exit = "backtrack"

    def violation(self, change):
        return 1.0

    def step_length(self, curvature):
        return 1.0


def exactly(record):
    """A record as an object of torch.distributions in float64, the oracle."""
    if isinstance(record, Categorical):
        return td.Categorical(logits=record.logits.double())
    return td.Independent(td.Normal(record.mean.double(), record.log_std.double().exp()), 1)


class AfterEpoch(Callback):
    """Copies of policy and critic after every epoch."""

    def __init__(self):
        self.policies, self.critics = [], []

    def on_epoch_end(self, agent, epoch):
        self.policies.append(policy(agent))
        self.critics.append([p.detach().clone() for p in agent.critic.parameters()])


class BeforeAndAfter(Callback):
    """A number of every update: of the policies before and after it in the batch's states, in float64 by torch."""

    def __init__(self, measure):
        self.measure, self.kls = measure, []

    def on_update_start(self, agent, batch):
        self.observations = batch.observations.flatten(0, 1)
        self.old = exactly(agent.distribution(self.observations))

    def on_update_end(self, agent, batch, metrics):
        self.kls.append(self.measure(self.old, exactly(agent.distribution(self.observations))).item())


def interrupted(call, n, rooms=("klrl", "contextlib"), number=signal.SIGINT):
    """Send this process a signal at the n-th instruction of a call, in files whose path has one of ``rooms`` in it.

    Python hears signals at some instructions only; here it may be any, but for one that a raising trace breaks.

    Returns:
        Whether it has so many instructions; what the signal's handler raised is over.
    """
    left = n

    def trace(frame, event, arg):
        nonlocal left
        if not any(room in frame.f_code.co_filename for room in rooms):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode" and left >= 0 and frame.f_code.co_code[frame.f_lasti] != opmap["PUSH_EXC_INFO"]:
            left -= 1
            if left < 0:
                signal.raise_signal(number)
        return trace

    before = sys.gettrace()
    sys._getframe().f_trace_opcodes = True  # from Python 3.12 on, the first trace would have no instructions otherwise
    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        assert left < 0
    finally:
        sys.settrace(before)
    return left < 0
