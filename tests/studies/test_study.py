"""Studies: what their designs may be, what their directories hold, and that nothing of a run is lost or done twice."""

import json
import os
import signal

import pytest
from small_studies import design_file, parts, rows, started
from support import full_disk
from torture.processes import Fork
from torture.states import run_parts

from klrl.run.options import RunOptions
from klrl.scripts.main import main
from klrl.studies import Study, claims, comparison
from klrl.studies.claims import Claim, recovered, replaced
from klrl.studies.design import Design, Variant
from klrl.studies.design_file import read, text
from klrl.studies.outcomes import read_outcome
from klrl.studies.parallel import Ended
from klrl.studies.watching import Watch, steps_so_far
from klrl.text import file_name

TINY = {"n_envs": 2, "n_steps": 32, "batch_size": 16, "n_epochs": 2, "critic_hidden_sizes": [8]}
WORDS = ["--n-envs", "2", "--n-steps", "32", "--batch-size", "16", "--actor-hidden-sizes", "8", "--preset", "none"]

# -- designs and their files ----------------------------------------------------------------------


def test_a_design_is_read_from_its_file(tmp_path):
    design = read(design_file(tmp_path))
    assert design == Design(
        agent="ppo",
        settings={"n_envs": 2, "n_steps": 32, "batch_size": 16, "actor_hidden_sizes": (8,)},
        presets=False,
        variants=(
            Variant(name="base", agent="ppo", region="clip"),
            Variant(name="a/b", agent="ppo", region="constraint", changes={"target_kl": 0.02}),
            Variant(name="trpo", agent="trpo", region="constraint"),
        ),
        environments={"CartPole-v1": 640},
        seeds=(3, 4),
        options=RunOptions(eval_episodes=2, checkpoint_every=128),
    )


DESIGNS = [
    comparison(["trust-region", "clip", "agents_of_ones_own:Wide"], environments={"ALE/Pong-v5": 7, 'a "b"': 10**12}),
    comparison(["learning-rate", "1e-4", "3e-10"], "trpo", ["ppo"], environments={"a": 1}, seeds=[0, 1, 2, 9]),
    comparison(
        ["actor-hidden-sizes", "64", "32,16"],
        assignments=["trust_region=constraint", "target_kl=None", "info_keys=\u00e9\U0001f600"],
        environments={"\u4e16": 3},
        seeds=range(5),
        options=RunOptions(kl_budget=1e-7),
    ),
    comparison(["normalize-advantage"], "agents_of_ones_own:Plain", environments={"x": 1}, seeds=[10**9]),
]


@pytest.mark.parametrize("design", DESIGNS, ids=range(len(DESIGNS)))
def test_the_record_is_the_design(design, tmp_path):
    (tmp_path / "study.toml").write_text(text(design))
    assert read(tmp_path / "study.toml") == design


