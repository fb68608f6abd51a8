"""Cutting the query's lower layers out of a ranker's graph: the two parts give what the whole gave."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgerec.builder.parity import plain_session
from edgerec.builder.split import map_before_rows, split_query
from edgerec.errors import BuildError

FLOATS = helper.make_tensor("table", TensorProto.FLOAT, [50, 3], np.random.default_rng(0).normal(size=150).astype(np.float32))


def graph(*lookups: str) -> bytes:
    """A ranker in small: rows of the query, one of them for each row of the batch, plus the item; also the query's width and length."""
    nodes = [
        helper.make_node("Gather", ["table", "query_ids"], ["words"]),
        helper.make_node("Tanh", ["words"], ["asking"]),
        helper.make_node("Gather", ["query_lengths", "query_index"], ["own_lengths"]),
        helper.make_node("Cast", ["own_lengths"], ["lengths"], to=TensorProto.FLOAT),
        helper.make_node("Shape", ["query_ids"], ["width"], start=1, end=2),
        helper.make_node("Cast", ["width"], ["columns"], to=TensorProto.FLOAT),
        *(helper.make_node("Gather", [value, "query_index"], [f"rows{place}"]) for place, value in enumerate(lookups)),
        helper.make_node("ReduceSum", ["rows0", "axes"], ["sums"], keepdims=0),
        helper.make_node("Sum", ["sums", "lengths", "columns"], ["logits"]),
    ]
    inputs = [
        helper.make_tensor_value_info("query_ids", TensorProto.INT32, ["q", "r"]),
        helper.make_tensor_value_info("query_lengths", TensorProto.INT32, ["q"]),
        helper.make_tensor_value_info("query_index", TensorProto.INT32, ["b"]),
    ]
    axes = helper.make_tensor("axes", TensorProto.INT64, [2], [1, 2])
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b"])]
    made = helper.make_model(
        helper.make_graph(nodes, "ranker", inputs, outputs, [FLOATS, axes]), opset_imports=[helper.make_opsetid("", 20)], ir_version=10
    )
    data: bytes = made.SerializeToString()
    return data


def test_the_parts_give_what_the_whole_gives() -> None:
    whole = graph("asking")
    query, joint = (plain_session(part) for part in split_query(whole))
    rng = np.random.default_rng(1)
    for queries, width, rows in ((1, 1, 1), (3, 5, 7), (2, 4, 1)):
        asked = {"query_ids": rng.integers(0, 50, (queries, width)).astype(np.int32), "query_lengths": np.full(queries, width, np.int32)}
        index = rng.integers(0, queries, rows).astype(np.int32)
        made = query.run(["queries"], asked)[0]
        assert made.shape == (queries, width, 3)
        found = joint.run(["logits"], {**asked, "query_index": index, "queries": made})[0]
        np.testing.assert_array_equal(found, plain_session(whole).run(["logits"], {**asked, "query_index": index})[0])


def test_neither_part_keeps_what_only_the_other_needs() -> None:
    query, joint = (onnx.load_model_from_string(part).graph for part in split_query(graph("asking")))
    assert [node.op_type for node in query.node] == ["Gather", "Tanh"]
    assert "Tanh" not in [node.op_type for node in joint.node]
    assert [tensor.name for tensor in joint.initializer] == ["axes"]
    assert [tensor.name for tensor in query.initializer] == ["table"]


def test_a_graph_with_another_number_of_places_is_refused() -> None:
    with pytest.raises(BuildError, match="rows from 2 values"):
        split_query(graph("asking", "words"))
    model = onnx.load_model_from_string(graph("asking"))
    del model.graph.node[:]
    with pytest.raises(BuildError, match="rows from 0 values"):
        split_query(model.SerializeToString())


def joint_layer(*extra: onnx.NodeProto) -> bytes:
    """The rows of each candidate's query go through two maps: one with a bias and one without."""
    nodes = [
        helper.make_node("GatherND", ["queries", "places"], ["rows"]),
        helper.make_node("MatMul", ["rows", "w"], ["keys"]),
        helper.make_node("Add", ["keys", "bias"], ["biased"]),
        helper.make_node("MatMul", ["rows", "w"], ["plain"]),
        helper.make_node("Sum", ["biased", "plain", "rows"], ["logits"]),
        *extra,
    ]
    inputs = [
        helper.make_tensor_value_info("queries", TensorProto.FLOAT, ["q", "r", 3]),
        helper.make_tensor_value_info("places", TensorProto.INT64, ["b", 1]),
    ]
    tensors = [helper.make_tensor("w", TensorProto.FLOAT, [3, 3], range(9)), helper.make_tensor("bias", TensorProto.FLOAT, [3], [1, 2, 3])]
    outputs = [helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, ["b", "r", 3]) for node in nodes[4:]]
    made = helper.make_model(
        helper.make_graph(nodes, "joint", inputs, outputs, tensors), opset_imports=[helper.make_opsetid("", 20)], ir_version=10
    )
    data: bytes = made.SerializeToString()
    return data


def test_maps_with_a_bias_are_computed_once_a_query() -> None:
    moved = map_before_rows(joint_layer())
    feeds = {"queries": np.arange(24, dtype=np.float32).reshape(2, 4, 3), "places": np.array([[1], [0], [1]])}
    np.testing.assert_array_equal(plain_session(moved).run(["logits"], feeds)[0], plain_session(joint_layer()).run(["logits"], feeds)[0])
    nodes = onnx.load_model_from_string(moved).graph.node
    assert [node.output[0] for node in nodes if node.op_type == "MatMul" and node.input[0] == "queries"] == ["keys"]
    assert [node.op_type for node in nodes] == ["MatMul", "Add", "GatherND", "GatherND", "MatMul", "Sum"]


def test_a_map_that_is_also_read_without_its_bias_stays() -> None:
    whole = joint_layer(helper.make_node("Neg", ["keys"], ["negative"]))
    assert next(node.op_type for node in onnx.load_model_from_string(map_before_rows(whole)).graph.node) == "GatherND"
