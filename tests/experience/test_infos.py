"""Infos reach the user as the environments gave them, whatever they hold; numbers that are asked for are averaged."""

import contextlib
import csv
import math
from collections import OrderedDict, defaultdict
from fractions import Fraction
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from environments import Counting, encoding_of, small_agent
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import DictInfoToList

from klrl.agents import PPO
from klrl.experience import BadStep, Collector
from klrl.experience.infos import SyncEnvs, WorkerEnvs, numbers
from klrl.policy.distributions import Categorical
from klrl.run import Callback
from klrl.run.seeding import environment_seeds

pytestmark = pytest.mark.filterwarnings("ignore:info_keys = ")  # some keys below are nowhere

SAME = AutoresetMode.SAME_STEP
LENGTHS = (1, 3, 4)
VALUES: tuple[Any, ...] = (
    np.zeros(1), np.arange(3.0), [0.0], [0.0] * 4, 3.0, {"a": 1}, {"a": np.zeros(2)}, None, 2, "goal", b"bytes", 2**70,
    True, np.bool_(False), np.float32(0.5), np.array("text"), np.array([{}], dtype=object), {}, (), {1, 2}, 1j,
    OrderedDict(a=1), defaultdict(list, a=[1]), np.zeros((2, 0)), {"x": {"y": np.zeros(3)}}, Ellipsis, int, 10**400,
    np.datetime64("2020-01-01"), Fraction(1, 3), float("nan"), [[1], [2, 3]],
)  # fmt: skip
ODD_KEYS = {5: 1, (1, 2): "a", None: 0, "": 1, "_x": "mine", "_final_obs": 1, b"k": 2, 2.5: 3, frozenset({1}): 4}
OURS = {
    "final_obs": "mine", "final_info": 3, "worker_restarted": True, "worker_episode": 7, "action_mask": "none",
    "final_observation": 1,
}  # fmt: skip


def told(index, episode, step):
    """Of other types from environment to environment and from step to step, in episodes that are told apart."""
    value = VALUES[(7 * index + 5 * step + 3 * episode) % len(VALUES)]
    more = (ODD_KEYS, OURS, {})[(index + step + episode) % 3]
    return {"x": value, "where": (index, episode, step), **more}


class Telling(Counting):
    """Says in every info where it belongs; the same dict is used for all of them."""

    def __init__(self, index, length):
        super().__init__(index, length)
        self.info = {}

    def reset(self, **kwargs):
        return super().reset(**kwargs)[0], self.tell()

    def step(self, action):
        return *super().step(action)[:4], self.tell()

    def tell(self):
        self.info.clear()
        self.info.update(told(self.index, self.episode, self.steps))
        return self.info


MAKES = [partial(Telling, i, length) for i, length in enumerate(LENGTHS)]


def act(observation):
    n = len(observation)
    return np.zeros(n, int), np.zeros(n, int), Categorical(np.zeros((n, 4), np.float32))


def collect(envs, n_steps, info_keys=()):
    with contextlib.closing(envs):
        collector = Collector(envs, environment_seeds(0), encoding_of(envs))
        return collector.collect(act, n_steps, info_keys)


@pytest.mark.parametrize(
    "make", [partial(SyncEnvs, autoreset_mode=SAME, copy=False), WorkerEnvs], ids=["sync", "async"]
)
def test_every_info_arrives_as_it_was_given(make):
    batch = collect(make(MAKES), 3 * len(VALUES))
    assert len(batch.infos) == 3 * len(VALUES)
    for t, infos in enumerate(batch.infos):
        for i, (info, length) in enumerate(zip(infos, LENGTHS, strict=True)):
            episode, step = divmod(t, length)  # the step that ends an episode is told of that one
            expected = told(i, episode, step + 1)
            assert list(info) == list(expected)
            assert repr(info) == repr(expected) == repr(infos[i]) == repr(infos[i - 3])
            assert {k: type(x) for k, x in info.items()} == {k: type(x) for k, x in expected.items()}


def test_environments_are_numbered_from_0():
    (infos,) = collect(SyncEnvs(MAKES, autoreset_mode=SAME), 1).infos
    assert len(infos) == 3
    for i in (3, -4):
        with pytest.raises(IndexError):
            infos[i]


# -- vectors of Gymnasium's ---------------------------------------------------------------------


class Plain(Telling):
    """What Gymnasium can stack."""

    def tell(self):
        info = {"where": np.array([self.index, self.episode, self.steps]), "nested": {"step": self.steps}}
        return info | ({"even": True} if self.steps % 2 == 0 else {})


