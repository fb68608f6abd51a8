"""The Triton repository: its configuration is one by Triton's own schema, its samples fit its model, its logits are the bundle's."""

from __future__ import annotations

import importlib.util
import json
import shutil
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from fixtures_export import make_export
from fixtures_standin import standin

from edgerec.builder import GpuOptions, build_engine
from edgerec.cli import cli
from edgerec.engine.ort import ort
from edgerec.engine.probe import read_arrays
from edgerec.errors import InputError
from edgerec.triton import Word, export_triton, pbtxt


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("triton")
    export = make_export(root / "export")
    for backend in ("ort", "native"):
        build_engine(export, root / backend, backend=backend)
    with standin():
        build_engine(export, root / "tensorrt", backend="tensorrt", precision="fp16", gpu=GpuOptions(buckets=((8, 32),)))
    return root


@pytest.fixture(scope="module")
def schema() -> ModuleType:
    """Triton's schema, out of tritonclient, whose package would want more to be installed."""
    found = importlib.util.find_spec("tritonclient")
    if found is None or not found.submodule_search_locations:
        pytest.skip("tritonclient is not installed: pip install --no-deps tritonclient")
    path = Path(found.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its generated code is of another version of protobuf
        spec.loader.exec_module(module)
    return module


def parsed(folder: Path, schema: Any) -> Any:
    from google.protobuf import text_format

    return text_format.Parse((folder / "config.pbtxt").read_text(), schema.ModelConfig())


@pytest.mark.parametrize(("backend", "kind"), [("ort", "KIND_CPU"), ("tensorrt", "KIND_GPU")])
def test_the_configuration_is_one_by_tritons_schema(bundles: Path, tmp_path: Path, schema: Any, backend: str, kind: str) -> None:
    config = parsed(export_triton(bundles / backend, tmp_path, name="ranker", max_batch=64, queue_delay_us=200), schema)
    assert (config.name, config.backend, config.max_batch_size) == ("ranker", "onnxruntime", 64)
    shapes = {i.name: (schema.DataType.Name(i.data_type), list(i.dims)) for i in config.input}
    assert shapes == {
        **dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), ("TYPE_INT32", [-1])),
        "feature_ids": ("TYPE_INT32", [12]),
        "feature_weights": ("TYPE_FP32", [12]),
    }
    (output,) = config.output
    assert (output.name, list(output.dims), output.HasField("reshape"), list(output.reshape.shape)) == ("logits", [1], True, [])
    assert schema.ModelInstanceGroup.Kind.Name(config.instance_group[0].kind) == kind
    assert config.dynamic_batching.max_queue_delay_microseconds == 200
    assert [warm.batch_size for warm in config.model_warmup] == [1, 64]
    names = [a.name for a in config.optimization.execution_accelerators.gpu_execution_accelerator]
    assert names == (["tensorrt"] if backend == "tensorrt" else [])


@pytest.mark.parametrize("backend", ["ort", "tensorrt"])
def test_the_warm_up_sample_runs_and_gives_the_bundles_logit(bundles: Path, tmp_path: Path, backend: str) -> None:
    folder = export_triton(bundles / backend, tmp_path)
    assert folder.name == "tiny-l2"
    session = ort.InferenceSession(str(folder / "1" / "model.onnx"), providers=["CPUExecutionProvider"])
    feeds = {}
    for value in session.get_inputs():
        kind = np.float32 if "float" in value.type else np.int32
        feeds[value.name] = np.frombuffer((folder / "warmup" / value.name).read_bytes(), kind)[None]
    probe = read_arrays((bundles / backend / "probe.npz").read_bytes(), "probe")
    np.testing.assert_allclose(session.run(["logits"], feeds)[0], probe["logits"][:1], rtol=0, atol=0.02)


def test_a_caller_finds_what_encodes_text(bundles: Path, tmp_path: Path) -> None:
    folder = export_triton(bundles / "ort", tmp_path)
    assert (folder / "edgerec" / "tokenizer.json").read_bytes() == (bundles / "ort" / "tokenizer.json").read_bytes()
    manifest = json.loads((bundles / "ort" / "manifest.json").read_text())
    found = json.loads((folder / "edgerec" / "bundle.json").read_text())
    assert found == {"model_version": manifest["model_version"], "content_id": manifest["content_id"]}


def test_what_is_no_model_for_triton_is_refused(bundles: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a bundle for native; Triton gets cross students built with --backend ort or tensorrt"):
        export_triton(bundles / "native", tmp_path)
    for wrong in ({"name": "../x"}, {"max_batch": 0}, {"instances": 65}, {"queue_delay_us": -1}):
        with pytest.raises(InputError, match="expected"):
            export_triton(bundles / "ort", tmp_path, **wrong)
    assert not any(tmp_path.iterdir())
    export_triton(bundles / "ort", tmp_path)
    with pytest.raises(InputError, match="exists"):
        export_triton(bundles / "ort", tmp_path)


def test_a_failed_write_leaves_nothing(bundles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("edgerec.triton.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        export_triton(bundles / "ort", tmp_path / "repository")
    assert [*(tmp_path / "repository").iterdir()] == []


def test_text_format_quotes_text_and_not_names() -> None:
    message = {"a": 'x"y\n', "kind": Word("KIND_GPU"), "dims": [-1, 2], "none": [], "deep": {"yes": True}, "many": [{"n": 1}, {"n": 2}]}
    expected = 'a: "x\\"y\\n"\nkind: KIND_GPU\ndims: [-1, 2]\nnone: []\ndeep {\n  yes: true\n}\nmany {\n  n: 1\n}\nmany {\n  n: 2\n}\n'
    assert pbtxt(message) == expected


def test_the_command_line_writes_it(bundles: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["export-triton", str(bundles / "ort"), str(tmp_path / "r"), "--name", "ranker", "--json"])
    assert json.loads(result.output)["model"] == "ranker"
    assert (tmp_path / "r" / "ranker" / "config.pbtxt").exists()
    shutil.rmtree(tmp_path / "r")
