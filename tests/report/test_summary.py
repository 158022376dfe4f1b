"""Tables and words of a report."""

import json
import shlex

import numpy as np
import pytest
from made_runs import described, rows, write_run

from klrl.agents import PPO, TRPO, PPOConfig
from klrl.agents.settings import CONFIGS
from klrl.keywords import to_json
from klrl.report import read_runs
from klrl.report import summary as of
from klrl.report.intervals import over_seeds
from klrl.report.variants import settings_of
from klrl.scripts.cli.command_line import parse
from klrl.scripts.cli.env_words import keywords
from klrl.scripts.train import Training, _algorithm, _defaults
from klrl.trust_region import Clip


def runs_of(tmp_path, seeds=4, updates=50):
    for seed in range(seeds):
        episodes = [(2048 * updates, 100.0 + 10.0 * seed, 10, 0)]
        write_run(tmp_path / f"{seed}", rows(updates, seed), described(seed=seed), episodes)
    return read_runs([tmp_path])


def test_results_are_means_over_seeds_with_intervals_and_the_number_of_seeds(tmp_path):
    runs = runs_of(tmp_path)
    (group,) = of.groups(runs)
    row = dict(zip(of.RESULTS, of.results(group), strict=True))
    kl = [run.columns["drift/kl"] for run in runs]
    over = sum(int((x > 0.01).sum()) for x in kl)
    assert row["runs"] == "4 done"
    assert row["return, last 10 % of training"] == "115.0\n94.5 to 135.5, n = 4"  # t = 3.182, s = 12.91
    expected = over_seeds([x.mean() for x in kl])
    assert row["mean KL, nats"] == f"{expected.value:.4f}\n{expected.low:.4f} to {expected.high:.4f}, n = 4"
    assert row["largest KL, nats"] == f"{np.max(kl):.4f}"
    assert row["updates over target"] == f"{over / 200:.0%}\n{over} of 200"
    following = [run.column("drift/kl_next") for run in runs]
    judged, over = (sum(int(f(x).sum()) for x in following) for f in (np.isfinite, lambda x: x > 0.01))
    assert row["over it on the next states"] == f"{over / judged:.0%}\n{over} of {judged}"


def test_two_seeds_never_get_an_interval(tmp_path):
    (group,) = of.groups(runs_of(tmp_path, seeds=2))
    assert of.results(group)[of.RESULTS.index("return, last 10 % of training")] == "105.0\nn = 2"


def test_a_run_without_updates_counts_in_its_row_and_among_the_failures(tmp_path):
    runs_of(tmp_path, seeds=3)
    write_run(tmp_path / "4", [], described(seed=4))
    runs = read_runs([tmp_path])
    (group,) = of.groups(runs)
    assert of.results(group)[2] == "3 done, 1 waiting"
    assert of.failures(runs) == [
        ("CartPole-v1 ppo seed 4", "waiting", "no update is complete", str(tmp_path / "4")),
    ]


def test_what_differs_and_what_does_not(tmp_path):
    write_run(tmp_path / "1", rows(1), described(target_kl=0.01))
    write_run(tmp_path / "2", rows(1), described(target_kl=0.02))
    found = of.differences(of.groups(read_runs([tmp_path])))
    assert found.names == ("target_kl",)
    assert [row[2:] for row in found.rows] == [("0.01",), ("0.02",)]
    assert dict(found.same)["gamma"] == "0.99"
    assert "seed" not in dict(found.same)


def test_reasons_are_shares_of_all_updates(tmp_path):
    (row,) = of.stop_reasons(of.groups(runs_of(tmp_path)))
    assert row[2] == "inside the region 80%, stepped back 20%"


def test_versions_are_named_where_runs_differ(tmp_path):
    for i, version in enumerate(("1.0", "2.0")):
        write_run(tmp_path / str(i), rows(1), described(seed=i) | {"versions": {"python": "3.11", "torch": version}})
    assert of.versions(read_runs([tmp_path])) == [("python", "3.11"), ("torch", "1.0, 2.0")]


@pytest.mark.parametrize(
    "agent",
    [
        lambda: PPO("CartPole-v1", seed=3),
        lambda: TRPO("Pendulum-v1", seed=0),
        lambda: PPO("CartPole-v1", PPOConfig(trust_region="clip+adaptive-penalty", target_kl=0.02, n_envs=2), seed=1),
        lambda: PPO("CartPole-v1", PPOConfig(actor_hidden_sizes=(), info_keys=("is_success",)), seed=1),
    ],
)
@pytest.mark.filterwarnings("ignore:info_keys = ")
def test_the_command_trains_with_the_very_settings(agent):
    agent = agent()
    agent.close()
    config = json.loads(json.dumps(agent.describe())) | {"total_timesteps": 4096}
    klrl, train, *words = shlex.split(of.command(config))
    name, options = _algorithm(words)
    training = parse(Training, options, "klrl train", _defaults(name, options))
    assert (klrl, train, name) == ("klrl", "train", config["agent"])
    assert isinstance(training.agent, CONFIGS[name])
    assert json.loads(json.dumps(training.agent.to_json())) == config["config"]
    assert (training.env, training.seed, training.total_timesteps) == (config["env"]["id"], config["seed"], 4096)


def test_a_log_of_another_library_has_no_command():
    assert of.command({}) == ""
    noted = {"agent": "PPO of stable_baselines3", "env": {"id": "CartPole-v1"}, "config": {"gamma": 0.9}}
    assert of.command(noted | {"total_timesteps": 2048}) == ""


def test_the_command_says_wrappers_and_what_ends_the_training():
    config = described()
    config["env"] |= {"kwargs": {"g": 5.0}, "wrappers": [{"name": "mine:Calm", "kwargs": {"wind": 0.5}}]}
    words = shlex.split(of.command(config | {"kl_budget": 2.0, "over_budget": "warn", "stop_at_return": None}))
    assert words[-5:] == ["--env-kwargs", "g=5.0", "--wrapper", "mine:Calm", "wind=0.5"]
    assert "--kl-budget 2.0 --over-budget warn" in " ".join(words)
    assert "--stop-at-return" not in words


def test_the_command_has_the_arguments_that_the_run_had():
    given = {"shape": (64, 64), "limits": [1, 2.5], "camera": {"shape": (3,), "gray": True}, "level": None, "id": "8"}
    config = described()
    config["env"] |= {"kwargs": to_json(given)}
    words = shlex.split(of.command(json.loads(json.dumps(config))))
    assert keywords(words[words.index("--env-kwargs") + 1 :]) == given


def test_settings_of_environments_are_shown_as_they_are_written():
    env = {"id": "A-v0", "kwargs": {"shape": {"tuple": [64, 64]}, "on": True}, "max_episode_steps": None}
    assert settings_of({"env": env}) == {"env kwargs": "{'shape': (64, 64), 'on': True}", "env max_episode_steps": "-"}


@pytest.mark.parametrize("setting", [{"learning_rate": lambda progress: 0.1}, {"trust_region": Clip(0.1)}])
def test_settings_that_no_flag_can_say_have_no_command(setting):
    agent = PPO("CartPole-v1", PPOConfig(**setting), seed=0)
    agent.close()
    assert of.command(json.loads(json.dumps(agent.describe())) | {"total_timesteps": 2048}) == ""
