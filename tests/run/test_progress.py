"""What a person sees while training: plain lines without a terminal, a live panel with one."""

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from klrl.agents import PPO, TRPO
from klrl.run.progress import Progress, summary

METRICS = {
    "time/total_timesteps": 500.0,
    "time/fps": 100.0,
    "rollout/ep_rew_mean": float("nan"),
    "drift/kl": 0.00789,
    "drift/kl_target": 0.01,
    "drift/kl_max": 0.1,
    "train/line_search_scale": 0.8,
    "train/stop_reason": "rejected: outside the trust region",
}

AGENT = SimpleNamespace(num_timesteps=500, seed=0)


def test_summary_shows_speed_time_left_return_and_kl_against_its_target():
    assert summary(METRICS, 1000) == {
        "steps/s": "100",
        "left": "0:00:05",
        "return": "-",
        "KL": "0.0079 of 0.01",
        "max KL": "0.100",
        "line search": "0.80",
        "note": "rejected: outside the trust region",
    }


def test_bounds_on_the_tail_are_shown_with_what_was_measured():
    more = {"drift/kl_max_bound": 0.06, "drift/kl_quantile": 0.0123, "drift/kl_quantile_bound": 0.03}
    more |= {"drift/kl_cvar": 0.02, "drift/kl_cvar_bound": 0.04}
    assert summary(METRICS | more, 1000) == summary(METRICS, 1000) | {
        "max KL": "0.100 of 0.06",
        "quantile KL": "0.0123 of 0.03",
        "tail KL": "0.0200 of 0.04",
    }


def test_numbers_of_infos_are_shown_and_change_no_other_fact():
    more = {"rollout/success_rate": 0.25, "rollout/info/KL": 3.25, "rollout/info/a/b": float("nan")}
    assert summary(METRICS | more, 1000) == summary(METRICS, 1000) | {
        "success": "25%",
        "info/KL": "3.25",
        "info/a/b": "-",
    }


def test_no_time_is_left_once_the_steps_are_done_and_an_accepted_step_is_no_news():
    done = summary(METRICS | {"time/total_timesteps": 1100.0, "train/stop_reason": "accepted"}, 1000)
    assert done["left"] == "0:00:00"
    assert "note" not in done


@pytest.mark.parametrize(("cls", "statistic"), [(PPO, "clipped"), (TRPO, "line search")])
def test_without_a_terminal_every_update_is_one_plain_line(cls, statistic):
    text = io.StringIO()
    cls("CartPole-v1", seed=0).learn(2048, Progress(Console(file=text, width=60)))
    lines = text.getvalue().splitlines()
    assert len(lines) == 2
    assert all("/2,048  steps/s " in line and statistic in line for line in lines)
    assert "\x1b" not in text.getvalue()


def test_names_with_brackets_are_shown_as_they_are():
    shown = {}
    for terminal in (False, True):
        text = io.StringIO()
        progress = Progress(Console(file=text, force_terminal=terminal, width=100))
        progress.on_training_start(AGENT, 1000)
        progress.on_update_end(AGENT, None, METRICS | {"rollout/info/[/a] :smile:": 0.5})
        progress.on_training_end(AGENT)
        shown[terminal] = text.getvalue()
    assert all("info/[/a] :smile:" in text for text in shown.values()), shown


def test_on_a_terminal_a_panel_is_redrawn():
    text = io.StringIO()
    TRPO("CartPole-v1", seed=0).learn(1024, Progress(Console(file=text, force_terminal=True, width=100)))
    assert "TRPO, seed 0" in text.getvalue()
    assert "of 0.03" in text.getvalue()