BAD = [
    ("", "environments = (); allowed: at least one"),
    ("steps = 1\n", "steps = 1; allowed: beside a list of environments, not a table of steps"),
    ('environments = ["CartPole-v1"]', "steps missing; allowed: beside a list of environments"),
    ("[environments]\nCartPole-v1 = 0", "environments = CartPole-v1: 0 steps; allowed: an integer in [1, "),
    ("[environments]\nCartPol-v1 = 64", "env = 'CartPol-v1': unknown; did you mean CartPole-v1"),
    ("seed = [1]\n[environments]\nCartPole-v1 = 64", "design = 'seed'; allowed: steps, environments, seeds,"),
    ('seeds = "3-1"\n[environments]\nCartPole-v1 = 64', "seeds = '3-1'; allowed: a list of integers, or a range"),
    ("seeds = [1, 1]\n[environments]\nCartPole-v1 = 64", "seeds = [1, 1]; allowed: at least one, integers >= 0"),
    ("seeds = [0.5]\n[environments]\nCartPole-v1 = 64", "seeds = [0.5]; allowed: at least one, integers >= 0"),
    ("[environments]\nCartPole-v1 = 64\n[base]\ngama = 0.9", "base = 'gama'; allowed: "),
    ("[environments]\nCartPole-v1 = 64\n[base]\ngamma = 9", "gamma = 9; allowed: a number in [0, 1]"),
    ("[environments]\nCartPole-v1 = 64\n[base]\nagent = 'sac'", "agent = 'sac'; allowed: ppo, trpo"),
    ("[environments]\nCartPole-v1 = 64\n[run]\nthreads = 2", "run = 'threads'; allowed: eval_every,"),
    ("[environments]\nCartPole-v1 = 64\n[run]\neval_episodes = 0", "eval_episodes = 0; allowed: an integer >= 1"),
    ("[environments]\nCartPole-v1 = 64\n[base]\ntarget_kl = 0.1", "target_kl = 0.1; allowed: only with"),
    (
        "[environments]\nCartPole-v1 = 64\n[[variants]]\nname='a'\n[[variants]]\nname='b'\nclip_range=0.2",
        "variants = 'a', 'b' are the same on CartPole-v1; allowed: different ones",
    ),
    (
        "[environments]\nCartPole-v1 = 64\n[[variants]]\nname='a/b'\n[[variants]]\nname='A_b'\ngamma=0.9",
        "variants = 'a/b', 'A_b' have the same file name A_b; allowed: others",
    ),
    (
        "[environments]\nCartPole-v1 = 64\n[[variants]]\ngamma=0.9\n[[variants]]\ngamma=0.9",
        "variants = 'gamma=0.9' twice; allowed: every one once",
    ),
    (
        "[environments]\nCartPole-v1 = 64\n[[variants]]\ntarget_kl=0.9",
        "CartPole-v1, target_kl=0.9: target_kl = 0.9; allowed: only with a trust region that reads it",
    ),
    (
        "[environments]\nCartPole-v1 = 64\n[[variants]]\ntrust_region='no_such_module:region'",
        "trust_region = 'no_such_module:region': No module named 'no_such_module'",
    ),
    (
        "[environments]\nCartPole-v1 = 64\n[[variants]]\naction_distribution='beta'",
        "with action space Discrete(2); allowed: only with a Box",
    ),
    ("seeds =", "allowed: a TOML file with a design"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "message"), BAD, ids=range(len(BAD)))
def test_a_bad_design_is_one_line_before_anything_is_written(words, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["study", str(design_file(tmp_path, words)), "--output", str(tmp_path / "out")])
    assert stop.value.code == 2
    line = capsys.readouterr().err
    assert message in line
    assert line.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["no.toml"], "design = no.toml: no such file; allowed: a TOML file with a design"),
        ([], "output = out: no study.toml there; allowed: the directory of a study"),
        (["design.toml", "--seeds", "1"], "seeds beside a file; allowed: the design in the file, or in flags"),
        (["design.toml", "--eval-stochastic"], "eval_stochastic beside a file; allowed: the design in the file, or"),
        (["design.toml", "--task", "3/2"], "task = '3/2'; allowed: I/N with 1 <= I <= N"),
        (["design.toml", "--task", "0/2"], "task = '0/2'; allowed: I/N with 1 <= I <= N"),
        (["design.toml", "--gpus-per-run", "1"], "gpus_per_run = 1.0 with engine = 'processes'; allowed: with 'ray'"),
        (["design.toml", "--ranks-per-run", "2"], "ranks_per_run = 2 with engine = 'processes'; allowed: with 'ray'"),
        (["design.toml", "--engine", "ray", "--ranks-per-run", "0"], "ranks_per_run = 0; allowed: "),
        (
            ["design.toml", "--engine", "ray", "--ranks-per-run", "3"],
            "ranks_per_run = 3, and CartPole-v1 base seed 3 has n_envs = 2; allowed: at least one environment on every",
        ),
        (["design.toml", "--engine", "dask"], "engine = 'dask'; allowed: processes, ray"),
        (["--variants", "gamma=2", "--envs", "CartPole-v1:64"], "gamma = 2; allowed: a number in [0, 1]"),
        (["--variants", "lr=2", "--envs", "CartPole-v1:64"], "set = 'lr'; allowed: "),
    ],
)
def test_bad_flags_are_one_line(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    design_file(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["study", *words, "--output", "out"])
    assert stop.value.code == 2
    line = capsys.readouterr().err
    assert message in line
    assert line.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name", ["ALE/Pong-v5", "lr=1e-3", "a+b", "..", ".", "", " ", "x" * 1_000, "\u4e16\u754c", "a\nb", "C:\\x"]
)
def test_a_name_becomes_one_that_file_systems_take(name):
    made = file_name(name)
    assert 0 < len(made) <= 100
    assert not set(made) & set('/\\:*?"<>|\n\0 ')
    assert made not in (".", "..")
    assert made.isascii()


