"""The typed graphs: right numbers in the right types, and the emulation rounds where they round."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from fixtures_export import make_export
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from edgerec.builder.calibrate import calibrate
from edgerec.builder.contract import Export, read_export
from edgerec.builder.parity import plain_session, split
from edgerec.builder.trt_half import HALVES, halve, rounded_half
from edgerec.builder.trt_parts import typed_graphs
from edgerec.builder.trt_qdq import EIGHTS, as_fp8, as_int8, quantise
from edgerec.builder.weights import read_safetensors
from edgerec.errors import BuildError

PRECISIONS = ("fp16", "bf16", "int8", "fp8")


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Export:
    return read_export(make_export(tmp_path_factory.mktemp("typed") / "export", hidden=64, pooler=True))


def run(export: Export, graph: bytes, *, reference: bool = False) -> np.ndarray:
    part = split(export.calibration.batch, 32)[0]
    model = onnx.load_model_from_string(graph)
    feeds = {value.name: getattr(part, value.name) for value in model.graph.input}
    return (ReferenceEvaluator(model) if reference else plain_session(graph)).run(None, feeds)[0]


def typed(export: Export, precision: str) -> tuple[bytes, bytes]:
    return typed_graphs(export.graph, precision, lambda: calibrate(export.graph, export.calibration.batch))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_typed_graph_is_valid_and_near_fp32(export: Export, precision: str) -> None:
    for graph in typed(export, precision):
        model = onnx.load_model_from_string(graph)
        onnx.checker.check_model(model, full_check=True)
        assert model.graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT
    exact, found = export.calibration.logits[:32], run(export, typed(export, precision)[1])
    bound = {"fp16": 0.005, "bf16": 0.05, "int8": 0.1, "fp8": 0.3}[precision]
    assert 0 < np.sqrt(np.mean((found - exact) ** 2)) < bound * exact.std()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_emulation_is_as_far_from_fp32_as_the_typed_graph(export: Export, precision: str) -> None:
    # ONNX's own evaluator knows bf16 and fp8. Single numbers may round the other way; the size of the error may not differ.
    exact = export.calibration.logits[:32]
    errors = [np.sqrt(np.mean((run(export, graph, reference=True) - exact) ** 2)) for graph in typed(export, precision)]
    assert 0.5 < errors[0] / errors[1] < 2


def types_of(graph: bytes) -> dict[str, int]:
    model = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(graph), strict_mode=True)
    known = [*model.graph.value_info, *model.graph.input, *model.graph.output]
    return {v.name: v.type.tensor_type.elem_type for v in known} | {t.name: t.data_type for t in model.graph.initializer}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_products_are_half_and_what_sums_over_many_numbers_is_float32(export: Export, precision: str) -> None:
    data, _ = typed(export, precision)
    types, half = types_of(data), HALVES.get(precision, TensorProto.FLOAT16)
    graph = onnx.load_model_from_string(data).graph
    nodes, sizes = graph.node, {tensor.name: int(np.prod(tensor.dims)) for tensor in graph.initializer}
    large = [node for node in nodes if node.op_type == "MatMul" and sizes.get(node.input[1], 1024) >= 1024]
    assert large
    assert {types[name] for node in large for name in node.input} == {half}
    for kind in ("Softmax", "LayerNormalization", "Erf", "ReduceSum"):
        assert {types[node.input[0]] for node in nodes if node.op_type == kind} == {TensorProto.FLOAT}
    if precision in EIGHTS:
        eights = [types[node.output[0]] for node in nodes if node.op_type == "QuantizeLinear"]
        assert eights
        assert set(eights) == {EIGHTS[precision][0]}


def test_no_value_is_cast_twice_to_the_same_type(export: Export) -> None:
    nodes = onnx.load_model_from_string(typed(export, "fp16")[0]).graph.node
    casts = [(node.input[0], node.attribute[0].i) for node in nodes if node.op_type == "Cast"]
    assert len(casts) == len(set(casts))


def test_query_key_and_value_share_one_rounding_of_their_input(export: Export) -> None:
    graph = quantise(export.graph, "int8", calibrate(export.graph, export.calibration.batch))
    nodes = onnx.load_model_from_string(graph).graph.node
    readers = [node.input[0] for node in nodes if node.op_type == "MatMul" and node.input[0].endswith(".dq")]
    assert max(map(readers.count, readers)) == 3


def test_a_weight_beyond_fp16_is_refused_and_bf16_takes_it(export: Export) -> None:
    model = onnx.load_model_from_string(export.graph)
    (weight,) = [t for t in model.graph.initializer if t.name == "tower.layers.0.query.weight.T"]
    value = numpy_helper.to_array(weight).copy()
    value[0, 0] = 70000
    weight.CopyFrom(numpy_helper.from_array(value, weight.name))
    with pytest.raises(BuildError, match=r"tower.layers.0.query.weight.T holds 7e\+04, fp16 ends at 65504; build with precision bf16"):
        halve(model.SerializeToString(), "fp16")
    halve(model.SerializeToString(), "bf16")


def test_quantising_needs_every_range(export: Export) -> None:
    ranges = dict(calibrate(export.graph, export.calibration.batch))
    ranges.popitem()
    with pytest.raises(BuildError, match="no range was calibrated"):
        quantise(export.graph, "fp8", ranges)


def test_the_graph_computes_what_torch_does_in_half(export: Export) -> None:
    torch = pytest.importorskip("torch")
    from edgerec.training.half import halved
    from edgerec.training.student import Student, StudentShape

    weights = read_safetensors((export.folder / "student.safetensors").read_bytes(), "student.safetensors")
    student = Student(
        StudentShape(2, 64, 4, 256, export.limits.vocab, 64, pooler=True, buckets=512, feature_dim=8, feature_hidden=8)
    ).eval()
    student.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    part = split(export.calibration.batch, 32)[0]
    given = [torch.from_numpy(getattr(part, name)) for name in part.__dataclass_fields__]
    with torch.no_grad():
        exact, expected = (model(*given).numpy() for model in (student, halved(student, "fp16")))
    found = run(export, halve(export.graph, "fp16", emulate=True))
    # Far from fp32 by as much, and as near to each other as two orders of rounding are.
    assert np.abs(found - expected).max() < 2 * np.abs(expected - exact).max()


FP8 = np.array([(-1) ** s * ((1 + m / 8) * 2.0 ** (e - 7) if e else m / 8 * 2.0**-6) for s in (0, 1) for e in range(16) for m in range(8)])


@settings(max_examples=200, deadline=None)
@given(st.floats(-600, 600, width=32))
def test_fp8_is_the_nearest_number(x: float) -> None:
    bits = int(as_fp8(np.array([x], np.float32))[0])
    assert bits & 0x7F != 0x7F  # NaN
    known = np.abs(np.delete(FP8, [127, 255]) - np.clip(x, -448, 448))
    assert abs(FP8[bits] - np.clip(x, -448, 448)) == known.min()
    if np.count_nonzero(known == known.min()) > 1 and x:
        assert bits % 2 == 0


@settings(max_examples=100, deadline=None)
@given(st.floats(-200, 200, width=32))
def test_int8_is_the_nearest_number_and_symmetric(x: float) -> None:
    value = int(as_int8(np.array([x], np.float32)).view(np.int8)[0])
    assert -127 <= value <= 127
    assert abs(value - np.clip(x, -127, 127)) <= 0.5


@settings(max_examples=100, deadline=None)
@given(st.floats(-60000, 60000, width=32))
def test_half_bits_and_their_value_are_one_number(x: float) -> None:
    for kind, size in ((TensorProto.FLOAT16, 2.0**-10), (TensorProto.BFLOAT16, 2.0**-7)):
        bits, rounded = rounded_half(np.array([[x]], np.float32), kind, "x")
        assert rounded.shape == (1, 1)
        assert abs(float(rounded[0, 0]) - x) <= max(size * abs(x), 1e-7)
        wide = (
            bits.reshape(1).view(np.float16) if kind == TensorProto.FLOAT16 else (bits.reshape(1).astype(np.uint32) << 16).view(np.float32)
        )
        assert float(wide[0]) == float(rounded[0, 0])
