"""CSV files that are begun anew and grow."""

import csv
import os

import pytest

from klrl.run.table import EPISODES, Table, episodes_until


def lines(path):
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_a_table_appears_with_its_first_row_and_its_header(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("of an older run")
    table = Table(path)
    assert not path.exists()
    table.add(["x", "y"], [[1, 2.5], ["a,b", float("nan")]])
    table.add(["x", "y"], [[3, 4]])
    table.sync()
    table.close()
    assert lines(path) == [["x", "y"], ["1", "2.5"], ["a,b", "nan"], ["3", "4"]]


def test_a_table_is_begun_anew_with_the_rows_it_is_to_have_and_grows(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("x\n9\n9")
    table = Table(path, ["x"], [[1], [2]])
    table.add(["x"], [[3]])
    table.close()
    assert lines(path) == [["x"], ["1"], ["2"], ["3"]]
    assert [p.name for p in tmp_path.iterdir()] == ["a.csv"]


def test_a_row_is_in_the_file_when_it_has_been_added(tmp_path):
    table = Table(tmp_path / "a.csv", ["x"])
    table.add(["x"], [[1]])
    assert lines(tmp_path / "a.csv") == [["x"], ["1"]]
    table.close()


ROWS = [[10, 1.5, 5, 0], [20, 2.5, 10, 1], [20, -1.0, 10, 0], [30, 0.0, 10, 1]]


@pytest.mark.parametrize("until", [0, 10, 19, 20, 1000])
def test_episodes_up_to_a_step(tmp_path, until):
    path = tmp_path / "episodes.csv"
    table = Table(path, EPISODES, ROWS)
    table.close()
    assert episodes_until(path, until) == [[str(x) for x in row] for row in ROWS if row[0] <= until]


def test_an_episode_that_was_not_written_whole_does_not_count(tmp_path):
    path = tmp_path / "episodes.csv"
    Table(path, EPISODES, ROWS).close()
    text = path.read_text()
    for cut in range(len(text)):
        path.write_text(text[:cut])
        found = episodes_until(path, 1000)
        assert found == [[str(x) for x in row] for row in ROWS][: len(found)]
    assert len(found) == 3


def test_no_file_no_episodes(tmp_path):
    assert episodes_until(tmp_path / "episodes.csv", 10) == []


@pytest.mark.parametrize("name", ["a.csv", "a.csv.tmp"])
def test_no_table_is_written_through_a_link(tmp_path, name):
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (tmp_path / name).symlink_to(precious)
    table = Table(tmp_path / "a.csv", ["x"], [[1]])
    table.add(["x"], [[2]])
    table.close()
    assert lines(tmp_path / "a.csv") == [["x"], ["1"], ["2"]]
    assert precious.read_text() == "mine"


def test_episodes_are_read_from_files_only(tmp_path):
    path = tmp_path / "episodes.csv"
    path.symlink_to("/dev/zero")
    with pytest.raises(OSError, match=r"a link, not a file: .*episodes\.csv"):
        episodes_until(path, 10)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(OSError, match=r"not a file: .*episodes\.csv"):
        episodes_until(path, 10)
