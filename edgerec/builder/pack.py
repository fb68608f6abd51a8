"""Step 6, pack: name the model, describe the machine, write the bundle."""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from .. import __version__
from ..bundle_writer import write_bundle
from ..engine import Engine
from ..engine.machine import cpu_flags
from ..engine.ort import ort
from ..engine.probe import PROBE
from ..manifest import COMPILED_TOKENIZER, Manifest
from ..vectors import VECTORS_FILE
from .contract import Export
from .parity import probe_rows, take


def model_version(export: Export, engine: Mapping[str, bytes], precision: str) -> str:
    """``NAME-PRECISION-`` and the first 8 hex digits of the SHA-256 over engine files, features and tokenizer: equal files, equal name."""
    digest = hashlib.sha256()
    for part in (*engine.values(), export.features_json, export.tokenizer):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return f"{export.name}-{precision}-{digest.hexdigest()[:8]}"


def probe(engine: Engine, export: Export) -> bytes:
    """``probe.npz``: 4 calibration rows as one batch, and the logits this machine gives for it."""
    batch = take(export.calibration.batch, probe_rows(export.calibration.batch.size))
    return npz(
        {
            "input_ids": batch.input_ids,
            "attention_mask": batch.attention_mask,
            "token_type_ids": batch.token_type_ids,
            "feature_ids": batch.feature_ids,
            "feature_weights": batch.feature_weights,
            "logits": engine.run(batch),
        }
    )


def npz(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Arrays as an uncompressed ``.npz``; the same arrays give the same bytes."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **dict(arrays))
    return buffer.getvalue()


def pack(
    path: str | os.PathLike[str],
    export: Export,
    engine: Mapping[str, bytes],
    *,
    backend: str,
    precision: str,
    parity: Mapping[str, Any],
    probe: bytes | None = None,
    compiled_tokenizer: bytes = b"",
    machine: Mapping[str, str | list[str]] | None = None,
    replace: bool = False,
) -> Manifest:
    """Write the bundle folder atomically; ``machine`` is what else the fingerprint says. Raises BundleError.

    ``probe`` and ``compiled_tokenizer`` are left out when there are none.
    """
    files: dict[str, bytes | Path] = {
        **engine,
        "tokenizer.json": export.tokenizer,
        "features.json": export.features_json,
        "model.json": json.dumps(export.model, indent=1).encode() + b"\n",
        "parity.json": json.dumps(parity, indent=1, allow_nan=False).encode() + b"\n",
    }
    if export.retrieve:
        files[VECTORS_FILE] = export.retrieve
    if probe is not None:
        files[PROBE] = probe
    if compiled_tokenizer:
        files[COMPILED_TOKENIZER] = compiled_tokenizer
    return write_bundle(
        path,
        files,
        model_version=model_version(export, engine, precision),
        backend=backend,
        precision=precision,
        content_id=export.content_id,
        fingerprint={**fingerprint(backend), **(machine or {})},
        replace=replace,
    )


def fingerprint(backend: str) -> dict[str, str | list[str]]:
    """The machine and the versions of this build."""
    result: dict[str, str | list[str]] = {
        "machine": platform.machine(),
        "os": sys.platform,
        "cpu_flags": cpu_flags(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "edgerec": __version__,
    }
    if backend == "ort":
        result |= {"onnxruntime": ort.__version__, "onnx": onnx.__version__, "graph": "optimised"}
    return result
