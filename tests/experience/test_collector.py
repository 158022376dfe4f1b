"""Rollouts: every row of a batch, in every autoreset mode, against closed forms of what the environments do."""

from functools import partial
from typing import ClassVar

import gymnasium as gym
import numpy as np
import pytest
import torch
from environments import Broken, Counting, Probe, Sampling, encoding_of, small_agent
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from support import GAUSSIAN_ONLY, NEEDS_REFERENCE

from klrl.agents import PPO, TRPO
from klrl.experience import Collector
from klrl.policy.distributions import Categorical, stack_records
from klrl.run import checkpoint
from klrl.run.seeding import environment_seeds
from klrl.trust_region import REGIONS

LENGTHS = (1, 3, 4)
BATCHES = (4, 7, 1, 12)
ROWS = sum(BATCHES)
SAME, NEXT = AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP

every_vector_env = pytest.mark.parametrize(
    ("maker", "mode"), [(SyncVectorEnv, SAME), (SyncVectorEnv, NEXT), (AsyncVectorEnv, SAME), (AsyncVectorEnv, NEXT)]
)
every_mode = pytest.mark.parametrize("mode", [SAME, NEXT])
every_ending = pytest.mark.parametrize("ending", ["truncated", "terminated", "both"])


def act(observation):
    """The policy's action depends on the step, the environment gets another one, the logits are the observation."""
    action = observation[:, 2].long() % 4
    return action, 3 - action.numpy(), Categorical(observation)


def value(observation):
    """A different number for every environment, episode and step."""
    return observation[..., 0] * 10_000 + observation[..., 1] * 100 + observation[..., 2]


def collect(maker, mode, ending, lengths=LENGTHS, batches=BATCHES):
    makers = [partial(Counting, i, length, ending) for i, length in enumerate(lengths)]
    envs = maker(makers, autoreset_mode=mode)
    try:
        collector = Collector(envs, environment_seeds(0), encoding_of(envs))
        return [collector.collect(act, n) for n in batches], collector
    finally:
        envs.close()


class Expected:
    """Rows ``[T, N]`` by arithmetic: a period is an episode, and a dummy step after it in NEXT_STEP mode."""

    def __init__(self, mode, lengths=LENGTHS, n_rows=ROWS):
        length = np.array(lengths)
        t, env = np.indices((n_rows, len(lengths)))
        self.env, (self.episode, self.step) = env, np.divmod(t, length + (mode is NEXT))
        self.valid = self.step < length
        self.ended = self.step == length - 1
        self.next_value = env * 10_000 + self.episode * 100 + self.step + 1


def column(batches, name):
    return np.concatenate([getattr(batch, name) for batch in batches])


@every_ending
@every_vector_env
def test_every_row_holds_what_the_environment_did_in_that_step(maker, mode, ending):
    batches, _ = collect(maker, mode, ending)
    expected = Expected(mode)
    observations = column(batches, "observations")
    np.testing.assert_array_equal(observations[..., 0], expected.env)
    np.testing.assert_array_equal(observations[..., 1], expected.episode)
    np.testing.assert_array_equal(observations[..., 2], expected.step)
    np.testing.assert_array_equal(column(batches, "valid"), expected.valid)
    np.testing.assert_array_equal(column(batches, "ended"), expected.ended)
    np.testing.assert_array_equal(column(batches, "truncated"), expected.ended & (ending == "truncated"))
    np.testing.assert_array_equal(column(batches, "rewards"), expected.step * expected.valid)
    np.testing.assert_array_equal(column(batches, "actions"), expected.step % 4)
    inside = expected.step[1:] > 0
    np.testing.assert_array_equal(observations[1:, :, 3][inside], 3 - (expected.step[:-1] % 4)[inside])
    behaviour = stack_records([batch.behaviour[t] for batch in batches for t in range(len(batch.rewards))])
    np.testing.assert_array_equal(behaviour.logits, observations)


