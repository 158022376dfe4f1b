"""``klrl benchmark speed --images`` and ``klrl benchmark atari``: jobs, equal work, and tables from raw values."""

import json

import numpy as np
import pytest

from klrl.scripts.benchmarks import images
from klrl.scripts.benchmarks.atari import compare, table
from klrl.scripts.benchmarks.measure import measure
from klrl.scripts.benchmarks.random_images import PONG, RANDOM, RandomImages
from klrl.scripts.benchmarks.speed import IMAGES, main, report
from klrl.scripts.benchmarks.workload import Job, Workload

TINY = Workload(
    updates=1, warm_up=1, n_envs=2, n_steps=8, batch_size=8, critic_batch_size=8, n_epochs=1, hidden_sizes=()
)


def test_every_job_has_the_same_work_and_its_own_sharing():
    jobs = images.jobs(TINY, peers=True, games=True)
    assert {(job.library, job.env, job.variant, job.engine) for job in jobs} == {
        ("klrl", RANDOM, "separate", "sync"), ("stable-baselines3", RANDOM, "separate", "sync"),
        ("klrl", RANDOM, "shared", "sync"), ("stable-baselines3", RANDOM, "shared", "sync"),
        ("klrl", RANDOM, "bfloat16", "sync"),
        ("klrl", PONG, "shared", "envpool"), ("stable-baselines3", PONG, "shared", "sync"),
    }  # fmt: skip
    assert {job.workload for job in jobs} == {TINY}
    ours = [job.settings for job in jobs if job.library == "klrl"]
    assert [settings["shared_encoder"] for settings in ours] == [False, True, True, True]
    assert [settings.get("minibatch_dtype") for settings in ours] == [None, None, "bfloat16", None]
    assert all(Job.from_json(json.loads(json.dumps(vars(job) | {"workload": vars(TINY)}))) for job in jobs)
    assert not [job for job in images.jobs(TINY, peers=False, games=False) if job.library != "klrl"]


@pytest.mark.parametrize("variant", ["separate", "shared"])
@pytest.mark.parametrize("library", ["klrl", "stable-baselines3"])
def test_networks_are_the_same_in_both_libraries(library, variant, monkeypatch):
    pytest.importorskip("stable_baselines3")
    monkeypatch.setattr("os.sched_setaffinity", lambda pid, cores: None)
    counts = []
    import torch

    adam = torch.optim.Adam.__init__

    def counted(self, parameters, *args, **more):
        parameters = list(parameters)
        flat = [p for g in parameters for p in (g["params"] if isinstance(g, dict) else [g])]
        counts.append(sum(p.numel() for p in flat))
        adam(self, parameters, *args, **more)

    monkeypatch.setattr(torch.optim.Adam, "__init__", counted)
    (job,) = (j for j in images.jobs(TINY, True, False) if (j.library, j.variant) == (library, variant))
    result = measure(job)
    assert result["steps"] == 16
    if library == "stable-baselines3":
        encoder, heads = 1_684_128, 512 * 7 + 7
        assert counts[-1] == encoder * (2 if variant == "separate" else 1) + heads


def row(library, variant, speed, peak, env=RANDOM):
    speeds = {"steps_per_second": speed / 2, "steps_per_cpu_second": speed, "peak_mib": peak}
    return {"library": library, "variant": variant, "env": env} | speeds


def test_the_summary_by_hand():
    rows = [row("klrl", "shared", x, p) for x, p in ((100.0, 50.0), (300.0, 60.0), (200.0, 40.0))]
    rows += [row("stable-baselines3", "shared", x, 80.0) for x in (80.0, 160.0, 400.0)]
    (summary,) = images.summarise(rows)
    assert summary["speed_ratio"] == 200.0 / 160.0
    assert summary["memory_ratio"] == 60.0 / 80.0
    shown = report({"summary": [summary], "measurements": []})
    assert "| random images, one shared network | 200 | 160 | 1.25 | 60 | 80 | 0.75 |" in shown
    (_, half) = images.summarise([*rows, row("klrl", "bfloat16", 480.0, 40.0)])
    assert (half["speed_ratio"], half["memory_ratio"]) == (480.0 / 160.0, 40.0 / 80.0)


def test_its_defaults_are_those_of_the_table_and_quick_is_another_thing(capsys):
    assert (IMAGES.workload.n_envs, IMAGES.workload.n_steps, IMAGES.workload.n_epochs) == (8, 32, 2)
    with pytest.raises(SystemExit):
        main(["--images", "--quick"])
    assert "images = True with quick = True; allowed: one of the two" in capsys.readouterr().err


def test_random_images_are_an_environment_of_atari_s_size():
    env = RandomImages()
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    answers = [env.step(np.int64(t % 2)) for t in range(100)]
    assert [a[1] for a in answers[:2]] == [1.0, 0.0]
    assert [a[2] for a in answers].index(True) == 99


def test_games_are_compared_on_the_same_actions():
    pytest.importorskip("ale_py")
    found = compare("Breakout", "vector_entry_point", 30, 0)
    assert (found["steps"], found["images"], found["equal_images"]) == (30, 30, 30)
    assert (found["largest_difference"], found["mean_share_of_pixels"]) == (0, 0.0)
    assert found["first_difference"] == dict.fromkeys(("pixels", "reward", "lives", "end"))
    assert "| Breakout | ale-py's vector | 30 of 30 | 0.00% | none | 0, 0 | no, no |" in table([found])
