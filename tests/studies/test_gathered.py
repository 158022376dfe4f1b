"""Records of studies: what has ended, of one directory or several machines', is in one small file."""

import csv
import json

import pytest

from klrl.scripts.main import main
from klrl.studies import Study
from klrl.studies.gathered import gather, read

BASE = {"n_envs": 2, "n_steps": 32, "batch_size": 16, "actor_hidden_sizes": [8]}


def study(folder, seeds, **base):
    return Study.of(
        folder,
        environments={"CartPole-v1": 640},
        variants={"clip": {}, "bound": {"trust_region": "constraint", "target_kl": 0.02}},
        seeds=seeds,
        base=BASE | base,
        presets=False,
        run={"eval_episodes": 2},
    )


@pytest.fixture(scope="module")
def machines(tmp_path_factory):
    """Two directories of one study: seeds 0 and 1, of which only 0 is done, and seed 2 elsewhere."""
    folder = tmp_path_factory.mktemp("machines")
    study(folder / "a", [0, 1]).run(processes=1, task=(1, 2), say=list)
    study(folder / "b", [2]).run(processes=1, say=list)
    return folder


def written(machines, output, *sources):
    main(["benchmark", "gather", *(str(machines / name) for name in sources), "--output", str(output)])
    return json.loads(output.read_text())


def names(rows):
    return [(row["variant"], row["seed"]) for row in rows]


def test_a_record_has_the_runs_that_have_ended_with_the_numbers_of_the_table(machines, tmp_path, capsys):
    record = written(machines, tmp_path / "record.json", "a")
    assert "| CartPole-v1 | clip |" in capsys.readouterr().out
    assert names(record["rows"]) == [("clip", 0), ("bound", 0)]
    with (machines / "a" / "results.csv").open() as lines:
        table = {row["variant"]: row for row in csv.DictReader(lines) if row["status"] == "done"}
    for row in record["rows"]:
        for name in ("mean_return", "last_tenth_return", "kl_mean", "kl_largest", "updates", "updates_over_target"):
            assert row[name] == pytest.approx(float(table[row["variant"]][name]), rel=1e-5)
        assert [steps for steps, *_ in row["curve"]] == [64 * i for i in range(1, 11)]
    assert {cell["variant"]: cell["config"]["trust_region"] for cell in record["variants"]} == {
        "clip": "clip",
        "bound": "constraint",
    }


def test_the_runs_of_another_machine_join_in_any_order_and_form(machines, tmp_path):
    first = written(machines, tmp_path / "first.json", "a")
    both = written(machines, tmp_path / "first.json", "b")
    assert names(both["rows"]) == [("clip", 0), ("clip", 2), ("bound", 0), ("bound", 2)]
    assert written(machines, tmp_path / "first.json", "a", "b")["rows"] == both["rows"]
    assert [row for row in both["rows"] if row["seed"] == 0] == first["rows"]
    others = written(machines, tmp_path / "second.json", "b/results.json", "a/results.json")
    assert others["rows"] == both["rows"]
    assert read(tmp_path / "first.json") == gather([machines / "a", machines / "b"])


def test_configurations_and_versions_are_kept_once(machines, tmp_path):
    record = written(machines, tmp_path / "record.json", "a", "b")
    assert len(record["versions"]) == 1
    assert len(record["variants"]) == 2
    assert {row["versions"] for row in record["rows"]} == {0}
    whole = sum((machines / name / "results.json").stat().st_size for name in "ab")
    assert (tmp_path / "record.json").stat().st_size < whole / 2


def changed(machines, tmp_path, change):
    """The record of machine b, with one thing changed in its first run."""
    record = written(machines, tmp_path / "changed.json", "b")
    change(record)
    (tmp_path / "changed.json").write_text(json.dumps(record))
    return tmp_path / "changed.json"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda r: r["variants"][0]["config"].update(gamma=0.9),
            "gamma = 0.9 and not 0.99; allowed: the same settings",
        ),
        (lambda r: r["variants"][0].update(total_timesteps=1280), "total_timesteps = 1280 and not 640"),
        (lambda r: r["rows"][0].update(mean_return=-1.0), "CartPole-v1 clip seed 2 came out differently"),
        (lambda r: r.pop("versions"), "is no record of a study: KeyError: 'versions'"),
    ],
)
def test_runs_of_other_settings_and_other_results_are_refused_in_one_line(change, said, machines, tmp_path, capsys):
    other = changed(machines, tmp_path, change)
    output = tmp_path / "record.json"
    written(machines, output, "a", "b")
    before = output.read_bytes()
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(["benchmark", "gather", str(other), "--output", str(output)])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert output.read_bytes() == before


def test_a_run_that_failed_gives_way_to_one_that_did_not_and_speed_is_no_difference(machines, tmp_path):
    def fail(record):
        record["rows"][0] = {
            "env": "CartPole-v1",
            "variant": "clip",
            "seed": 2,
            "status": "failed",
            "error": "x",
            "versions": 0,
        }
        record["rows"][1]["steps_per_second"] = 1.0

    other = changed(machines, tmp_path, fail)
    assert [row["status"] for row in read(other)] == ["failed", "done"]
    for sources in ([other, machines / "b"], [machines / "b", other]):
        assert [row["status"] for row in gather(sources)] == ["done", "done"]


def test_a_setting_that_only_a_later_version_has_is_no_difference(machines, tmp_path):
    other = changed(machines, tmp_path, lambda record: record["variants"][0]["config"].pop("layer_norm"))
    assert gather([other, machines / "b"]) == read(other)


def test_nothing_to_gather_is_said(machines, tmp_path, capsys):
    study(tmp_path / "begun", [0]).record()
    for source, said in (("begun", "no run has ended"), ("nothing", "no such file; allowed: the directory of a study")):
        with pytest.raises(SystemExit) as stop:
            main(["benchmark", "gather", str(tmp_path / source), "--output", str(tmp_path / "record.json")])
        assert stop.value.code == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "record.json").exists()
