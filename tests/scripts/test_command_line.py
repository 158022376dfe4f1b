"""The klrl command end to end, as a user runs it: real processes, real files, exit statuses."""

import ast
import csv
import inspect
import json
import re
import signal
import subprocess
import sys
import time
from dataclasses import fields
from functools import partial
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import gymnasium as gym
import numpy as np
import pytest
from environments import Broken, Counting, small_agent
from gymnasium.envs.registration import EnvSpec
from support import full_disk
from torture.processes import Fork

from klrl.agents import AGENTS, PPO
from klrl.run import checkpoint
from klrl.scripts.main import main
from klrl.trust_region import RegionSettings

ROOT = Path(__file__).parents[2]
SMALL = ["--env", "CartPole-v1", "--total-timesteps", "1024", "--eval-episodes", "1"]


def field_docstrings(cls):
    """The text under every annotated attribute of a class, on one line."""
    tree = ast.parse(Path(inspect.getsourcefile(cls)).read_text())
    (node,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == cls.__name__)
    return {
        field.target.id: " ".join(text.value.value.split())
        for field, text in pairwise(node.body)
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
    }


def klrl(*words, cwd="."):
    """What ``klrl ...`` says and its exit status, from a process that has imported klrl before."""
    with TemporaryDirectory() as scratch:
        ended = Fork(["-m", "klrl.scripts.main", *words], Path(scratch), cwd=Path(cwd)).wait()
    return subprocess.CompletedProcess(words, ended.code, ended.out, ended.err)


