"""Program that reads files of Stable-Baselines3: paths come in, plain JSON and tensors go out.

:class:`klrl.integrations.sb3_reader.Reader` runs it in a process of its own. On top of what it has when it starts, it
may take 192 MiB of memory (where the system tells what it has: Linux) and a minute of computation per file; it writes
none. A file that cannot be read is answered by one line that says why.
"""

from __future__ import annotations

import json
import re
import resource
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from klrl.integrations.sb3_zip import (
    MOST_BYTES,
    SPACES,
    Array,
    Attributes,
    Name,
    Refused,
    Type,
    Unsupported,
    entry_of,
    json_object,
    members_of,
    opened,
    read_member,
    unpickled,
    weights_of,
)
from klrl.run.disk import open_regular_file
from klrl.text import plain

MOST_MEMORY = 192 * 2**20
"""Bytes of memory that reading may take."""
_MOST_SECONDS = 60
_FRAME = struct.Struct("<QQ")
Arrays = dict[str, np.ndarray]
Tensors = dict[str, torch.Tensor]


def _model(path: Path) -> tuple[dict[str, Any], Tensors]:
    """Read a zip that ``BaseAlgorithm.save`` wrote."""
    with open_regular_file(path) as file, opened(file) as archive:
        members = members_of(archive)
        data = json_object(read_member(archive, members, "data"))
        version = read_member(archive, members, "_stable_baselines3_version").decode("ascii", "replace").strip()
        described, spaces = _described(data)
        weights = weights_of(read_member(archive, members, "policy.pth"))
    tensors = {f"policy.{name}": x for name, x in weights.items()}
    return described | {"version": version}, tensors | {name: torch.from_numpy(x) for name, x in spaces.items()}


def _space(name: str, space: Any) -> tuple[dict[str, Any], Arrays]:
    """Describe a space as :func:`klrl.policy.spaces.describe_space` does."""
    kind, have = type(space).kind, vars(space)
    if kind == "MultiBinary":
        shape = have["n"]
        n: Any = [*map(int, shape)] if isinstance(shape, (tuple, list)) else int(_of_array(shape))
        return {"class": kind, "n": n}, {}
    dtype = have["dtype"].dtype if isinstance(have["dtype"], Type) else np.dtype(np.int64)
    data = {"class": kind, "dtype": str(dtype)}
    if kind == "Discrete":
        return data | {"n": int(have["n"]), "start": int(have.get("start", 0))}, {}
    first, second = ("low", "high") if kind == "Box" else ("nvec", "start")
    one = have[first].numbers
    other = have[second].numbers if kind == "Box" or isinstance(have.get(second), Array) else np.zeros_like(one)
    if one.shape != other.shape or one.dtype != other.dtype:
        raise Refused(f"{name} has a {first} and a {second} that do not fit each other")
    return data, {f"{name}.{first}": one, f"{name}.{second}": other}


def _statistics(path: Path) -> tuple[dict[str, Any], Tensors]:
    """Read a file that ``VecNormalize.save`` wrote."""
    with open_regular_file(path) as file:
        found = unpickled("the file", file.read(MOST_BYTES["pickle"] + 1))
    if not isinstance(found, Attributes) or type(found).kind != "VecNormalize":
        raise Refused("the file holds no VecNormalize; allowed: what VecNormalize.save wrote")
    have = vars(found)
    data: dict[str, Any] = {name: bool(have[name]) for name in ("norm_obs", "norm_reward")}
    data |= {name: float(have[name]) for name in ("clip_obs", "clip_reward", "epsilon", "gamma")}
    tensors: Tensors = {}
    if isinstance(have.get("obs_rms"), dict):
        raise Unsupported("VecNormalize has statistics of the parts of a Dict")
    for kind, asked in (("obs", data["norm_obs"]), ("ret", True)):
        if asked:
            rms = vars(have[f"{kind}_rms"])
            data[f"{kind}_count"] = float(rms["count"])
            for moment in ("mean", "var"):
                tensors[f"{kind}.{moment}"] = torch.from_numpy(np.array(_of_array(rms[moment]), np.float64))
    return data, tensors


def _of_array(x: Any) -> Any:
    return x.numbers if isinstance(x, Array) else float(x)


