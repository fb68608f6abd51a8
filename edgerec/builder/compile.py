"""Step 3, compile: let ONNX Runtime optimise the graph once, here, and save what it made."""

from __future__ import annotations

import tempfile
from pathlib import Path

from ..engine.ort import ort
from ..errors import BuildError
from ..manifest import ENGINE_FILES, ITEM_ENGINE_FILE, QUERY_ENGINE_FILE
from .contract import Export
from .split import map_before_rows, split_query

# On the CPU ONNX Runtime 1.32 is slower with the fused node than with Add and LayerNormalization apart.
_SLOWER = ["SkipLayerNormFusion"]


def ort_graphs(export: Export) -> dict[str, bytes]:
    """The graphs that ONNX Runtime loads, by the bundle's file names, the engine file first. Raises BuildError."""
    if export.states is None:
        return {ENGINE_FILES["ort"]: export.graph}
    query, joint = split_query(export.graph)
    return {ENGINE_FILES["ort"]: map_before_rows(joint), ITEM_ENGINE_FILE: export.item_graph, QUERY_ENGINE_FILE: query}


def compile_graph(graph: bytes) -> bytes:
    """The optimised graph, which loads with optimisation switched off.

    Level "extended": constant folding and fusions that hold on every CPU. The next level changes the memory layout for the CPU at
    hand, and such a graph must not travel.

    Raises
    ------
    BuildError : ONNX Runtime refuses the graph.
    """
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "optimised.onnx"
        options.optimized_model_filepath = str(target)
        try:
            ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"], disabled_optimizers=_SLOWER)
        # ONNX Runtime's exceptions share no base class but Exception.
        except Exception as error:
            raise BuildError(f"onnxruntime {ort.__version__} cannot compile the graph: {error}") from error
        return target.read_bytes()