@every_vector_env
def test_the_next_value_is_that_of_the_state_the_step_led_to_also_at_a_truncation(maker, mode):
    batches, _ = collect(maker, mode, "truncated")
    result = np.concatenate([b.next_values(value(b.observations), value) for b in batches])
    expected = Expected(mode)
    np.testing.assert_array_equal(result[expected.valid], expected.next_value[expected.valid])


@every_mode
@pytest.mark.parametrize("ending", ["terminated", "both"])
def test_a_termination_leaves_no_final_observation_to_bootstrap_from(mode, ending):
    batches, _ = collect(SyncVectorEnv, mode, ending)
    assert all(batch.final_observations.shape == (0, 4) for batch in batches)
    result = np.concatenate([b.next_values(value(b.observations), value) for b in batches])
    expected = Expected(mode)
    going_on = expected.valid & ~expected.ended
    np.testing.assert_array_equal(result[going_on], expected.next_value[going_on])


@every_mode
def test_final_observations_stand_in_the_order_of_the_truncated_rows(mode):
    batches, _ = collect(SyncVectorEnv, mode, "truncated")
    expected = Expected(mode)
    np.testing.assert_array_equal(
        value(torch.cat([b.final_observations for b in batches])), expected.next_value[expected.ended]
    )


@every_vector_env
def test_episodes_are_reported_once_with_return_length_environment_and_time(maker, mode):
    batches, _ = collect(maker, mode, "truncated")
    expected = Expected(mode)
    taken = expected.valid.sum(axis=1).cumsum()
    rows = [(taken[t], sum(range(LENGTHS[i])), LENGTHS[i], i) for t, i in np.argwhere(expected.ended)]
    found = [(e.total_timesteps, e.episode_return, e.length, e.env_index) for b in batches for e in b.episodes]
    assert found == rows


@every_mode
def test_only_valid_steps_are_counted(mode):
    batches, collector = collect(SyncVectorEnv, mode, "terminated")
    n = int(Expected(mode).valid.sum())
    assert collector.total_timesteps == sum(b.n_samples for b in batches) == n
    assert (n == ROWS * len(LENGTHS)) == (mode is SAME)


@every_mode
def test_samples_are_the_valid_rows_of_tensors_and_records(mode):
    (batch,), _ = collect(SyncVectorEnv, mode, "truncated", batches=(9,))
    valid = batch.valid.numpy()
    np.testing.assert_array_equal(batch.flatten_valid(batch.observations), batch.observations.numpy()[valid])
    np.testing.assert_array_equal(batch.flatten_valid(batch.behaviour).logits, batch.observations.numpy()[valid])


@every_mode
@pytest.mark.parametrize("copy", [True, False])
def test_a_batch_is_not_changed_by_the_next_one_even_if_the_environment_uses_its_arrays_again(mode, copy):
    envs = SyncVectorEnv([Counting, Counting], autoreset_mode=mode, copy=copy)
    collector = Collector(envs, environment_seeds(0), encoding_of(envs))
    batch = collector.collect(act, 5)
    names = ("observations", "next_observations", "final_observations")
    before = {name: getattr(batch, name).clone() for name in names}
    collector.collect(act, 5)
    assert {name: getattr(batch, name).tolist() for name in names} == {n: x.tolist() for n, x in before.items()}
    assert batch.observations[:, 0, 2].tolist() == ([0, 1, 2, 0, 1] if mode is SAME else [0, 1, 2, 3, 0])


class Reusing(VectorEnv):
    """A VectorEnv that hands out the same arrays at every step, and says so nowhere."""

    metadata: ClassVar[dict] = {"autoreset_mode": SAME}
    num_envs = 1
    single_observation_space = gym.spaces.Box(-10.0, 10.0, (1,))
    single_action_space = gym.spaces.Discrete(2)

    def __init__(self):
        self.arrays = (np.zeros((1, 1)), np.zeros(1), np.zeros(1, dtype=bool), np.zeros(1, dtype=bool))

    def reset(self, *, seed=None, options=None):
        return self.arrays[0], {}

    def step(self, actions):
        self.arrays[1][:] += 1
        self.arrays[2][:] = self.arrays[1] == 3
        return *self.arrays, {}