def _described(data: dict[str, Any]) -> tuple[dict[str, Any], Arrays]:
    """Return what is known of the model as plain JSON, and the arrays of its spaces."""
    kinds = {name: _class_of(data, name) for name in ("observation_space", "action_space")}
    for name, kind in kinds.items():
        if kind not in SPACES:
            raise Unsupported(f"{name} is of class {kind!r}")
    found: dict[str, Any] = {
        "policy_class": _named(data, "policy_class"),
        "policy_kwargs": {name: _said(x) for name, x in _kwargs(data).items()},
        "use_sde": data.get("use_sde"),
        "used_vec_normalize": None if data.get("_last_obs") is None else data.get("_last_original_obs") is not None,
        "settings": {name: x for name, x in data.items() if type(x) in (int, float, bool)} | _clip_range(data),
    }
    arrays: Arrays = {}
    for name in kinds:
        space = entry_of(data, name)
        if not isinstance(space, Attributes) or type(space).kind not in SPACES:
            raise Refused(f"{name} is no space")
        found[name], its = _space(name, space)
        arrays |= its
    return found, arrays


def _clip_range(data: dict[str, Any]) -> dict[str, float]:
    """Return PPO's clip range where it is a constant, which the text beside its pickle tells."""
    entry = data.get("clip_range")
    text = entry.get("value_schedule") if isinstance(entry, dict) else None
    found = re.fullmatch(r"ConstantSchedule\(val=(\d\.\d{1,20})\)", str(text))
    return {"clip_range": float(found[1])} if found else {}


def _class_of(data: dict[str, Any], name: str) -> str:
    """Return the class of a pickled entry, as the text beside it says."""
    entry = data.get(name)
    words = entry.get(":type:") if isinstance(entry, dict) else None
    return str(words).removeprefix("<class '").removesuffix("'>").rpartition(".")[2]


def _named(data: dict[str, Any], name: str) -> str:
    """Return the class that an entry names."""
    try:
        value = entry_of(data, name)
    except Refused as error:
        raise Unsupported(f"its {error}") from error
    if not isinstance(value, Name):
        raise Refused(f"{name} names no class")
    return value.text


def _kwargs(data: dict[str, Any]) -> dict[str, Any]:
    try:
        value = entry_of(data, "policy_kwargs")
    except Refused as error:
        raise Unsupported(f"its {error}") from error
    if not isinstance(value, dict) or not all(type(name) is str for name in value):
        raise Refused("policy_kwargs is no dict of names")
    return value


def _said(x: Any) -> Any:
    """Return a class by its name, a plain value as it is, and nothing of anything else."""
    if isinstance(x, Name):
        return x.text
    return x if x is None or type(x) in (bool, int, float, str) else "..."


def _limit_memory() -> None:
    """Limit this process to what it has and :data:`MOST_MEMORY` more, where the system says what it has (Linux)."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    sizes = Path("/proc/self/statm")
    if sizes.exists():
        have = int(sizes.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (have + MOST_MEMORY, have + MOST_MEMORY))


def _limit_time() -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    soft = int(used.ru_utime + used.ru_stime) + _MOST_SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def _answer(request: dict[str, str]) -> tuple[dict[str, Any], bytes]:
    """Read a file; return what it says, and its tensors as safetensors."""
    path = Path(request["path"])
    try:
        said, tensors = (_model if request["kind"] == "model" else _statistics)(path)
        return {"said": said}, save(tensors)
    except Unsupported as error:
        return {"unsupported": plain(error, 400)}, b""
    except OSError as error:
        return {"refused": plain(f"{error.strerror}", 400)}, b""
    except MemoryError:
        return {"refused": f"it takes more than {MOST_MEMORY // 2**20} MiB of memory to read"}, b""
    except Exception as error:
        why = error if isinstance(error, Refused) else f"it is damaged: {type(error).__name__}: {error}"
        return {"refused": plain(why, 400)}, b""


def main() -> None:
    """Answer requests until standard input ends."""
    torch.set_num_threads(1)
    _limit_memory()
    for line in sys.stdin.buffer:
        _limit_time()
        said, tensors = _answer(json.loads(line))
        text = json.dumps(said).encode()
        for part in (_FRAME.pack(len(text), len(tensors)), text, tensors):
            sys.stdout.buffer.write(part)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
