"""The benchmark of the KL's accuracy and cost: small runs of the real command."""

import json
import math

import pytest
import torch

from klrl.scripts.benchmarks import accuracy, accuracy_measurements
from klrl.scripts.benchmarks.accuracy_measurements import CASES

LEVELS = accuracy_measurements.LEVELS[::2]
WITH_RECORDS = {case.name for case in CASES if case.of_torch is None}


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    path = tmp_path_factory.mktemp("accuracy") / "accuracy.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(accuracy_measurements, "LEVELS", LEVELS)
        accuracy.main(["--pairs", "100", "--repeats", "1", "--output", str(path)])
    return json.loads(path.read_text())


def test_every_family_is_within_one_part_in_a_thousand_at_every_level(record):
    cells = {(row["family"], row["kl"]) for row in record["rows"]}
    for case in CASES:  # of a Uniform in float32 none is as near as 1e-8, and few pairs are of some as far as 100
        levels = LEVELS if case.of_torch is None else LEVELS[2:5]
        assert cells >= {(case.name, level) for level in levels}
    assert all(row["klrl"] <= 1e-3 and row["negative"]["klrl"] == 0 for row in record["rows"])
    assert all(row["pairs"] > 50 for row in record["rows"] if row["family"] in WITH_RECORDS)
    others = [row for row in record["rows"] if row["family"] not in WITH_RECORDS]
    assert max(row["klrl"] for row in others) < 1.2e-7  # one rounding to float32
    without = {row["family"] for row in others if "torch" not in row}
    assert without == {"Weibull", "NegativeBinomial(10)", "Multinomial(10; 6)"}


def test_the_usual_formulas_are_not(record):
    worst = {case.name: 0.0 for case in CASES if case.of_torch is None}
    for row in record["rows"]:
        if row["family"] in worst:
            worst[row["family"]] = max(worst[row["family"]], row["torch"])
    assert min(worst.values()) > 1e-1


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("level", [1e-6, 1.0])
def test_steps_lead_to_the_level_of_kl_that_is_asked_for(case, level):
    p, q = map(case.record, accuracy_measurements._at(case, level, 20, torch.Generator().manual_seed(0)))
    kl = case.truth(p, q)
    far = (kl / level - 1.0).abs() > 1e-2
    assert far.sum() <= (0 if case.of_torch is None else 2)  # in one dimension a direction may be hardly any
    if case.of_torch is not None:  # whose KL by klrl is an integral (tests/kl/test_kl_of_torch.py)
        torch.testing.assert_close(case.kl(p, q), kl, rtol=1e-7 if level < 1.0 else 1e-9, atol=0.0)


def test_the_costs_are_of_the_same_kl(record):
    assert all(math.isfinite(value) and value > 0.0 for value in record["microseconds"].values())
    assert len(record["microseconds"]) == 5


def test_the_table_has_two_lines_per_family(record, capsys):
    text = accuracy_measurements.tables(record["rows"], record["microseconds"])
    assert text.count("| klrl |") == text.count("| torch |") == len(CASES)
