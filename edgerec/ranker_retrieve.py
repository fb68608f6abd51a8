"""The items nearest to a query, where there is no first stage: one pass over the vectors of the whole catalogue."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from . import _core
from .vectors import ItemVectors

SCAN_ROWS = 1 << 16
"""Items scored before the best are picked out: their scores (256 KiB) stay in the processor's cache."""
FOUND = 200
"""Items that `Ranker.retrieve` ranks unless it is told another number."""


def nearest(query: NDArray[np.int8], scale: float, vectors: ItemVectors, n: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The `n` items whose vectors have the largest product with the query's, best first; ties in catalogue order.

    Returns
    -------
    rows : int64 [K]. scores : float32 [K], cosines but for rounding; K is at most `n`.
    """
    top = _core.TopK(min(n, len(vectors.scales)))
    for begin in range(0, len(vectors.scales), SCAN_ROWS):
        end = begin + SCAN_ROWS
        top.push(_core.scan(query, scale, vectors.values[begin:end].reshape(-1), vectors.scales[begin:end]), begin)
    return top.finish()