@pytest.mark.parametrize("mode", [SAME, AutoresetMode.NEXT_STEP])
@pytest.mark.parametrize("wrapper", [lambda envs: envs, DictInfoToList], ids=["stacked", "listed"])
def test_stacked_infos_are_taken_apart(mode, wrapper):
    envs = SyncVectorEnv([partial(Plain, i, length) for i, length in enumerate(LENGTHS)], autoreset_mode=mode)
    batch = collect(wrapper(envs), 20)
    for t, infos in enumerate(batch.infos):
        for i, info in enumerate(infos):
            episode, step = divmod(t, LENGTHS[i] + (mode is not SAME))
            if batch.valid[t, i]:
                assert info["where"].tolist() == [i, episode, step + 1]
                assert info["nested"] == {"step": step + 1}
                assert ("even" in info) == (step % 2 == 1)
                assert set(info) <= {"where", "nested", "even"}
            else:
                assert info["where"].tolist() == [i, episode + 1, 0]  # of the reset


def test_stacked_arrays_may_be_used_again_and_values_for_all_belong_to_each():
    class Again(SyncVectorEnv):
        array = np.zeros(3)

        def step(self, actions):
            self.array += 1
            return *super().step(actions)[:4], {"each": self.array, "t": torch.tensor(self.array), "all": 7}

    makes = [partial(Counting, i, length=99) for i in range(3)]
    batch = collect(Again(makes, autoreset_mode=SAME), 4)
    assert [[(info["each"], float(info["t"]), info["all"]) for info in infos] for infos in batch.infos] == [
        [(t, t, 7)] * 3 for t in (1.0, 2.0, 3.0, 4.0)
    ]


# -- numbers that are asked for -----------------------------------------------------------------

NUMBERS = (
    True, False, 3, -1, 0.25, np.bool_(True), np.int8(-3), np.uint64(2**63), np.float16(0.5), np.float32(0.25),
    np.array(2), np.array(True), np.array(0.5, np.float32), torch.tensor(2), torch.tensor(False), torch.tensor(0.5),
    torch.tensor(0.5, requires_grad=True), 2**70, float("inf"),
)  # fmt: skip


@pytest.mark.parametrize("value", NUMBERS, ids=lambda x: f"{type(x).__name__} {x}")
def test_numbers_of_every_kind_are_taken(value):
    found = numbers({"x": value, "y": "text"}, ["x", "z"], "environment 0")
    assert found == {"x": float(value.detach() if isinstance(value, torch.Tensor) else value)}
    assert type(found["x"]) is float


def test_nothing_is_found_where_there_is_none():
    assert numbers({"x": None}, ["x", "y"], "environment 0") == {}


@pytest.mark.parametrize(
    "value",
    ["1", "yes", b"1", [1.0], (1,), np.zeros(1), np.zeros((1, 1)), np.array("1"), {"a": 1}, {}, 1j, np.complex64(1),
     10**400, torch.zeros(1), [[1], [1, 2]], np.array(None), np.datetime64("2020-01-01"), Fraction(1, 3), object],
    ids=lambda x: f"{type(x).__name__} {str(x)[:9]}",
)  # fmt: skip
def test_anything_else_is_refused_in_one_line(value):
    allowed = r"; allowed as one of info_keys: a number, or None$"
    with pytest.raises(
        BadStep, match=rf"^info\['x'\] of environment 3 is .* \({type(value).__name__}\){allowed}"
    ) as error:
        numbers({"x": value}, ["x"], "environment 3")
    assert "\n" not in str(error.value)


class Scoring(gym.Env):
    """Draws a score for every episode, shows it all along, and says in its last info what that means.

    With a nuisance, the infos before it say under the same keys what is no number, as Gymnasium cannot stack it.
    """

    observation_space = gym.spaces.Box(0.0, 99.0, (2,))
    action_space = gym.spaces.Discrete(2)
    nuisance = False

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.score, self.steps = float(self.np_random.random(dtype=np.float32)), 0
        return self.observe(), self.tell(False)

    def step(self, action):
        self.steps += 1
        last = self.steps == 3
        return self.observe(), 1.0, last, False, self.tell(last)

    def tell(self, last):
        if last:
            return {"is_success": self.score > 0.5, "score": np.float32(self.score)} | (
                {"low": 1} if self.score < 0.3 else {}
            )
        return {"is_success": "not yet", "score": np.zeros(self.steps), "low": None} if self.nuisance else {}

    def observe(self):
        return np.array([self.score, self.steps], np.float32)


class Nuisance(Scoring):
    nuisance = True


class Scores(Callback):
    """Scores of all episodes, by the observations; what the episodes say."""

    def __init__(self):
        self.seen, self.told = [], []

    def on_update_start(self, agent, batch):
        self.seen += batch.observations[..., 0][batch.ended].tolist()
        self.told += [dict(e.info) for e in batch.episodes]


