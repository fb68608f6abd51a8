"""Int8: what is quantised, how exactly, and what is left alone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from fixtures_export import make_export
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper, numpy_helper

from edgerec.builder.quantize import quantize_int8
from edgerec.engine.machine import cpu_flags, int8_saturates
from edgerec.engine.ort import ort
from edgerec.errors import BuildError


def product(weight: np.ndarray) -> bytes:
    """``logits = x @ W`` as a model."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", weight.shape[0]])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", weight.shape[1]])
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "g", [x], [y], [numpy_helper.from_array(weight, "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()


def table(weight: np.ndarray) -> bytes:
    """A look-up and a product large enough to be quantised."""
    ids = helper.make_tensor_value_info("ids", TensorProto.INT32, ["rows"])
    rows = helper.make_tensor_value_info("rows_out", TensorProto.FLOAT, ["rows", weight.shape[1]])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 64])
    nodes = [helper.make_node("Gather", ["table", "ids"], ["rows_out"]), helper.make_node("MatMul", ["rows_out", "w"], ["y"])]
    tensors = [numpy_helper.from_array(weight, "table"), numpy_helper.from_array(np.ones((weight.shape[1], 64), np.float32), "w")]
    graph = helper.make_graph(nodes, "g", [ids], [rows, out], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()


def run(graph: bytes, **inputs: np.ndarray) -> list[np.ndarray]:
    return list(ort.InferenceSession(graph, providers=["CPUExecutionProvider"]).run(None, inputs))


floats = st.floats(-8, 8, width=32)
SATURATES = int8_saturates(cpu_flags())
narrows = st.just(True) if SATURATES else st.booleans()  # weights of 8 bits would saturate there


@settings(max_examples=60, deadline=None)
@given(
    x=hnp.arrays(np.float32, (5, 32), elements=floats),
    weight=hnp.arrays(np.float32, (32, 32), elements=floats),
    narrow=narrows,
    activations=st.sampled_from(["batch", "token"]),
)
def test_a_product_is_within_the_bound_of_its_rounding(x: np.ndarray, weight: np.ndarray, narrow: bool, activations: str) -> None:
    exact = x.astype(np.float64) @ weight
    found = run(quantize_int8(product(weight), reduce_range=narrow, activations=activations), x=x)[0]
    # Each factor is off by at most half a step; the zero point's rounding can push the input to a whole one.
    if activations == "batch":
        step_x = np.full((5, 1), (max(float(x.max()), 0.0) - min(float(x.min()), 0.0)) / 255)
    else:
        step_x = (x.max(axis=1, keepdims=True) - x.min(axis=1, keepdims=True)) / 255
    step_w = np.abs(weight).max(axis=0)[None, :] / (63 if narrow else 127) / 2
    bound = np.abs(weight).sum(axis=0)[None, :] * step_x + np.abs(x).sum(axis=1)[:, None] * step_w + 32 * step_x * step_w
    assert np.all(np.abs(found - exact) <= 1.01 * bound + 1e-3)


def stored_product(weight: np.ndarray) -> bytes:
    """``y = (values * scales) @ W`` of int8 values [B, T, W] and scales [B, T, 1], as a ranker reads stored states."""
    values = helper.make_tensor_value_info("values", TensorProto.INT8, ["b", "t", weight.shape[0]])
    scales = helper.make_tensor_value_info("scales", TensorProto.FLOAT, ["b", "t", 1])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["b", "t", weight.shape[1]])
    nodes = [
        helper.make_node("Cast", ["values"], ["exact"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["exact", "group"], ["split"]),
        helper.make_node("Unsqueeze", ["scales", "last"], ["scale"]),
        helper.make_node("Mul", ["split", "scale"], ["groups"]),
        helper.make_node("Reshape", ["groups", "shape"], ["x"]),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    constants = {"group": [2], "last": [3], "shape": [0, 0, -1]}
    tensors = [numpy_helper.from_array(np.array(value, np.int64), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", [values, scales], [y], [numpy_helper.from_array(weight, "w"), *tensors])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()


@pytest.mark.parametrize("activations", ["batch", "token"])
def test_stored_integers_are_multiplied_as_they_are(activations: str) -> None:
    rng = np.random.default_rng(3)
    weight = rng.standard_normal((64, 48)).astype(np.float32)
    values = rng.integers(-127, 128, (3, 5, 64)).astype(np.int8)
    scales = (10 ** rng.uniform(-3, 1, (3, 5, 1))).astype(np.float32)
    exact = values.astype(np.float64) * scales
    graph = quantize_int8(stored_product(weight), reduce_range=SATURATES, activations=activations)
    found = run(graph, values=values, scales=scales)[0]
    step = np.abs(weight).max(axis=0) / (63 if SATURATES else 127) / 2
    assert np.all(np.abs(found - exact @ weight) <= np.abs(exact).sum(axis=2, keepdims=True) * step * 1.001), "weights alone are rounded"
    assert "DynamicQuantizeLinear" not in {node.op_type for node in onnx.load_model_from_string(graph).graph.node}


def test_by_token_a_row_does_not_feel_its_company() -> None:
    rng = np.random.default_rng(0)
    weight, x = rng.standard_normal((64, 64)).astype(np.float32), rng.standard_normal((4, 64)).astype(np.float32)
    loud = np.concatenate([x, 1000 * x[:1]])
    by_batch, by_token = (quantize_int8(product(weight), reduce_range=SATURATES, activations=kind) for kind in ("batch", "token"))
    np.testing.assert_allclose(run(by_token, x=loud)[0][:4], run(by_token, x=x)[0], rtol=1e-5, atol=1e-5)
    assert np.max(np.abs(run(by_batch, x=loud)[0][:4] - x @ weight)) > 10 * np.max(np.abs(run(by_token, x=loud)[0][:4] - x @ weight))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), spread=st.floats(0, 3), narrow=narrows)
def test_with_calibrated_ranges_loud_channels_cost_quiet_ones_little(seed: int, spread: float, narrow: bool) -> None:
    rng = np.random.default_rng(seed)
    loudness = np.exp(spread * rng.standard_normal(64))
    x = (rng.standard_normal((50, 64)) * loudness + rng.standard_normal(64)).astype(np.float32)
    weight = (rng.standard_normal((64, 32)) / loudness[:, None]).astype(np.float32)
    ranges = {"x": (x.min(axis=0), x.max(axis=0))}
    found = run(quantize_int8(product(weight), reduce_range=narrow, activations="static", ranges=ranges), x=x)[0]
    exact = x.astype(np.float64) @ weight
    # Half a step of either factor, in the scaled channels, where both reach the root of their product.
    reach = np.sqrt(np.maximum(np.abs(x).max(axis=0) * np.abs(weight).max(axis=1), 1e-12))
    steps = 64 * reach.max() ** 2 * (1 / 127 + 1 / (63 if narrow else 127))
    assert np.abs(found - exact).max() <= steps
    assert np.abs(found - exact).mean() <= steps / 10
    beyond = run(quantize_int8(product(weight), reduce_range=narrow, activations="static", ranges=ranges), x=1000 * x)[0]
    assert np.all(np.isfinite(beyond)), "what lies beyond the range is cut, never wrapped"


def test_static_activations_need_ranges() -> None:
    with pytest.raises(BuildError, match="calibrate"):
        quantize_int8(product(np.ones((32, 32), np.float32)), reduce_range=False, activations="static")


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), spread=st.floats(0, 6))
def test_a_table_row_is_within_half_a_step_of_its_own(seed: int, spread: float) -> None:
    rng = np.random.default_rng(seed)
    weight = (rng.standard_normal((1100, 16)) * np.exp(spread * rng.standard_normal((1100, 1)))).astype(np.float32)
    weight[7] = 0
    ids = np.array([0, 7, 1099, 500], np.int32)
    found = run(quantize_int8(table(weight), reduce_range=True), ids=ids)[0]
    step = np.abs(weight[ids]).max(axis=1, keepdims=True) / 127
    assert np.all(np.abs(found - weight[ids]) <= 0.501 * step)
    assert np.all(found[1] == 0)


