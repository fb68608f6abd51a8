"""Shape buckets: the few (rows, tokens) a TensorRT plan is built for, given or chosen from the lengths of real rows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engine.trt_plans import MAX_BUCKETS, MAX_ROWS, MAX_TOKENS, Buckets
from ..errors import BuildError

ROWS, FEW, MANY = 128, 32, 1024
"""Rows of a bucket, of the small one for short lists, and of a mid-fusion student's, whose rows are a query's few tokens each."""
_STEP = 8
_SHARES = (0.5, 0.9)


def parse_buckets(text: str) -> Buckets:
    """``32x16,128x64`` as ((32, 16), (128, 64)). Raises BuildError."""
    pairs = [re.fullmatch(r"\s*(\d{1,9})x(\d{1,9})\s*", part) for part in text.split(",")]
    if not all(pairs):
        raise BuildError(f"buckets are {text!r:.80}; expected ROWSxTOKENS, separated by commas, as in 32x16,128x64")
    return tuple((int(pair[1]), int(pair[2])) for pair in pairs if pair)


def check_buckets(buckets: Sequence[tuple[int, int]], tokens: int, *, rows: int = ROWS) -> Buckets:
    """The buckets in order of tokens, then rows. Raises BuildError unless the largest takes the student's longest row.

    ``tokens`` is the longest row, or item of a mid-fusion student; ``rows`` what a message proposes.
    """
    if not 1 <= len(buckets) <= MAX_BUCKETS or len(set(buckets)) < len(buckets):
        raise BuildError(
            f"there are {len(buckets)} buckets, {len(set(buckets))} of them different; expected 1 to {MAX_BUCKETS}, no two alike"
        )
    for many, length in buckets:
        if not 1 <= many <= MAX_ROWS or not 1 <= length <= MAX_TOKENS:
            raise BuildError(f"bucket {many}x{length} is out of range; expected 1 to {MAX_ROWS} rows of 1 to {MAX_TOKENS} tokens")
        if length > tokens:
            raise BuildError(f"bucket {many}x{length} is longer than a row of this student can be; expected at most {tokens} tokens")
    longest = max(length for _, length in buckets)
    if longest < tokens:
        raise BuildError(f"the longest bucket takes {longest} tokens, but a row may have {tokens}; add one, for example {rows}x{tokens}")
    return tuple(sorted(buckets, key=lambda bucket: (bucket[1], bucket[0])))


def choose_buckets(mask: NDArray[np.int32], tokens: int, rows: tuple[int, int] = (FEW, ROWS)) -> Buckets:
    """Buckets for rows like those of a sample: by half of them, by nine in ten and by the longest that can be; each for few and for many.

    Parameters
    ----------
    mask : attention mask of the sample, int32 [M, T]; of a mid-fusion student, of the items alone.
    tokens : the longest row the student takes, or the longest item.
    rows : few and many.
    """
    steps = _steps(mask.sum(axis=1), _SHARES, tokens)
    return check_buckets([(count, length) for length in steps for count in rows], tokens, rows=rows[1])


def choose_lengths(asking: NDArray[np.bool_], tokens: int) -> tuple[int, ...]:
    """Lengths of a query's side that plans are built for, ascending: of nine in ten rows of a sample [M, T], and the longest possible."""
    return tuple(sorted(_steps(asking.sum(axis=1), _SHARES[1:], tokens)))


def _steps(lengths: NDArray[Any], shares: Sequence[float], most: int) -> set[int]:
    return {min(most, -(-int(np.quantile(lengths, share)) // _STEP) * _STEP) for share in shares} | {most}
