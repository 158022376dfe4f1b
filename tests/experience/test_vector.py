"""Vector environments of the user's own: what they may answer, and what is refused in one line."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from environments import Counting, encoding_of, small_agent
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.wrappers.vector import DictInfoToList, RecordEpisodeStatistics

from klrl.agents import PPO
from klrl.experience import BadStep, Collector, make_vector_env
from klrl.experience.environments import declared_mode
from klrl.policy.distributions import Categorical
from klrl.run.seeding import environment_seeds

SAME, NEXT = AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP
LENGTHS = (2, 3)
ROWS = 13
every_mode = pytest.mark.parametrize("mode", [SAME, NEXT])


def as_it_is(x):
    return x


class Worlds(VectorEnv):
    """Counts in every world, as :class:`Counting` does; dresses its answers as simulators do.

    The reward of a step is 1; that of a step that only resets is 1000, which belongs to nothing.
    """

    single_observation_space, single_action_space = Counting.observation_space, Counting.action_space

    def __init__(
        self,
        mode: AutoresetMode,
        says: Any = None,
        *,
        lengths: tuple[int, ...] = LENGTHS,
        ending: str = "truncated",
        final: Callable[[np.ndarray, np.ndarray], dict] = lambda o, e: {"final_obs": o, "_final_obs": e},
        dress: Callable[[Any], Any] = as_it_is,
        rewards: Callable[[Any], Any] = as_it_is,
        flags: Callable[[Any], Any] = as_it_is,
        infos: Callable[[dict], Any] = as_it_is,
    ) -> None:
        self.num_envs, self.mode, self.final = len(lengths), mode, final
        self.dress, self.rewards, self.flags, self.infos = dress, rewards, flags, infos
        self.metadata = {} if says is None else {"autoreset_mode": says}
        self.worlds = [Counting(i, length, ending) for i, length in enumerate(lengths)]
        self.over = np.zeros(len(lengths), bool)

    def reset(self, *, seed=None, options=None):
        self.over[:] = False
        return self.dress(np.stack([world.reset()[0] for world in self.worlds])), self.infos({})

    def step(self, actions):
        results = [self._stepped(i, action) for i, action in enumerate(actions)]
        observations, rewards, terminated, truncated = map(np.array, zip(*results, strict=True))
        ended, info = terminated | truncated, {}
        if self.mode is NEXT:
            self.over = ended
        elif ended.any():
            info = self.final(observations.copy(), ended)
            for i in np.flatnonzero(ended):
                observations[i] = self.worlds[i].reset()[0]
        flags = self.flags(terminated), self.flags(truncated)
        return self.dress(observations), self.rewards(rewards), *flags, self.infos(info)

    def _stepped(self, i, action):
        if self.over[i]:
            return self.worlds[i].reset()[0], 1000.0, False, False
        observation, _, terminated, truncated, _ = self.worlds[i].step(action)
        return observation, 1.0, terminated, truncated


def act(observation):
    n = len(observation)
    return np.zeros(n, int), np.zeros(n, int), Categorical(np.zeros((n, 4), np.float32))


def collected(envs, n=ROWS):
    collector = Collector(envs, environment_seeds(0), encoding_of(envs))
    return collector.collect(act, n), collector


def check(batch, mode, truncated=True):
    """Every row, by arithmetic: a period is an episode, and in NEXT_STEP mode one more step after it."""
    t, i = np.indices((ROWS, len(LENGTHS)))
    length = np.array(LENGTHS)[i]
    episode, step = np.divmod(t, length + (mode is NEXT))
    valid, ended = step < length, step == length - 1
    expected = np.stack([i, episode, step, 0 * i], axis=-1)
    np.testing.assert_array_equal(batch.observations, expected)
    np.testing.assert_array_equal(batch.valid, valid)
    np.testing.assert_array_equal(batch.truncated, ended & truncated)
    np.testing.assert_array_equal(batch.terminated, ended & (not truncated))
    np.testing.assert_array_equal(batch.rewards, 1.0 * valid)
    finals = (expected + np.array([0, 0, 1, 0]))[ended & truncated]
    np.testing.assert_array_equal(batch.final_observations, finals.reshape(-1, 4))
    taken = valid.sum(1).cumsum()
    rows = [(taken[t], LENGTHS[i], LENGTHS[i], i) for t, i in np.argwhere(ended)]
    assert [(e.total_timesteps, e.episode_return, e.length, e.env_index) for e in batch.episodes] == rows


# -- rewards of steps that only reset -----------------------------------------------------------


@pytest.mark.parametrize("reward", [1000.0, np.nan, np.inf])
def test_a_reward_of_a_step_that_only_resets_counts_nowhere(reward):
    envs = Worlds(NEXT, NEXT, rewards=lambda x: np.where(x == 1000.0, reward, x))
    batch, collector = collected(envs)
    check(batch, NEXT)
    assert not batch.valid.all()
    np.testing.assert_array_equal(collector._returns, collector._lengths)  # of the episodes that go on


def test_a_reward_of_a_step_that_only_resets_is_in_no_metric():
    agent = small_agent(PPO, Worlds(NEXT, NEXT), n_steps=48, batch_size=96).learn(96)
    assert agent.history[-1]["rollout/ep_rew_mean"] == agent.history[-1]["rollout/ep_len_mean"]
    assert agent.return_scaler.moments.variance < 10.0  # of discounted sums of ones, at most three
    assert agent.history[-1]["train/value_loss"] < 10.0


def test_flags_that_stay_up_in_the_step_that_only_resets_end_no_other_episode():
    class Staying(Worlds):
        def step(self, actions):
            before = self.over.copy()
            observations, rewards, terminated, truncated, info = super().step(actions)
            return observations, rewards, terminated, truncated | before, info

    batch, _ = collected(Staying(NEXT, NEXT))
    check(batch, NEXT)


# -- modes --------------------------------------------------------------------------------------

NAMES = {
    NEXT: (NEXT, "NextStep", "NEXT_STEP", "next_step", "nextstep"),
    SAME: (SAME, "SameStep", "SAME_STEP", "same_step"),
}


@pytest.mark.parametrize(("mode", "says"), [(mode, says) for mode, names in NAMES.items() for says in names])
def test_a_mode_is_declared_by_itself_its_value_or_its_name(mode, says):
    envs = Worlds(mode, says)
    assert declared_mode(envs) is mode
    check(collected(envs)[0], mode)


@pytest.mark.parametrize("says", [AutoresetMode.DISABLED, "Disabled", "disabled", "SAME", "", 1, True, ["SameStep"]])
def test_another_mode_is_refused_in_one_line(says):
    with pytest.raises(ValueError, match=r"^autoreset_mode = .*; allowed: 'NextStep', 'SameStep'$"):
        make_vector_env(Worlds(SAME, says), 2)


def test_no_metadata_at_all_is_no_mode():
    envs = Worlds(SAME)
    envs.metadata = None
    assert declared_mode(envs) is None


def test_same_step_is_recognised_by_the_last_observation_of_an_episode():
    batch, collector = collected(Worlds(SAME))
    assert collector.mode is SAME
    check(batch, SAME)


@pytest.mark.parametrize("ending", ["truncated", "terminated"])
def test_next_step_is_assumed_with_a_warning_and_only_one(ending):
    with pytest.warns(
        RuntimeWarning, match="Worlds does not say .* taken as NEXT_STEP, .*; allowed: metadata"
    ) as caught:
        batch, collector = collected(Worlds(NEXT, ending=ending))
    assert len(caught) == 1
    assert "\n" not in str(caught[0].message)
    assert collector.mode is NEXT
    check(batch, NEXT, ending == "truncated")


def test_same_step_is_recognised_late_too():
    """Where a vector tells last observations only of truncated episodes, and the first ones are terminated."""
    envs = Worlds(SAME, ending="terminated", final=lambda o, e: {})
    with pytest.warns(RuntimeWarning, match="taken as NEXT_STEP"):
        _, collector = collected(envs)
    envs.final = lambda o, e: {"final_obs": o}
    for world in envs.worlds:
        world.ending = "truncated"
    batch = collector.collect(act, ROWS)
    assert collector.mode is SAME
    assert batch.valid[-1].all()


def test_an_environment_that_ended_before_same_step_was_recognised_loses_one_step_and_no_more():
    envs = Worlds(SAME, lengths=(3, 4), final=lambda o, e: {"final_obs": o} if e[1] else {})
    envs.worlds[0].ending = "terminated"
    with pytest.warns(RuntimeWarning, match="taken as NEXT_STEP"):
        batch, collector = collected(envs)
    assert collector.mode is SAME
    np.testing.assert_array_equal(batch.valid, [[i == 1 or t != 3 for i in range(2)] for t in range(ROWS)])
    np.testing.assert_array_equal(batch.terminated[:, 0], [t % 3 == 2 for t in range(ROWS)])


def test_a_truncation_without_a_last_observation_counts_as_a_termination_and_is_told_once():
    with pytest.warns(
        RuntimeWarning, match=r"SAME_STEP mode and infos\['final_obs'\] has no last .*; allowed:"
    ) as caught:
        batch, _ = collected(Worlds(SAME, SAME, final=lambda o, e: {}))
    assert len(caught) == 1
    assert "\n" not in str(caught[0].message)
    check(batch, SAME, truncated=False)


def test_where_episodes_only_terminate_no_last_observation_is_missed():
    check(collected(Worlds(SAME, SAME, ending="terminated", final=lambda o, e: {}))[0], SAME, truncated=False)


# -- what answers are made of -------------------------------------------------------------------


def objects(o, ended):
    """As Gymnasium has it: ``None`` where no episode ended."""
    array = np.full(len(o), None, dtype=object)
    for i in np.flatnonzero(ended):
        array[i] = o[i]
    return array


FINALS = {
    "array, mask": lambda o, e: {"final_obs": o, "_final_obs": e},
    "array": lambda o, e: {"final_obs": o},
    "objects": lambda o, e: {"final_obs": objects(o, e)},
    "objects, mask": lambda o, e: {"final_obs": objects(o, e), "_final_obs": e},
    "list": lambda o, e: {"final_obs": list(objects(o, e))},
    "tuple": lambda o, e: {"final_obs": tuple(o)},
    "float64": lambda o, e: {"final_obs": o.astype(float)},
    "tensor, mask": lambda o, e: {"final_obs": torch.tensor(o), "_final_obs": torch.tensor(e)},
    "tensors": lambda o, e: {"final_obs": [torch.tensor(x) for x in o]},
    "old name": lambda o, e: {"final_observation": o, "_final_observation": e},
    "old name, objects": lambda o, e: {"final_observation": objects(o, e)},
}


@pytest.mark.parametrize("final", FINALS.values(), ids=FINALS)
@pytest.mark.parametrize("says", [SAME, None], ids=["declared", "recognised"])
def test_last_observations_come_in_many_forms(final, says):
    check(collected(Worlds(SAME, says, final=final))[0], SAME)


def listed(infos):
    """One dict each, as DictInfoToList makes them of these."""
    mask = infos.get("_final_obs", [False] * len(LENGTHS))
    return [{"final_obs": infos["final_obs"][i]} if mask[i] else {} for i in range(len(LENGTHS))]


DRESSES: dict[str, dict[str, Any]] = {
    "tensors": dict.fromkeys(("dress", "rewards", "flags"), torch.as_tensor),
    "tensors that require gradients": {"dress": lambda x: torch.tensor(x, requires_grad=True)},
    "bfloat16": {"dress": lambda x: torch.tensor(x, dtype=torch.bfloat16)},
    "float64": {"dress": np.float64, "rewards": np.float64},
    "integers": {"dress": lambda x: x.astype(np.int32), "rewards": lambda x: x.astype(int), "flags": np.int8},
    "numbers of one column": {"rewards": lambda x: x[:, None], "flags": lambda x: x[:, None]},
    "tensors of one column": {
        "rewards": lambda x: torch.tensor(x[:, None]),
        "flags": lambda x: torch.tensor(x[:, None]),
    },
    "lists": {"dress": list, "rewards": list, "flags": list},
    "objects": {"rewards": lambda x: x.astype(object), "flags": lambda x: x.astype(object)},
    "float flags": {"flags": np.float32},
    "list of infos": {"infos": listed},
    "tuple of infos": {"infos": lambda infos: tuple(listed(infos))},
    "a dict of another kind": {"infos": OrderedDict},
}


@every_mode
@pytest.mark.parametrize("dress", DRESSES.values(), ids=DRESSES)
def test_answers_come_in_many_forms(dress, mode):
    check(collected(Worlds(mode, mode, **dress))[0], mode)


@every_mode
def test_arrays_may_be_used_again(mode):
    arrays: dict[str, np.ndarray] = {}

    def again(name):
        def used(x):
            array = arrays.setdefault(name, x.copy())
            array[...] = x
            return array

        return used

    final = again("final_obs"), again("_final_obs")
    envs = Worlds(mode, mode, dress=again("o"), rewards=again("r"), flags=again("f"))
    envs.flags = lambda x: x
    envs.final = lambda o, e: {"final_obs": final[0](o), "_final_obs": final[1](e)}
    check(collected(envs)[0], mode)


SPACE = gym.spaces.Dict(a=gym.spaces.Box(-9.0, 99.0, (2,)), b=gym.spaces.Tuple([gym.spaces.Box(-9.0, 99.0, (2,))] * 2))


def nested(x):
    """The four numbers as SPACE has them; its second Tuple is a copy."""
    return {"a": x[..., :2], "b": (x[..., 2:], x[..., 2:])}


def nested_objects(o, ended):
    return {"final_obs": np.array([nested(x) if end else None for x, end in zip(o, ended, strict=True)], dtype=object)}


@pytest.mark.parametrize("final", [lambda o, e: {"final_obs": nested(o)}, nested_objects], ids=["arrays", "objects"])
@pytest.mark.parametrize("convert", [as_it_is, torch.tensor], ids=["numpy", "torch"])
def test_nested_observations_and_last_observations(final, convert):
    class Nested(Worlds):
        single_observation_space = SPACE

    batch, _ = collected(Nested(SAME, SAME, dress=lambda x: nested(convert(x)), final=final))
    plain, _ = collected(Worlds(SAME, SAME))
    columns = [0, 1, 2, 3, 2, 3]
    np.testing.assert_array_equal(batch.observations, plain.observations[..., columns])
    np.testing.assert_array_equal(batch.final_observations, plain.final_observations[..., columns])


@every_mode
def test_gymnasiums_wrappers_of_infos_change_nothing(mode):
    def rows(*wrappers):
        envs = SyncVectorEnv([lambda i=i, n=n: Counting(i, n) for i, n in enumerate(LENGTHS)], autoreset_mode=mode)
        for wrapper in wrappers:
            envs = wrapper(envs)
        batch, _ = collected(envs)
        return [x.tolist() for x in (batch.observations, batch.final_observations, batch.truncated, batch.valid)]

    plain, both = rows(), (RecordEpisodeStatistics, DictInfoToList)
    for wrappers in ((RecordEpisodeStatistics,), (DictInfoToList,), both):
        if wrappers == both and gym.__version__.startswith("1.1."):
            continue  # there DictInfoToList looks for a key that the other one does not write
        assert rows(*wrappers) == plain


# -- what is refused ----------------------------------------------------------------------------

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "rewards of two columns": (
        {"rewards": lambda x: np.stack([x, x], 1)},
        r"rewards are of shape \(2, 2\) and dtype float64",
    ),
    "one reward": ({"rewards": lambda x: x[:1]}, r"rewards are of shape \(1,\) and dtype float64; allowed: 2 numbers"),
    "no rewards": ({"rewards": lambda x: None}, "rewards are 'None'; allowed: 2 numbers, one for each environment"),
    "text": ({"rewards": lambda x: ["a", "b"]}, "rewards are a list of 2; allowed: 2 numbers"),
    "odd flags": ({"flags": lambda x: x + 2}, "terminations have 2; allowed: True or False"),
    "one flag": ({"flags": lambda x: bool(x.any())}, "terminations are 'False'; allowed: 2 numbers"),
    "three observations": (
        {"dress": lambda x: np.concatenate([x, x[:1]])},
        r"gave \(3,\) observations; allowed: \(2,\)",
    ),
    "one observation": (
        {"dress": lambda x: x[0]},
        r"gave \(\) observations; allowed: \(2,\), one for each environment",
    ),
    "other observations": ({"dress": lambda x: x[:, :2]}, r"observation has shape \(2, 2\); allowed"),
    "no infos": ({"infos": lambda x: None}, "infos are 'None'; allowed: a dict, or a list of 2 dicts"),
    "three infos": ({"infos": lambda x: [{}] * 3}, "infos are a list of 3; allowed: a dict, or a list of 2 dicts"),
    "other infos": ({"infos": lambda x: [1, 2]}, "infos are a list of 2; allowed"),
    "final rows": (
        {"final": lambda o, e: {"final_obs": o[e]}},
        r"infos\['final_obs'\] has 1 rows; allowed: 2, one for each",
    ),
    "no final rows": (
        {"final": lambda o, e: {"final_obs": 3}},
        r"infos\['final_obs'\] is of int; allowed: 2, one for each",
    ),
    "final shapes": ({"final": lambda o, e: {"final_obs": o[:, :2]}}, r"observation has shape \(2,\); allowed"),
}


@pytest.mark.parametrize(("dress", "message"), REFUSED.values(), ids=REFUSED)
def test_other_answers_are_refused_in_one_line(dress, message):
    with pytest.raises(BadStep, match=message) as error:
        collected(Worlds(SAME, SAME, **dress))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("method", ["reset", "step"])
def test_an_answer_of_another_length_is_refused(method):
    envs = Worlds(SAME, SAME)
    setattr(envs, method, lambda *args, **kwargs: (np.zeros((2, 4)), {}, 0))
    with pytest.raises(
        BadStep, match=f"^{method} of the vector environment returned a tuple of 3; allowed: \\(observations"
    ):
        collected(envs)


@pytest.mark.parametrize("name", ["num_envs", "single_observation_space", "single_action_space"])
def test_a_vector_that_does_not_say_what_it_is_is_refused(name):
    envs = Worlds(SAME, SAME)
    setattr(envs, name, None)
    with pytest.raises(ValueError, match=f"^env = Worlds without {name}; allowed: a VectorEnv that has it$"):
        PPO(envs)
