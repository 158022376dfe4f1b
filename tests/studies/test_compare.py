"""klrl compare: small real runs of the command, what they hold equal, what they measure and what they keep."""

import csv
import json
import os
import re
import shutil
import signal
import statistics
from itertools import permutations
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from agents_of_ones_own import Plain, PlainConfig
from environments import Broken
from scipy import stats
from support import full_disk, wait_for
from torture.processes import Fork

from klrl.agents import AGENTS, PPO, TRPO, PPOConfig
from klrl.run import checkpoint, evaluate
from klrl.run.sealed import sealed, unsealed
from klrl.scripts.main import main
from klrl.studies import Study, comparison
from klrl.studies.outcomes import curve
from klrl.studies.report import table
from klrl.studies.trials import fitting
from klrl.trust_region import DEFAULT_TARGET_KL, PARAMETERS, REGIONS

TINY = ["n_envs=2", "n_steps=32", "batch_size=16", "n_epochs=2", "learning_rate=0.01", "critic-hidden-sizes=8"]
STEPS = 320
REGION_WORDS = ["--vary", "trust-region", "clip", "constraint", "clip+adaptive-penalty", "--also", "trpo"]
VARIANTS = ["clip", "constraint", "clip+adaptive-penalty", "trpo"]


def compare(output, *words, settings=TINY, envs=(f"CartPole-v1:{STEPS}",), seeds=(0, 1), processes=1):
    """Run the command in this process; the rows of its JSON."""
    flags = ["--set", *settings, "--envs", *envs, "--seeds", *map(str, seeds), "--processes", str(processes)]
    main(["compare", *words, *flags, "--output", str(output)])
    return json.loads((output / "results.json").read_text())["rows"]


def without_memory(lines):
    return [{name: value for name, value in line.items() if name != "peak_memory_mib"} for line in lines]


