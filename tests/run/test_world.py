"""Trainings on several ranks: real processes under torchrun, compared with one process."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import ranks

from klrl.run import World

HERE = Path(__file__).parent
BIN = Path(sys.executable).parent
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parent}"}
PAIR = [
    *("ppo-box-sync", "ppo-discrete-sync", "ppo-dict-sync-n5", "ppo-masks-sync", "ppo-images-sync", "ppo-box-async"),
    *("trpo-box-sync", "trpo-dict-sync", "npg-discrete-sync", "npg-masks-sync-n5"),
]
"""Trainings of which a training on two ranks is compared with one process."""


def torchrun(n, *words, cwd=HERE, restarts=0):
    command = [BIN / "torchrun", "--nproc-per-node", str(n), "--max-restarts", str(restarts), *map(str, words)]
    return subprocess.run(command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=900)


def on_ranks(n, folder, *words):
    """What came out on every rank."""
    ended = torchrun(n, HERE / "ranks.py", folder, *words)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return [json.loads((folder / f"rank-{r}.json").read_text()) for r in range(n)]


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
    found = on_ranks(2, tmp_path, *words, "stopped:ppo-box-sync", "diverged:ppo-discrete-sync")
    for rank, one in enumerate(found):
        assert one["gathered"] == [rank, [0, 2][rank], [2, 5][rank], True, False]
        for word in PAIR:
            assert one[f"trained:{word}"] == alone[word], word
        for word in both:
            assert one[f"resumed:{word}"] == alone[word], word
        assert one["stopped:ppo-box-sync"] == 2
        assert one["diverged:ppo-discrete-sync"]["counted"] == [1.0, 0.0, 0.0]
    for word in both:
        assert as_json(ranks.resumed(word, tmp_path / "saved")) == alone[word], word
    assert found[0]["diverged:ppo-discrete-sync"]["outcome"] == alone["ppo-discrete-sync"]
