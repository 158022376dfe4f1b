"""The tables of docs/benchmarks.md: statistics by hand from made-up runs, published numbers as they are meant."""

import math
import re

import numpy as np
import pytest
from sitegen import bounds, evidence, published

from klrl.studies.gathered import text

CURVES = {0: [0.0, 100.0, 300.0, 200.0], 1: [0.0, 300.0, 100.0, 400.0], 2: [0.0, 200.0, 200.0, 300.0]}


def run(seed, env="Hopper-v4", variant="PPO", agent="ppo", steps=1_000_000, last=2000.0, **more):
    """A run whose mean return over the last 100 episodes is CURVES at a quarter of its steps, at half of them, ..."""
    row = {
        "env": env, "variant": variant, "agent": agent, "seed": seed, "total_timesteps": steps, "status": "done",
        "config": {"learning_rate": 3e-4, "trust_region": "clip", "clip_range": None} | more.pop("config", {}),
        "versions": {"mujoco": "4.0.0"}, "error": None, "mean_return": 2500.0 + seed,
        "last_tenth_return": last + 100.0 * seed,
        "kl_mean": 0.01, "kl_largest": 0.02 + 0.001 * seed, "updates": 400, "updates_over_target": 3, "target_kl": None,
        "judged_by": 0.01, "counted_against": None,
        "curve": [[steps * (i + 1) // 4, x, 0.01] for i, x in enumerate(CURVES[seed % 3])],
    }  # fmt: skip
    return row | more


@pytest.fixture
def keep(tmp_path, monkeypatch):
    monkeypatch.setattr(evidence, "STUDIES", tmp_path)

    def keep(name, rows):
        (tmp_path / f"{name}.json").write_text(text("klrl benchmark gather", rows))

    return keep


def cells(block, *start):
    """The cells of the one line that begins so."""
    lines = [line.strip("|").split("|") for line in block.splitlines() if line.startswith("|")]
    (found,) = [found for line in lines if (found := [cell.strip() for cell in line])[: len(start)] == [*start]]
    return found


# -- statistics -------------------------------------------------------------------------------------


def test_m1_is_the_largest_point_of_the_mean_curve_not_the_mean_of_the_largest_points():
    interval = evidence.largest_of_mean([run(seed) for seed in CURVES])
    assert interval.value == 300.0
    assert 300.0 <= interval.high <= 400.0
    assert 200.0 <= interval.low <= 300.0


def test_m1_knows_points_before_the_first_episode_has_ended():
    first = run(0) | {"curve": [[1, None, 0.01], [2, 5.0, 0.01]]}
    assert evidence.largest_of_mean([first, first]).value == 5.0
    never = run(0) | {"curve": [[1, None, 0.01]]}
    assert math.isnan(evidence.largest_of_mean([never]).value)


def test_a_threshold_is_first_reached_by_the_mean_over_episodes():
    assert [evidence.steps_to(run(seed), 250.0) for seed in CURVES] == [750_000, 500_000, 1_000_000]
    assert evidence.steps_to(run(0), 301.0) == math.inf


@pytest.mark.parametrize(
    ("curve", "fell"),
    [([-100.0, 0.0, -19.0], False), ([-100.0, 0.0, -21.0], True), ([100.0, 50.0, 0.0], True), ([0.0, 1.0, 2.0], False)],
)
def test_a_drop_is_the_loss_of_a_fifth_of_what_had_been_gained(curve, fell):
    assert evidence.drops(run(0) | {"curve": [[i, x, 0.01] for i, x in enumerate(curve)]}) == fell


def test_nats_per_unit_of_return_are_those_of_all_updates_over_what_was_gained():
    assert evidence.spent(run(0)) == pytest.approx(0.01 * 400 / 200.0)


# -- tables -----------------------------------------------------------------------------------------


def test_without_runs_every_block_says_so(keep):
    for name in ("mujoco-v4", "mujoco-v5", "classic", "kl-bound", *evidence.RECIPES):
        assert evidence.BLOCKS[name]() == "No run has ended yet."


def test_the_table_of_mujoco_has_returns_kl_and_what_is_published(keep):
    keep("mujoco-v4-ppo", [run(seed) for seed in range(3)] + [run(3) | {"status": "failed"}])
    keep("mujoco-v4-trpo", [run(0, variant="TRPO", agent="trpo", updates_over_target=0, target_kl=0.01)])
    block = evidence.BLOCKS["mujoco-v4"]()
    ours, theirs = cells(block, "Hopper-v4", "PPO", "3"), cells(block, "Hopper-v4", "published, best PPO")
    assert ours[3].startswith("300 [")
    assert ours[4].startswith("2,100 [2,0")
    assert ours[6].startswith("2,501 [2,50")
    assert theirs[3:] == [
        "2,609 (Tianshou, 10 seeds, v3, MuJoCo 2.0)",
        "2,598 (KLip-PPO, 5 seeds, v4)",
        "",
        "2,410 (RL Zoo, 1 seed, v3)",
    ]
    assert cells(block, "Hopper-v4", "TRPO", "1")[4] == "2,000"
    assert cells(block, "Hopper-v4", "published, best TRPO")[6] == "3,372 (sb3-contrib, 3 seeds, v3, MuJoCo 2.1)"
    moved = cells(block, "Hopper-v4", "PPO", "0.0100")
    assert moved[3:7] == ["0.0220", "9 of 1,200 over 0.01*", "3,000: never (0 of 3)", "273k (Truly PPO)"]
    assert cells(block, "Hopper-v4", "TRPO", "0.0100")[4] == "0 of 400 over 0.01"
    assert (
        "PPO: the mean M2 reaches the best published one in 0 of 1 tasks; below it: Hopper-v4 (2,100, 2,598)." in block
    )
    assert "TRPO: the mean M2 reaches the best published one in 1 of 1 tasks." in block
    assert "for name in mujoco-v4-trpo mujoco-v4-ppo; do\n    klrl study scripts/benchmarks/studies/$name.toml" in block
    assert "Failed, and in no number below: Hopper-v4 PPO seed 3." in block
    assert "With mujoco 4.0.0." in block


def test_the_table_of_classic_control_counts_the_runs_at_their_goals(keep):
    rows = [run(seed, "CartPole-v1", steps=50_000, mean_return=mean) for seed, mean in enumerate((500.0, 474.0, 475.0))]
    keep("classic-ppo", rows)
    block = evidence.BLOCKS["classic"]()
    line = cells(block, "CartPole-v1", "PPO", "50,000", "3", "475")
    assert line[6:10] == ["2 of 3", "never (0 of 3)", "20k", "500 (RL Zoo, 1 seed)"]
    assert "2 of 3 runs reach their goal." in block


def test_recipes_are_ordered_by_the_change_from_the_preset(keep):
    rows = [run(100, env, variant, last=last) for env in ("Ant-v4", "Hopper-v4") for variant, last in
            (("base", -9_000.0), ("worse", -9_500.0), ("better", -8_500.0))]  # fmt: skip
    rows.append(run(101, "Ant-v4", "base", last=5_000.0))  # no other variant has this seed
    keep("recipe-ppo", rows)
    lines = [line for line in evidence.BLOCKS["recipe-ppo"]().splitlines() if line.startswith("|")][2:]
    assert [line.strip("|").split("|")[0].strip() for line in lines] == ["better", "base", "worse"]
    assert [line.strip("|").split("|")[-1].strip() for line in lines] == ["+50%", "+0%", "-50%"]


def test_bounds_have_a_table_for_each_learning_rate_and_a_picture(keep):
    rows = []
    for name, settings in {
        "clip 0.2": {"clip_range": 0.2},
        "constraint 0.01": {"trust_region": "constraint", "target_kl": 0.01},
        "constraint 0.01, 10 x learning rate": {"trust_region": "constraint", "target_kl": 0.01, "learning_rate": 3e-3},
    }.items():
        rows += [run(seed, variant=name, steps=300_000, config=settings) for seed in range(3)]
    keep("kl-bound", rows)
    block = evidence.BLOCKS["kl-bound"]()
    assert "Under constraints 18 of 2,400 updates end over their bound." in block
    first, second = block.split("ten times the preset's learning rate")
    assert cells(first, "`clip 0.2`")[3:] == ["2,000", "100", "2", "0.022"]
    assert cells(second, "`constraint 0.01`")[3] == "2,000"
    drawn = bounds.drawing()
    assert drawn.count("10 x learning rate") == 1
    assert drawn.count('r="3.5"') == 3
    assert [float(x) for x in re.findall(r"([\d.]+)</text>", drawn) if x.startswith("0.")][-2:] == [0.01, 0.1]


# -- published numbers ------------------------------------------------------------------------------


def test_every_published_number_says_what_it_is():
    for record in published.records()["published"]:
        assert {"source", "algorithm", "metric", "version", "how", "returns"} <= {*record}
        assert record["metric"] in published.METRICS
        assert record["how"] in ("stated", "computed", "read off a plot")
        assert all(len(numbers) in (1, 2) and np.isfinite(numbers).all() for numbers in record["returns"].values())
        assert all(len(numbers) == 1 for numbers in record["returns"].values()) or "spread" in record or (
            record["metric"] == "unstated"
        )  # fmt: skip


def test_only_the_same_metric_in_the_same_task_is_set_beside_klrls():
    assert published.short(published.best("Ant-v4", "PPO", "M2", 1_000_000), "Ant-v4").startswith(
        "3,074 (Tianshou, 10 seeds, v3"
    )
    assert published.short(published.best("Ant-v5", "PPO", "M2", 1_000_000), "Ant-v5").startswith("1,126 (xuance")
    assert published.best("Ant-v4", "PPO", "M2", 300_000) is None
    swimmer = published.best("Swimmer-v4", "PPO", "M1", 1_000_000)
    assert swimmer["version"] == "v5"
    assert swimmer["returns"]["Swimmer"] == [112.4]