def lines_of_csv(output):
    with (output / "results.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The directory of one comparison of trust regions, with TRPO beside them."""
    output = tmp_path_factory.mktemp("made") / "regions"
    compare(output, *REGION_WORDS, settings=[*TINY, "target_kl=0.02"])
    return output


@pytest.fixture
def again(made, tmp_path, capsys):
    """Repeat that comparison on a copy of its directory; what it says and the names of the runs that it did."""
    output = tmp_path / "regions"
    shutil.copytree(made, output)

    def run(*settings):
        before = {path: path.stat().st_mtime_ns for path in output.glob("runs/*/*/*.json")}
        compare(output, *REGION_WORDS, settings=[*TINY, "target_kl=0.02", *settings])
        after = {path: path.stat().st_mtime_ns for path in output.glob("runs/*/*/*.json")}
        changed = (path.relative_to(output / "runs") for path in after if after[path] != before.get(path))
        return capsys.readouterr().out, sorted(map(str, changed))

    run.output = output
    return run


@pytest.fixture
def rows(made):
    return json.loads((made / "results.json").read_text())["rows"]


@pytest.fixture
def refused(capsys, tmp_path):
    """The one line of a refusal, before anything is written."""

    def run(*words):
        with pytest.raises(SystemExit) as stop:
            main(["compare", *words, "--output", str(tmp_path / "no")])
        assert stop.value.code == 2
        line = capsys.readouterr().err
        assert line.count("\n") == 1, line
        assert not (tmp_path / "no").exists()
        return line.strip()

    return run


# -- what is equal --------------------------------------------------------------------------------


def test_trust_regions_are_all_that_differs(rows):
    configs = {r["variant"]: r["config"] for r in rows if r["agent"] == "ppo"}
    differing = {k for config in configs.values() for k in config if config[k] != configs["clip"][k]}
    assert differing == {"trust_region", "target_kl"}
    assert {name: (c["trust_region"], c["target_kl"]) for name, c in configs.items()} == {
        "clip": ("clip", None),
        "constraint": ("constraint", 0.02),
        "clip+adaptive-penalty": ("clip+adaptive-penalty", 0.02),
    }


def test_another_agent_shares_what_both_know_and_fits_its_critic_as_often(rows):
    ppo, trpo = (next(r["config"] for r in rows if r["variant"] == name) for name in ("clip", "trpo"))
    assert {k for k in ppo.keys() & trpo.keys() if ppo[k] != trpo[k]} == {"trust_region", "target_kl"}
    assert (trpo["trust_region"], trpo["target_kl"]) == ("constraint", 0.02)
    assert trpo["n_critic_updates"] == ppo["n_epochs"] == 2


@pytest.mark.parametrize(("agent", "other"), list(permutations(AGENTS, 2)))
@pytest.mark.parametrize("env", ["CartPole-v1", "Hopper-v4", "NoPreset-v0"])
def test_the_base_is_the_preset_of_one_agent_for_all(agent, other, env):
    plan = comparison(["agent", agent, other], agent, [], [], presets=True)
    base, theirs = (plan.config(variant, env).to_json() for variant in plan.variants)
    assert base == AGENTS[agent].config_class.for_env(env).to_json()
    region = {"trust_region", *PARAMETERS}
    assert all(base[k] == theirs[k] for k in base.keys() & theirs.keys() - region)
    assert [theirs[k] for k in PARAMETERS] == [None] * len(PARAMETERS)
    passes = ("n_epochs", "n_critic_updates")
    mine, others = ([config[k] for k in passes if k in config] for config in (base, theirs))
    assert mine == others
    assert len(mine) == 1


@pytest.mark.parametrize(
    ("words", "field", "values"),
    [
        (["learning-rate", "1e-4", "3e-4"], "learning_rate", [1e-4, 3e-4]),
        (["n_epochs", "1", "7"], "n_epochs", [1, 7]),
        (["actor-hidden-sizes", "64", "32,16"], "actor_hidden_sizes", [[64], [32, 16]]),
        (["normalize-advantage"], "normalize_advantage", [True, False]),
        (["image-scale"], "image_scale", ["declared", "seen"]),
        (["target-kl", "0.005", "0.02"], "target_kl", [0.005, 0.02]),
    ],
)
def test_a_setting_is_all_that_differs(words, field, values):
    plan = comparison(words, "ppo", [], ["trust_region=constraint", "gamma=0.9"], presets=True)
    configs = [json.loads(json.dumps(plan.config(v, "CartPole-v1").to_json())) for v in plan.variants]
    assert [config.pop(field) for config in configs] == values
    assert configs[0] == configs[1]
    assert (configs[0]["gamma"], configs[0]["n_steps"]) == (0.9, 128)


def test_the_base_may_be_the_plain_defaults():
    plan = comparison(["clip-range", "0.1"], "ppo", [], [], presets=False)
    assert plan.config(plan.variants[0], "CartPole-v1") == PPOConfig(clip_range=0.1)


def test_without_values_every_trust_region_and_every_agent_is_compared():
    assert [v.name for v in comparison(["trust-region"], "ppo", [], [], True).variants] == list(REGIONS)
    assert [v.name for v in comparison(["agent"], "ppo", [], [], True).variants] == list(AGENTS)


@pytest.mark.parametrize("given", [Plain, "agents_of_ones_own:Plain"], ids=["class", "name"])
def test_an_agent_of_ones_own_is_compared(given, tmp_path):
    words, assignments = ["agent", "ppo", "trpo", given], ["n_envs=2", "n_steps=16", "batch_size=16"]
    runs = Study(comparison(words, assignments=assignments, environments={"CartPole-v1": 64}, seeds=[0]), tmp_path)
    rows = runs.run(processes=1, say=list)
    assert [(row["agent"], row["status"]) for row in rows] == [
        ("ppo", "done"), ("trpo", "done"), ("agents_of_ones_own:Plain", "done"),
    ]  # fmt: skip
    own = runs.trials[2].config
    assert (type(own), own.trust_region, own.n_steps, own.gamma) == (
        PlainConfig,
        "none",
        16,
        runs.trials[0].config.gamma,
    )


WIDE = "agents_of_ones_own:Wide"


@pytest.mark.parametrize(
    ("words", "more"),
    [(["trust-region", "clip", WIDE], []), (["gamma", "0.9"], [f"trust_region={WIDE}"])],
    ids=["varied", "set"],
)
def test_a_region_of_ones_own_is_compared_in_processes_too(words, more, tmp_path):
    rows = compare(tmp_path, "--vary", *words, settings=[*TINY, *more], processes=2)
    assert {row["status"] for row in rows} == {"done"}
    own = [row for row in rows if row["config"]["trust_region"] != "clip"]
    assert [row["config"]["trust_region"]["class"] for row in own] == ["Wide", "Wide"]
    assert all("clip_range=0.5" in row["config"]["trust_region"]["repr"] for row in own)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("agents_of_ones_own:Nobody", f"has no attribute 'Nobody'; allowed: {', '.join(AGENTS)}, or MODULE:CLASS"),
        ("no_module_at_all:Plain", "No module named 'no_module_at_all'"),
        ("agents_of_ones_own:PlainConfig", "is no class of agents"),
        ("pqo", "did you mean ppo?"),
    ],
)
def test_an_agent_that_is_none_is_named(given, why):
    with pytest.raises(ValueError, match=f"^agent = '{given}'.*{re.escape(why)}"):
        comparison(["agent", "ppo", given])


