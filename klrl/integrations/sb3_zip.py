"""Zips of Stable-Baselines3 and the pickles in them, read without executing anything that stands there.

This is the only file of klrl that reads pickles and calls ``torch.load``; :mod:`klrl.integrations.sb3_process` uses it
in a process with limits. What a pickle can make is listed here: numbers, text, lists, dicts, arrays of numbers no
larger than their bytes, and attributes of spaces and running statistics. A name of anything else is kept as text; a
file that would call it is refused.
"""

from __future__ import annotations

import base64
import io
import json
import pickle
import re
import zipfile
from collections.abc import Callable
from typing import Any, BinaryIO, ClassVar

import numpy as np
import torch

MOST_BYTES = {"data": 2**23, "policy.pth": 40 * 2**20, "_stable_baselines3_version": 2**10, "pickle": 2**22}
"""Most bytes that are read of a zip's members, and of a pickle."""
_MOST_MEMBERS = 64
SPACES = ("Box", "Discrete", "MultiBinary", "MultiDiscrete")
"""Classes of spaces that are known."""


class Refused(ValueError):
    """A file is damaged, or wants more than to be read."""


class Unsupported(ValueError):
    """A file may be whole, but reading is not enough to know its policy."""


# -- pickles ------------------------------------------------------------------------------------


class Name:
    """A class or function that a pickle names; it is not imported, and cannot be called."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text

    def __call__(self, *_: Any) -> Any:
        """Refuse.

        Raises:
            Refused: always.
        """
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


class Attributes:
    """An object of a listed class, of which only the attributes are kept."""

    kind: ClassVar[str] = ""

    def __new__(cls, *args: Any) -> Attributes:
        """Make one without attributes; pickles give them afterwards.

        Raises:
            Refused: there are arguments.
        """
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


class Type:
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


class Array:
    """An array of numbers, copied from bytes."""

    __slots__ = ("numbers",)

    def __init__(self, numbers: np.ndarray | None = None) -> None:
        self.numbers = numbers

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, is_fortran, data = state
        self.numbers = _numbers(data, dtype, shape, "F" if is_fortran else "C")


def _numbers(data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    sized = type(shape) is tuple and len(shape) <= 32 and all(type(n) is int and n >= 0 for n in shape)
    if type(data) not in (bytes, bytearray) or type(dtype) is not Type or not sized or order not in ("C", "F"):
        raise Refused("it has an array that is not made of bytes")
    native = dtype.dtype.newbyteorder("=")
    return np.frombuffer(data, dtype.dtype).reshape(shape, order=order).astype(native)


def _scalar(dtype: Any, data: Any) -> Any:
    return _numbers(data, dtype, (), "C").item()


_CLASSES: dict[str, type] = {
    name: type(name.rpartition(".")[2], (Attributes,), {"kind": name.rpartition(".")[2]})
    for name in (
        *(
            f"{gym}.spaces.{kind.lower().replace('multi', 'multi_')}.{kind}"
            for gym in ("gymnasium", "gym")
            for kind in SPACES
        ),
        "stable_baselines3.common.vec_env.vec_normalize.VecNormalize",
        "stable_baselines3.common.running_mean_std.RunningMeanStd",
    )
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {"numpy.dtype": Type}
for _core in ("numpy.core", "numpy._core"):
    _FUNCTIONS |= {
        f"{_core}.multiarray._reconstruct": lambda *_: Array(),
        f"{_core}.multiarray.scalar": _scalar,
        f"{_core}.numeric._frombuffer": lambda data, dtype, shape, order, *_: Array(
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
        return _Made(_Nothing) if module.startswith("numpy.random.") else Name(text)


def unpickled(what: str, data: bytes) -> Any:
    """Return what a pickle makes of what is listed; ``what`` names it in messages.

    Raises:
        Refused: it is damaged, too large, or would make anything else.
    """
    if len(data) > MOST_BYTES["pickle"]:
        raise Refused(f"{what} has {len(data):,} bytes; allowed: at most {MOST_BYTES['pickle']:,}")
    try:
        return _Unpickler(io.BytesIO(data)).load()
    except Exception as error:
        said = str(error) if isinstance(error, Refused) else f"{type(error).__name__}: {error}"
        raise Refused(f"{what}: {said}") from error


# -- zips ---------------------------------------------------------------------------------------


def opened(file: BinaryIO) -> zipfile.ZipFile:
    """Open a zip.

    Raises:
        Refused: it is none.
    """
    try:
        return zipfile.ZipFile(file)
    except Exception as error:
        raise Refused(f"not a zip: {error}") from error


def members_of(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Return the members by name.

    Raises:
        Refused: there are too many, two of one name, or one with a path.
    """
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


def read_member(archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], name: str) -> bytes:
    """Return the bytes of a member.

    Raises:
        Refused: it is missing, damaged or too large.
    """
    if name not in members:
        raise Refused(f"it has no member {name!r}; allowed: what a model's save() wrote")
    info, most = members[name], MOST_BYTES[name]
    if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise Refused(f"its member {name!r} is encrypted or compressed in an unusual way")
    if info.file_size > most:
        raise Refused(f"its member {name!r} has {info.file_size:,} bytes; allowed: at most {most:,}")
    try:
        with archive.open(info) as member:
            return member.read(most + 1)
    except Exception as error:
        raise Refused(f"its member {name!r} cannot be read: {error}") from error


def json_object(text: bytes) -> dict[str, Any]:
    """Read the JSON of the member ``data``.

    Raises:
        Refused: it is damaged.
    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Refused(f"its member 'data' is no JSON: {type(error).__name__}") from error
    if not isinstance(data, dict):
        raise Refused("its member 'data' is no JSON object")
    return data


def entry_of(data: dict[str, Any], name: str) -> Any:
    """Return an entry of a model's JSON, which may be pickled.

    Raises:
        Refused: it would make what is not listed.
    """
    entry = data.get(name)
    if not isinstance(entry, dict) or ":serialized:" not in entry:
        return entry
    try:
        code = base64.b64decode(entry[":serialized:"], validate=True)
    except (TypeError, ValueError) as error:
        raise Refused(f"{name} is not written in base64") from error
    return unpickled(name, code)


def weights_of(data: bytes) -> dict[str, torch.Tensor]:
    """Read the parameters of a policy, float32, by name.

    Raises:
        Refused: they are damaged, or no plain arrays in the CPU's memory.
    """
    try:
        found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:
        raise Refused(f"its member 'policy.pth' cannot be read: {type(error).__name__}: {error}") from error
    if not isinstance(found, dict) or not all(type(name) is str for name in found):
        raise Refused("its member 'policy.pth' holds no parameters by name")
    for name, x in found.items():
        plain = type(x) is torch.Tensor and x.layout == torch.strided and x.device.type == "cpu"
        if not plain or x.dtype != torch.float32:
            raise Refused(f"its parameter {name!r} is no array of float32")
        if 4 * x.numel() > (size := x.untyped_storage().nbytes()):
            raise Refused(f"its parameter {name!r} has {x.numel():,} elements in {size:,} bytes")
    if sum(4 * x.numel() for x in found.values()) > MOST_BYTES["policy.pth"]:
        raise Refused(f"its parameters are larger than {MOST_BYTES['policy.pth']:,} bytes")
    return {name: x.contiguous().clone() for name, x in found.items()}
