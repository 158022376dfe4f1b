"""Settings that change over a training: their values, what is logged of them, and how they are saved and resumed."""

import math
from dataclasses import dataclass

import pytest
from environments import small_agent
from support import every_agent, parameters, same, slots, without_time

from klrl.agents import PPO, TRPO, PPOConfig, load_agent
from klrl.native import available
from klrl.run import Callback
from klrl.schedules import during, is_scheduled
from klrl.trust_region import Adaptive, AdaptiveLearningRate, All, Clip, Fixed, KLConstraint, KLPenalty, MirrorDescent
from klrl.trust_region.arithmetic import arithmetic
from klrl.trust_region.scheduling import with_values

TOTAL, N = 64 * 4, 4
LEFT = [1.0, 0.75, 0.5, 0.25]
"""Share of the training that is left at the beginning of each of its four updates."""


def half(progress_remaining):
    return 0.5 * progress_remaining


VALUES = [
    (0.25, [0.25] * N),
    ("constant:0.3", [0.3] * N),
    ("linear:0.4:0.2", [0.4, 0.35, 0.3, 0.25]),
    ("cosine:0.4:0.2", [0.3 + 0.1 * math.cos(math.pi * done) for done in (0.0, 0.25, 0.5, 0.75)]),
    ("piecewise:0.4:0.5:0.1", [0.4, 0.4, 0.1, 0.1]),
    ("piecewise:0.4:0.25:0.3:0.6:0.2", [0.4, 0.3, 0.3, 0.2]),
    (half, [0.5, 0.375, 0.25, 0.125]),
]
SCHEDULED = [
    ("clip_range", "train/clip_range", {}),
    ("ent_coef", "train/ent_coef", {}),
    ("target_kl", "drift/kl_target", {"trust_region": "early-stop"}),
    ("kl_coef", "train/kl_penalty", {"trust_region": "fixed-penalty"}),
    ("learning_rate", "train/learning_rate", {"learning_rate_schedule": "constant"}),
]


@pytest.mark.parametrize(("value", "expected"), VALUES)
def test_every_schedule_has_its_value_in_every_update(value, expected):
    assert [during(value, p) for p in LEFT] == pytest.approx(expected)
    agent = small_agent(PPO, n_epochs=1, clip_range=value).learn(TOTAL)
    assert [row["train/clip_range"] for row in agent.history] == pytest.approx(expected)


@pytest.mark.parametrize(("name", "metric", "settings"), SCHEDULED)
def test_every_setting_has_its_value_in_every_update_and_is_logged(name, metric, settings):
    for value, expected in (VALUES[2], VALUES[-1]):  # in words, and a function
        agent = small_agent(PPO, n_epochs=1, **{name: value}, **settings).learn(TOTAL)
        assert [row[metric] for row in agent.history] == pytest.approx(expected)


@every_agent
def test_the_linear_schedule_in_words_is_the_old_setting_to_the_bit(agent_class):
    old = small_agent(agent_class, learning_rate=1e-3, learning_rate_schedule="linear").learn(TOTAL)
    new = small_agent(agent_class, learning_rate="linear:1e-3:0", learning_rate_schedule="constant").learn(TOTAL)
    ignored = small_agent(agent_class, learning_rate="linear:1e-3:0", learning_rate_schedule="linear").learn(TOTAL)
    for other in (new, ignored):
        assert same(parameters(other), parameters(old))
        assert without_time(other) == without_time(old)


@pytest.mark.parametrize("region", ["clip", "clip+fixed-penalty", "rollback+constraint"])
def test_a_scheduled_setting_is_a_plain_number_to_all_that_computes(region):
    numbers = {"clip_range": 0.1, "ent_coef": 0.02}
    numbers |= {"kl_coef": 2.0} if "penalty" in region else {"target_kl": 0.02} if "constraint" in region else {}
    words = {name: f"constant:{x}" for name, x in numbers.items()}
    plain, scheduled = (small_agent(PPO, trust_region=region, **s).learn(TOTAL) for s in (numbers, words))
    assert same(parameters(scheduled), parameters(plain))
    assert same(slots(scheduled), slots(plain))
    assert without_time(scheduled) == without_time(plain)
    assert scheduled.region == plain.region
    assert arithmetic(scheduled.region) == arithmetic(plain.region) is not None
    if available():
        assert "kernel" in scheduled.describe()["paths"]["policy"]


