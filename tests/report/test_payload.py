"""Numbers on their way into the page: all of them arrive, small, and nothing in them is HTML."""

import base64
import gzip
import json

import numpy as np
from made_runs import described, rows, write_run

from klrl.report import read_runs
from klrl.report.charts import CHARTS, charts_of
from klrl.report.payload import payload, safe_json


def sent(runs):
    """What the page's script decodes: the curves, and the arrays by number."""
    data, coded = payload(runs, charts_of(runs))
    flat = np.frombuffer(gzip.decompress(base64.b64decode(coded)), "<f4")
    ends = np.cumsum(data["lengths"])
    assert len(flat) == ends[-1]
    return json.loads(safe_json(data)), np.split(flat, ends[:-1])


def test_every_number_arrives_with_five_digits_and_every_step_exactly(tmp_path):
    history = rows(40)
    history[3]["drift/kl"] = float("inf")
    (run,) = runs = read_runs([write_run(tmp_path / "run", history, described())])
    data, arrays = sent(runs)
    for chart in charts_of(runs):
        if chart.x == "steps":
            ((_, seed, x, y),) = data["curves"][chart.key][0]["runs"]
            logged = run.columns[chart.column]
            assert seed == "0"
            np.testing.assert_array_equal(arrays[x], run.steps[np.isfinite(logged)])
            np.testing.assert_allclose(arrays[y], logged[np.isfinite(logged)], rtol=8e-6)


def test_every_update_beyond_its_target_is_marked(tmp_path):
    (run,) = runs = read_runs([write_run(tmp_path / "run", rows(300), described())])
    data, arrays = sent(runs)
    ((_, _, x, y),) = data["curves"]["drift/kl|steps"][0]["marks"]
    over = run.columns["drift/kl"] > 0.01
    assert 20 < over.sum() < 200
    np.testing.assert_array_equal(arrays[x], run.steps[over])
    np.testing.assert_allclose(arrays[y], run.columns["drift/kl"][over], rtol=8e-6)


def test_kl_spent_counts_what_led_to_a_return(tmp_path):
    """The rollout's return is that of the policy before the row's update; an evaluation comes after it."""
    history = [
        {"drift/kl": kl, "rollout/ep_rew_mean": float(i), "eval/mean_reward": float(i)}
        for i, kl in enumerate((0.25, 0.5, 1.0))
    ]
    data, arrays = sent(read_runs([write_run(tmp_path / "run", history, described())]))
    x = {name: arrays[data["curves"][f"{name}|spent"][0]["runs"][0][2]] for name in history[0] if name != "drift/kl"}
    np.testing.assert_array_equal(x["rollout/ep_rew_mean"], [0.0, 0.25, 0.75])
    np.testing.assert_array_equal(x["eval/mean_reward"], [0.25, 0.75, 1.75])


def test_steps_that_seeds_share_are_sent_once(tmp_path):
    for seed in range(3):
        write_run(tmp_path / f"{seed}", rows(10, seed), described(seed=seed))
    data, _ = sent(read_runs([tmp_path]))
    assert len({x for _, _, x, _ in data["curves"]["drift/kl|steps"][0]["runs"]}) == 1
    assert len(data["curves"]["drift/kl|steps"][0]["targets"]) == 1


def test_columns_that_were_not_logged_have_no_chart(tmp_path):
    runs = read_runs([write_run(tmp_path / "run", [{"drift/kl": 0.1}, {"drift/kl": 0.2}])])
    assert [chart.key for chart in charts_of(runs)] == ["drift/kl|steps"]
    assert sent(runs)[0]["charts"]["drift/kl|steps"]["x"] == "updates"
    assert charts_of(read_runs([write_run(tmp_path / "none", [], described())])) == []


def test_charts_have_keys_of_their_own():
    assert len({chart.key for chart in CHARTS}) == len(CHARTS)


def test_no_text_ends_the_script_element():
    text = safe_json(["</script><script>alert(1)</script>", "<!--", "\u2028"])
    assert "<" not in text
    assert json.loads(text) == ["</script><script>alert(1)</script>", "<!--", "\u2028"]
