"""The nearest items of a large catalogue: those of a plain sort, whatever the number of blocks, and ties in catalogue order."""

from __future__ import annotations

import numpy as np
import pytest

from edgerec.ranker_retrieve import SCAN_ROWS, nearest
from edgerec.vectors import ItemVectors


@pytest.mark.parametrize("items", [1, SCAN_ROWS, SCAN_ROWS + 1, 1_000_000])
def test_the_nearest_are_those_of_a_plain_sort(items: int) -> None:
    rng = np.random.default_rng(items)
    values, query = rng.integers(-8, 9, (items, 8), dtype=np.int8), rng.integers(-127, 128, 8, dtype=np.int8)
    scales = rng.choice(np.float32([0.01, 0.02]), items)  # few different scores: many ties
    expected = (values.astype(np.int32) @ query.astype(np.int32)).astype(np.float32) * (np.float32(0.5) * scales)
    rows, scores = nearest(query, 0.5, [ItemVectors(values, scales)], 100)
    order = np.argsort(-expected, kind="stable")[:100]
    np.testing.assert_array_equal(rows, order)
    np.testing.assert_array_equal(scores, expected[order])