def test_a_bound_that_falls_holds_in_every_update():
    agent = small_agent(TRPO, target_kl="linear:0.02:0").learn(64 * 8)
    targets = [row["drift/kl_target"] for row in agent.history]
    assert targets == pytest.approx([0.02 * (1 - i / 8) for i in range(8)])
    assert all(row["drift/kl"] <= row["drift/kl_target"] for row in agent.history)


def test_what_a_region_has_learned_stays():
    region = All(Clip(0.2), KLPenalty(Adaptive(target_kl=0.01, beta=7.0)), AdaptiveLearningRate(scale=3.0))
    found = with_values(region, {"clip_range": 0.1, "target_kl": 0.5, "kl_coef": 9.0})
    adaptive = KLPenalty(Adaptive(target_kl=0.5, beta=7.0))
    assert found == All(Clip(0.1), adaptive, AdaptiveLearningRate(target_kl=0.5, scale=3.0))
    assert with_values(KLPenalty(Fixed(2.0)), {"kl_coef": 9.0}) == KLPenalty(Fixed(9.0))
    assert with_values(MirrorDescent(kl_coef=2.0), {"kl_coef": 9.0}) == MirrorDescent(kl_coef=9.0)
    assert with_values(region, {}) is region


@every_agent
@pytest.mark.parametrize("value", ["cosine:1e-3:1e-4", lambda p: 1e-3 * p])
def test_an_interrupted_training_goes_on_in_its_schedule(agent_class, value, tmp_path):
    class Stop(Callback):
        def on_update_end(self, agent, batch, metrics):
            if agent.n_updates == 2:
                raise KeyboardInterrupt

    settings = {"learning_rate": value, "target_kl": "linear:0.03:0.01"}
    settings |= {"trust_region": "constraint", "learning_rate_schedule": "constant"}
    whole = small_agent(agent_class, **settings).learn(TOTAL)
    with pytest.raises(KeyboardInterrupt):
        small_agent(agent_class, **settings).learn(TOTAL, Stop(), run_dir=tmp_path / "run")
    again = {"learning_rate": value} if callable(value) else None
    resumed = agent_class.load(tmp_path / "run", schedules=again).resume(run_dir=tmp_path / "run")
    assert same(parameters(resumed), parameters(whole))
    assert without_time(resumed) == without_time(whole)
    assert resumed.config == whole.config