# -- what is in a study's directory ---------------------------------------------------------------


def test_each_run_is_a_run_directory_as_klrl_train_makes_it(whole, tmp_path):
    steps = ["--env", "CartPole-v1", "--seed", "4", "--total-timesteps", "640", "--checkpoint-every", "128"]
    command = ["train", "ppo", *steps, *WORDS, "--eval-episodes", "2", "--run-dir", str(tmp_path / "run")]
    command += ["--trust-region", "constraint", "--target-kl", "0.02"]
    assert Fork(["-m", "klrl.scripts.main", *command], tmp_path).wait().code == 0
    theirs = whole / "runs/CartPole-v1/a_b/seed-4"
    assert run_parts(theirs) == run_parts(tmp_path / "run")
    configs = [json.loads((path / "config.json").read_text()) for path in (theirs, tmp_path / "run")]
    assert configs[0] == configs[1]
    names = [{path.name.split(".")[0] for path in folder.iterdir()} for folder in (theirs, tmp_path / "run")]
    assert names[0] == names[1]


def test_a_study_is_looked_at(whole):
    study = Study.load(whole)
    assert [(run.env, run.variant, run.seed, run.total_timesteps, run.status, run.error) for run in study.runs] == [
        ("CartPole-v1", variant, seed, 640, "done", None) for variant in ("base", "a/b", "trpo") for seed in (3, 4)
    ]
    assert study.runs[2].directory == whole / "runs/CartPole-v1/a_b/seed-3"
    assert repr(study) == f"<Study in {whole}: 6 runs, 6 done, 0 running, 0 failed>"
    assert [line.split(" | ")[1] for line in study.table().splitlines()[2:5]] == ["base", "a/b", "trpo"]
    progress = Watch(study.trials, whole / "runs").now()
    assert (progress.done, progress.running, progress.failed, progress.total) == (6, (), 0, 6)
    assert progress.steps == progress.total_timesteps == 6 * 640


def test_the_record_alone_repeats_the_study_and_it_may_grow(whole, tmp_path):
    study = Study.read(whole / "study.toml", tmp_path / "again")
    study.run(processes=1, say=list)
    assert parts(tmp_path / "again") == parts(whole)
    assert rows(tmp_path / "again") == rows(whole)
    more = (whole / "study.toml").read_text().replace("seeds = [\n    3,\n    4,\n]", 'seeds = "3-5"')
    (tmp_path / "more.toml").write_text(more)
    said = []
    Study.read(tmp_path / "more.toml", tmp_path / "again").run(processes=1, say=said.append)
    assert said[0] == "6 of 9 runs are done already"
    assert len(Study.load(tmp_path / "again").runs) == 9
    with pytest.raises(
        ValueError, match="is another study's, with 'CartPole-v1 base seed 5'; allowed: a new directory"
    ):
        Study.read(whole / "study.toml", tmp_path / "again")


def test_a_function_is_no_setting_of_a_design_which_is_a_file(tmp_path):
    settings = {"learning_rate": lambda progress_remaining: 1e-3 * progress_remaining}
    with pytest.raises(ValueError, match=r"^learning_rate = .*allowed in a design: a number, or a schedule: "):
        Study.of(tmp_path / "out", environments={"CartPole-v1": 64}, variants={"a": settings})
    said = {"learning_rate": "linear:1e-3:0"}
    study = Study.of(tmp_path / "out", environments={"CartPole-v1": 64}, variants={"a": said}, seeds=[0])
    study.record()
    assert Study.load(study.output).trials == study.trials


