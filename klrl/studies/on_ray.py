"""Runs as plain tasks of Ray, which schedules them, begins them again after a crash, and places them by what they need.

Where a task sees the study's disk, its run directory is there. Where it does not, it trains in a folder of its own, and
its files go, at every checkpoint, to an actor beside the process that called, which writes them to the study's disk; a
task that is begun again gets them back from there.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import tempfile
from pathlib import Path
from typing import Any, Self

from klrl.agents import Agent
from klrl.experience import Batch
from klrl.run import Callback
from klrl.run.callback import Metrics
from klrl.run.checkpoint import MANIFEST, replace
from klrl.run.lock import LOCK
from klrl.studies.claims import claim_file
from klrl.studies.parallel import Ended
from klrl.studies.results import Row
from klrl.studies.training import run
from klrl.studies.trials import Trial
from klrl.text import one_line

PATIENCE = 10.0
"""Seconds to wait for a connection to a cluster."""
AHEAD = 2
"""Tasks that wait in Ray's queue beyond those that fit now, so that a growing cluster has work."""


class OnRay:
    """Makes runs as tasks of Ray.

    Args:
        address: "auto" or host:port of a cluster; ``None`` begins one on this machine, which ends with the study.
        cpus_per_run: CPUs of each run.
        gpus_per_run: GPUs of each run.
        retries: how often Ray begins a task again whose process or node was lost.
        shared_disk: whether tasks look for the study's disk; ``False`` sends all files through the actor.

    Raises:
        ValueError: Ray is not installed, the cluster cannot be reached, or no node of it has what a run needs.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        cpus_per_run: float = 1.0,
        gpus_per_run: float = 0.0,
        retries: int = 3,
        shared_disk: bool = True,
    ) -> None:
        self._needs = {"CPU": cpus_per_run, "GPU": gpus_per_run}
        self._shared_disk = shared_disk
        self._ray = _connected(address)
        try:
            _check_room(self._ray, self._needs)
        except ValueError:
            self._ray.shutdown()
            raise
        options = {"num_cpus": cpus_per_run, "num_gpus": gpus_per_run, "max_retries": retries}
        self._task = self._ray.remote(**options)(_task)
        here = self._ray.get_runtime_context().get_node_id()
        beside = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(here, soft=False)
        self._keeper = self._ray.remote(num_cpus=0, scheduling_strategy=beside)(Keeper).remote()
        self._tasks: dict[Any, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for task in self._tasks:
            self._ray.cancel(task, force=True)
        self._ray.shutdown()

    @property
    def busy(self) -> int:
        """Number of runs that have not ended."""
        return len(self._tasks)

    @property
    def free(self) -> int:
        """Number of runs that can begin now."""
        there = self._ray.cluster_resources()
        fit = min(int(there.get(name, 0.0) / need) for name, need in self._needs.items() if need > 0)
        return fit + AHEAD - len(self._tasks)

    def start(self, trial: Trial, directory: Path, token: str, taken: bool) -> None:
        """Give Ray the run."""
        token = token if self._shared_disk else "no disk is shared"
        named = self._task.options(name=trial.name)
        self._tasks[named.remote(trial, directory.absolute(), token, taken, self._keeper)] = trial.name

    def wait(self, timeout: float | None) -> list[Ended]:
        """Return the runs that have ended."""
        if not self._tasks:
            return []
        done, _ = self._ray.wait([*self._tasks], num_returns=1, timeout=timeout)
        return [self._ended(task, self._tasks.pop(task)) for task in done]

    def _ended(self, task: Any, name: str) -> Ended:
        crashes = (
            self._ray.exceptions.WorkerCrashedError,
            self._ray.exceptions.NodeDiedError,
            self._ray.exceptions.OutOfMemoryError,
            self._ray.exceptions.OwnerDiedError,
            self._ray.exceptions.ObjectLostError,
        )
        try:
            return Ended(name, self._ray.get(task))
        except crashes as error:
            return Ended(name, death=f"Ray lost its process ({type(error).__name__})")
        except self._ray.exceptions.RayError as error:
            return Ended(name, error=RuntimeError(one_line(error)[:500]))


def _connected(address: str | None) -> Any:
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


def _check_room(ray: Any, needs: dict[str, float]) -> None:
    """Refuse needs that no node has, for which tasks would wait for ever."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(all(node.get(name, 0.0) >= need for name, need in needs.items()) for node in nodes):
        most = {name: max(node.get(name, 0.0) for node in nodes) for name in needs}
        said = ", ".join(f"{name}s {need:g} (of {most[name]:g})" for name, need in needs.items())
        raise ValueError(f"each run needs {said}; allowed: what a node of the cluster has")


