"""Numbers that are not finite: found when a rollout is over, and told as a check of every step would tell them."""

from functools import partial

import numpy as np
import pytest
import torch
from environments import Counting, encoding_of, small_agent
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from klrl.agents import PPO
from klrl.experience import Collector
from klrl.experience.infos import WorkerEnvs
from klrl.experience.rollout import NonFinite
from klrl.policy.distributions import Categorical, DiagGaussian
from klrl.run.seeding import environment_seeds

T, N = 8, 3
SAME, NEXT = AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP
LENGTHS = (3, 4, 20)
KINDS = ("action", "reward", "observation", "final observation")
FAULTS = [((kind, t, i),) for kind in KINDS for t, i in ((0, 2), (2, 0), (3, 1), (5, 2), (T - 1, 1))]
FAULTS += [
    (("observation", 4, 1), ("reward", 4, 2)),  # a step's reward comes before its observation
    (("observation", 4, 2), ("reward", 5, 0)),
    (("reward", 2, 1), ("final observation", 2, 0)),
    (("observation", 1, 0), ("action", 2, 1)),  # what the policy saw is the cause of what it did
    (("observation", 3, 2), ("error", 5, 0)),  # and of what happened to the environment then
    (("reward", 3, 2), ("action", 3, 0)),  # an action comes before its reward
]


class Faulty(Counting):
    """Gives NaN, or raises, in given steps of its life; its episodes are truncated."""

    def __init__(self, i, faults):
        super().__init__(i, LENGTHS[i], "truncated")
        self.faults = {(kind, t) for kind, t, env in faults if env == i}
        self.t = -1

    def step(self, action):
        self.t += 1
        if ("error", self.t) in self.faults:
            raise RuntimeError("broken by what came before")
        observation, reward, terminated, truncated, info = super().step(action)
        kind = "final observation" if truncated else "observation"
        if (kind, self.t) in self.faults:
            observation = np.array([*observation[:2], np.nan, np.inf], observation.dtype)
        return observation, np.inf if ("reward", self.t) in self.faults else reward, terminated, truncated, info


class Acting:
    """A policy that gives NaN in given steps, and remembers what it saw."""

    def __init__(self, faults):
        self.faults = {(t, i) for kind, t, i in faults if kind == "action"}
        self.seen = []

    def __call__(self, observation):
        t = len(self.seen)
        self.seen.append(observation.clone())
        action = np.full((N, 2), 0.5, np.float32)
        for i in range(N):
            action[i, 1] = -np.inf if (t, i) in self.faults else 0.5
        return action, np.full(N, 2), DiagGaussian(np.zeros((N, 2), np.float32), np.zeros((N, 2), np.float32))


def told_by_every_step(mode, faults):
    """The line and arrays of the first bad number, by a check of every step of the same environments."""
    envs = SyncVectorEnv([partial(Faulty, i, faults) for i in range(N)], autoreset_mode=mode)
    encoding, act, total = encoding_of(envs), Acting(faults), 0
    observation, _ = envs.reset(seed=[0] * N)
    episode, length, resetting = [0] * N, [0] * N, [False] * N

    def line(name, i, where, value, new=False):
        step = 0 if new else length[i] + 1
        where = f", element {where}," if where else ""
        return (
            f"{name} of environment {i}{where} is {value} in step {step} of its episode {episode[i] + new}, "
            f"after {total} steps; allowed: finite numbers"
        )

    for _ in range(T):
        action, executed, _ = act(torch.from_numpy(encoding(observation)))
        arrays = {"observation": encoding(observation), "action": action, "executed": executed}
        for i in range(N):
            if not np.isfinite(action[i]).all():
                return line("action", i, [1], "-inf"), arrays | {"environment": i}
        following, reward, terminated, truncated, infos = envs.step(executed)
        following = encoding(following)
        arrays["reward"] = reward = np.where(resetting, 0.0, reward).astype(np.float32)
        for i in range(N):
            if not np.isfinite(reward[i]):
                return line("reward", i, None, "inf"), arrays | {"environment": i}
        ended = (terminated | truncated) & ~np.array(resetting)
        for i in range(N):
            if not np.isfinite(following[i]).all():
                new = bool(ended[i]) if mode is SAME else resetting[i]
                line_of = line("observation", i, [2], "nan", new)
                return line_of, arrays | {"next_observation": following, "environment": i}
        for i in np.flatnonzero(ended) if mode is SAME else []:
            final = encoding(infos["final_obs"][i])
            if not np.isfinite(final).all():
                line_of = line("final observation", i, [2], "nan")
                return line_of, arrays | {"final_observation": final[None], "environment": i}
        for i in range(N):
            total += not resetting[i]
            length[i] = 0 if ended[i] else length[i] + (not resetting[i])
            episode[i] += bool(ended[i])
        resetting = list(ended & (mode is NEXT))
        observation = following
    return None


