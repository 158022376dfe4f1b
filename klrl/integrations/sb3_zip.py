"""Zips of Stable-Baselines3 and files of its ``VecNormalize``, read without executing anything that stands in them.

This is the only file of klrl that reads pickles and calls ``torch.load``. It is a program, which
:class:`klrl.integrations.sb3_reader.Reader` runs in a process of its own: a path comes in by standard input, plain JSON
and tensors go out, or one line that says what is wrong. On top of what it has when it starts, the process may take
192 MiB of memory (where the system tells what it has: Linux) and a minute of computation per file; it writes no file.

What a file can make is listed here: numbers, text, lists, dicts, arrays of numbers no larger than their bytes, and
attributes of spaces and running statistics. A name of anything else is kept as text; a file that would call it is
refused.
"""

from __future__ import annotations

import base64
import io
import json
import pickle
import re
import resource
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np
import torch
from safetensors.torch import save

from klrl.run.disk import open_regular_file
from klrl.text import plain

MOST_MEMORY = 192 * 2**20
"""Bytes of memory that reading may take."""
_MOST_SECONDS = 60
_MOST = {"data": 2**23, "policy.pth": 40 * 2**20, "_stable_baselines3_version": 2**10, "pickle": 2**22}
"""Most bytes that are read of a zip's members, and of a pickle."""
_MOST_MEMBERS = 64
_SPACES = ("Box", "Discrete", "MultiBinary", "MultiDiscrete")
_FRAME = struct.Struct("<QQ")
Arrays = dict[str, np.ndarray]


class Refused(ValueError):
    """A file is damaged, or wants more than to be read."""


class Unsupported(ValueError):
    """A file may be whole, but reading is not enough to know its policy."""


# -- pickles ------------------------------------------------------------------------------------


class _Name:
    """A class or function that a pickle names; it is not imported, and cannot be called."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text

    def __call__(self, *_: Any) -> Any:
        raise Refused(f"it would call {self.text}; klrl executes nothing that a file says")

    __setstate__ = __call__


class _Made:
    """A function that pickles may call, because what it makes is bounded by the bytes that it is given."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make

    def __call__(self, *args: Any) -> Any:
        return self._make(*args)

    def __setstate__(self, state: Any) -> None:
        raise Refused("it would change a function")


class _Attributes:
    """An object of a listed class, of which only the attributes are kept."""

    kind: ClassVar[str] = ""

    def __new__(cls, *args: Any) -> _Attributes:
        if args:
            raise Refused(f"it would make a {cls.kind} of {len(args)} arguments")
        return object.__new__(cls)

    def __setstate__(self, state: Any) -> None:
        if type(state) is not dict or not all(type(name) is str for name in state):
            raise Refused(f"the state of its {self.kind} is no dict of names")
        self.__dict__.update(state)


class _Nothing:
    """An object of which nothing is needed: a random generator beside a space."""

    __slots__ = ()

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


class _Type:
    """A numpy type of single numbers."""

    __slots__ = ("dtype",)

    def __init__(self, text: Any, *_: Any) -> None:
        if type(text) is not str or not re.fullmatch("[biuf][1248]", text):
            raise Refused(f"it has an array of type {text!r}; allowed: numbers")
        self.dtype = np.dtype(text)

    def __setstate__(self, state: Any) -> None:
        if type(state) is not tuple or len(state) < 2 or state[1] not in ("<", ">", "|", "="):
            raise Refused("it has an array of a type of its own; allowed: numbers")
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """An array of numbers, copied from bytes."""

    __slots__ = ("numbers",)

    def __init__(self, numbers: np.ndarray | None = None) -> None:
        self.numbers = numbers

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, is_fortran, data = state
        self.numbers = _numbers(data, dtype, shape, "F" if is_fortran else "C")


