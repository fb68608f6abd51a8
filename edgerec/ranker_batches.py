"""The second step of ranking: encode the query with every candidate, and pack the rows into batches of like length."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from . import _core
from .errors import BundleError, InputError
from .features import FeatureEncoder, ItemFeatures, QueryFeatures, Rows
from .text import TextSpec
from .types import Batch

BATCH_ROWS = 16
"""Rows of an engine call. Rows are sorted by length first, so a small batch has little padding."""
BATCH_TOKENS = 2048
"""At most so many tokens in an engine call, padding included: bounds its memory, whatever the candidates are."""


@dataclass(frozen=True, slots=True)
class Table:
    """Candidates whose tokens and features lie in the same arrays: those of the catalogue, or those given whole.

    Attributes
    ----------
    positions : int64 [N], places in the caller's list.
    rows : int64 [N], rows of the arrays below.
    tokens, offsets : int32 [total], int64 [R + 1].
    features : of the R items; no columns when the model has no features.
    """

    positions: NDArray[np.int64]
    rows: NDArray[np.int64]
    tokens: NDArray[np.int32]
    offsets: NDArray[np.int64]
    features: ItemFeatures


class Batcher:
    """Makes engine batches. Immutable, and safe to share between threads.

    Parameters
    ----------
    text : the layout of a row.
    features : None for a model without features.
    """

    def __init__(self, text: TextSpec, features: FeatureEncoder | None) -> None:
        self._text, self._features = text, features
        self._prefix, self._middle, self._suffix = (np.array(ids, np.int32) for ids in (text.prefix, text.middle, text.suffix))

    def batches(
        self, query_tokens: NDArray[np.int32], query_features: QueryFeatures | None, table: Table
    ) -> Iterator[tuple[NDArray[np.int64], Batch]]:
        """Yield the positions, int64 [B], and the batch; the longest rows come first.

        Raises
        ------
        BundleError : the arrays of the table contradict each other, as those of a damaged catalogue do.
        """
        try:
            lengths = table.offsets[table.rows + 1] - table.offsets[table.rows]
            order = np.argsort(-lengths, kind="stable")
            rows, positions = table.rows[order], table.positions[order]
            fixed = len(query_tokens) + self._text.special_tokens
            widths = np.clip(lengths[order] + fixed, 1, self._text.max_tokens).tolist()
            ids, weights = self._feature_rows(query_features, table.features, rows)
            start = 0
            while start < len(rows):
                end = start + max(1, min(BATCH_ROWS, BATCH_TOKENS // widths[start]))
                packed = self._pack(query_tokens, table, rows[start:end], widths[start])
                yield positions[start:end], Batch(*packed, feature_ids=ids[start:end], feature_weights=weights[start:end])
                start = end
        except InputError as e:
            raise BundleError(f"the catalogue is damaged: {e}; open it with verify=True to see where, or build it again") from e

    def _feature_rows(self, query: QueryFeatures | None, items: ItemFeatures, rows: NDArray[np.int64]) -> Rows:
        if query is None or self._features is None:
            return np.zeros((len(rows), 0), np.int32), np.zeros((len(rows), 0), np.float32)
        return self._features.encode_rows(query, items, rows)

    def _pack(
        self, query_tokens: NDArray[np.int32], table: Table, rows: NDArray[np.int64], width: int
    ) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
        spec = self._text
        return _core.pack_pairs(
            query_tokens,
            table.tokens,
            table.offsets,
            rows,
            prefix=self._prefix,
            middle=self._middle,
            suffix=self._suffix,
            pad_id=spec.pad_id,
            query_type=spec.query_type,
            item_type=spec.item_type,
            max_tokens=spec.max_tokens,
            width=width,
        )
