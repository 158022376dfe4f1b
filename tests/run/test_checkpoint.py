"""Saved state on disk: written whole or not at all, read without pickle, pruned."""

import errno
import hashlib
import json
import os
import random
import re
import shutil
import signal

import pytest
import torch
from safetensors.torch import load_file
from torture.processes import Fork

from klrl.run import checkpoint
from klrl.run.sealed import sealed

TENSORS = {
    "float": torch.randn(3, 4),
    "double": torch.tensor(1 / 3, dtype=torch.float64),
    "bytes": torch.arange(5, dtype=torch.uint8),
    "strided": torch.arange(6.0).view(2, 3).T,
    "empty": torch.zeros(0, 2),
    "gradient": torch.ones(2, requires_grad=True),
}
STATE = {"agent": "PPO", "nested": {"list": [1, 2.5, None]}}


@pytest.fixture
def saved(tmp_path):
    return checkpoint.write(tmp_path / "saved", TENSORS, STATE)


def saved_run(path, scores):
    """A run with one checkpoint every 100 steps; their names."""
    for i, score in enumerate(scores):
        checkpoint.write(checkpoint.step_directory(path, 100 * i), {}, {"ep_rew_mean": score})
    return sorted(p.name for p in (path / "checkpoints").iterdir())


def test_what_is_written_is_read_back_to_the_bit(saved):
    tensors, state = checkpoint.read(saved)
    assert {k: state[k] for k in STATE} == STATE
    assert tensors.keys() == TENSORS.keys()
    for name, x in TENSORS.items():
        assert tensors[name].dtype == x.dtype
        assert torch.equal(tensors[name], x.detach())


