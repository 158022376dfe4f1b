"""One process per run directory."""

import json
import os
import signal
import socket
import subprocess
import sys

import pytest
from support import full_disk

from klrl.run.disk import DiskFull
from klrl.run.lock import LOCK, Lock, check_free

HOLDER = "import sys, time; from pathlib import Path; from klrl.run.lock import Lock; lock = Lock(Path(sys.argv[1]))"


@pytest.fixture
def holder(tmp_path):
    """Another process that has the lock."""
    command = [sys.executable, "-c", f"{HOLDER}; print('held', flush=True); time.sleep(600)", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        yield process
        process.kill()


def test_a_second_lock_is_refused_with_the_first_ones_process(tmp_path):
    lock = Lock(tmp_path)
    expected = f"run_dir = {tmp_path} is in use by process {os.getpid()} on {socket.gethostname()}; allowed: another"
    for refused in (Lock, check_free):
        with pytest.raises(BlockingIOError, match=f"^{expected}"):
            refused(tmp_path)
    lock.release()
    check_free(tmp_path)


def test_where_there_is_no_room_for_the_file_nothing_is_locked(tmp_path):
    with full_disk(), pytest.raises(DiskFull, match=rf"{tmp_path}/{LOCK} needs \d+ bytes, [\d,]+ are free"):
        Lock(tmp_path)
    assert list(tmp_path.iterdir()) == []
    Lock(tmp_path).release()


def test_where_a_folder_is_in_the_way_nothing_is_locked_and_it_stays(tmp_path):
    (tmp_path / LOCK).mkdir()
    with pytest.raises(
        IsADirectoryError, match=r"run\.lock is a folder; allowed: nothing there, or the file of a lock$"
    ):
        Lock(tmp_path)
    (tmp_path / LOCK).rmdir()
    Lock(tmp_path).release()


def test_another_process_is_named_and_its_death_frees_the_directory(tmp_path, holder):
    with pytest.raises(BlockingIOError, match=f"is in use by process {holder.pid} on "):
        Lock(tmp_path)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert json.loads((tmp_path / LOCK).read_text())["pid"] == holder.pid  # stale, and no obstacle
    check_free(tmp_path)
    Lock(tmp_path).release()
    assert list(tmp_path.iterdir()) == []


def test_releasing_twice_is_no_harm_and_does_not_free_anothers(tmp_path):
    lock = Lock(tmp_path)
    lock.release()
    other = Lock(tmp_path)
    lock.release()
    with pytest.raises(BlockingIOError):
        check_free(tmp_path)
    other.release()


def test_a_garbled_lock_file_still_locks(tmp_path):
    lock = Lock(tmp_path)
    (tmp_path / LOCK).write_text("\x1b[31m")
    with pytest.raises(BlockingIOError, match="is in use by another process; allowed"):
        check_free(tmp_path)
    lock.release()


def test_what_is_not_there_is_free(tmp_path):
    check_free(tmp_path / "nothing")


FORKING = """
import os, sys, time
from pathlib import Path
from klrl.run.lock import Lock
lock = Lock(Path(sys.argv[1]))
if os.fork() == 0:  # a simulator's helper
    lock.release()  # is not its own
    print(os.getpid(), flush=True)
    time.sleep(600)
time.sleep(600)
"""


def test_a_dead_process_locks_nothing_though_one_that_it_forked_lives(tmp_path):
    with subprocess.Popen([sys.executable, "-c", FORKING, str(tmp_path)], stdout=subprocess.PIPE) as process:
        helper = int(process.stdout.readline())
        with pytest.raises(BlockingIOError, match=f"is in use by process {process.pid} on "):
            Lock(tmp_path)
        process.kill()
        process.wait()
        Lock(tmp_path).release()
        os.kill(helper, signal.SIGKILL)


def test_nothing_is_written_or_read_through_a_link(tmp_path):
    precious, run = tmp_path / "precious", tmp_path / "run"
    precious.write_text("mine")
    run.mkdir()
    (run / LOCK).symlink_to(precious)
    lock = Lock(run)
    (run / LOCK).unlink()
    (run / LOCK).symlink_to("/dev/zero")
    with pytest.raises(BlockingIOError, match="is in use by another process"):
        Lock(run)
    lock.release()
    assert precious.read_text() == "mine"
