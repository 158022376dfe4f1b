"""Measurements of speed in forks of a Python that has imported klrl: processes of their own that start at once."""

import os
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

from torture.processes import Fork


class Forked:
    """Stands in for ``subprocess`` where a benchmark starts what measures."""

    TimeoutExpired = subprocess.TimeoutExpired

    @staticmethod
    def run(command, *, env, timeout, **kept):
        changes = {name: value for name, value in env.items() if os.environ.get(name) != value}
        with TemporaryDirectory() as scratch:
            ended = Fork(command[1:], Path(scratch), changes).wait(timeout)
        return subprocess.CompletedProcess(command, ended.code, ended.out, ended.err)