def test_a_function_is_saved_by_its_name_and_asked_for_in_one_line(tmp_path):
    agent = small_agent(PPO, clip_range=half, ent_coef=half).learn(64)
    path = agent.save(tmp_path / "agent")
    name = f"{half.__module__}:half"
    assert agent.describe()["config"]["clip_range"] == {"function": name}
    said = rf"path = .*: clip_range = {name}, ent_coef = {name}: functions are not saved; allowed: "
    with pytest.raises(ValueError, match=said + r"load\(..., schedules=\{'clip_range': ..., 'ent_coef': ...\}\)$"):
        PPO.load(path)
    with pytest.raises(ValueError, match=r"schedules has 'gamma'; allowed: target_kl, clip_range, kl_coef, learning_"):
        PPO.load(path, schedules={"gamma": half})
    loaded = load_agent(path, schedules={"clip_range": half, "ent_coef": 0.0})
    assert loaded.config.clip_range is half
    assert loaded.learn(64).history[-1]["train/clip_range"] == 0.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"clip_range": "linear:0.2"},
            r"clip_range = 'linear:0.2'; allowed: a number in \(0, 1e\+06\] or none, or const",
        ),
        ({"clip_range": "linear:0:0.2"}, "clip_range = 'linear:0:0.2'; "),
        ({"clip_range": "constant:0"}, "clip_range = 'constant:0'; "),
        ({"clip_range": "linear:0.2:nan"}, "clip_range = 'linear:0.2:nan'; "),
        ({"learning_rate": "sine:1:2"}, "learning_rate = 'sine:1:2'; "),
        ({"learning_rate": "piecewise:1:0.5"}, "learning_rate = 'piecewise:1:0.5'; "),
        ({"learning_rate": "piecewise:1:0.5:2:0.5:3"}, "learning_rate = 'piecewise:1:0.5:2:0.5:3'; "),
        ({"learning_rate": "linear:11:0"}, "learning_rate = 'linear:11:0'; "),
        ({"ent_coef": True}, r"ent_coef = True; allowed: a number in \[0, 1e\+06\]$"),
        (
            {"ent_coef": lambda p: -1.0},
            r"ent_coef = -1.0 from .*<lambda> at progress_remaining = 1; allowed: a number ",
        ),
        ({"target_kl": "linear:0.1:0"}, "target_kl = 0.1; allowed: only with a trust region that reads it "),
        (
            {"kl_coef": "linear:1:2", "trust_region": "adaptive-penalty"},
            "kl_coef = 'linear:1:2' with 'adaptive-penalty', which moves it by itself; allowed: a number",
        ),
    ],
)
def test_what_is_no_schedule_of_its_setting_is_refused_in_one_line(settings, message):
    with pytest.raises(ValueError, match=f"^{message}") as error:
        small_agent(PPO, **settings)
    assert "\n" not in str(error.value)


def test_a_function_that_leaves_its_range_ends_training_after_the_last_whole_update():
    agent = small_agent(PPO, ent_coef=lambda p: p - 0.5)
    with pytest.raises(
        ValueError, match=r"^ent_coef = -0.25 from .* at progress_remaining = 0.25; allowed: a number in"
    ):
        agent.learn(TOTAL)
    assert agent.n_updates == 3


def test_a_region_set_during_training_counts_from_the_next_update_on_and_shows():
    @dataclass
    class Narrow(Callback):
        region: object

        def on_update_end(self, agent, batch, metrics):
            if agent.n_updates == 2:
                agent.region = self.region

    agent = small_agent(PPO).learn(TOTAL, Narrow(All(Clip(0.05), KLConstraint(0.02))))
    assert [row["train/clip_range"] for row in agent.history] == [0.2, 0.2, 0.05, 0.05]
    assert [row.get("drift/kl_target") for row in agent.history] == [None, None, 0.02, 0.02]
    scheduled = small_agent(PPO, clip_range="linear:0.2:0").learn(TOTAL, Narrow(Clip(0.05)))
    assert [row["train/clip_range"] for row in scheduled.history] == pytest.approx([0.2, 0.15, 0.1, 0.05])


def test_plain_numbers_and_words_are_told_apart():
    assert [is_scheduled(x) for x in (0.1, "linear:1:0", half, None)] == [False, True, True, False]
    assert PPOConfig(clip_range="linear:0.2:0.1") == PPOConfig(clip_range="linear:0.2:0.1")


@every_agent
def test_what_stable_baselines3_logs_has_its_names(agent_class):
    settings = {"ent_coef": 0.1, "vf_coef": 0.25, "n_epochs": 3} if agent_class is PPO else {}
    first, second = small_agent(agent_class, **settings).learn(128).history
    for row, n in ((first, 1), (second, 2)):
        assert row["train/entropy_loss"] == -row["train/entropy"]
        assert row["train/approx_kl"] == row["drift/kl_k3"]
        assert row["train/n_updates"] == (3 * n if agent_class is PPO else n)
    if agent_class is PPO:  # the entropy before the second update is that after the first one: statistics are folded
        loss = second["train/policy_gradient_loss"] + 0.25 * second["train/value_loss"] - 0.1 * first["train/entropy"]
        assert second["train/loss"] == pytest.approx(loss, rel=1e-4)
