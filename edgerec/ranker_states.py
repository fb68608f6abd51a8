"""The second step of ranking with a mid-fusion student: the query's tokens once, and items' stored states in batches of like length."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import BundleError, InputError
from .features import FeatureEncoder, QueryFeatures
from .ranker_batches import REPAIR, Table, feature_rows
from .states import ItemStates
from .text import TextSpec
from .types import RaggedStateBatch, StateBatch

BATCH_ROWS = 32
"""Rows of an engine call: each is a few tokens of query, so a call of few rows would be all overhead."""
WAVE_ROWS = 2048
"""Rows packed before the engine starts; bounds the memory that copies of states take."""


Ask = Callable[[NDArray[np.int32], NDArray[np.int32]], NDArray[Any] | None]


@dataclass(frozen=True, slots=True)
class Asked:
    """The query's part of every batch of a request: ``ids`` int32 [1, R], ``lengths`` int32 [1], ``queries`` [1, R, H] or None."""

    ids: NDArray[np.int32]
    lengths: NDArray[np.int32]
    queries: NDArray[Any] | None


class StateBatcher:
    """Makes batches of states. Immutable, and safe to share between threads.

    Parameters
    ----------
    text : the layout of a row.
    features : None for a model without features.
    lanes : batches that the engine runs at once; each gets about as many of them.
    ask : `edgerec.engine.QueryEngine.encode_queries`, of an engine that has it.
    keeps : whether it is a `edgerec.engine.KeepingEngine`, which wants to know where states come from.
    """

    def __init__(
        self, text: TextSpec, features: FeatureEncoder | None, *, lanes: int = 1, ask: Ask | None = None, keeps: bool = False
    ) -> None:
        self._features, self._lanes, self._ask, self._keeps = features, lanes, ask, keeps
        self._prefix, self._middle = (np.array(ids, np.int32) for ids in (text.prefix, text.middle))
        self._longest = text.max_item_tokens + len(text.suffix)

    def query(self, query_tokens: NDArray[np.int32]) -> Asked:
        """What is computed of the query once a request. Raises EngineError."""
        ids = np.concatenate([self._prefix, query_tokens, self._middle])[None]
        lengths = np.array([ids.shape[1]], np.int32)
        return Asked(ids, lengths, self._ask(ids, lengths) if self._ask is not None else None)

    def waves(
        self, asked: Asked, query_features: QueryFeatures | None, table: Table
    ) -> Iterator[list[tuple[NDArray[np.int64], StateBatch]]]:
        """Yield batches with the positions of their rows, int64 [B], the longest items first.

        Raises
        ------
        BundleError : the arrays of the table contradict each other, as those of a damaged catalogue do.
        """
        assert table.states is not None
        lengths = self._lengths(table.states, table.rows)
        order = np.argsort(-lengths, kind="stable")
        rows, lengths = table.rows[order], lengths[order]
        positions = order if table.positions is None else table.positions[order]
        try:
            ids, weights = feature_rows(self._features, query_features, table.features, rows)
        except InputError as e:
            raise BundleError(f"the catalogue is damaged: {e}; {REPAIR}") from e
        count = -(-len(rows) // (self._lanes * BATCH_ROWS)) * self._lanes  # as many batches for each lane
        cuts = [part for part in np.array_split(np.arange(len(rows)), max(1, count)) if len(part)]
        wave: list[tuple[NDArray[np.int64], StateBatch]] = []
        packed = 0
        for number, part in enumerate(cuts):
            values, scales = _gather(table.states, rows[part], int(lengths[part[0]]))
            batch = StateBatch(
                query_ids=asked.ids,
                query_lengths=asked.lengths,
                query_index=np.zeros(len(part), np.int32),
                states=values,
                scales=scales,
                item_lengths=lengths[part].astype(np.int32),
                feature_ids=ids[part],
                feature_weights=weights[part],
                queries=asked.queries,
            )
            wave.append((positions[part], batch))
            packed += len(part)
            if packed >= WAVE_ROWS or number + 1 == len(cuts):
                yield wave
                wave, packed = [], 0

    def ragged(
        self, query_tokens: NDArray[np.int32], query_features: QueryFeatures | None, table: Table
    ) -> Iterator[list[tuple[NDArray[np.int64], RaggedStateBatch]]]:
        """Yield all rows, in the order of the table, in one call; states are left where they are.

        Raises
        ------
        BundleError : as `waves` does.
        """
        states = table.states
        assert states is not None
        lengths = self._lengths(states, table.rows)
        try:
            features = feature_rows(self._features, query_features, table.features, table.rows)
        except InputError as e:
            raise BundleError(f"the catalogue is damaged: {e}; {REPAIR}") from e
        head = np.concatenate([self._prefix, query_tokens, self._middle])
        positions = np.arange(len(table.rows)) if table.positions is None else table.positions
        starts, source = states.offsets[table.rows], table.origin.of("states", table.rows) if self._keeps and table.origin else None
        yield [(positions, RaggedStateBatch(head, states.values, states.scales, starts, lengths, *features, source=source))]

    def _lengths(self, states: ItemStates, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        starts, ends = states.offsets[rows], states.offsets[rows + 1]
        lengths: NDArray[np.int64] = ends - starts
        if len(rows) and (starts.min() < 0 or ends.max() > len(states.values) or lengths.min() < 1 or lengths.max() > self._longest):
            raise BundleError(f"the catalogue is damaged: states of an item from {starts.min()} to {ends.max()} are out of place; {REPAIR}")
        return lengths


def _gather(states: ItemStates, rows: NDArray[np.int64], width: int) -> tuple[NDArray[np.generic], NDArray[np.float32]]:
    """Values [B, width, G * W] and scales [B, width, G]; what lies behind an item's end is another's, and is not read."""
    places = states.offsets[rows][:, None] + np.arange(width)
    np.minimum(places, len(states.values) - 1, out=places)
    return states.values[places], states.scales[places]
