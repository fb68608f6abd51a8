"""The Triton repository: its configurations are ones by Triton's own schema, and run as they are wired they give what a ranker returns."""

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
from engine.backends import NARROW, Case
from fixtures_export import make_export
from fixtures_standin import standin
from hypothesis import given
from hypothesis import strategies as st

from edgerec import Item, Ranker
from edgerec._core import topk
from edgerec.builder import GpuOptions, build_engine
from edgerec.catalog import build_catalog
from edgerec.cli import cli
from edgerec.engine.mid_ort import feeds
from edgerec.engine.ort import ort
from edgerec.engine.probe import read_arrays
from edgerec.errors import InputError
from edgerec.triton import export_triton
from edgerec.triton_config import Word, pbtxt
from edgerec.triton_graph import top_graph
from edgerec.types import StateBatch


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
def mid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bundles of a mid-fusion student, ``ort`` and ``native``."""
    root = tmp_path_factory.mktemp("triton-mid")
    export = Case("", "", True, 0, mid=NARROW).mid_export(root)
    for backend in ("ort", "native"):
        build_engine(export, root / backend, backend=backend, gate={"ndcg_drop": 1.0})
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


def shapes(schema: Any, tensors: Any) -> dict[str, tuple[str, list[int]]]:
    return {one.name: (schema.DataType.Name(one.data_type), list(one.dims)) for one in tensors}


def execute(folder: Path, feeds: dict[str, Any]) -> dict[str, Any]:
    """A model's outputs, by ONNX Runtime."""
    session = ort.InferenceSession(str(folder / "1" / "model.onnx"), providers=["CPUExecutionProvider"])
    return dict(zip((one.name for one in session.get_outputs()), session.run(None, feeds), strict=True))


def serve(ensemble: Path, schema: Any, given: dict[str, Any]) -> dict[str, Any]:
    """What Triton does with a request of the ensemble: one step after the other, with the shapes and types of its configuration."""
    config = parsed(ensemble, schema)
    tensors = dict(given)
    assert (config.platform, config.max_batch_size, sorted(given)) == ("ensemble", 0, sorted(one.name for one in config.input))
    for step in config.ensemble_scheduling.step:
        folder = ensemble.parent / step.model_name
        model = parsed(folder, schema)
        rows = [-1] if model.max_batch_size else []
        feeds = {}
        for one in model.input:
            value = tensors[step.input_map[one.name]]
            assert NUMPY[schema.DataType.Name(one.data_type)] == value.dtype
            assert [want if want >= 0 else size for want, size in zip([*rows, *one.dims], value.shape, strict=True)] == list(value.shape)
            assert not rows or len(value) <= model.max_batch_size
            feeds[one.name] = value
        made = execute(folder, feeds)
        for one in model.output:
            # A scalar of a row is a vector of one outside.
            tensors[step.output_map[one.name]] = made[one.name][:, None] if one.HasField("reshape") else made[one.name]
    for one in config.output:
        assert len(one.dims) == tensors[one.name].ndim
    return {one.name: tensors[one.name] for one in config.output}


NUMPY = {"TYPE_INT8": "int8", "TYPE_INT32": "int32", "TYPE_INT64": "int64", "TYPE_FP16": "float16", "TYPE_FP32": "float32"}


@pytest.mark.parametrize(("backend", "kind"), [("ort", "KIND_CPU"), ("tensorrt", "KIND_GPU")])
def test_the_configurations_are_ones_by_tritons_schema(bundles: Path, tmp_path: Path, schema: Any, backend: str, kind: str) -> None:
    folder = export_triton(bundles / backend, tmp_path, name="ranker", max_batch=64, queue_delay_us=200)
    assert folder == tmp_path / "ranker"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ranker", "ranker-model", "ranker-top"]
    config = parsed(tmp_path / "ranker-model", schema)
    assert (config.name, config.backend, config.max_batch_size) == ("ranker-model", "onnxruntime", 64)
    tokens = dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), ("TYPE_INT32", [-1]))
    assert shapes(schema, config.input) == {**tokens, "feature_ids": ("TYPE_INT32", [12]), "feature_weights": ("TYPE_FP32", [12])}
    (output,) = config.output
    assert (output.name, list(output.dims), output.HasField("reshape"), list(output.reshape.shape)) == ("logits", [1], True, [])
    assert schema.ModelInstanceGroup.Kind.Name(config.instance_group[0].kind) == kind
    assert config.dynamic_batching.max_queue_delay_microseconds == 200
    assert [warm.batch_size for warm in config.model_warmup] == [1, 64]
    names = [a.name for a in config.optimization.execution_accelerators.gpu_execution_accelerator]
    assert names == (["tensorrt"] if backend == "tensorrt" else [])
    whole = parsed(folder, schema)
    assert shapes(schema, whole.input) == {
        **dict.fromkeys(tokens, ("TYPE_INT32", [-1, -1])),
        "feature_ids": ("TYPE_INT32", [-1, 12]),
        "feature_weights": ("TYPE_FP32", [-1, 12]),
        "top_k": ("TYPE_INT64", [1]),
    }
    assert list(shapes(schema, whole.output)) == ["logits", "relevance", "top_places", "top_scores"]
    assert not whole.HasField("dynamic_batching")
    assert (folder / "1").is_dir()