def test_another_study_is_told_by_the_options_that_differ(tmp_path):
    design = {"environments": {"CartPole-v1": 640}, "variants": {"a": {}}}
    Study.of(tmp_path, **design, run={"checkpoint_every": 2_000}).record()
    differs = "a seed 0: checkpoint_every = 2000 and not None; allowed: a new directory"
    with pytest.raises(ValueError, match=differs):
        Study.of(tmp_path, **design)


def test_a_record_that_the_same_command_is_writing_is_nobody_elses(tmp_path):
    design = {"environments": {"CartPole-v1": 640}, "variants": {"a": {}}}
    (tmp_path / "study.toml.0123abcd.tmp").write_text("[environ")
    study = Study.of(tmp_path, **design)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(FileExistsError, match="is not empty, and there is no study"):
        Study.of(tmp_path, **design)
    study.record()
    Study.of(tmp_path, **design)


def test_a_study_that_died_before_its_record_was_there_can_be_begun_again(tmp_path):
    design = {"environments": {"CartPole-v1": 640}, "variants": {"a": {}}}
    study = Study.of(tmp_path / "out", **design)
    with full_disk(), pytest.raises(OSError, match="File too large"):
        study.record()
    Study.of(tmp_path / "out", **design).record()
    assert len(Study.load(tmp_path / "out").runs) == 3


def test_a_directory_of_something_else_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("")
    with pytest.raises(FileExistsError, match=r"is not empty, and there is no study.toml; allowed: a new directory"):
        Study.of(tmp_path, environments={"CartPole-v1": 64}, variants={"a": {}})


def test_a_run_of_other_settings_in_place_of_one_is_refused(whole, tmp_path):
    study = Study.of(tmp_path / "out", environments={"CartPole-v1": 64}, variants={"a": {}}, base=TINY, seeds=[3])
    study.record()
    place = study.runs[0].directory
    place.mkdir(parents=True)
    (place / "config.json").write_bytes((whole / "runs/CartPole-v1/base/seed-3/config.json").read_bytes())
    with pytest.raises(
        ValueError, match="has another run in place of CartPole-v1 a seed 3: total_timesteps = 640, not 64"
    ):
        Study(study.design, study.output)


def test_flags_make_the_same_study_as_a_file(whole, tmp_path):
    settings = ["n_envs=2", "n_steps=32", "batch_size=16", "actor_hidden_sizes=8"]
    variants = ["", "name=a/b trust_region=constraint target_kl=0.02", "agent=trpo"]
    words = ["--variants", *variants, "--set", *settings, "--preset", "none", "--envs", "CartPole-v1:640"]
    words += ["--seeds", "3", "4", "--eval-episodes", "2", "--checkpoint-every", "128", "--task", "6/6"]
    main(["study", *(word or "n_envs=2" for word in words), "--processes", "1", "--output", str(tmp_path / "out")])
    mine, theirs = Study.load(tmp_path / "out"), Study.load(whole)
    assert [trial.identity() for trial in mine.trials] == [
        {**trial.identity(), "variant": {"base": "n_envs=2"}.get(trial.variant, trial.variant)}
        for trial in theirs.trials
    ]
    assert [run.status for run in mine.runs] == ["waiting"] * 5 + ["done"]
    last = "runs/CartPole-v1/trpo/seed-4"
    assert run_parts(tmp_path / "out" / last) == run_parts(whole / last)


# -- nothing is lost, or done twice ---------------------------------------------------------------


def test_a_killed_process_is_replaced_and_its_run_goes_on_to_the_last_bit(whole, tmp_path):
    process = started(tmp_path, "--processes", "2")
    run = tmp_path / "out/runs/CartPole-v1/base/seed-3"
    process.until(lambda: [*run.glob("checkpoints/*/MANIFEST.json")] or run.with_suffix(".json").exists())
    try:
        os.kill(json.loads((run / "run.lock").read_text())["pid"], signal.SIGKILL)
    except (OSError, ValueError):
        pytest.skip("the run was over too early")
    ended = process.wait()
    assert ended.code == 0, ended.err
    assert parts(tmp_path / "out") == parts(whole)
    assert rows(tmp_path / "out") == rows(whole)


