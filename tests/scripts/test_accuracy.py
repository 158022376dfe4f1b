"""The benchmark of the KL's accuracy and cost: small runs of the real command."""

import json
import math

import pytest
import torch

from klrl.scripts.benchmarks import accuracy, accuracy_measurements


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    path = tmp_path_factory.mktemp("accuracy") / "accuracy.json"
    accuracy.main(["--pairs", "100", "--repeats", "1", "--output", str(path)])
    return json.loads(path.read_text())


def test_every_family_is_within_one_part_in_a_thousand_at_every_level(record):
    assert {(row["family"], row["kl"]) for row in record["rows"]} == {
        (case.name, level) for case in accuracy_measurements.CASES for level in accuracy_measurements.LEVELS
    }
    assert all(row["klrl"] <= 1e-3 and row["negative"]["klrl"] == 0 for row in record["rows"])
    assert all(row["pairs"] > 50 for row in record["rows"])


def test_the_usual_formulas_are_not(record):
    worst = {case.name: 0.0 for case in accuracy_measurements.CASES}
    for row in record["rows"]:
        worst[row["family"]] = max(worst[row["family"]], row["torch"])
    assert min(worst.values()) > 1e-1


@pytest.mark.parametrize("case", accuracy_measurements.CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("level", [1e-6, 1.0])
def test_steps_lead_to_the_level_of_kl_that_is_asked_for(case, level):
    p, direction = torch.randn(2, 20, case.n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    q = p + accuracy_measurements._step(case, p, direction, level).unsqueeze(-1) * direction
    kl = case.truth(case.record(p), case.record(q))
    torch.testing.assert_close(kl, torch.full_like(kl, level), rtol=1e-2, atol=0.0)


def test_the_costs_are_of_the_same_kl(record):
    assert all(math.isfinite(value) and value > 0.0 for value in record["microseconds"].values())
    assert len(record["microseconds"]) == 5


def test_the_table_has_two_lines_per_family(record, capsys):
    text = accuracy_measurements.tables(record["rows"], record["microseconds"])
    assert text.count("| klrl |") == text.count("| torch |") == len(accuracy_measurements.CASES)
