"""Signals at every instruction of whatever acquires something: it has an owner, and nothing is left behind."""

import gc
import multiprocessing
import os
import signal
import sys
import threading
from functools import partial
from itertools import count

import pytest
import torch
from environments import Counting, small_agent
from support import interrupted

from klrl.agents import PPO
from klrl.experience.workers import WorkerVectorEnv
from klrl.interrupts import held
from klrl.run import checkpoint
from klrl.run.directory import RunDirectory
from klrl.run.lock import Lock, check_free
from klrl.run.signals import Signals
from klrl.studies.parallel import in_parallel

PLAIN = signal.default_int_handler


@pytest.fixture(scope="module", autouse=True)
def _quick_collection():
    """Of what an interrupt leaves, by looking at nothing older, here and in what follows."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _handlers():
    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1]
    before = {number: signal.signal(number, PLAIN if number == signal.SIGINT else signal.SIG_DFL) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def opened():
    gc.collect()
    return len(os.listdir("/dev/fd"))


# -- signals that wait --------------------------------------------------------------------------


def interrupt():
    signal.raise_signal(signal.SIGINT)


def test_what_is_acquired_inside_is_owned_before_the_signal_is_heard():
    owned = []

    def acquire():
        with held():
            interrupt()
            owned.append(1)

    with pytest.raises(KeyboardInterrupt):
        acquire()
    assert owned == [1]
    assert signal.getsignal(signal.SIGINT) is PLAIN


def test_the_outermost_context_decides():
    done = []

    def acquire():
        with held():
            with held():
                interrupt()
            done.append("inner")

    with pytest.raises(KeyboardInterrupt):
        acquire()
    assert done == ["inner"]


def test_a_signal_beside_an_error_is_heard_and_the_error_is_its_context():
    def fail():
        with held():
            interrupt()
            raise ZeroDivisionError

    with pytest.raises(KeyboardInterrupt) as caught:
        fail()
    assert isinstance(caught.value.__context__, ZeroDivisionError)


def test_who_insists_is_heard_at_once():
    done = []

    def insist():
        with held():
            interrupt()
            done.append(1)
            interrupt()
            done.append(2)

    with pytest.raises(KeyboardInterrupt):
        insist()
    assert done == [1]
    assert signal.getsignal(signal.SIGINT) is PLAIN


def test_a_signals_own_handler_hears_it_and_only_once():
    heard = []
    signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    with held():
        signal.raise_signal(signal.SIGTERM)
        assert heard == []
    assert heard == [signal.SIGTERM]


def test_what_the_system_handles_is_left_to_it():
    with held():
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_other_threads_are_never_interrupted_and_may_hold():
    failed = []

    def work():
        try:
            with held():
                pass
        except ValueError as error:  # handlers are the main thread's
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert failed == []


def test_wherever_the_context_itself_is_interrupted_the_handlers_are_as_before():
    def enter_and_leave():
        with held():
            inside.append(1)

    for n in count():
        inside = []
        more = interrupted(enter_and_leave, n)
        assert signal.getsignal(signal.SIGINT) is PLAIN
        if not more:
            break
    assert n > 50


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_wherever_signals_are_taken_over_or_given_back_none_is_heard_by_a_context_that_is_over(number):
    def quiet(number, frame):
        pass

    def enter_and_leave():
        with Signals(lambda: None):
            pass

    interrupted(enter_and_leave, 10**9)  # Python 3.13 counts no instructions of what it traces for the first time
    for n in count():
        signal.signal(signal.SIGTERM, quiet)  # else it would end this process
        more = interrupted(enter_and_leave, n, number=number)
        for ending in (signal.SIGINT, signal.SIGTERM):
            assert "Signals._end" not in str(signal.getsignal(ending))
        if not more:
            break
        signal.signal(signal.SIGINT, PLAIN)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == (PLAIN, quiet)
    assert n > 50


# -- what is acquired ---------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_directory_that_was_claimed_can_be_released(tmp_path, number):
    path, files = tmp_path / "run", opened()
    signal.signal(signal.SIGTERM, PLAIN)
    for n in count():
        keep = RunDirectory(path)
        more = interrupted(keep.claim, n, number=number)
        if (path / "run.lock").exists():  # then it has an owner
            with pytest.raises(BlockingIOError):
                check_free(path)
        keep.release()
        path.mkdir(exist_ok=True)
        assert list(path.iterdir()) == []
        Lock(path).release()
        if not more:
            break
    assert n > 200
    assert opened() == files


def test_a_lock_that_was_released_is_free(tmp_path):
    files = opened()
    for n in count():
        keep = RunDirectory(tmp_path)
        keep.claim()
        more = interrupted(keep.release, n)
        keep.release()
        assert list(tmp_path.iterdir()) == []
        if not more:
            break
    assert n > 50
    assert opened() == files


def test_a_lock_that_nobody_knows_any_more_is_free(tmp_path):
    lock = Lock(tmp_path)
    del lock
    assert list(tmp_path.iterdir()) == []
    Lock(tmp_path).release()


def write(path):
    checkpoint.write(path, {"x": torch.ones(2)}, {"agent": "new"})


@pytest.mark.parametrize(("what", "every"), [("file", 1), ("agent", 37)])
def test_files_are_whole_and_none_is_left_aside(tmp_path, what, every):
    files = opened()
    for n in count(0, every):
        path = tmp_path / str(n)
        more = interrupted(partial(checkpoint.replace, path, b"new") if what == "file" else partial(write, path), n)
        if what == "agent" and path.exists():
            assert checkpoint.read(path)[1] == {"agent": "new"}
            assert len(list(path.iterdir())) == 3
        elif path.exists():
            assert path.read_bytes() == b"new"
        if not more:
            break
    assert n > 100
    assert not list(tmp_path.rglob("*.tmp"))
    assert opened() == files


def test_wherever_the_beginning_or_the_end_of_a_training_is_interrupted_it_can_be_gone_on_with(tmp_path):
    """At some of the instructions of the files of a run: there are too many of them."""
    files = opened()
    for n in count(0, 383):
        run = tmp_path / str(n)
        agent = small_agent(PPO, Counting)
        more = interrupted(lambda agent=agent, run=run: agent.learn(64, run_dir=run), n, rooms=("klrl/run/",))
        del agent
        gc.collect()
        left = {path.name for path in run.iterdir()} if run.exists() else set()
        assert "run.lock" not in left
        assert not list(run.rglob("*.tmp"))
        assert "config.json" in left or not left
        if list(run.glob("checkpoints/*/MANIFEST.json")):
            assert PPO.load(run, Counting).num_timesteps == 64
        if not more:
            break
    assert n > 1000
    assert opened() == files


def test_wherever_the_start_of_workers_is_interrupted_all_of_them_end():
    WorkerVectorEnv([Counting] * 2).close()  # the first ones open something for all
    files = opened()
    for n in count(0, 29):
        more = interrupted(lambda: WorkerVectorEnv([Counting] * 2).close(), n, rooms=("workers.py", "processes.py"))
        gc.collect()
        for process in multiprocessing.active_children():
            process.join(60.0)
        assert not multiprocessing.active_children()
        if not more:
            break
    assert n > 200
    assert opened() == files


def test_wherever_calls_in_parallel_are_interrupted_no_process_is_left():
    def double():
        assert sorted(in_parallel(abs, [(-1,), (-2,)], 2)) == [1, 2]

    double()
    for n in count(0, 41):
        more = interrupted(double, n, rooms=("klrl/studies/parallel.py",))
        gc.collect()
        for process in multiprocessing.active_children():
            process.join(60.0)
        assert not multiprocessing.active_children()
        if not more:
            break
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert n > (50 if sys.version_info < (3, 13) else 30)
