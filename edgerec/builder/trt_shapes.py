"""Shape buckets: the few (rows, tokens) a TensorRT plan is built for, given or chosen from the lengths of real rows."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..engine.trt_plans import MAX_BUCKETS, MAX_ROWS, MAX_TOKENS
from ..errors import BuildError

Buckets = tuple[tuple[int, int], ...]
ROWS, FEW = 128, 32
"""Rows of a bucket, and of the small one for short lists."""
_STEP = 8
_SHARES = (0.5, 0.9)


def parse_buckets(text: str) -> Buckets:
    """``32x16,128x64`` as ((32, 16), (128, 64)). Raises BuildError."""
    pairs = [re.fullmatch(r"\s*(\d{1,9})x(\d{1,9})\s*", part) for part in text.split(",")]
    if not all(pairs):
        raise BuildError(f"buckets are {text!r:.80}; expected ROWSxTOKENS, separated by commas, as in 32x16,128x64")
    return tuple((int(pair[1]), int(pair[2])) for pair in pairs if pair)


def check_buckets(buckets: Sequence[tuple[int, int]], tokens: int) -> Buckets:
    """The buckets in order of tokens, then rows. Raises BuildError unless the largest takes the student's longest row."""
    if not 1 <= len(buckets) <= MAX_BUCKETS or len(set(buckets)) < len(buckets):
        raise BuildError(
            f"there are {len(buckets)} buckets, {len(set(buckets))} of them different; expected 1 to {MAX_BUCKETS}, no two alike"
        )
    for rows, length in buckets:
        if not 1 <= rows <= MAX_ROWS or not 1 <= length <= MAX_TOKENS:
            raise BuildError(f"bucket {rows}x{length} is out of range; expected 1 to {MAX_ROWS} rows of 1 to {MAX_TOKENS} tokens")
        if length > tokens:
            raise BuildError(f"bucket {rows}x{length} is longer than a row of this student can be; expected at most {tokens} tokens")
    longest = max(length for _, length in buckets)
    if longest < tokens:
        raise BuildError(f"the longest bucket takes {longest} tokens, but a row may have {tokens}; add one, for example {ROWS}x{tokens}")
    return tuple(sorted(buckets, key=lambda bucket: (bucket[1], bucket[0])))


def choose_buckets(mask: NDArray[np.int32], tokens: int) -> Buckets:
    """Buckets for rows like those of a sample: by half of them, by nine in ten and by the longest that can be; each for many and for few.

    Parameters
    ----------
    mask : attention mask of the sample, int32 [M, T].
    tokens : the longest row the student takes.
    """
    lengths = mask.sum(axis=1)
    steps = {min(tokens, -(-int(np.quantile(lengths, share)) // _STEP) * _STEP) for share in _SHARES} | {tokens}
    return check_buckets([(rows, length) for length in steps for rows in (FEW, ROWS)], tokens)