@pytest.fixture
def refused(capsys, monkeypatch, tmp_path):
    """Run klrl in this process, in an empty folder; the one line of its refusal."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        with pytest.raises(SystemExit) as stop:
            main([str(word) for word in words])
        assert stop.value.code == 2
        line = capsys.readouterr().err
        assert line.count("\n") == 1, line
        return line.strip()

    return run


def test_help_lists_every_verb_and_imports_neither_torch_nor_gymnasium():
    program = (
        "import sys; from klrl.scripts.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "assert not {'torch', 'gymnasium', 'numpy'} & set(sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert all(verb in result.stdout for verb in ("train", "evaluate", "distill", "dpo", "benchmark", "explore-kl"))


@pytest.mark.parametrize("agent", ["ppo", "trpo", "npg"])
def test_every_config_field_is_a_flag_with_a_help_line(agent):
    text = klrl("train", agent, "--help").stdout
    lines = [line[2:-2] for line in text.splitlines() if line.startswith("│")]
    column = next(line.index("Activation function") for line in lines if "Activation function" in line)
    sides = slice(column), slice(column, None)
    flags, words = (" ".join(" ".join(line[side] for line in lines).split()) for side in sides)
    config = AGENTS[agent].config_class
    classes = [cls for cls in reversed(config.__mro__) if issubclass(cls, RegionSettings)]
    helps = {name: text for cls in classes for name, text in field_docstrings(cls).items()}
    for name in (field.name for field in fields(config)):
        assert f"--{name.replace('_', '-')}" in flags.replace("[no-]", "")
        assert helps[name] in words


@pytest.mark.parametrize("agent", ["ppo", "trpo", "npg"])
def test_a_run_leaves_its_files_and_can_be_evaluated(agent, tmp_path):
    run = klrl("train", agent, *SMALL, "--run-dir", tmp_path / "run")
    assert run.returncode == 0, run.stderr
    assert "preset for CartPole-v1: " in run.stdout
    assert f"tensorboard --logdir {tmp_path / 'run'}" in run.stdout
    assert "evaluation: mean return" in run.stdout
    with (tmp_path / "run/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert float(rows[-1]["time/total_timesteps"]) == 1024
    assert json.loads((tmp_path / "run/config.json").read_text())["preset"] == "CartPole-v1"

    result = klrl("evaluate", tmp_path / "run", "--episodes", 3, "--json", tmp_path / "result.json")
    record = json.loads((tmp_path / "result.json").read_text())
    assert result.returncode == 0
    assert len(record["returns"]) == 3
    assert record["mean_return"] == pytest.approx(sum(record["returns"]) / 3)
    assert f"mean return {record['mean_return']:.1f}" in result.stdout


def test_python_scripts_train_is_the_same_as_klrl_train(tmp_path):
    def rows(directory):
        with (directory / "metrics.csv").open() as file:
            return [{k: v for k, v in row.items() if k != "time/fps"} for row in csv.DictReader(file)]

    script = [sys.executable, str(ROOT / "scripts/train.py"), "ppo", *SMALL, "--run-dir", str(tmp_path / "script")]
    subprocess.run(script, check=True, capture_output=True, cwd=tmp_path)
    assert klrl("train", "ppo", *SMALL, "--run-dir", tmp_path / "command").returncode == 0
    assert rows(tmp_path / "script") == rows(tmp_path / "command")


def test_a_spent_budget_ends_the_run_with_its_reason_a_checkpoint_and_status_0(tmp_path):
    words = [
        "train",
        "trpo",
        *SMALL,
        "--total-timesteps",
        "10240",
        "--kl-budget",
        "0.03",
        "--run-dir",
        tmp_path / "run",
    ]
    run = klrl(*words)
    assert run.returncode == 0, run.stderr
    with (tmp_path / "run/metrics.csv").open() as file:
        sums = [float(row["drift/kl_sum"]) for row in csv.DictReader(file)]
    assert all(size <= 0.03 for size in sums[:-1])
    assert sums[-1] > 0.03
    reason = f"drift/kl_sum = {sums[-1]:.6g} nats, over 0.03, after {1024 * len(sums):,} steps"
    assert f"stopped: {reason}\n" in run.stdout
    assert "evaluation: mean return" in run.stdout
    assert (tmp_path / f"run/checkpoints/{1024 * len(sums):012d}/MANIFEST.json").exists()


def test_a_spent_budget_may_only_warn(tmp_path):
    options = ["--initial-kl-budget", "1e-9", "--over-budget", "warn", "--run-dir", tmp_path / "run"]
    run = klrl("train", "ppo", *SMALL, "--total-timesteps", "2048", *options)
    assert run.returncode == 0, run.stderr
    assert run.stderr.count("RuntimeWarning: drift/kl_initial = ") == 1
    assert "over budget: drift/kl_initial = " in run.stdout
    assert "2,048/2,048" in run.stdout


def test_the_default_run_directory_names_environment_agent_and_seed(tmp_path):
    assert klrl("train", "trpo", *SMALL, "--seed", 5, cwd=tmp_path).returncode == 0
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name.startswith("CartPole-v1__trpo__5__")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ppo"], "--env"),
        (["sac"], "algorithm = 'sac'; allowed: ppo, trpo"),
        (["ppo", "--env", "CartPol-v1"], "env = 'CartPol-v1': unknown; did you mean CartPole-v1"),
        (["ppo", "--env", "HalfCheetah-v3"], "env = 'HalfCheetah-v3': "),
        (
            ["ppo", "--env", "Blackjack-v1", "--action-distribution", "beta"],
            "action_distribution = 'beta' with action space Discrete(2); allowed: only with a Box",
        ),
        (["ppo", *SMALL, "--gamma", "nan"], "gamma = nan; allowed: a number in [0, 1]"),
        (["ppo", *SMALL, "--gamma", "high"], "gamma = 'high'; allowed: a number in [0, 1]"),
        (["ppo", *SMALL, "--gama", "1"], "--gama is not an option; did you mean --gamma, --name?"),
        (
            ["pppo"],
            f"algorithm = 'pppo'; allowed: {', '.join(AGENTS)}; klrl train ALGORITHM --help lists",
        ),
        (["ppo", *SMALL, "0.5"], "0.5 belongs to no option; allowed: --option value"),
        (["ppo", *SMALL, "--device", "cuda:99"], "device = 'cuda:99'; allowed here: cpu"),
        (["ppo", *SMALL, "--reference", "nowhere"], "reference = nowhere: no saved agent there"),
        (["ppo", *SMALL, "--start-from", ""], "start_from = ''; allowed: a path or none, not empty"),
        (["ppo", *SMALL, "--learning-rate", "0"], "learning_rate = 0.0; allowed: a number in (0, 10]"),
        (["ppo", *SMALL, "--total-timesteps", "-5"], "total_timesteps = -5; allowed: an integer in [1, 1e+12]"),
        (["ppo", *SMALL, "--batch-size", "2000"], "batch_size = 2000; allowed: at most n_envs * n_steps = 1024"),
        (["ppo", *SMALL, "--kl-budget", "0"], "kl_budget = 0.0; allowed: a number > 0"),
        (["ppo", *SMALL, "--initial-kl-budget", "inf"], "initial_kl_budget = inf; allowed: a number > 0"),
        (["ppo", *SMALL, "--over-budget", "pause"], "over_budget = 'pause'; allowed: stop, warn"),
        (["ppo", *SMALL, "--run-dir", "/dev/null/run"], "/dev/null/run"),
        (["ppo", *SMALL, "--trust-region", "adaptive-penalty", "--kl-coef", "1e6"], "kl_coef = 1000000.0; allowed"),
        (["ppo", *SMALL, "--trust-region", "clp"], "trust_region = 'clp'; allowed: none, clip"),
        (["ppo", *SMALL, "--trust-region", "clp"], "; did you mean clip"),
        (["ppo", *SMALL, "--target-kl", "0.1"], "target_kl = 0.1; allowed: only with a trust region that reads it"),
        (
            ["ppo", *SMALL, "--trust-region", "constraint", "--target-kl", "-1"],
            "target_kl = -1.0; allowed: a number in (0, 1e+06] or none",
        ),
        (["trpo", *SMALL, "--trust-region", "clip"], "trust_region = 'clip'; allowed for TRPO: early-stop, constraint"),
    ],
)
def test_bad_input_is_refused_in_one_line_and_nothing_is_written(words, message, refused, tmp_path):
    assert message in refused("train", *words)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["train"], "klrl train: algorithm missing; for example: klrl train ppo --env CartPole-v1; allowed: ppo, trpo"),
        (["train", "ppo"], "klrl train ppo: --env missing; for example: klrl train ppo --env CartPole-v1"),
        (["evaluate"], "klrl evaluate: path missing; for example: klrl evaluate runs/demo --episodes 20"),
        (["resume"], "klrl resume: path missing; for example: klrl resume runs/demo"),
        (["compare"], "klrl compare: --vary missing; for example: klrl compare --vary trust-region"),
        (["distill", "a"], "klrl distill: --output missing; for example: klrl distill runs/demo "),
        (["doctor"], "klrl doctor: env missing; for example: klrl doctor HalfCheetah-v5"),
    ],
)
def test_a_missing_argument_is_named_with_an_example(words, line, refused):
    assert refused(*words).startswith(line)


@pytest.mark.parametrize(("extra", "what"), [("box2d", "Box2D"), ("mujoco", "MuJoCo")])
def test_an_environment_whose_package_is_missing_names_klrls_extra(extra, what, refused, monkeypatch):
    def made(**settings):
        raise gym.error.DependencyNotInstalled(f'{what} is not installed, run `pip install "gymnasium[{extra}]"`')

    monkeypatch.setitem(gym.registry, "Missing-v0", EnvSpec("Missing-v0", entry_point=made))
    line = f"klrl train ppo: env = 'Missing-v0': {what} is not installed; allowed: pip install 'klrl[{extra}]'"
    assert refused("train", "ppo", "--env", "Missing-v0") == line


def test_a_refusal_is_the_only_line_and_the_status_of_the_real_process(tmp_path):
    result = klrl("train", "ppo", "--env", "HalfCheetah-v3", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1, result.stderr
    assert result.stdout == ""


def test_an_environment_that_gives_no_masks_ends_a_run_in_one_line(refused, tmp_path):
    line = refused("train", "ppo", *SMALL, "--action-mask", "info", "--run-dir", tmp_path / "run")
    assert "info of environment 0 has no 'action_mask' after 0 steps; allowed: one at every reset and step" in line


def test_a_disk_that_is_full_from_the_start_is_no_bad_input(tmp_path, capsys):
    with full_disk(), pytest.raises(SystemExit) as stop:
        main(["train", "ppo", *SMALL, "--run-dir", str(tmp_path / "run")])
    assert stop.value.code == 1
    line = rf"klrl train ppo: File too large: {tmp_path}/run/run\.lock needs \d+ bytes, [\d,]+ are free; .*\n"
    assert re.fullmatch(line, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["learning", "--envs", "CartPole-v0"], "envs = 'CartPole-v0'; allowed: CartPole-v1, Acrobot-v1"),
        (["spaces", "--spaces", "Box"], "spaces = 'Box'; allowed: Discrete(2, start=1)"),
    ],
)
def test_a_benchmark_of_no_task_is_refused_and_overwrites_nothing(refused, words, message, tmp_path):
    kept = tmp_path / "result.json"
    kept.write_text("mine")
    assert message in refused("benchmark", *words, "--output", kept)
    assert kept.read_text() == "mine"


def test_a_run_directory_is_never_overwritten(refused, tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    line = refused("train", "ppo", *SMALL, "--run-dir", tmp_path)
    assert "is not empty; allowed: a new or empty directory" in line
    assert [file.name for file in tmp_path.iterdir()] == ["precious.txt"]


def test_evaluate_refuses_what_is_no_saved_agent_and_foreign_spaces(refused, tmp_path):
    assert "no saved agent there" in refused("evaluate", tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert "has saved nothing yet; allowed: klrl resume" in refused("evaluate", tmp_path)
    (tmp_path / "config.json").unlink()
    (tmp_path / "model.zip").touch()
    zipped = tmp_path / "model.zip"
    assert f"a run directory (klrl import-sb3 {zipped} -o NEW makes one of a zip)" in refused("evaluate", zipped)
    zipped.unlink()
    (tmp_path / "study.toml").touch()
    assert f"the study there goes on with klrl study --output {tmp_path}" in refused("resume", tmp_path)
    (tmp_path / "study.toml").unlink()
    assert f"or klrl train ... --run-dir {tmp_path} to begin one there" in refused("resume", tmp_path)
    PPO("CartPole-v1").save(tmp_path / "agent")
    assert "its spaces differ" in refused("evaluate", tmp_path / "agent", "--env", "Acrobot-v1")


def test_defaults_follow_the_size_of_the_rollout_and_what_is_printed_is_what_runs(tmp_path):
    run = klrl("train", "ppo", *SMALL, "--n-envs", 1, "--n-steps", 100, "--run-dir", tmp_path / "run")
    assert run.returncode == 0, run.stderr
    printed = next(line for line in run.stdout.splitlines() if line.startswith("preset"))
    assert "n_steps" not in printed
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert (config["config"]["n_steps"], config["config"]["batch_size"]) == (100, 100)
    assert config["region"] == {"class": "Clip", "clip_range": 0.2}


def test_evaluation_takes_the_environment_as_it_was_saved(tmp_path, capsys):
    spec = gym.make("CartPole-v1", max_episode_steps=7).spec
    PPO(spec).save(tmp_path / "agent")
    main(["evaluate", str(tmp_path / "agent"), "--episodes", "2", "--json", str(tmp_path / "result.json")])
    assert json.loads((tmp_path / "result.json").read_text())["lengths"] == [7, 7]


@pytest.mark.parametrize(
    "verb", ["train", "evaluate", "distill", "dpo", "benchmark", "benchmark learning", "benchmark speed", "explore-kl"]
)
def test_every_verb_has_help(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*verb.split(), "--help"])
    assert stop.value.code == 0
    assert "usage: klrl" in capsys.readouterr().out


def test_an_unknown_verb_is_refused(refused):
    assert refused("fly").startswith(
        "klrl: verb = 'fly'; allowed: train, resume, evaluate, distill, dpo, doctor, bench"
    )


ENDING = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]


@pytest.mark.parametrize(("number", "status"), ENDING, ids=lambda x: getattr(x, "name", x))
def test_a_signal_ends_the_run_with_a_checkpoint_and_its_status(number, status, tmp_path):
    words = ["train", "ppo", "--env", "CartPole-v1", "--total-timesteps", "100000000", "--run-dir", "run"]
    metrics = tmp_path / "run/metrics.csv"
    process = Fork(["-m", "klrl.scripts.main", *words], tmp_path)
    process.until(lambda: metrics.exists() and metrics.read_text().count("\n") > 2)
    process.send(signal.SIGUSR1)
    process.until(lambda: re.search("^SIGUSR1.*\n", process.out, re.MULTILINE))
    process.send(number)
    ended = process.wait()
    assert ended.code == status, ended.err
    (saved,) = (line for line in ended.out.splitlines() if line.startswith("SIGUSR1"))
    (stopped,) = (line for line in ended.out.splitlines() if line.startswith("stopped"))
    assert saved.startswith(f"SIGUSR1: checkpoint {tmp_path}/run/checkpoints/")
    assert stopped.startswith(f"stopped by {number.name}: checkpoint {tmp_path}/run/checkpoints/")
    assert stopped.endswith(f"; klrl resume {tmp_path}/run continues it")
    assert "Traceback" not in ended.err
    assert sorted(p.name for p in (tmp_path / "run").iterdir() if not p.name.startswith("events.")) == [
        "checkpoints", "config.json", "episodes.csv", "metrics.csv",
    ]  # fmt: skip
    assert klrl("evaluate", tmp_path / "run", "--episodes", 1).returncode == 0


@pytest.mark.parametrize(("number", "status"), [*ENDING, (signal.SIGUSR1, 0)], ids=lambda x: getattr(x, "name", x))
def test_a_signal_as_soon_as_the_directory_is_there_is_heard(number, status, tmp_path):
    endless = ["--total-timesteps", "100000000"] if status else []  # however late the signal comes
    process = Fork(["-m", "klrl.scripts.main", "train", "ppo", *SMALL, *endless, "--run-dir", "run"], tmp_path)
    process.until((tmp_path / "run").exists, every=0.0)
    process.send(number)
    ended = process.wait()
    assert ended.code == status, ended.err
    assert f"{number.name}: nothing to " in ended.out or f"{number.name}: checkpoint" in ended.out
    assert not (tmp_path / "run/run.lock").exists()
    if not (tmp_path / "run/config.json").exists():
        assert not [*(tmp_path / "run").iterdir()]  # so that the same command can begin it


def test_an_interrupt_where_there_is_nothing_to_keep_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr("klrl.scripts.evaluate.main", raising)
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", "run"])
    assert stop.value.code == 130
    assert capsys.readouterr().err == "klrl evaluate: interrupted\n"


def raising(argv):
    raise KeyboardInterrupt


def test_a_second_interrupt_ends_the_process_at_once(tmp_path):
    words = ["train", "ppo", "--env", "CartPole-v1", "--total-timesteps", "100000000", "--run-dir", "run"]
    program = (
        "import sys, time\nfrom klrl.run.directory import RunDirectory\nfrom klrl.scripts.main import main\n"
        "RunDirectory.on_training_end = lambda self, agent: (print('saving', flush=True), time.sleep(10_000))\n"
        f"main({words})"
    )
    process = Fork(["-c", program], tmp_path)
    process.until((tmp_path / "run/metrics.csv").exists)
    process.send(signal.SIGINT)
    process.until(lambda: "saving\n" in process.out)
    process.send(signal.SIGINT)
    assert process.wait().code == -signal.SIGINT


def test_an_interrupted_evaluation_ends_at_once_and_the_agent_is_kept(tmp_path):
    words = [*SMALL[:-1], "100000", "--run-dir", "run"]
    process = Fork(["-m", "klrl.scripts.main", "train", "ppo", *words], tmp_path)
    process.until(lambda: "TensorBoard: " in process.out)
    time.sleep(0.5)
    process.send(signal.SIGINT)
    ended = process.wait()
    assert ended.code == 130
    said = (ended.out + ended.err).splitlines()[-1]
    assert said == f"stopped by SIGINT: checkpoint {tmp_path}/run/checkpoints/000000001024; training was finished"
    assert klrl("evaluate", tmp_path / "run", "--episodes", 1).returncode == 0


@pytest.mark.filterwarnings("ignore:.*The reward is a NaN value.*")
def test_a_value_that_is_not_finite_ends_the_run_with_one_line_and_status_1(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    gym.register("Broken-v0", lambda: Broken("reward", index=3))
    with pytest.raises(SystemExit) as stop:
        main(["train", "ppo", "--env", "Broken-v0", "--total-timesteps", "2048"])
    del gym.registry["Broken-v0"]
    assert stop.value.code == 1
    line = capsys.readouterr().err
    where = "in step 1 of its episode 0, after 0 steps; allowed: finite numbers; the step is in"
    assert line.startswith(f"klrl train ppo: reward of environment 0 is nan {where} ")
    assert line.count("\n") == 1
    with np.load(line.split()[-1]) as step:
        assert {name: step[name].shape for name in step} == {
            "observation": (8, 4), "action": (8,), "executed": (8,), "reward": (8,), "environment": (),
        }  # fmt: skip
        assert np.isnan(step["reward"]).all()


@pytest.mark.parametrize("verb", ["train", "evaluate"])
def test_what_no_agent_can_act_on_ends_an_evaluation_with_one_line_and_status_1(verb, capsys, monkeypatch, tmp_path):
    broken = partial(Broken, "observation", 0)

    def good_until_trained():
        return broken() if (tmp_path / "run" / "checkpoints").exists() else Counting()

    monkeypatch.setitem(gym.registry, "Counting-v0", EnvSpec("Counting-v0", good_until_trained))
    monkeypatch.setitem(gym.registry, "Broken-v0", EnvSpec("Broken-v0", broken))
    if verb == "train":
        words = ["train", "ppo", "--env", "Counting-v0", "--total-timesteps", "64", "--run-dir", str(tmp_path / "run")]
    else:
        words = ["evaluate", str(small_agent(PPO, Counting).save(tmp_path / "agent")), "--env", "Broken-v0"]
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 1
    start, end = ("train ppo: evaluation", "; the training is finished and saved") if verb == "train" else (verb, "")
    what = "episode 0 after 1 steps: observation has NaN or infinite elements; allowed: finite numbers"
    assert capsys.readouterr().err == f"klrl {start}: {what}{end}\n"


def test_a_saved_policy_is_tuned_near_itself(tmp_path, capsys):
    small = ["--n-steps", "32", "--actor-hidden-sizes", "8", "--eval-episodes", "0", "--total-timesteps", "256"]
    base, tuned = tmp_path / "base", tmp_path / "tuned"
    main(["train", "ppo", "--env", "CartPole-v1", *small, "--activation", "relu", "--run-dir", str(base)])
    reference = ["--trust-region", "clip+reference-penalty", "--reference", str(base), "--reference-coef", "0.5"]
    start = ["--start-from", str(base), "--n-steps", "32", "--eval-episodes", "0", "--total-timesteps", "512"]
    main(["train", "ppo", "--env", "CartPole-v1", *start, *reference, "--run-dir", str(tuned)])
    written = json.loads((tuned / "config.json").read_text())
    assert (written["start_from"], written["kl_budget"]) == (str(base), None)
    config = written["config"]
    assert (config["activation"], config["actor_hidden_sizes"], config["reference_coef"]) == ("relu", [8], 0.5)
    with (tuned / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert all(float(row["drift/kl_reference"]) < 0.05 for row in rows)
    assert float(rows[0]["drift/kl_reference"]) > 0.0
    with pytest.raises(SystemExit) as stop:
        main(["train", "ppo", "--env", "CartPole-v1", "--start-from", str(tmp_path / "nothing")])
    assert stop.value.code == 2
    assert "start_from = " + str(tmp_path / "nothing") + ": no saved agent there" in capsys.readouterr().err


def test_an_agent_of_before_actions_were_scaled_can_be_started_from(tmp_path):
    tensors, data = checkpoint.read(small_agent(PPO, "Pendulum-v1", scale_actions=False).learn(64).save(tmp_path / "a"))
    del data["config"]["scale_actions"]
    old = checkpoint.write(tmp_path / "old", tensors, data)
    words = ["--n-steps", "32", "--eval-episodes", "0", "--total-timesteps", "64", "--run-dir", str(tmp_path / "run")]
    main(["train", "ppo", "--env", "Pendulum-v1", "--start-from", str(old), *words])
    assert json.loads((tmp_path / "run/config.json").read_text())["config"]["scale_actions"] is False
