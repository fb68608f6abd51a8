"""Step 1, the contract: read an export folder and refuse what the later steps do not understand."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto
from tokenizers import Tokenizer

from ..engine import Limits
from ..engine.mid import MidLayout
from ..engine.probe import batch_from, read_arrays
from ..errors import BuildError, BundleError, EngineError
from ..manifest import content_id, is_plain_name, parse_json
from ..states import StateSpec
from ..types import Batch
from ..vectors import VECTORS_FILE, RetrievalHead, VectorSpec

FORMAT, VERSION, OPSET = "edgerec-export", 1, 20

Inputs = Mapping[str, tuple[int, int, int]]
"""By name: the kind of number, how many sides, and how many of them, from the first, are dynamic."""
_CROSS: Inputs = dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), (TensorProto.INT32, 2, 2))
_FEATURES: Inputs = {"feature_ids": (TensorProto.INT32, 2, 1), "feature_weights": (TensorProto.FLOAT, 2, 1)}
_ITEMS: Inputs = {"item_ids": (TensorProto.INT32, 2, 2), "item_lengths": (TensorProto.INT32, 1, 1)}
_QUERIES: Inputs = {
    "query_ids": (TensorProto.INT32, 2, 2),
    "query_lengths": (TensorProto.INT32, 1, 1),
    "query_index": (TensorProto.INT32, 1, 1),
    "item_lengths": (TensorProto.INT32, 1, 1),
}
_STATES = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "int8": TensorProto.INT8}
_SIDES = ("no", "one dimension", "two dimensions", "three dimensions")
_DIMENSIONS = ("layers", "hidden", "heads", "intermediate", "vocab")


@dataclass(frozen=True, slots=True)
class Calibration:
    """A sample of real rows with their query, their grade and the logit torch gave.

    Attributes
    ----------
    batch : M rows, padded to one T.
    query_index : int32 [M]
    grades : float32 [M]; NaN where a row has none.
    logits : float32 [M]
    """

    batch: Batch
    query_index: NDArray[np.int32]
    grades: NDArray[np.float32]
    logits: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Export:
    """An export folder, read and checked. ``model`` is the decoded ``model.json``; the other files are kept as bytes.

    ``graph`` gives logits; ``item_graph`` and ``states`` are those of a mid-fusion student, else empty and None;
    ``retrieve`` is ``retrieve.npz`` of one that retrieves, else empty.
    """

    folder: Path
    model: dict[str, Any]
    graph: bytes
    item_graph: bytes
    states: StateSpec | None
    retrieve: bytes
    tokenizer: bytes
    calibration: Calibration
    limits: Limits

    @property
    def name(self) -> str:
        """``model.json: name``."""
        return str(self.model["name"])

    @property
    def features_json(self) -> bytes:
        """The bundle's ``features.json``: the feature spec alone, or ``null``."""
        return json.dumps(self.model["features"], indent=1).encode() + b"\n"

    @property
    def content_id(self) -> str:
        """See `edgerec.bundle.content_id`."""
        return content_id(self.tokenizer, self.model["features"], self.model["text"], self.model.get("states"))


def read_export(folder: str | os.PathLike[str]) -> Export:
    """Read an export folder.

    Raises
    ------
    BuildError : a file is missing, unreadable, of another version, or the graph is not one the builder knows; says which and why.
    """
    root = Path(folder)
    try:
        model = _read_model(root)
        what = f"{root}: model.json"
        limits, states = Limits.from_model(model, what), StateSpec.from_model(model, what)
        graph, item_graph = _read_graphs(root, model, limits, states)
        export = Export(
            folder=root,
            model=model,
            graph=graph,
            item_graph=item_graph,
            states=states,
            retrieve=_read_retrieve(root, model, states),
            tokenizer=_read_tokenizer(root, limits, model["text"]),
            calibration=_read_calibration(root, limits),
            limits=limits,
        )
    except BundleError as error:
        raise BuildError(f"{error}; export the student again") from error
    return export