DEADLY = """
import os
import gymnasium as gym
from environments import Counting


class Deadly(Counting):
    def step(self, action):
        os._exit(7)  # as a bug in a simulator does


gym.register("Deadly-v0", Deadly)
"""


def test_a_run_that_always_kills_its_process_fails_and_the_others_go_on(tmp_path, monkeypatch):
    (tmp_path / "deadly.py").write_text(DEADLY)
    monkeypatch.syspath_prepend(tmp_path)
    design = comparison(
        ["gamma", "0.9"],
        assignments=["n_envs=2", "n_steps=16", "batch_size=16", "try_envs=False"],
        environments={"deadly:Deadly-v0": 64, "CartPole-v1": 64},
        seeds=[0],
    )
    said = []
    Study(design, tmp_path / "out").run(processes=2, retries=1, say=said.append)
    runs = Study.load(tmp_path / "out").runs
    assert [run.status for run in runs] == ["failed", "done"]
    assert runs[0].error == "its process ended with status 7, 2 times without a new checkpoint in between"
    assert sum("goes on from its checkpoint (none)" in line for line in said) == 1
    assert "| deadly:Deadly-v0 | gamma=0.9 | failed |" in Study.load(tmp_path / "out").table()


class Dying:
    """An engine whose processes die after one more checkpoint each, and then cannot go on."""

    free, busy, deaths = 1, 0, 0

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def start(self, trial, directory, token, taken):
        self.name, self.free, self.busy = trial.name, 0, 1
        self.deaths += 1
        for name in ("best", f"{self.deaths:012d}"):
            (directory / "checkpoints" / name).mkdir(parents=True, exist_ok=True)
            (directory / "checkpoints" / name / "MANIFEST.json").touch()

    def wait(self, timeout):
        if not self.busy:
            return []
        self.free, self.busy = 1, 0
        if self.deaths <= 3:
            return [Ended(self.name, death="its process was killed")]
        return [Ended(self.name, error=RuntimeError("enough"))]


def test_kills_count_from_the_newest_checkpoint_beside_the_best_one(tmp_path):
    design = comparison(["gamma", "0.9"], environments={"CartPole-v1": 64}, seeds=[0])
    said = []
    study = Study(design, tmp_path / "out")
    study.run(Dying(), retries=1, say=said.append)
    assert [line.rpartition("checkpoint ")[2] for line in said[:3]] == ["(1)", "(2)", "(3)"]
    assert study.runs[0].error == "RuntimeError: enough"


def test_four_processes_started_at_once_do_each_run_once(whole, tmp_path):
    processes = [started(tmp_path, "--processes", "1") for _ in range(4)]
    ended = [process.wait() for process in processes]
    assert [end.code for end in ended] == [0] * 4, [end.err for end in ended]
    lines = [line for end in ended for line in end.out.splitlines() if ": return " in line]
    assert sorted(line.split(":")[0].split("  ")[1] for line in lines) == sorted(r.name for r in Study.load(whole).runs)
    assert parts(tmp_path / "out") == parts(whole)


def test_parts_of_an_array_are_all_runs_and_none_twice(tmp_path):
    study = Study.of(tmp_path / "out", environments={"CartPole-v1": 64}, variants={"a": {}}, base=TINY, seeds=range(5))
    for i in (3, 1):
        study.run(processes=1, task=(i, 3), say=list)
    assert [run.status for run in study.runs] == ["done", "waiting", "done", "done", "waiting"]
    study.run(processes=1, task=(2, 3), say=list)
    assert {run.status for run in study.runs} == {"done"}


