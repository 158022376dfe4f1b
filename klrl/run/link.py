"""Link between the processes of one training: short meetings by torchrun's store, tensors by gloo, signs of life.

The store is the key-value server at MASTER_ADDR:MASTER_PORT. Nothing but JSON and safetensors travels.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any

import safetensors.torch
import torch
import torch.distributed
from torch import Tensor

from klrl.run.answering import Answering
from klrl.run.torchrun import RankFailed

Tensors = dict[str, Tensor]
dist: Any = torch.distributed  # whose names its type information leaves out
_BEAT = 0.5
"""Seconds between signs of life."""
_MOST_SLEEP = 0.02
"""Most seconds between two looks for the others."""
_JOINING = timedelta(minutes=10)
"""Most time between the starts of two processes."""


class _Silent(RuntimeError):
    """The store has not answered."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"no answer for {seconds:g} s")


_GONE = (dist.DistError, _Silent)
"""Errors of a store that is out of reach."""


class Link:
    """One process's link to the others of a training under torchrun.

    A thread gives a sign of life twice a second and looks whether somebody has failed. At a meeting a process waits for
    as long as the others live; a process without a sign of life for ``timeout`` seconds is given up.

    Raises:
        RankFailed: not all processes came within ten minutes.
    """

    def __init__(self) -> None:
        self.timeout = 120.0
        """Seconds without a sign of life after which a process counts as dead."""
        try:
            # Signs of life have a connection of their own; torch 2.6 cannot clone one.
            (store, self.rank, self.size), (another, *_) = (_join() for _ in range(2))
            attempt = _attempt(store, self.rank, self.size)
            self._own, self._beats = (dist.PrefixStore(attempt, x) for x in (store, another))
            self._beat(0)
        except _GONE as error:
            raise RankFailed(f"the store at MASTER_ADDR:MASTER_PORT cannot be reached: {error}") from error
        if torch.cuda.is_available():  # "cuda" is then another GPU for every rank of a machine
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", self.rank)) % torch.cuda.device_count())
        self._answering = Answering(self._own, _Silent)
        self._meetings = 0
        self._group: Any = None
        self._failure: dict[str, Any] | None = None
        self._last: dict[int, tuple[bytes, float]] = {}
        self._over = threading.Event()
        self._watch = threading.Thread(target=self._keep_watch, name="klrl-ranks", daemon=True)
        self._watch.start()
        self._owner = os.getpid()
        atexit.register(self.close)

    def _ask(self, name: str, *arguments: Any) -> Any:
        """Call a method of the store, whose machine may be gone without a word."""
        return self._answering.call(self.timeout, name, *arguments)

    # -- signs of life --------------------------------------------------------------------------

    def _beat(self, n: int) -> None:
        self._beats.set(f"beat/{self.rank}", str(n))

    def _keep_watch(self) -> None:
        n = 0
        while not self._over.wait(_BEAT):
            try:
                self._beat(n := n + 1)
                if self._failure is None and self._beats.check(["failed"]):
                    self._failure = json.loads(self._beats.get("failed"))
            except _GONE as error:
                self._failure = self._failure or _gone(error)
                return

    def check(self) -> None:
        """Raise if another process has failed.

        Raises:
            RankFailed: with its message.
            KeyboardInterrupt: it was ended by a signal.
        """
        if (failure := self._failure) is None or failure["rank"] == self.rank:
            return
        if failure["signal"] is not None:
            from klrl.run.signals import Interrupted

            raise Interrupted(failure["signal"])
        if failure["rank"] < 0:
            raise RankFailed.found(failure["line"])
        raise RankFailed(f"rank {failure['rank']}: {failure['line']}")

    def fail(self, line: str, number: int | None = None, lost: int | None = None) -> bool:
        """Tell all processes that this one has failed; return True if it is the first.

        Args:
            line: what happened.
            number: the signal that ended it, if one did.
            lost: the rank without which it cannot go on, if that is why.
        """
        mine = {"rank": self.rank, "line": line, "signal": number, "lost": lost}
        if self._failure is None:
            try:
                self._failure = json.loads(self._ask("compare_set", "failed", "", json.dumps(mine)))
            except _GONE:
                self._failure = mine
        return bool(self._failure["rank"] == self.rank)

    def _give_up_the_dead(self) -> None:
        """Raise if a process has given no sign of life for too long."""
        now = time.monotonic()
        for rank in range(self.size):
            key = f"beat/{rank}"
            beat = self._ask("get", key) if self._ask("check", [key]) else b""
            if self._last.get(rank, (None, 0.0))[0] != beat:
                self._last[rank] = beat, now
            elif now - self._last[rank][1] > self.timeout:
                self._lose(f"rank {rank} has given no sign of life for {self.timeout:g} s", rank)

    def _lose(self, line: str, rank: int | None = None) -> None:
        """Tell the others that a process is lost, and raise; or raise what somebody has told before."""
        if self.fail(line, lost=rank):
            raise RankFailed.found(line)
        self.check()

    # -- meetings -------------------------------------------------------------------------------

    def meet(self, words: Any) -> list[Any]:
        """Return everybody's words, JSON, by rank, when all have come to this meeting.

        Raises:
            RankFailed: somebody has failed, or is dead.
            KeyboardInterrupt: somebody was ended by a signal.
        """
        self.check()
        if self._failure is not None and self._failure["rank"] == self.rank:
            raise RankFailed.found(f"rank {self.rank} has failed before ({self._failure['line']})")
        k, self._meetings = self._meetings, self._meetings + 1
        try:
            self._ask("set", f"{k}/{self.rank}", json.dumps(words))
            if self._ask("add", f"{k}/come", 1) == self.size:
                self._ask("set", f"{k}/all", "")
            self._wait(f"{k}/all")
            answers = [json.loads(x) for x in self._ask("multi_get", [f"{k}/{r}" for r in range(self.size)])]
            if k > 0:  # whoever is here has read what was said before
                self._ask("delete_key", f"{k - 1}/{self.rank}")
        except _GONE as error:
            self.check()
            raise RankFailed.found(_gone(error)["line"]) from error
        return answers

    def _wait(self, key: str) -> None:
        began = looked = time.monotonic()
        while not self._ask("check", [key]):
            self.check()
            now = time.monotonic()
            if now - looked > 1.0:
                looked = now
                self._give_up_the_dead()
            time.sleep(min(_MOST_SLEEP, 1e-4 + 0.05 * (now - began)))

    def wait_for(self, ranks: Iterable[int], key: str, seconds: float) -> None:
        """Wait until these processes, but for a lost one, have set their own key (:meth:`mark`), or for so long."""
        lost = None if self._failure is None else self._failure["lost"]
        keys, end = [f"{key}/{rank}" for rank in ranks if rank != lost], time.monotonic() + seconds
        with contextlib.suppress(*_GONE):  # the store is gone, and whoever had it
            while keys and not self._ask("check", keys) and time.monotonic() < end:
                time.sleep(_MOST_SLEEP)

    def mark(self, key: str) -> None:
        """Set a key of this process's own."""
        with contextlib.suppress(*_GONE):
            self._ask("set", f"{key}/{self.rank}", "")

    # -- tensors --------------------------------------------------------------------------------

    def exchange(self, tensors: Tensors) -> list[Tensors]:
        """Return everybody's tensors, by rank; this process's own are not copied.

        Raises:
            RankFailed: somebody has failed, or died meanwhile.
        """
        if self.size == 1:
            return [tensors]
        mine = _as_bytes(tensors)
        sizes = self.meet(len(mine))
        sent = torch.zeros(max(sizes), dtype=torch.uint8, device="cpu")
        sent[: len(mine)] = mine
        received = [torch.empty_like(sent) for _ in sizes]
        self._by_gloo(lambda group: dist.all_gather(received, sent, group=group))
        pairs = zip(received, sizes, strict=True)
        return [tensors if r == self.rank else _from_bytes(x[:size]) for r, (x, size) in enumerate(pairs)]

    def from_first(self, tensors: Tensors) -> Tensors:
        """Return rank 0's tensors.

        Raises:
            RankFailed: somebody has failed, or died meanwhile.
        """
        data = _as_bytes(tensors) if self.rank == 0 else torch.zeros(0, dtype=torch.uint8, device="cpu")
        size = self.meet(len(data))[0]
        if self.size == 1:
            return tensors
        received = data if self.rank == 0 else torch.empty(size, dtype=torch.uint8, device="cpu")
        self._by_gloo(lambda group: dist.broadcast(received, group_src=0, group=group))
        return tensors if self.rank == 0 else _from_bytes(received)

    def _by_gloo(self, send: Any) -> None:
        try:
            if self._group is None:
                self._group = self._made()
            send(self._group)
        except RuntimeError as error:
            self.check()
            self._lose(f"another rank was lost while tensors were sent ({str(error).splitlines()[0]})")
            raise

    def _made(self) -> Any:
        timeout = timedelta(seconds=self.timeout)
        if dist.is_initialized():  # by the program around
            return dist.new_group(backend="gloo", timeout=timeout)
        store = dist.PrefixStore("gloo", self._own)
        dist.init_process_group("gloo", store=store, rank=self.rank, world_size=self.size, timeout=timeout)
        self._is_own = True
        return dist.group.WORLD

    _is_own = False
    """True if the process group is to be destroyed with the link."""

    def close(self) -> None:
        """End the thread and the process group; again is no error."""
        if self._over.is_set() or os.getpid() != self._owner:
            return
        self._over.set()
        self._watch.join(5.0)
        if self._is_own and self._failure is None:
            dist.destroy_process_group()