def test_a_vector_env_may_use_its_own_arrays_again():
    batch = Collector(Reusing(), environment_seeds(0), encoding_of(Reusing())).collect(
        lambda o: act(o.expand(-1, 4)), 4
    )
    assert batch.rewards.flatten().tolist() == [1.0, 2.0, 3.0, 4.0]
    assert batch.terminated.flatten().tolist() == [False, False, True, False]


@every_mode
@pytest.mark.parametrize("what", ["observation", "reward", "final observation"])
def test_a_number_that_is_not_finite_is_refused_with_the_environment_it_came_from(mode, what):
    envs = SyncVectorEnv([Counting, partial(Broken, what, 1)], autoreset_mode=mode)
    collector = Collector(envs, environment_seeds(0), encoding_of(envs))
    with pytest.raises(FloatingPointError, match=rf"{what.split()[-1]} of environment 1.* is nan .*; allowed: "):
        collector.collect(act, 5)


# Masks. Every environment here refuses forbidden actions itself, and allows others after every step.
MASKED_ACTIONS = {
    "Discrete": gym.spaces.Discrete(4, start=-1),
    "MultiDiscrete": gym.spaces.MultiDiscrete([2, 3, 2], start=[5, 0, 1]),
}
every_source = pytest.mark.parametrize("source", ["observation", "info"])
masked_actions = pytest.mark.parametrize("actions", MASKED_ACTIONS.values(), ids=MASKED_ACTIONS)


def masking(actions, source, **kwargs):
    return partial(Sampling, gym.spaces.Box(-1.0, 1.0, (2,)), actions, masks=source, **kwargs)


def masked_agent(agent_class, envs, source, **settings):
    mask = "info" if source == "info" else "auto"
    return small_agent(agent_class, envs, action_mask=mask, **settings)


def recounted(batch, encoding, actions):
    """Which actions of a batch their own state's mask allows, action by action."""
    heads = np.ravel(getattr(actions, "nvec", getattr(actions, "n", None)))
    masks = encoding.allowed(batch.flatten_valid(batch.observations).numpy())
    taken = batch.flatten_valid(batch.actions).numpy().reshape(len(masks), -1)
    offsets = np.cumsum([0, *heads[:-1]])
    return np.take_along_axis(masks, taken + offsets, -1), masks


@every_vector_env
@every_source
@masked_actions
def test_masks_stay_with_their_states_and_forbidden_actions_are_never_taken(maker, mode, source, actions):
    discrete = actions is MASKED_ACTIONS["Discrete"]
    ending = "truncated" if (source == "info") == discrete else "terminated"  # everybody meets both
    envs = maker([masking(actions, source, length=n, ending=ending) for n in (1, 3, 4)], autoreset_mode=mode)
    try:
        agent = masked_agent(PPO, envs, source, n_epochs=2)
        collector = agent.collector()
        for i in range(2):
            batch = collector.collect(agent.act, 20)
            allowed, masks = recounted(batch, agent.encoding, actions)
            assert allowed.all()
            assert 0.2 < masks.mean() < 0.9
            metrics = agent.update(batch)
            assert metrics["drift/start_kl"] < (1e-9 if i else 1e-4)  # the first one brings statistics
            assert all(np.isfinite(x) for x in metrics.values() if not isinstance(x, str))
            old, new = batch.flatten_valid(batch.behaviour), agent.distribution(batch.flatten_valid(batch.observations))
            for policy in (old, new):
                assert ((policy.logits == -np.inf).numpy() == (masks == 0)).all()
            assert new.log_prob(batch.flatten_valid(batch.actions)).isfinite().all()
    finally:
        envs.close()


