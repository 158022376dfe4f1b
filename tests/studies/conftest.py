"""What tests of studies share."""

import pytest
from small_studies import started


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """The study of that design, which nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    ended = started(folder, "--processes", "1").wait()
    assert ended.code == 0, ended.err
    return folder / "out"
