"""Mid-fusion students for TensorRT: the three graphs give what the exported two give, and become real plans without a GPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from engine.backends import Case
from fixtures_mid_export import STUDENTS, mid_export
from onnx import TensorProto, helper

from edgerec.builder import GpuOptions, build_engine
from edgerec.builder import trt as builder
from edgerec.builder.contract import Export, read_export
from edgerec.builder.parity import plain_session, split
from edgerec.builder.split import QUERIES
from edgerec.builder.trt_mid import cut_mid, one_query, plain_states, sample_mid
from edgerec.builder.trt_parts import make_parts, sizes_of
from edgerec.bundle import verify_bundle
from edgerec.engine import MidEngine, open_engine
from edgerec.engine.gpu import Gpu
from edgerec.engine.trt_plans import PARTS, Plans, Runtime, installed_version, item_buckets
from edgerec.errors import BuildError, BundleError, EngineError

NO_GPU = Gpu(reason="no NVIDIA driver on this machine")
BUCKETS = ((8, 30),)
TARGETS = ("sm_80", "sm_86", "sm_89", "sm_120", "sm_89")
rtx = pytest.mark.skipif(not installed_version("tensorrt_rtx"), reason="TensorRT for RTX is not installed: pip install 'edgerec[rtx]'")


@pytest.fixture(scope="module", params=STUDENTS)
def export(request: pytest.FixtureRequest) -> Export:
    return read_export(mid_export(request.param))


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also on a machine that has one."""
    versions = {"tensorrt_rtx": installed_version("tensorrt_rtx") or "1.6"}
    monkeypatch.setattr(builder, "this_runtime", lambda: Runtime(NO_GPU, versions))


def one_of(export: Export, rows: int = 5) -> tuple[dict[str, Any], dict[str, Any]]:
    """Feeds of the exported ranker, and of the one that ranks the candidates of one query: the first rows, all for row 0's query."""
    samples = sample_mid(export, cut_mid(export))
    feeds, spec = dict(samples["engine"][0][0]), export.states
    assert spec is not None
    states = feeds["states"][:rows]
    stored, scales = spec.store(states)
    features = {name: feeds[name][:rows] for name in ("feature_ids", "feature_weights")}
    same = {"query_lengths": feeds["query_lengths"][:1], "item_lengths": feeds["item_lengths"][:rows], **features}
    exported = {**same, "query_ids": feeds["query_ids"][:1], "query_index": np.zeros(rows, np.int32), "states": stored}
    if spec.scales:
        exported["state_scales"] = scales
    return exported, {**same, "queries": feeds["queries"][:1], "states": spec.restore(stored, scales)}


def test_the_cut_graphs_give_the_logits_of_the_exported_ranker(export: Export) -> None:
    exported, cut = one_of(export)
    graph = one_query(cut_mid(export)["engine"])
    assert {value.name for value in onnx.load_model_from_string(graph).graph.input} == set(cut)
    found = plain_session(graph).run(["logits"], cut)[0]
    np.testing.assert_allclose(found, plain_session(export.graph).run(["logits"], exported)[0], atol=1e-4)
    assert np.std(found) > 0.01


def test_a_query_is_mapped_once_and_not_for_every_candidate(export: Export) -> None:
    nodes = onnx.load_model_from_string(one_query(cut_mid(export)["engine"])).graph.node
    products = [node for node in nodes if node.op_type == "MatMul"]
    rows = {node.output[0] for node in nodes if node.op_type in ("Gather", "GatherND") and node.input[0] == QUERIES}
    assert len([node for node in products if node.input[0] == QUERIES]) >= 2
    assert [node.name for node in products if node.input[0] in rows] == []


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8", "fp8"])
def test_typed_graphs_are_valid_take_half_states_and_are_near_fp32(export: Export, precision: str) -> None:
    student = make_parts(export, precision, sizes_of(export, BUCKETS))
    assert tuple(student.parts) == PARTS
    for name, part in student.parts.items():
        model = onnx.load_model_from_string(part.typed)
        onnx.checker.check_model(model, full_check=True)
        inputs = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
        assert all(shapes.keys() == inputs.keys() for shapes in part.profiles)
        assert model.graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT
        if name == "engine":
            assert inputs["states"] == (TensorProto.BFLOAT16 if precision == "bf16" else TensorProto.FLOAT16)
    engine = student.emulation()
    exact = export.calibration.logits
    found = np.concatenate([engine.run(rows) for rows in split(export.calibration.batch, 32)])
    assert 0 < np.sqrt(np.mean((found - exact) ** 2)) < {"fp16": 0.02, "bf16": 0.1, "int8": 0.2, "fp8": 0.5}[precision] * exact.std()


def test_buckets_follow_the_items_and_queries_of_the_sample(export: Export) -> None:
    sizes = sizes_of(export, ())
    assert sizes.asking == (8, 14)
    assert {rows for rows, _ in sizes.buckets} == {32, 1024}
    assert max(tokens for _, tokens in sizes.buckets) == 30
    assert item_buckets(sizes.buckets) == tuple((64, tokens) for tokens in sorted({tokens for _, tokens in sizes.buckets}))
    with pytest.raises(BuildError, match="a row may have 30; add one, for example 1024x30"):
        sizes_of(export, ((8, 16),))