@pytest.mark.parametrize("faults", FAULTS, ids=str)
@pytest.mark.parametrize("mode", [SAME, NEXT])
def test_the_first_bad_number_is_told_as_a_check_of_every_step_tells_it(mode, faults):
    envs = SyncVectorEnv([partial(Faulty, i, faults) for i in range(N)], autoreset_mode=mode)
    check_told(Collector(envs, environment_seeds(0), encoding_of(envs)), mode, faults)


@pytest.mark.parametrize("faults", [FAULTS[0], FAULTS[5], FAULTS[11], FAULTS[16], FAULTS[20]], ids=str)
@pytest.mark.parametrize(
    ("maker", "mode"),
    [(WorkerEnvs, SAME), (partial(AsyncVectorEnv, autoreset_mode=SAME), SAME),
     (partial(AsyncVectorEnv, autoreset_mode=NEXT), NEXT)],
)  # fmt: skip
def test_it_is_told_so_from_other_processes(maker, mode, faults):
    envs = maker([partial(Faulty, i, faults) for i in range(N)])
    try:
        check_told(Collector(envs, environment_seeds(0), encoding_of(envs)), mode, faults)
    finally:
        envs.close()


def check_told(collector, mode, faults):
    told = told_by_every_step(mode, faults)
    if told is None:  # no such episode ended there
        assert collector.collect(Acting(faults), T).n_samples > 0
        return
    line, arrays = told
    with pytest.raises(NonFinite) as caught:
        collector.collect(Acting(faults), T)
    assert str(caught.value) == line
    assert list(caught.value.transition) == list(arrays)
    for name, x in arrays.items():
        found = caught.value.transition[name]
        assert found.dtype == np.asarray(x).dtype
        np.testing.assert_array_equal(found, x)


def test_enough_of_the_faults_are_told_in_every_mode():
    for mode, fewest in ((SAME, 20), (NEXT, 17)):
        assert sum(told_by_every_step(mode, faults) is not None for faults in FAULTS) >= fewest


def test_a_policy_never_acts_on_a_bad_number_in_the_next_rollout():
    envs = SyncVectorEnv([partial(Faulty, i, (("observation", T - 1, 2),)) for i in range(N)])
    collector, act = Collector(envs, environment_seeds(0), encoding_of(envs)), Acting(())
    with pytest.raises(NonFinite, match=r"observation of environment 2"):
        collector.collect(act, T)
    collector.collect(act, T)
    assert torch.stack(act.seen).isfinite().all()


@pytest.mark.parametrize("mode", [SAME, NEXT])
def test_batches_share_no_memory(mode):
    envs = SyncVectorEnv([partial(Counting, i, 3) for i in range(N)], autoreset_mode=mode)
    collector = Collector(envs, environment_seeds(0), encoding_of(envs))

    def act(observation):
        return torch.zeros(N, dtype=torch.int64), np.zeros(N, np.int64), Categorical(observation + 0.0)

    batches = [collector.collect(act, 4) for _ in range(3)]
    names = ("observations", "actions", "rewards", "terminated", "truncated", "valid", "final_observations")
    arrays = [getattr(batch, name).numpy() for batch in batches for name in names]
    arrays += [x.numpy() for b in batches for x in (b.next_observations, *b.behaviour.parameters)]
    for k, x in enumerate(arrays):
        assert not any(np.shares_memory(x, other) for other in arrays[:k])


def test_only_the_last_row_is_held_between_two_rollouts():
    agent = small_agent(PPO, Counting).learn(64)
    batch = agent.training_envs.collector.collect(agent.act, 16)
    size = batch.next_observations.untyped_storage().nbytes()
    assert size == batch.next_observations.numel() * batch.next_observations.element_size()


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_training_goes_on_bit_for_bit_after_it_was_saved(tmp_path, env):
    saved = small_agent(PPO, env).learn(64)
    loaded = PPO.load(saved.save(tmp_path / "agent"), env)
    for agent in (saved, loaded):
        agent.learn(128)
    for ours, theirs in zip(saved.actor.parameters(), loaded.actor.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(saved.training_envs.cursor.observation, loaded.training_envs.cursor.observation)
    assert torch.equal(saved.streams.actions.get_state(), loaded.streams.actions.get_state())
