"""Batches: what the engine is handed, where the serve path's own tests do not look."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from edgerec.features import NO_FEATURES
from edgerec.ranker_batches import Batcher, Table
from edgerec.text import TextSpec


def test_rows_without_any_token_are_packed_one_token_wide():
    """A layout without special tokens, an empty query and an item without text: nothing but padding is left."""
    spec = TextSpec(
        max_tokens=8, max_query_tokens=2, item_fields=("title",), prefix=(), middle=(), suffix=(), pad_id=7, query_type=0, item_type=1
    )
    table = Table(None, np.arange(3), np.array([5], np.int32), np.array([0, 0, 1, 1]), NO_FEATURES)
    batcher = Batcher(spec, None)
    (wave,) = batcher.waves(np.empty(0, np.int32), None, table)
    ((positions, batch),) = wave
    assert positions.tolist() == [1, 0, 2]
    assert batch.input_ids.tolist() == [[5], [7], [7]]
    table = replace(table, rows=np.array([0, 2]))
    ((positions, batch),) = next(batcher.waves(np.empty(0, np.int32), None, table))
    assert batch.input_ids.tolist() == [[7], [7]]
    assert batch.attention_mask.tolist() == [[0], [0]]
    ((positions, ragged),) = next(batcher.ragged(np.empty(0, np.int32), None, table))
    assert (positions.tolist(), ragged.lengths.tolist(), ragged.ids.tolist()) == ([0, 1], [1, 1], [7, 7])


def test_ragged_rows_are_the_padded_ones_in_the_order_of_the_table(monkeypatch):
    spec = TextSpec(
        max_tokens=9, max_query_tokens=3, item_fields=("title",), prefix=(2,), middle=(3,), suffix=(4,), pad_id=0, query_type=0, item_type=1
    )
    rng = np.random.default_rng(1)
    lengths = rng.integers(0, 9, 40)
    tokens = rng.integers(5, 90, lengths.sum()).astype(np.int32)
    rows = rng.permutation(40)[:30]
    table = Table(rng.permutation(100)[:30], rows, tokens, np.concatenate([[0], np.cumsum(lengths)]), NO_FEATURES)
    batcher, query = Batcher(spec, None), np.array([50, 51], np.int32)
    padded = {}
    for wave in batcher.waves(query, None, table):
        for positions, batch in wave:
            for place, ids, mask, types in zip(positions, batch.input_ids, batch.attention_mask, batch.token_type_ids, strict=True):
                padded[int(place)] = (ids[mask == 1].tolist(), types[mask == 1].tolist())
    for most, calls in ((1 << 18, 1), (9 * 7, 5), (1, 30)):
        monkeypatch.setattr("edgerec.ranker_batches.WAVE_TOKENS", most)
        seen, order = {}, []
        for wave in batcher.ragged(query, None, table):
            ((positions, batch),) = wave
            order.append(positions)
            for place, start, length in zip(positions, batch.starts, batch.lengths, strict=True):
                seen[int(place)] = (batch.ids[start : start + length].tolist(), batch.types[start : start + length].tolist())
            assert batch.feature_ids.shape == (batch.size, 0)
        assert (seen, len(order)) == (padded, calls)
        np.testing.assert_array_equal(np.concatenate(order), table.positions)
