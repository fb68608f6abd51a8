"""Plans: built for real by TensorRT for RTX, on a machine without a GPU; and every way a build can fail says what to do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from fixtures_export import make_export
from fixtures_standin import GPU, standin
from onnx import helper

from edgerec.builder import GpuOptions, build_engine, trt_parts
from edgerec.builder import trt as builder
from edgerec.builder.calibrate import calibrate
from edgerec.builder.contract import Export, read_export
from edgerec.builder.trt import PRECISIONS, run_child
from edgerec.builder.trt_half import halve
from edgerec.builder.trt_inspect import summarise
from edgerec.builder.trt_qdq import EIGHTS, quantise
from edgerec.bundle import verify_bundle
from edgerec.cli import cli
from edgerec.cli_gpu import read_gpu
from edgerec.engine.gpu import Gpu
from edgerec.engine.trt_plans import Plans, Runtime, installed_version
from edgerec.errors import BuildError, InputError
from edgerec.types import Batch

NO_GPU = Gpu(reason="no NVIDIA driver on this machine")
TARGETS = ("sm_80", "sm_86", "sm_89", "sm_120")
# `make setup` installs it; where no wheel exists for the machine, nothing real can be built.
rtx = pytest.mark.skipif(not installed_version("tensorrt_rtx"), reason="TensorRT for RTX is not installed: pip install 'edgerec[rtx]'")
RUNTIMES = {
    "without a GPU": Runtime(NO_GPU, {"tensorrt_rtx": "1.6"}),
    "with one": Runtime(GPU, {"tensorrt": "11.0.0", "tensorrt_rtx": "1.6"}),
}


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_export(tmp_path_factory.mktemp("trt") / "export", hidden=64, pooler=True)


@pytest.fixture(scope="module")
def source(export: Path) -> Export:
    return read_export(export)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also on a machine that has one."""
    versions = {"tensorrt_rtx": installed_version("tensorrt_rtx") or "1.6"}
    monkeypatch.setattr(builder, "this_runtime", lambda: Runtime(NO_GPU, versions))


def options(**given: Any) -> GpuOptions:
    return GpuOptions(**{"buckets": ((8, 32),), "targets": ("sm_89",), **given})


def profile(rows: int, tokens: int, slots: int) -> dict[str, tuple[int, int]]:
    names = ("input_ids", "attention_mask", "token_type_ids")
    return dict.fromkeys(names, (rows, tokens)) | dict.fromkeys(("feature_ids", "feature_weights"), (rows, slots))


def real(graph: bytes, folder: Path, **changes: Any) -> dict[str, Any]:
    """One child's answer about a graph."""
    (folder / "student.onnx").write_bytes(graph)
    names = {name: str(folder / name) for name in ("answer", "plan", "onnx")}
    job = {
        **names,
        "sys_path": sys.path,
        "module": "tensorrt_rtx_bindings",
        "onnx": str(folder / "student.onnx"),
        "answer": str(folder / "answer.json"),
        "profiles": [profile(8, 32, 12)],
        "target": "sm_89",
        "hardware_compat": "none",
        "version_compatible": False,
        "timing_cache": "",
        "workspace_bytes": 1 << 30,
        "inspect": False,
        **changes,
    }
    return run_child(job, folder, 300)


@rtx
@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize(("precision", "target"), [*zip(PRECISIONS, ("sm_80", "sm_86", "sm_89", "sm_120", "sm_89"), strict=True)])
def test_a_plan_of_every_precision_is_built_without_a_gpu(export: Path, tmp_path: Path, precision: str, target: str) -> None:
    report = build_engine(export, tmp_path / "bundle", backend="tensorrt", precision=precision, gpu=options(targets=(target,)))
    manifest = verify_bundle(tmp_path / "bundle")
    assert (manifest.backend, manifest.precision) == ("tensorrt", precision)
    assert manifest.fingerprint["targets"] == [target]
    assert manifest.fingerprint["tensorrt"] == f"tensorrt_rtx {installed_version('tensorrt_rtx')}"
    assert manifest.files[f"engine.{target}.plan"].bytes > 100_000
    assert {"tensorrt.onnx", "engine.bin", "plans.json", "inspector.json"} <= manifest.files.keys()
    # No GPU ran it, and both the report and the bundle say so.
    parity = json.loads((tmp_path / "bundle" / "parity.json").read_text())
    assert parity["gpu"].startswith("not run: ")
    assert "no plan was run" in report.measured
    assert (parity["max_abs_diff"] > 0) == (precision != "fp32")


