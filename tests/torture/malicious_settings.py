"""Attacks by what a checkpoint says: settings, spaces, environments and tensors, all with right digests."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from klrl.run import checkpoint
from torture.forgery import Victim

Attack = tuple[str, Callable[[Victim], None]]
Change = Callable[[dict[str, Any], dict[str, Any]], Any]


def attacks() -> Iterator[Attack]:
    """What is done, and how."""
    for name, data in texts().items():
        yield f"JSON {name}", partial(_with_json, data=data)
    for name, change in {**_appetites(), **_environments(), **_numbers(), **_words()}.items():
        yield name, partial(Victim.forge, change=change)
    yield "settings that ask to be evaluated", lambda v: v.forge(_baits(v))
    yield "the same key twice", _twice


def _with_json(v: Victim, data: Callable[[], bytes]) -> None:
    v.seal(agent=data())


def texts() -> dict[str, Callable[[], bytes]]:
    """What is no JSON, is not what JSON is expected there, or costs too much to read."""
    return {
        "100,000 lists deep": lambda: b'{"agent":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        "900 objects deep": lambda: b'{"agent":' + b'{"a":' * 900 + b"1" + b"}" * 901,
        "of 2 MB that become a hundred": lambda: b"[" + b"{}," * 690_000 + b"{}]",
        "of 50 MB": lambda: b'{"agent":[' + b"{}," * 16_000_000 + b"{}]}",
        "that is a number of 10,000 digits": lambda: b"1" * 10_000,
        "that is a list": lambda: b"[1, 2]",
        "that is null": lambda: b"null",
        "that is not UTF-8": lambda: b'{"agent": "\xff\xfe"}',
        "with half a surrogate": lambda: b'{"agent": "\\ud800"}',
        "that is YAML": lambda: b"!!python/object/apply:os.system ['touch marker']",
    }


def _setting(**settings: Any) -> Change:
    return lambda tensors, state: state["config"].update(settings)


def _entry(**entries: Any) -> Change:
    return lambda tensors, state: state.update(entries)


def _space(name: str, **data: Any) -> Change:
    return lambda tensors, state: state[name].update(data)


def _appetites() -> dict[str, Change]:
    """What needs more memory than was saved."""
    deep: dict[str, Any] = {"class": "Discrete", "n": 2, "start": 0, "dtype": "int64"}
    wide = {"class": "Tuple", "spaces": [[i, deep] for i in range(15_000)]}
    for _ in range(300):
        deep = {"class": "Tuple", "spaces": [[0, deep]]}
    return {
        "hidden layers of 50,000 x 50,000": _setting(actor_hidden_sizes=[50_000, 50_000]),
        "hidden layers of 10^9": _setting(actor_hidden_sizes=[10**9]),
        "a critic of 20,000 x 20,000": _setting(critic_hidden_sizes=[20_000, 20_000]),
        "10,000 hidden layers": _setting(actor_hidden_sizes=[1] * 10_000),
        "10^9 environments": _setting(n_envs=10**9),
        "10^30 environments": _setting(n_envs=10**30),
        "10^9 actions": _space("action_space", n=10**9),
        "10^9 observations": _entry(observation_space={"class": "Discrete", "n": 10**9, "start": 0, "dtype": "int64"}),
        "10^10 bits of observation": _entry(observation_space={"class": "MultiBinary", "n": [100_000, 100_000]}),
        "a type of a gigabyte": _space("action_space", dtype="U1000000000"),
        "a space 300 spaces deep": _entry(observation_space=deep),
        "15,000 spaces": _entry(observation_space=wide),
        "a reference with large layers": _with_reference,
        "100,000 episodes": _entry(episodes=[[1.0, 1, 1, 0]] * 100_000),
    }


def _with_reference(tensors: dict[str, Any], state: dict[str, Any]) -> None:
    tensors |= {f"reference.{k}": v.clone() for k, v in tensors.items()}
    reference = {k: state[k] for k in ("observation_space", "action_space", "normalizer_count")}
    state["reference"] = reference | {"config": state["config"] | {"actor_hidden_sizes": [50_000, 50_000]}}


def _environments() -> dict[str, Change]:
    """Environments that are to be imported, or made with somebody else's arguments."""

    def env(id: Any, max_episode_steps: Any = None, **kwargs: Any) -> Change:
        return _entry(env={"id": id, "kwargs": kwargs, "max_episode_steps": max_episode_steps})

    return {
        "the environment evil:Evil-v0": env("evil:Evil-v0"),
        "the environment evil": env("evil"),
        "an environment of the module antigravity": env("antigravity:CartPole-v1"),
        "an old gym's environment": env("GymV21Environment-v0", env_id="evil:Evil-v0"),
        "an entry point as an argument": env("CartPole-v1", entry_point="evil:Evil"),
        "wrappers as an argument": env("CartPole-v1", additional_wrappers=[{"entry_point": "evil:Evil"}]),
        "a vector entry point": _entry(env={"id": "CartPole-v1", "kwargs": {}, "max_episode_steps": 5,
                                            "entry_point": "evil:Evil", "vector_entry_point": "evil:Evil"}),
        "an environment that needs another package": env("phys2d/CartPole-v1"),
        "a model from somewhere else": env("HalfCheetah-v5", xml_file="/etc/passwd"),
        "a time limit of text": env("CartPole-v1", "x"),
        "a time limit below 0": env("CartPole-v1", -1),
        "a time limit of 400 digits": env("CartPole-v1", 10**400),
        "an environment without a name": env(None),
        "an environment with a list for a name": env(["CartPole-v1"]),
        "an environment that is text": _entry(env="evil:Evil-v0"),
        "escapes in an environment's name": env("\x1b[2J\x1b]0;owned\x07\nX-v0"),
        "HTML in an environment's name": env("<script>alert(1)</script>-v0"),
        "text from right to left in an environment's name": env("\u202eX-v0\u2066"),
    }  # fmt: skip