@pytest.mark.parametrize("backend", ["ort", "tensorrt"])
def test_a_request_of_the_ensemble_is_answered_as_a_ranker_would(bundles: Path, tmp_path: Path, schema: Any, backend: str) -> None:
    probe = read_arrays((bundles / backend / "probe.npz").read_bytes(), "probe")
    logits = probe.pop("logits")
    folder = export_triton(bundles / backend, tmp_path)
    assert folder.name == "tiny-l2"
    answer = serve(folder, schema, {**probe, "top_k": np.array([3], np.int64)})
    np.testing.assert_allclose(answer["logits"][:, 0], logits, rtol=0, atol=0.02)
    places, scores = topk(answer["logits"][:, 0], 3)
    np.testing.assert_array_equal(answer["top_places"], places)
    np.testing.assert_array_equal(answer["top_scores"], scores)
    np.testing.assert_allclose(answer["relevance"], 1 / (1 + np.exp(-answer["logits"][:, 0])), rtol=1e-5)


def test_a_mid_fusion_student_asks_its_query_once(mid: Path, tmp_path: Path, schema: Any) -> None:
    bundle = mid / "ort"
    items = [Item(f"i{n}", f"red lamp {n} " * (1 + n % 3)) for n in range(9)]
    build_catalog(items, bundle, tmp_path / "catalog")
    folder = export_triton(bundle, tmp_path / "models", name="mid")
    assert sorted(path.name for path in folder.parent.iterdir()) == ["mid", "mid-model", "mid-query", "mid-top"]
    with Ranker.open(bundle, catalog=tmp_path / "catalog", threads=1) as ranker:
        expected = ranker.rank("red lamp", [item.id for item in items], top_k=4)
        seen: list[StateBatch] = []
        rank = ranker._engine._rank  # type: ignore[attr-defined]
        ranker._engine._rank = lambda batch: seen.append(batch) or rank(batch)  # type: ignore[attr-defined]
        ranker.rank("red lamp", [item.id for item in items], top_k=4)
    (batch,) = seen
    given = {name: value for name, value in feeds(batch).items() if name != "queries"}
    answer = serve(folder, schema, {**given, "top_k": np.array([4], np.int64)})
    # The ranker has put the longest items first: places are in its batch.
    order = np.argsort([-(1 + n % 3) for n in range(9)], kind="stable")
    assert [items[order[place]].id for place in answer["top_places"].tolist()] == list(expected.ids)
    np.testing.assert_allclose(answer["top_scores"], expected.scores, rtol=1e-5, atol=1e-6)
    for step in ("query", "model", "top"):
        config = parsed(folder.parent / f"mid-{step}", schema)
        assert (config.max_batch_size, config.HasField("dynamic_batching")) == (0, False)


@pytest.mark.parametrize("kind", ["ort", "tensorrt", "mid"])
def test_every_warm_up_sample_runs(bundles: Path, mid: Path, tmp_path: Path, schema: Any, kind: str) -> None:
    folder = export_triton(mid / "ort" if kind == "mid" else bundles / kind, tmp_path / "models")
    for model in sorted({*folder.parent.iterdir()} - {folder}):
        config = parsed(model, schema)
        for warm in config.model_warmup:
            feeds = {}
            for name, sample in warm.inputs.items():
                data = (model / "warmup" / sample.input_data_file).read_bytes()
                value = np.frombuffer(data, NUMPY[schema.DataType.Name(sample.data_type)]).reshape(list(sample.dims))
                feeds[name] = np.stack([value] * warm.batch_size) if config.max_batch_size else value
            assert all(np.isfinite(value).all() for value in execute(model, feeds).values())


@given(st.lists(st.floats(-3, 3, width=32) | st.sampled_from([0.0, -0.0, np.nan, np.inf, -np.inf]), max_size=40), st.integers(1, 50))
def test_the_graph_selects_as_the_core_does(logits: list[float], k: int) -> None:
    values = np.array(logits, np.float32)
    places, scores = topk(values, max(1, min(k, len(values))))
    for given_as in (values, values[:, None]):
        found = SESSIONS[given_as.ndim].run(None, {"logits": given_as, "top_k": np.array([k], np.int64)})
        np.testing.assert_array_equal(found[1], places)
        np.testing.assert_array_equal(found[2], scores)


SESSIONS = {dimensions: ort.InferenceSession(top_graph(dimensions), providers=["CPUExecutionProvider"]) for dimensions in (1, 2)}


def test_a_caller_finds_what_encodes_text(bundles: Path, tmp_path: Path) -> None:
    folder = export_triton(bundles / "ort", tmp_path)
    assert (folder / "edgerec" / "tokenizer.json").read_bytes() == (bundles / "ort" / "tokenizer.json").read_bytes()
    manifest = json.loads((bundles / "ort" / "manifest.json").read_text())
    found = json.loads((folder / "edgerec" / "bundle.json").read_text())
    assert found == {"model_version": manifest["model_version"], "content_id": manifest["content_id"]}


def test_what_is_no_model_for_triton_is_refused(bundles: Path, mid: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a cross student for native; Triton runs those built for ort or tensorrt: build one with"):
        export_triton(bundles / "native", tmp_path)
    with pytest.raises(InputError, match="a mid-fusion student for native; Triton runs those built for ort: build one with"):
        export_triton(mid / "native", tmp_path)
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