@pytest.mark.parametrize("value", [0.0, 1e-42])
def test_weights_of_nothing_stay_nothing(value: float) -> None:
    weight = np.full((32, 32), value, np.float32)
    found = run(quantize_int8(product(weight), reduce_range=False), x=np.ones((3, 32), np.float32))[0]
    assert np.all(found == 0)


def test_what_is_quantised_in_a_student(tmp_path: Path) -> None:
    export = make_export(tmp_path / "export", layers=2)
    before = onnx.load(export / "student.onnx")
    after = onnx.load_model_from_string(quantize_int8(before.SerializeToString(), reduce_range=False))
    onnx.checker.check_model(after)
    kinds = Counter(node.op_type for node in after.graph.node)
    # Six products a layer; of the last layer too. Two input quantisations are shared by query, key and value.
    assert kinds["MatMulInteger"] == 12
    assert kinds["DynamicQuantizeLinear"] < 12
    # Left alone: attention's own products (no constant), the head, the feature layer.
    assert kinds["MatMul"] == 2 * 2 + 2
    names = {tensor.name for tensor in after.graph.initializer}
    assert "head.weight.T" in names
    assert "tower.layers.0.query.weight.T" not in names
    assert {value.name for value in after.graph.input} == {value.name for value in before.graph.input}


@pytest.mark.parametrize("shape", [(8, 8), (31, 32)])
def test_a_graph_without_large_products_is_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(BuildError, match="precision fp32"):
        quantize_int8(product(np.ones(shape, np.float32)), reduce_range=False)
