"""The shapes that a plan was built for: which rows run in which, and how a row's features get there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..types import RaggedBatch, RaggedItemBatch, RaggedStateBatch
from .trt_device import FEATURES

LAUNCH_TOKENS = 1024
"""What one more launch costs, in tokens scored meanwhile."""


def share_out(lengths: NDArray[np.int64], buckets: Sequence[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """Rows by descending length, int64 [B], as ``(bucket, begin, end)``, in order.

    Each step takes, of the buckets of the shortest sufficient length, the one that computes least for what it scores: a row is worth the
    shortest bucket it fits in, so that short rows fill up a long bucket only when it has room anyway.
    """
    sizes = np.array(sorted({tokens for _, tokens in buckets}))
    worth = sizes[np.searchsorted(sizes, lengths)]
    total = np.concatenate([[0], np.cumsum(worth)])
    found, begin = [], 0
    while begin < len(lengths):

        def waste(index: int, begin: int = begin) -> float:
            rows, tokens = buckets[index]
            return float((rows * tokens + LAUNCH_TOKENS) / (total[min(begin + rows, len(lengths))] - total[begin]))

        best = min((i for i, (_, tokens) in enumerate(buckets) if tokens == worth[begin]), key=waste)
        end = min(begin + buckets[best][0], len(lengths))
        found.append((best, begin, end))
        begin = end
    return found


def fill_features(views: Mapping[str, Any], batch: RaggedBatch | RaggedItemBatch | RaggedStateBatch, rows: NDArray[np.intp]) -> None:
    """Write the rows' features into the arrays of a bucket, those of a student that has some."""
    count, slots = len(rows), batch.feature_ids.shape[1]
    for name in FEATURES if FEATURES[0] in views else ():
        views[name][:count, :slots] = getattr(batch, name)[rows]
        # A weight of 0 is no feature; ids there do not matter, but must be valid.
        views[name][:count, slots:] = 0
        views[name][count:] = 0
