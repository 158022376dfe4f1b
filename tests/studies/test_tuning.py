"""klrl tune: real searches with Optuna, what their trials are worth, and what is left of them after kill -9."""

import csv
import json
import math
import shutil
import signal
import statistics
import sys

import numpy as np
import optuna
import pytest
from torture.processes import Fork

from klrl.agents import PPO, PPOConfig, load_agent
from klrl.run import Callback, evaluate
from klrl.run.lock import Lock
from klrl.scripts.main import main
from klrl.studies.scored import POINTS
from klrl.studies.space import Choice, Range, searched
from klrl.studies.tuner import Tuner
from klrl.studies.tuning import tuning
from klrl.studies.tuning_results import best_trials, write_results

TINY = ["n_envs=2", "n_steps=32", "batch_size=32", "actor_hidden_sizes=8", "critic_hidden_sizes=8"]
SEARCH = ["learning_rate=1e-3:1e-1:log", "n_epochs=1,2"]
STEPS = 640
WORDS = [
    "tune", "ppo", "--env", "CartPole-v1", "--search", *SEARCH, "--set", *TINY, "--seeds", "100", "101",
    "--total-timesteps", str(STEPS), "--checkpoint-every", "128",
]  # fmt: skip


def tuner(output, search=SEARCH, assignments=TINY, **options):
    """A search by this process, and what it says."""
    of_tuner = {k: options.pop(k) for k in ("storage", "sampler", "pruner", "sampler_seed") if k in options}
    options = {"seeds": (100, 101), "total_timesteps": 128} | options
    said = []
    found = Tuner(tuning("ppo", "CartPole-v1", search, assignments, **options), output, say=said.append, **of_tuner)
    found.said = said
    return found


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def without_time(path):
    return [{k: v for k, v in row.items() if not k.startswith("time/fps")} for row in rows(path)]