def read_bytes(path: Path) -> bytes:
    """The file, or BuildError naming it."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise BuildError(f"{path} cannot be read: {error.strerror or error}; expected a folder written by `edgerec export`") from error


def _read_model(root: Path) -> dict[str, Any]:
    model = parse_json(read_bytes(root / "model.json"), f"{root}: model.json")
    if not isinstance(model, dict) or model.get("format") != FORMAT:
        raise BuildError(f"{root}: model.json does not say format {FORMAT!r}; expected a folder written by `edgerec export`")
    if model.get("version") != VERSION:
        raise BuildError(f"{root}: export version is {model.get('version')!r:.80}, this edgerec builds version {VERSION}; export again")
    missing = [key for key in ("name", "student", "text", "features", "grades") if key not in model]
    if missing:
        raise BuildError(f"{root}: model.json lacks {', '.join(missing)}; export the student again")
    name = model["name"]
    if not isinstance(name, str) or not is_plain_name(name) or len(name) > 80:
        raise BuildError(f"{root}: model.json: name is {name!r:.80}, expected 1 to 80 ASCII letters, digits, '.', '_' or '-'")
    student = model["student"]
    if not isinstance(student, dict) or any(type(student.get(key)) is not int or student[key] < 1 for key in _DIMENSIONS):
        raise BuildError(f"{root}: model.json: student must give {', '.join(_DIMENSIONS)} as positive integers")
    for key, most in (("layer_heads", student["heads"]), ("layer_intermediate", student["intermediate"])):
        sizes = student.get(key, [1] * student["layers"])
        if not isinstance(sizes, list) or len(sizes) != student["layers"] or any(type(n) is not int or not 1 <= n <= most for n in sizes):
            raise BuildError(f"{root}: model.json: student: {key} must be {student['layers']} integers from 1 to {most}; got {sizes!r:.80}")
    grades = model["grades"]
    low, high = (grades.get("min"), grades.get("max")) if isinstance(grades, dict) else (None, None)
    if not isinstance(low, (int, float)) or not isinstance(high, (int, float)) or not low < high:
        raise BuildError(f"{root}: model.json: grades is {grades!r:.80}, expected min and max with min < max")
    if not isinstance(model.get("gate", {}), dict):
        raise BuildError(f"{root}: model.json: gate is {model['gate']!r:.80}, expected an object of bounds")
    return model


def _read_graphs(root: Path, model: dict[str, Any], limits: Limits, states: StateSpec | None) -> tuple[bytes, bytes]:
    features = _FEATURES if limits.buckets else {}
    interaction = model["student"].get("interaction", "cross")
    if interaction != ("mid" if states else "cross"):
        raise BuildError(f"{root}: model.json: student.interaction is {interaction!r:.80}, but it has {'' if states else 'no '}states")
    if states is None:
        return _read_graph(root, "student.onnx", {**_CROSS, **features}, ("logits", 1)), b""
    MidLayout.from_model(model, limits, f"{root}: model.json")
    kept: Inputs = {"states": (_STATES[states.precision], 3, 2)}
    scales: Inputs = {"state_scales": (TensorProto.FLOAT, 3, 2)} if states.scales else {}
    encoder = _read_graph(root, "item_encoder.onnx", _ITEMS, ("states", 3))
    if hashlib.sha256(encoder).hexdigest() != states.sha256:
        raise BuildError(f"{root}: item_encoder.onnx is not the one that model.json names; the export is mixed, export the student again")
    return _read_graph(root, "ranker.onnx", {**_QUERIES, **kept, **scales, **features}, ("logits", 1)), encoder


def _read_retrieve(root: Path, model: dict[str, Any], states: StateSpec | None) -> bytes:
    spec = VectorSpec.from_json(model.get("retrieve"), f"{root}: model.json: retrieve")
    if spec is None:
        return b""
    if states is None:
        raise BuildError(f"{root}: model.json has retrieve and no states; only a mid-fusion student retrieves")
    data = read_bytes(root / VECTORS_FILE)
    RetrievalHead.from_bytes(data, spec, hidden=model["student"]["hidden"], numbers=states.numbers, what=f"{root}: {VECTORS_FILE}")
    return data


def _read_graph(root: Path, file: str, expected: Inputs, output: tuple[str, int]) -> bytes:
    data = read_bytes(root / file)
    what = f"{root}: {file}"
    try:
        model = onnx.load_model_from_string(data)
        if any(tensor.data_location == TensorProto.EXTERNAL for tensor in model.graph.initializer):
            raise BuildError(f"{what} keeps its weights in another file; export it as one file (it must be below 2 GB)")
        onnx.checker.check_model(model)
    except BuildError:
        raise
    # protobuf and the checker raise unrelated classes (DecodeError, ValidationError, RuntimeError, ValueError).
    except Exception as error:
        raise BuildError(f"{what} is not a valid ONNX model: {error!s:.300}; export the student again") from error
    opsets = {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
    if opsets.get("ai.onnx") != OPSET or any(node.domain not in ("", "ai.onnx") for node in model.graph.node):
        raise BuildError(f"{what} uses operator sets {opsets}, expected ai.onnx {OPSET} alone; export the student again")
    found = {value.name: value.type.tensor_type for value in model.graph.input}
    if found.keys() != expected.keys():
        raise BuildError(f"{what} has inputs {', '.join(sorted(found))}; by model.json it must have {', '.join(sorted(expected))}")
    for name, (kind, sides, dynamic) in expected.items():
        dims = found[name].shape.dim
        if found[name].elem_type != kind or len(dims) != sides:
            raise BuildError(f"{what}: input {name} must be {TensorProto.DataType.Name(kind)} with {_SIDES[sides]}")
        if any(dim.HasField("dim_value") for dim in dims[:dynamic]):
            raise BuildError(f"{what}: input {name} has a fixed size; batch and tokens must be dynamic")
    outputs = list(model.graph.output)
    wanted, sides = output
    if [value.name for value in outputs] != [wanted] or outputs[0].type.tensor_type.elem_type != TensorProto.FLOAT:
        raise BuildError(f"{what} has outputs {', '.join(value.name for value in outputs)}; expected one float output, {wanted}")
    if len(outputs[0].type.tensor_type.shape.dim) != sides:
        raise BuildError(f"{what}: {wanted} has {len(outputs[0].type.tensor_type.shape.dim)} dimensions, expected {_SIDES[sides]}")
    return data


def _read_tokenizer(root: Path, limits: Limits, text: object) -> bytes:
    data = read_bytes(root / "tokenizer.json")
    try:
        tokenizer = Tokenizer.from_buffer(data)
    # The tokenizers library raises bare Exception.
    except Exception as error:
        raise BuildError(f"{root}: tokenizer.json cannot be loaded: {error!s:.300}") from error
    if tokenizer.padding is not None or tokenizer.truncation is not None:
        raise BuildError(f"{root}: tokenizer.json pads or truncates; export it with no_padding() and no_truncation()")
    size = tokenizer.get_vocab_size()
    if size > limits.vocab:
        raise BuildError(f"{root}: tokenizer.json has {size} tokens, the student's embedding {limits.vocab}; they are of different models")
    special = [text.get(key) for key in ("prefix", "middle", "suffix")] if isinstance(text, dict) else [None]
    ids = [token for part in special if isinstance(part, list) for token in part]
    if not all(isinstance(part, list) for part in special) or not all(type(i) is int and 0 <= i < limits.vocab for i in ids):
        raise BuildError(f"{root}: model.json: text: prefix, middle and suffix must be lists of token ids below {limits.vocab}")
    return data


def _read_calibration(root: Path, limits: Limits) -> Calibration:
    what = f"{root}: calibration.npz"
    arrays = read_arrays(read_bytes(root / "calibration.npz"), what)
    batch = batch_from(arrays, what)
    try:
        limits.check(batch)
    except EngineError as error:
        raise BuildError(f"{what} does not fit model.json: {error}; export the student again") from error
    if batch.size < 2 or (limits.buckets and not batch.feature_ids.shape[1]):
        raise BuildError(f"{what} has {batch.size} rows of {batch.feature_ids.shape[1]} features; export it from real rows")
    for name, kind in (("query_index", np.int32), ("grades", np.float32), ("logits", np.float32)):
        value = arrays.get(name)
        if value is None or value.dtype != kind or value.shape != (batch.size,):
            raise BuildError(f"{what}: {name} must be {np.dtype(kind)} [{batch.size}]")
    if not np.all(np.isfinite(arrays["logits"])):
        raise BuildError(f"{what}: logits holds NaN or infinity; the student did not train or export well")
    return Calibration(batch, arrays["query_index"], arrays["grades"], arrays["logits"])
