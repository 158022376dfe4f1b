"""Files of finished pieces of long work: read as they were written, or refused in one line."""

import os
from typing import Literal

import pytest

from klrl.run.sealed import sealed
from klrl.studies.kept import MOST, keep, kept

ENTRIES = {"status": Literal["finished"], "mean_return": float, "settings": dict}
PIECE = {"status": "finished", "mean_return": 1.5, "settings": {}, "more": [1]}


def test_what_is_kept_is_read_back_and_nothing_is_there_before(tmp_path):
    path = tmp_path / "runs" / "one.json"
    assert kept(path, ENTRIES) is None
    keep(path, PIECE)
    keep(path, PIECE | {"mean_return": 2})
    assert kept(path, ENTRIES) == PIECE | {"mean_return": 2}
    assert [p.name for p in path.parent.iterdir()] == ["one.json"]


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("pipe", "not a file"),
        ("link", "a link, not a file"),
        (sealed(PIECE)[:-1], "."),
        (sealed(PIECE).replace(b"1.5", b"9.5"), "digest does not match"),
        (b" " * (MOST + 1), f"at most {MOST:,}"),
        (sealed(PIECE | {"status": "failed"}), "status = 'failed'; allowed: finished"),
        (sealed(PIECE | {"mean_return": float("inf")}), "mean_return = inf; allowed: a number"),
        (sealed({"status": "finished", "mean_return": 1.0}), "settings = None"),
    ],
    ids=["pipe", "link", "cut", "edited", "large", "other value", "infinite", "missing"],
)
def test_anything_else_is_refused_in_one_line(tmp_path, what, said):
    path = tmp_path / "one.json"
    if what == "pipe":
        os.mkfifo(path)
    elif what == "link":
        path.symlink_to("/dev/zero")
    else:
        path.write_bytes(what)
    with pytest.raises(ValueError, match=rf"^one\.json is not as it was written: [^\n]*{said}[^\n]*$"):
        kept(path, ENTRIES)


def test_a_folder_is_not_to_be_replaced(tmp_path):
    with pytest.raises(IsADirectoryError, match="a folder, not a file"):
        kept(tmp_path, ENTRIES)
