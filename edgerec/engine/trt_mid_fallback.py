"""The CPU engine that a mid-fusion student's TensorRT bundle carries; see `edgerec.engine.trt_fallback`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from time import monotonic_ns
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bundle import Manifest
from ..types import RaggedStateBatch, StateBatch
from . import Limits, QueryEngine, RaggedMidEngine


def open_mid_fallback(
    root: Path, manifest: Manifest, model: Mapping[str, Any], limits: Limits, fallback: Sequence[str], *, threads: int | None
) -> CpuMidEngine:
    """The CPU engine, ``(backend, precision)`` of ``plans.json``, of a bundle. Raises BundleError, EngineError, MissingExtraError."""
    backend, precision = fallback
    named = replace(manifest, backend=backend, precision=precision)
    if backend == "native":
        from .mid_native import MidNativeEngine

        return CpuMidEngine(MidNativeEngine(root, named, model, limits, threads=threads))
    from .mid_ort import open_mid_ort

    return CpuMidEngine(open_mid_ort(root, named, model, limits, threads=threads, spinning=False))


class CpuMidEngine:
    """A `edgerec.engine.RaggedMidEngine` in place of the plans, or until they fail.

    Attributes
    ----------
    note : why it scores; results repeat it. Empty: it does not.
    """

    _ROWS = 64

    def __init__(self, engine: QueryEngine) -> None:
        self.backend, self.precision, self.note = engine.backend, engine.precision, ""
        self._engine = engine
        # As of the engine itself.
        self.run, self.run_states, self.close = engine.run, engine.run_states, engine.close
        self.encode_items, self.encode_ragged, self.encode_queries = engine.encode_items, engine.encode_ragged, engine.encode_queries

    def run_ragged_states(
        self, batch: RaggedStateBatch, *, deadline_ns: int = 0, done: NDArray[np.bool_] | None = None
    ) -> NDArray[np.float32]:
        """See `edgerec.engine.RaggedMidEngine`; one that wants rows padded gets 64 at a time, and looks at the clock between."""
        engine = self._engine
        if isinstance(engine, RaggedMidEngine):
            return engine.run_ragged_states(batch, deadline_ns=deadline_ns, done=done)
        logits = np.full(batch.size, np.nan, np.float32)
        scored = np.zeros(batch.size, np.bool_) if done is None else done
        scored[:] = False
        ids, length = batch.query_ids[None], np.array([len(batch.query_ids)], np.int32)
        queries = engine.encode_queries(ids, length)
        order = np.argsort(-batch.lengths, kind="stable")
        for begin in range(0, batch.size, self._ROWS):
            if deadline_ns and monotonic_ns() >= deadline_ns:
                break
            rows = order[begin : begin + self._ROWS]
            places = batch.starts[rows][:, None] + np.arange(int(batch.lengths[rows[0]]))
            np.minimum(places, len(batch.states) - 1, out=places)  # behind an item's end is another's, which is not read
            logits[rows] = engine.run_states(
                StateBatch(
                    query_ids=ids,
                    query_lengths=length,
                    query_index=np.zeros(len(rows), np.int32),
                    states=batch.states[places],
                    scales=batch.scales[places],
                    item_lengths=batch.lengths[rows].astype(np.int32),
                    feature_ids=batch.feature_ids[rows],
                    feature_weights=batch.feature_weights[rows],
                    queries=queries,
                )
            )
            scored[rows] = True
        return logits
