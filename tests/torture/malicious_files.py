"""Attacks by the bytes, the names and the kinds of a checkpoint's files."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from klrl.run.checkpoint import MANIFEST
from torture.forgery import Victim, entry, pickled, raw_safetensors

Attack = tuple[str, Callable[[Victim], None]]
_DEEP = b"[" * 100_000 + b"]" * 100_000


def attacks() -> Iterator[Attack]:
    """What is done, and how."""
    yield from _pickles()
    yield from _archives()
    yield from _headers()
    yield from _manifests()
    yield from links_and_pipes()


def _pickles() -> Iterator[Attack]:
    for kind in ("MANIFEST", "agent", "tensors"):
        yield f"a pickle instead of {kind}", _pickle_instead_of(kind)
    yield "a sealed pickle instead of the tensors", lambda v: v.seal(tensors=pickled(v.command()))
    yield "a sealed pickle instead of the JSON", lambda v: v.seal(agent=pickled(v.command()))
    yield "a sealed torch archive with a pickle", lambda v: v.seal(tensors=_zip({"a/data.pkl": pickled(v.command())}))
    yield (
        "a sealed pickle behind the tensors",
        lambda v: v.seal(tensors=v.file("tensors").read_bytes() + pickled(v.command())),
    )


def _archives() -> Iterator[Attack]:
    yield "a zip bomb instead of the tensors", lambda v: v.seal(tensors=_zip({"x": bytes(2**28)}))
    yield "a zip bomb instead of the JSON", lambda v: v.seal(agent=_zip({"x": bytes(2**28)}))
    yield "a gzip bomb instead of the JSON", lambda v: v.seal(agent=gzip.compress(bytes(2**28), 1))
    yield "a zip bomb instead of the manifest", lambda v: _overwrite(v, "MANIFEST", _zip({"x": bytes(2**28)}))


def _headers() -> Iterator[Attack]:
    headers: dict[str, Callable[[], bytes]] = {
        "of tensors that overlap": lambda: raw_safetensors(
            {"a": entry("F32", [2], 0, 8), "b": entry("F32", [2], 4, 12)}, bytes(12)
        ),
        "that is longer than the file": lambda: raw_safetensors({}, length=10**6),
        "of 2^63 bytes": lambda: raw_safetensors({}, length=2**63),
        "of 2^64 - 1 bytes": lambda: raw_safetensors({}, length=2**64 - 1),
        "of a tensor without its data": lambda: raw_safetensors({"a": entry("F32", [10**9], 0, 4 * 10**9)}, bytes(8)),
        "of a shape that overflows": lambda: raw_safetensors({"a": entry("F32", [2**62, 4], 0, 0)}),
        "with negative offsets": lambda: raw_safetensors({"a": entry("F32", [2], -8, 0)}, bytes(8)),
        "with offsets turned round": lambda: raw_safetensors({"a": entry("F32", [2], 8, 0)}, bytes(8)),
        "with a negative shape": lambda: raw_safetensors({"a": entry("F32", [-2], 0, 8)}, bytes(8)),
        "with a type that is none": lambda: raw_safetensors({"a": entry("os.system", [2], 0, 8)}, bytes(8)),
        "with a type of another size": lambda: raw_safetensors({"a": entry("F64", [2], 0, 8)}, bytes(8)),
        "with a hole before the data": lambda: raw_safetensors({"a": entry("F32", [2], 8, 16)}, bytes(16)),
        "that is no JSON": lambda: raw_safetensors(b"{" * 50),
        "that is deep JSON": lambda: raw_safetensors(_DEEP),
        "with the same name twice": lambda: raw_safetensors(
            b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
            bytes(4),
        ),
        "with escapes in a name": lambda: raw_safetensors({"\x1b[2J\x07": entry("F99", [1], 0, 4)}, bytes(4)),
        "of half a million empty tensors": lambda: raw_safetensors(
            {str(i): entry("F32", [0], 0, 0) for i in range(500_000)}
        ),
        "of 14,000 empty tensors": lambda: raw_safetensors({str(i): entry("F32", [0], 0, 0) for i in range(14_000)}),
        "with megabytes of metadata": lambda: raw_safetensors({"__metadata__": {str(i): "x" for i in range(300_000)}}),
    }  # fmt: skip
    for name, data in headers.items():
        yield f"a header {name}", partial(_with_tensors, data=data)


def _manifests() -> Iterator[Attack]:
    def named(name: Any) -> Callable[[Victim], None]:
        return lambda v: v.seal(change=lambda m: _with(m, "name", name))

    def sized(size: Any) -> Callable[[Victim], None]:
        return lambda v: v.seal(change=lambda m: _with(m, "size", size))

    names = ("../../../outside/precious.txt", "/etc/passwd", ".", "", "agent-0123456789abcdef.json\0", "x" * 10_000)
    for name in (*names, 7, None, ["agent"], {"a": 1}):
        yield f"the manifest names {str(name)[:40]!r}", named(name)
    for size in (10**30, -1, True, "1", None, float("nan"), [1]):
        yield f"the manifest has the size {size!r}", sized(size)
    yield "the manifest has a size of 4,000 digits", sized(10**4000)
    yield "the manifest's digest is no text", lambda v: v.seal(change=lambda m: _with(m, "sha256", ["x"]))
    yield "the manifest is a list", lambda v: v.seal(change=lambda m: [m])
    yield "the manifest's files are a list", lambda v: v.seal(change=lambda m: m | {"files": [1]})
    yield (
        "the manifest names more files",
        lambda v: v.seal(change=lambda m: m | {"files": m["files"] | {"\x1b[2J": m["files"]["agent"]}}),
    )
    yield "the manifest has a format with escapes", lambda v: v.seal(change=lambda m: m | {"format": "\x1b[2J\x07\n"})
    yield "the manifest is deep", lambda v: _overwrite(v, "MANIFEST", _DEEP)
    yield "the manifest has 50 MB", lambda v: _overwrite(v, "MANIFEST", b"[" + b"{}," * 16_000_000 + b"{}]")
    yield (
        "the manifest has its keys twice",
        lambda v: _overwrite(
            v, "MANIFEST", v.file("MANIFEST").read_bytes().replace(b'"format"', b'"format": 1, "format"')
        ),
    )
    yield "the manifest has a number of 10,000 digits", lambda v: _overwrite(v, "MANIFEST", b"1" * 10_000)


def links_and_pipes() -> Iterator[Attack]:
    """Files and folders of a checkpoint that are none."""
    for kind in ("MANIFEST", "agent", "tensors"):
        yield f"{kind} is a link to the outside", partial(_moved, kind=kind)
        yield f"{kind} is a pipe", partial(_pipe, kind=kind)
        yield f"{kind} is a folder", partial(_folder, kind=kind)
        yield f"{kind} is a link to itself", partial(_loop, kind=kind)
    yield "the checkpoint is a link to the outside", _linked_checkpoint
    yield "the folder of checkpoints is a link to the outside", _linked_folder
    yield "a checkpoint's name has escapes", lambda v: _rename(v, "999999999999\x1b[2J\x07")
    yield "a checkpoint's name has 200 digits", lambda v: _rename(v, "9" * 200)


def _pickle_instead_of(kind: str) -> Callable[[Victim], None]:
    return lambda v: _overwrite(v, kind, pickled(v.command()))


def _with_tensors(v: Victim, data: Callable[[], bytes]) -> None:
    v.seal(tensors=data())


def _overwrite(v: Victim, kind: str, data: bytes) -> None:
    v.file(kind).write_bytes(data)


def _with(manifest: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    files = manifest["files"]
    return manifest | {"files": files | {"agent": files["agent"] | {key: value}}}


def _zip(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


def _moved(v: Victim, kind: str) -> None:
    file = v.file(kind)
    file.rename(v.outside / "moved")
    file.symlink_to(v.outside / "moved")


def _pipe(v: Victim, kind: str) -> None:
    if kind != "MANIFEST":
        v.seal(change=lambda m: m | {"files": m["files"] | {kind: m["files"][kind] | {"size": 0}}})
    file = v.file(kind)
    file.unlink()
    os.mkfifo(file)


def _folder(v: Victim, kind: str) -> None:
    file = v.file(kind)
    file.unlink()
    file.mkdir()


def _loop(v: Victim, kind: str) -> None:
    file = v.file(kind)
    file.unlink()
    file.symlink_to(file)


def _linked_checkpoint(v: Victim) -> None:
    saved = v.saved
    shutil.move(saved, v.outside / "saved")
    saved.symlink_to(v.outside / "saved")


def _linked_folder(v: Victim) -> None:
    folder = v.run_dir / "checkpoints"
    shutil.move(folder, v.outside / "checkpoints")
    folder.symlink_to(v.outside / "checkpoints")


def _rename(v: Victim, name: str) -> None:
    v.file("tensors").write_bytes(b"")
    assert json.loads((v.saved / MANIFEST).read_text())
    v.saved.rename(v.saved.with_name(name))
