"""Scores of many int8 vectors: exact sums, the same bits on every instruction set, and the best of them by a stream."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgerec import InputError
from edgerec._core import TopK, isa, isas, scan, set_isa, topk


@pytest.fixture(autouse=True)
def restore() -> Iterator[None]:
    before = isa()
    yield
    set_isa(before)


def slow(query: NDArray[np.int8], query_scale: float, vectors: NDArray[np.int8], scales: NDArray[np.float32]) -> NDArray[np.float32]:
    sums = vectors.reshape(len(scales), len(query)).astype(np.int64) @ query.astype(np.int64)
    with np.errstate(all="ignore"):
        found: NDArray[np.float32] = sums.astype(np.float32) * (np.float32(query_scale) * scales)
    return found


def arrays(seed: int, n: int, width: int) -> tuple[NDArray[np.int8], NDArray[np.int8], NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    query, vectors = (rng.integers(-128, 128, size).astype(np.int8) for size in (width, n * width))
    return query, vectors, rng.choice(np.float32([1, -0.25, 1e-30, 3e38, np.nan, np.inf, 0]), n)


@given(seed=st.integers(0, 10**6), n=st.integers(0, 300), width=st.integers(1, 200), query_scale=st.floats(-10, 10, width=32))
def test_every_instruction_set_gives_the_oracles_bits(seed: int, n: int, width: int, query_scale: float) -> None:
    query, vectors, scales = arrays(seed, n, width)
    expected = slow(query, query_scale, vectors, scales)
    for name in isas():
        set_isa(name)
        found = scan(query, query_scale, vectors, scales)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected)


@given(seed=st.integers(0, 10**6), n=st.integers(1, 600), k=st.integers(1, 50), block=st.integers(1, 200))
def test_the_best_of_a_scan_in_blocks_are_those_of_all_scores(seed: int, n: int, k: int, block: int) -> None:
    query, vectors, scales = arrays(seed, n, 4)
    top = TopK(k)
    for begin in range(0, n, block):
        top.push(scan(query, 0.5, vectors[4 * begin : 4 * (begin + block)], scales[begin : begin + block]), begin)
    for found, expected in zip(top.finish(), topk(slow(query, 0.5, vectors, scales), k), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_memory_mapped_vectors_are_taken_as_they_lie(tmp_path: Any) -> None:
    query, vectors, scales = arrays(1, 50, 64)
    (tmp_path / "vectors").write_bytes(b"xyz" + vectors.tobytes())
    mapped = np.memmap(tmp_path / "vectors", np.int8, "r", offset=3)
    np.testing.assert_array_equal(scan(query, 1.0, mapped, scales), slow(query, 1.0, vectors, scales))


@pytest.mark.parametrize(
    "change",
    [
        {"query": np.zeros(0, np.int8)},
        {"query": np.zeros(3, np.int8)},
        {"query": np.zeros(65537, np.int8), "vectors": np.zeros(2 * 65537, np.int8)},
        {"query": np.zeros(4, np.uint8)},
        {"vectors": np.zeros((2, 4), np.int8)},
        {"vectors": np.zeros(7, np.int8)},
        {"vectors": np.zeros(16, np.int8)[::2]},
        {"scales": np.zeros(2, np.float64)},
        {"scales": [1.0, 1.0]},
    ],
    ids=str,
)
def test_wrong_arrays_are_input_errors(change: dict[str, Any]) -> None:
    given_: dict[str, Any] = {
        "query": np.zeros(4, np.int8),
        "query_scale": 1.0,
        "vectors": np.zeros(8, np.int8),
        "scales": np.ones(2, np.float32),
    }
    assert len(scan(**given_)) == 2
    with pytest.raises(InputError):
        scan(**{**given_, **change})


def test_a_scale_that_is_no_number_is_refused() -> None:
    with pytest.raises(InputError, match="query_scale must be a number"):
        scan(np.zeros(1, np.int8), "much", np.zeros(1, np.int8), np.ones(1, np.float32))  # type: ignore[arg-type]