@rtx
@pytest.mark.usefixtures("no_gpu")
def test_plans_for_several_targets_and_buckets_lie_in_one_bundle(export: Path, tmp_path: Path) -> None:
    buckets = ((4, 16), (8, 32))
    build_engine(export, tmp_path / "bundle", backend="tensorrt", precision="fp16", gpu=options(buckets=buckets, targets=TARGETS))
    plans = Plans.from_json(json.loads((tmp_path / "bundle" / "plans.json").read_text()), "plans.json")
    assert [plan.target for plan in plans.plans] == list(TARGETS)
    assert (plans.buckets, plans.slots, plans.fallback) == (buckets, 12, ("native", "fp32"))
    assert {plan.gpu for plan in plans.plans} == {""}


@rtx
def test_an_operator_that_tensorrt_lacks_is_named_with_its_node(source: Export, tmp_path: Path) -> None:
    model = onnx.load_model_from_string(source.graph)
    model.graph.node[-1].output[0] = "before"
    model.graph.node.append(helper.make_node("MelWeightMatrix", ["before"] * 5, ["logits"], name="odd_one"))
    answer = real(model.SerializeToString(), tmp_path)
    assert "operator MelWeightMatrix (node 'odd_one')" in answer["error"]


@rtx
def test_a_corrupt_graph_is_refused(source: Export, tmp_path: Path) -> None:
    assert "the ONNX parser refuses the graph" in real(source.graph[: len(source.graph) // 2], tmp_path)["error"]


@rtx
def test_a_bucket_that_contradicts_the_graph_is_refused(source: Export, tmp_path: Path) -> None:
    model = onnx.load_model_from_string(source.graph)
    for value in model.graph.input:
        if not value.name.startswith("feature"):
            value.type.tensor_type.shape.dim[1].dim_value = 16
    assert "profile has min=32, opt=32, max=32 but tensor has 16" in real(model.SerializeToString(), tmp_path)["error"]


@rtx
def test_an_input_without_a_shape_is_named(source: Export, tmp_path: Path) -> None:
    shapes = {name: shape for name, shape in profile(8, 32, 12).items() if name != "feature_ids"}
    assert "an input feature_ids, for which no shape was given" in real(source.graph, tmp_path, profiles=[shapes])["error"]


@rtx
def test_a_target_that_tensorrt_does_not_know_is_said_in_words(source: Export, tmp_path: Path) -> None:
    message = real(source.graph, tmp_path, target="sm_90")["error"]
    assert "does not build for sm_90; it knows sm_120, sm_121, sm_75, sm_80, sm_86, sm_89" in message


def test_a_child_that_crashes_is_a_build_error_with_its_log(tmp_path: Path) -> None:
    (tmp_path / "crashing.py").write_text("import os, sys\nsys.stderr.write('about to fail\\n')\nsys.stderr.flush()\nos.abort()\n")
    job = {"sys_path": [str(tmp_path), *sys.path], "module": "crashing"}
    with pytest.raises(BuildError, match=r"was ended by SIGABRT and gave no answer; its log ends: .*about to fail"):
        run_child(job, tmp_path, 60)


def test_a_child_that_hangs_is_stopped(tmp_path: Path) -> None:
    (tmp_path / "hanging.py").write_text("import threading\nthreading.Event().wait()\n")
    with pytest.raises(BuildError, match=r"did not finish within 1 s and was stopped; it logged nothing"):
        run_child({"sys_path": [str(tmp_path), *sys.path], "module": "hanging"}, tmp_path, 1)


def test_a_module_that_cannot_be_imported_is_a_build_error(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"exit code 1 .*No module named 'tensorrt_of_nobody'"):
        run_child({"sys_path": sys.path, "module": "tensorrt_of_nobody"}, tmp_path, 60)


# Who builds what where: the driver is asked before anything of TensorRT is imported.
CHOICES: dict[str, tuple[str, dict[str, Any], Any]] = {
    "no target": ("without a GPU", {"targets": ()}, "no GPU to build for: no NVIDIA driver.*TensorRT for RTX, for example --target sm_89"),
    "ahead": ("without a GPU", {"targets": ("sm_89", "sm_120")}, ("tensorrt_rtx", ("sm_89", "sm_120"))),
    "full TensorRT without a GPU": ("without a GPU", {"flavour": "tensorrt"}, "full TensorRT builds on the GPU it will serve on alone"),
    "the GPU here": ("with one", {"targets": ()}, ("tensorrt", ("",))),
    "the GPU here by name": ("with one", {"targets": ("sm_90",)}, ("tensorrt", ("",))),
    "the GPU here, with RTX": ("with one", {"targets": (), "flavour": "tensorrt_rtx"}, ("tensorrt_rtx", ("",))),
    "another GPU": ("with one", {"targets": ("sm_89",)}, ("tensorrt_rtx", ("sm_89",))),
    "another GPU with full TensorRT": ("with one", {"flavour": "tensorrt"}, "cannot build for sm_89: it builds for sm_90"),
    "an unknown flavour": ("with one", {"flavour": "onnx"}, "flavour is 'onnx'"),
}


@pytest.mark.parametrize("name", CHOICES)
def test_which_tensorrt_builds_for_what(name: str) -> None:
    where, given, expected = CHOICES[name]
    if isinstance(expected, str):
        with pytest.raises(BuildError, match=expected):
            builder._flavour(options(**given), RUNTIMES[where])
    else:
        assert builder._flavour(options(**given), RUNTIMES[where]) == expected


def test_without_a_device_the_command_says_so_and_does_not_crash(export: Path, tmp_path: Path) -> None:
    command = ["-m", "edgerec", "build-engine", str(export), str(tmp_path / "bundle"), "--backend", "tensorrt"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}  # also on a machine that has one
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 1
    assert "error: there is no GPU to build for: " in done.stderr
    assert "for example --target sm_89" in done.stderr


def test_fp8_is_refused_on_a_gpu_that_has_none(export: Path, tmp_path: Path) -> None:
    with standin(Gpu("sm_80", "Some A100", "13.0")), pytest.raises(BuildError, match="sm_80 has no fp8 arithmetic"):
        build_engine(export, tmp_path / "bundle", backend="tensorrt", precision="fp8", gpu=options(targets=()))


def test_a_missing_tensorrt_is_named_with_the_way_to_get_it() -> None:
    with pytest.raises(BuildError, match=r"tensorrt_rtx is not installed; run: pip install 'edgerec\[rtx\]'"):
        builder._flavour(options(), Runtime(NO_GPU, {}))


WRONG: dict[str, tuple[dict[str, Any], str, str]] = {
    "compatibility": ({"hardware_compat": "all"}, "fp32", "hardware_compat is 'all'"),
    "fallback": ({"fallback": "fp8"}, "fp32", "fallback is 'fp8'"),
    "target": ({"targets": ("89",)}, "fp32", "compute capabilities like sm_89"),
    "a target twice": ({"targets": ("sm_89", "sm_89")}, "fp32", "different compute capabilities"),
    "fp8 before Ada": ({"targets": ("sm_89", "sm_86")}, "fp8", "sm_86 has no fp8 arithmetic"),
    "a timing cache for RTX": ({"timing_cache": Path("x")}, "fp32", "RTX measures no kernels"),
    "a compatible plan of RTX": ({"version_compatible": True}, "fp32", "has no lean runtime"),
    "short buckets": ({"buckets": ((8, 16),)}, "fp32", "a row may have 32"),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.usefixtures("no_gpu")
def test_options_that_make_no_plan_are_refused(export: Path, tmp_path: Path, name: str) -> None:
    given, precision, message = WRONG[name]
    with pytest.raises(BuildError, match=message):
        build_engine(export, tmp_path / "bundle", backend="tensorrt", precision=precision, gpu=options(**given))
    assert not (tmp_path / "bundle").exists()


def test_on_a_gpu_parity_is_that_of_the_plan(export: Path, tmp_path: Path) -> None:
    with standin():
        report = build_engine(export, tmp_path / "bundle", backend="tensorrt", precision="fp16", gpu=options(targets=()))
    parity = json.loads((tmp_path / "bundle" / "parity.json").read_text())
    assert (report.measured, parity["gpu"]) == ("", GPU.name)
    assert parity["fallback"]["max_abs_diff"] < 1e-3
    manifest = verify_bundle(tmp_path / "bundle")
    assert (manifest.fingerprint["gpu"], manifest.fingerprint["driver"]) == (GPU.name, GPU.driver)
    inspected = json.loads((tmp_path / "bundle" / "inspector.json").read_text())["engine.sm_90.plan"]
    assert (inspected["by_precision"], inspected["fused_attention"]) == ({"fp16": 1}, 1)


def test_a_plan_that_computes_something_else_is_not_packed(export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    typed = trt_parts.typed_graphs
    monkeypatch.setattr(trt_parts, "typed_graphs", lambda *given: (_negated(typed(*given)[0]), given[0]))
    with standin(), pytest.raises(BuildError, match="fp32 tensorrt engine of tiny-l2 does not match"):
        build_engine(export, tmp_path / "bundle", backend="tensorrt", gpu=options(targets=()))
    assert not (tmp_path / "bundle").exists()


def _negated(graph: bytes) -> bytes:
    model = onnx.load_model_from_string(graph)
    model.graph.node[-1].output[0] = "before"
    model.graph.node.append(helper.make_node("Neg", ["before"], ["logits"]))
    return bytes(model.SerializeToString())


def test_a_timing_cache_is_written_and_read(export: Path, tmp_path: Path) -> None:
    cache = tmp_path / "times"
    for number in (1, 2):
        with standin():
            build_engine(export, tmp_path / str(number), backend="tensorrt", gpu=options(targets=(), timing_cache=cache))
        assert cache.read_bytes() == b"timed" * number
    cache.write_bytes(b"of another GPU")
    with standin(), pytest.raises(BuildError, match="no timing cache of this TensorRT and GPU"):
        build_engine(export, tmp_path / "3", backend="tensorrt", gpu=options(targets=(), timing_cache=cache))


def test_the_inspector_is_summarised() -> None:
    layers = [
        {"Name": "a", "LayerType": "gemm", "Outputs": [{"Format/Datatype": "Row major linear FP16 format"}]},
        {"Name": "_mha_v2", "LayerType": "kgen", "Outputs": [{"Format/Datatype": "Half"}]},
        {"Name": "b", "LayerType": "gemm", "Outputs": [{"Format/Datatype": "Int8"}]},
        {"Name": "c", "LayerType": "norm", "Outputs": [{"Datatype": "Float"}]},
        {"Name": "d", "LayerType": "shape", "Outputs": []},
    ]
    assert summarise({"Layers": layers}) == {
        "layers": 5,
        "by_precision": {"fp16": 2, "fp32": 1, "int8": 1, "unknown": 1},
        "by_type": {"gemm": 2, "kgen": 1, "norm": 1, "shape": 1},
        "fused_attention": 1,
        "detailed": True,
    }
    assert summarise({"Layers": ["a", "mha"]})["detailed"] is False
    assert summarise(None)["layers"] == 0


def test_the_command_line_builds_and_verify_explains(export: Path, tmp_path: Path) -> None:
    command = ["build-engine", str(export), str(tmp_path / "b"), "--backend", "tensorrt", "--precision", "fp16", "--buckets", "4x16,8x32"]
    with standin():
        built = CliRunner().invoke(cli, [*command, "--fallback", "int8", "--json"], catch_exceptions=False)
        assert json.loads(built.output)["backend"] == "tensorrt"
        here = CliRunner().invoke(cli, ["verify", str(tmp_path / "b"), "--json"], catch_exceptions=False)
        assert json.loads(here.output)["tensorrt"] == {"plan": "engine.sm_90.plan"}
    with standin(Gpu("sm_89", "Other GPU", "13.0")):
        found = json.loads(CliRunner().invoke(cli, ["verify", str(tmp_path / "b"), "--json"]).output)
    assert found["ok"] is True
    assert found["tensorrt"]["plan"] == "none"
    assert found["tensorrt"]["why"] == "engine.sm_90.plan: it was built for sm_90, this GPU (Other GPU) is sm_89"
    assert found["tensorrt"]["instead"] == "native int8"
    assert found["tensorrt"]["rebuild"].endswith("--precision fp16 --buckets 4x16,8x32 --target sm_89")


def test_options_of_tensorrt_need_it(export: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["build-engine", str(export), str(tmp_path / "b"), "--target", "sm_89"])
    assert result.exit_code == 1
    assert "--target: for --backend tensorrt only" in result.output
    with pytest.raises(InputError, match="--buckets, --version-compatible: for"):
        read_gpu("ort", buckets="1x1", targets=None, timing_cache=None, hardware_compat=None, version_compatible=True, fallback=None)


SIZES = {"L6": (6, 384, 12), "L3": (3, 384, 12), "2 x 128": (2, 128, 2)}


@pytest.fixture(scope="module", params=SIZES)
def real_graph(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A student of real size with random weights, as the exporter writes it."""
    torch = pytest.importorskip("torch")
    from edgerec.training.export import _cross_graph, _export_onnx
    from edgerec.training.student import Student, StudentShape

    layers, hidden, heads = SIZES[request.param]
    torch.manual_seed(0)
    student = Student(StudentShape(layers, hidden, heads, 4 * hidden, 30522, 512, True, 32768, 16, 32)).eval()
    path = tmp_path_factory.mktemp("real") / "student.onnx"
    for module, inputs in _cross_graph(student, 32).values():
        _export_onnx(module, inputs, path)
    return path.read_bytes()


@rtx
@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
def test_students_of_real_size_build_for_every_target(real_graph: bytes, tmp_path: Path, precision: str) -> None:
    rng, graph = np.random.default_rng(0), real_graph
    ids, ones = rng.integers(5, 30000, (32, 64)).astype(np.int32), np.ones((32, 64), np.int32)
    features = rng.integers(0, 32768, (32, 32)).astype(np.int32), rng.normal(size=(32, 32)).astype(np.float32)
    if precision in EIGHTS:
        graph = quantise(graph, precision, calibrate(graph, Batch(ids, ones, 0 * ones, *features)))
    if precision != "fp32":
        graph = halve(graph, "bf16" if precision == "bf16" else "fp16")
    for target in TARGETS:
        if precision == "fp8" and target in ("sm_80", "sm_86"):
            continue  # refused before TensorRT is asked; see above
        shapes = [profile(*bucket, 32) for bucket in ((32, 32), (128, 32), (32, 64), (128, 64))]
        answer = real(graph, tmp_path, target=target, profiles=shapes)
        assert "error" not in answer
        assert (tmp_path / "plan").stat().st_size > 1_000_000
