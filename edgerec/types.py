"""The records that travel between the rooms: item, user, batch, result.

Shape letters, here and everywhere: Q queries, N candidates, B engine batch, T tokens, F feature slots, K returned.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Item:
    """One thing the shop sells (a line of ``corpus.jsonl``).

    ``price`` is in the shop's currency; ``None`` or ``""`` means unknown, and the feature spec's missing policy applies.
    """

    id: str
    title: str
    text: str = ""
    brand: str = ""
    category: str = ""
    price: float | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class UserProfile:
    """What is known of the searcher: weights in [0, 1] by value, e.g. ``brands={"acme": 0.8}``."""

    id: str = ""
    brands: Mapping[str, float] = field(default_factory=dict)
    categories: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RaggedBatch:
    """One call of an engine that takes rows of any lengths, end to end. All arrays C-contiguous.

    Attributes
    ----------
    ids, types : int32 [total], tokens and their types
    starts, lengths : int64 [B]; row i is ``ids[starts[i] : starts[i] + lengths[i]]``
    feature_ids : int32 [B, F]; F may be 0 (a student without features)
    feature_weights : float32 [B, F]; 0 in unused slots
    """

    ids: NDArray[np.int32]
    types: NDArray[np.int32]
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    feature_ids: NDArray[np.int32]
    feature_weights: NDArray[np.float32]

    @property
    def size(self) -> int:
        """B, the number of rows."""
        return len(self.lengths)


@dataclass(frozen=True, slots=True)
class Batch:
    """One engine call. Rows are padded on the right; all arrays C-contiguous.

    Attributes
    ----------
    input_ids, attention_mask, token_type_ids : int32 [B, T]
    feature_ids : int32 [B, F]; F may be 0 (a student without features)
    feature_weights : float32 [B, F]; 0 in unused slots
    """

    input_ids: NDArray[np.int32]
    attention_mask: NDArray[np.int32]
    token_type_ids: NDArray[np.int32]
    feature_ids: NDArray[np.int32]
    feature_weights: NDArray[np.float32]

    @property
    def size(self) -> int:
        """B, the number of rows."""
        return int(self.input_ids.shape[0])


@dataclass(frozen=True, slots=True)
class StateBatch:
    """One call of an engine whose items are states already, see `edgerec.states`. What lies behind a length is never read.

    Attributes
    ----------
    query_ids : int32 [Q, R], ``prefix + query + middle``, padded on the right
    query_lengths : int32 [Q]
    query_index : int32 [B], each row's query
    states, scales : [B, T, G * W] as they are stored, and float32 [B, T, G]; no scales but for int8
    item_lengths : int32 [B]
    feature_ids, feature_weights : int32 and float32 [B, F]; F may be 0
    queries : what `edgerec.engine.QueryEngine.encode_queries` made of the queries, [Q, R, H]; None: the engine does it itself
    """

    query_ids: NDArray[np.int32]
    query_lengths: NDArray[np.int32]
    query_index: NDArray[np.int32]
    states: NDArray[Any]
    scales: NDArray[np.float32]
    item_lengths: NDArray[np.int32]
    feature_ids: NDArray[np.int32]
    feature_weights: NDArray[np.float32]
    queries: NDArray[Any] | None = None

    @property
    def size(self) -> int:
        """B, the number of rows."""
        return len(self.query_index)


@dataclass(frozen=True, slots=True)
class StoredTable:
    """A table that never changes, such as each of a catalogue's segments has for item states, and for item tokens.

    Attributes
    ----------
    key : says which it is.
    columns : [total, ...] each, end to end for all its items.
    """

    key: str
    columns: tuple[NDArray[Any], ...]


@dataclass(frozen=True, slots=True)
class TableSource:
    """Where items are in tables that never change.

    Attributes
    ----------
    keys : which tables, by `StoredTable.key`.
    owners, starts : int64 [N] each: of every item its table, by number, and its first token there.
    """

    keys: tuple[str, ...]
    owners: NDArray[np.int64]
    starts: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class RaggedItemBatch:
    """One query, and items as tokens that lie in a table of any size, such as a catalogue's. All arrays C-contiguous.

    Attributes
    ----------
    query_ids : int32 [R], ``prefix + query + middle``
    tokens : int32 [total]
    starts, lengths : int64 [B]; item i is ``tokens[starts[i] : starts[i] + lengths[i]]``, cut to what the query leaves it
    feature_ids, feature_weights : int32 and float32 [B, F]; F may be 0
    source : of the B items, for an engine that has copies of such tables; None where there are none
    """

    query_ids: NDArray[np.int32]
    tokens: NDArray[np.int32]
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    feature_ids: NDArray[np.int32]
    feature_weights: NDArray[np.float32]
    source: TableSource | None = None

    @property
    def size(self) -> int:
        """B, the number of rows."""
        return len(self.lengths)


@dataclass(frozen=True, slots=True)
class RaggedStateBatch:
    """One query, and items as states that lie in a table of any size, such as a catalogue's. All arrays C-contiguous.

    Attributes
    ----------
    query_ids : int32 [R], ``prefix + query + middle``
    states, scales : [total, G * W] as they are stored, and float32 [total, G]; no scales but for int8
    starts, lengths : int64 [B]; row i has the tokens ``starts[i]`` to ``starts[i] + lengths[i]`` of the table
    feature_ids, feature_weights : int32 and float32 [B, F]; F may be 0
    source : of the B rows, for an engine that has copies of such tables; None where there are none
    """

    query_ids: NDArray[np.int32]
    states: NDArray[Any]
    scales: NDArray[np.float32]
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    feature_ids: NDArray[np.int32]
    feature_weights: NDArray[np.float32]
    source: TableSource | None = None

    @property
    def size(self) -> int:
        """B, the number of rows."""
        return len(self.lengths)


@dataclass(frozen=True, slots=True)
class RankedList:
    """The answer to one query.

    Attributes
    ----------
    ids : the K best candidates, best first. Ties keep candidate order. Those there was no time for follow, in candidate order.
    scores : float32 [K], the engine's logits; larger is better. NaN for those there was no time for.
    skipped : candidates that cannot be ranked, as ``(id, reason)``.
    timings_us : microseconds by stage: ``lookup encode score select total``.
    model_version : the bundle's identity, ``manifest.json: model_version``.
    degraded : some candidates were not scored, for want of time; or the CPU scored them in place of a GPU.
    reason : how many, or why the CPU did; empty otherwise.
    """

    ids: tuple[str, ...]
    scores: NDArray[np.float32]
    skipped: tuple[tuple[str, str], ...]
    timings_us: Mapping[str, float]
    model_version: str
    degraded: bool = False
    reason: str = ""

    def __len__(self) -> int:
        return len(self.ids)