def test_of_every_value_those_that_do_not_fit_an_environment_are_left_out_and_named():
    steps, said = {"CartPole-v1": 64, "Pendulum-v1": 64}, []
    plan = fitting(comparison(["trust-region"], environments=steps, seeds=[0]), said.append)
    cells = [(env, variant.name) for env, variant in plan.cells()]
    gaussian, refer = {"w2-projection", "frobenius-projection"}, {r for r in REGIONS if r.startswith("reference-")}
    assert [v for env, v in cells if env == "CartPole-v1"] == [r for r in REGIONS if r not in gaussian | refer]
    assert [v for env, v in cells if env == "Pendulum-v1"] == [r for r in REGIONS if r not in refer]
    assert len(said) == 2 + 2 * len(refer) == 10
    assert any(line.startswith("left out: CartPole-v1, w2-projection: trust_region projects") for line in said)


def test_a_trust_region_that_is_asked_for_holds_for_all_agents_that_are_varied():
    plan = comparison(["agent", "ppo", "trpo"], "ppo", [], ["trust_region=fixed-penalty", "kl_coef=2"], True)
    regions = [plan.config(variant, "CartPole-v1").region for variant in plan.variants]
    assert regions[0] == regions[1]
    assert regions[0].beta == 2.0


def test_settings_reach_the_agent_that_has_them():
    plan = comparison(["trust-region", "clip"], "ppo", ["trpo"], ["cg_damping=0.5", "n_critic_updates=3"], True)
    ppo, trpo = (plan.config(variant, "CartPole-v1").to_json() for variant in plan.variants)
    assert (trpo["cg_damping"], trpo["n_critic_updates"], ppo["n_epochs"]) == (0.5, 3, 3)


# -- what is measured -----------------------------------------------------------------------------


