"""A mid-fusion student on the native engine: one ``engine.bin`` holds the item encoder and the ranker.

Shape letters: B rows, U items, Q queries, R query tokens, T tokens, G states of a token, W width of a state.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bundle import BundleReader, Manifest
from ..errors import EngineError
from ..states import PRECISIONS, ItemStates
from ..types import RaggedStateBatch, StateBatch
from . import Limits
from .mid import Ints, MidRunner
from .native import EngineFile, engine_errors, flat_features


class MidNativeEngine(MidRunner):
    """Runs ``engine.bin``. See `edgerec.engine.RaggedMidEngine`.

    States are read where they lie and written as they are stored. A row's logit, and an item's states, are the same bits in any company
    and on any number of threads.

    Parameters
    ----------
    root, manifest : the bundle; the engine file is verified against the manifest.
    model : the decoded ``model.json``.
    limits : what the student accepts.
    threads : threads that work on one call, the caller's included; None: the cores this process may use.
    files : as of `NativeEngine`.

    Raises
    ------
    BundleError : the engine file is damaged, or is not that of the model in ``model.json``.
    EngineError : too many threads, for the engine or for the system.
    """

    def __init__(
        self,
        root: Path,
        manifest: Manifest,
        model: Mapping[str, Any],
        limits: Limits,
        *,
        threads: int | None = None,
        files: BundleReader | None = None,
    ) -> None:
        self._file = EngineFile(root, manifest, limits, threads=threads, files=files)
        super().__init__(model, limits, None, self._rank, backend="native", precision=manifest.precision, close=self._file.close)
        encoder, spec, student = self._file.encoder(), self._spec, model["student"]
        if encoder.states != (spec.groups, spec.width, spec.precision):
            raise self._file.other_student("item states")
        if encoder.sides != (self._layout.item_start, self._layout.query_type, student.get("item_type")):
            raise self._file.other_student("the places or types of tokens")
        if encoder.hidden != self._hidden:
            raise self._file.other_student("hidden sizes")

    def encode_items(self, ids: Ints, lengths: Ints) -> tuple[NDArray[Any], NDArray[np.float32]]:
        """See `edgerec.engine.MidEngine`; zeros behind an item's end."""
        self._check_tokens("item_ids", ids, lengths, self._layout.item_tokens)
        rows, width = ids.shape
        starts = np.arange(0, rows * width, width, dtype=np.int64) if rows else np.zeros(0, np.int64)
        values, scales = self._encode_rows(np.ascontiguousarray(ids).reshape(-1), starts, lengths.astype(np.int64))
        return values.reshape(rows, width, self._spec.numbers), scales.reshape(rows, width, self._spec.scales)

    def encode_ragged(self, tokens: Ints, offsets: NDArray[np.int64]) -> ItemStates:
        """See `edgerec.engine.MidEngine`: all items in one call."""
        suffix = np.array(self._layout.suffix, np.int32)
        lengths = np.diff(offsets) + len(suffix)
        ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
        ids = np.empty(int(ends[-1]), np.int32)
        own = np.ones(len(ids), np.bool_)
        own[(ends[1:, None] - np.arange(1, len(suffix) + 1)).reshape(-1)] = False
        ids[own] = tokens[int(offsets[0]) : int(offsets[-1])]
        ids[~own] = np.tile(suffix, len(lengths))
        values, scales = self._encode_rows(ids, ends[:-1], lengths)
        return ItemStates(values.reshape(len(ids), self._spec.numbers), scales.reshape(len(ids), self._spec.scales), ends)

    def encode_queries(self, ids: Ints, lengths: Ints) -> NDArray[np.float32]:
        """See `edgerec.engine.QueryEngine`; zeros behind a query's end. For retrieval: `run_states` computes them itself."""
        self._check_tokens("query_ids", ids, lengths, self._layout.item_start)
        encoder = self._file.encoder()
        rows = np.zeros((*ids.shape, self._hidden), np.float32)
        with engine_errors():
            for query, length in enumerate(lengths.tolist()):
                rows[query, :length] = encoder.query_rows(np.ascontiguousarray(ids[query, :length]))
        return rows

    def run_ragged_states(
        self, batch: RaggedStateBatch, *, deadline_ns: int = 0, done: NDArray[np.bool_] | None = None
    ) -> NDArray[np.float32]:
        """See `edgerec.engine.RaggedMidEngine`: one call, straight over the table."""
        encoder = self._file.encoder()
        self._limits.check_features(batch.feature_ids, batch.feature_weights, batch.size)
        features = flat_features(batch.feature_ids, batch.feature_weights)
        values, scales = batch.states.reshape(-1), batch.scales.reshape(-1)
        with engine_errors():
            return encoder.rank(batch.query_ids, values, scales, batch.starts, batch.lengths, *features, deadline_ns=deadline_ns, done=done)

    def _rank(self, batch: StateBatch) -> NDArray[np.float32]:
        """Padded rows of several queries: a call for each query."""
        tokens, width = batch.size * batch.states.shape[1], batch.states.shape[1]
        states = np.ascontiguousarray(batch.states).reshape(tokens, self._spec.numbers)
        scales = np.ascontiguousarray(batch.scales).reshape(tokens, self._spec.scales)
        starts, lengths = np.arange(batch.size, dtype=np.int64) * width, batch.item_lengths.astype(np.int64)
        logits = np.empty(batch.size, np.float32)
        for query in sorted(set(batch.query_index.tolist())):  # np.unique imports numpy.ma, 17 ms
            rows = np.flatnonzero(batch.query_index == query)
            if batch.query_lengths[query] < 1:
                raise EngineError(f"batch: query {query} has no token")
            logits[rows] = self.run_ragged_states(
                RaggedStateBatch(
                    np.ascontiguousarray(batch.query_ids[query, : batch.query_lengths[query]]),
                    states,
                    scales,
                    starts[rows],
                    lengths[rows],
                    batch.feature_ids[rows],
                    batch.feature_weights[rows],
                )
            )
        return logits

    def _encode_rows(self, ids: Ints, starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[np.float32]]:
        """Stored states [total * G * W] and scales [total * G] of the tokens of ``ids`` [total]; zeros where no row is."""
        values = np.zeros(len(ids) * self._spec.numbers, PRECISIONS[self._spec.precision])
        scales = np.zeros(len(ids) * self._spec.scales, np.float32)
        encoder = self._file.encoder()
        with engine_errors():
            encoder.encode(ids, starts, lengths, values, scales)
        return values, scales
