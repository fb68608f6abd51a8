"""A Triton model repository made of a bundle, for teams that want the ranker behind Triton Inference Server.

The graph goes to Triton's ONNX Runtime backend, whose shapes are free: of a TensorRT bundle the typed graph, on the GPU, with TensorRT as
accelerator. Its plans stay behind: each runs whole buckets only, and Triton's batcher makes batches of any size. Text is not handled by
Triton: the caller sends token ids, and finds tokenizer and layout beside the model.

Source: the protobuf schema of Triton's model configuration (model_config.proto), https://github.com/triton-inference-server/common.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .bundle import read_file, read_json, verify_bundle
from .engine.probe import PROBE, batch_from, read_arrays
from .errors import BundleError, InputError
from .manifest import Manifest, is_plain_name

GRAPHS: Mapping[str, str] = {"ort": "engine.onnx", "tensorrt": "tensorrt.onnx"}
"""By backend of the bundle: the graph that Triton serves."""
_TYPES = {"int32": "TYPE_INT32", "float32": "TYPE_FP32"}


class Word(str):
    """A name of the schema's enums, written without quotes."""


def export_triton(
    bundle: str | os.PathLike[str],
    repository: str | os.PathLike[str],
    *,
    name: str = "",
    max_batch: int = 128,
    instances: int = 1,
    queue_delay_us: int = 500,
) -> Path:
    """Write ``REPOSITORY/NAME``: ``config.pbtxt``, ``1/model.onnx``, warm-up samples, and what a caller needs to encode text.

    Parameters
    ----------
    bundle : built for ``ort`` or ``tensorrt``, of a cross student.
    name : of the model in Triton; empty: the student's.
    max_batch : rows in one execution; Triton joins waiting requests of equal length up to it.
    instances : executions at once.
    queue_delay_us : microseconds that a request may wait for others.

    Returns
    -------
    The model's folder.

    Raises
    ------
    BundleError : the bundle is damaged. InputError : it has no graph for Triton, a value is out of range, or the folder exists.
    """
    root = Path(bundle)
    manifest = verify_bundle(root)
    model = read_json(root, manifest, "model.json")
    if manifest.backend not in GRAPHS or model.get("states") is not None:
        kind = "mid-fusion " if model.get("states") is not None else ""
        raise InputError(
            f"{root} is a {kind}bundle for {manifest.backend}; Triton gets cross students built with --backend ort or tensorrt"
        )
    called = name or str(model["name"])
    if not is_plain_name(called):
        raise InputError(f"name is {called!r:.80}; expected ASCII letters, digits, '.', '_' or '-'")
    for what, value, most in (("max_batch", max_batch, 4096), ("instances", instances, 64), ("queue_delay_us", queue_delay_us, 10**6)):
        if not 1 <= value <= most:
            raise InputError(f"{what} is {value}; expected 1 to {most}")
    target = Path(repository) / called
    if target.exists():
        raise InputError(f"{target} exists; give another repository or name, or delete it")
    samples = _samples(root, manifest)
    files: dict[str, bytes] = {
        "config.pbtxt": pbtxt(config(called, manifest, samples, max_batch, instances, queue_delay_us)).encode(),
        f"1/{_MODEL}": read_file(root, manifest, GRAPHS[manifest.backend]),
        **{f"warmup/{key}": value.tobytes() for key, value in samples.items()},
        **{f"edgerec/{file}": read_file(root, manifest, file) for file in ("tokenizer.json", "model.json", "features.json")},
        "edgerec/bundle.json": json.dumps({"model_version": manifest.model_version, "content_id": manifest.content_id}).encode(),
    }
    _write(target, files)
    return target


_MODEL = "model.onnx"


def config(
    name: str, manifest: Manifest, samples: Mapping[str, NDArray[Any]], max_batch: int, instances: int, queue_delay_us: int
) -> dict[str, Any]:
    """``config.pbtxt`` as nested values; ``samples`` are the inputs of one row, by name, [T] or [F]."""
    tokens = {"input_ids", "attention_mask", "token_type_ids"}
    gpu = manifest.backend == "tensorrt"
    inputs = [
        {"name": key, "data_type": Word(_TYPES[str(value.dtype)]), "dims": [-1 if key in tokens else len(value)]}
        for key, value in samples.items()
    ]
    message: dict[str, Any] = {
        "name": name,
        "backend": "onnxruntime",
        "default_model_filename": _MODEL,
        "max_batch_size": max_batch,
        "input": inputs,
        # One number a row: Triton knows no scalar, so it is a vector of one outside.
        "output": [{"name": "logits", "data_type": Word("TYPE_FP32"), "dims": [1], "reshape": {"shape": []}}],
        "instance_group": [{"count": instances, "kind": Word("KIND_GPU" if gpu else "KIND_CPU")}],
        "dynamic_batching": {"preferred_batch_size": [max_batch], "max_queue_delay_microseconds": queue_delay_us},
        "model_warmup": [_warmup(samples, rows) for rows in sorted({1, max_batch})],
        "parameters": [{"key": "edgerec_model_version", "value": {"string_value": manifest.model_version}}],
    }
    if gpu:
        message["optimization"] = {"execution_accelerators": {"gpu_execution_accelerator": [{"name": "tensorrt"}]}}
    return message


def pbtxt(message: Mapping[str, Any]) -> str:
    """A message in protobuf's text format."""
    return "\n".join(_lines(message, "")) + "\n"


def _lines(message: Mapping[str, Any], indent: str) -> Iterator[str]:
    for key, value in message.items():
        if isinstance(value, list) and not (value and isinstance(value[0], dict)):
            yield f"{indent}{key}: [{', '.join(map(_scalar, value))}]"
            continue
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, dict):
                yield f"{indent}{key} {{"
                yield from _lines(each, indent + "  ")
                yield f"{indent}}}"
            else:
                yield f"{indent}{key}: {_scalar(each)}"


def _scalar(value: object) -> str:
    return value if isinstance(value, Word) else json.dumps(value)


def _warmup(samples: Mapping[str, NDArray[Any]], rows: int) -> dict[str, Any]:
    inputs = [
        {"key": key, "value": {"data_type": Word(_TYPES[str(value.dtype)]), "dims": [len(value)], "input_data_file": key}}
        for key, value in samples.items()
    ]
    return {"name": f"{rows} rows", "batch_size": rows, "inputs": inputs}


def _samples(root: Path, manifest: Manifest) -> dict[str, NDArray[Any]]:
    """A real row, the first of the probe, without its padding."""
    arrays = read_arrays(read_file(root, manifest, PROBE), f"{root}: {PROBE}")
    batch = batch_from(arrays, f"{root}: {PROBE}")
    if not batch.size:
        raise BundleError(f"{root}: {PROBE} has no row; build the bundle again")
    length = max(1, int(batch.attention_mask[0].sum()))
    found: dict[str, NDArray[Any]] = {
        key: np.ascontiguousarray(getattr(batch, key)[0, :length]) for key in ("input_ids", "attention_mask", "token_type_ids")
    }
    if batch.feature_ids.shape[1]:
        found |= {"feature_ids": batch.feature_ids[0], "feature_weights": batch.feature_weights[0]}
    return found


def _write(target: Path, files: Mapping[str, bytes]) -> None:
    """The folder appears by one rename: Triton, which may be polling the repository, never sees half of it."""
    staging = target.with_name(f".{target.name}.{secrets.token_hex(6)}.tmp")
    try:
        for name, data in files.items():
            path = staging / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "xb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
        os.rename(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
