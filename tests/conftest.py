"""What all tests share: one thread, so that bits do not depend on the machine's cores, signals that are heard, no
collection of garbage among what lives as long as the tests, slow tests first, and random numbers that are a test's own.
"""

import gc
import signal

import pytest

# Processes inherit what is ignored (by nohup, or in the background of a shell), and tests send these to theirs.
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collectstart():
    import torch  # here, because a process that only hands out tests needs none

    torch.set_num_threads(1)
    gc.disable()  # while modules are imported and tests are collected, nothing much becomes garbage


def pytest_collection_modifyitems(items):
    """Put slow tests first: processes that share the tests end with short ones, and so none waits for another."""
    items.sort(key=lambda item: "slow" not in item.keywords)


def pytest_collection_finish():
    gc.collect()
    gc.freeze()
    gc.set_threshold(5_000)  # seven times as rarely as by default: most of what is young is soon gone by itself
    gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    """Give every test the same random numbers, whatever ran before it in its process."""
    import torch

    torch.manual_seed(0)
