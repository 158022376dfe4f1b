"""TensorBoard files, read back by TensorBoard: every row once, whatever happened to the files before."""

import importlib
import os
import random
import re
import resource
import socket
import threading
import time
import warnings

import pytest
import torch.utils.tensorboard.writer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.summary.writer.record_writer import masked_crc32c

from klrl.run.tensorboard_writer import TensorBoardWriter


def row(step):
    return {"time/total_timesteps": float(step), "drift/kl": 1.0 / step, "nothing": float("nan"), "why": "text"}


HISTORY = [row(100 * i) for i in range(1, 11)]


def shown(path):
    """What TensorBoard shows, in order."""
    board = EventAccumulator(str(path), size_guidance={"scalars": 0}).Reload()
    return {tag: [(e.step, e.value) for e in board.Scalars(tag)] for tag in board.Tags()["scalars"]}


def expected(history):
    names = ("time/total_timesteps", "drift/kl")
    return {n: [(int(r["time/total_timesteps"]), pytest.approx(r[n])) for r in history] for n in names if history}


def write(path, history, board=None):
    board = board or TensorBoardWriter(path)
    for metrics in history:
        board.add(metrics)
    board.close()


def test_every_number_of_a_row_is_a_point(tmp_path):
    write(tmp_path, HISTORY)
    assert shown(tmp_path) == expected(HISTORY)


def test_points_can_be_read_while_training_goes_on(tmp_path):
    board = TensorBoardWriter(tmp_path)
    board.add(HISTORY[0])
    assert shown(tmp_path) == expected(HISTORY[:1])
    board.close()


@pytest.mark.parametrize("kept", [0, 1, 6, 10])
def test_steps_that_were_taken_back_do_not_count(tmp_path, kept):
    write(tmp_path, HISTORY)
    write(tmp_path, HISTORY[kept:], TensorBoardWriter(tmp_path, HISTORY[:kept]))
    assert shown(tmp_path) == expected(HISTORY)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("kept", [0, 6, 10])
def test_a_file_that_was_cut_or_damaged_leaves_no_gap_and_is_left_alone(tmp_path, kept):
    choices = random.Random(kept)
    for i in range(12):
        path = tmp_path / str(i)
        write(path, HISTORY[:8], TensorBoardWriter(path.mkdir() or path))
        (file,) = path.iterdir()
        data = bytearray(file.read_bytes())
        if i % 2:
            del data[choices.randrange(len(data)) :]
        else:
            data[choices.randrange(len(data))] ^= 0xFF
        file.write_bytes(data)
        write(path, HISTORY[kept:], TensorBoardWriter(path, HISTORY[:kept]))
        assert shown(path) == expected(HISTORY), i
        assert file.read_bytes() == data


def test_a_second_interruption(tmp_path):
    write(tmp_path, HISTORY[:5])
    write(tmp_path, HISTORY[3:7], TensorBoardWriter(tmp_path, HISTORY[:3]))
    write(tmp_path, HISTORY[6:], TensorBoardWriter(tmp_path, HISTORY[:6]))
    assert shown(tmp_path) == expected(HISTORY)


def test_a_directory_that_cannot_be_written_only_warns_once(tmp_path):
    with pytest.warns(RuntimeWarning, match="TensorBoard gets no more points from .*; training and metrics.csv go on"):
        board = TensorBoardWriter(tmp_path / "missing")
    with warnings.catch_warnings(action="error"):
        write(tmp_path, HISTORY, board)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_only_warns_once_and_what_was_written_can_be_read(tmp_path):
    board = TensorBoardWriter(tmp_path)
    board.add(HISTORY[0])
    (file,) = tmp_path.iterdir()
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size + 30, hard))
    try:
        with pytest.warns(RuntimeWarning, match="File too large: TensorBoard gets no more points"):
            board.add(HISTORY[1])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    with warnings.catch_warnings(action="error"):
        write(tmp_path, HISTORY[2:], board)
    assert shown(tmp_path) == expected(HISTORY[:1])


def test_a_row_that_was_cut_is_written_again_as_a_whole(tmp_path):
    write(tmp_path, HISTORY[:5])
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    for cut in range(1, 150):  # the last row has about as many bytes
        file.write_bytes(whole[:-cut])
        write(tmp_path, HISTORY[5:6], TensorBoardWriter(tmp_path, HISTORY[:5]))
        assert shown(tmp_path) == expected(HISTORY[:6]), cut
        for other in {*tmp_path.iterdir()} - {file}:
            other.unlink()


@pytest.mark.parametrize("shifts", [(3600, -3600), (-3600, -7200), (-3600, 0), (0, 0, 0), (10**8, -(10**8))])
def test_files_come_in_their_order_whatever_the_clock_says(tmp_path, monkeypatch, shifts):
    now = time.time
    for i, shift in enumerate((0, *shifts)):
        monkeypatch.setattr(time, "time", lambda shift=shift: now() + shift)
        write(tmp_path, HISTORY[2 * i : 2 * i + 3], TensorBoardWriter(tmp_path, HISTORY[: 2 * i]))
    assert shown(tmp_path) == expected(HISTORY[: 2 * len(shifts) + 3])
    assert len(list(tmp_path.iterdir())) == 1 + len(shifts)


