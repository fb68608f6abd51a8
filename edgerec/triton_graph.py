"""What selects in a Triton repository, as a graph; and what a bundle's graphs take. Needs onnx: the extra ``edgerec[build]``."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from .errors import BundleError

OPSET, IR_VERSION = 17, 8


def top_graph(dimensions: int) -> bytes:
    """What follows the logits, in standard operators: the selection of `Ranker.rank`, and a grade for those who want one.

    Takes ``logits`` float32 [N], or [N, 1] where they have two dimensions, and ``top_k`` int64 [1]. Gives ``relevance`` float32 [N], the
    logits' sigmoid, and of the best K, best first: ``top_places`` int64 [K], among the N, and ``top_scores`` float32 [K], their logits. K
    is at most the number of logits that are no NaN: NaN is never selected. Ties go to the lower place. The oracle is `edgerec._core.topk`.
    """
    node = helper.make_node
    nodes = [
        node("Reshape", ["logits", "flat"], ["values"]),
        node("Sigmoid", ["values"], ["relevance"]),
        node("IsNaN", ["values"], ["is_nan"]),
        node("Not", ["is_nan"], ["sound"]),
        node("Compress", ["values", "sound"], ["kept"], axis=0),
        node("NonZero", ["sound"], ["kept_rows"]),
        node("Reshape", ["kept_rows", "flat"], ["kept_places"]),
        node("Shape", ["kept"], ["count"]),
        node("Min", ["top_k", "count"], ["k"]),
        node("TopK", ["kept", "k"], ["top_scores", "order"], axis=0, largest=1, sorted=1),
        node("Gather", ["kept_places", "order"], ["top_places"], axis=0),
    ]
    value = helper.make_tensor_value_info
    rows: list[str | int | None] = ["candidates", 1]
    graph = helper.make_graph(
        nodes,
        "top",
        [value("logits", TensorProto.FLOAT, rows[:dimensions]), value("top_k", TensorProto.INT64, [1])],
        [
            value("relevance", TensorProto.FLOAT, ["candidates"]),
            value("top_places", TensorProto.INT64, ["returned"]),
            value("top_scores", TensorProto.FLOAT, ["returned"]),
        ],
        [numpy_helper.from_array(np.array([-1], np.int64), "flat")],
    )
    data: bytes = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION).SerializeToString()
    return data


def inputs_of(graph: bytes, what: str) -> Mapping[str, np.dtype]:
    """The inputs of a graph by name. Raises BundleError when it cannot be read."""
    try:
        model = onnx.load_model_from_string(graph)
    except Exception as e:  # protobuf's own errors have no common class
        raise BundleError(f"{what} is no ONNX graph: {e}; build the bundle again") from e
    return {value.name: np.dtype(helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)) for value in model.graph.input}
