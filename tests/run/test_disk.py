"""A full disk is told in words: by a real limit on the size of files, in a process of its own."""

import errno
import re
import subprocess
import sys

import pytest

from klrl.run.disk import DiskFull, reporting_full_disk


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG, errno.EDQUOT])
def test_it_says_what_was_needed_and_what_is_free(number, tmp_path):
    path = tmp_path / "not" / "there" / "yet"
    expected = (
        rf".*: {re.escape(str(path))} needs 12,345 bytes, [\d,]+ are free; allowed: more room, or another directory"
    )
    with pytest.raises(DiskFull, match=expected), reporting_full_disk(path, 12_345):
        raise OSError(number, "full")


def test_other_errors_are_let_through(tmp_path):
    with pytest.raises(PermissionError), reporting_full_disk(tmp_path, 1):
        raise PermissionError(errno.EACCES, "no")


LIMITED = """
import resource, signal, sys
from pathlib import Path
from klrl.run.disk import DiskFull
from klrl.run.csv_log import CsvLog
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
table = CsvLog(Path(sys.argv[1]))
try:
    for i in range(1000):
        table.add([{"x": i}])
except DiskFull as error:
    table.close()
    print(i, error)
"""


def test_rows_that_found_room_are_there(tmp_path):
    path = tmp_path / "a.csv"
    said = subprocess.run([sys.executable, "-c", LIMITED, str(path)], capture_output=True, text=True, check=True).stdout
    n = int(said.split()[0])
    whole = path.read_text().splitlines()[: n + 1]
    assert whole == ["x", *map(str, range(n))]
    assert f"{path} needs 5 bytes" in said
