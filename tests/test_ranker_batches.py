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
