"""The second step of ranking: encode the query with every candidate, and pack the rows as the engine wants them: in batches of like
length, or as they are, all at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from . import _core
from .catalog import Catalog, Origin
from .engine import KeepingEngine
from .errors import BundleError, InputError
from .features import FeatureEncoder, ItemFeatures, QueryFeatures, Rows
from .states import ItemStates
from .text import TextSpec
from .types import Batch, RaggedBatch, RaggedItemBatch

BATCH_ROWS = 16
"""Rows of an engine call. Rows are sorted by length first, so a small batch has little padding."""
BATCH_TOKENS = 2048
"""At most so many tokens in an engine call, padding included: bounds its memory, whatever the candidates are."""
WAVE_TOKENS = 1 << 18
"""Tokens packed before the engine starts (3 MiB). The engine empties the processor's caches, so Python between two of its calls is several
times slower than the same Python in one go."""
REPAIR = "open it with verify=True to see where, or build it again"


@dataclass(frozen=True, slots=True)
class Table:
    """Candidates whose tokens and features lie in the same arrays: those of the catalogue, or those given whole.

    Attributes
    ----------
    positions : int64 [N], places in the caller's list; None: 0 to N - 1.
    rows : int64 [N], rows of the arrays below.
    tokens, offsets : int32 [total], int64 [R + 1].
    features : of the R items; no fields when the model has no features.
    states : of the R items, for a mid-fusion student.
    origin : whence the arrays come; None for candidates given whole.
    """

    positions: NDArray[np.int64] | None
    rows: NDArray[np.int64]
    tokens: NDArray[np.int32]
    offsets: NDArray[np.int64]
    features: ItemFeatures
    states: ItemStates | None = None
    origin: Origin | None = None


class Batcher:
    """Makes engine batches. Immutable, and safe to share between threads.

    Parameters
    ----------
    text : the layout of a row.
    features : None for a model without features.
    lanes : batches that the engine runs at once; each gets about as many of them.
    """

    def __init__(self, text: TextSpec, features: FeatureEncoder | None, *, lanes: int = 1) -> None:
        self._text, self._features, self._lanes = text, features, lanes
        self._frame = _core.PairFrame(
            *(np.array(ids, np.int32) for ids in (text.prefix, text.middle, text.suffix)),
            pad_id=text.pad_id,
            query_type=text.query_type,
            item_type=text.item_type,
            max_tokens=text.max_tokens,
        )

    def waves(
        self, query_tokens: NDArray[np.int32], query_features: QueryFeatures | None, table: Table
    ) -> Iterator[list[tuple[NDArray[np.int64], Batch]]]:
        """Yield batches with the positions of their rows, int64 [B]; all of a wave are packed before the engine sees the first.

        The longest rows come first.

        Raises
        ------
        BundleError : the arrays of the table contradict each other, as those of a damaged catalogue do.
        """
        try:
            fixed = min(len(query_tokens) + self._text.special_tokens, self._text.max_tokens)
            order, lengths = _core.longest_first(table.offsets, table.rows, self._text.max_tokens - fixed)
            rows = table.rows[order]
            positions = order if table.positions is None else table.positions[order]
            ids, weights = feature_rows(self._features, query_features, table.features, rows)
            most = -(-len(rows) // (self._lanes * -(-len(rows) // (self._lanes * BATCH_ROWS)))) if len(rows) else 1
            end = tokens = 0
            wave: list[tuple[NDArray[np.int64], Batch]] = []
            while end < len(rows):
                begin, width = end, max(1, fixed + int(lengths[end]))  # no engine takes rows of width 0
                end = min(begin + max(1, min(most, BATCH_TOKENS // width)), len(rows))
                packed = self._frame.pack(query_tokens, table.tokens, table.offsets, rows[begin:end], width)
                wave.append((positions[begin:end], Batch(*packed, feature_ids=ids[begin:end], feature_weights=weights[begin:end])))
                tokens += (end - begin) * width
                if tokens >= WAVE_TOKENS or end == len(rows):
                    yield wave
                    tokens, wave = 0, []
        except InputError as e:
            raise BundleError(f"the catalogue is damaged: {e}; {REPAIR}") from e

    def ragged(
        self, query_tokens: NDArray[np.int32], query_features: QueryFeatures | None, table: Table
    ) -> Iterator[list[tuple[NDArray[np.int64], RaggedBatch]]]:
        """Yield all rows, in the order of the table, in as few calls as memory allows: mostly one.

        Raises
        ------
        BundleError : as `waves` does.
        """
        most = max(1, WAVE_TOKENS // self._text.max_tokens)
        for begin in range(0, len(table.rows), most):
            rows = table.rows[begin : begin + most]
            end = begin + len(rows)
            positions = np.arange(begin, end) if table.positions is None else table.positions[begin:end]
            try:
                packed = self._frame.pack_ragged(query_tokens, table.tokens, table.offsets, rows)
                features = feature_rows(self._features, query_features, table.features, rows)
            except InputError as e:
                raise BundleError(f"the catalogue is damaged: {e}; {REPAIR}") from e
            yield [(positions, RaggedBatch(*packed, *features))]

    def items(
        self, query_tokens: NDArray[np.int32], query_features: QueryFeatures | None, table: Table
    ) -> Iterator[list[tuple[NDArray[np.int64], RaggedItemBatch]]]:
        """Yield all rows, in the order of the table, in one call; tokens of items are left where they are.

        Raises
        ------
        BundleError : as `waves` does.
        """
        text, rows = self._text, table.rows
        head = np.concatenate([text.prefix, query_tokens, text.middle], dtype=np.int32, casting="same_kind")
        starts, ends = table.offsets[rows], table.offsets[rows + 1]
        if len(rows) and (starts.min() < 0 or ends.max() > len(table.tokens) or (ends < starts).any()):
            raise BundleError(f"the catalogue is damaged: tokens of an item from {starts.min()} to {ends.max()} are out of place; {REPAIR}")
        lengths = np.minimum(ends - starts, text.max_tokens - len(head) - len(text.suffix))
        try:
            features = feature_rows(self._features, query_features, table.features, rows)
        except InputError as e:
            raise BundleError(f"the catalogue is damaged: {e}; {REPAIR}") from e
        positions = np.arange(len(rows)) if table.positions is None else table.positions
        source = table.origin.of("tokens", rows) if table.origin is not None else None
        yield [(positions, RaggedItemBatch(head, table.tokens, starts, lengths, *features, source=source))]


def keep_tables(engine: object, catalog: Catalog | None, *, wait: bool) -> None:
    """Have an engine that copies a catalogue's tables to where it works copy those of this one, if it is one of that kind."""
    if catalog is not None and isinstance(engine, KeepingEngine):
        engine.keep([segment.table(engine.keeps) for segment in catalog.segments], wait=wait)


def feature_rows(features: FeatureEncoder | None, query: QueryFeatures | None, items: ItemFeatures, rows: NDArray[np.int64]) -> Rows:
    """Ids and weights of the query with some items, [N, F] each; F is 0 for a model without features. Raises InputError."""
    if query is None or features is None:
        return np.zeros((len(rows), 0), np.int32), np.zeros((len(rows), 0), np.float32)
    return features.encode_rows(query, items, rows)