def test_every_run_is_a_line_of_the_csv_and_a_row_of_the_json(made, rows):
    record = json.loads((made / "results.json").read_text())
    assert record["command"].startswith("klrl compare --vary trust-region clip constraint")
    assert record["versions"]["gymnasium"] == gym.__version__
    lines = lines_of_csv(made)
    assert [(r["variant"], r["seed"]) for r in rows] == [(v, s) for v in VARIANTS for s in (0, 1)]
    assert [(line["variant"], int(line["seed"])) for line in lines] == [(r["variant"], r["seed"]) for r in rows]
    for line, row in zip(lines, rows, strict=True):
        assert (line["env"], line["status"], line["error"]) == ("CartPole-v1", "done", "")
        assert float(line["mean_return"]) == row["mean_return"]
        assert float(line["kl_largest"]) == row["kl_largest"]
        assert float(line["share_of_updates_over_target"]) == row["updates_over_target"] / row["updates"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_row_says_what_the_same_training_does_by_hand(variant, rows, tmp_path):
    row = next(r for r in rows if (r["variant"], r["seed"]) == (variant, 1))
    agent_class = TRPO if variant == "trpo" else PPO
    agent = agent_class("CartPole-v1", agent_class.config_class.from_json(row["config"]), seed=1)
    agent.learn(STEPS, run_dir=tmp_path / "run")
    with gym.make("CartPole-v1") as env:
        assert row["mean_return"] == evaluate(agent, env, 20, seed=1).mean
    with (tmp_path / "run/episodes.csv").open() as file:
        last = [float(e["return"]) for e in csv.DictReader(file) if int(e["total_timesteps"]) > 288]
    assert row["last_tenth_episodes"] == len(last)
    assert row["last_tenth_return"] == (pytest.approx(sum(last) / len(last)) if last else None)
    kl = [update["drift/kl"] for update in agent.history]
    judged_by = DEFAULT_TARGET_KL if variant == "clip" else 0.02
    assert (row["target_kl"], row["judged_by"]) == (None if variant == "clip" else 0.02, judged_by)
    assert (row["updates"], row["num_timesteps"]) == (5, STEPS)
    assert row["kl_mean"] == pytest.approx(statistics.mean(kl))
    assert row["kl_median_second_half"] == pytest.approx(statistics.median(kl[2:]))
    assert row["kl_largest"] == max(kl)
    assert row["updates_over_target"] == len([x for x in kl if x > judged_by])
    shares = [update["drift/states_over_target"] for update in agent.history]
    assert row["states_over_target"] == pytest.approx(statistics.mean(shares))
    assert row["last_beta"] == agent.history[-1].get("train/kl_penalty")
    assert row["last_actor_learning_rate"] == agent.history[-1].get("train/actor_learning_rate")
    assert [point[::2] for point in row["curve"]] == [[64.0 * (i + 1), x] for i, x in enumerate(kl)]


def test_a_curve_has_about_thirty_points_the_last_update_and_no_nan():
    history = [
        {"time/total_timesteps": i, "rollout/ep_rew_mean": float("nan") if i < 50 else 1.0, "drift/kl": 0.1}
        for i in range(100)
    ]
    points = curve(history)
    assert 30 <= len(points) <= 35
    assert points[-1] == [99, 1.0, 0.1]
    assert points[0][1] is None


def test_the_table_has_a_line_per_environment_and_variant(rows):
    lines = table(rows).splitlines()
    names = [line.split(" | ")[:2] for line in lines if line.startswith("| CartPole-v1")]
    assert names == [["| CartPole-v1", variant] for variant in VARIANTS]
    returns = [r["mean_return"] for r in rows if r["variant"] == "clip"]
    clip = lines[2].split(" | ")
    assert clip[2] == f"{np.mean(returns):.1f} (n = 2)"
    over = sum(r["updates_over_target"] for r in rows if r["variant"] == "clip")
    assert clip[7] == f"{over} of 10 over 0.01*"
    halves = [r["kl_median_second_half"] for r in rows if r["variant"] == "clip"]
    assert clip[5] == f"{np.median(halves):.4f}"
    assert "0 of 10 over 0.02 |" in lines[5]


def test_updates_are_counted_against_the_regions_own_bound(tmp_path):
    words = ["--vary", "trust-region", "constraint+max-constraint", "quantile-constraint"]
    bounds = ["max_state_kl=1e-3", "quantile_kl=2e-3", "target_kl=1e-9"]
    made = compare(tmp_path / "tails", *words, settings=[*TINY, *bounds], envs=("CartPole-v1:128",), seeds=(0,))
    joined, quantile = made
    assert [r["counted_against"] for r in made] == ["1e-09, 0.001 (max)", "0.002 (quantile)"]
    assert [r["updates_over_target"] for r in made] == [0, 0]
    assert (joined["target_kl"], joined["judged_by"]) == (1e-9, 1e-9)
    assert (quantile["target_kl"], quantile["judged_by"]) == (None, 0.002)
    with (tmp_path / "tails/runs/CartPole-v1/quantile-constraint/seed-0/metrics.csv").open() as file:
        updates = [*csv.DictReader(file)]
    assert quantile["kl_p95_mean"] == pytest.approx(np.mean([float(x["drift/kl_p95"]) for x in updates]))
    assert quantile["kl_state_largest"] == max(float(x["drift/kl_max"]) for x in updates)
    lines = table([*made, quantile | {"updates_over_target": 1}]).splitlines()[2:4]
    assert [line.split(" | ")[7] for line in lines] == [
        "0 of 2 over 1e-09, 0.001 (max)",
        "1 of 4 over 0.002 (quantile)",
    ]
    old = {k: v for k, v in quantile.items() if k not in ("counted_against", "kl_p95_mean", "kl_state_largest")}
    assert "0 of 2 over 0.002* |" in table([old])  # an outcome of before


def test_updates_are_counted_against_the_target_of_each_where_it_follows_a_schedule(tmp_path):
    falling = "target_kl=linear:0.02:1e-6"
    (row,) = compare(
        tmp_path / "falling", "--vary", "trust-region", "constraint", settings=[*TINY, falling],
        envs=("CartPole-v1:320",), seeds=(0,),
    )  # fmt: skip
    with (tmp_path / "falling/runs/CartPole-v1/constraint/seed-0/metrics.csv").open() as file:
        updates = [
            {name: float(x or "nan") for name, x in line.items() if name.startswith("drift/")}
            for line in csv.DictReader(file)
        ]
    targets = [x["drift/kl_target"] for x in updates]
    assert targets[0] > 2 * targets[-1]
    assert row["counted_against"] == row["next_counted_against"] == f"{targets[0]:g} to {targets[-1]:g}"
    assert row["updates_over_target"] == 0
    over = [x["drift/kl_next"] > x["drift/kl_target"] for x in updates]
    assert row["next_over"] == sum(over) < sum(x["drift/kl_next"] > targets[-1] for x in updates)
    line = table([row]).splitlines()[2]
    assert f"0 of {len(updates)} over {targets[0]:g} to {targets[-1]:g} |" in line
    assert f"{sum(over)} of {row['next_judged']} over {targets[0]:g} to {targets[-1]:g} |" in line


def test_three_seeds_have_students_interval_in_the_table_with_their_number_beside_it(rows):
    clip = [r for r in rows if r["variant"] == "clip"]
    returns = [10.0, 20.5, 33.0]
    said = table([clip[0] | {"seed": seed, "mean_return": x} for seed, x in enumerate(returns)]).splitlines()[2]
    low, high = stats.t.interval(0.95, 2, np.mean(returns), stats.sem(returns))
    assert said.split(" | ")[2] == f"{np.mean(returns):.1f} ± {(high - low) / 2:.1f} (n = 3)"


# -- what is kept ---------------------------------------------------------------------------------


def test_a_second_call_runs_nothing_and_says_the_same(again, made):
    said, done = again()
    assert done == []
    assert "8 of 8 runs are done already" in said
    assert lines_of_csv(again.output) == lines_of_csv(made)


def test_what_became_of_a_run_is_found_out_again_without_training(again, made):
    (again.output / "runs/CartPole-v1/constraint/seed-1.json").unlink()
    (again.output / "runs/CartPole-v1/trpo/seed-0.json").write_text("{")
    trained = {path: path.read_bytes() for path in again.output.glob("runs/*/*/*/metrics.csv")}
    said, done = again()
    assert done == ["CartPole-v1/constraint/seed-1.json", "CartPole-v1/trpo/seed-0.json"]
    assert "2/2  CartPole-v1 " in said
    assert "CartPole-v1 trpo seed 0: evaluated again, seed-0.json is not as it was written: " in said
    assert {path: path.read_bytes() for path in trained} == trained
    memory = {"peak_memory_mib"}
    lines = [
        [{k: v for k, v in line.items() if k not in memory} for line in lines_of_csv(x)] for x in (again.output, made)
    ]
    assert lines[0] == lines[1]


FORGED = {
    "a pipe": None,
    "a link": None,
    "an edited number": lambda row, text: text.replace(b'"updates": 5', b'"updates": 6'),
    "another JSON": lambda row, text: b"[1, 2]",
    "deep JSON": lambda row, text: b"[" * 100_000,
    "no text": lambda row, text: b"\xff\xfe",
    "a file that is too large": lambda row, text: text + b" " * 2**20,
    "no versions": lambda row, text: sealed(row | {"versions": None}),
    "settings that are a list": lambda row, text: sealed(row | {"config": [1]}),
    "a return that is text": lambda row, text: sealed(row | {"mean_return": "\x1b[2J"}),
    "a KL that is none": lambda row, text: sealed(row | {"kl_mean": float("nan")}),
    "no updates": lambda row, text: sealed(row | {"updates": 0}),
}
"""What may be in place of a finished run's file: from what its row was, and the file."""


@pytest.mark.parametrize("what", FORGED)
def test_a_file_that_klrl_did_not_write_is_named_and_its_run_is_evaluated_again(again, what):
    path = again.output / "runs/CartPole-v1/clip/seed-0.json"
    text = path.read_bytes()
    path.unlink()
    if FORGED[what] is not None:
        path.write_bytes(FORGED[what](unsealed(text), text))
        assert path.read_bytes() != text
    elif what == "a pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    said, done = again()
    assert done == ["CartPole-v1/clip/seed-0.json"]
    assert "CartPole-v1 clip seed 0: evaluated again, seed-0.json is not as it was written: " in said
    assert "\x1b" not in said
    assert unsealed(path.read_bytes())["status"] == "done"


def test_a_folder_in_place_of_a_file_is_refused_before_anything_runs(again, capsys):
    path = again.output / "runs/CartPole-v1/clip/seed-0.json"
    path.unlink()
    path.mkdir()
    with pytest.raises(SystemExit) as stop:
        again()
    assert stop.value.code == 2
    assert f"a folder, not a file: '{path}'" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["results.csv", "results.json"])
