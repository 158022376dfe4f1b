"""Policies to audit by their paths: klrl's saved agents and runs, zips of Stable-Baselines3, directories of either."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from klrl.agents.own_networks import of_flag, saved_name
from klrl.agents.saved_policy import SavedPolicy
from klrl.audit import AuditedPolicy
from klrl.experience.environments import check_id, factory
from klrl.experience.wrapped import Named
from klrl.integrations.sb3_policy import SB3Policy, beside, read_policy
from klrl.integrations.sb3_reader import NotEnough, Reader
from klrl.run import checkpoint
from klrl.scripts.cli.environments import environment
from klrl.text import plain, printable


class Opened:
    """Policies to compare, and the environment to play them in.

    Args:
        paths: two of them, or a directory of checkpoints.
        env: environment by its id; by default the one that a saved agent of klrl names.
        vec_normalize: files of VecNormalize, or "none", for the zips in their order.
        trust: whether Stable-Baselines3 itself may load what reading is not enough for.
        network: ``MODULE:NAME`` of what made networks of one's own.

    Raises:
        FileNotFoundError: nothing is saved there.
        ValueError: a file is damaged, a VecNormalize is missing, or there is no environment.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        env: str | None,
        vec_normalize: Sequence[str],
        trust: bool,
        network: str | None = None,
    ) -> None:
        self._trust, self._given, self._network = trust, env, network
        self._envs: list[dict[str, Any]] = []
        if len(paths) == 1:
            found = self._read(_in_order(paths[0]), vec_normalize, statistics_beside=True)
            found = _each_once(found)
            names = [_short(Path(policy.origin["path"])) for policy in found]
        else:
            found, names = self._read(paths, vec_normalize), ["A", "B"]
        self.policies = [replace(policy, name=name) for policy, name in zip(found, names, strict=True)]
        if env is None and not self._envs:
            raise ValueError("env = none; allowed: --env ID (a zip of Stable-Baselines3 names no environment)")
        self.env: Named = environment(self._envs[0], env) if self._envs else str(env)
        if isinstance(self.env, str):
            check_id(self.env)

    def _read(
        self, files: Sequence[Path], vec_normalize: Sequence[str], *, statistics_beside: bool = False
    ) -> list[AuditedPolicy]:
        zips = [path for path in files if not path.is_dir()]
        if vec_normalize and len(vec_normalize) != len(zips):
            said = " ".join(vec_normalize)
            raise ValueError(f"vecnormalize = {said}; allowed: one file, or none, for each of {len(zips)} zips")
        known: Sequence[str | None] = vec_normalize or [
            _saved_with(path) if statistics_beside else None for path in zips
        ]
        statistics = iter(known)
        with Reader() as reader:  # a process, once there is something to read
            return [self._klrl(path) if path.is_dir() else self._sb3(path, next(statistics), reader) for path in files]

    def _klrl(self, path: Path) -> AuditedPolicy:
        tensors, state = checkpoint.read(path)
        config = state.get("config")
        network = of_flag(path, config, self._network if saved_name(config) else None)
        with checkpoint.as_damage(path):
            saved = SavedPolicy(tensors, state, network)
            name, steps = plain(state["agent"], 80), int(state["num_timesteps"])
            if state["env"] is not None:
                self._envs.append(dict(state["env"]))
        count = saved.normalizer.moments.count
        origin = {
            "path": str(path), "library": "klrl", "algorithm": name.upper(), "num_timesteps": steps,
            "statistics": f"inside, of {count} observations" if count else None,
        }  # fmt: skip
        return AuditedPolicy.of_agent("", saved, origin)

    def _sb3(self, path: Path, vec_normalize: str | None, reader: Reader) -> AuditedPolicy:
        try:
            found = read_policy(path, vec_normalize, reader)
        except NotEnough:
            if not self._trust:
                raise
            return _trusted(path, vec_normalize, reader, self._given)
        return _of_zip(found, vec_normalize)


def _of_zip(found: SB3Policy, vec_normalize: str | None) -> AuditedPolicy:
    """Return a policy that was read from a zip."""
    origin = {
        "path": str(found.model.path), "library": f"stable-baselines3 {plain(found.model.version, 80)}",
        "algorithm": found.algorithm, "num_timesteps": int(found.model.settings.get("num_timesteps", 0)),
        "statistics": None if found.statistics is None else vec_normalize,
    }  # fmt: skip
    return AuditedPolicy.of("", found, origin)


def _trusted(path: Path, vec_normalize: str | None, reader: Reader, env: str | None) -> AuditedPolicy:
    """Return a policy that Stable-Baselines3 loads."""
    from klrl.integrations.sb3_trusted import TrustedPolicy

    said = f"{path}: Stable-Baselines3 loads it and executes what is in it (--trust)"
    print(printable(said), file=sys.stderr, flush=True)
    given = None if vec_normalize in (None, "none") else reader.statistics(str(vec_normalize))
    space = None
    if env is not None:
        check_id(env)
        with factory(env)() as one:
            space = one.observation_space
    found = TrustedPolicy(path, given, space)
    if vec_normalize is None and found.used_vec_normalize:
        raise ValueError(f"path = {path} was trained on a VecNormalize; allowed: --vecnormalize FILE, or none")
    origin = {
        "path": str(path), "library": "stable-baselines3, loaded by itself", "algorithm": found.algorithm,
        "num_timesteps": int(found.model.num_timesteps), "statistics": None if given is None else vec_normalize,
    }  # fmt: skip
    return AuditedPolicy.of("", found, origin)


def _in_order(folder: Path) -> list[Path]:
    """Return the zips in a directory, or the checkpoints of a run.

    Raises:
        ValueError: fewer than two of them.
    """
    if not folder.is_dir():
        raise ValueError(f"paths = {folder}; allowed: two saved policies, or a directory of checkpoints")
    inside = folder / "checkpoints" if (folder / "checkpoints").is_dir() else folder
    found = sorted(inside.glob("*.zip")) or sorted(path.parent for path in inside.glob(f"*/{checkpoint.MANIFEST}"))
    if len(found) < 2:
        raise ValueError(
            f"paths = {folder} has {len(found)} checkpoints; allowed: two or more, or another policy beside it"
        )
    return found


def _each_once(found: Sequence[AuditedPolicy]) -> list[AuditedPolicy]:
    """Return policies in the order of their steps, a run's best one only where no numbered checkpoint is the same."""
    best = [policy for policy in found if Path(policy.origin["path"]).name == checkpoint.BEST]
    numbered = [policy for policy in found if policy not in best]
    steps = {policy.origin["num_timesteps"] for policy in numbered}
    more = [policy for policy in best if policy.origin["num_timesteps"] not in steps]
    return sorted([*numbered, *more], key=lambda policy: policy.origin["num_timesteps"])


def _saved_with(path: Path) -> str | None:
    """Return the VecNormalize that was saved beside a zip, if there is one."""
    return None if (found := beside(path)) is None else str(found)


def _short(path: Path) -> str:
    """Return the steps of a run's checkpoint, or the name of a zip without its end."""
    return f"{int(path.name)}" if path.name.isdecimal() else path.stem
