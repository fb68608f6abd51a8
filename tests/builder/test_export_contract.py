"""The contract: an export that is not what docs/formats.md says is refused, with the reason."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from fixtures_export import make_export
from onnx import TensorProto, helper

from edgerec.builder.contract import read_export
from edgerec.errors import BuildError

Break = Callable[[Path], object]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_export(tmp_path_factory.mktemp("contract") / "export")


@pytest.fixture
def export(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "export"))


def model(
    *keys: str,
    value: object = ...,
) -> Break:
    """Set a field of ``model.json``, or remove it."""

    def apply(export: Path) -> None:
        content = json.loads((export / "model.json").read_text())
        owner = content
        for key in keys[:-1]:
            owner = owner[key]
        if value is ...:
            del owner[keys[-1]]
        else:
            owner[keys[-1]] = value
        (export / "model.json").write_text(json.dumps(content))

    return apply


def graph(change: Callable[[onnx.ModelProto], object]) -> Break:
    def apply(export: Path) -> None:
        proto = onnx.load(export / "student.onnx")
        change(proto)
        (export / "student.onnx").write_bytes(proto.SerializeToString())

    return apply


def rename_input(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].name = "tokens"
    for node in proto.graph.node:
        for i, name in enumerate(node.input):
            if name == "input_ids":
                node.input[i] = "tokens"


def fix_batch(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 8


def widen_input(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].type.tensor_type.elem_type = TensorProto.INT64


def set_opset(proto: onnx.ModelProto) -> None:
    proto.opset_import[0].version = 17


def custom_domain(proto: onnx.ModelProto) -> None:
    proto.opset_import.append(helper.make_opsetid("com.example", 1))
    proto.graph.node[0].domain = "com.example"


def second_output(proto: onnx.ModelProto) -> None:
    proto.graph.output.append(helper.make_tensor_value_info(proto.graph.node[0].output[0], TensorProto.INT64, [1]))


def external(proto: onnx.ModelProto) -> None:
    tensor = next(t for t in proto.graph.initializer if len(t.dims) == 2)
    tensor.data_location = TensorProto.EXTERNAL


def calibration(**changes: Any) -> Break:
    def apply(export: Path) -> None:
        with np.load(export / "calibration.npz") as arrays:
            merged = {**dict(arrays), **{name: change(arrays[name]) if change else None for name, change in changes.items()}}
        np.savez(export / "calibration.npz", **{name: value for name, value in merged.items() if value is not None})

    return apply


def tokenizer(change: Callable[[dict[str, Any]], object]) -> Break:
    def apply(export: Path) -> None:
        content = json.loads((export / "tokenizer.json").read_text())
        change(content)
        (export / "tokenizer.json").write_text(json.dumps(content))

    return apply


def truncating(content: dict[str, Any]) -> None:
    content["truncation"] = {"direction": "Right", "max_length": 128, "strategy": "LongestFirst", "stride": 0}


REFUSED: dict[str, tuple[Break, str]] = {
    "no model.json": (lambda e: (e / "model.json").unlink(), "model.json cannot be read"),
    "no graph": (lambda e: (e / "student.onnx").unlink(), "student.onnx cannot be read"),
    "no tokenizer": (lambda e: (e / "tokenizer.json").unlink(), "tokenizer.json cannot be read"),
    "no calibration": (lambda e: (e / "calibration.npz").unlink(), "calibration.npz cannot be read"),
    "model.json not JSON": (lambda e: (e / "model.json").write_text("{"), "not valid JSON"),
    "model.json a list": (lambda e: (e / "model.json").write_text("[]"), "edgerec export"),
    "another format": (model("format", value="hf"), "edgerec export"),
    "another version": (model("version", value=2), "version is 2"),
    "no features key": (model("features"), "lacks features"),
    "a name with a slash": (model("name", value="../x"), "name is"),
    "a name too long": (model("name", value="a" * 81), "name is"),
    "no hidden size": (model("student", "hidden"), "positive integers"),
    "a hidden size of text": (model("student", "hidden", value="32"), "positive integers"),
    "a vocabulary below the tokenizer's": (model("student", "vocab", value=50), "of different models"),
    "no max_tokens": (model("text", "max_tokens"), "max_tokens"),
    "a prefix out of the vocabulary": (model("text", "prefix", value=[10**6]), "prefix, middle and suffix"),
    "a prefix of text": (model("text", "prefix", value="CLS"), "prefix, middle and suffix"),
    "grades the wrong way round": (model("grades", value={"min": 3, "max": 0}), "min < max"),
    "no buckets": (model("features", "buckets"), "buckets"),
    "fewer buckets than ids": (model("features", "buckets", value=3), "feature_ids has values"),
    "features denied": (model("features", value=None), "inputs"),
    "graph garbage": (lambda e: (e / "student.onnx").write_bytes(b"\x00" * 100), "not a valid ONNX model"),
    "graph cut short": (lambda e: (e / "student.onnx").write_bytes((e / "student.onnx").read_bytes()[:5000]), "not a valid ONNX model"),
    "another opset": (graph(set_opset), "operator sets"),
    "a custom operator": (graph(custom_domain), "operator sets"),
    "another input": (graph(rename_input), "has inputs"),
    "int64 ids": (graph(widen_input), "input_ids must be INT32|not a valid ONNX model"),
    "a fixed batch": (graph(fix_batch), "fixed size"),
    "two outputs": (graph(second_output), "expected one float output"),
    "weights in another file": (graph(external), "another file"),
    "a tokenizer of nothing": (lambda e: (e / "tokenizer.json").write_text("{}"), "tokenizer.json cannot be loaded"),
    "a tokenizer that truncates": (tokenizer(truncating), "pads or truncates"),
    "calibration garbage": (lambda e: (e / "calibration.npz").write_bytes(b"PK"), "not a readable"),
    "calibration without tokens": (calibration(input_ids=None), "lacks input_ids"),
    "calibration without grades": (calibration(grades=None), "grades must be float32"),
    "calibration of float64 logits": (calibration(logits=lambda a: a.astype(np.float64)), "logits must be float32"),
    "calibration with NaN logits": (calibration(logits=lambda a: np.where(np.arange(len(a)) == 3, np.nan, a).astype(np.float32)), "NaN"),
    "calibration of int64 queries": (calibration(query_index=lambda a: a.astype(np.int64)), "query_index must be int32"),
    "calibration longer than max_tokens": (model("text", "max_tokens", value=16), "expected 1 to 16"),
    "calibration without features": (
        calibration(feature_ids=lambda a: a[:, :0], feature_weights=lambda a: a[:, :0]),
        "of 0 features",
    ),
}


def test_a_good_export_is_read(export: Path) -> None:
    read = read_export(export)
    assert read.name == "tiny-l2"
    assert read.calibration.batch.size == len(read.calibration.logits) == 96
    assert json.loads(read.features_json) == read.model["features"]


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_export_is_refused_with_the_reason(export: Path, name: str) -> None:
    change, reason = REFUSED[name]
    change(export)
    with pytest.raises(BuildError, match=reason) as caught:
        read_export(export)
    assert str(export) in str(caught.value)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="expected a folder written by `edgerec export`"):
        read_export(tmp_path / "absent")
