"""Which bucket of a plan runs which rows."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from edgerec.engine.trt_buckets import share_out

BUCKETS = ((4, 16), (16, 16), (4, 32), (16, 32))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 32), max_size=100))
def test_every_row_is_in_one_bucket_that_is_long_enough(lengths: list[int]) -> None:
    ordered = np.array(sorted(lengths, reverse=True), np.int64)
    parts = share_out(ordered, BUCKETS)
    assert [begin for _, begin, _ in parts] == [0, *(end for _, _, end in parts[:-1])] if parts else not lengths
    assert sum(end - begin for _, begin, end in parts) == len(lengths)
    for bucket, begin, end in parts:
        most, tokens = BUCKETS[bucket]
        assert 0 < end - begin <= most
        assert ordered[begin] <= tokens


def test_short_rows_do_not_run_in_long_buckets_without_need() -> None:
    many, few = (128, 64), (32, 64)
    buckets = ((32, 16), (128, 16), few, many)
    mostly_short = np.array([60] * 10 + [12] * 90, np.int64)
    assert [buckets[b] for b, _, _ in share_out(mostly_short, buckets)] == [few, (128, 16)]
    assert [buckets[b] for b, _, _ in share_out(np.full(100, 60), buckets)] == [many]
    assert [buckets[b] for b, _, _ in share_out(np.full(10, 60), buckets)] == [few]