@every_mode
@every_source
def test_no_forbidden_action_in_thousands_of_steps(mode, source):
    envs = SyncVectorEnv([masking(MASKED_ACTIONS["Discrete"], source)] * 16, autoreset_mode=mode)
    agent = masked_agent(PPO, envs, source, n_envs=16, n_steps=64, batch_size=512, n_epochs=1).learn(3_000)
    assert agent.num_timesteps >= 3_000  # the environments would have ended it


@pytest.mark.parametrize("agent_class", [PPO, TRPO])
@masked_actions
def test_both_agents_learn_under_masks_with_every_trust_region(agent_class, actions):
    fitting = REGIONS.keys() - GAUSSIAN_ONLY - NEEDS_REFERENCE
    for region in sorted(fitting) if agent_class is PPO else ("constraint",):
        epochs = {"n_epochs": 2, "ent_coef": 0.01} if agent_class is PPO else {"n_critic_updates": 2}
        agent = masked_agent(agent_class, masking(actions, "info"), "info", trust_region=region, **epochs).learn(128)
        assert np.isnan(agent.history[-1].pop("drift/kl_next")), region  # it waits for a rollout
        for metrics in agent.history:
            assert all(np.isfinite(x) for x in metrics.values() if not isinstance(x, str)), region
        assert sum(metrics["drift/kl"] for metrics in agent.history) > 0.0, region


@pytest.mark.parametrize("agent_class", [PPO, TRPO])
def test_none_learns_with_the_mask_as_a_feature(agent_class):
    actions = gym.spaces.Discrete(3)
    env = partial(Sampling, Masks(), actions)
    agent = small_agent(agent_class, env, action_mask="none").learn(64)
    policy = agent.distribution({"x": np.zeros(2), "action_mask": np.array([1, 0, 0], np.int8)})
    assert policy.probs.min() > 0.0
    assert agent.encoding.n_features == 5


def Masks():
    return gym.spaces.Dict(x=gym.spaces.Box(-1.0, 1.0, (2,)), action_mask=gym.spaces.MultiBinary(3))


class Given(gym.Env):
    """Gives these masks (or none) in ``info`` or in its observation, one after the other."""

    def __init__(self, masks, source, actions=None):
        self.masks, self.source = masks, source
        self.action_space = gym.spaces.Discrete(3) if actions is None else actions
        x = gym.spaces.Box(-1.0, 1.0, (2,))
        self.observation_space = Masks() if source == "observation" else x

    def reset(self, *, seed=None, options=None):
        self.steps = -1
        first = self.step(0)
        return first[0], first[-1]

    def step(self, action):
        self.steps += 1
        mask = self.masks[min(self.steps, len(self.masks) - 1)]
        x = np.zeros(2, np.float32)
        if self.source == "observation":
            return {"x": x, "action_mask": np.array(mask, np.int8)}, 0.0, False, False, {}
        return x, 0.0, False, False, {} if mask is None else {"action_mask": mask}


ONES = np.ones(3, np.int8)


def refusal_of(masks, source="info", actions=None):
    """The line that two steps with these masks end with; the other environment's masks are fine."""
    fine = np.ones(sum(actions.nvec), np.int8) if actions is not None else ONES
    envs = SyncVectorEnv([partial(Given, [fine], source, actions), partial(Given, masks, source, actions)])
    encoding = encoding_of(envs, "info" if source == "info" else "auto")

    def act(observation):
        return np.zeros(2, int), envs.action_space.sample(), Categorical(np.zeros((2, 3), np.float32))

    with pytest.raises(ValueError, match="; allowed: ") as error:
        Collector(envs, environment_seeds(0), encoding).collect(act, 3)
    assert "\n" not in str(error.value)
    return str(error.value)