def test_a_result_that_cannot_be_written_is_refused_before_anything_runs(again, name, capsys):
    (again.output / name).unlink()
    (again.output / name).mkdir()
    with pytest.raises(SystemExit) as stop:
        again()
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert said == f"klrl compare: output = {again.output / name} is a directory; allowed: a file\n"


def test_results_that_a_full_disk_does_not_take_are_one_line_and_the_same_command_goes_on(again, made, capsys):
    with pytest.raises(SystemExit) as stop, full_disk():
        again()
    assert stop.value.code == 1
    said = capsys.readouterr().err
    assert said.endswith(f"; finished runs are in {again.output / 'runs'}, and the same command continues\n")
    assert said.count("\n") == 1
    assert again()[1] == []
    assert lines_of_csv(again.output) == lines_of_csv(made)


def test_a_changed_setting_is_another_study(again, capsys):
    with pytest.raises(SystemExit) as stop:
        again("target_kl=0.05")
    assert stop.value.code == 2
    said = (
        f"output = {again.output} is another study's, with CartPole-v1 constraint seed 0: target_kl = 0.02 and not 0.05"
    )
    assert capsys.readouterr().err == f"klrl compare: {said}; allowed: a new directory\n"


def test_runs_of_other_versions_are_named(again):
    path = again.output / "runs/CartPole-v1/clip/seed-0.json"
    path.write_bytes(sealed(unsealed(path.read_bytes()) | {"versions": {"klrl": "0.0.1"}}))
    said, done = again()
    assert done == []
    assert "1 of them with other versions: CartPole-v1 clip seed 0\n" in said
    rows = json.loads((again.output / "results.json").read_text())["rows"]
    assert [row.get("versions") for row in rows] == [{"klrl": "0.0.1"}, *[None] * 7]


