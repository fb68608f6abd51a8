"""The CPU engine that a TensorRT bundle carries, for machines its plans do not fit and GPUs that fail."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from time import monotonic_ns

import numpy as np
from numpy.typing import NDArray

from ..bundle import Manifest
from ..types import Batch, RaggedBatch
from . import Engine, Limits, RaggedEngine


def open_fallback(root: Path, manifest: Manifest, limits: Limits, fallback: Sequence[str], *, threads: int | None) -> RaggedEngine:
    """The CPU engine, ``(backend, precision)`` of ``plans.json``, of a bundle. Raises BundleError, EngineError, MissingExtraError."""
    backend, precision = fallback
    named = replace(manifest, backend=backend, precision=precision)
    if backend == "native":
        from .native import NativeEngine

        return NativeEngine(root, named, limits, threads=threads)
    from .ort import OrtEngine

    return Padded(OrtEngine(root, named, limits, threads=threads))


class Instead:
    """The CPU engine in place of the plans. Attribute ``note`` says why; results repeat it."""

    def __init__(self, engine: RaggedEngine, note: str) -> None:
        self.backend, self.precision, self.note = engine.backend, engine.precision, note
        self._engine = engine

    def run(self, batch: Batch) -> NDArray[np.float32]:
        """As of the CPU engine."""
        return self._engine.run(batch)

    def run_ragged(self, batch: RaggedBatch, *, deadline_ns: int = 0, done: NDArray[np.bool_] | None = None) -> NDArray[np.float32]:
        """As of the CPU engine."""
        return self._engine.run_ragged(batch, deadline_ns=deadline_ns, done=done)

    def close(self) -> None:
        """As of the CPU engine."""
        self._engine.close()


class Padded:
    """Rows of any length for an engine that wants them padded: sorted by length, 16 at a time."""

    _ROWS = 16

    def __init__(self, engine: Engine) -> None:
        self.backend, self.precision = engine.backend, engine.precision
        self._engine = engine
        self.run, self.close = engine.run, engine.close

    def run_ragged(self, batch: RaggedBatch, *, deadline_ns: int = 0, done: NDArray[np.bool_] | None = None) -> NDArray[np.float32]:
        """Logits, float32 [B]; see `edgerec.engine.RaggedEngine`. Between two calls of the engine it looks at the clock."""
        logits = np.full(batch.size, np.nan, np.float32)
        scored = np.zeros(batch.size, np.bool_) if done is None else done
        scored[:] = False
        order = np.argsort(-batch.lengths, kind="stable")
        for begin in range(0, batch.size, self._ROWS):
            if deadline_ns and monotonic_ns() >= deadline_ns:
                break
            rows = order[begin : begin + self._ROWS]
            ids, mask, types = (np.zeros((len(rows), int(batch.lengths[rows[0]])), np.int32) for _ in range(3))
            fill_rows(batch, rows, ids, mask, types)
            logits[rows] = self._engine.run(Batch(ids, mask, types, batch.feature_ids[rows], batch.feature_weights[rows]))
            scored[rows] = True
        return logits


def fill_rows(
    batch: RaggedBatch, rows: NDArray[np.intp], ids: NDArray[np.int32], mask: NDArray[np.int32], types: NDArray[np.int32]
) -> None:
    """Write rows of a ragged batch into arrays, int32 [len(rows) or more, T or more]; what lies behind a row's end becomes 0."""
    lengths = batch.lengths[rows]
    inside = np.arange(ids.shape[1]) < lengths[:, None]
    # One look-up for all rows: a place behind a row's end reads token 0, and is then overwritten.
    places = np.where(inside, batch.starts[rows][:, None] + np.arange(ids.shape[1]), 0)
    count = len(rows)
    for target, source in ((ids, batch.ids), (types, batch.types)):
        np.multiply(source[places], inside, out=target[:count])
        target[count:] = 0
    mask[:count] = inside
    mask[count:] = 0
