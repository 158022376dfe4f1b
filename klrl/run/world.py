"""The processes of one training: each steps its share of the environments, and all take the same update.

Under torchrun (``torchrun --nproc-per-node 4 -m klrl train ...``, or a script of one's own) every process is a rank of
the world. The batch is gathered once per rollout; what is computed from it is computed by all ranks, and is the same to
the bit on machines of one kind. Without torchrun the world is one process, and torch.distributed is not imported.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from klrl.policy.share import Share
from klrl.run.torchrun import is_rank
from klrl.text import one_line, plain

if TYPE_CHECKING:
    from torch import Tensor

    from klrl.experience import Batch
    from klrl.experience.collector import Act, OnArrays
    from klrl.run.link import Link
    from klrl.run.options import OnDivergence

    Tensors = dict[str, Tensor]

_SAVING, _LEAVING = 120.0, 10.0
"""Seconds that others wait for rank 0 to save, and rank 0 for others to leave."""


class Diverged(RuntimeError):
    """Ranks computed other parameters from the same batch."""


class World:
    """View of one process, rank ``rank`` of ``size``, of a training; every method is the identity for one alone.

    Args:
        link: the link to the others.
    """

    def __init__(self, link: Link | None = None) -> None:
        self._link = link
        self.rank: int = 0 if link is None else link.rank
        self.size: int = 1 if link is None else link.size
        self.on_divergence: OnDivergence = "stop"
        """End the training when ranks have different parameters, or go on from rank 0's."""

    @staticmethod
    def current() -> World:
        """Return the world of this process; under torchrun, it is joined at the first call."""
        global _world
        if _world is None or _owner != os.getpid():
            _join()
        assert _world is not None
        return _world

    @property
    def is_distributed(self) -> bool:
        """True under torchrun, also for a single process: results do not depend on the number of ranks."""
        return self._link is not None

    def settle(self, *, rank_timeout: float = 120.0, on_divergence: OnDivergence = "stop") -> None:
        """Change settings.

        Args:
            rank_timeout: seconds without a sign of life after which a rank counts as dead.
            on_divergence: see :attr:`on_divergence`.
        """
        self.on_divergence = on_divergence
        if self._link is not None:
            self._link.timeout = rank_timeout

    # -- environments ---------------------------------------------------------------------------

    def share(self, n: int) -> slice:
        """Return which of n environments this rank steps; shares differ by at most one.

        Raises:
            ValueError: there are fewer environments than ranks.
        """
        if n < self.size:
            raise ValueError(f"n_envs = {n} on {self.size} ranks; allowed: at least one environment on every rank")
        return slice(n * self.rank // self.size, n * (self.rank + 1) // self.size)

    def acting_share(self, n: int) -> Share | None:
        """Return the same for acting, or ``None`` without torchrun."""
        return Share(self.share(n).start, self.share(n).stop, n) if self.is_distributed else None

    def watched(self, act: Act | OnArrays) -> Act | OnArrays:
        """Return what acts in the same way, and ends the rollout before its next step if another rank has failed."""
        link = self._link
        if link is None or self.size == 1:
            return act
        from klrl.experience.collector import OnArrays

        inner: Callable[[Any], Any] = act

        def watching(observations: Any) -> Any:
            link.check()
            return inner(observations)

        return OnArrays(watching) if isinstance(act, OnArrays) else watching

    # -- together -------------------------------------------------------------------------------

    def any(self, flag: bool) -> bool:
        """Tell whether the flag is true on one of the ranks; all of them have to ask.

        Raises:
            RankFailed: another rank has failed or is dead.
        """
        return flag if self._link is None else any(self._link.meet(bool(flag)))

    def gather(self, batch: Batch, total_timesteps: int = 0) -> Batch:
        """Return the batch of all environments, given that of this rank's share; infos stay where they are.

        Args:
            batch: ``[T, n]`` of this rank.
            total_timesteps: count of steps from which its episodes count.

        Raises:
            RankFailed: another rank has failed or is dead.
        """
        if self.size == 1:
            return batch
        from klrl.experience.parts import dismantled, joined

        parts = self.exchange(dismantled(batch, total_timesteps))
        at = sum(part["rewards"].shape[1] for part in parts[: self.rank])
        return joined(batch, at, parts, total_timesteps)

    def exchange(self, tensors: Tensors) -> Sequence[Tensors]:
        """Return everybody's tensors, by rank.

        Raises:
            RankFailed: another rank has failed or is dead.
        """
        return [tensors] if self._link is None else self._link.exchange(tensors)

    def said_by_first(self, words: Callable[[], Any]) -> Any:
        """Return rank 0's words, plain JSON, which no other rank makes."""
        if self._link is None:
            return words()
        return self._link.meet(words() if self.rank == 0 else None)[0]

    def saved_by_first(self, read: Callable[[], tuple[Tensors, Any]]) -> tuple[Tensors, Any]:
        """Return tensors and JSON that rank 0 reads from its disk.

        Raises:
            FileNotFoundError: there is nothing on rank 0's disk.
        """
        if self._link is None or self.size == 1:
            return read()
        from klrl.experience.parts import as_tensor, from_tensor

        tensors: Tensors = {}
        words: Any = None
        if self.rank == 0:
            try:
                tensors, words = read()
            except FileNotFoundError as error:
                words = str(error)
            tensors = {**tensors, "/words": as_tensor(words)}
        tensors = dict(self._link.from_first(tensors))
        if isinstance(words := from_tensor(tensors.pop("/words")), str):
            raise FileNotFoundError(words)
        return tensors, words

    def differing(self, parts: Iterable[Tensor], when: str) -> list[int]:
        """Compare a hash of numbers on all ranks, and return the ranks whose numbers differ from rank 0's.

        Args:
            parts: the numbers.
            when: words for an error.

        Raises:
            Diverged: there are such ranks, and ``on_divergence`` is "stop".
        """
        if self._link is None or self.size == 1:
            return []
        digest = hashlib.blake2b()
        for x in parts:
            digest.update(x.detach().cpu().contiguous().numpy().tobytes())
        said = self._link.meet([digest.hexdigest(), _versions()])
        others = [rank for rank, (mine, _) in enumerate(said) if mine != said[0][0]]
        if others and self.on_divergence == "stop":
            versions = {said[rank][1] for rank in [0, *others]}
            why = "same versions" if len(versions) == 1 else f"other versions: {'; '.join(sorted(versions))}"
            which = "rank" if len(others) == 1 else "ranks"
            raise Diverged(
                f"{which} {', '.join(map(str, others))} of {self.size}: parameters {when} are not those of rank 0 "
                f"({why}); allowed: machines of one kind, nothing random on one alone, or on_divergence = 'broadcast'"
            )
        return others

    # -- ends -----------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise if another rank has failed.

        Raises:
            RankFailed: with its message.
            KeyboardInterrupt: it was ended by a signal.
        """
        if self._link is not None:
            self._link.check()

    def fail(self, error: BaseException) -> None:
        """Tell the other ranks that an exception ends this one."""
        if self._link is None:
            return
        number = getattr(error, "number", 2) if isinstance(error, KeyboardInterrupt) else None
        said = str(error) if isinstance(error, (FloatingPointError, Diverged)) else f"{type(error).__name__}: {error}"
        first = self._link.fail(plain(one_line(said), 2000), number)
        one_line_says_it = isinstance(error, (FloatingPointError, OSError, RuntimeError, ValueError))
        if first and self.size > 1 and (not one_line_says_it or getattr(error, "__notes__", None)):
            error.add_note(f"on rank {self.rank} of {self.size}")

    def leave(self, error: BaseException | None) -> None:
        """Wait until rank 0 has saved and the others know, since torchrun ends all once one has ended."""
        if (link := self._link) is None or self.size == 1:
            return
        link.mark("left")
        if self.rank == 0:
            link.wait_for(range(1, self.size), "left", _LEAVING)
        elif error is not None:
            link.wait_for([0], "left", _SAVING)


def _versions() -> str:
    import numpy
    import torch

    return f"torch {torch.__version__}, numpy {numpy.__version__}, {torch.backends.cpu.get_cpu_capability()}"


_world: World | None = None
_owner = 0


def _join() -> None:
    global _world, _owner
    _owner = os.getpid()
    if not is_rank() or (_world is not None and _world.is_distributed):  # what a rank has forked is no rank
        _world = World()
        return
    from klrl.run.link import Link

    _world = World(Link())
