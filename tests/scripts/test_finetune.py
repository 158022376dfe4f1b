"""klrl benchmark finetune: its two tasks, a tiny run of the real command, and what its KL is measured from."""

import json

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from klrl.agents import PPO
from klrl.scripts.benchmarks import finetune, finetune_runs

SHORT = ["--old-timesteps", "1024", "--new-timesteps", "2048", "--processes", "1"]
LABELS = ["saved policy", "new task only, from scratch", "clip", "clip+reference-penalty 100"]
LABELS += ["clip+reference-constraint 0.005", "clip+reference-forward-penalty 100"]
LABELS += ["clip+reference-forward-constraint 0.005"]


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """Rows by their label, of one seed and one setting of each kind."""
    output = tmp_path_factory.mktemp("finetune") / "made" / "finetune.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetune_runs, "EPISODES", 2)
        words = [
            "--coefficients",
            "100",
            "--bounds",
            "0.005",
            "--forward-coefficients",
            "100",
            "--forward-bounds",
            "0.005",
        ]
        finetune.main([*SHORT, "--seeds", "3", *words, "--output", str(output)])
    record = json.loads(output.read_text())
    return record, {row["variant"]: row for row in record["rows"]}


def test_the_new_pole_obeys_its_own_equations_of_motion():
    """Barto, Sutton & Anderson 1983, without friction, from a leaning pole at rest that is pushed to the right."""
    for make, half_length in ((finetune_runs.old_task, 0.5), (finetune_runs.new_task, 0.05)):
        with make() as env:
            env.reset(seed=0)
            env.unwrapped.state = (0.0, 0.0, 0.1, 2.0)
            (_, speed, _, turning), *_ = env.step(1)
        cos, sin, total, pole = np.cos(0.1), np.sin(0.1), 1.1, 0.1 * half_length
        matrix = np.array([[total, pole * cos], [cos, 4.0 / 3.0 * half_length]])
        cart, angle = np.linalg.solve(matrix, [10.0 + pole * 2.0**2 * sin, 9.8 * sin])
        assert (speed, turning) == pytest.approx((0.02 * cart, 2.0 + 0.02 * angle), rel=1e-5)


def test_the_tasks_share_their_spaces():
    with finetune_runs.old_task() as old, finetune_runs.new_task() as new:
        assert (old.observation_space, old.action_space) == (new.observation_space, new.action_space)


def test_everything_that_was_measured_is_written(result):
    record, rows = result
    assert record["command"].startswith("klrl benchmark finetune --old-timesteps 1024")
    assert {"python", "torch", "gymnasium"} <= set(record["versions"])
    assert list(rows) == LABELS
    assert rows["clip+reference-penalty 100"]["settings"] == {
        "trust_region": "clip+reference-penalty",
        "reference_coef": 100.0,
    }
    for label, row in rows.items():
        assert row["seed"] == 3
        assert row["total_timesteps"] == (1024 if label == "saved policy" else 2048)
        for task in ("new", "old"):
            assert 1.0 <= row[f"{task}_deterministic"] <= 500.0
            assert 1.0 <= row[f"{task}_sampled"] <= 500.0
    assert all(row["updates"] == 2 for label, row in rows.items() if label != "saved policy")


def test_the_kl_is_measured_from_the_saved_policy(result):
    _, rows = result
    far, near = rows["clip"], rows["clip+reference-penalty 100"]
    assert near["kl_reference"] < 0.2 * far["kl_reference"]
    assert near["kl_reference_old_task"] < 0.2 * far["kl_reference_old_task"]
    bound = rows["clip+reference-constraint 0.005"]
    assert bound["updates_over_reference_kl"] == 0
    assert bound["kl_reference_largest"] <= 0.005 < far["kl_reference_largest"]
    assert far["updates_over_reference_kl"] is None
    near = rows["clip+reference-forward-penalty 100"]
    assert near["kl_reference_forward"] < 0.2 * far["kl_reference_forward"]
    assert near["kl_reference_forward_old_task"] < 0.2 * far["kl_reference_forward_old_task"]
    forward = rows["clip+reference-forward-constraint 0.005"]
    assert (forward["updates_over_reference_forward_kl"], bound["updates_over_reference_forward_kl"]) == (0, None)
    assert forward["kl_reference_forward_largest"] <= 0.005 < far["kl_reference_forward_largest"]


class Recorded(gym.Wrapper):
    """Remembers every observation."""

    states = ()

    def _kept(self, result):
        Recorded.states += (result[0],)
        return result

    def reset(self, **options):
        return self._kept(super().reset(**options))

    def step(self, action):
        return self._kept(super().step(action))


def test_elsewhere_is_on_the_states_of_the_old_task(monkeypatch):
    agent, saved, made = PPO("CartPole-v1", seed=1), PPO("CartPole-v1", seed=2), finetune_runs.old_task
    monkeypatch.setattr(Recorded, "states", ())
    monkeypatch.setattr(finetune_runs, "old_task", lambda: Recorded(made()))
    found = finetune_runs.kl_on_the_old_task(agent, saved)
    states = torch.from_numpy(np.stack(Recorded.states))
    p, q = (Categorical(logits=a.distribution(states).parameters[0].detach().double()) for a in (agent, saved))
    assert found["kl_reference_old_task"] == pytest.approx(kl_divergence(p, q).mean().item(), rel=1e-4)
    assert found["kl_reference_forward_old_task"] == pytest.approx(kl_divergence(q, p).mean().item(), rel=1e-4)


def test_the_table_has_means_and_seeds(result):
    _, rows = result
    clip = rows["clip"]
    other = clip | {"seed": 4, "new_deterministic": clip["new_deterministic"] + 10.0, "kl_reference_largest": 7.0}
    lines = finetune_runs.table([rows["saved policy"], clip, other]).splitlines()
    assert [line.count("|") for line in lines] == [15] * 4
    assert lines[2].endswith("|  |  |  |  |  |  |  |  |  |")
    earlier = [{k: v for k, v in row.items() if "forward" not in k} for row in (rows["saved policy"], clip)]
    assert [line.count("|") for line in finetune_runs.table(earlier).splitlines()] == [11] * 4
    mean = clip["new_deterministic"] + 5.0
    assert lines[3].startswith(f"| clip | {mean:.0f} ({mean - 5.0:.0f}, {mean + 5.0:.0f}) | ")
    assert "| 7.000 |  | " in lines[3]
    bound = rows["clip+reference-constraint 0.005"]
    (*_, last) = finetune_runs.table([bound, bound | {"updates_over_reference_kl": 1}]).splitlines()
    assert "| 1 of 4 |" in last
    assert last.count(" of 4 |") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--coefficients", "0.1", "-1"], "coefficients = (0.1, -1.0); allowed: a tuple, each a number > 0"),
        (["--bounds", "0"], "bounds = (0.0,); allowed: a tuple, each a number > 0"),
        (["--old-timesteps", "0"], "old_timesteps = 0; allowed: an integer >= 1"),
        (["--seeds", "-1"], "seeds = (-1,); allowed: a tuple, each an integer >= 0"),
    ],
)
def test_bad_input_is_one_line(words, message, capsys):
    with pytest.raises(SystemExit) as stop:
        finetune.main(words)
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"klrl benchmark finetune: {message}\n"