@every_source
def test_a_mask_without_an_allowed_action_is_refused_with_its_environment(source):
    expected = (
        "action_mask of environment 1 allows no action after {} steps; allowed: at least one action in every state"
    )
    assert refusal_of([0 * ONES], source) == expected.format(0)
    assert refusal_of([ONES, ONES, 0 * ONES], source) == expected.format(2)


def test_a_multi_discrete_mask_must_allow_something_in_every_component():
    actions = gym.spaces.MultiDiscrete([2, 2])
    text = refusal_of([np.array([1, 1, 1, 1]), np.array([1, 1, 0, 0])], actions=actions)
    assert text.startswith("action_mask of environment 1 allows no action after 0 steps")


def test_info_without_a_mask_is_refused_with_its_environment():
    expected = "info of environment 1 has no 'action_mask' after {} steps; allowed: one at every reset and step"
    assert refusal_of([None]).startswith(expected.format(0))
    assert refusal_of([ONES, ONES, None]).startswith(expected.format(2))


def test_a_mask_of_another_length_is_refused_with_its_environment():
    for n in (2, 4):
        envs = SyncVectorEnv([partial(Given, [np.ones(n)], "info")] * 2)
        with pytest.raises(ValueError, match=f"^action_mask of environment 0 has {n} elements; allowed: 3$"):
            Collector(envs, environment_seeds(0), encoding_of(envs, "info"))


def test_multi_discrete_masks_in_info_may_be_a_tuple_of_one_per_component():
    actions = gym.spaces.MultiDiscrete([2, 3])
    mask = (np.array([1, 0], np.int8), np.array([0, 1, 1], np.int8))
    envs = SyncVectorEnv([partial(Given, [mask], "info", actions)] * 2)
    agent = small_agent(PPO, envs, action_mask="info")
    batch = agent.collector().collect(agent.act, 4)
    assert agent.encoding.allowed(batch.observations.numpy()).tolist() == [[[1, 0, 0, 1, 1]] * 2] * 4
    assert agent.predict(np.zeros(2), deterministic=True, action_masks=mask)[0][0] == 0


def few_actions(monkeypatch, steps):
    """Let those of so many steps of two environments be the most that are kept."""
    monkeypatch.setattr("klrl.experience.tape.MOST", steps * 2 * np.dtype(np.int64).itemsize)


def test_actions_of_very_long_episodes_are_given_up_and_a_resumption_begins_new_ones(tmp_path, monkeypatch):
    few_actions(monkeypatch, 40)
    make = partial(Counting, length=1000)
    agent = small_agent(PPO, make, n_envs=2, n_steps=32)
    with pytest.warns(RuntimeWarning, match="environment 0 is 64 steps long: its actions are no longer kept") as caught:
        agent.learn(64 * 4)
    assert len(caught) == 1
    tensors, _ = checkpoint.read(agent.save(tmp_path / "agent"))
    assert tensors["whereabouts.lengths"].tolist() == [128, 128]
    assert "whereabouts.actions" not in tensors
    loaded = PPO.load(tmp_path / "agent", make)
    with pytest.warns(RuntimeWarning, match="actions of an episode of 128 steps were not kept: new episodes begin"):
        loaded.learn(64)
    assert loaded.training_envs.cursor.lengths.tolist() == [32, 32]


def test_actions_are_kept_again_when_the_long_episodes_have_ended(tmp_path, monkeypatch):
    few_actions(monkeypatch, 60)
    make = partial(Probe, lambda state, action: state, observations=(1.0, 2.0), length=70)
    agent = small_agent(PPO, make, n_envs=2, n_steps=32)
    with pytest.warns(RuntimeWarning, match="64 steps long"):
        agent.learn(64 * 3)
    loaded = PPO.load(agent.save(tmp_path / "agent"), make).learn(64)
    assert loaded.training_envs.cursor.lengths.tolist() == [128 - 70] * 2
    assert torch.equal(loaded.training_envs.cursor.observation, agent.learn(64).training_envs.cursor.observation)
