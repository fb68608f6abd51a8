"""The whole build: a bundle that serves, or a refusal that leaves nothing."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from fixtures_export import make_export, random_rows
from onnx import numpy_helper

from edgerec.builder import BuildReport, Tolerance, Tolerances, build_engine
from edgerec.bundle import describe, read_json, verify_bundle
from edgerec.engine import Engine, open_engine
from edgerec.errors import BuildError
from edgerec.types import Batch

KINDS = [("native", "fp32"), ("native", "int8"), ("ort", "fp32"), ("ort", "int8"), ("reference", "fp32")]


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_export(tmp_path_factory.mktemp("build") / "export")


@pytest.fixture
def own(export: Path, tmp_path: Path) -> Path:
    """A copy of the export that a test may break."""
    return Path(shutil.copytree(export, tmp_path / "in" / "export"))


@pytest.mark.parametrize(("backend", "precision"), KINDS)
@pytest.mark.parametrize("features", [True, False])
def test_a_built_bundle_verifies_serves_and_says_how_well_it_matches(tmp_path: Path, backend: str, precision: str, features: bool) -> None:
    export = make_export(tmp_path / "export", features=features)
    report = build_engine(export, tmp_path / "bundle", backend=backend, precision=precision)
    manifest = verify_bundle(tmp_path / "bundle")
    assert (manifest.backend, manifest.precision, manifest.model_version) == (backend, precision, report.model_version)
    assert report.model_version.startswith(f"tiny-l2-{precision}-")
    assert read_json(tmp_path / "bundle", manifest, "parity.json") == report.parity.to_json()
    assert report.parity.rows == 96
    assert report.parity.queries == 8
    assert report.parity.nan_count == 0
    engine = open_engine(tmp_path / "bundle")
    logits = engine.run(Batch(**random_rows(np.random.default_rng(5), 9, vocab=110, features=features)))
    assert np.all(np.isfinite(logits))


def test_the_report_is_plain_json(export: Path, tmp_path: Path) -> None:
    report = build_engine(export, tmp_path / "bundle", precision="int8", backend="ort")
    assert isinstance(report, BuildReport)
    shown = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert shown["engine_bytes"] == (tmp_path / "bundle" / "engine.onnx").stat().st_size
    assert set(shown["timings_s"]) == {"contract", "quantize", "compile", "parity", "tokenizer", "pack"}
    assert describe(tmp_path / "bundle")["parity"] == shown["parity"]


@pytest.mark.parametrize(("backend", "precision"), KINDS)
def test_the_same_export_gives_the_same_files_and_version(export: Path, tmp_path: Path, backend: str, precision: str) -> None:
    for name in ("a", "b"):
        build_engine(export, tmp_path / name, backend=backend, precision=precision)
    a, b = verify_bundle(tmp_path / "a"), verify_bundle(tmp_path / "b")
    assert a.model_version == b.model_version
    assert a.files == b.files


def test_the_version_follows_engine_features_and_tokenizer(export: Path, own: Path, tmp_path: Path) -> None:
    base = build_engine(export, tmp_path / "base", backend="ort").model_version
    assert build_engine(export, tmp_path / "int8", precision="int8", backend="ort").model_version != base
    model = json.loads((own / "model.json").read_text())
    model["features"]["seed"] = 1
    (own / "model.json").write_text(json.dumps(model))
    assert build_engine(own, tmp_path / "seed", backend="ort").model_version != base


def test_a_tower_that_shares_content_shares_the_content_id(export: Path, tmp_path: Path) -> None:
    for precision in ("fp32", "int8"):
        build_engine(export, tmp_path / precision, precision=precision, backend="ort")
    assert verify_bundle(tmp_path / "fp32").content_id == verify_bundle(tmp_path / "int8").content_id


def test_int8_is_smaller_and_fp32_is_exact(tmp_path: Path) -> None:
    export = make_export(tmp_path / "export", hidden=64)
    fp32 = build_engine(export, tmp_path / "fp32", backend="ort")
    int8 = build_engine(export, tmp_path / "int8", precision="int8", backend="ort")
    assert int8.engine_bytes < 0.55 * fp32.engine_bytes
    assert fp32.parity.max_abs_diff < 1e-4
    assert 0 < int8.parity.mean_abs_diff < 0.1


def test_int8_by_token_is_closer_and_knows_no_company(export: Path, tmp_path: Path) -> None:
    reports = [build_engine(export, tmp_path / kind, precision="int8", activations=kind, backend="ort") for kind in ("batch", "token")]
    batch, token = (report.parity for report in reports)
    # Weights of 7 bits, on processors whose 8-bit products saturate, are wrong by more than either kind of activations.
    assert token.mean_abs_diff < batch.mean_abs_diff * (1.2 if reports[0].reduced_range else 1.0)
    assert token.batch_max_abs_diff < 1e-4 < batch.batch_max_abs_diff
    with pytest.raises(BuildError, match="expected one of batch, token, static"):
        build_engine(export, tmp_path / "x", precision="int8", activations="row", backend="ort")
    for backend, precision in (("native", "int8"), ("ort", "fp32"), (None, "fp32")):
        with pytest.raises(BuildError, match="no such choice"):
            build_engine(export, tmp_path / "x", precision=precision, activations="static", backend=backend)


def test_static_int8_is_calibrated_and_knows_no_company(export: Path, tmp_path: Path) -> None:
    static = build_engine(export, tmp_path / "static", precision="int8", activations="static", backend="ort").parity
    batch = build_engine(export, tmp_path / "batch", precision="int8", activations="batch", backend="ort").parity
    assert static.batch_max_abs_diff < 1e-4 < batch.batch_max_abs_diff
    assert static.mean_abs_diff < 3 * batch.mean_abs_diff


def test_the_fingerprint_says_where_and_with_what_it_was_built(export: Path, tmp_path: Path) -> None:
    build_engine(export, tmp_path / "bundle", backend="ort")
    fingerprint = verify_bundle(tmp_path / "bundle").fingerprint
    assert {"machine", "os", "cpu_flags", "onnxruntime", "onnx", "numpy", "edgerec", "graph"} <= fingerprint.keys()


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_without_a_backend_native_is_built_where_it_runs_the_student(export: Path, tmp_path: Path, precision: str) -> None:
    report = build_engine(export, tmp_path / "bundle", precision=precision)
    assert (report.backend, report.backend_reason) == ("native", "the native engine runs this student")
    assert verify_bundle(tmp_path / "bundle").backend == report.to_json()["backend"] == "native"
    fingerprint = verify_bundle(tmp_path / "bundle").fingerprint
    assert "onnxruntime" not in fingerprint
    asked = build_engine(export, tmp_path / "asked", backend="native", precision=precision)
    assert (asked.backend_reason, asked.model_version) == ("asked for", report.model_version)


UNSUPPORTED = {
    "operator": ({}, "does not run operator Einsum (node 'odd')"),
    "hidden size": ({"hidden": 48}, "hidden size 48 is not a multiple of 32"),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_a_student_that_native_does_not_run_is_built_for_ort_and_the_report_says_why(tmp_path: Path, name: str) -> None:
    shape, why = UNSUPPORTED[name]
    export = make_export(tmp_path / "export", **shape)
    if name == "operator":
        graph = onnx.load(export / "student.onnx")
        last = graph.graph.node[-1]
        last.output[0] = "before"
        graph.graph.node.append(onnx.helper.make_node("Einsum", ["before"], ["logits"], "odd", equation="i->i"))
        onnx.save(graph, export / "student.onnx")
    report = build_engine(export, tmp_path / "bundle")
    assert report.backend == verify_bundle(tmp_path / "bundle").backend == "ort"
    assert why in report.backend_reason
    assert "\n" not in report.backend_reason
    assert build_engine(export, tmp_path / "asked", backend="ort").backend_reason == "asked for"
    with pytest.raises(BuildError, match="--backend ort will take it") as caught:
        build_engine(export, tmp_path / "native", backend="native")
    assert why in str(caught.value)
    assert not (tmp_path / "native").exists()


def scramble(graph: Path) -> None:
    """Permute the columns of every weight matrix: same shapes, same statistics, another function."""
    model = onnx.load(graph)
    rng = np.random.default_rng(0)
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) == 2:
            tensor.CopyFrom(numpy_helper.from_array(rng.permuted(numpy_helper.to_array(tensor), axis=1), tensor.name))
    onnx.save(model, graph)


@pytest.mark.parametrize(("backend", "precision"), KINDS)
def test_a_model_with_scrambled_weights_is_refused(own: Path, tmp_path: Path, backend: str, precision: str) -> None:
    scramble(own / "student.onnx")
    with pytest.raises(BuildError, match=r"does not give the logits that calibration\.npz records"):
        build_engine(own, tmp_path / "out" / "bundle", backend=backend, precision=precision)
    assert not (tmp_path / "out").exists()


def test_weights_that_are_not_those_of_the_graph_are_refused(own: Path, tmp_path: Path) -> None:
    other = make_export(tmp_path / "other", seed=9)
    shutil.copy(other / "student.safetensors", own / "student.safetensors")
    with pytest.raises(BuildError, match=r"reference engine of tiny-l2 does not match .*max \|dlogit\|.*No bundle was written"):
        build_engine(own, tmp_path / "bundle", backend="reference")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_one_nan_in_the_weights_is_refused(own: Path, tmp_path: Path, precision: str) -> None:
    model = onnx.load(own / "student.onnx")
    tensor = next(t for t in model.graph.initializer if t.name == "head.weight.T")
    values = numpy_helper.to_array(tensor).copy()
    values[0, 0] = np.nan
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(model, own / "student.onnx")
    with pytest.raises(BuildError, match="nan is above"):
        build_engine(own, tmp_path / "bundle", precision=precision, backend="ort")


def test_a_gate_out_of_reach_refuses_and_leaves_nothing(export: Path, tmp_path: Path) -> None:
    strict = Tolerances(int8=Tolerance(max_abs_diff=1e-9, ndcg_drop=0.01, top_overlap=0.8, tau=0.9))
    with pytest.raises(BuildError, match=r"max \|dlogit\|"):
        build_engine(export, tmp_path / "bundle", precision="int8", tolerances=strict, backend="ort")
    assert os.listdir(tmp_path) == []


def test_an_existing_path_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    with pytest.raises(BuildError, match="bundle exists"):
        build_engine(tmp_path / "no such export", tmp_path / "bundle")


def test_replace_keeps_the_old_bundle_if_the_build_fails(export: Path, own: Path, tmp_path: Path) -> None:
    built = build_engine(export, tmp_path / "bundle", backend="ort")
    scramble(own / "student.onnx")
    with pytest.raises(BuildError):
        build_engine(own, tmp_path / "bundle", replace=True, backend="ort")
    assert verify_bundle(tmp_path / "bundle").model_version == built.model_version
    assert build_engine(export, tmp_path / "bundle", precision="int8", replace=True, backend="ort").precision == "int8"


@pytest.mark.parametrize(("backend", "precision"), [("ort", "fp64"), ("reference", "int8"), ("trt", "fp16"), ("", "")])
def test_what_cannot_be_built_is_named_with_what_can(export: Path, tmp_path: Path, backend: str, precision: str) -> None:
    with pytest.raises(BuildError, match=r"ort: fp32, int8; native: fp32, bf16, int8; reference: fp32"):
        build_engine(export, tmp_path / "bundle", backend=backend, precision=precision)


def test_building_leaves_the_logging_of_the_host_alone(export: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    handlers, level = list(logging.root.handlers), logging.root.level
    build_engine(export, tmp_path / "bundle", precision="int8", backend="ort")
    assert (logging.root.handlers, logging.root.level) == (handlers, level)
    assert capfd.readouterr() == ("", "")


def test_without_onnx_the_extra_is_named() -> None:
    code = "import sys; sys.modules['onnx'] = None\nimport edgerec.builder"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert "MissingExtraError: onnx is not installed; run: pip install 'edgerec[build]'" in done.stderr


def test_a_cpu_that_saturates_gets_seven_bit_weights(export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgerec.builder.build.int8_saturates", lambda *_: True)
    assert build_engine(export, tmp_path / "narrow", precision="int8", backend="ort").reduced_range is True
    graph = onnx.load(tmp_path / "narrow" / "engine.onnx")
    products = {name for node in graph.graph.node if "MatMul" in node.op_type for name in node.input}
    weights = [numpy_helper.to_array(t) for t in graph.graph.initializer if t.data_type == onnx.TensorProto.INT8 and t.name in products]
    assert weights
    assert max(int(np.abs(w.astype(np.int32)).max()) for w in weights) == 63


def damage(engine: bytes) -> bytes:
    """An engine that answers, but with other weights: each matrix of the FFN is shuffled."""
    model, rng = onnx.load_model_from_string(engine), np.random.default_rng(0)
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.ndim == 2 and values.size >= 32 * 32:
            tensor.CopyFrom(numpy_helper.from_array(rng.permutation(values.ravel()).reshape(values.shape), tensor.name))
    return bytes(model.SerializeToString())


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_deliberately_damaged_engine_is_refused_by_its_ranking(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    from edgerec.builder import build

    whole = build.compile_graph
    monkeypatch.setattr(build, "compile_graph", lambda graph: damage(whole(graph)))
    blind = Tolerances(
        fp32=Tolerance(max_abs_diff=math.inf, ndcg_drop=0.01, top_overlap=0.0, tau=0.9),
        int8=Tolerance(max_abs_diff=math.inf, ndcg_drop=0.01, top_overlap=0.0, tau=0.9),
    )
    with pytest.raises(BuildError, match=r"nDCG@10 drops by .* Kendall tau"):
        build_engine(export, tmp_path / "bundle", precision=precision, tolerances=blind, backend="ort")
    assert not (tmp_path / "bundle").exists()
    off = {"ndcg_drop": 1.0, "tau": -1.0}
    assert build_engine(export, tmp_path / "bundle", precision=precision, tolerances=blind, gate=off, backend="ort").parity.tau < 0.9


def test_an_engine_that_gives_nan_is_refused_and_counted(export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgerec.builder import build

    class Broken:
        """The engine, but every fifth logit is NaN."""

        def __init__(self, engine: Engine) -> None:
            self.engine = engine

        def run(self, batch: Batch) -> np.ndarray:
            logits = self.engine.run(batch)
            logits[::5] = np.nan
            return logits

        def close(self) -> None:
            self.engine.close()

    monkeypatch.setattr(build, "open_engine", lambda *a, **k: Broken(open_engine(*a, **k)))
    with pytest.raises(BuildError, match="21 of 96 logits are not finite"):
        build_engine(export, tmp_path / "bundle", backend="ort")
    assert not (tmp_path / "bundle").exists()


def test_the_recipes_gate_holds_unless_the_caller_sets_another(own: Path, tmp_path: Path) -> None:
    model = json.loads((own / "model.json").read_text())
    (own / "model.json").write_text(json.dumps({**model, "gate": {"tau": 1.0, "nan_count": 0}}))
    with pytest.raises(BuildError, match=r"Kendall tau .* is below 1.000"):
        build_engine(own, tmp_path / "bundle", precision="int8", backend="ort")
    report = build_engine(own, tmp_path / "bundle", precision="int8", gate={"tau": 0.5}, backend="ort")
    assert report.to_json()["tolerance"] == {"max_abs_diff": None, "ndcg_drop": 0.01, "top_overlap": 0.8, "tau": 0.5, "nan_count": 0}
    for gate in ({"tau": 7}, {"speed": 1}, [1]):
        (own / "model.json").write_text(json.dumps({**model, "gate": gate}))
        with pytest.raises(BuildError, match="gate"):
            build_engine(own, tmp_path / "other", backend="ort")
