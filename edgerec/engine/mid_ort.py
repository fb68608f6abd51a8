"""A mid-fusion student on ONNX Runtime: three sessions, ``items.onnx``, ``query.onnx`` and ``engine.onnx``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bundle import Manifest
from ..manifest import ITEM_ENGINE_FILE, QUERY_ENGINE_FILE
from ..types import StateBatch
from . import Limits
from .mid import MidRunner
from .ort import Graph


def open_mid_ort(root: Path, manifest: Manifest, model: Any, limits: Limits, *, threads: int | None, spinning: bool) -> MidRunner:
    """Open the bundle's graphs. Parameters and errors as of `edgerec.engine.ort.Graph`."""
    files = (ITEM_ENGINE_FILE, QUERY_ENGINE_FILE, manifest.engine_file)
    items, query, ranker = (Graph(root, manifest, file, threads=threads, spinning=spinning) for file in files)

    def encode(ids: NDArray[np.int32], lengths: NDArray[np.int32]) -> NDArray[np.float32]:
        return items.run("states", {"item_ids": ids, "item_lengths": lengths}, (*ids.shape, -1))

    def ask(ids: NDArray[np.int32], lengths: NDArray[np.int32]) -> NDArray[np.float32]:
        return query.run("queries", {"query_ids": ids, "query_lengths": lengths}, (*ids.shape, -1))

    def rank(batch: StateBatch) -> NDArray[np.float32]:
        return ranker.run("logits", feeds(batch), (batch.size,))

    def close() -> None:
        for graph in (items, query, ranker):
            graph.close()

    return MidRunner(model, limits, encode, rank, backend="ort", precision=manifest.precision, close=close, ask=ask)


def feeds(batch: StateBatch) -> dict[str, NDArray[Any]]:
    """The inputs of the ranker's graph; those it does not have are left out."""
    inputs: dict[str, NDArray[Any]] = {
        "query_ids": batch.query_ids,
        "query_lengths": batch.query_lengths,
        "query_index": batch.query_index,
        "states": batch.states,
        "item_lengths": batch.item_lengths,
    }
    if batch.queries is not None:
        inputs["queries"] = batch.queries
    if batch.scales.shape[2]:
        inputs["state_scales"] = batch.scales
    if batch.feature_ids.shape[1]:
        inputs["feature_ids"], inputs["feature_weights"] = batch.feature_ids, batch.feature_weights
    return inputs
