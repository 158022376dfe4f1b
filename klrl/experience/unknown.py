"""Ids that Gymnasium does not know: why, and what can be done about that."""

from __future__ import annotations

import gymnasium as gym

from klrl.text import nearest, one_line

_EXTRAS = {"ale_py": "atari", "minigrid": "pixels", "highway_env": "pixels"}
"""Packages that one of klrl's extras installs."""
_PARTS = ("box2d", "mujoco")
"""Extras of klrl and of Gymnasium whose names are the same."""
_MODULES = {"MiniGrid": "minigrid", "BabyAI": "minigrid"}
"""Modules that register ids, by their first word."""


def why_not_installed(error: Exception) -> str:
    """Reason why Gymnasium cannot make an environment here, with klrl's extra where there is one."""
    said = one_line(error)
    what, installed, how = said.partition(" is not installed")
    extra = next((extra for extra in _PARTS if installed and f"gymnasium[{extra}]" in how), None)
    return said if extra is None else f"{what}{installed}; allowed: pip install 'klrl[{extra}]'"


def why_unknown(module: str, name: str, error: Exception) -> str:
    """Reason why an id cannot be made here, and a remedy."""
    space = name.partition("/")[0]
    if isinstance(error, ModuleNotFoundError):
        if (extra := _EXTRAS.get(str(error.name))) is not None:
            return f"{one_line(error)}; allowed: pip install 'klrl[{extra}]'"
        if str(error.name).partition(".")[0] != module.partition(".")[0]:
            return f"{one_line(error)}, which {module} needs; allowed: a module that can be imported"
        return f"{one_line(error)}; allowed: MODULE:ID with a module that can be imported"
    if isinstance(error, gym.error.NamespaceNotFound):
        said = f"nobody has registered {space} here"
        return f"{said}{nearest(name, gym.registry) or f'; allowed: MODULE:{name} with the module that registers it'}"
    hint = nearest(name, gym.registry) or "; allowed: a registered Gymnasium id"
    if (known := _MODULES.get(name.partition("-")[0])) is not None and known != module:
        return f"nobody has registered it here; allowed: {known}:{name} (pip install 'klrl[{_EXTRAS[known]}]')"
    if isinstance(error, gym.error.NameNotFound):
        return f"unknown{hint}"
    return f"unknown version{hint}" if isinstance(error, gym.error.VersionNotFound) else f"{one_line(error)}{hint}"
