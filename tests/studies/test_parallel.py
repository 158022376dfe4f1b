"""Calls in processes that are killed, that fail, and that answer what cannot be sent."""

import os
import signal
import threading
from concurrent.futures.process import BrokenProcessPool

import pytest

from klrl.studies.parallel import in_parallel


def killed_once(folder, i):
    """Kills its process at the first call with this number."""
    (folder / f"{i}-{os.getpid()}").touch()
    if i == 2 and len([*folder.glob("2-*")]) == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return 10 * i


def unsendable(kind):
    """Returns, or raises, what no pipe takes."""
    if kind == "raises":

        class Local(Exception):
            pass

        raise Local("said all the same")
    return threading.Lock()


def test_a_call_whose_process_was_killed_is_made_again_and_no_other(tmp_path):
    assert sorted(in_parallel(killed_once, [(tmp_path, i) for i in range(5)], 2)) == [0, 10, 20, 30, 40]
    calls = sorted(path.name.split("-")[0] for path in tmp_path.iterdir())
    assert calls == ["0", "1", "2", "2", "3", "4"]


def test_a_call_that_always_ends_its_process_ends_the_others_after_its_retries():
    with pytest.raises(BrokenProcessPool, match=r"^its process ended with status 3, 2 times$"):
        list(in_parallel(os._exit, [(3,)], 2, retries=1))


def test_what_a_call_raises_is_raised_here_with_its_traceback():
    with pytest.raises(ValueError, match="invalid literal") as raised:
        list(in_parallel(int, [("x",)], 2))
    assert "in another process:\nTraceback" in str(raised.value.__cause__)


@pytest.mark.parametrize(("kind", "said"), [("raises", "Local: said all the same"), ("returns", "cannot pickle")])
def test_what_cannot_be_sent_is_said(kind, said):
    with pytest.raises((RuntimeError, TypeError), match=said):
        list(in_parallel(unsendable, [(kind,)], 2))
