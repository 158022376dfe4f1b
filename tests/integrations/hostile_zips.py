"""Zips as no library writes them: damaged, oversized, and with pickles that would execute something.

What they would execute is harmless: it makes a file, whose absence shows that nothing was executed.
"""

import base64
import io
import json
import os
import pickle
import struct
import zipfile

import numpy as np
import torch


class Call:
    """Pickles as the call of a function."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


def calls(marker):
    """Pickles that would make the file ``marker``, or take memory, by several ways."""
    touch = f"import pathlib; pathlib.Path({str(marker)!r}).touch()"
    shell = f"touch {marker}".encode()
    yield "os.system", pickle.dumps(Call(os.system, f"touch {marker}"))
    yield "eval", pickle.dumps(Call(eval, f"__import__('pathlib').Path({str(marker)!r}).touch()"))
    yield "exec", pickle.dumps(Call(exec, touch))
    yield "open", pickle.dumps(Call(open, str(marker), "w"))
    yield "old opcodes", f"cposix\nsystem\n(S'touch {marker}'\ntR.".encode()
    yield "inst", f"(S'touch {marker}'\niposix\nsystem\n.".encode()
    yield "obj", f"(cposix\nsystem\nS'touch {marker}'\no.".encode()
    yield (
        "dotted",
        b"\x80\x04\x8c\x02os\x8c\x0fsystem.__call__\x93X" + struct.pack("<I", len(shell)) + shell + b"\x85R.",
    )
    yield "state of a function", b"\x80\x04cnumpy\ndtype\nN}\x8c\x08__code__K\x01s\x86b."
    yield "state of a class", b"\x80\x04cgymnasium.spaces.box\nBox\nN}\x8c\x0c__setstate__K\x01s\x86b."
    yield "extension", b"\x80\x02\x82\x01."
    yield "persistent", b"\x80\x04K\x01Q."
    yield "memory of a function", pickle.dumps(Call(bytearray, 2**33))
    yield "memory of an array", pickle.dumps(Call(np.zeros, 2**33))
    yield "memory of the memo", b"\x80\x04Nr\xff\xff\xff\x7f."
    yield "memory of text", b"\x80\x04\x8d" + struct.pack("<Q", 2**40) + b"x."
    yield "memory of a list", b"\x80\x04](" + b"K\x01" * 10 + b"e" + b"0]" * 1_000_000 + b"."
    yield "many objects", b"\x80\x04(" + b"}" * 4_000_000 + b"t."
    yield "depth", b"\x80\x04" + b"(" * 400_000 + b"N" + b"t" * 400_000 + b"."
    yield "references", b"\x80\x04]\x94" + b"".join(b"]\x94(h\x00h\x00e" for _ in range(60)) + b"."
    yield "an array of objects", pickle.dumps(np.array([{}], object))
    yield "an array without bytes", _array((2**40,), b"")
    yield "an array of negative size", _array((-1,), b"\0" * 8)
    yield "an array of a shape of its own", _array((2**62, 4), b"\0" * 8)
    yield "no end", pickle.dumps({})[:-1]
    yield "empty", b""
    yield "noise", np.random.default_rng(0).bytes(2_000)


def _array(shape, data):
    """An array as numpy pickles it, with this shape and these bytes."""

    class Array:
        def __reduce__(self):
            return np.zeros(1).__reduce__()[0], (np.ndarray, (0,), b"b"), (1, shape, np.dtype("f8"), False, data)

    return pickle.dumps(Array())


def members(path):
    """The members of a zip, by name."""
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(path, contents, **more):
    """Write members, in pairs or by name, to a zip."""
    with zipfile.ZipFile(path, "w", **more) as archive:
        for name, data in contents.items() if isinstance(contents, dict) else contents:
            archive.writestr(name, data)
    return path


def crafted(good, folder, marker):
    """Yield about 200 paths of zips made from a good one, each with what is wrong with it."""
    whole, inside = good.read_bytes(), members(good)
    data = json.loads(inside["data"])
    rng = np.random.default_rng(0)

    def put(name, contents, **more):
        return name, zipped(folder / f"{name}.zip".replace(" ", "-"), contents, **more)

    def raw(name, content):
        path = folder / f"{name}.zip".replace(" ", "-")
        path.write_bytes(content)
        return name, path

    def with_entry(name, key, entry):
        return put(name, inside | {"data": json.dumps(data | {key: entry}).encode()})

    for length in np.linspace(0, len(whole) - 1, 40).astype(int):
        yield raw(f"cut at {length}", whole[:length])
    with zipfile.ZipFile(good) as archive:
        places = [(archive.getinfo(name).header_offset + 60, len(inside[name]) - 60) for name in ("data", "policy.pth")]
    for i in range(40):
        flipped, (start, length) = bytearray(whole), places[i % 2]
        flipped[start + int(rng.integers(length))] ^= 1 << int(rng.integers(8))
        yield raw(f"bit {i}", bytes(flipped))
    for i in range(20):
        flipped = bytearray(whole)
        for _ in range(40):
            flipped[len(whole) - 1 - int(rng.integers(500))] ^= 1 << int(rng.integers(8))
        yield raw(f"directory with bits {i}", bytes(flipped))
    for name, code in calls(marker):
        entry = {":type:": "<class 'gymnasium.spaces.box.Box'>", ":serialized:": base64.b64encode(code).decode()}
        large = len(code) > 100_000
        for key in ("observation_space",) if large else ("observation_space", "policy_class", "policy_kwargs"):
            yield with_entry(f"{key} {name}", key, entry)
    for name in ("os.system", "exec"):
        code = dict(calls(marker))[name]
        yield put(f"parameters {name}", inside | {"policy.pth": code})
        yield put(f"parameters in a zip {name}", inside | {"policy.pth": _inner(inside["policy.pth"], code)})
    for first, second in (("data", "policy.pth"), ("policy.pth", "policy.optimizer.pth"), ("data", "system_info.txt")):
        swapped = inside | {first: inside[second], second: inside[first]}
        yield put(f"{first} swapped with {second}", swapped)
    for name in ("data", "policy.pth", "_stable_baselines3_version"):
        yield put(f"without {name}", {k: v for k, v in inside.items() if k != name})
        yield put(f"empty {name}" if name != "_stable_baselines3_version" else "long version", inside | {
            name: b"" if name != "_stable_baselines3_version" else b"9" * 5000
        })  # fmt: skip
    for name in ("../evil", "/etc/evil", "a/b", "a\\b", ".hidden", "new\nline", "\u202egnp"):
        yield put(f"path {ascii(name)[1:-1].replace('/', '_')}", [*inside.items(), (name, b"x")])
    yield put("many members", [*inside.items(), *((f"m{i}", b"") for i in range(20_000))])
    for name, content in (
        ("data", b"[]"),
        ("data", b"{"),
        ("data", b"\xff\xfe"),
        ("data", b"[" * 10**6),
        ("data", b"{}"),
    ):
        yield put(f"data {content[:2].hex()} {len(content)}", inside | {name: content})
    deflated = {"compression": zipfile.ZIP_DEFLATED}
    yield put("bomb data", inside | {"data": b" " * 2**26}, **deflated)
    yield put("bomb parameters", inside | {"policy.pth": bytes(2**26)}, **deflated)
    yield put("bomb beside", inside | {"policy.optimizer.pth": bytes(2**26), "data": b"{}"}, **deflated)
    yield put("lzma", inside, compression=zipfile.ZIP_LZMA)
    yield raw("claimed size", _claiming(good, inside, 2**30))
    yield raw("encrypted", _encrypted(whole))
    for name, x in tensors():
        weights = torch.load(io.BytesIO(inside["policy.pth"]), weights_only=True)
        weights["action_net.weight"] = x
        yield put(f"parameter {name}", inside | {"policy.pth": as_file(weights)})
    for key, entry in (("observation_space", 3), ("action_space", None), ("policy_kwargs", []), ("use_sde", True)):
        yield with_entry(f"{key} is {entry}", key, entry)
    yield with_entry("base64", "action_space", data["action_space"] | {":serialized:": "%%%"})


def tensors():
    """Parameters that no policy has."""
    yield "huge by strides", torch.zeros(1).expand(2**33)
    yield "of bits", torch.zeros(2, 64, dtype=torch.bool)
    yield "of complex numbers", torch.zeros(2, 64, dtype=torch.complex64)
    yield "sparse", torch.zeros(2, 64).to_sparse()
    yield "of another shape", torch.zeros(3, 64)
    yield "with NaN", torch.full((2, 64), torch.nan)
    yield "of float64", torch.zeros(2, 64, dtype=torch.float64)
    yield "large", torch.zeros(11 * 2**20)


def as_file(x):
    """Bytes that ``torch.save`` writes."""
    file = io.BytesIO()
    torch.save(x, file)
    return file.getvalue()


def _inner(parameters, code):
    """The zip that torch writes, with another pickle in it."""
    with zipfile.ZipFile(io.BytesIO(parameters)) as archive:
        inside = {name: archive.read(name) for name in archive.namelist()}
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in inside.items():
            archive.writestr(name, code if name.endswith("data.pkl") else data)
    return file.getvalue()


def _claiming(good, inside, size):
    """The zip whose directory and headers say that ``data`` has another size."""
    found, start = bytearray(good.read_bytes()), 0
    true = struct.pack("<I", len(inside["data"]))
    while (start := found.find(true, start)) >= 0:
        found[start : start + 4] = struct.pack("<I", size)
        start += 4
    return bytes(found)


def _encrypted(whole):
    """The zip whose directory says that every member is encrypted."""
    found, start = bytearray(whole), 0
    while (start := found.find(b"PK\x01\x02", start)) >= 0:
        found[start + 8] |= 1
        start += 4
    return bytes(found)
