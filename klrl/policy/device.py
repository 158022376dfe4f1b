"""Devices of networks: names, checked against the machine."""

from __future__ import annotations

import torch


def usable(name: str) -> torch.device:
    """Return a device that this machine has.

    Raises:
        ValueError: it does not have this device.
    """
    count = torch.cuda.device_count()
    found = torch.device(name)
    if found.type == "cuda" and (found.index or 0) >= count:
        have = ", ".join(["cpu", *(f"cuda:{i}" for i in range(count))])
        raise ValueError(f"device = {name!r}; allowed here: {have}")
    return found


def usable_or_cpu(name: str) -> str:
    """Return the device's name, or the CPU's if this machine has no such device."""
    try:
        return str(usable(name))
    except ValueError:
        return "cpu"
