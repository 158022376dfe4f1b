"""Charts and settings, as TensorBoard's own plugins understand them."""

import json
import warnings

import pytest
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext

from klrl.agents import PPO, TRPO, PPOConfig
from klrl.run.tensorboard_layout import CHARTS
from klrl.run.tensorboard_writer import TensorBoardWriter, points

with warnings.catch_warnings(action="ignore"):  # of what it brings along
    from tensorboard.plugins.custom_scalar.custom_scalars_plugin import CustomScalarsPlugin
    from tensorboard.plugins.hparams.backend_context import Context
    from tensorboard.plugins.scalar.scalars_plugin import ScalarsPlugin


def opened(path):
    """What TensorBoard makes of a folder of runs."""
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(path))
    multiplexer.Reload()
    provider = MultiplexerDataProvider(multiplexer, str(path))
    context = TBContext(logdir=str(path), multiplexer=multiplexer, data_provider=provider, plugin_name_to_instance={})
    context.plugin_name_to_instance["scalars"] = ScalarsPlugin(context)
    return context


def charts(context):
    found = json.loads(CustomScalarsPlugin(context).layout_impl(RequestContext(), ""))
    return {category["title"]: [chart["title"] for chart in category["chart"]] for category in found["category"]}


def settings(context):
    backend = Context(context)
    found = backend.experiment_from_metadata(
        RequestContext(), "", False, backend.hparams_metadata(RequestContext(), ""), None
    )
    return {info.name: info for info in found.hparam_infos}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs")
    PPO("CartPole-v1", PPOConfig(n_steps=32, learning_rate=5e-4), seed=1).learn(1, run_dir=path / "ppo").close()
    TRPO("CartPole-v1", seed=2).learn(1, run_dir=path / "trpo").close()
    agent = TRPO.load(path / "trpo")
    agent.learn(1, run_dir=path / "again").close()
    return path


def test_every_chart_is_shown_once_however_many_runs_there_are(runs):
    assert charts(opened(runs)) == {category: [*titles] for category, titles in CHARTS.items()}


def test_the_charts_hold_the_metrics_that_they_name_and_no_others(runs):
    context = opened(runs)
    plugin = CustomScalarsPlugin(context)
    layout = json.loads(plugin.layout_impl(RequestContext(), ""))
    tags = {
        chart["title"]: [
            {*plugin.scalars_impl(RequestContext(), "trpo", tag, "")["tag_to_events"]}
            for tag in chart["multiline"]["tag"]
        ]
        for category in layout["category"]
        for chart in category["chart"]
    }
    drift, tails, following, way, length, straightness, returns, step = tags.values()
    assert drift == [{"drift/kl"}, {"drift/kl_target"}, {"drift/kl_p95"}, {"drift/kl_max"}]
    assert tails == [set()] * 5  # no region that bounds a tail
    assert following == [set(), set()]  # of one update, which no rollout has judged
    assert (way, length, straightness) == (
        [{"drift/kl_sum"}, {"drift/kl_initial"}],
        [{"drift/path_length"}],
        [{"drift/straightness"}],
    )
    assert returns == [{"rollout/ep_rew_mean"}, set()]
    assert step == [
        set(),
        {"train/line_search_scale"},
        set(),
        {"train/cg_residual"},
        {"drift/states_over_target"},
        set(),
    ]


def test_runs_can_be_compared_by_their_settings(runs):
    known = settings(opened(runs))
    assert {*known["agent"].domain_discrete} == {"ppo", "trpo"}
    assert known["env"].domain_discrete == ["CartPole-v1"]
    assert (known["seed"].domain_interval.min_value, known["seed"].domain_interval.max_value) == (1.0, 2.0)
    assert known["learning_rate"].differs
    assert not known["gamma"].differs
    assert known["actor_hidden_sizes"].domain_discrete == ["[64, 64]"]
    assert "clip_range" not in known  # a setting without a value


@pytest.mark.parametrize("damage", ["none", "cut", "changed"])
def test_a_continued_run_shows_both_once_also_if_its_first_file_is_damaged(tmp_path, damage):
    row = {"time/total_timesteps": 10.0, "drift/kl": 0.1}
    board = TensorBoardWriter(tmp_path, settings={"seed": 3})
    board.add(row)
    board.close()
    (file,) = tmp_path.iterdir()
    data = bytearray(file.read_bytes())
    if damage == "cut":
        del data[60:]
    elif damage == "changed":
        data[60] ^= 0xFF
    file.write_bytes(data)
    board = TensorBoardWriter(tmp_path, [row], settings={"seed": 3})
    board.add(row | {"time/total_timesteps": 20.0})
    board.close()
    context = opened(tmp_path)
    assert charts(context) == {category: [*titles] for category, titles in CHARTS.items()}
    assert {*settings(context)} == {"seed"}
    assert points(tmp_path)["drift/kl"] == [(10, pytest.approx(0.1)), (20, pytest.approx(0.1))]
