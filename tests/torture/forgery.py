"""Saved agents changed by somebody who knows how klrl writes them: with right digests, sizes and names."""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from klrl.run import checkpoint
from klrl.run.checkpoint import MANIFEST
from klrl.run.sealed import sealed


@dataclass(frozen=True)
class Victim:
    """A run with one checkpoint, and what an attack may try to reach beside it."""

    run_dir: Path
    outside: Path
    """A folder with files of somebody else's."""
    marker: Path
    """What the attack's code would create."""

    @property
    def saved(self) -> Path:
        """The checkpoint."""
        return next(p for p in (self.run_dir / "checkpoints").iterdir() if (p / MANIFEST).exists())

    def file(self, kind: str) -> Path:
        """The checkpoint's file of a kind: MANIFEST, agent or tensors."""
        return next(self.saved.glob(f"{kind}*"))

    def command(self) -> str:
        """What a shell would do to create the marker."""
        return f"touch {self.marker}"

    def seal(
        self, agent: bytes | None = None, tensors: bytes | None = None, change: Callable[[Any], Any] = lambda x: x
    ) -> None:
        """Put other files in, and a manifest that fits them; ``change`` has the last word about the manifest."""
        saved, given = self.saved, {"agent": agent, "tensors": tensors}
        files: dict[str, Any] = {}
        for kind, suffix in (("agent", "json"), ("tensors", "safetensors")):
            new, old = given[kind], self.file(kind)
            data = old.read_bytes() if new is None else new
            old.unlink()
            digest = hashlib.sha256(data).hexdigest()
            files[kind] = {"name": f"{kind}-{digest[:16]}.{suffix}", "size": len(data), "sha256": digest}
            (saved / files[kind]["name"]).write_bytes(data)
        manifest = change({"format": checkpoint.FORMAT, "files": files})
        text = sealed(manifest) if isinstance(manifest, dict) else json.dumps(manifest).encode()
        (saved / MANIFEST).write_bytes(text)

    def forge(self, change: Callable[[dict[str, Tensor], dict[str, Any]], Any]) -> None:
        """Change tensors and JSON in place, or return other JSON."""
        tensors, state = checkpoint.read(self.saved)
        state = copy.deepcopy(state)
        other = change(tensors, state)
        self.seal(json.dumps(state if other is None else other).encode(), save(tensors))


def raw_safetensors(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    """A file with whatever header: an object to be written as JSON, or its bytes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(dtype: str, shape: list[int], start: int, end: int) -> dict[str, Any]:
    """What a header says about a tensor."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def pickled(command: str) -> bytes:
    """A pickle that runs a command when it is read; written by hand (protocol 0)."""
    return f"cposix\nsystem\n(S{command!r}\ntR.".encode()


def paths_of(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value in JSON."""
    items = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    return [at, *(path for key, inner in items for path in paths_of(inner, (*at, key)))]


def put(value: Any, path: tuple[Any, ...], new: Any) -> None:
    """Replace what is there."""
    for key in path[:-1]:
        value = value[key]
    value[path[-1]] = new


WRONG: tuple[Any, ...] = (None, "x", [], {}, -1, math.nan, math.inf, 10**400, 10**9, True, "\x1b[2J\n<script>", [[[]]])
"""Values that hardly any field allows."""
