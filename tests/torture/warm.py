"""A Python that has imported klrl and read its flags, and becomes at once, by a fork, any program that does so first.

``python -m torture.warm SOCKET`` serves until its standard input ends. A connection to the socket is one process: a
request with three descriptors goes in, the process's number and, later, how it ended come back, as lines of JSON.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import io
import json
import os
import selectors
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any, NoReturn

from klrl.agents import AGENTS
from klrl.scripts import main as command_line
from klrl.scripts.benchmarks import measure
from torture import child

_PROGRAMS: dict[str, Callable[[], None]] = {
    "klrl.scripts.main": command_line.command,
    "klrl.scripts.benchmarks.measure": measure.main,
    "torture.child": child.program,
}
"""Modules that ``python -m`` can run here, and what they do then."""
_LATER = (
    "gymnasium.envs.classic_control", "klrl.scripts.cli.resuming", "klrl.scripts.cli.studying",
    "klrl.scripts.cli.training", "klrl.studies.study", "klrl.studies.training", "scipy.stats",
    "torch.utils.tensorboard", "torture.known",
)  # fmt: skip
"""Modules that commands import once their flags are read."""
_COMMANDS = [
    *(["train", agent] for agent in AGENTS),
    *([verb] for verb in ("resume", "evaluate", "compare", "study", "distill", "dpo", "torture")),
]
"""Commands whose flags have types that take a while to read for the first time."""
_SHORT = ["--env", "CartPole-v1", "--total-timesteps", "64", "--n-envs", "2", "--n-steps", "32", "--eval-episodes", "1"]
"""Of a training that uses for the first time what every training uses."""


def serve(path: str) -> None:
    """Fork for every request, until standard input ends."""
    _warm_up()
    gc.collect()
    gc.freeze()  # a collection in a fork would copy every page that has an object
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener, selectors.DefaultSelector() as selector:
        listener.bind(path)
        listener.listen(100)
        print("ready", flush=True)
        selector.register(listener, selectors.EVENT_READ, _accept)
        selector.register(sys.stdin.fileno(), selectors.EVENT_READ, lambda *_: sys.exit())
        while True:
            for key, _ in selector.select():
                key.data(selector, key.fileobj)


def _warm_up() -> None:
    """Do what every command would do first and what leaves no trace: imports, flags, a short training."""
    for name in _LATER:
        import_module(name)
    said = io.StringIO()
    for words in _COMMANDS:
        with contextlib.redirect_stderr(said), contextlib.suppress(SystemExit):
            command_line.main([*words, "--no-such-flag"])
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(said):
        command_line.main(["train", "ppo", *_SHORT, "--run-dir", f"{folder}/run"])
        command_line.main(["evaluate", f"{folder}/run", "--episodes", "1"])
        command_line.main(["resume", f"{folder}/run"])


def _accept(selector: selectors.BaseSelector, listener: socket.socket) -> None:
    connection, _ = listener.accept()
    said, descriptors, *_ = socket.recv_fds(connection, 2**20, 3)
    if not said:  # it was killed before it could ask
        connection.close()
        return
    began, pid = time.monotonic(), os.fork()
    if pid == 0:
        for number in [key.fileobj for key in selector.get_map().values() if isinstance(key.fileobj, int)]:
            os.close(number)  # of another process, or of standard input
        selector.close()  # and with it the others' connections
        listener.close()
        connection.close()
        _become(json.loads(said), descriptors)
    for descriptor in descriptors:
        os.close(descriptor)
    with contextlib.suppress(ConnectionError):  # nobody waits for it any more
        connection.send(json.dumps({"pid": pid}).encode())
    ended = os.pidfd_open(pid)
    selector.register(ended, selectors.EVENT_READ, lambda *_: _tell(selector, ended, pid, connection, began))


def _tell(selector: selectors.BaseSelector, ended: int, pid: int, connection: socket.socket, began: float) -> None:
    """Say how a process ended, and with how much memory at most."""
    _, status, usage = os.wait4(pid, 0)
    selector.unregister(ended)
    os.close(ended)
    unit = 1 if sys.platform == "darwin" else 1024
    said = {"code": os.waitstatus_to_exitcode(status), "peak": usage.ru_maxrss * unit}
    with connection, contextlib.suppress(ConnectionError):  # as above
        connection.send(json.dumps(said | {"seconds": time.monotonic() - began}).encode())


def _become(request: dict[str, Any], descriptors: list[int]) -> NoReturn:
    """Do what the program would do, in a session of its own, and end as Python ends."""
    status = 1
    try:
        os.setsid()
        for number, descriptor in enumerate(descriptors):
            os.dup2(descriptor, number)
            os.close(descriptor)
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(request["environment"])
        sys.path[:0] = request["path"]
        _run(request["words"])
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        if isinstance(error, KeyboardInterrupt):
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
    finally:  # what Python would take apart now has no effect outside, and costs a second
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _run(words: list[str]) -> None:
    """Do what ``python -m MODULE ...`` or ``python -c PROGRAM ...`` would."""
    how, what, *arguments = words
    sys.argv[:] = [what if how == "-m" else how, *arguments]
    if how == "-m":
        sys.modules["__main__"] = sys.modules[what]
        _PROGRAMS[what]()
    else:
        sys.modules["__main__"] = main = ModuleType("__main__")
        exec(compile(what, "<string>", "exec"), vars(main))


if __name__ == "__main__":
    serve(sys.argv[1])