def _join() -> tuple[Any, int, int]:
    """Return a connection to the store, the rank of this process, and how many there are."""
    store, rank, size = next(iter(dist.rendezvous("env://", timeout=_JOINING)))
    return dist.PrefixStore("klrl", store), rank, size


def _attempt(store: Any, rank: int, size: int) -> str:
    """Return a name on which the ranks that were started together agree: torchrun may keep its store for the next ones.

    Raises:
        RankFailed: not all ranks came in time.
    """
    me, end = uuid.uuid4().hex, time.monotonic() + _JOINING.total_seconds()

    def until(arrived: Callable[[], bool]) -> None:
        while not arrived():
            if time.monotonic() > end:
                raise RankFailed(f"rank {rank} of {size} was alone for {_JOINING.total_seconds():g} s")
            time.sleep(_MOST_SLEEP)

    if rank > 0:
        store.set(f"hello/{rank}", me)
        until(lambda: store.check([f"answer/{me}"]))
        name = str(store.get(f"answer/{me}").decode())
        store.set(f"{name}/here/{rank}", "")
        return name

    def all_here() -> bool:
        missing = [r for r in range(1, size) if not store.check([f"{me}/here/{r}"])]
        for r in (r for r in missing if store.check([f"hello/{r}"])):  # it may be a greeting to who was here before
            store.set(f"answer/{store.get(f'hello/{r}').decode()}", me)
        return not missing

    until(all_here)
    return me


def _gone(error: Exception) -> dict[str, Any]:
    said = str(error).splitlines()[0] if str(error) else type(error).__name__
    return {
        "rank": -1,
        "line": f"the store of all ranks is gone, and whoever had it ({said})",
        "signal": None,
        "lost": 0,
    }


def _as_bytes(tensors: Tensors) -> Tensor:
    """Return tensors as the bytes of a safetensors file."""
    data = safetensors.torch.save({name: x.detach().contiguous() for name, x in tensors.items()})
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _from_bytes(x: Tensor) -> Tensors:
    return safetensors.torch.load(x.numpy().tobytes())