def test_an_output_of_an_earlier_klrl_is_refused_in_one_line(tmp_path, capsys):
    (tmp_path / "compare.json").write_text("{}")
    with pytest.raises(SystemExit) as stop:
        compare(tmp_path, *REGION_WORDS)
    assert stop.value.code == 2
    said = f"output = {tmp_path} has a comparison of an earlier klrl (compare.json); allowed: a new directory"
    assert capsys.readouterr().err == f"klrl compare: {said}\n"


# -- what goes wrong ------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*The reward is a NaN value.*")
def test_a_failed_run_is_kept_as_failed_does_not_end_the_others_and_is_tried_again(tmp_path, capsys):
    gym.register("Broken-v0", lambda: Broken("reward", index=3))
    words = ["--vary", "gamma", "0.9", "0.99"]
    for _ in range(2):
        with pytest.raises(SystemExit) as stop:
            compare(tmp_path, *words, envs=("Broken-v0:64", "CartPole-v1:64"), seeds=(0,))
        assert stop.value.code == 1
        said = capsys.readouterr().out
        assert "Broken-v0 gamma=0.9 seed 0: failed, NonFinite: reward of environment 0 is nan in step 1 of " in said
        assert "| Broken-v0 | gamma=0.99 | failed |" in said
        assert said.endswith(
            f"{tmp_path / 'results.csv'} has a line for every run; klrl report {tmp_path} draws them\n"
        )
    assert "2 of 4 runs are done already" in said
    del gym.registry["Broken-v0"]
    lines = lines_of_csv(tmp_path)
    assert [line["status"] for line in lines] == ["failed", "failed", "done", "done"]
    assert lines[0]["mean_return"] == ""
    assert lines[0]["error"].startswith("NonFinite: reward of environment 0 is nan")