def test_runs_are_made_seed_by_seed_and_the_longest_first(tmp_path):
    environments = {"CartPole-v1": 64, "Acrobot-v1": 128}
    lines = []
    study = Study.of(tmp_path / "out", environments=environments, variants={"a": {}}, base=TINY, seeds=[1, 0])
    study.run(processes=1, say=lines.append)
    made = [line.partition("  ")[2].partition(":")[0] for line in lines]
    assert made == [f"{env} a seed {seed}" for seed in (0, 1) for env in ("Acrobot-v1", "CartPole-v1")]


SLEEPER = """
import sys
import klrl.studies.claims as claims
claims.EXPIRES = float(sys.argv[1])
from klrl.scripts.main import main
main(sys.argv[2:])
"""


def test_an_owner_that_was_suspended_does_not_write_after_its_claim_has_expired(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "EXPIRES", 1.5)
    words = ["study", design_file(tmp_path), "--output", tmp_path / "out", "--processes", "1", "--task", "1/6"]
    owner = Fork(["-c", SLEEPER, "1.5", *words], tmp_path)
    run = tmp_path / "out/runs/CartPole-v1/base/seed-3"
    owner.until(lambda: [*run.glob("checkpoints/*/MANIFEST.json")])
    owner.send(signal.SIGSTOP)
    said = []
    Study.load(tmp_path / "out").run(processes=1, task=(1, 6), say=said.append)
    done = {path: path.read_bytes() for path in run.parent.rglob("*") if path.is_file()}
    assert run_parts(run) == run_parts(whole / "runs/CartPole-v1/base/seed-3")
    owner.send(signal.SIGCONT)
    assert owner.wait().code == 0
    assert {path: path.read_bytes() for path in run.parent.rglob("*") if path.is_file()} == done
    assert read_outcome(run)["status"] == "done"


def test_a_claim_is_named_by_its_owner_and_ends_with_it(tmp_path, tmp_path_factory):
    run = tmp_path / "seed-0"
    hold = "import sys, pathlib, time; from klrl.studies.claims import Claim\n"
    hold += "c = Claim(pathlib.Path(sys.argv[1])); assert c.take(); print('held', flush=True); time.sleep(10_000)"
    owner = Fork(["-c", hold, run], tmp_path_factory.mktemp("owner"))
    owner.until(lambda: owner.out == "held\n")
    claim = Claim(run)
    assert not claim.take()
    assert claim.owner.startswith(f"process {owner.pid} on ")
    owner.kill()
    assert claim.take()
    assert claim.taken
    assert not claim.lost
    claim.release()
    assert claim.lost
    assert [*tmp_path.iterdir()] == []


def test_a_replaced_directory_is_the_same_and_what_was_open_is_not_in_it(tmp_path):
    run = tmp_path / "seed-0"
    (run / "checkpoints/0001").mkdir(parents=True)
    (run / "checkpoints/0001/MANIFEST.json").write_text("{}")
    (run / "metrics.csv").write_text("a\n")
    with (run / "metrics.csv").open("a") as old:
        replaced(run)
        old.write("of the old owner\n")
    assert (run / "metrics.csv").read_text() == "a\n"
    assert (run / "checkpoints/0001/MANIFEST.json").read_text() == "{}"
    assert [path.name for path in tmp_path.iterdir()] == ["seed-0"]
    run.rename(tmp_path / "seed-0.12345678.old")  # killed between its two steps
    (tmp_path / "seed-0.12345678.new").mkdir()
    recovered(run)
    assert (run / "metrics.csv").read_text() == "a\n"
    assert [path.name for path in tmp_path.iterdir()] == ["seed-0"]


@pytest.mark.parametrize(
    ("content", "steps"),
    [
        (None, 0),
        ("", 0),
        ("time/total_timesteps,x\n", 0),
        ("t,x\n64.0,1\n128.0,2\n19", 128),
        ("t\n" + "1,2\n" * 9_999, 1),
    ],
)
def test_the_steps_so_far_are_in_the_last_whole_row(content, steps, tmp_path):
    if content is not None:
        (tmp_path / "metrics.csv").write_text(content)
    assert steps_so_far(tmp_path) == steps
