"""CSV files that are begun anew and grow, by rows and by columns."""

import csv
import os
import random
from pathlib import Path

import pytest
from support import full_disk

from klrl.run import checkpoint
from klrl.run.csv_log import EPISODES, CsvLog, episodes_until, last_tenth
from klrl.run.disk import DiskFull


def lines(path):
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_a_table_appears_with_its_first_row_and_its_header(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("of an older run")
    log = CsvLog(path)
    assert not path.exists()
    log.add([{"x": 1, "y": 2.5}, {"x": "a,b", "y": float("nan")}])
    log.add([{"y": 4, "x": 3}])
    log.sync()
    log.close()
    assert lines(path) == [["x", "y"], ["1", "2.5"], ["a,b", "nan"], ["3", "4"]]


def test_a_table_is_begun_anew_with_the_rows_it_is_to_have_and_grows(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("x\n9\n9")
    log = CsvLog(path, ["x"], [{"x": 1}, {"x": 2}])
    log.add([{"x": 3}])
    log.close()
    assert lines(path) == [["x"], ["1"], ["2"], ["3"]]
    assert [p.name for p in tmp_path.iterdir()] == ["a.csv"]


def test_a_row_is_in_the_file_when_it_has_been_added(tmp_path):
    log = CsvLog(tmp_path / "a.csv", ["x"])
    log.add([{"x": 1}])
    assert lines(tmp_path / "a.csv") == [["x"], ["1"]]
    log.add([{"x": 2, "y": 3}])
    assert lines(tmp_path / "a.csv") == [["x", "y"], ["1", ""], ["2", "3"]]
    log.close()


def test_the_last_row_is_written_anew_in_its_place(tmp_path, monkeypatch):
    replaced = []
    monkeypatch.setattr("klrl.run.csv_log.replace", lambda *args: (replaced.append(args[0]), checkpoint.replace(*args)))
    path, nan, rows = tmp_path / "a.csv", float("nan"), []
    log = CsvLog(path)
    number = None
    for i in range(5):
        rows.append({"x": i, "y": nan, "z": "a,b"})
        log.add(rows[-1:])
        number = number or path.stat().st_ino
        assert lines(path)[-1] == [str(i), "nan", "a,b"]
        rows[-1] = rows[-1] | {"y": 0.1 / (i + 1)}
        log.amend(rows[-1])
    assert (replaced, path.stat().st_ino) == ([], number)
    log.amend({"x": 4, "y": 0.02})  # shorter
    log.amend({"x": 4, "y": 0.02, "w": 1})  # another column
    log.add([{"x": 5}])
    log.close()
    assert len(replaced) == 2
    assert lines(path) == [
        ["x", "y", "z", "w"], *([str(r["x"]), str(r["y"]), "a,b", ""] for r in rows[:4]), ["4", "0.02", "", "1"],
        ["5", "", "", ""],
    ]  # fmt: skip


WORDS = ["plain", 'a "quoted", one', "two\nlines", "Erwärmung ✓", "", " "]


@pytest.mark.parametrize("seed", range(5))
def test_every_cell_is_in_its_column_whatever_rows_bring_and_whenever_it_is_begun_anew(tmp_path, seed):
    g, path, rows = random.Random(seed), tmp_path / "a.csv", []
    log = CsvLog(path)
    for _ in range(30):
        if g.random() < 0.1:
            log.close()
            log = CsvLog(path, rows=rows)
        names = g.sample("abcdefgh", g.randrange(1, 9))
        rows.append({f"drift/{name}": g.choice([g.random(), g.randrange(9), *WORDS]) for name in names})
        log.add(rows[-1:])
    log.close()
    order = [*dict.fromkeys(name for row in rows for name in row)]  # as they were met
    assert lines(path) == [order, *([str(row.get(name, "")) for name in order] for row in rows)]
    assert [p.name for p in tmp_path.iterdir()] == ["a.csv"]


def test_the_file_is_replaced_only_for_a_new_column(tmp_path, monkeypatch):
    replaced = []
    monkeypatch.setattr("klrl.run.csv_log.replace", lambda *args: (replaced.append(args[0]), checkpoint.replace(*args)))
    log = CsvLog(tmp_path / "a.csv")
    for row in [{"x": 1}, {"x": 2}, {"y": 3}, {"x": 4}, {"y": 5, "x": 6}, {"z": 7}, {"y": 8}, {}]:
        log.add([row])
    log.close()
    assert len(replaced) == 2
    assert lines(tmp_path / "a.csv")[0] == ["x", "y", "z"]


def test_until_a_new_column_is_whole_the_older_file_stays(tmp_path, monkeypatch):
    class Killed(BaseException):
        """As if the process ended here."""

    def kill(*arguments):
        raise Killed

    before, after = [["x"], ["1"]], [["x", "y"], ["1", ""], ["2", "3"]]
    for owner, name, left in [(os, "fsync", before), (Path, "replace", before), (checkpoint, "_sync", after)]:
        log = CsvLog(tmp_path / "a.csv", rows=[{"x": 1}])
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, kill)
            with pytest.raises(Killed):
                log.add([{"x": 2, "y": 3}])
        assert lines(tmp_path / "a.csv") == left
        log.sync()
        log.close()


def test_without_room_for_a_new_column_the_older_file_stays(tmp_path):
    log = CsvLog(tmp_path / "a.csv", rows=[{"x": i} for i in range(1000)])
    size = (tmp_path / "a.csv").stat().st_size
    with full_disk(room=size + 10), pytest.raises(DiskFull, match=r"a\.csv needs [\d,]+ bytes"):
        log.add([{"x": 0, "y": 1}])
    log.close()
    assert lines(tmp_path / "a.csv") == [["x"], *([str(i)] for i in range(1000))]
    assert [p.name for p in tmp_path.iterdir()] == ["a.csv"]


def test_rows_stay_where_somebody_has_deleted_the_file(tmp_path):
    log = CsvLog(tmp_path / "a.csv", rows=[{"x": 1}])
    (tmp_path / "a.csv").unlink()
    log.add([{"y": 2}])
    log.close()
    assert lines(tmp_path / "a.csv") == [["x", "y"], ["1", ""], ["", "2"]]


ROWS = [
    dict(zip(EPISODES, row, strict=True))
    for row in ([10, 1.5, 5, 0], [20, 2.5, 10, 1], [20, -1.0, 10, 0], [30, 0.0, 10, 1])
]


def as_read(rows):
    return [{name: str(x) for name, x in row.items()} for row in rows]


@pytest.mark.parametrize("until", [0, 10, 19, 20, 1000])
def test_episodes_up_to_a_step(tmp_path, until):
    path = tmp_path / "episodes.csv"
    log = CsvLog(path, EPISODES, ROWS)
    log.close()
    assert episodes_until(path, until) == as_read(row for row in ROWS if row["total_timesteps"] <= until)


def test_an_episode_that_was_not_written_whole_does_not_count(tmp_path):
    path = tmp_path / "episodes.csv"
    CsvLog(path, EPISODES, ROWS).close()
    text = path.read_text()
    for cut in range(len(text)):
        path.write_text(text[:cut])
        found = episodes_until(path, 1000)
        assert found == as_read(ROWS)[: len(found)]
    assert len(found) == 3


def test_no_file_no_episodes(tmp_path):
    assert episodes_until(tmp_path / "episodes.csv", 10) == []


def test_the_last_tenth_begins_after_nine_tenths_of_the_steps(tmp_path):
    path = tmp_path / "episodes.csv"
    path.write_text(
        "total_timesteps,return,length,env_index\n89,1,9,0\n90,2,9,1\n91,-4.5,9,0\n100,8.5,9,0\n101,7,9,0\n"
    )
    assert last_tenth(path, 100) == [-4.5, 8.5]  # step 101 came after a checkpoint of step 100
    assert last_tenth(path, 50) == []
    path.write_text("total_timesteps,return,length,env_index\n10,much,9,0\n")
    with pytest.raises(ValueError, match="much"):
        last_tenth(path, 10)


@pytest.mark.parametrize("name", ["a.csv", "a.csv.tmp"])
def test_no_table_is_written_through_a_link(tmp_path, name):
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (tmp_path / name).symlink_to(precious)
    log = CsvLog(tmp_path / "a.csv", ["x"], [{"x": 1}])
    log.add([{"x": 2}])
    log.close()
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
