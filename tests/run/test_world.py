"""Trainings on several ranks: real processes under torchrun, compared with one process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import ranks
from torture.ranks import HOW, Failure, start_ranks, try_once
from torture.states import rows

from klrl.scripts import main as command

HERE = Path(__file__).parent
BIN = Path(sys.executable).parent
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parent}"}
PAIR = [
    *("ppo-box-sync", "ppo-discrete-sync", "ppo-dict-sync-n5", "ppo-masks-sync", "ppo-images-sync", "ppo-box-async"),
    *("trpo-box-sync", "trpo-dict-sync", "npg-discrete-sync", "npg-masks-sync-n5"),
    *("ppo-discrete-envpool-n5", "trpo-box-envpool"),
]
"""Trainings of which a training on two ranks is compared with one process."""


def torchrun(n, *words, cwd=HERE, restarts=0):
    command = [
        BIN / "torchrun",
        "--standalone",
        "--nproc-per-node",
        str(n),
        "--max-restarts",
        str(restarts),
        *map(str, words),
    ]
    return subprocess.run(command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=900)


def on_ranks(n, folder, *words):
    """What came out on every rank."""
    ended = torchrun(n, HERE / "ranks.py", folder, *words)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return [json.loads((folder / f"rank-{r}.json").read_text()) for r in range(n)]


TRAIN = (
    *("train", "ppo", "--env", "torture.ranked:Failing-v0", "--preset", "none", "--n-envs", "4", "--n-steps", "32"),
    *(
        "--batch-size",
        "32",
        "--n-epochs",
        "2",
        "--total-timesteps",
        "1024",
        "--eval-episodes",
        "0",
        "--no-try-envs",
    ),
)


def as_json(x):
    return json.loads(json.dumps(x))


def test_one_process_is_the_identity_and_imports_nothing_of_torch_distributed():
    program = (
        "import sys, torch; from klrl.run import World; w = World.current(); x = object(); "
        "assert (w.rank, w.size, w.share(7), w.any(True), w.any(False)) == (0, 1, slice(0, 7), True, False); "
        "assert w.gather(x) is x and not w.is_distributed; "
        "from klrl.agents import PPO; assert 'klrl.run.link' not in sys.modules; w.check(); w.leave(None)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env=ENVIRONMENT, cwd=HERE)


def test_two_ranks_take_the_bits_of_one_process(tmp_path):
    """Parameters, generators, every metric, episodes and cursors; and each goes on where the other was saved."""
    alone = {word: as_json(ranks.trained(word, tmp_path / "alone")) for word in PAIR}
    both = ["ppo-dict-sync-n5", "trpo-box-sync", "ppo-box-async"]
    words = [*(f"trained:{word}" for word in PAIR), *(f"resumed:{word}" for word in both)]
    found = on_ranks(2, tmp_path, *words, "stopped:ppo-box-sync", "diverged:ppo-discrete-sync", "apart:ppo-box-sync")
    for rank, one in enumerate(found):
        assert one["gathered"] == [rank, [0, 2][rank], [2, 5][rank], True, False]
        for word in PAIR:
            assert one[f"trained:{word}"] == alone[word], word
        for word in both:
            assert one[f"resumed:{word}"] == alone[word], word
        assert one["stopped:ppo-box-sync"] == 2
        assert one["diverged:ppo-discrete-sync"]["counted"] == [1.0, 0.0, 0.0]
        updates, kind, line = one["apart:ppo-box-sync"]
        assert (updates, kind) == (0, "Diverged")  # the agent is what the last whole update left
        assert line == (
            "rank 1 of 2: parameters after update 1 at 96 steps are not those of rank 0 (same versions); "
            "allowed: machines of one kind, nothing random on one alone, or on_divergence = 'broadcast'"
        )
    for word in both:
        assert as_json(ranks.resumed(word, tmp_path / "saved")) == alone[word], word
    assert found[0]["diverged:ppo-discrete-sync"]["outcome"] == alone["ppo-discrete-sync"]


def test_torchrun_starts_a_failed_training_again_which_goes_on_exactly(tmp_path):
    """The installed command: a NaN on rank 1 ends both ranks, and they finish what was saved then."""
    kwargs = ["--env-kwargs", "how=nan", "rank=1", "at=300", f"marker={tmp_path / 'marker'}"]
    words = [*TRAIN, *kwargs, "--checkpoint-every", "1024", "--run-dir"]
    ended = torchrun(2, "-m", "klrl", *words, tmp_path / "two", cwd=tmp_path, restarts=1)
    assert ended.returncode == 0, ended.stderr[-3000:]
    line = "reward of environment "
    assert f"klrl train ppo: rank 1: {line}3 " in ended.stderr or f"klrl train ppo: rank 1: {line}2 " in ended.stderr
    assert f"klrl train ppo: rank 0: rank 1: {line}" in ended.stderr
    assert f"; klrl resume {tmp_path / 'two'} continues it" in ended.stderr
    assert f"resuming {tmp_path / 'two'}: 512 of 1,024 steps" in ended.stdout
    command.main([*words, str(tmp_path / "one")])  # the marker is there: nothing fails
    for name in ("metrics.csv", "episodes.csv"):
        assert rows(tmp_path / "two" / name) == rows(tmp_path / "one" / name), name


def test_a_killed_rank_is_noticed_and_the_rest_is_kept(tmp_path):
    """Without torchrun, which would see it sooner; then one process goes on."""
    assert try_once(Failure("kill", 2, 1, 500), tmp_path)[0] is None


@pytest.mark.slow
@pytest.mark.parametrize("how", HOW)
def test_every_failure(how, tmp_path):
    assert try_once(Failure(how, 2, 1, 700), tmp_path)[0] is None


def test_bad_input_is_refused_by_all_ranks(tmp_path):
    words = ["train", "ppo", "--env", "CartPole-v1", "--n-envs", "1", "--run-dir", tmp_path / "run"]
    ended = [process.wait() for process in start_ranks(2, words, tmp_path)]
    assert {end.code for end in ended} <= {1, 2}
    assert any("n_envs = 1 on 2 ranks; allowed: at least one environment on every rank" in end.err for end in ended)
    ended = [process.wait() for process in start_ranks(2, ["study", "x.toml"], tmp_path)]
    assert [end.err for end in ended] == ["klrl: verb = 'study' on 2 ranks; allowed: train, resume\n"] * 2


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 4])
def test_any_number_of_ranks_takes_the_same_bits(n, tmp_path):
    """Every agent, every space, both engines; and what 4 ranks save, others resume."""
    words = [*(f"ppo-{space}-sync-n8" for space in (*ranks.SPACES, "beta")), "ppo-masks-async-n8"]
    words += ["trpo-box-sync-n8", "trpo-dict-async-n8", "npg-images-sync-n8", "npg-discrete-sync-n8"]
    alone = {word: as_json(ranks.trained(word, tmp_path / "alone")) for word in words}
    found = on_ranks(n, tmp_path, *(f"{verb}:{word}" for verb in ("trained", "resumed") for word in words))
    for word in words:
        if "beta" in word:  # every environment's actions have a seed of their own there
            continue
        assert {json.dumps(one[f"trained:{word}"]) for one in found} == {json.dumps(alone[word])}, word
        assert {json.dumps(one[f"resumed:{word}"]) for one in found} == {json.dumps(alone[word])}, word