def test_a_line_of_the_table_says_how_many_of_its_runs_failed(rows):
    one_failed = [row | {"status": "failed"} if i == 0 else row for i, row in enumerate(rows)]
    assert f"| CartPole-v1 | clip | {rows[1]['mean_return']:.1f} (n = 1), 1 of 2 failed |" in table(one_failed)


def test_processes_of_their_own_give_the_same_numbers_and_find_environments_of_ones_own(rows, tmp_path, monkeypatch):
    lines = ["import gymnasium as gym", "from environments import Counting", "gym.register('Own-v0', Counting)"]
    (tmp_path / "own_module.py").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    envs = ("own_module:Own-v0:64", f"CartPole-v1:{STEPS}")
    theirs = compare(tmp_path / "out", "--vary", "trust-region", "clip", envs=envs, seeds=(0,), processes=2)
    assert [row["status"] for row in theirs] == ["done", "done"]
    assert (tmp_path / "out/runs/own_module_Own-v0/clip/seed-0.json").exists()
    timed = {"steps_per_second", "peak_memory_mib"}
    assert {k: v for k, v in theirs[1].items() if k not in timed} == {
        k: v for k, v in rows[0].items() if k not in timed
    }


def alive(pid):
    path = Path(f"/proc/{pid}/stat")
    return path.exists() and path.read_text().rpartition(")")[2].split()[0] != "Z"


INTERRUPTED = "klrl compare: interrupted; finished runs are in out/runs, and the same command continues\n"
SLOW = """
import time
import gymnasium as gym
from gymnasium.envs.classic_control import CartPoleEnv


class Slow(CartPoleEnv):
    def step(self, action):
        time.sleep(0.01)
        return super().step(action)


gym.register("Slow-v0", Slow)
"""