def _numbers(data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    sized = type(shape) is tuple and len(shape) <= 32 and all(type(n) is int and n >= 0 for n in shape)
    if type(data) not in (bytes, bytearray) or type(dtype) is not _Type or not sized or order not in ("C", "F"):
        raise Refused("it has an array that is not made of bytes")
    native = dtype.dtype.newbyteorder("=")
    return np.frombuffer(data, dtype.dtype).reshape(shape, order=order).astype(native)


def _scalar(dtype: Any, data: Any) -> Any:
    return _numbers(data, dtype, (), "C").item()


_CLASSES: dict[str, type] = {
    name: type(name.rpartition(".")[2], (_Attributes,), {"kind": name.rpartition(".")[2]})
    for name in (
        *(
            f"{gym}.spaces.{kind.lower().replace('multi', 'multi_')}.{kind}"
            for gym in ("gymnasium", "gym")
            for kind in _SPACES
        ),
        "stable_baselines3.common.vec_env.vec_normalize.VecNormalize",
        "stable_baselines3.common.running_mean_std.RunningMeanStd",
    )
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {"numpy.dtype": _Type}
for _core in ("numpy.core", "numpy._core"):
    _FUNCTIONS |= {
        f"{_core}.multiarray._reconstruct": lambda *_: _Array(),
        f"{_core}.multiarray.scalar": _scalar,
        f"{_core}.numeric._frombuffer": lambda data, dtype, shape, order, *_: _Array(
            _numbers(data, dtype, shape, order)
        ),
    }


class _Unpickler(pickle.Unpickler):
    """Makes what is listed above."""

    def find_class(self, module: str, name: str) -> Any:
        """Return a stand-in for a class or function; nothing is imported."""
        text = f"{module}.{name}"
        if text in _CLASSES:
            return _CLASSES[text]
        if text in _FUNCTIONS:
            return _Made(_FUNCTIONS[text])
        return _Made(_Nothing) if module.startswith("numpy.random.") else _Name(text)


def _unpickled(what: str, data: bytes) -> Any:
    if len(data) > _MOST["pickle"]:
        raise Refused(f"{what} has {len(data):,} bytes; allowed: at most {_MOST['pickle']:,}")
    try:
        return _Unpickler(io.BytesIO(data)).load()
    except Exception as error:
        said = str(error) if isinstance(error, Refused) else f"{type(error).__name__}: {error}"
        raise Refused(f"{what}: {said}") from error


# -- what the pickles hold ----------------------------------------------------------------------


def _space(name: str, space: Any) -> tuple[dict[str, Any], Arrays]:
    """Describe a space as :func:`klrl.policy.spaces.describe_space` does."""
    kind, have = type(space).kind, vars(space)
    if kind == "MultiBinary":
        shape = have["n"].numbers.tolist() if isinstance(have["n"], _Array) else have["n"]
        return {"class": kind, "n": [*shape] if isinstance(shape, (tuple, list)) else int(shape)}, {}
    dtype = have["dtype"].dtype if isinstance(have["dtype"], _Type) else np.dtype(np.int64)
    data = {"class": kind, "dtype": str(dtype)}
    if kind == "Discrete":
        return data | {"n": int(have["n"]), "start": int(have.get("start", 0))}, {}
    first, second = ("low", "high") if kind == "Box" else ("nvec", "start")
    one = have[first].numbers
    other = have[second].numbers if kind == "Box" or isinstance(have.get(second), _Array) else np.zeros_like(one)
    if one.shape != other.shape or one.dtype != other.dtype:
        raise Refused(f"{name} has a {first} and a {second} that do not fit each other")
    return data, {f"{name}.{first}": one, f"{name}.{second}": other}


def _statistics(path: Path) -> tuple[dict[str, Any], Arrays]:
    """Read a file that ``VecNormalize.save`` wrote."""
    with open_regular_file(path) as file:
        found = _unpickled("the file", file.read(_MOST["pickle"] + 1))
    if not isinstance(found, _Attributes) or type(found).kind != "VecNormalize":
        raise Refused("the file holds no VecNormalize; allowed: what VecNormalize.save wrote")
    have = vars(found)
    data: dict[str, Any] = {name: bool(have[name]) for name in ("norm_obs", "norm_reward")}
    data |= {name: float(have[name]) for name in ("clip_obs", "clip_reward", "epsilon", "gamma")}
    arrays: Arrays = {}
    if isinstance(have.get("obs_rms"), dict):
        raise Unsupported("VecNormalize has statistics of the parts of a Dict")
    for kind, asked in (("obs", data["norm_obs"]), ("ret", True)):
        if asked:
            rms = vars(have[f"{kind}_rms"])
            data[f"{kind}_count"] = float(rms["count"])
            for moment in ("mean", "var"):
                arrays[f"{kind}.{moment}"] = np.asarray(_of_array(rms[moment]), np.float64)
    return data, arrays


def _of_array(x: Any) -> Any:
    return x.numbers if isinstance(x, _Array) else float(x)


# -- zips ---------------------------------------------------------------------------------------


def _model(path: Path) -> tuple[dict[str, Any], Arrays | dict[str, torch.Tensor]]:
    """Read a zip that ``BaseAlgorithm.save`` wrote."""
    with open_regular_file(path) as file, _archive(file) as archive:
        members = _members(archive)
        data = _json(_member(archive, members, "data"))
        version = _member(archive, members, "_stable_baselines3_version").decode("ascii", "replace").strip()
        described, spaces = _described(data)
        weights = _weights(_member(archive, members, "policy.pth"))
    tensors = {f"policy.{name}": x for name, x in weights.items()}
    return described | {"version": version}, tensors | {name: torch.from_numpy(x) for name, x in spaces.items()}


def _archive(file: BinaryIO) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(file)
    except Exception as error:
        raise Refused(f"not a zip: {error}") from error


def _members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    found = archive.infolist()
    if len(found) > _MOST_MEMBERS:
        raise Refused(f"it has {len(found)} members; allowed: at most {_MOST_MEMBERS}")
    for info in found:
        if not re.fullmatch(r"\w[\w.-]*", info.filename, re.ASCII):
            raise Refused(f"it has a member named {info.filename!r}; allowed: names without a path")
    members = {info.filename: info for info in found}
    if len(members) < len(found):
        twice = next(name for name in members if sum(info.filename == name for info in found) > 1)
        raise Refused(f"it has two members named {twice!r}")
    return members


def _member(archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], name: str) -> bytes:
    if name not in members:
        raise Refused(f"it has no member {name!r}; allowed: what a model's save() wrote")
    info, most = members[name], _MOST[name]
    if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise Refused(f"its member {name!r} is encrypted or compressed in an unusual way")
    if info.file_size > most:
        raise Refused(f"its member {name!r} has {info.file_size:,} bytes; allowed: at most {most:,}")
    try:
        with archive.open(info) as member:
            return member.read(most + 1)
    except Exception as error:
        raise Refused(f"its member {name!r} cannot be read: {error}") from error


def _json(text: bytes) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Refused(f"its member 'data' is no JSON: {type(error).__name__}") from error
    if not isinstance(data, dict):
        raise Refused("its member 'data' is no JSON object")
    return data


def _described(data: dict[str, Any]) -> tuple[dict[str, Any], Arrays]:
    """Return what is known of the model as plain JSON, and the arrays of its spaces."""
    kinds = {name: _class_of(data, name) for name in ("observation_space", "action_space")}
    for name, kind in kinds.items():
        if kind not in _SPACES:
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
        space = _value(data, name)
        if not isinstance(space, _Attributes) or type(space).kind not in _SPACES:
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


def _value(data: dict[str, Any], name: str) -> Any:
    """Return an entry, which may be pickled."""
    entry = data.get(name)
    if not isinstance(entry, dict) or ":serialized:" not in entry:
        return entry
    try:
        code = base64.b64decode(entry[":serialized:"], validate=True)
    except (TypeError, ValueError) as error:
        raise Refused(f"{name} is not written in base64") from error
    return _unpickled(name, code)


def _named(data: dict[str, Any], name: str) -> str:
    """Return the class that an entry names."""
    try:
        value = _value(data, name)
    except Refused as error:
        raise Unsupported(f"its {error}") from error
    if not isinstance(value, _Name):
        raise Refused(f"{name} names no class")
    return value.text


def _kwargs(data: dict[str, Any]) -> dict[str, Any]:
    try:
        value = _value(data, "policy_kwargs")
    except Refused as error:
        raise Unsupported(f"its {error}") from error
    if not isinstance(value, dict) or not all(type(name) is str for name in value):
        raise Refused("policy_kwargs is no dict of names")
    return value


def _said(x: Any) -> Any:
    """Return a class by its name, a plain value as it is, and nothing of anything else."""
    if isinstance(x, _Name):
        return x.text
    return x if x is None or type(x) in (bool, int, float, str) else "..."


def _weights(data: bytes) -> dict[str, torch.Tensor]:
    """Read the parameters of a policy."""
    try:
        found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:
        raise Refused(f"its member 'policy.pth' cannot be read: {type(error).__name__}: {error}") from error
    if not isinstance(found, dict) or not all(type(name) is str for name in found):
        raise Refused("its member 'policy.pth' holds no parameters by name")
    for name, x in found.items():
        if (
            type(x) is not torch.Tensor
            or x.layout != torch.strided
            or x.dtype != torch.float32
            or x.device.type != "cpu"
        ):
            raise Refused(f"its parameter {name!r} is no array of float32")
        if 4 * x.numel() > x.untyped_storage().nbytes():
            raise Refused(
                f"its parameter {name!r} has {x.numel():,} elements in {x.untyped_storage().nbytes():,} bytes"
            )
    if sum(4 * x.numel() for x in found.values()) > _MOST["policy.pth"]:
        raise Refused(f"its parameters are larger than {_MOST['policy.pth']:,} bytes")
    return {name: x.contiguous().clone() for name, x in found.items()}


# -- the process --------------------------------------------------------------------------------


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
        if request["kind"] == "model":
            said, tensors = _model(path)
        else:
            said, arrays = _statistics(path)
            tensors = {name: torch.from_numpy(x) for name, x in arrays.items()}
        return {"said": said}, save(tensors)  # type: ignore[arg-type]
    except Unsupported as error:
        return {"unsupported": plain(error, 400)}, b""
    except OSError as error:
        return {"refused": plain(f"{error.strerror}", 400)}, b""
    except MemoryError:
        return {"refused": f"it takes more than {MOST_MEMORY // 2**20} MiB of memory to read"}, b""
    except Exception as error:
        said = error if isinstance(error, Refused) else f"it is damaged: {type(error).__name__}: {error}"
        return {"refused": plain(said, 400)}, b""


def main() -> None:
    """Answer requests until standard input ends."""
    torch.set_num_threads(1)
    _limit_memory()
    for line in sys.stdin.buffer:
        _limit_time()
        said, tensors = _answer(json.loads(line))
        text = json.dumps(said).encode()
        sys.stdout.buffer.write(_FRAME.pack(len(text), len(tensors)) + text + tensors)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