KEYS = ("is_success", "score", "low", "never")
METRICS = ("rollout/success_rate", "rollout/info/score", "rollout/info/low", "rollout/info/never")
VECTORS = {
    "sync": lambda: Nuisance,
    "async": lambda: Nuisance,
    "same step": lambda: SyncVectorEnv([Scoring] * 2, autoreset_mode=SAME),
    "next step": lambda: SyncVectorEnv([Scoring] * 2),
    "listed": lambda: DictInfoToList(SyncVectorEnv([Scoring] * 2, autoreset_mode=SAME)),
}


@pytest.mark.parametrize("kind", VECTORS)
def test_the_last_info_of_an_episode_counts_and_is_averaged_over_the_last_100(kind, tmp_path):
    scores = Scores()
    mode = "async" if kind == "async" else "sync"
    agent = small_agent(PPO, VECTORS[kind](), n_steps=99, info_keys=KEYS, vectorization_mode=mode)
    with contextlib.closing(agent):
        agent.learn(3 * 2 * 99, scores, run_dir=tmp_path / "run")
    seen = np.array(scores.seen)
    assert len(seen) > 130
    for score, told in zip(seen, scores.told, strict=True):
        expected = {"is_success": float(score > 0.5), "score": pytest.approx(score)}
        assert told == expected | ({"low": 1.0} if score < 0.3 else {})
    last = seen[-100:]
    expected = [(last > 0.5).mean(), last.mean(), 1.0, math.nan]
    metrics = agent.history[-1]
    assert [metrics[name] for name in METRICS] == pytest.approx(expected, nan_ok=True)
    with (tmp_path / "run" / "metrics.csv").open() as file:
        *_, row = csv.DictReader(file)
    assert [float(row[name] or "nan") for name in METRICS] == pytest.approx(expected, nan_ok=True)
    assert {f"rollout/info/{key}" for key in KEYS} & set(metrics) == set(METRICS[1:])


def test_without_keys_there_is_no_such_metric_and_before_the_first_episode_it_is_nan():
    agent = small_agent(PPO, Nuisance, n_envs=1).learn(32)
    assert not [name for name in agent.history[0] if "success" in name or "info" in name]
    asked = small_agent(PPO, Nuisance, n_envs=1, n_steps=2, batch_size=2, info_keys=("is_success",)).learn(2)
    assert math.isnan(asked.history[0]["rollout/success_rate"])


def test_keys_change_nothing_else():
    one, other = (small_agent(PPO, Nuisance, info_keys=keys).learn(256) for keys in ((), KEYS))
    assert all(torch.equal(a, b) for a, b in zip(one.actor.parameters(), other.actor.parameters(), strict=True))
    assert one.history[-1].items() - other.history[-1].items() <= {("time/fps", one.history[-1]["time/fps"])}


def test_what_is_no_number_ends_the_training_in_one_line():
    class Worded(Scoring):
        def tell(self, last):
            return {"grade": "good"}

    line = (
        r"^info\['grade'\] of environment 0 at the end of its episode 0 is good \(str\); allowed as one of info_keys: "
    )
    with pytest.raises(BadStep, match=line):
        small_agent(PPO, Worded, info_keys=("grade",)).learn(64)


@pytest.mark.parametrize("keys", ["is_success", ("",), ("a\nb",), (3,)])
def test_keys_are_texts(keys):
    with pytest.raises(ValueError, match=r"^info_keys = .*; allowed: (a tuple, each )?printable text without a comma$"):
        PPO.config_class(info_keys=keys)


def test_episodes_keep_their_numbers_in_checkpoints(tmp_path):
    agent = small_agent(PPO, Nuisance, info_keys=KEYS).learn(64)
    agent.save(tmp_path / "agent")
    again = PPO.load(tmp_path / "agent")
    assert list(again.episodes) == list(agent.episodes)
    assert [dict(e.info) for e in again.episodes] == [dict(e.info) for e in agent.episodes]
    assert any("low" in e.info for e in again.episodes)
    assert again.config.info_keys == KEYS
    agent.set_env(Nuisance)
    again.set_env(Nuisance)
    metrics = [a.learn(64).history[-1]["rollout/success_rate"] for a in (agent, again)]
    assert metrics[0] == metrics[1]


def test_a_key_that_no_info_has_is_told_once_with_those_that_are_there():
    agent = small_agent(PPO, Nuisance, info_keys=("is_sucess", "is_success"))
    with pytest.warns(RuntimeWarning, match=r"^info_keys = 'is_sucess': not in the last infos of the first") as told:
        agent.learn(256)
    assert len(agent.history) > 1
    assert len(told) == 1
    line = str(told[0].message)
    assert "'is_success'" in line.partition("numbers there: ")[2]
    assert line.endswith("; did you mean is_success?")


def test_a_comma_in_a_key_is_refused():
    with pytest.raises(ValueError, match=r"^info_keys = 'is_success,distance'; allowed: printable text"):
        PPO.config_class(info_keys=("is_success,distance",))
