"""The designs of the evidence: each is a study, and tuning keeps to seeds of its own."""

from pathlib import Path

import pytest

from klrl.studies.design_file import read
from klrl.studies.trials import trials_of

FOLDER = Path(__file__).resolve().parents[2] / "scripts" / "benchmarks" / "studies"
FILES = sorted(FOLDER.glob("*.toml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_file_is_a_design_whose_settings_fit(file):
    design = read(file)
    assert len(trials_of(design)) == len(design.environments) * len(design.variants) * len(design.seeds)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_recipes_are_tuned_on_other_seeds_than_are_reported(file):
    assert all((seed >= 100) == file.stem.startswith("recipe") for seed in read(file).seeds)


def test_an_agent_has_the_preset_of_its_own():
    trials = trials_of(read(FOLDER / "mujoco-v4-trpo.toml"))
    assert {trial.config.batch_size for trial in trials} == {128}
    assert {trial.env for trial in trials if trial.config.gamma == 0.9999} == {"Swimmer-v4"}


@pytest.mark.parametrize("name", ["kl-bound", "kl-bound-projections"])
def test_every_bound_is_tried_at_both_learning_rates_and_nothing_else_differs(name):
    configs = {t.variant: t.config.to_json() for t in trials_of(read(FOLDER / f"{name}.toml"))}
    assert sum(name.endswith(", 10 x learning rate") for name in configs) == len(configs) / 2
    for name, config in configs.items():
        if name.endswith(", 10 x learning rate"):
            assert config == configs[name.partition(",")[0]] | {"learning_rate": 3e-3}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_part_of_as_many_as_there_are_seeds_is_one_seed_of_everything(file):
    design = read(file)
    n, trials = len(design.seeds), trials_of(design)
    for i, seed in enumerate(design.seeds):
        assert {trial.seed for trial in trials[i::n]} == {seed}
