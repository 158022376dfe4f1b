"""Devices of networks: names, checked against the machine."""

from __future__ import annotations

import torch

AUTO = "auto"
"""Name of the machine's accelerator, if it has one, else of the CPU."""


def usable(name: str) -> torch.device:
    """Return a device that this machine has; ``"auto"`` is its first GPU, else the CPU.

    Raises:
        ValueError: it does not have this device.
    """
    count, mps = torch.cuda.device_count(), torch.backends.mps.is_available()
    if name == AUTO:
        return torch.device("cuda" if count else "mps" if mps else "cpu")
    found = torch.device(name)
    if (found.type == "cuda" and (found.index or 0) >= count) or (found.type == "mps" and not mps):
        have = ", ".join(["cpu", *(f"cuda:{i}" for i in range(count)), *(["mps"] if mps else [])])
        raise ValueError(f"device = {name!r}; allowed here: {have}")
    return found


def usable_or_cpu(name: str) -> str:
    """Return the device's name, or the CPU's if this machine has no such device."""
    try:
        usable(name)
    except ValueError:
        return "cpu"
    return name
