"""Old names: for one version, a subclass that defines a method under one and code that uses one get the new one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from importlib import import_module
from operator import attrgetter
from typing import Any

from klrl.text import warn_user

GOES = "the old name goes with klrl 0.2"


def adopt(cls: type, names: Mapping[str, str]) -> None:
    """Give a new subclass under their new names the methods that it, or a mixin, defines under old ones.

    To be called by ``__init_subclass__``, before :func:`keep_old_names`. A method counts under its old name where a
    class finds it before any definition under the new one. One DeprecationWarning names all of a class.

    Args:
        cls: the subclass.
        names: old name -> new name.
    """
    said = []
    for old, new in names.items():
        defined = steps_to(cls, old)
        if defined < steps_to(cls, new) and _forwards(vars(cls.__mro__[defined])[old], new):
            said.append(f"{cls.__name__}.{old} calls {new} and is not taken for it")
        elif defined < steps_to(cls, new):
            setattr(cls, new, vars(cls.__mro__[defined])[old])
            cls._old_names = _old_names(cls) | {old}  # type: ignore[attr-defined]
            said.append(f"{cls.__name__}.{old} is {new} now")
        elif defined == 0 and vars(cls)[old] is not vars(cls).get(new) and _calls(vars(cls)[old]) is None:
            said.append(f"{cls.__name__}.{old} does not count beside {new}")
    if said:
        warn_user(f"{', '.join(said)}; {GOES}", DeprecationWarning)


def keep_old_names(cls: type, names: Mapping[str, str]) -> None:
    """Let methods be called by their old names, too: on instances, on the class and by ``super()``.

    Args:
        cls: a class that has all methods under their new names.
        names: old name -> new name.
    """
    for old, new in names.items():
        owner = next(base for base in cls.__mro__ if new in vars(base))
        there = getattr(cls, old, None)
        replaced = callable(there) and old in _old_names(cls) if _calls(there) is None else _calls(there) is not owner
        if there is None or replaced:
            setattr(cls, old, _alias(cls, owner, old, new))


def moved(old: str, new: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """Make the ``__getattr__`` of a module whose names are in another one now.

    Args:
        old: the module.
        new: the other one.
        names: old name -> new name.
    """

    def find(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {old!r} has no attribute {name!r}")
        warn_user(f"{old}.{name} is {new}.{names[name]} now; {GOES}", DeprecationWarning)
        return getattr(import_module(new), names[name])

    return find


def attribute(of: str, old: str, new: str) -> Any:
    """Make the property by which an attribute, or a method, answers to its old name.

    Args:
        of: what users call its owner.
        old: the old name.
        new: the new name, from the owner on.
    """

    def read(self: Any) -> Any:
        warn_user(f"{of}.{old} is {of}.{new} now; {GOES}", DeprecationWarning)
        return attrgetter(new)(self)

    return property(read, doc=f"Old name of ``{new}``, for one version.")


def steps_to(cls: type, *names: str) -> int:
    """Return how many steps up its bases a class finds a method of one of these names; our aliases do not count."""
    found = (i for i, base in enumerate(cls.__mro__) for name in names if _is_defined(base, name))
    return next(found, len(cls.__mro__))


def _forwards(method: object, new: str) -> bool:
    """Tell whether a method calls the new one of the same object: taken for that, it would call itself."""
    names = getattr(getattr(method, "__code__", None), "co_names", ())
    return new in names and "super" not in names


def _is_defined(base: type, name: str) -> bool:
    x = vars(base).get(name)
    return (callable(x) or isinstance(x, classmethod)) and getattr(x, "put_in", None) is not base


def _old_names(cls: type) -> frozenset[str]:
    """Return the old names that the class, or a base of it, has defined methods under."""
    return getattr(cls, "_old_names", frozenset())


def _calls(x: object) -> type | None:
    """Return the class whose method an alias calls; ``None`` for anything else."""
    return getattr(x, "calls", None)


def _alias(cls: type, owner: type, old: str, new: str) -> Callable[..., Any]:
    """Make the method of class ``cls`` by which the one of class ``owner`` is called by its old name."""

    @wraps(vars(owner)[new])
    def alias(self: Any, *args: Any, **kwargs: Any) -> Any:
        if old not in _old_names(type(self)):  # else it was said when the class was made
            warn_user(f"{owner.__name__}.{old} is {owner.__name__}.{new} now; {GOES}", DeprecationWarning)
        return vars(owner)[new].__get__(self, type(self))(*args, **kwargs)

    alias.__doc__ = f"Call ``{new}`` by its old name.\n\n:meta private:"  # for Sphinx, which leaves it out
    alias.put_in, alias.calls = cls, owner  # type: ignore[attr-defined]
    return alias
