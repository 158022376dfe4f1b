"""Shares of the rows of a whole, in processes that act together, and evaluation whose rounding does not depend on them.

BLAS rounds by the shape that it is given. So rows are evaluated in blocks of a fixed size, at fixed places of the
whole: a row is at the same place of a block of the same shape whichever process has it, and gets the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from klrl.policy.arrays import Array, is_numpy
from klrl.policy.pieces import joined

BLOCK = 8
"""Rows of a block: at most the number of environments by default, so that these act in one call as without a share."""


@dataclass(frozen=True)
class Share:
    """Rows ``begin`` to ``end``, of ``total``."""

    begin: int
    end: int
    total: int

    def __len__(self) -> int:
        return self.end - self.begin

    @property
    def rows(self) -> slice:
        """Index of the share in the whole."""
        return slice(self.begin, self.end)

    def of_whole(self, x: Array) -> Array:
        """Return an array with the shape of the whole ``[total, ...]``, of which only shape and type mean anything."""
        shape = (self.total, *x.shape[1:])
        return np.broadcast_to(x[:1], shape) if is_numpy(x) else x[:1].expand(shape)

    def in_blocks(self, function: Callable[[Any], Any], x: Array) -> Any:
        """Evaluate an array or a distribution at the share's rows ``x [n, ...]``, block by block.

        Args:
            function: rows ``[block, ...]`` to an array, a distribution or a tuple of them, row by row.
            x: the share's rows; others of their blocks are filled with the first one.
        """
        size = min(BLOCK, self.total)
        first = self.begin // size * size
        blocks = -(-(self.end - first) // size)
        index = np.zeros(blocks * size, dtype=np.int64)
        index[self.begin - first : self.end - first] = np.arange(len(self))
        filled = x[index] if is_numpy(x) else x[torch.from_numpy(index)]
        parts = [function(filled[i * size : (i + 1) * size]) for i in range(blocks)]
        whole, mine = joined(parts), slice(self.begin - first, self.end - first)
        return tuple(x[mine] for x in whole) if isinstance(whole, tuple) else whole[mine]
