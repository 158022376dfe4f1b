"""Figures for papers and notebooks."""

import re
import struct
from pathlib import Path

import numpy as np
import pytest
from environments import small_agent
from made_runs import described, rows, write_run
from matplotlib.figure import Figure

from klrl.agents import PPO, TRPO
from klrl.report import read_runs
from klrl.report.figures import figure_of_runs
from klrl.run.figures import coded
from klrl.scripts.plot import main


def lines(axes):
    return {line.get_label(): line for line in axes.lines}


def runs_of(tmp_path, seeds):
    for target in (0.01, 0.02):
        for seed in range(seeds):
            path = tmp_path / f"{target} {seed}"
            write_run(path, rows(30, seed, target), described(seed=seed, target_kl=target))
    return read_runs([tmp_path])


def test_an_agent_draws_its_return_and_its_measured_kl_with_the_target():
    agent = small_agent(TRPO).learn(256)
    drawn = agent.plot()
    returns, kl = drawn.axes
    assert isinstance(drawn, Figure)
    assert [ax.get_ylabel() for ax in drawn.axes] == ["return, reward", "KL, nats"]
    assert kl.get_xlabel() == "environment steps"
    history = agent.history
    np.testing.assert_array_equal(returns.lines[0].get_ydata(), [row["rollout/ep_rew_mean"] for row in history])
    np.testing.assert_array_equal(kl.lines[0].get_ydata(), [row["drift/kl"] for row in history])
    assert {*lines(kl)["target"].get_ydata()} == {history[0]["drift/kl_target"]}
    assert agent._repr_html_()
    width, height = struct.unpack(">II", drawn._repr_png_()[16:24])  # what a notebook shows
    assert min(width, height) > 100


def test_an_agent_draws_any_metric_and_names_those_that_there_are():
    agent = small_agent(PPO).learn(128)
    (axes,) = agent.plot("train/value_loss").axes
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), [row["train/value_loss"] for row in agent.history])
    with pytest.raises(ValueError, match="metrics = 'train/los'; allowed: train/loss, "):
        agent.plot("train/los")
    with pytest.raises(ValueError, match=r"history = \[\]; allowed: at least one update"):
        small_agent(PPO).plot()


def test_enough_seeds_are_drawn_as_their_mean_with_its_interval(tmp_path):
    runs = runs_of(tmp_path, seeds=3)
    axes = figure_of_runs(runs, ["drift/kl"]).axes[0]
    kl = [run.columns["drift/kl"] for run in runs if run.variant == "target_kl=0.01"]
    np.testing.assert_allclose(lines(axes)["target_kl=0.01"].get_ydata(), np.mean(kl, axis=0))
    assert len(axes.collections) == 2  # an interval for each variant
    targets = {float(line.get_ydata()[0]) for line in axes.lines if line.get_label() == "target"}
    assert targets == {0.01, 0.02}
    marks = [line for line in axes.lines if line.get_label() == "update beyond its target"]
    assert sum(len(line.get_xdata()) for line in marks) == sum(int(run.over.sum()) for run in runs) > 0


def test_targets_that_only_begin_alike_are_drawn_each_and_the_same_one_once_to_its_end(tmp_path):
    for name, slope, updates in (("short", 0.0, 3), ("long", 0.0, 5), ("falling", 0.001, 4)):
        history = [row | {"drift/kl_target": 0.01 - slope * i} for i, row in enumerate(rows(updates))]
        write_run(tmp_path / name, history, described(target_kl=0.01))
    axes = figure_of_runs(read_runs([tmp_path]), ["drift/kl"]).axes[0]
    targets = [[*line.get_ydata()] for line in axes.lines if line.get_label() == "target"]
    assert sorted(targets) == [[0.01, 0.01 - 0.001, 0.01 - 0.002, 0.01 - 0.003], [0.01] * 5]


def test_every_metric_with_a_bound_is_drawn_with_its_own(tmp_path):
    history = [row | {"drift/kl_max": 0.1 * i, "drift/kl_max_bound": 0.25} for i, row in enumerate(rows(5))]
    write_run(tmp_path / "run", history, described(target_kl=0.01))
    axes = figure_of_runs(read_runs([tmp_path]), ["drift/kl_max"]).axes[0]
    drawn = {line.get_label(): [*line.get_ydata()] for line in axes.lines}
    assert drawn["target"] == [0.25] * 5
    assert drawn["update beyond its target"] == pytest.approx([0.3, 0.4])


def test_few_seeds_or_all_on_demand_are_drawn_one_by_one(tmp_path):
    runs = runs_of(tmp_path, seeds=3)
    for drawn in (figure_of_runs(runs, ["drift/kl"], seeds=True), figure_of_runs(runs[:2], ["drift/kl"])):
        axes = drawn.axes[0]
        assert not axes.collections
    assert len([line for line in axes.lines if line.get_label() == "target_kl=0.01"]) == 2


def test_variants_differ_in_colour_and_in_dashes(tmp_path):
    axes = figure_of_runs(runs_of(tmp_path, seeds=1), ["drift/kl"]).axes[0]
    one, other = (lines(axes)[f"target_kl={target}"] for target in (0.01, 0.02))
    assert one.get_color() != other.get_color()
    assert one._dash_pattern != other._dash_pattern


@pytest.mark.parametrize(("end", "begins"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_the_command_writes_each_format_and_the_same_bytes_again(tmp_path, end, begins, capsys):
    runs_of(tmp_path / "runs", seeds=1)
    file = tmp_path / f"figure.{end}"
    main([str(tmp_path / "runs"), "-o", str(file)])
    assert capsys.readouterr().out == f"written: {file}\n"
    data = file.read_bytes()
    assert data.startswith(begins)
    main([str(tmp_path / "runs"), "-o", str(file)])
    assert file.read_bytes() == data


def test_names_are_text_in_a_figure_not_formulas(tmp_path):
    """Matplotlib reads what stands between dollar signs as mathematics, and fails where it is none."""
    write_run(tmp_path / "a", rows(3), described(env="$\\frac$"))
    write_run(tmp_path / "b", rows(3), described(env="$\\frac$") | {"agent": "_a$^$"})
    data = coded(figure_of_runs(read_runs([tmp_path])), Path("figure.svg"))
    assert re.search(rb"<svg", data)