class Keeper:
    """Writes the files of runs whose tasks do not see the study's disk; an actor beside it."""

    def get(self, directory: Path) -> dict[str, bytes]:
        """Return all files of a run directory by their names within it."""
        paths = (path for path in directory.rglob("*") if path.is_file() and path.name != LOCK)
        return {str(path.relative_to(directory)): path.read_bytes() for path in paths}

    def put(self, directory: Path, files: dict[str, bytes], names: list[str]) -> None:
        """Bring a run directory to the state of a task's own: changed files, manifests last, then what it has not.

        Args:
            directory: the run directory.
            files: the changed ones, by their names within it.
            names: of all files that are there now.
        """
        for name in sorted(files, key=lambda name: (name.endswith(MANIFEST), name)):
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            replace(directory / name, files[name])
        gone = {*self.get_names(directory)} - {*names}
        for name in sorted(gone, key=lambda name: not name.endswith(MANIFEST)):
            (directory / name).unlink(missing_ok=True)
        for folder in directory.glob("checkpoints/*"):
            with contextlib.suppress(OSError):  # it is not empty
                folder.rmdir()

    def get_names(self, directory: Path) -> list[str]:
        """Return the names of all files of a run directory."""
        return [str(p.relative_to(directory)) for p in directory.rglob("*") if p.is_file() and p.name != LOCK]


class Sending(Callback):
    """Sends the files of a run to the keeper whenever there is a new checkpoint.

    Args:
        keeper: handle of the actor.
        here: the task's own directory.
        there: the run directory on the study's disk.
    """

    def __init__(self, keeper: Any, here: Path, there: Path) -> None:
        self._keeper, self._here, self._there = keeper, here, there
        self._sent: dict[str, tuple[int, int]] = {}
        self._newest = ""
        self._on_its_way: Any = None

    def on_update_end(self, agent: Agent[Any], batch: Batch, metrics: Metrics) -> None:  # type: ignore[override]
        """Send what the checkpoint of the last update has changed, if there is one."""
        newest = max((path.parent.name for path in self._here.glob(f"checkpoints/[0-9]*/{MANIFEST}")), default="")
        if newest != self._newest:
            self._newest = newest
            self.send()

    def send(self, *, wait: bool = False) -> None:
        """Send what has changed since the last time; after ``wait`` it is there."""
        import ray

        if self._on_its_way is not None:
            ray.get(self._on_its_way)  # in order, and an error of its disk ends the training
        paths = [p for p in self._here.rglob("*") if p.is_file() and p.name != LOCK]
        now = {str(path.relative_to(self._here)): (path.stat().st_mtime_ns, path.stat().st_size) for path in paths}
        changed = {name: (self._here / name).read_bytes() for name in now if now[name] != self._sent.get(name)}
        self._on_its_way = self._keeper.put.remote(self._there, changed, [*now])
        self._sent = now
        if wait:
            ray.get(self._on_its_way)


def _task(trial: Trial, directory: Path, token: str, taken: bool, keeper: Any) -> Row:
    """Make a run, on the study's disk if it is here."""
    with contextlib.suppress(OSError):
        if token in claim_file(directory).read_text():
            return run(trial, directory, taken=taken)
    import ray

    folder = Path(tempfile.mkdtemp(prefix="klrl-"))
    try:
        here = folder / "run"
        for name, data in ray.get(keeper.get.remote(directory)).items():
            (here / name).parent.mkdir(parents=True, exist_ok=True)
            (here / name).write_bytes(data)
        sending = Sending(keeper, here, directory)
        row = run(trial, here, sending)
        if here.exists():
            sending.send(wait=True)
        return row
    finally:
        shutil.rmtree(folder, ignore_errors=True)