@rtx
@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize(("precision", "target"), [*zip(builder.PRECISIONS, TARGETS, strict=True)])
def test_plans_of_every_precision_are_built_without_a_gpu(tmp_path: Path, precision: str, target: str) -> None:
    gpu = GpuOptions(buckets=BUCKETS, targets=(target,))
    report = build_engine(mid_export("narrow"), tmp_path / "b", backend="tensorrt", precision=precision, gpu=gpu, gate={"ndcg_drop": 1.0})
    manifest = verify_bundle(tmp_path / "b")
    assert {f"{name}.{target}.plan" for name in PARTS} <= manifest.files.keys()
    assert {"tensorrt.onnx", "tensorrt.query.onnx", "tensorrt.items.onnx", "engine.bin"} <= manifest.files.keys()
    plans = Plans.from_json(json.loads((tmp_path / "b" / "plans.json").read_text()), "plans.json")
    assert (plans.buckets, plans.asking, plans.fallback) == (BUCKETS, (8, 14), ("native", "fp32"))
    assert plans.plans[0].version == installed_version("tensorrt_rtx")
    parity = json.loads((tmp_path / "b" / "parity.json").read_text())
    assert parity["gpu"].startswith("not run: ")
    assert parity["fallback"]["max_abs_diff"] < 1e-3
    assert report.measured.startswith("no plan was run: ")


@pytest.fixture(scope="module")
def real_export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six layers of 384 numbers, four joint ones, 128 int8 numbers a token; random weights."""
    sizes = {"layers": 6, "hidden": 384, "heads": 12, "query_layers": 2, "item_layers": 4, "states": "one", "state_width": 128}
    return Case("", "", True, 0, mid={**sizes, "state_precision": "int8"}).mid_export(tmp_path_factory.mktemp("real"))


@rtx
@pytest.mark.slow
@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("precision", builder.PRECISIONS)
def test_a_student_of_real_size_builds_for_every_target(real_export: Path, tmp_path: Path, precision: str) -> None:
    # fp8 is refused for the first two before TensorRT is asked.
    targets = ("sm_89", "sm_120") if precision == "fp8" else ("sm_80", "sm_86", "sm_89", "sm_120")
    gpu, gate = GpuOptions(targets=targets), {"ndcg_drop": 1.0, "tau": -1.0}
    build_engine(real_export, tmp_path / "b", backend="tensorrt", precision=precision, gpu=gpu, gate=gate)
    manifest = verify_bundle(tmp_path / "b")
    assert {f"{name}.{target}.plan" for name in PARTS for target in targets} <= manifest.files.keys()


@rtx
@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("fallback", ["int8", "none"])
def test_a_bundle_built_ahead_opens_on_its_cpu_engine_or_says_what_it_needs(tmp_path: Path, fallback: str) -> None:
    export = mid_export("narrow")
    gpu = GpuOptions(buckets=BUCKETS, targets=("sm_89",), fallback=fallback)
    build_engine(export, tmp_path / "b", backend="tensorrt", gpu=gpu, gate={"ndcg_drop": 1.0})
    if fallback == "none":
        with pytest.raises(EngineError, match=r"no TensorRT plan of .* runs here.*build one with: edgerec build-engine"):
            open_engine(tmp_path / "b")
        return
    engine: Any = open_engine(tmp_path / "b")
    assert isinstance(engine, MidEngine)
    assert engine.note.startswith("the CPU engine (native int8) scores instead of the GPU: no TensorRT plan of ")
    engine.close()


def small(*reads: str, ids: str = "Shape") -> bytes:
    """A ranker whose states are read by so many nodes, each after what stands in ``reads``; and which reads the query's ids so."""
    nodes = [helper.make_node(ids, ["query_ids"], ["asked"])]
    for place, kind in enumerate(reads):
        source = "states"
        if kind:
            nodes.append(helper.make_node(kind, ["states"], [f"number{place}"], **({"to": TensorProto.FLOAT} if kind == "Cast" else {})))
            source = f"number{place}"
        nodes.append(helper.make_node("ReduceSum", [source, "axes"], [f"sum{place}"], keepdims=0))
    nodes.append(helper.make_node("Sum", [f"sum{place}" for place in range(len(reads))], ["logits"]))
    inputs = [
        helper.make_tensor_value_info("query_ids", TensorProto.INT32, ["q", "r"]),
        helper.make_tensor_value_info("states", TensorProto.FLOAT, ["b", "t", 4]),
    ]
    axes = helper.make_tensor("axes", TensorProto.INT64, [2], [1, 2])
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b"]), helper.make_tensor_value_info("asked", 7, ["n"])]
    made = helper.make_model(helper.make_graph(nodes, "ranker", inputs, outputs, [axes]), opset_imports=[helper.make_opsetid("", 20)])
    data: bytes = made.SerializeToString()
    return data


def test_a_ranker_of_another_shape_is_refused() -> None:
    plain_states(small("Cast"))
    plain_states(small(""))
    with pytest.raises(BuildError, match="reads its states in 2 places"):
        plain_states(small("Cast", "Cast"))
    with pytest.raises(BuildError, match="reads the query's ids where its layers join"):
        one_query(small("", ids="Identity"))


@pytest.mark.parametrize("asking", [[14, 8], [8, 8], [0], ["8"], 8, [True]])
def test_lengths_of_a_query_in_a_bundle_are_checked(asking: Any) -> None:
    good = {"version": 1, "buckets": [[8, 30]], "slots": 0, "fallback": [], "plans": []}
    with pytest.raises(BundleError, match=r"asking is"):
        Plans.from_json({**good, "asking": asking}, "plans.json")