def _numbers() -> dict[str, Change]:
    """Tensors of other types and sizes, and numbers that are none."""

    def tensor(name: str, f: Callable[[Any], Any]) -> Change:
        def change(tensors: dict[str, Any], state: dict[str, Any]) -> None:
            for key in [key for key in tensors if key.startswith(name)]:
                tensors[key] = f(tensors[key]).clone().contiguous()

        return change

    return {
        "networks of int8": tensor("actor.", lambda x: x.to(torch.int8)),
        "networks of complex numbers": tensor("actor.", lambda x: x.to(torch.complex64)),
        "networks of NaN": tensor("actor.", lambda x: x * float("nan")),
        "networks of another shape": tensor("actor.", lambda x: x[None]),
        "statistics of text's bytes": tensor("normalizer.", lambda x: x.to(torch.uint8)),
        "statistics of a negative variance": tensor("normalizer.variance", lambda x: -x),
        "random streams of the wrong size": tensor("streams.", lambda x: x[:7]),
        "random streams of ones": tensor("streams.", lambda x: x * 0 + 255),
        "an optimiser of another size": tensor("optimizer.", lambda x: x.reshape(-1)[:1]),
        "bounds of NaN": tensor("observation_space.", lambda x: x * float("nan")),
        "no tensors": lambda tensors, state: tensors.clear(),
    }


def _words() -> dict[str, Change]:
    """Names that are to be looked up, or shown."""
    return {
        "an agent with escapes in its name": _entry(agent="\x1b[2J\x07"),
        "an agent with HTML for a name": _entry(agent="<img src=x onerror=alert(1)>"),
        "an agent with a megabyte for a name": _entry(agent="A" * 10**6),
        "an agent with a list for a name": _entry(agent=["ppo"]),
        "a region of the class os.system": _setting(trust_region={"class": "os.system", "command": "touch marker"}),
        "a region with escapes in its name": _setting(trust_region="\x1b[2J\x07\n"),
        "a region with a list for a class": _entry(region={"class": ["x"]}),
        "regions 200 deep": lambda tensors, state: state.update(region=_nested(200)),
        "a setting with escapes in its name": lambda tensors, state: state["config"].update({"\x1b[2J": 1}),
        "a device of text": _setting(device="\x1b[2J cuda:99999999999999999999"),
        "a device of a number": _setting(device=7),
        "a reference to somewhere": _setting(reference="/etc/passwd"),
        "a space of the class os.system": _space("action_space", **{"class": "os.system"}),
    }


def _nested(depth: int) -> dict[str, Any]:
    region: dict[str, Any] = {"class": "TrustRegion"}
    for _ in range(depth):
        region = {"class": "All", "regions": [region]}
    return region


def _baits(v: Victim) -> Change:
    """Every text of the settings becomes a call."""

    def change(tensors: dict[str, Any], state: dict[str, Any]) -> None:
        bait = f"__import__('os').system({v.command()!r})"
        state["config"] = {name: bait if isinstance(x, str) else x for name, x in state["config"].items()}

    return change


def _twice(v: Victim) -> None:
    _, state = checkpoint.read(v.saved)
    v.seal(agent=json.dumps(state).replace('"agent"', '"agent": "os.system", "agent"', 1).encode())
