"""Hostile and damaged zips: nothing is executed, memory is bounded, and each is refused in one line."""

import base64
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hostile_zips import as_file, calls, crafted, members, zipped

from klrl.integrations import sb3_reader
from klrl.integrations.sb3_policy import read_policy
from klrl.integrations.sb3_reader import NotEnough, Reader


def peak(pid):
    """The largest memory that a process has had, in MiB."""
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())[1]) / 1024


def refusal(read, path):
    with pytest.raises(ValueError, match=re.escape(str(path))) as refused:
        read(path)
    return str(refused.value)


def test_crafted_zips_execute_nothing_take_little_memory_and_are_refused_in_one_line(saved, reader, tmp_path):
    good, marker = saved("cartpole").path, tmp_path / "executed"
    n, baseline, most, wrong = 0, 0.0, 0.0, []
    for name, path in crafted(good, tmp_path, marker):
        if n == 0 or reader.pid is None:
            refusal(reader.model, tmp_path / "nothing.zip")  # starts the process
            baseline = peak(reader.pid)
        n += 1
        try:
            read_policy(path, None, reader)
            wrong.append(f"{name}: read")
        except ValueError as error:
            said = str(error)
            if "\n" in said or len(said) > 700 or not said.startswith(f"path = {path}") or not said.isprintable():
                wrong.append(f"{name}: {said}")
        if reader.pid is not None:
            most = max(most, peak(reader.pid) - baseline)
        path.unlink()
    read_policy(good, None, reader)
    assert wrong == []
    assert n >= 200
    assert most < 200.0
    assert not marker.exists()


def test_pickles_that_execute_something_do_so_where_nobody_looks(tmp_path):
    """The same pickles, given to pickle itself: without this, the test above could not fail."""
    executed = []
    for name, code in calls(tmp_path / "executed"):
        if name in ("os.system", "eval", "exec", "open", "old opcodes", "inst", "obj", "dotted"):
            (tmp_path / "executed").unlink(missing_ok=True)
            program = "import pickle, sys; pickle.loads(sys.stdin.buffer.read())"
            subprocess.run([sys.executable, "-c", program], input=code, capture_output=True, check=False)
            executed.append((name, (tmp_path / "executed").exists()))
    assert executed == [(name, True) for name, _ in executed]
    assert len(executed) == 8


@pytest.mark.parametrize("name", ["os.system", "inst", "memory of an array", "memory of the memo", "noise"])
def test_a_vec_normalize_that_would_execute_something_is_refused(name, reader, tmp_path):
    file, marker = tmp_path / "statistics.pkl", tmp_path / "executed"
    file.write_bytes(dict(calls(marker))[name])
    said = refusal(reader.statistics, file)
    assert "\n" not in said
    assert not marker.exists()
    if name in ("os.system", "inst"):
        assert said.endswith("it would call posix.system; klrl executes nothing that a file says")


@pytest.mark.parametrize("kind", ["a link", "a pipe", "a folder", "nothing", "a device"])
def test_only_regular_files_are_opened(kind, saved, reader, tmp_path):
    path = tmp_path / "model.zip"
    match kind:
        case "a link":
            path.symlink_to(saved("cartpole").path)
        case "a pipe":
            os.mkfifo(path)
        case "a folder":
            path.mkdir()
        case "a device":
            path = Path("/dev/zero")
    assert "\n" not in refusal(reader.model, path)


def test_two_members_of_one_name_are_refused(saved, reader, tmp_path):
    inside = members(saved("cartpole").path)
    with pytest.warns(UserWarning, match="Duplicate name"):
        path = zipped(tmp_path / "twice.zip", [*inside.items(), ("data", b"{}")])
    assert refusal(reader.model, path) == f"path = {path}: it has two members named 'data'"


def test_a_process_that_a_file_ends_is_started_again(saved, reader):
    first = reader.model(saved("cartpole").path)
    process = reader._process
    process.kill()
    process.wait()
    assert "ended the process that read it" in refusal(reader.model, saved("cartpole").path)
    assert reader.model(saved("cartpole").path).weights.keys() == first.weights.keys()


def test_an_old_torch_is_refused(monkeypatch):
    monkeypatch.setattr(sb3_reader, "version", lambda name: "2.9.1+cpu")
    with (
        Reader() as reader,
        pytest.raises(NotEnough, match=r"^torch 2\.9\.1\+cpu cannot .*; allowed: torch >= 2\.10, or "),
    ):
        reader.model("model.zip")


def test_the_process_limits_itself(saved, reader):
    """Memory, files that it could write, time."""
    reader.model(saved("cartpole").path)
    limits = Path(f"/proc/{reader.pid}/limits").read_text()
    size = int(re.search(r"Max address space\s+(\d+)", limits)[1])
    have = int(re.search(r"VmSize:\s+(\d+) kB", Path(f"/proc/{reader.pid}/status").read_text())[1]) * 1024
    assert have <= size <= have + 200 * 2**20
    assert re.search(r"Max file size\s+0", limits)
    assert re.search(r"Max cpu time\s+\d+", limits)


def test_what_needs_more_than_reading_names_trust(saved, reader, tmp_path):
    inside = members(saved("elu").path)
    data = json.loads(inside["data"])
    entry = data["policy_kwargs"]
    code = base64.b64decode(entry[":serialized:"]).replace(
        b"torch.nn.modules.activation", b"a.module.of.someones.own.xx"
    )
    data["policy_kwargs"] = entry | {":serialized:": base64.b64encode(code).decode()}
    path = zipped(tmp_path / "own.zip", inside | {"data": json.dumps(data).encode()})
    with pytest.raises(NotEnough, match=r"activation a\.module\.of\.someones\.own\.xx\.ELU; allowed: .* --trust, "):
        read_policy(path, None, reader)


@pytest.mark.parametrize(
    "name", ["mlp_extractor.shared_net.0.weight", "features_extractor.cnn.0.weight", "pi.0.weight"]
)
def test_parameters_beside_the_layers_name_trust(name, saved, reader, tmp_path):
    """Zips of version 1 could have layers that actor and critic share."""
    inside = members(saved("cartpole").path)
    weights = torch.load(io.BytesIO(inside["policy.pth"]), weights_only=True) | {name: torch.zeros(4, 4)}
    path = zipped(tmp_path / "more.zip", inside | {"policy.pth": as_file(weights)})
    with pytest.raises(NotEnough, match=rf"its policy has the parameter {re.escape(name)}; allowed: "):
        read_policy(path, None, reader)
