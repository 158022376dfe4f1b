"""Connections to clusters of Ray: those that cannot be had are refused in one line."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import Any

from klrl.text import one_line

PATIENCE = 10.0
"""Seconds to wait for a connection to a cluster."""


def connected(address: str | None) -> Any:
    """Connect to a cluster, or begin one, and return the package."""
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "error")  # read when it is imported
    try:
        import ray
        import ray.util.scheduling_strategies
    except ImportError as error:
        raise ValueError(
            f"engine = 'ray': {one_line(error)}; allowed: pip install 'klrl[ray]', or engine = 'processes'"
        ) from error
    if ray.is_initialized():
        raise ValueError("engine = 'ray' while this process uses Ray already; allowed: after ray.shutdown()")
    quiet: dict[str, Any] = {"logging_level": "error", "log_to_driver": False}
    if address is None:
        ray.init(address="local", include_dashboard=False, **quiet)
        return ray
    _check_reachable(address)
    try:
        ray.init(address=address, **quiet)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        raise ValueError(f"address = {address!r}: {one_line(error)[:300]}; allowed: {_REMEDY}") from error
    return ray


_HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""Beginning of a client of gRPC; the head of a cluster answers with a frame of type 4, too (RFC 9113, 3.4)."""
_REMEDY = "'auto' on a node of a cluster (begun by ray start --head), host:port of its head, or no address"


def _check_reachable(address: str) -> None:
    """Refuse an address at which no cluster answers, which Ray itself would look for for minutes.

    Raises:
        ValueError: one line with the remedy.
    """
    found = os.environ.get("RAY_ADDRESS", address) if address == "auto" else address
    if found == "auto":
        return
    host, colon, port = found.rpartition(":")
    if not (colon and host and port.isdecimal() and "/" not in host):
        raise ValueError(f"address = {found!r}; allowed: {_REMEDY}")
    try:
        with socket.create_connection((host, int(port)), PATIENCE) as connection:
            connection.sendall(_HTTP2)
            answer = connection.recv(4)
    except (OSError, OverflowError) as error:
        raise ValueError(f"address = {found!r} cannot be reached ({one_line(error)}); allowed: {_REMEDY}") from error
    if answer[3:] != _HTTP2[-6:-5] and "RAY_USE_TLS" not in os.environ:
        raise ValueError(f"address = {found!r} is not the head of a cluster of Ray; allowed: {_REMEDY}")


def check_room(ray: Any, needs: Mapping[str, float], ranks: int) -> None:
    """Refuse runs for which there is no room, so that they would wait for ever.

    Args:
        ray: the package, connected.
        needs: what each rank needs, all on one node.
        ranks: ranks of each run.

    Raises:
        ValueError: names what there is.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    room = sum(int(min(node.get(name, 0.0) / need for name, need in needs.items()) + 1e-6) for node in nodes)
    if room < ranks:
        most = {name: max(node.get(name, 0.0) for node in nodes) for name in needs}
        said = ", ".join(f"{name}s {need:g} (of {most[name]:g})" for name, need in needs.items())
        who = "each run needs" if ranks == 1 else f"each of the {ranks} ranks of a run needs"
        raise ValueError(f"{who} {said}; allowed: what {'a node' if ranks == 1 else 'the nodes'} of the cluster have")
