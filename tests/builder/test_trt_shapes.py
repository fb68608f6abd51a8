"""Buckets: what is given is checked, what is not given follows the lengths of real rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgerec.builder.trt_shapes import check_buckets, choose_buckets, parse_buckets
from edgerec.errors import BuildError


def test_buckets_are_read_and_put_in_order() -> None:
    assert check_buckets(parse_buckets("128x64, 32x16,128x32"), 64) == ((32, 16), (128, 32), (128, 64))


@pytest.mark.parametrize("text", ["", "32", "32x", "x16", "32x16,", "32*16", "-1x16", "axb", "32x16;64x16", "1e3x16"])
def test_what_is_no_bucket_is_refused(text: str) -> None:
    with pytest.raises(BuildError, match="expected ROWSxTOKENS"):
        parse_buckets(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0x64", "out of range"),
        ("5000x64", "out of range"),
        ("32x65", "at most 64 tokens"),
        ("32x16,32x32", "a row may have 64; add one, for example 128x64"),
        ("32x64,32x64", "no two alike"),
        (",".join(f"{rows}x64" for rows in range(1, 20)), "expected 1 to 16"),
    ],
)
def test_buckets_that_do_not_serve_the_student_are_refused(text: str, message: str) -> None:
    with pytest.raises(BuildError, match=message):
        check_buckets(parse_buckets(text), 64)


@given(st.lists(st.integers(1, 64), min_size=1, max_size=50))
def test_chosen_buckets_take_every_row_and_are_few(lengths: list[int]) -> None:
    mask = (np.arange(64) < np.array(lengths)[:, None]).astype(np.int32)
    buckets = choose_buckets(mask, 64)
    assert check_buckets(buckets, 64) == buckets
    sizes = sorted({tokens for _, tokens in buckets})
    assert len(sizes) <= 3
    assert sizes[-1] == 64
    # Half of the rows need not run in a bucket much longer than they are.
    assert sizes[0] <= min(64, np.median(lengths) + 8)