def last_tenth(run, steps):
    return statistics.mean(float(r["return"]) for r in rows(run / "episodes.csv") if int(r["total_timesteps"]) > steps)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The directory of one search that nothing interrupted."""
    output = tmp_path_factory.mktemp("made") / "search"
    main([*WORDS, "--trials", "2", "--output", str(output)])
    return output


# -- what a trial is worth ------------------------------------------------------------------------


def test_a_trial_is_worth_what_the_same_training_is_by_hand(made, tmp_path):
    trial = rows(made / "trials.csv")[1]
    assert (trial["number"], trial["state"], trial["over_budget"], trial["error"]) == ("1", "complete", "", "")
    returns, kl = [], []
    for seed in (100, 101):
        run = made / f"trials/1/seed-{seed}"
        config = PPOConfig.from_json(json.loads((run / "config.json").read_text())["config"])
        assert (config.n_epochs, config.learning_rate) == (int(trial["n_epochs"]), float(trial["learning_rate"]))
        agent = PPO("CartPole-v1", config, seed=seed).learn(STEPS, run_dir=tmp_path / f"{seed}")
        assert without_time(tmp_path / f"{seed}/metrics.csv") == without_time(run / "metrics.csv")
        returns.append(last_tenth(tmp_path / f"{seed}", 0.9 * STEPS))
        kl.append(sum(row["drift/kl"] for row in agent.history))
    assert float(trial["return"]) == pytest.approx(statistics.mean(returns))
    assert float(trial["kl_sum"]) == pytest.approx(statistics.mean(kl))


def test_an_evaluation_may_be_what_counts(tmp_path):
    search = tuner(tmp_path, measure="evaluation", seeds=(100,))
    search.run(1)
    agent = load_agent(tmp_path / "trials/0/seed-100", "CartPole-v1")
    with agent.envs.envs[0].unwrapped.spec.make() as env:
        expected = evaluate(agent, env, 20, seed=100).mean
    assert float(best_trials(search)[0].mean_return) == expected


def test_the_best_settings_train_from_the_file_and_by_the_command(made, tmp_path, monkeypatch):
    trials = rows(made / "trials.csv")
    winner = max(trials, key=lambda row: float(row["return"]))
    settings = json.loads((made / "best.json").read_text())
    config = PPOConfig(**settings)
    kept = json.loads((made / f"trials/{winner['number']}/seed-100/config.json").read_text())
    assert config.to_json() == PPOConfig.from_json(kept["config"]).to_json()
    monkeypatch.chdir(tmp_path)
    again = Tuner(tuning("ppo", "CartPole-v1", SEARCH, TINY, seeds=(100, 101), total_timesteps=STEPS), made)
    words = best_trials(again)[0].command.split()
    assert words[:7] == ["klrl", "train", "ppo", "--env", "CartPole-v1", "--total-timesteps", str(STEPS)]
    words[6] = "64"
    by_file = ["train", "ppo", "--env", "CartPole-v1", "--total-timesteps", "64", "--config", str(made / "best.json")]
    main([*words[1:], "--run-dir", "run", "--eval-episodes", "0"])
    main([*by_file, "--run-dir", "same", "--eval-episodes", "0"])
    main([*by_file, "--run-dir", "other", "--eval-episodes", "0", "--gamma", "0.5", "--seed", "3"])
    run, same, other = (json.loads((tmp_path / f"{name}/config.json").read_text()) for name in ("run", "same", "other"))
    assert run["config"] == same["config"] == settings
    assert without_time(tmp_path / "same/metrics.csv") == without_time(tmp_path / "run/metrics.csv")
    assert (other["config"], other["seed"]) == (settings | {"gamma": 0.5}, 3)


@pytest.mark.parametrize(
    ("assignments", "presets"),
    [(["normalize_advantage=false", "actor_hidden_sizes=32,16", "fisher_batch_size=None"], False), ([], True)],
)
def test_the_command_says_every_setting_that_differs(assignments, presets, tmp_path, monkeypatch):
    design = tuning(
        "trpo", "CartPole-v1", ["target_kl=0.001:0.1:log"], assignments, presets=presets, total_timesteps=64
    )
    chosen = {"target_kl": 0.012345678901234567}
    monkeypatch.chdir(tmp_path)
    main([*design.command(chosen, seed=7).split()[1:], "--run-dir", "run", "--eval-episodes", "0"])
    run = json.loads((tmp_path / "run/config.json").read_text())
    assert (run["config"], run["seed"]) == (json.loads(json.dumps(design.config(chosen).to_json())), 7)


def test_two_objectives_leave_the_trials_that_none_is_better_than_in_both(tmp_path):
    search = tuner(tmp_path, objective="return-and-kl", seeds=(100,))
    search.run(5)
    files = write_results(search)
    trials = [(int(row["number"]), float(row["return"]), float(row["kl_sum"])) for row in rows(tmp_path / "trials.csv")]
    front = {
        n for n, value, kl in trials
        if not any(v >= value and k <= kl and (v, k) != (value, kl) for _, v, k in trials)
    }  # fmt: skip
    assert {int(path.stem.removeprefix("best-")) for path in files} == front
    assert {path.name for path in tmp_path.glob("best*")} == {f"best-{n}.json" for n in front}
    assert [one.number for one in best_trials(search)] == sorted(front, key=lambda n: -{t[0]: t[1] for t in trials}[n])
    for path in files:
        PPOConfig(**json.loads(path.read_text()))


def test_the_best_trial_is_within_the_budget(tmp_path):
    free = tuner(tmp_path / "free", seeds=(100,), sampler_seed=2)
    free.run(3)
    write_results(free)
    trials = {row["number"]: row for row in rows(tmp_path / "free/trials.csv")}
    spent = {number: float(row["kl_sum"]) for number, row in trials.items()}
    (cheapest, least), (_, second), _ = sorted(spent.items(), key=lambda item: item[1])
    assert float(trials[cheapest]["return"]) < max(float(row["return"]) for row in trials.values()), "another seed"
    bound = tuner(tmp_path / "bound", seeds=(100,), sampler_seed=2, kl_budget=(least + second) / 2.0)
    bound.run(3)
    write_results(bound)
    over = {row["number"]: row["over_budget"] for row in rows(tmp_path / "bound/trials.csv")}
    assert over == {number: str(number != cheapest) for number in trials}
    assert [str(one.number) for one in best_trials(bound)] == [cheapest]
    assert sum("over the budget of" in line for line in bound.said) == 2


def test_without_a_trial_within_the_budget_there_is_no_best(tmp_path, capsys):
    words = [*WORDS, "--trials", "1", "--kl-budget", "1e-12", "--output", str(tmp_path / "search")]
    words[words.index("--total-timesteps") + 1] = "64"
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 1
    assert capsys.readouterr().err == "klrl tune: no finished trial within the budget of 1e-12 nats\n"
    assert not (tmp_path / "search/best.json").exists()
    assert len(rows(tmp_path / "search/trials.csv")) == 1


def test_settings_of_a_trust_region_are_searched_where_it_reads_them(tmp_path):
    search = ["target_kl=0.003:0.03", "trust_region=clip,constraint,none", "clip_range=0.1,0.3"]
    design = tuning("ppo", "CartPole-v1", search, TINY)
    reads = {"clip": {"clip_range"}, "constraint": {"target_kl"}, "none": set()}
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    seen = set()
    for _ in range(20):
        chosen = design.suggest(study.ask())
        region = chosen["trust_region"]
        assert chosen.keys() == {"trust_region", *reads[region]}
        assert design.config(chosen).region is not None
        seen.add(region)
    assert seen == reads.keys()


# -- reports and pruning --------------------------------------------------------------------------


def test_means_over_seeds_are_reported_along_the_run(tmp_path):
    search = tuner(tmp_path, pruner="NopPruner", total_timesteps=512)
    search.run(1)
    curves = []
    for seed in (100, 101):
        metrics = rows(tmp_path / f"trials/0/seed-{seed}/metrics.csv")  # 8 updates of 64 steps, 10 points
        steps = [float(row["time/total_timesteps"]) for row in metrics]
        first = [next(i for i, at in enumerate(steps) if at * POINTS >= 512 * point) for point in range(1, POINTS + 1)]
        curves.append([float(metrics[i]["rollout/ep_rew_mean"]) for i in first])
    expected = {i: x for i, x in enumerate([*curves[0], *np.mean(curves, axis=0)]) if not math.isnan(x)}
    assert search.study.trials[0].intermediate_values == pytest.approx(expected)


def test_a_pruned_trial_ends_early_and_is_no_best(tmp_path):
    search = tuner(tmp_path, total_timesteps=512)
    search.run(1)
    search.study.pruner = optuna.pruners.ThresholdPruner(lower=1e9, n_warmup_steps=5)
    search.run(2)
    assert search.counts() == {"complete": 1, "pruned": 1}
    assert search.said[1].startswith("trial 1: pruned; learning_rate = ")
    steps = [float(row["time/total_timesteps"]) for row in rows(tmp_path / "trials/1/seed-100/metrics.csv")]
    assert steps[-1] == 320.0  # the first update at or after point 6 of 10
    assert not (tmp_path / "trials/1/seed-101").exists()
    write_results(search)
    assert [row["state"] for row in rows(tmp_path / "trials.csv")] == ["complete", "pruned"]
    assert [one.number for one in best_trials(search)] == [0]


def test_settings_that_do_not_fit_each_other_fail_a_trial_and_not_the_search(tmp_path):
    search = tuner(tmp_path, ["batch_size=32,128"], ["n_envs=2", "n_steps=32"], sampler="RandomSampler")
    search.run(3)
    write_results(search)
    of_size = {row["batch_size"]: row for row in rows(tmp_path / "trials.csv")}
    failed, complete = of_size["128"], of_size["32"]
    assert (failed["state"], complete["state"]) == ("fail", "complete")
    assert failed["error"] == "ValueError: batch_size = 128; allowed: at most n_envs * n_steps = 64"
    assert any(failed["error"] in line for line in search.said)
    assert [one.chosen for one in best_trials(search)] == [{"batch_size": 32}]


# -- what is kept ---------------------------------------------------------------------------------


# It kills itself with its second checkpoint of that run: whoever watched it could come too late.
KILLED = """
import os, signal, sys
from klrl.run.directory import RunDirectory
from klrl.scripts.main import main
save = RunDirectory.save
def save_and_die(self, *then):
    save(self, *then)
    if self.path.match(sys.argv[1]) and len([*self.path.glob("checkpoints/0*")]) > 1:
        os.kill(os.getpid(), signal.SIGKILL)
