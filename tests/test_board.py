"""TensorBoard files, read back by TensorBoard: every row once, whatever happened to the files before."""

import os
import random
import warnings

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer.record_writer import masked_crc32c

from klrl.run.board import Board


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
    board = board or Board(path)
    for metrics in history:
        board.add(metrics)
    board.close()


def test_every_number_of_a_row_is_a_point(tmp_path):
    write(tmp_path, HISTORY)
    assert shown(tmp_path) == expected(HISTORY)


def test_points_can_be_read_while_training_goes_on(tmp_path):
    board = Board(tmp_path)
    board.add(HISTORY[0])
    assert shown(tmp_path) == expected(HISTORY[:1])
    board.close()


@pytest.mark.parametrize("kept", [0, 1, 6, 10])
def test_steps_that_were_taken_back_do_not_count(tmp_path, kept):
    write(tmp_path, HISTORY)
    write(tmp_path, HISTORY[kept:], Board(tmp_path, HISTORY[:kept]))
    assert shown(tmp_path) == expected(HISTORY)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("kept", [0, 6, 10])
def test_a_file_that_was_cut_or_damaged_leaves_no_gap_and_is_left_alone(tmp_path, kept):
    choices = random.Random(kept)
    for i in range(12):
        path = tmp_path / str(i)
        write(path, HISTORY[:8], Board(path.mkdir() or path))
        (file,) = path.iterdir()
        data = bytearray(file.read_bytes())
        if i % 2:
            del data[choices.randrange(len(data)) :]
        else:
            data[choices.randrange(len(data))] ^= 0xFF
        file.write_bytes(data)
        write(path, HISTORY[kept:], Board(path, HISTORY[:kept]))
        assert shown(path) == expected(HISTORY), i
        assert file.read_bytes() == data


def test_a_second_interruption(tmp_path):
    write(tmp_path, HISTORY[:5])
    write(tmp_path, HISTORY[3:7], Board(tmp_path, HISTORY[:3]))
    write(tmp_path, HISTORY[6:], Board(tmp_path, HISTORY[:6]))
    assert shown(tmp_path) == expected(HISTORY)


def test_a_directory_that_cannot_be_written_only_warns_once(tmp_path):
    with pytest.warns(RuntimeWarning, match="TensorBoard gets no more points from .*; training and metrics.csv go on"):
        board = Board(tmp_path / "missing")
    with warnings.catch_warnings(action="error"):
        write(tmp_path, HISTORY, board)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_only_warns_once_and_what_was_written_can_be_read(tmp_path, monkeypatch):
    board = Board(tmp_path)
    board.add(HISTORY[0])

    def full(data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(board._records, "write", full)
    with pytest.warns(RuntimeWarning, match="No space left on device: TensorBoard gets no more points"):
        board.add(HISTORY[1])
    with warnings.catch_warnings(action="error"):
        write(tmp_path, HISTORY[2:], board)
    assert shown(tmp_path) == expected(HISTORY[:1])


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
    write(tmp_path, HISTORY[8:], Board(tmp_path, HISTORY[:8]))
    file.unlink()
    assert shown(tmp_path) == expected(HISTORY)