def test_a_saved_agent_is_json_and_safetensors_and_a_manifest_with_their_digests(saved):
    manifest = json.loads((saved / "MANIFEST.json").read_text())
    assert {p.name for p in saved.iterdir()} == {"MANIFEST.json", *(f["name"] for f in manifest["files"].values())}
    for file in manifest["files"].values():
        data = (saved / file["name"]).read_bytes()
        assert (file["size"], file["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    assert json.loads((saved / manifest["files"]["agent"]["name"]).read_text()) == STATE
    assert load_file(saved / manifest["files"]["tensors"]["name"]).keys() == TENSORS.keys()
    assert [p.name for p in saved.parent.iterdir()] == ["saved"]


def test_writing_again_replaces_what_was_there(saved):
    checkpoint.write(saved, {"other": torch.ones(1)}, {"agent": "TRPO"})
    tensors, state = checkpoint.read(saved)
    assert (list(tensors), state["agent"]) == (["other"], "TRPO")
    assert len(list(saved.iterdir())) == 3
    assert [p.name for p in saved.parent.iterdir()] == ["saved"]


def test_parents_are_made_and_an_empty_directory_is_taken(tmp_path):
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "a" / "b", tmp_path / "empty"):
        assert checkpoint.read(checkpoint.write(path, {}, STATE))[1]["agent"] == "PPO"


@pytest.mark.parametrize("name", ["directory", "file"])
def test_what_is_not_a_saved_agent_is_left_alone(tmp_path, name):
    path = tmp_path / name
    precious = path / "thesis.tex" if name == "directory" else path
    precious.parent.mkdir(exist_ok=True)
    precious.write_text("years of work")
    with pytest.raises(FileExistsError, match=f"{name} exists and is not a saved agent; allowed: a new path"):
        checkpoint.write(path, TENSORS, STATE)
    assert precious.read_text() == "years of work"


def test_a_write_that_fails_leaves_the_old_agent_and_nothing_else(saved):
    with pytest.raises(TypeError):
        checkpoint.write(saved, TENSORS, {"agent": object()})
    assert checkpoint.read(saved)[1]["agent"] == "PPO"
    assert [p.name for p in saved.parent.iterdir()] == ["saved"]


@pytest.mark.parametrize("path", ["nowhere", "."])
def test_reading_where_nothing_was_saved_says_so(tmp_path, path):
    with pytest.raises(FileNotFoundError, match=r"no saved agent there; allowed: a saved agent or a run directory"):
        checkpoint.read(tmp_path / path)


def damages():
    """Name and deed: every file cut, emptied, taken away, each of its bits turned at many places."""
    for kind in ("MANIFEST", "agent", "tensors"):
        yield f"{kind} cut", kind, lambda data: data[: len(data) // 2]
        yield f"{kind} one byte short", kind, lambda data: data[:-1]
        yield f"{kind} one byte more", kind, lambda data: data + b"\n"
        yield f"{kind} empty", kind, lambda data: b""
        yield f"{kind} gone", kind, None
        yield f"{kind} not text", kind, lambda data: b"\xff\xfe" + data[2:]


@pytest.mark.parametrize(("name", "kind", "damage"), list(damages()), ids=lambda x: x if isinstance(x, str) else "")
def test_a_damaged_agent_is_refused_with_its_path(saved, name, kind, damage):
    (file,) = saved.glob(f"{kind}*")
    if damage is None:
        file.unlink()
    else:
        file.write_bytes(damage(file.read_bytes()))
    error, text = (FileNotFoundError, "no saved agent") if name == "MANIFEST gone" else (ValueError, "is damaged: ")
    with pytest.raises(error, match=text) as caught:
        checkpoint.read(saved)
    assert "\n" not in str(caught.value)


def test_any_bit_that_turns_is_noticed(saved):
    g = random.Random(0)
    for file in saved.iterdir():
        data = file.read_bytes()
        for place in g.sample(range(len(data)), min(len(data), 150)):
            changed = bytearray(data)
            changed[place] ^= 1 << g.randrange(8)
            file.write_bytes(changed)
            with pytest.raises(ValueError, match=r"is damaged|has format"):
                checkpoint.read(saved)
        file.write_bytes(data)
    checkpoint.read(saved)


def test_files_of_two_agents_do_not_mix(saved, tmp_path):
    other = checkpoint.write(tmp_path / "other", {"x": torch.zeros(1)}, STATE | {"other": True})
    for kind in ("agent", "tensors"):
        (mine,), (its,) = saved.glob(f"{kind}*"), other.glob(f"{kind}*")
        before = mine.read_bytes()
        mine.write_bytes(its.read_bytes())
        with pytest.raises(ValueError, match="is damaged"):
            checkpoint.read(saved)
        mine.write_bytes(before)


@pytest.mark.parametrize("name", ["../agent-0123456789abcdef.json", "/etc/passwd", "agent.json", 7])
def test_a_manifest_that_points_elsewhere_is_refused(saved, name):
    manifest = json.loads((saved / "MANIFEST.json").read_text())
    manifest["files"]["agent"]["name"] = name
    del manifest["sha256"]
    (saved / "MANIFEST.json").write_bytes(sealed(manifest))
    with pytest.raises(ValueError, match="is damaged"):
        checkpoint.read(saved)


def test_a_link_to_elsewhere_is_refused(saved, tmp_path):
    (file,) = saved.glob("agent*")
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="is damaged"):
        checkpoint.read(saved)


@pytest.mark.parametrize("format", [1, 2, None])
def test_another_format_is_refused(saved, format):
    manifest = json.loads((saved / "MANIFEST.json").read_text())
    del manifest["sha256"]
    (saved / "MANIFEST.json").write_bytes(sealed(manifest | {"format": format}))
    with pytest.raises(ValueError, match=f"has format {format}; this klrl reads formats 3 and 4 and 5"):
        checkpoint.read(saved)


KILLED = """
import os, signal, sys, torch
from klrl.run import checkpoint
calls = int(sys.argv[2])
def dying(function):
    def call(*args, **kwargs):
        global calls
        calls -= 1
        if calls < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return call
os.fsync, os.replace, os.unlink = dying(os.fsync), dying(os.replace), dying(os.unlink)
checkpoint.write(sys.argv[1], {"x": torch.ones(2)}, {"agent": "new"})
"""


def test_killed_at_any_moment_of_a_write_the_old_agent_is_there_or_the_new_one(saved, tmp_path):
    found = []
    for calls in (*range(0, 16, 2), 17):
        checkpoint.write(saved, TENSORS, STATE)
        ended = Fork(["-c", KILLED, saved, str(calls)], tmp_path).wait()
        found.append((checkpoint.read(saved)[1]["agent"], ended.code))
    assert found[0] == ("PPO", -signal.SIGKILL)
    assert found[-1] == ("new", 0)
    assert ("new", -signal.SIGKILL) in found
    checkpoint.write(saved, TENSORS, STATE)
    assert len(list(saved.iterdir())) == 3


def test_a_run_is_read_at_its_newest_complete_checkpoint(tmp_path):
    saved_run(tmp_path, [1.0, 2.0, 0.0])
    checkpoint.step_directory(tmp_path, 10**7).mkdir()
    (tmp_path / "checkpoints" / ".000000000900.0a1b2c3d").mkdir()
    assert checkpoint.read(tmp_path)[1]["ep_rew_mean"] == 0.0


def test_the_order_of_checkpoints_is_that_of_their_steps_not_of_their_digits(tmp_path):
    for steps in (999, 1_000, 12_345_678_901):
        checkpoint.write(checkpoint.step_directory(tmp_path, steps), {}, {"ep_rew_mean": steps})
        assert checkpoint.read(tmp_path)[1]["ep_rew_mean"] == steps


def test_a_damaged_checkpoint_falls_back_to_the_one_before_and_says_so(tmp_path):
    saved_run(tmp_path, [1.0, 2.0, 3.0])
    next(checkpoint.step_directory(tmp_path, 200).glob("tensors*")).write_bytes(b"half")
    with pytest.warns(RuntimeWarning, match=r"000000000200 is damaged.*going back to .*000000000100"):
        assert checkpoint.read(tmp_path)[1]["ep_rew_mean"] == 2.0


@pytest.mark.parametrize(
    ("scores", "kept"),
    [
        ([1.0, 2.0, 3.0, 4.0], [2, 3]),
        ([1.0, 9.0, 3.0, 4.0], [1, 2, 3]),
        ([9.0, 9.0, 3.0, 4.0], [1, 2, 3]),
        ([None, None, None, None], [2, 3]),
        ([None, -500.0, None, None], [1, 2, 3]),
        ([5.0], [0]),
    ],
    ids=["last is best", "older is best", "a tie keeps the newer", "no scores", "any score beats none", "fewer"],
)
def test_pruning_keeps_the_newest_and_the_best(tmp_path, scores, kept):
    names = saved_run(tmp_path, scores)
    checkpoint.prune(tmp_path, 2, tmp_path / "checkpoints" / names[-1])
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == [names[i] for i in kept]


def test_what_comes_after_the_newest_good_one_was_taken_back_damaged_or_not(tmp_path):
    names = saved_run(tmp_path, [1.0, 2.0, 3.0, 9.0])
    (tmp_path / "checkpoints" / names[-1] / "MANIFEST.json").write_text("{}")
    checkpoint.prune(tmp_path, 1, tmp_path / "checkpoints" / names[1])
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == [names[1]]


def test_nothing_is_deleted_if_the_newest_is_damaged(tmp_path):
    names = saved_run(tmp_path, [1.0, 2.0, 3.0])
    newest = tmp_path / "checkpoints" / names[-1]
    (newest / "MANIFEST.json").write_text("{}")
    with pytest.raises(checkpoint.Damaged):
        checkpoint.prune(tmp_path, 1, newest)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == names


def parts(*numbers):
    """Parts that were never written, one per number."""
    return [checkpoint.Part({"x": torch.full((1000,), float(i))}) for i in numbers]


def test_parts_are_read_back_in_their_order_whoever_wrote_their_files(tmp_path):
    many = parts(*range(12))
    first = checkpoint.write(tmp_path / "first", TENSORS, STATE, many)
    second = checkpoint.write(tmp_path / "second", TENSORS, STATE, [*many, *parts(12)], first)
    for path, n in ((first, 12), (second, 13)):
        tensors, _ = checkpoint.read(path)
        assert tensors.keys() == {*TENSORS, *(f"history.{i}.x" for i in range(n))}
        assert all(torch.equal(tensors[f"history.{i}.x"], torch.full((1000,), float(i))) for i in range(n))


def test_what_a_lender_has_is_linked_and_not_written_again(tmp_path):
    many = parts(*range(5))
    first = checkpoint.write(tmp_path / "first", {}, STATE, many)
    second = checkpoint.write(tmp_path / "second", {}, STATE, [*many, *parts(5)], first)
    ours = {p.name: p.stat().st_ino for p in second.glob("history*")}
    its = {p.name: p.stat().st_ino for p in first.glob("history*")}
    assert len(ours) == 6
    assert its.items() <= ours.items()


def test_a_checkpoint_with_links_can_be_copied_and_outlives_the_others(tmp_path):
    many = parts(*range(3))
    first = checkpoint.write(tmp_path / "first", {}, STATE, many)
    second = checkpoint.write(tmp_path / "second", {}, STATE, many, first)
    copied = shutil.copytree(second, tmp_path / "copied")
    shutil.rmtree(first)
    for path in (second, copied):
        assert len(checkpoint.read(path)[0]) == 3


@pytest.mark.parametrize("kind", ["no links", "gone", "cut", "a link", "taken"])
def test_what_cannot_be_linked_is_written(tmp_path, monkeypatch, kind):
    (part,) = many = parts(7)
    first = checkpoint.write(tmp_path / "first", {}, STATE, many)
    (file,) = first.glob("history*")
    if kind == "no links":
        monkeypatch.setattr(os, "link", lambda *names: (_ for _ in ()).throw(PermissionError(errno.EPERM, "no links")))
    elif kind == "taken":
        (tmp_path / "second").mkdir()
        (tmp_path / "second" / file.name).write_text("half")
    else:
        file.rename(tmp_path / "elsewhere")
        if kind == "cut":
            file.write_text("half")
        elif kind == "a link":
            file.symlink_to(tmp_path / "elsewhere")
    second = checkpoint.write(tmp_path / "second", {}, STATE, many, first)
    assert torch.equal(checkpoint.read(second)[0]["history.0.x"], part.tensors["x"])
    assert (second / file.name).stat().st_nlink == 1


def test_a_file_that_is_damaged_is_never_in_both_of_the_newest_two(tmp_path):
    many = parts(*range(3))
    for i in range(8):
        many += parts(100 + i)
        path = checkpoint.step_directory(tmp_path, i)
        checkpoint.write(path, {}, {"ep_rew_mean": 0.0, "i": i}, many, checkpoint.lender(tmp_path, 3))
        checkpoint.prune(tmp_path, 3, path)
    assert sum(p.stat().st_nlink > 1 for p in path.glob("history*")) >= 3
    with next(p for p in path.glob("history*") if p.stat().st_nlink > 1).open("r+b") as file:
        file.write(b"x")  # in place, and so in every checkpoint that shares it
    with pytest.warns(RuntimeWarning, match="going back to"):
        assert checkpoint.read(tmp_path)[1]["i"] == 6


@pytest.mark.parametrize("damage", ["gone", "one byte", "cut", "another's"])
def test_a_damaged_part_is_refused_with_its_path(tmp_path, damage):
    path = checkpoint.write(tmp_path / "saved", TENSORS, STATE, parts(1, 2))
    first, second = path.glob("history*")
    data = first.read_bytes()
    if damage == "gone":
        first.unlink()
    else:
        first.write_bytes({"one byte": data[:-1] + b"x", "cut": data[:-1], "another's": second.read_bytes()}[damage])
    with pytest.raises(ValueError, match=f"path = {path} is damaged"):
        checkpoint.read(path)


def test_an_older_klrl_is_told_that_it_cannot_read_this(saved):
    assert json.loads((saved / "MANIFEST.json").read_text())["format"] == 5


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.EMFILE, errno.ESTALE])
def test_a_file_that_cannot_be_read_now_is_no_damage(tmp_path, monkeypatch, number):
    saved_run(tmp_path, [1.0, 2.0])

    def fail(path, flags):
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr("klrl.run.disk.os.open", fail)
    with pytest.raises(OSError, match=re.escape(os.strerror(number))):
        checkpoint.read(tmp_path)


def test_a_checkpoint_of_another_version_is_no_damage(tmp_path):
    names = saved_run(tmp_path, [1.0, 2.0])
    manifest = {"format": 9, "files": {}}
    (tmp_path / "checkpoints" / names[-1] / "MANIFEST.json").write_bytes(sealed(manifest))
    with pytest.raises(checkpoint.OtherFormat, match="has format 9; this klrl reads format"):
        checkpoint.read(tmp_path)