RunDirectory.save = save_and_die
main(sys.argv[2:])
"""


def test_a_search_that_was_killed_goes_on_and_is_the_same(made, tmp_path, capsys):
    killed = Fork(["-c", KILLED, "trials/1/seed-101", *WORDS, "--trials", "2", "--output", "search"], tmp_path).wait()
    assert killed.code == -signal.SIGKILL
    assert not (tmp_path / "search/trials/1/seed-101.json").exists()
    before = (tmp_path / "search/trials/1/seed-100.json").stat().st_mtime_ns
    main([*WORDS, "--trials", "2", "--output", str(tmp_path / "search")])
    said = capsys.readouterr().out
    assert said.startswith("trial 1 goes on\ntrial 1: return ")
    assert "trial 0:" not in said.partition("best:")[0]
    assert (tmp_path / "search/trials/1/seed-100.json").stat().st_mtime_ns == before
    for run in ("0/seed-100", "0/seed-101", "1/seed-100", "1/seed-101"):
        there, here = made / "trials" / run, tmp_path / "search/trials" / run
        assert without_time(there / "metrics.csv") == without_time(here / "metrics.csv"), run
        assert (there / "episodes.csv").read_text() == (here / "episodes.csv").read_text()
    for name in ("trials.csv", "best.json"):
        assert (made / name).read_text() == (tmp_path / "search" / name).read_text()


def test_a_signal_ends_the_search_with_a_checkpoint(tmp_path):
    words = [*WORDS, "--trials", "1", "--output", "search", "--total-timesteps", "100000000"]
    words[words.index("--checkpoint-every") + 1] = "50000000"
    process = Fork(["-m", "klrl.scripts.main", *words], tmp_path)
    run = tmp_path / "search/trials/0/seed-100"
    process.until(lambda: (run / "metrics.csv").exists() and len(rows(run / "metrics.csv")) > 1)
    process.send(signal.SIGTERM)
    ended = process.wait()
    assert (ended.code, ended.err) == (143, "")
    assert ended.out == "stopped by SIGTERM; the same command goes on\n"
    kept = int(max((run / "checkpoints").iterdir()).name)
    assert kept == load_agent(run, "CartPole-v1").num_timesteps
    assert 64 * len(rows(run / "metrics.csv")) - kept in (0, 64)  # a row may be written just before the signal comes
    Lock(run.parent).release()  # the trial is free


# No process trains before there are two trials: one that started late would find all of them done.
TOGETHER = """
import sys, time
from klrl.scripts.main import main
from klrl.studies.tuner import Tuner
finish = Tuner._finish
def together(self, turn, callbacks):
    while len([*(self.output / "trials").iterdir()]) < 2:
        time.sleep(0.02)
    return finish(self, turn, callbacks)