def test_a_file_comes_after_those_of_older_versions(tmp_path):
    write(tmp_path, HISTORY[:3])
    (file,) = tmp_path.iterdir()
    file.rename(tmp_path / f"events.out.tfevents.{time.time() + 100.0:.6f}.host.1")
    write(tmp_path, HISTORY[3:], TensorBoardWriter(tmp_path, HISTORY[:3]))
    assert shown(tmp_path) == expected(HISTORY)


def tracked(path, since):
    """What W&B's reader takes from a directory: its files of this host since the run began, one after the other."""
    pattern = rf"tfevents\.(\d+)\.{re.escape(socket.gethostname())}"
    found = [(file, re.search(pattern, file.name)) for file in sorted(path.iterdir())]
    seen = []
    for file in (file for file, name in found if name and int(name[1]) >= int(since)):
        for event in EventFileLoader(str(file)).Load():
            numbers = (v for v in event.summary.value if v.tensor.float_val)  # not the layout of charts
            seen += [(v.tag, event.step, v.tensor.float_val[0]) for v in numbers]
    return seen


@pytest.mark.parametrize("module", ["tensorboard.summary.writer.event_file_writer", "torch.utils.tensorboard.writer"])
def test_a_tracker_that_stands_in_for_the_class_of_event_files_hears_of_them_and_reads_all_rows(
    tmp_path, monkeypatch, module
):
    """As ``wandb.init(sync_tensorboard=True)`` does; a resumed run's rows are those after its last one."""
    place, told = importlib.import_module(module), []

    class Watched(place.EventFileWriter):
        def __init__(self, logdir, *args, **kwargs):
            told.append(logdir)
            super().__init__(logdir, *args, **kwargs)

    monkeypatch.setattr(place, "EventFileWriter", Watched)
    write(tmp_path, HISTORY[:4])
    since = time.time()
    write(tmp_path, HISTORY[4:], TensorBoardWriter(tmp_path, HISTORY[:4]))
    if module.startswith("torch"):  # which has taken the class from tensorboard before
        assert told == [str(tmp_path)] * 2
    for tag, points in expected(HISTORY).items():
        assert [(step, x) for name, step, x in tracked(tmp_path, since - 100) if name == tag] == points


@pytest.mark.parametrize(
    ("owner", "method"), [("SummaryWriter", "add_scalar"), ("FileWriter", "add_summary"), ("FileWriter", "add_event")]
)
def test_a_tracker_that_listens_to_a_method_hears_every_number(tmp_path, monkeypatch, owner, method):
    """As SwanLab, Neptune and Comet listen to the first one, ClearML and MLflow to the last one."""
    cls, heard = getattr(torch.utils.tensorboard.writer, owner), []
    original = getattr(cls, method)

    def listening(self, *args, **kwargs):
        heard.append(args)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(cls, method, listening)
    write(tmp_path, HISTORY)
    values = [value for args in heard for value in getattr(getattr(args[0], "summary", args[0]), "value", [])]
    numbers = [(v.tag, v.simple_value) for v in values] or [(tag, x) for tag, x, *_ in heard]
    for tag, points in expected(HISTORY).items():
        assert [x for name, x in numbers if name == tag] == [x for _, x in points]


def test_a_tracker_that_fails_only_warns(tmp_path, monkeypatch):
    def offline(*args, **kwargs):
        raise RuntimeError("no\nconnection")

    board = TensorBoardWriter(tmp_path)
    monkeypatch.setattr(torch.utils.tensorboard.SummaryWriter, "add_scalar", offline)
    with pytest.warns(RuntimeWarning, match="^RuntimeError: no connection: TensorBoard gets no more points"):
        board.add(HISTORY[0])
    with warnings.catch_warnings(action="error"):
        write(tmp_path, HISTORY, board)


def test_no_thread_is_left_that_could_fail_on_its_own(tmp_path):
    before = threading.active_count()
    board = TensorBoardWriter(tmp_path)
    assert threading.active_count() == before
    board.close()


@pytest.mark.parametrize("kind", ["a length that is damaged", "a link", "a pipe"])
def test_what_cannot_be_read_is_written_again(tmp_path, kind):
    write(tmp_path, HISTORY[:8])
    (file,) = tmp_path.iterdir()
    if kind == "a length that is damaged":
        length = (2**62).to_bytes(8, "little")
        file.write_bytes(length + masked_crc32c(length).to_bytes(4, "little") + b"x")
    else:
        file.unlink()
        file.symlink_to("/dev/zero") if kind == "a link" else os.mkfifo(file)
    write(tmp_path, HISTORY[8:], TensorBoardWriter(tmp_path, HISTORY[:8]))
    file.unlink()
    assert shown(tmp_path) == expected(HISTORY)