@pytest.mark.parametrize(("number", "status"), [("SIGINT", 130), ("SIGKILL", -9)])
def test_an_interrupted_comparison_leaves_finished_runs_and_no_process(tmp_path, number, status):
    (tmp_path / "slow.py").write_text(SLOW)
    words = ["--vary", "gamma", "0.9", "--envs", "slow:Slow-v0:100000000", "CartPole-v1:64", "--seeds", "0"]
    command = ["-m", "klrl.scripts.main", "compare", *words, "--set", *TINY, "try_envs=False", "--output", "out"]
    process = Fork(command, tmp_path)
    process.until((tmp_path / "out/runs/CartPole-v1/gamma=0.9/seed-0.json").exists, every=0.05)
    run = tmp_path / "out/runs/slow_Slow-v0/gamma=0.9/seed-0"
    table = run / "metrics.csv"  # the update of a row may not be over while it is the last one
    process.until(lambda: table.exists() and table.read_text().count("\n") > 2, every=0.05)
    worker = json.loads((run / "run.lock").read_text())["pid"]
    process.send(signal.Signals[number])
    ended = process.wait()
    assert ended.code == status
    assert number == "SIGKILL" or ended.err == INTERRUPTED  # Python's own words on what it cleans up
    wait_for(lambda: not alive(worker))
    assert not run.with_name("seed-0.json").exists()
    if number != "SIGKILL":
        assert not run.with_name("seed-0.claim").exists()
        assert checkpoint.read(run)[1]["num_timesteps"] >= 64  # the last whole update, long before a checkpoint was due


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--vary"),
        (["--vary"], "vary = (); allowed: FIELD [VALUES ...]"),
        (["--vary", "lr", "1"], "vary = 'lr'; allowed: "),
        (["--vary", "gamma"], "vary = 'gamma' without values; allowed: gamma VALUES ..."),
        (["--vary", "gamma", "0.9", "high"], "gamma = 'high'; allowed: a number in [0, 1]"),
        (["--vary", "n-envs", "1.5"], "n_envs = 1.5; allowed: an integer in [1, 65536]"),
        (["--vary", "activation", "sine"], "activation = 'sine'; allowed: "),
        (["--vary", "trust-region", "clp"], "trust_region = 'clp'; allowed: none, clip,"),
        (["--vary", "gamma", "0.9", "0.9"], "vary = 'gamma=0.9' twice; allowed: every one once"),
        (["--vary", "agent", "sac"], "agent = 'sac'; allowed: ppo, trpo"),
        (["--vary", "gamma", "0.9", "--agent", "sac"], "agent = 'sac'; allowed: ppo, trpo"),
        (["--vary", "gamma", "0.9", "--also", "ppo"], "also = 'ppo'; allowed: trpo"),
        (["--vary", "gamma", "0.9", "--set", "n_steps"], "set = 'n_steps'; allowed: FIELD=VALUE ..."),
        (["--vary", "gamma", "0.9", "--set", "steps=3"], "set = 'steps'; allowed: n_steps, "),
        (["--vary", "gamma", "0.9", "--set", "gamma=0.8"], "set = 'gamma'; allowed: what --vary does not vary"),
        (["--vary", "gamma", "0.9", "--set", "n_steps=0"], "n_steps = 0; allowed: an integer >= 1"),
        (["--vary", "gamma", "0.9", "--set", "target_kl=0.1"], "target_kl = 0.1; allowed: only with a trust region"),
        (["--vary", "target-kl", "0.1"], "CartPole-v1, target_kl=0.1: target_kl = 0.1; allowed: only with a trust"),
        (["--vary", "batch-size", "4096"], "CartPole-v1, batch_size=4096: batch_size = 4096; allowed: at most"),
        (
            ["--vary", "action-distribution", "gaussian", "beta"],
            "with action space Discrete(2); allowed: only with a Box",
        ),
        (["--vary", "gamma", "0.9", "--envs"], "envs = (); allowed: ID:STEPS ..."),
        (
            ["--vary", "gamma", "0.9", "--seeds", "1", "1"],
            "seeds = [1, 1]; allowed: at least one",
        ),
        (["--vary", "gamma", "0.9", "--envs", "CartPole-v1"], "envs = 'CartPole-v1'; allowed: every environment once"),
        (
            ["--vary", "gamma", "0.9", "--envs", "CartPol-v1:64"],
            "env = 'CartPol-v1': unknown; did you mean CartPole-v1",
        ),
    ],
)
def test_bad_input_is_refused_in_one_line_before_anything_runs(words, message, refused):
    envs = [] if "--envs" in words or not words else ["--envs", "CartPole-v1:64"]
    assert message in refused(*words, *envs)


def test_help_names_every_flag(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["compare", "--help"])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    assert all(f"--{flag}" in said for flag in ("vary", "agent", "also", "set", "envs", "seeds", "preset", "output"))