Tuner._finish = together
main(sys.argv[1:])
"""


def test_two_processes_share_a_search(tmp_path):
    words = [*WORDS, "--trials", "6", "--output", "search"]
    words[words.index("--total-timesteps") + 1] = "128"
    processes = [Fork(["-c", TOGETHER, *words], tmp_path) for _ in range(2)]
    ended = [process.wait() for process in processes]
    assert [e.code for e in ended] == [0, 0], [e.err for e in ended]
    done = [{line.split()[1] for line in e.out.splitlines() if line.startswith("trial")} for e in ended]
    assert all(done)
    assert not done[0] & done[1]
    assert done[0] | done[1] == {f"{n}:" for n in range(6)}
    trials = rows(tmp_path / "search/trials.csv")
    assert [row["state"] for row in trials] == ["complete"] * 6
    assert len({row["learning_rate"] for row in trials}) == 6  # none was tried twice


def test_a_trial_that_another_process_works_on_is_left_to_it(tmp_path):
    search = tuner(tmp_path, seeds=(100,))
    search.study.ask()
    (tmp_path / "trials/0").mkdir()
    held = Lock(tmp_path / "trials/0")
    search.run(2)
    assert search.counts() == {"running": 1, "complete": 1}
    held.release()
    search.run(2)
    assert search.said[1:] == ["trial 0 goes on", search.said[-1]]
    assert search.counts() == {"complete": 2}


def test_a_trial_that_ends_while_another_process_looks_for_one_is_left_alone(tmp_path, monkeypatch):
    search, other = (tuner(tmp_path, seeds=(100,)) for _ in range(2))
    trial = other.study.ask()
    free = search._free

    def told_before_it_was_free(number):
        if number == trial.number:
            other.study.tell(trial, 1.0)
        return free(number)

    monkeypatch.setattr(search, "_free", told_before_it_was_free)
    search.run(2)
    assert [said.split(":")[0] for said in search.said] == ["trial 1"]
    assert search.counts() == {"complete": 2}
    Lock(tmp_path / "trials/0").release()  # it was let go of


class Dies(Callback):
    """Ends its process before the first update, as running out of memory does."""

    def on_training_start(self, agent, total_timesteps):
        raise SystemExit(9)


class Interrupts(Callback):
    def on_training_start(self, agent, total_timesteps):
        raise KeyboardInterrupt


def test_a_trial_whose_processes_die_again_and_again_is_given_up(tmp_path):
    search = tuner(tmp_path, seeds=(100,))
    for _ in range(4):
        with pytest.raises(SystemExit):
            search.run(2, [Dies()])
    with pytest.raises(KeyboardInterrupt):
        search.run(2, [Interrupts()])
    assert search.counts() == {"fail": 1, "running": 1}
    died = "trial 0: failed, its process died 4 times without a new checkpoint; learning_rate = "
    assert [line.startswith(died) for line in search.said] == [False, False, False, True]
    for _ in range(4):  # who is interrupted is not to blame
        with pytest.raises(KeyboardInterrupt):
            search.run(2, [Interrupts()])
    search.run(2)
    assert search.counts() == {"fail": 1, "complete": 1}


def test_another_search_is_refused_in_the_same_output(made, capsys):
    words = [*WORDS, "--trials", "2", "--output", str(made)]
    words[words.index("n_epochs=1,2")] = "n_epochs=1,3"
    words[words.index("--total-timesteps") + 1] = "512"
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith(
        f"klrl tune: output = {made} holds another search: search = ['learning_rate=0.001:0.1:log', "
    )
    assert f"total_timesteps = {STEPS}; allowed: the same one, or a new directory" in line
    assert line.count("\n") == 1


def test_runs_of_a_lost_study_are_not_taken_for_those_of_a_new_one(made, tmp_path):
    output = tmp_path / "search"
    shutil.copytree(made, output)
    (output / "study.db").unlink()
    again = tuner(output, total_timesteps=STEPS, sampler_seed=1)
    again.run(1)
    assert again.counts() == {"fail": 1}
    assert "is of a run with other settings" in again.said[0]
    for scores in output.glob("trials/*/seed-*.json"):  # the search ended before the runs did
        scores.unlink()
    again.run(2)
    assert again.counts() == {"fail": 2}
    assert "holds another run: learning_rate = " in again.said[1]


# -- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"agent": "sac"}, "agent = 'sac'; allowed: ppo, trpo, npg"),
        ({"env": "CartPol-v1"}, "env = 'CartPol-v1'"),
        ({"search": ["lr=1e-4:1e-2"]}, "search = 'lr' is no setting of ppo; allowed: "),
        ({"search": ["gama=0.9,0.99"]}, "'gama' is no setting of ppo; allowed: gamma, "),
        ({"search": ["gamma"]}, "search = 'gamma'; allowed: NAME=LOW:HIGH, NAME=LOW:HIGH:log or NAME=VALUE,VALUE,..."),
        ({"search": ["gamma=0.9:0.5"]}, "search = 'gamma=0.9:0.5' is an empty range; allowed: LOW < HIGH"),
        ({"search": ["ent_coef=0:1:log"]}, "search = 'ent_coef=0:1:log' is an empty range; allowed: 0 < LOW < HIGH"),
        ({"search": ["gamma=0.9:1.5"]}, "gamma = 1.5; allowed: a number in [0, 1]"),
        ({"search": ["n_epochs=1:2.5"]}, "n_epochs = 2.5; allowed: an integer in [1, 1e+06]"),
        ({"search": ["n_epochs=1:5:linear"]}, "search = 'n_epochs=1:5:linear'; allowed: NAME=LOW:HIGH,"),
        ({"search": ["activation=tanh,sine"]}, "activation = 'sine'; allowed: "),
        ({"search": ["activation=tanh,tanh"]}, "search = 'activation=tanh,tanh' has 'tanh' twice; allowed:"),
        ({"search": ["trust_region=clip,clp"]}, "trust_region = 'clp'; allowed: none, clip,"),
        ({"search": ["gamma=0.9,0.99", "gamma=0.8:0.9"]}, "search = 'gamma' twice; allowed: every setting once"),
        ({"search": ["target_kl=0.003:0.03"]}, "search = 'target_kl'; allowed: only with a trust region that reads it"),
        ({"search": ["gamma=0.9,0.99"], "set": ["gamma=0.9"]}, "set = 'gamma'; allowed: what --search does not search"),
        ({"search": ["learning_rate=linear:0.1"]}, "learning_rate = 'linear'; allowed: a number in (0, 10]"),
        ({"set": ["gae_lambda={[]:1}"]}, "gae_lambda = '{[]:1}'; allowed: a number"),
        ({"set": ["n_steps"]}, "set = 'n_steps'; allowed: NAME=VALUE"),
        ({"set": ["kl_coef=1"]}, "set = 'kl_coef'; allowed: only with a trust region that reads it"),
        ({"set": ["n_envs=1", "n_steps=2", "batch_size=64"]}, "batch_size = 64; allowed: at most n_envs * n_steps = 2"),
        ({"search": ["trust_region=w2-projection,frobenius-projection"]}, "trust_region projects"),
        ({"seeds": ["1", "1"]}, "seeds = (1, 1); allowed: at least one, every seed once"),
        ({"sampler": ["TPE"]}, "sampler = 'TPE'; allowed: CmaEsSampler, GPSampler,"),
        ({"pruner": ["MedianPrune"]}, "pruner = 'MedianPrune'; allowed: HyperbandPruner, MedianPruner, NopPruner,"),
        (
            {"objective": ["return-and-kl"], "pruner": ["MedianPruner"]},
            "pruner = 'MedianPruner' with objective = 'return-and-kl'; allowed: NopPruner",
        ),
        ({"kl-budget": ["-1"]}, "kl_budget = -1.0; allowed: a number > 0"),
        ({"storage": ["nothing"]}, "storage = nothing: ArgumentError: "),
    ],
)  # fmt: skip
def test_what_cannot_be_searched_is_refused_in_one_line(change, said, tmp_path, capsys):
    given = {"agent": "ppo", "env": "CartPole-v1", "search": ["gamma=0.9:0.99"]} | change
    words = ["tune", given.pop("agent"), "--env", given.pop("env"), "--output", str(tmp_path / "no")]
    words += [word for name, values in given.items() for word in (f"--{name}", *values)]
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith("klrl tune: ")
    assert said in line
    assert line.count("\n") == 1, line
    assert not [*tmp_path.rglob("trials/*")]


def test_without_optuna_the_extra_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(SystemExit) as stop:
        main([*WORDS, "--output", str(tmp_path / "no")])
    assert stop.value.code == 2
    assert capsys.readouterr().err == "klrl tune: the search needs Optuna: pip install 'klrl[tune]'\n"


def test_ranges_and_choices_are_read():
    assert searched(PPOConfig, "learning-rate=1e-4:1e-2:log") == Range("learning_rate", 1e-4, 1e-2, log=True)
    assert searched(PPOConfig, "n_epochs=2:20") == Range("n_epochs", 2, 20, whole=True)
    assert searched(PPOConfig, "target_kl=0.003:1") == Range("target_kl", 0.003, 1)
    assert searched(PPOConfig, "actor_hidden_sizes=64/256,256") == Choice(
        "actor_hidden_sizes", {"64": (64,), "256,256": (256, 256)}
    )
    assert searched(PPOConfig, "learning_rate=3e-4,linear:1e-3:0") == Choice(
        "learning_rate", {"3e-4": 3e-4, "linear:1e-3:0": "linear:1e-3:0"}
    )
    assert searched(PPOConfig, "clip_range=linear:0.2:0").ends == ("linear:0.2:0",)
    assert searched(PPOConfig, "normalize_advantage=true,false").ends == (True, False)
    assert searched(PPOConfig, "target_kl=None,0.01").ends == (None, 0.01)
