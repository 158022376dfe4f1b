"""Studies on a real local cluster of Ray, whose nodes, workers and ranks are lost; clusters that cannot be had."""

import contextlib
import json
import os
import signal
import socket
import sys
import threading
import warnings
from pathlib import Path

import pytest
from one_that_dies import FOLDER
from small_studies import DESIGN, design_file, parts, rows

from klrl.run import World
from klrl.run.torchrun import RankFailed
from klrl.studies import Study, make_engine
from klrl.studies.keeper import Keeper, Sending
from klrl.studies.on_ray import OnRay
from klrl.studies.training import run

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A cluster of nodes with one CPU each; the driver is on the first."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        patch.setenv(FOLDER, str(tmp_path_factory.mktemp("dies")))
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, (HERE, HERE.parent))))  # for the processes of its nodes
        warnings.simplefilter("ignore")
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        yield made
        made.shutdown()


def part_of_the_design(seed, *variants):
    """With one seed, and some of the variants by their numbers."""
    head, *blocks = DESIGN.replace('"3-4"', f"[{seed}]").split("[[variants]]")
    return "[[variants]]".join([head, *(blocks[i] for i in variants)])


def is_part_of(study, whole):
    """Whether its runs, and its rows of the table, are those of the whole study."""
    runs, parted = parts(study.output), parts(whole)
    others = {(row["variant"], row["seed"]): row for row in rows(whole)}
    same = [row == others[row["variant"], row["seed"]] for row in rows(study.output)]
    return runs == {name: parted[name] for name in runs} and len(same) == len(runs) and all(same)


@pytest.mark.filterwarnings("ignore")
def test_a_study_goes_on_when_a_node_and_a_worker_are_lost_and_needs_no_shared_disk(whole, cluster, tmp_path):
    second = cluster.add_node(num_cpus=1)
    study = Study.read(design_file(tmp_path, part_of_the_design(3, 0, 2)), tmp_path / "shared")
    lost = []

    def lose(progress):
        """The second node with the first checkpoint, a worker of the first with a later one."""
        if not lost and [*study.output.glob("runs/*/*/seed-3/checkpoints/*/MANIFEST.json")]:
            cluster.remove_node(second, allow_graceful=False)
            lost.append("node")
        elif len(lost) == 1 and progress.done >= 1:
            with contextlib.suppress(OSError, ValueError, StopIteration):
                os.kill(json.loads(next(study.output.rglob("run.lock")).read_text())["pid"], signal.SIGKILL)
                lost.append("worker")

    said = []
    study.run(OnRay(cluster.address), say=said.append, watch=lose)
    assert "node" in lost
    assert [run.status for run in study.runs] == ["done"] * 2, said
    assert is_part_of(study, whole)

    alone = Study.read(design_file(tmp_path, part_of_the_design(4, 2)), tmp_path / "alone")
    alone.run(OnRay(cluster.address, shared_disk=False), say=said.append)
    assert [run.status for run in alone.runs] == ["done"], said
    assert is_part_of(alone, whole)
    assert not [*alone.output.rglob("run.lock")]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_run_on_two_ranks_takes_the_bits_of_one_process_though_one_is_killed_and_no_disk_is_shared(cluster):
    folder = Path(os.environ[FOLDER])
    design = design_file(folder, part_of_the_design(4, 2).replace("CartPole-v1", "one_that_dies:OneThatDies-v0"))
    two, one = (Study.read(design, folder / name) for name in ("two", "one"))
    said = []
    two.run(OnRay(cluster.address, ranks_per_run=2, cpus_per_run=1, shared_disk=False), say=said.append)
    assert [run.status for run in two.runs] == ["done"], said
    begun_again = [line for line in said if "it goes on from its checkpoint (" in line]
    assert len(begun_again) == 1, said
    assert "(none)" not in begun_again[0]
    one.run(processes=1, say=said.append)
    assert parts(two.output) == parts(one.output)
    assert rows(two.output) == rows(one.output)
    with pytest.raises(ValueError, match=r"^each of the 2 ranks of a run needs CPUs 1 \(of 1\); allowed: what the"):
        OnRay(cluster.address, ranks_per_run=2)


def test_the_keeper_brings_a_directory_to_the_state_of_another(tmp_path):
    keeper, here = Keeper(), tmp_path / "run"
    keeper.put(here, {"checkpoints/1/MANIFEST.json": b"1", "checkpoints/1/a": b"a", "metrics.csv": b"m"},
               ["checkpoints/1/MANIFEST.json", "checkpoints/1/a", "metrics.csv"])  # fmt: skip
    (here / "run.lock").write_text("of a process here")
    names = ["checkpoints/2/MANIFEST.json", "metrics.csv"]
    keeper.put(here, {"checkpoints/2/MANIFEST.json": b"2", "metrics.csv": b"more"}, names)
    assert keeper.get(here) == {"checkpoints/2/MANIFEST.json": b"2", "metrics.csv": b"more"}
    assert [path.name for path in (here / "checkpoints").iterdir()] == ["2"]


def test_files_are_sent_at_every_checkpoint_beside_the_best_one(tmp_path, monkeypatch):
    sent = []
    monkeypatch.setattr(Sending, "send", lambda self: sent.append([*tmp_path.glob("checkpoints/[0-9]*")]))
    sending = Sending(None, tmp_path, tmp_path / "there")
    for name in ("000000000032", "best", "000000000064"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
        (tmp_path / "checkpoints" / name / "MANIFEST.json").touch()
        sending.on_update_end(None, None, {})
    assert [len(checkpoints) for checkpoints in sent] == [1, 2]


@pytest.mark.parametrize("address", ["127.0.0.1:1", "not an address", "http://127.0.0.1:80", "nobody"])
def test_a_cluster_that_is_not_there_is_one_line_with_the_remedy(address):
    pytest.importorskip("ray")
    with pytest.raises(ValueError, match=r"^address = .*; allowed: 'auto' on a node of a cluster") as refused:
        make_engine("ray", address=address)
    assert "\n" not in str(refused.value)


def test_a_program_that_is_no_cluster_is_one_line_with_the_remedy():
    pytest.importorskip("ray")
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer():
            with server.accept()[0] as connection:
                connection.sendall(b"220 mail.example.org\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(ValueError, match="is not the head of a cluster of Ray; allowed: "):
            make_engine("ray", address=f"127.0.0.1:{server.getsockname()[1]}")
        thread.join()


def test_without_ray_there_is_a_line_that_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"^engine = 'ray': .*; allowed: pip install 'klrl\[ray\]'"):
        make_engine("ray")


@pytest.mark.parametrize("is_lost", [True, False])
def test_a_lost_rank_is_no_result_of_a_run_and_a_failed_one_is(is_lost, tmp_path, monkeypatch):
    class Failing(World):
        def any(self, flag):
            raise (RankFailed.found if is_lost else RankFailed)("rank 1 is what this is about")

    trial = Study.read(design_file(tmp_path, part_of_the_design(3, 0)), tmp_path / "out").trials[0]
    monkeypatch.setattr(World, "current", staticmethod(Failing))
    if is_lost:
        with pytest.raises(RankFailed, match=r"^rank 1 is what this is about$"):
            run(trial, tmp_path / "run")
    else:
        assert run(trial, tmp_path / "run")["error"] == "RankFailed: rank 1 is what this is about"
